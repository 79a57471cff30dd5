"""The paper's Table 1 as a script: the data become what they should, subsets are fixed, and the table says what was measured."""

from __future__ import annotations

import io
import json
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, read_project, write_project
from converters.video import open_video
from smp_plugin.comparison_results import COLUMNS, append_result, cell_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "reproduce_paper"))
import beepose  # type: ignore[import-not-found]  # noqa: E402
import fetch  # type: ignore[import-not-found]  # noqa: E402
import protocol  # type: ignore[import-not-found]  # noqa: E402
import run as script  # type: ignore[import-not-found]  # noqa: E402

POSE = [40, 20, 1, 10, 12, 1, 25, 15, 1, 3, 4, 0, 8, 5, 1]  # Tail, Head, Thorax, right and left antenna; one hidden
NAMES = ["Tail", "Head", "Thorax", "Rant", "Lant"]
WIDTH, HEIGHT = 64, 48


def photographs(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 80, 40)).save(folder / name)
    return folder


def bees(count: int, names: list[str] = NAMES, pose: list[int] = POSE, twice: bool = True) -> dict[str, Any]:
    """Like beePose's file: everything twice, the ids of the animals too."""
    images = [{"id": 700 + n, "width": WIDTH, "height": HEIGHT, "file_name": f"{700 + n:012d}.jpg"} for n in range(count)]
    animals = [
        {"id": 2 * n + i, "image_id": 700 + n, "category_id": 1, "iscrowd": 0, "num_keypoints": 5, "bbox": [0, 0, 100, 100], "area": 54000}
        | {"keypoints": [value + 2 * i if place % (len(pose) // 5) < 2 else value for place, value in enumerate(pose)]}
        for n in range(count)
        for i in range(2)
    ]
    category = {"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 3], [3, 2], [2, 4], [2, 5]]}
    times = 2 if twice else 1
    return {"info": {}, "categories": [category], "images": images * times, "annotations": animals * times}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of beePose: three labelled and two unlabelled photographs, and one to measure on, in the repository's folders."""
    monkeypatch.setattr(fetch, "BEEPOSE_COUNTS", {"train": (3, 6), "validation": (1, None)})
    folder = tmp_path / "repository" / fetch.BEEPOSE_PART
    photographs(folder / "train", [f"{700 + n:012d}.jpg" for n in range(5)])
    photographs(folder / "validation", ["000000000700.jpg"])
    (folder / "train_bee_annotations2018.json").write_text(json.dumps(bees(3)))
    unflagged = [value for place, value in enumerate(POSE) if place % 3 < 2]
    (folder / "validation.json").write_text(json.dumps(bees(1, ["Tail", "Head", "Torax", "RAnt", "LAnt"], unflagged, twice=False)))
    return tmp_path / "repository"


def project(path: Path, frames: int, keypoints: tuple[str, ...] = ("a", "b"), sequence: int = 0) -> Path:
    """A SLEAP project on images, one animal in each labelled frame."""
    folder = photographs(path.parent / f"{path.stem}_images", [f"img{n}.png" for n in range(max(frames, sequence))])
    video = VideoSource(tuple(sorted(folder.iterdir(), key=lambda p: int(p.stem[3:]))))
    pose = np.arange(2 * len(keypoints), dtype=float).reshape(-1, 2) * 5 + 3
    labels = Labels(Skeleton(keypoints), [video], [LabeledFrame(0, n, [Instance(pose + n)]) for n in range(frames)])
    write_project(path, labels)
    return path


def results(folder: Path, ap: dict[str, float], labels: int, seed: int = 0) -> None:
    for method, value in ap.items():
        row: dict[str, object] = dict.fromkeys(COLUMNS, 0.5)
        row |= {"method": method, "labels": labels, "fraction": "all", "seed": seed, "ap_s2_1": value, "version": "made up 1"}
        append_result(folder, row)


# --- beePose ---


def test_beepose_animals_are_read_once_and_hidden_keypoints_left_out(raw: Path) -> None:
    part = raw / fetch.BEEPOSE_PART
    labels = beepose.read_beepose(part / "train_bee_annotations2018.json", part / "train", unlabelled=True)
    assert labels.skeleton.keypoints == ("Tail", "Head", "Thorax", "RAnt", "LAnt")
    assert [path.name for path in labels.videos[0].paths] == [f"{700 + n:012d}.jpg" for n in range(5)]  # the last two are unlabelled
    assert [(f.index, len(f.instances)) for f in labels.frames] == [(0, 2), (1, 2), (2, 2)]
    expected = [[40, 20], [10, 12], [25, 15], [np.nan, np.nan], [8, 5]]
    np.testing.assert_array_equal(labels.frames[1].instances[0].points, expected)
    assert "6 animals are listed twice" in labels.notes[0] and "6 hidden" in labels.notes[0]


def test_beepose_validation_has_no_flags_and_other_spellings(raw: Path) -> None:
    part = raw / fetch.BEEPOSE_PART
    labels = beepose.read_beepose(part / "validation.json", part / "validation")
    np.testing.assert_array_equal(labels.frames[0].instances[0].points, [[40, 20], [10, 12], [25, 15], [3, 4], [8, 5]])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d, _: d["annotations"][0].update(keypoints=[1, 2, 3]), "must hold 10 or 15 numbers"),
        (lambda d, _: d["annotations"][0].update(keypoints=["x"] * 15), "must be numbers"),
        (lambda d, _: d["annotations"][0].update(image_id=9), "does not list"),
        (lambda d, _: d["images"][0].update(file_name="../../etc/passwd"), "one plain file name"),
        (lambda d, _: [i.update(width=9) for i in d["images"]], "labels would not fit"),
        (lambda d, _: d["categories"][0].update(keypoints=["nose"]), "is it an annotation file of beePose"),
        (lambda _, folder: (folder / "000000000701.jpg").unlink(), "lacks 1 of the 3 images"),
        (lambda _, folder: (folder / "000000000701.jpg").write_bytes(b"no"), "is no image"),
    ],
)
def test_beepose_files_that_are_not_right_are_refused(raw: Path, spoil: Callable[[Any, Path], object], sentence: str) -> None:
    part = raw / fetch.BEEPOSE_PART
    data = bees(3)
    spoil(data, part / "train")
    file = part / "train_bee_annotations2018.json"
    file.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=sentence):
        beepose.read_beepose(file, part / "train")


def test_real_labels_come_back_from_beeposes_form(shared_data: Path, tmp_path: Path) -> None:
    """All 1614 animals, listed twice: none is taken for the double of another."""
    known = read_project(shared_data / "honeybee" / "honeybee.json")
    data = json.loads((shared_data / "honeybee" / "honeybee.json").read_text())
    for image in data["images"]:
        (tmp_path / Path(image["file_name"]).name).symlink_to(shared_data / "honeybee" / image["file_name"])
        image["file_name"] = Path(image["file_name"]).name
    for animal in data["annotations"]:
        animal["keypoints"] = [int(v > 0) if place % 3 == 2 else v for place, v in enumerate(animal["keypoints"])]
    (tmp_path / "train.json").write_text(json.dumps({k: v * 2 if k in ("images", "annotations") else v for k, v in data.items()}))
    labels = beepose.read_beepose(tmp_path / "train.json", tmp_path)
    assert (len(labels.frames), sum(len(f.instances) for f in labels.frames)) == (135, 1614)
    theirs = {known.videos[0].paths[f.index].name: f.instances for f in known.labelled_frames}
    for frame in labels.frames:
        for ours, other in zip(frame.instances, theirs[labels.videos[0].paths[frame.index].name], strict=True):
            np.testing.assert_array_equal(ours.points, other.points)


# --- where the data come from ---


def test_an_unpacked_repository_becomes_projects(raw: Path, tmp_path: Path) -> None:
    for source in (raw, raw / fetch.BEEPOSE_PART):
        data = fetch.prepare("honeybee", source, tmp_path / f"out{source.name}")
        train, val = read_project(data.train), read_project(data.val)
        assert (len(train.labelled_frames), len(train.videos[0].paths), len(val.labelled_frames)) == (3, 5, 1)


def test_the_checkpoint_copy_serves_where_the_labels_have_no_other(raw: Path, tmp_path: Path) -> None:
    part = raw / fetch.BEEPOSE_PART
    copy = part / fetch.BEEPOSE_LABELS[1]
    copy.parent.mkdir()
    (part / fetch.BEEPOSE_LABELS[0]).rename(copy)
    assert len(read_project(fetch.prepare("honeybee", raw, tmp_path / "out").train).labelled_frames) == 3
    copy.unlink()
    with pytest.raises(FormatError, match="lacks train_bee_annotations2018.json"):
        fetch.prepare("honeybee", raw, tmp_path / "other")


def test_too_few_animals_are_refused_and_leave_no_project(raw: Path, tmp_path: Path) -> None:
    (raw / fetch.BEEPOSE_PART / fetch.BEEPOSE_LABELS[0]).write_text(json.dumps(bees(2)))
    with pytest.raises(FormatError, match="4 animals on 2 images, and 6 on 3 are expected"):
        fetch.prepare("honeybee", raw, tmp_path / "out")
    assert not (tmp_path / "out" / "train135.slp").exists()


def zipped(raw: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(raw.rglob("*.*")):
            file.write(path, f"beepose-abc/{path.relative_to(raw).as_posix()}")
        file.writestr("beepose-abc/models/huge.h5", b"not wanted")
    return packed.getvalue()


class Answer(io.BytesIO):
    def __init__(self, content: bytes, announced: int) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(announced)}


def test_the_archive_is_downloaded_whole_or_not_at_all(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped(raw)
    asked: list[str] = []

    def answer(size: int) -> None:
        def urlopen(url: str, timeout: float) -> Answer:
            asked.append(url)
            return Answer(content[:size], len(content))

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)

    out = tmp_path / "out"
    answer(len(content) // 2)
    with pytest.raises(FormatError, match=f"{len(content) // 2} of {len(content)} bytes.*--source FOLDER"):
        fetch.prepare("honeybee", None, out)
    assert list((out / "download").iterdir()) == []
    answer(len(content))
    data = fetch.prepare("honeybee", None, out)
    assert len(read_project(data.train).labelled_frames) == 3
    fetch.prepare("honeybee", None, out)
    assert asked == [fetch.BEEPOSE] * 2  # the third time everything is there
    assert not (out / "beepose" / "models").exists()
    with pytest.raises(FormatError, match="holds data from the published data"):
        fetch.prepare("honeybee", raw, out)


def test_the_archive_may_lie_in_the_source(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "stick"
    source.mkdir()
    (source / fetch.BEEPOSE_FILE).write_bytes(zipped(raw))
    assert len(read_project(fetch.prepare("honeybee", source, tmp_path / "out").val).labelled_frames) == 1
    (source / fetch.BEEPOSE_FILE).write_bytes(zipped(raw)[:500])
    with pytest.raises(FormatError, match="no whole zip file"):
        fetch.prepare("honeybee", source, tmp_path / "other")
    assert not (tmp_path / "other" / "beepose").exists()


@pytest.mark.parametrize(
    ("dataset", "files", "sentence"),
    [
        ("honeybee", [], "neither train.*nor beepose.zip"),
        ("honeybee", ["train7.slp"], "lacks val30.slp"),
        ("honeybee", ["train5_0.slp", "val30.slp"], "lacks train105.slp"),
        ("pups", [], "pups_train.slp with pups_val.slp or pups.slp with heldout.slp"),
        ("pups", ["pups_train.slp"], "lacks pups_val.slp"),
        ("flies", ["train.pkg.slp", "val.pkg.slp"], "lacks test.pkg.slp .or flies_train.slp"),
    ],
)
def test_what_a_source_lacks_is_said(dataset: str, files: list[str], sentence: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in files:
        (source / name).touch()
    with pytest.raises(FormatError, match=sentence):
        fetch.prepare(dataset, source, tmp_path / "out")


def test_no_network_and_no_source_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for dataset, sentence in (("flies", "train.pkg.slp could not be downloaded .*no route"), ("pups", "never published")):
        with pytest.raises(FormatError, match=sentence):
            fetch.prepare(dataset, None, tmp_path / dataset)
    with pytest.raises(FormatError, match="is no folder"):
        fetch.prepare("pups", tmp_path / "nowhere", tmp_path / "out")


def test_fly_packages_become_labelled_and_unlabelled_images(tmp_path: Path) -> None:
    keypoints = tuple(f"k{n}" for n in range(13))
    source = tmp_path / "source"
    source.mkdir()
    for name, frames in zip(fetch.FLY_FILES, (3, 2, 1), strict=True):
        linked = project(tmp_path / f"{name.split('.')[0]}.slp", frames, keypoints)
        write_project(source / name, read_project(linked))
    data = fetch.prepare("flies", source, tmp_path / "out")
    train = read_project(data.train)
    assert (len(train.labelled_frames), len(train.videos[0].paths)) == (3, 5)
    np.testing.assert_array_equal(train.frames[2].instances[0].points[0], [5, 10])
    assert data.val == source / "test.pkg.slp"
    write_project(tmp_path / "val.slp", read_project(data.val))  # as a comparison does
    with open_video(read_project(tmp_path / "val.slp").videos[0]) as video:
        assert video.read(0).shape == (HEIGHT, WIDTH, 3)
    with Image.open(train.videos[0].paths[0]) as image:
        assert image.size == (WIDTH, HEIGHT)


def test_real_folders_serve_as_sources(shared_data: Path, tmp_path: Path) -> None:
    bee = fetch.prepare("honeybee", shared_data / "honeybee", tmp_path / "bee")
    assert (bee.train.name, {n: len(paths) for n, paths in bee.subsets.items()}) == ("train105.slp", {5: 5, 25: 5})
    assert [p.name for p in bee.subsets[5]] == [f"train5_{i}.slp" for i in range(5)]
    runs = protocol.runs_of("honeybee", bee, tmp_path / "bee")
    assert [r.row for r in runs] == ["5"] * 5 + ["25"] * 5 + ["all"]
    assert fetch.prepare("pups", shared_data / "pups_partial", tmp_path / "pups").train.name == "pups_train.slp"
    flies = fetch.prepare("flies", shared_data / "flies", tmp_path / "flies")
    assert (flies.train.name, flies.val) == ("flies_train.slp", 0.25)


# --- subsets ---


def test_subsets_are_drawn_by_number_and_the_rest_stays_as_unlabelled(tmp_path: Path) -> None:
    data = fetch.Prepared(project(tmp_path / "train30.slp", 30, sequence=32), 0.25)
    runs = protocol.runs_of("honeybee", data, tmp_path / "a", subsets=3, seeds=2)
    assert [(r.row, r.number, r.seed) for r in runs] == [
        ("5", 0, 0), ("5", 1, 0), ("5", 2, 0), ("25", 0, 0), ("25", 1, 0), ("25", 2, 0), ("all", 0, 0), ("all", 1, 1),
    ]  # fmt: skip
    again = protocol.runs_of("honeybee", data, tmp_path / "b", subsets=3)
    chosen = {}
    for one, other in zip(runs[:6], again[:6], strict=True):
        frames = [f.index for f in read_project(one.project).labelled_frames]
        assert frames == [f.index for f in read_project(other.project).labelled_frames]
        assert len(frames) == int(one.row)
        assert len(read_project(one.project).videos[0].paths) == 32
        chosen[one.row, one.number] = set(frames)
    assert len({tuple(sorted(chosen["5", i])) for i in range(3)}) == 3
    assert chosen["5", 1] < chosen["25", 1]


def test_rows_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    train = project(tmp_path / "train6.slp", 6)
    with pytest.raises(FormatError, match="--rows 7"):
        protocol.runs_of("honeybee", fetch.Prepared(train, 0.25), tmp_path, ["7"])
    with pytest.raises(FormatError, match="fewer than the 25"):
        protocol.runs_of("honeybee", fetch.Prepared(train, 0.25), tmp_path, ["25"])
    with pytest.raises(FormatError, match="--subsets 1"):
        protocol.runs_of("honeybee", fetch.Prepared(train, 0.25, {5: [train]}), tmp_path, ["5"])


# --- the table ---


def test_the_table_has_means_over_subsets_beside_the_papers(tmp_path: Path) -> None:
    data = fetch.Prepared(tmp_path / "train105.slp", 0.25, {5: [tmp_path / f"train5_{i}.slp" for i in range(2)]})
    runs = protocol.runs_of("honeybee", data, tmp_path, ["5", "all"], subsets=2)
    results(runs[0].folder(tmp_path), {"smp": 0.80, "directpose": 0.70}, 5)
    results(runs[1].folder(tmp_path), {"smp": 0.90, "directpose": 0.84}, 5)
    results(runs[2].folder(tmp_path), {"smp": 0.95}, 105)
    lines = protocol.collect("honeybee", tmp_path)
    summary = protocol.summarise(lines)
    assert summary["5"]["smp"]["ap_paper"] == [0.85, 0.05]
    assert summary["all"]["smp"] == {
        "trainings": 1, "labels": 105, "ap_paper": [0.95, None], "ap_s2_0.1": [0.5, None], "ap_s2_0.0025": [0.5, None],
        "pixel_error_median": [0.5, None],
    }  # fmt: skip
    gains = protocol.gains(lines)
    assert gains["5"]["ap_paper"] == [0.08, 0.02] and gains["5"]["pairs"] == 2 and "all" not in gains
    machine = {"device": "CPU", "platform": "Linux"}
    page = protocol.markdown(
        "honeybee",
        {"summary": summary, "gains": gains, "budget": "20 steps", "preset": "small", "notes": ["A."], "command": "c", "machine": machine},
    )
    ours = next(line for line in page.splitlines() if line.startswith("| 5 ") and "here: AP, s2 = 1" in line)
    assert "0.850 +- 0.050 (2)" in ours and "0.770" in ours and " - " in ours  # SLEAP's was not trained
    assert "| *0.776* " in next(line for line in page.splitlines() if line.startswith("| 5 ") and "paper" in line)
    assert "0.950 (1 run)" in page and "row 5: +0.080 +- 0.020 (2 paired" in page


def test_the_papers_tolerance_for_flies_is_measured_on_the_poses(tmp_path: Path) -> None:
    run = protocol.Run("all", 0, project(tmp_path / "flies_train.slp", 2), 0)
    folder = run.folder(tmp_path)
    labels = read_project(run.project)
    (folder / "data").mkdir(parents=True)
    write_project(folder / "data" / "val.slp", labels)
    cell = cell_folder(folder, "smp", "all", 0)
    cell.mkdir(parents=True)
    frames = [replace(f, instances=[], predicted=[PredictedInstance(f.instances[0].points)]) for f in labels.frames[:1]]
    write_project(cell / "predictions.slp", replace(labels, frames=frames))
    results(folder, {"smp": 0.9}, 2)
    (line,) = protocol.collect("flies", tmp_path)
    assert line["ap_s2_1"] == 0.9
    assert line["ap_paper"] == pytest.approx(0.505, abs=0.002)  # one of two animals, found exactly: COCO's 101 recall levels


def test_the_script_trains_every_subset_and_writes_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    project(source / "train30.slp", 30)
    project(source / "val4.slp", 4)
    asked: list[dict[str, Any]] = []

    def compare(path: Path, *, out: Path, seeds: tuple[int, ...], methods: list[str], **how: Any) -> Path:
        asked.append({"project": path.name, "seeds": seeds, "methods": methods, **how})
        results(out, {"smp": 0.8 + 0.01 * len(asked)}, len(read_project(path).labelled_frames), seeds[0])
        return out / "report.html"

    monkeypatch.setattr(script, "compare", compare)
    kept = tmp_path / "kept" / "paper_honeybee.json"
    words = ["--dataset", "honeybee", "--source", str(source), "-o", str(tmp_path / "out"), f"--result={kept}", "--subsets", "2"]
    assert script.main([*words, "--preset", "paper", "--methods", "smp", "--set", "model.weights=none"]) == 0
    assert [a["project"] for a in asked] == ["train5_0.slp", "train5_1.slp", "train25_0.slp", "train25_1.slp", "train30.slp"]
    assert {(a["steps"], a["minutes"], a["val"].name, a["preset"]) for a in asked} == {(15000, 0.0, "val4.slp", "paper")}
    assert asked[0]["settings"] == {
        "train.labeled_fusion_start": "0.1333", "train.unlabeled_fusion_start": "0.3333", "train.unlabeled_first_step": "0",
        "model.weights": "none",
    }  # fmt: skip
    result = json.loads(kept.read_text())
    assert len(result["runs"]) == 5 and result["summary"]["5"]["smp"]["trainings"] == 2
    assert "torch" in result["machine"]["versions"] and result["budget"] == "15000 steps"
    assert str(tmp_path) not in kept.read_text() + kept.with_suffix(".md").read_text()
    assert "0.853" in kept.with_suffix(".md").read_text()
    assert script.main([*words, "--preset", "paper", "--methods", "smp", "--set", "model.weights=none", "--rows", "5"]) == 0
    assert len(json.loads(kept.read_text())["runs"]) == 5  # what an earlier call trained stays in the table
    assert script.main([*words, "--steps", "9", "--methods", "smp"]) == 2  # another budget does not mix with it


def test_the_command_in_the_result_names_no_folder_of_a_person() -> None:
    words = ["--dataset", "flies", "--source=/home/me/f", "-o/home/me/o", "--result", "/home/me/r", "--steps", "5", "--output", "/home/me"]
    command = script.shown(words)
    assert "/home" not in command and "--dataset flies --source=SOURCE -oDIR --result FILE --steps 5 --output DIR" in command


def test_the_command_line_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "pups", "-o", str(tmp_path / "out")]
    for more, sentence in (
        ([], "--minutes or --steps"),
        (["--steps", "5", "--minutes", "1"], "not both"),
        (["--steps", "5", "--methods", "best"], "--methods best"),
        (["--steps", "5", "--set", "lr"], "KEY=VALUE"),
        (["--steps", "-5"], "above 0"),
    ):
        with pytest.raises(SystemExit):
            script.main([*words, *more])
        assert sentence in capsys.readouterr().err
    assert script.main([*words, "--steps", "5"]) == 2
    assert "never published" in capsys.readouterr().err

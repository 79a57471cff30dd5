from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from converters import (
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    deeplabcut_predictions,
    read_project,
)
from converters.deeplabcut import read_dlc
from converters.deeplabcut_machinelabels import check_machinelabels, write_machinelabels
from converters.deeplabcut_predictions import SCORER, read_dlc_predictions, write_dlc_predictions
from converters.deeplabcut_tables import columns_of, write_h5
from converters.deeplabcut_writing import write_dlc
from converters.sleap import read_slp

SKELETON = Skeleton(("nose", "ear", "tail"))
SOME = np.array([[1.5, 2], [3, 4], [np.nan, np.nan]])


def animal(shift: float = 0, track: str | None = None, score: float = 0.5) -> PredictedInstance:
    return PredictedInstance(SOME + shift, track, score=score, point_scores=np.array([score, score / 2, 0.0]))


FRAMES = [
    LabeledFrame(0, 5, predicted=[animal(0, "b"), animal(9, "a")]),
    LabeledFrame(0, 2, predicted=[animal(1, "a"), animal(2)]),
    LabeledFrame(0, 3),
    LabeledFrame(0, 30, [Instance(SOME + 5, "a")]),
]


def test_a_folder_for_several_animals(tmp_path: Path, video_file: Path) -> None:
    count = write_dlc_predictions(tmp_path / "out", SKELETON, [VideoSource((video_file,))], FRAMES, {"model": "m"})
    assert count == 4
    stem = f"clip{SCORER}"
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [f"{stem}_el.csv", f"{stem}_el.h5", f"{stem}_meta.pickle"]
    table: Any = pd.read_hdf(tmp_path / "out" / f"{stem}_el.h5")
    assert list(table.columns.names) == ["scorer", "individuals", "bodyparts", "coords"] and list(table.index) == list(range(40))
    assert list(table.columns.get_level_values("individuals").unique()) == ["b", "a", "animal1"]
    assert table.loc[5][SCORER]["a"]["nose"].tolist() == [10.5, 11, 0.5]
    assert table.loc[2][SCORER]["animal1"]["ear"].tolist() == [5, 6, 0.25]
    assert table.loc[30][SCORER]["a"]["ear"].tolist() == [8, 9, 1], "what a person labelled is certain"
    assert table.loc[[0, 3, 39]].isna().all(axis=None) and table.loc[5][SCORER]["a"]["tail"].isna().all()
    assert (tmp_path / "out" / f"{stem}_el.csv").read_text() == table.to_csv()
    meta = pickle.loads((tmp_path / "out" / f"{stem}_meta.pickle").read_bytes())["data"]
    assert (meta["Scorer"], meta["nframes"], meta["fps"], meta["frame_dimensions"]) == (SCORER, 40, 25, (64, 48))
    assert meta["individuals"] == ["b", "a", "animal1"] and meta["cropping"] is False


def test_one_animal_has_three_levels(tmp_path: Path, video_file: Path) -> None:
    write_dlc_predictions(tmp_path, SKELETON, [VideoSource((video_file,))], [LabeledFrame(0, 7, predicted=[animal()])], {})
    table: Any = pd.read_hdf(tmp_path / f"clip{SCORER}.h5")
    assert list(table.columns.names) == ["scorer", "bodyparts", "coords"] and len(table) == 40


@pytest.mark.parametrize(
    ("name", "scorer", "files"),
    [
        ("preds.h5", SCORER, ["preds.h5"]),
        ("preds.csv", SCORER, ["preds.csv"]),
        ("clip_preds.h5", SCORER, ["clip_preds.h5"]),
        ("clipDLC_Net_3_el.h5", "DLC_Net_3", ["clipDLC_Net_3_el.csv", "clipDLC_Net_3_el.h5", "clipDLC_Net_3_meta.pickle"]),
        ("clipDLC_Net_3.csv", "DLC_Net_3", ["clipDLC_Net_3.csv", "clipDLC_Net_3.h5", "clipDLC_Net_3_meta.pickle"]),
    ],
)
def test_file_names(tmp_path: Path, video_file: Path, name: str, scorer: str, files: list[str]) -> None:
    write_dlc_predictions(tmp_path / name, SKELETON, [VideoSource((video_file,))], FRAMES[:1], {})
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    for file in files:
        if not file.endswith("pickle"):
            table = read_dlc_predictions(tmp_path / file)
            assert [len(f.predicted) for f in table.frames] == [2 if f.index == 5 else 0 for f in table.frames] and len(table.frames) == 40
        if file.endswith("h5"):
            assert pd.read_hdf(tmp_path / file).columns[0][0] == scorer


def test_predicted_again_all_files_are_new_but_inputs(tmp_path: Path, video_file: Path) -> None:
    path = tmp_path / "clipDLC_Net.h5"
    for frame, inputs in ((1, []), (2, []), (3, [path.with_suffix(".csv")])):
        write_dlc_predictions(path, SKELETON, [VideoSource((video_file,))], [LabeledFrame(0, frame, predicted=[animal()])], {}, inputs)
    seen = [[f.index for f in read_dlc_predictions(path.with_suffix(suffix)).frames if f.predicted] for suffix in (".h5", ".csv")]
    assert seen == [[3], [2]]


@pytest.mark.parametrize("several", [False, True])
def test_nothing_found_is_written_too(tmp_path: Path, video_file: Path, several: bool) -> None:
    path = tmp_path / f"clipDLC_x{'_el' if several else ''}.h5"
    assert write_dlc_predictions(path, SKELETON, [VideoSource((video_file,))], [], {}) == 0
    table: Any = pd.read_hdf(path)
    assert table.shape == (40, 9) and table.isna().all(axis=None) and table.columns.nlevels == 3 + several
    assert all(not f.predicted for f in read_dlc_predictions(path).frames)


def test_several_videos_need_a_folder(tmp_path: Path, video_file: Path) -> None:
    shutil.copy(video_file, tmp_path / "two.mp4")
    videos = [VideoSource((video_file,)), VideoSource((tmp_path / "two.mp4",))]

    def never() -> LabeledFrame:
        raise AssertionError("the output is checked before anything is predicted")

    with pytest.raises(FormatError, match=r"p.h5 would hold 2 videos, but DeepLabCut keeps one in a file; name a folder"):
        write_dlc_predictions(tmp_path / "p.h5", SKELETON, videos, (never() for _ in range(1)), {})
    frames = [LabeledFrame(1, 4, predicted=[animal(), animal(3)]), LabeledFrame(0, 1, predicted=[animal()])]
    write_dlc_predictions(tmp_path / "out", SKELETON, videos, frames, {})
    tables = [read_dlc_predictions(tmp_path / "out" / f"{name}{SCORER}_el.h5") for name in ("clip", "two")]
    assert [table.videos for table in tables] == [[video] for video in videos]
    assert [sum(len(f.predicted) for f in table.frames) for table in tables] == [1, 2]


def test_whole_or_not_at_all(tmp_path: Path, video_file: Path) -> None:
    shutil.copy(video_file, tmp_path / "clip.h5")  # a video of a strange name is an input all the same
    video = VideoSource((tmp_path / "clip.h5",))
    before = sorted(tmp_path.iterdir())
    wrong = LabeledFrame(0, 1, predicted=[PredictedInstance(SOME[:2])])
    for path, frames, message in (
        (tmp_path / "clip.h5", FRAMES, "is one of the inputs and would be overwritten"),
        (tmp_path / "p.h5", [*FRAMES, wrong], "an instance of 2 keypoints in frame 1"),
        (tmp_path / "out", [*FRAMES, wrong], "an instance of 2 keypoints in frame 1"),
        (tmp_path / "p.h5", [LabeledFrame(3, 1)], "frame 1 of video 3 cannot be written; there are 1 videos"),
        (tmp_path / "a" / "p.h5", FRAMES, "cannot be written .*choose an existing folder"),
        (tmp_path / "a" / "b", FRAMES, "cannot be written .*choose an existing folder"),
    ):
        with pytest.raises(FormatError, match=message):
            write_dlc_predictions(path, SKELETON, [video], frames, {})
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="a file there always has a name")
def test_killed_while_predicting_nothing_is_left(tmp_path: Path, video_file: Path) -> None:
    seen: list[Path] = []

    def frames() -> Iterator[LabeledFrame]:
        yield from FRAMES
        seen.extend(tmp_path.iterdir())

    assert write_dlc_predictions(tmp_path / "p.h5", SKELETON, [VideoSource((video_file,))], frames(), {}) == len(FRAMES)
    assert not seen and list(tmp_path.iterdir())


def test_images_and_embedded_numbers(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    video = VideoSource(tuple(make_images(tmp_path / "pictures", 12)))
    write_dlc_predictions(tmp_path / "p.h5", SKELETON, [video], [LabeledFrame(0, 11, predicted=[animal()])], {})
    labels = read_dlc_predictions(tmp_path / "p.h5")
    assert labels.videos == [video] and [f.index for f in labels.frames if f.predicted] == [11] and len(labels.frames) == 12


def test_embedded_images_keep_their_numbers(tmp_path: Path, make_project: Callable[..., Path]) -> None:
    labels = read_slp(make_project("p.pkg.slp", embed="user"))
    frames = [LabeledFrame(0, frame.index, predicted=[animal()]) for frame in labels.frames]
    write_dlc_predictions(tmp_path / "p.h5", SKELETON, labels.videos, frames, {})
    again = read_dlc_predictions(tmp_path / "p.h5")
    assert again.videos == labels.videos and again.videos[0].original is not None
    assert [f.index for f in again.frames if f.predicted] == [3, 20] and len(again.frames) == 40


def test_a_damaged_note_of_the_video(tmp_path: Path, video_file: Path) -> None:
    shutil.copy(video_file, tmp_path / "clip.mp4")
    path = tmp_path / "clipDLC_x.h5"
    for text in (
        "no json",
        "[]",
        "{}",
        '{"paths": 3, "embedded": null, "original": null}',
        '{"paths": [3], "embedded": 0, "original": null}',
    ):
        write_h5(path, columns_of("DLC_x", None, ["nose"], ("x", "y", "likelihood")), range(1), [np.ones((1, 3))], {"video": text})
        labels = read_dlc_predictions(path)
        assert labels.videos[0].paths == (tmp_path / "clip.mp4",) and "the note of the video in it is damaged" in labels.notes[0]


def test_a_video_that_is_gone(tmp_path: Path) -> None:
    video = VideoSource((tmp_path / "gone.mp4",))
    write_dlc_predictions(tmp_path / "p.h5", SKELETON, [video], [LabeledFrame(0, 5, predicted=[animal()])], {})
    assert len(read_dlc_predictions(tmp_path / "p.h5").frames) == 6


def test_memory_does_not_grow_with_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeplabcut_predictions, "_PIECE", 18 * 100)

    def frames(count: int) -> Iterator[LabeledFrame]:
        return (LabeledFrame(0, n, predicted=[animal(n), animal(n + 5)]) for n in range(count))

    peaks = []
    for count in (2_000, 2_000, 8_000):  # the first warms up
        tracemalloc.start()
        write_dlc_predictions(tmp_path / "p.h5", SKELETON, [VideoSource((tmp_path / "gone.mp4",))], frames(count), {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 6_000 * 2 * 4 * 8, "four numbers an animal; the table itself has 144 bytes a row"


# --- reading DeepLabCut's own ---


def native(path: Path, scorer: str = "DLC_Net", single: bool = False, rows: Any = range(3)) -> Path:
    columns = [(scorer, a, b, c) for a in ("m1", "m2") for b in ("nose", "ear") for c in ("x", "y", "likelihood")]
    columns += [(scorer, "single", "corner", c) for c in ("x", "y", "likelihood")]
    values = np.arange(45, dtype=float).reshape(3, 15)
    values[:, 2::3] = 0.5
    values[1, :6] = np.nan
    table = pd.DataFrame(
        values, columns=pd.MultiIndex.from_tuples(columns, names=["scorer", "individuals", "bodyparts", "coords"]), index=rows
    )
    if path.suffix == ".csv":
        table.to_csv(path)
    else:
        table.to_hdf(path, key="tracks", mode="w")
    return path


@pytest.mark.parametrize("suffix", [".h5", ".csv"])
def test_native_predictions(tmp_path: Path, video_file: Path, suffix: str) -> None:
    shutil.copy(video_file, tmp_path / "clip.mp4")
    labels = read_dlc_predictions(native(tmp_path / f"clipDLC_Net_el{suffix}"))
    assert labels.skeleton.keypoints == ("nose", "ear") and labels.videos == [VideoSource((tmp_path / "clip.mp4",))]
    assert [[i.track for i in f.predicted] for f in labels.frames] == [["m1", "m2"], ["m2"], ["m1", "m2"]]
    first = labels.frames[0].predicted[1]
    assert first.points.tolist() == [[6, 7], [9, 10]] and first.score == 0.5 and first.point_scores.tolist() == [0.5, 0.5]
    assert len(labels.notes) == 1 and "corner exist once in a picture" in labels.notes[0]


def test_options_of_reading(tmp_path: Path, video_file: Path) -> None:
    (tmp_path / "media").mkdir()
    native(tmp_path / "clipDLC_Net_el.csv")
    write_dlc_predictions(tmp_path / "noted.h5", SKELETON, [VideoSource((tmp_path / "gone/clip.mp4",))], FRAMES, {})
    for path in (tmp_path / "clipDLC_Net_el.csv", tmp_path / "noted.h5"):
        with pytest.raises(FormatError, match=r"is of .*clip.mp4, which is not found; give its folder with --video-root"):
            read_project(path, tmp_path / "media")
        shutil.copy(video_file, tmp_path / "media" / "clip.mp4")
        labels = read_project(path, tmp_path / "media", predicted=False)
        assert labels.videos[0].paths == (tmp_path / "media" / "clip.mp4",)
        assert labels.frames and not any(frame.predicted for frame in labels.frames)
        (tmp_path / "media" / "clip.mp4").unlink()
    (note,) = read_project(native(tmp_path / "poses.csv"), predicted=False).notes[1:]
    assert "no video called poses lies beside it" in note, "which is a guess"


def test_a_cropped_analysis_counts_from_the_whole_frame(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was run",)

    path = native(tmp_path / "clipDLC_Net_el.h5")
    data = {"cropping": True, "cropping_parameters": [100, 200, 50, 150], "fps": np.float64(30), "run": np.arange(3), "bad": Hostile()}
    (tmp_path / "clipDLC_Net_meta.pickle").write_bytes(pickle.dumps({"data": data}))
    labels = read_dlc_predictions(path)
    assert labels.frames[0].predicted[0].points[0].tolist() == [100, 51]
    assert any("moved by (100, 50)" in note for note in labels.notes) and not (tmp_path / "was run").exists()
    (tmp_path / "clipDLC_Net_meta.pickle").write_bytes(b"\x80\x04nonsense")
    labels = read_dlc_predictions(path)
    assert labels.frames[0].predicted[0].points[0].tolist() == [0, 1] and any("meta.pickle cannot be read" in note for note in labels.notes)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04]r" + (400_000_000).to_bytes(4, "little") + b".",  # a place in the memo that would take gigabytes
        pickle.dumps({"data": {"cropping": True, "cropping_parameters": [float("inf"), 0, 0, 0]}}),
        b"(" * 100_000 + b"t" * 100_000 + b".",
    ],
)
def test_a_hostile_companion_is_left_aside(tmp_path: Path, content: bytes) -> None:
    path = native(tmp_path / "clipDLC_Net_el.h5")
    expected = [frame.predicted[0].points.tolist() for frame in read_dlc_predictions(path).frames if frame.predicted]
    (tmp_path / "clipDLC_Net_meta.pickle").write_bytes(content)
    labels = read_dlc_predictions(path)
    assert [frame.predicted[0].points.tolist() for frame in labels.frames if frame.predicted] == expected
    assert any("cannot be read" in note for note in labels.notes)


def test_bad_predictions(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nothing.h5 does not exist; name an .h5 or .csv"):
        read_dlc_predictions(tmp_path / "nothing.h5")
    for name in ("a.h5", "a.csv"):
        (tmp_path / name).write_text("x,y\n1,2\n")
        with pytest.raises(FormatError, match="is no table of DeepLabCut's, or is damaged"):
            read_dlc_predictions(tmp_path / name)
    with pytest.raises(FormatError, match="some rows are numbers and some are images"):
        read_dlc_predictions(native(tmp_path / "b.csv", rows=["0", "img.png", "2"]))


# --- round trips ---


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
POINT = st.one_of(st.just((np.nan,) * 3), st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0, 1)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path: Path, video_file: Path) -> None:
    keypoints = data.draw(st.lists(NAME, min_size=1, max_size=12, unique=True))
    tracks = data.draw(st.lists(NAME.filter(lambda name: name != "single"), min_size=1, max_size=6, unique=True))
    tracked = data.draw(st.booleans())
    points = st.lists(POINT, min_size=len(keypoints), max_size=len(keypoints)).map(np.array)
    frames = []
    for index in data.draw(st.lists(st.integers(0, 39), unique=True, max_size=6)):
        animals = data.draw(st.lists(st.tuples(st.sampled_from(tracks), points), max_size=6, unique_by=lambda pair: pair[0]))
        made = [PredictedInstance(v[:, :2], name if tracked else None, point_scores=np.nan_to_num(v[:, 2])) for name, v in animals]
        frames.append(LabeledFrame(0, index, predicted=[each for each in made if each.labelled.any()]))
    wanted = {frame.index: frame.predicted for frame in frames}
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        for name in ("p.h5", "p.csv"):
            write_dlc_predictions(Path(folder) / name, Skeleton(tuple(keypoints)), [VideoSource((video_file,))], frames, {})
            again = read_dlc_predictions(Path(folder) / name)
            assert again.skeleton.keypoints == tuple(keypoints) and len(again.frames) == 40
            for frame in again.frames:
                ours = sorted(wanted.get(frame.index, []), key=lambda each: str(each.track))
                theirs = sorted(frame.predicted, key=lambda each: str(each.track)) if tracked else frame.predicted
                for a, b in zip(ours, theirs, strict=True):
                    assert a.track == b.track or not tracked
                    assert np.array_equal(a.points, b.points, equal_nan=True) and np.array_equal(a.point_scores, b.point_scores)
                    assert b.score == pytest.approx(a.point_scores[a.labelled].mean())


# --- machinelabels ---


@pytest.fixture
def project(tmp_path: Path, video_file: Path) -> Path:
    """A project for two animals, a and b, with one labelled frame of the numbered video."""
    labelled = LabeledFrame(0, 3, [Instance(SOME, "a"), Instance(SOME + 9, "b")])
    write_dlc(tmp_path / "project", Labels(SKELETON, [VideoSource((video_file,))], [labelled]))
    return tmp_path / "project" / "config.yaml"


def test_machinelabels(project: Path, video_file: Path) -> None:
    frames = [
        LabeledFrame(0, 20, predicted=[animal(1), animal(2, "b", 0.25), animal(3, score=0.75)]),
        LabeledFrame(0, 8, predicted=[animal(4)]),
        LabeledFrame(0, 9),
    ]
    reordered = Skeleton(("tail", "nose", "ear"))
    for frame in frames:
        for each in frame.predicted:
            each.points, each.point_scores = each.points[[2, 0, 1]], each.point_scores[[2, 0, 1]]
    notes = write_machinelabels(project, reordered, [VideoSource((video_file,))], frames)
    assert len(notes) == 1 and "is for 2 animals; 1 predicted ones are left out" in notes[0]
    folder = project.parent / "labeled-data" / "clip"
    table: Any = pd.read_hdf(folder / "machinelabels-iter0.h5")
    assert list(table.index) == [("labeled-data", "clip", f"img{n:02d}.png") for n in (8, 20)]
    row = table.loc[("labeled-data", "clip", "img20.png")][SCORER]
    assert row["b"]["nose"].tolist() == [3.5, 4, 0.25] and row["a"]["nose"].tolist() == [4.5, 5, 0.75]
    assert all((folder / f"img{n:02d}.png").is_file() for n in (3, 8, 20)) and (folder / "machinelabels.csv").is_file()
    labels = read_dlc(project)
    assert [(len(f.instances), len(f.predicted)) for f in labels.frames] == [(2, 0), (0, 1), (0, 2)]
    with pytest.raises(FormatError, match="machinelabels-iter0.h5 exists already"):
        write_machinelabels(project, reordered, [VideoSource((video_file,))], frames)
    project.write_text(project.read_text().replace("iteration: 0", "iteration: 1"))
    labels = read_dlc(project)
    labels.frames[0].predicted.append(animal())
    assert write_machinelabels(project, SKELETON, labels.videos, labels.frames[:1]) == []
    assert len(list(folder.glob("*.png"))) == 3, "images of the project stay where they are"


def test_images_that_are_there_are_taken(project: Path, video_file: Path) -> None:
    folder = project.parent / "labeled-data" / "clip"
    (folder / "img03.png").rename(folder / "img0008.png")
    videos, frames = [VideoSource((video_file,))], [LabeledFrame(0, n, predicted=[animal()]) for n in (8, 20)]
    assert write_machinelabels(project, SKELETON, videos, frames) == []
    table: Any = pd.read_hdf(folder / "machinelabels-iter0.h5")
    assert [row[2] for row in table.index] == sorted(file.name for file in folder.glob("*.png")) == ["img0008.png", "img20.png"]
    (folder / "machinelabels-iter0.h5").unlink()
    with Image.open(folder / "img20.png") as image:
        image.crop((5, 5, 50, 40)).save(folder / "img20.png")
    with pytest.raises(FormatError, match="img20.png is not as large as the frames of .*clip.mp4"):
        write_machinelabels(project, SKELETON, videos, frames)


def test_machinelabels_that_cannot_be_written_are_known_before(project: Path, video_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [VideoSource((video_file,))]
    before = sorted(project.parent.rglob("*"))
    check_machinelabels(project, SKELETON, videos)
    assert sorted(project.parent.rglob("*")) == before
    with pytest.raises(FormatError, match="its keypoints are nose, ear, tail, the predictions' a, b"):
        check_machinelabels(project, Skeleton(("a", "b")), videos)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(FormatError, match="clip cannot be written to; choose a project that you may write to"):
            check_machinelabels(project, SKELETON, videos)
    write_machinelabels(project, SKELETON, videos, [LabeledFrame(0, 8, predicted=[animal()])])
    with pytest.raises(
        FormatError, match="machinelabels-iter0.h5 exists already; have it corrected and call deeplabcut.merge_datasets, or move"
    ):
        check_machinelabels(project, SKELETON, videos)


def test_machinelabels_of_other_keypoints_or_videos(project: Path, video_file: Path, tmp_path: Path) -> None:
    frames = [LabeledFrame(0, 8, predicted=[animal()])]
    with pytest.raises(FormatError, match="its keypoints are nose, ear, tail, the predictions' a, b, c"):
        write_machinelabels(project, Skeleton(("a", "b", "c")), [VideoSource((video_file,))], frames)
    shutil.copy(video_file, tmp_path / "new.mp4")
    (note,) = write_machinelabels(project, SKELETON, [VideoSource((tmp_path / "new.mp4",))], frames)
    assert "'video_sets' does not name new; add it with deeplabcut.add_new_videos" in note
    assert yaml.safe_load(project.read_text())["video_sets"].keys() == {str(video_file)}

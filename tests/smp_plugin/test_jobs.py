"""Which frames are predicted into which files, and what is refused before anything is predicted; no model is needed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sleap_io as sio

from converters import (
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    write_predictions,
    write_project,
)
from converters.deeplabcut_machinelabels import write_machinelabels
from converters.deeplabcut_predictions import SCORER
from converters.video import video_source
from smp_plugin.jobs import Job, check, plan
from smp_plugin.progress import Reporter

SKELETON = Skeleton(("nose", "ear", "tail"))
POSE = np.array([[5.0, 6], [7, 8], [9, 10]])


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory, video_file: Path, make_images: Callable[..., list[Path]]) -> Path:
    """Projects of every format, called ``project``, with two labelled frames of a clip of 40, or of 12 photos."""
    tmp_path = tmp_path_factory.mktemp("projects")
    clip, photos = [VideoSource((video_file,))], [VideoSource(tuple(make_images(tmp_path / "photos")))]
    frames = [LabeledFrame(0, number, [Instance(POSE, "a"), Instance(POSE + 20, "b")]) for number in (3, 7)]
    for name in ("project.slp", "project.pkg.slp", "project.analysis.h5", "dlc"):
        write_project(tmp_path / name, Labels(SKELETON, clip, frames))
    write_project(tmp_path / "project.json", Labels(SKELETON, photos, frames))
    for number in (20, 30):  # extracted, not labelled yet
        folder = tmp_path / "dlc" / "labeled-data" / "clip"
        (folder / f"img{number:02d}.png").write_bytes((folder / "img03.png").read_bytes())
    return tmp_path


@pytest.fixture
def place(projects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, from which things are called."""
    monkeypatch.chdir(shutil.copytree(projects, tmp_path / "place"))
    return tmp_path / "place"


def planned(output: str, *inputs: str | Path, frames: str | None = None, suffix: str | None = None) -> list[Job]:
    jobs = plan([Path(path) for path in inputs], Path(output), suffix, frames, None, SKELETON, Reporter(quiet=True))
    check(jobs, SKELETON)
    return jobs


def numbers(jobs: list[Job]) -> list[list[int]]:
    return [list(wanted) for job in jobs for wanted in job.wanted]


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


UNLABELLED = [number for number in range(40) if number not in (3, 7)]


@pytest.mark.parametrize(
    ("project", "unlabelled", "labelled"),
    [
        ("project.slp", UNLABELLED, [3, 7]),
        ("project.analysis.h5", UNLABELLED, [3, 7]),
        ("project.json", [n for n in range(12) if n not in (3, 7)], [3, 7]),
        ("dlc", [2, 3], [0, 1]),
        ("dlc/config.yaml", [2, 3], [0, 1]),
        ("project.pkg.slp", [], [3, 7]),
    ],
)
def test_labelled_frames_of_a_project_are_left_alone_unless_asked_for(
    place: Path, project: str, unlabelled: list[int], labelled: list[int]
):
    before = everything(place)
    assert numbers(planned("out.slp", project, frames="labeled")) == [labelled]
    assert numbers(planned("out.slp", project, frames="all")) == [sorted([*unlabelled, *labelled])]
    for frames in (None, "unlabeled"):
        if unlabelled:
            assert numbers(planned("out.slp", project, frames=frames)) == [unlabelled]
        else:
            with pytest.raises(FormatError, match="no frames are asked for with --frames unlabeled; try --frames all"):
                planned("out.slp", project, frames=frames)
    assert everything(place) == before


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        (None, ["clip.predictions.slp", "project.predictions.slp", "project_.predictions.slp"]),
        ("json", ["clip.predictions.json", "project.predictions.json", "project_.predictions.json"]),
        ("analysis.h5", ["clip.analysis.h5", "clip_.analysis.h5", "photos.analysis.h5"]),
    ],
)
def test_a_folder_holds_a_file_for_each(place: Path, video_file: Path, suffix: str | None, names: list[str]):
    (place / "out").mkdir()
    jobs = planned("out", video_file, "project.slp", "project.json", suffix=suffix)
    assert [job.output for job in jobs] == [Path("out") / name for name in names]
    assert list((place / "out").iterdir()) == []


def test_a_folder_of_deeplabcut_files_is_called_by_videos(place: Path, video_file: Path):
    (place / "out").mkdir()
    jobs = planned("out", video_file, "photos", suffix="h5")
    assert [(job.output, job.videos[0]) for job in jobs] == [
        (Path("out"), VideoSource((video_file,))),
        (Path("out"), video_source(Path("photos"))),
    ]


def test_formats_of_one_video_take_a_project_with_frames_of_one(place: Path, video_file: Path, tmp_path: Path):
    other = tmp_path / "other.mp4"
    other.write_bytes(video_file.read_bytes())
    videos = [VideoSource((other,)), VideoSource((video_file,))]
    write_project(place / "two.slp", Labels(SKELETON, videos, [LabeledFrame(1, 3, [Instance(POSE)])]))
    (job,) = planned("out.csv", "two.slp", frames="labeled")
    assert (job.videos, job.wanted) == ([VideoSource((video_file,))], [[3]])
    with pytest.raises(FormatError, match=r"out.csv would hold 2 videos, but DeepLabCut keeps one in a file; name a folder"):
        planned("out.csv", "two.slp")


def test_a_video_that_is_too_short_is_named_and_left_out(place: Path, video_file: Path, listener: Any):
    videos = [VideoSource((video_file,)), video_source(place / "photos")]
    write_project(place / "two.slp", Labels(SKELETON, videos, [LabeledFrame(0, 3, [Instance(POSE)])]))
    too_short = r"--frames 12-20: .*photos .12 images. has 12 frames .0-11.; frame 20 does not exist, nor any other of these"
    several: list[tuple[str, list[Path]]] = [("out.slp", [Path("two.slp")]), ("out", [Path("photos"), video_file])]
    for output, inputs in several:
        (job,) = plan(inputs, Path(output), None, "12-20", None, SKELETON, listener)
        assert (job.videos, numbers([job])) == (videos[:1], [list(range(12, 21))])
        assert re.search(too_short + ", so that it is left out", listener.alarms.pop()) and not listener.alarms
    with pytest.raises(FormatError, match=too_short + r"\.$"):
        planned("out.slp", "photos", frames="12-20")
    with pytest.raises(FormatError, match=r"clip.mp4 has 40 frames .0-39.; frame 99 does not exist, nor any"):
        planned("out.slp", "two.slp", frames="99")
    with pytest.raises(FormatError, match=r"project\.pkg\.slp .video0. has 2 frames .0-7.; frame 9 does not exist"):
        planned("out.slp", "project.pkg.slp", frames="9")


def test_of_a_video_that_is_shorter_the_frames_that_exist_are_predicted(place: Path, video_file: Path, listener: Any):
    (job,) = plan([video_file, Path("photos")], Path("out.slp"), None, "9-19,999999999", None, SKELETON, listener)
    assert numbers([job]) == [list(range(9, 20)), [9, 10, 11]]
    long, short = listener.alarms
    assert "has 40 frames (0-39); frame 999999999 does not exist, and those that do are predicted" in long
    assert "photos (12 images) has 12 frames (0-11); frame 19 does not exist" in short


# --- for a person to correct ---


def test_unlabelled_images_are_given_to_a_person(place: Path):
    (job,) = planned("dlc/labeled-data", "dlc/config.yaml")
    assert numbers([job]) == [[2, 3]] and job.config == Path("dlc/config.yaml")
    for same in (planned("dlc/labeled-data", "dlc", frames="all"), planned("dlc/labeled-data", "dlc/labeled-data/clip")):
        assert numbers(same) == [[2, 3]], "what a person has labelled stays as it is"


def test_frames_of_a_video_are_given_to_a_person(place: Path, video_file: Path):
    assert numbers(planned("dlc/labeled-data", video_file, frames="3,5,7-9")) == [[5, 8, 9]], "3 and 7 are labelled as images"
    assert numbers(planned("dlc/labeled-data", "project.slp", frames="5")) == [[5]]
    with pytest.raises(FormatError, match=r"clip.mp4: which of its frames are to be corrected\? .*--frames 0,500,1000"):
        planned("dlc/labeled-data", video_file)
    with pytest.raises(FormatError, match="no frames are asked for with --frames unlabeled; extract some, or name videos"):
        planned("dlc/labeled-data", "project.slp")


def test_corrections_are_not_replaced(place: Path, video_file: Path):
    frame = LabeledFrame(0, 9, [], [PredictedInstance(POSE)])
    write_machinelabels(place / "dlc" / "config.yaml", SKELETON, [VideoSource((video_file,))], [frame])
    before = everything(place)
    with pytest.raises(
        FormatError, match="machinelabels-iter0.h5 exists already; have it corrected and call deeplabcut.merge_datasets, or move it away"
    ):
        planned("dlc/labeled-data", "dlc")
    assert everything(place) == before


def test_labels_in_an_output_are_not_replaced(place: Path, video_file: Path):
    (place / "corrected.slp").write_bytes((place / "project.slp").read_bytes())
    before = everything(place)
    with pytest.raises(FormatError, match=r"corrected.slp holds 4 labelled animals, which would be lost; move it away, or choose"):
        planned("corrected.slp", video_file)
    assert everything(place) == before
    predicted = Labels(SKELETON, [VideoSource((video_file,))], [LabeledFrame(0, 3, [], [PredictedInstance(POSE)])])
    write_project(place / "predicted.slp", predicted)
    (place / "damaged.slp").write_bytes((place / "project.slp").read_bytes()[:3000])
    write_project(place / "labels.json", Labels(SKELETON, predicted.videos))
    table = place / "dlc" / "labeled-data" / "clip" / "CollectedData_me.csv"
    table.write_text("labels")
    before = everything(place)
    for output, words in (
        ("labels.json", "holds no COCO results but something else, such as labels"),
        (str(table), "calls a person's labels so"),
    ):
        with pytest.raises(FormatError, match=rf"{output}.* {words}.*; .*choose another name"):
            planned(output, video_file)
    assert everything(place) == before
    (place / "results.json").write_text("[]")
    (place / "empty.json").touch()
    for name in ("predicted.slp", "damaged.slp", "results.json", "empty.json"):
        assert planned(name, video_file)[0].output == Path(name)


def test_tables_of_others_are_not_replaced(place: Path, video_file: Path):
    predicted = Labels(SKELETON, [VideoSource((video_file,))], [LabeledFrame(0, 3, [], [PredictedInstance(POSE, "a")])])
    sio.save_analysis_h5(sio.load_slp("project.slp"), "sleap.analysis.h5")
    (place / "mice.csv").write_text("scorer,weight\n1,20.5\n")
    (place / "raw.h5").write_bytes((place / "sleap.analysis.h5").read_bytes())
    before = everything(place)
    for output in ("mice.csv", "raw.h5", "sleap.analysis.h5"):
        with pytest.raises(FormatError, match=f"{output} holds what neither .* has written, which would be lost; move it away, or choose"):
            planned(output, video_file)
    assert everything(place) == before
    (place / "empty.csv").touch()
    assert planned("empty.csv", video_file)
    for output in ("ours.csv", "ours.h5", "ours.analysis.h5"):
        write_predictions(Path(output), SKELETON, predicted.videos, predicted.frames, {})
        assert planned(output, video_file)[0].output == Path(output)


# --- bad outputs ---


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("out.txt", "clip"), {}, "-o out.txt: predictions are written to a file that ends in .slp (SLEAP), .analysis.h5"),
        (("out.pkg.slp", "clip"), {}, "out.pkg.slp would be a package without images; give the file a name that ends in .slp alone"),
        (("out.yaml", "clip"), {}, "out.yaml would be a DeepLabCut project, which holds labels; name a .h5 or .csv"),
        (("out.h5", "clip", "photos"), {}, "out.h5 would hold 2 videos, but DeepLabCut keeps one in a file; name a folder"),
        (("out.analysis.h5", "clip", "photos"), {}, "out.analysis.h5 can hold one video, and there are 2; write a file for each"),
        (("out.json", "clip", "project.json"), {}, "clip.mp4 is no image of project.json; write its predictions to another file"),
        (("project.json", "project.json"), {}, "project.json is one of the inputs and would be overwritten"),
        (("project.analysis.h5", "project.analysis.h5"), {}, "project.analysis.h5 is one of the inputs and would be overwritten"),
        (("nowhere/out.csv", "clip"), {}, "nowhere/out.csv cannot be written"),
        (("out.slp", "clip"), {"suffix": "json"}, "--format json: -o out.slp says another format; leave --format out"),
        (("out", "clip", "project.slp"), {"suffix": "h5"}, "-o out: two videos are called clip, and DeepLabCut's files by them"),
        (("out", "dlc"), {"suffix": "csv"}, "holds single images of clip.mp4; predict that video, or write a .slp file"),
        (("out.h5", "dlc"), {}, "holds single images of clip.mp4; predict that video, or write a .slp file"),
        (("out.analysis.h5", "dlc"), {}, "holds single images of clip.mp4; predict that video, or write a .slp file"),
        (("dlc", "dlc"), {}, "-o dlc is a DeepLabCut project; name dlc/labeled-data to correct the predictions there, or another folder"),
        (("labeled-data", "dlc"), {}, "-o labeled-data: there is no DeepLabCut project (config.yaml) around it"),
        (("dlc/labeled-data", "dlc"), {"frames": "labeled"}, "--frames labeled: only frames without labels are given to a person"),
        (("out.slp", "results.json"), {}, "results.json is a list, as COCO results are, and names no keypoints"),
        (("out.slp", "dlc/labeled-data/clip/CollectedData_x.csv"), {}, "is a part of a DeepLabCut project; name the project's config.yaml"),
    ],
)
def test_it_is_refused_before_anything_is_predicted(
    place: Path, video_file: Path, arguments: tuple[str, ...], options: dict[str, Any], words: str
):
    (place / "results.json").write_text("[]")
    (place / "dlc/labeled-data/clip/CollectedData_x.csv").write_text("x")
    (place / "out").mkdir()
    before = everything(place)
    output, *inputs = [video_file if each == "clip" else each for each in arguments]
    with pytest.raises(FormatError, match=re.escape(words)):
        planned(str(output), *inputs, **options)
    assert everything(place) == before


def test_deeplabcut_files_do_not_replace_inputs(place: Path, video_file: Path):
    name = f"clip{SCORER}.h5"
    (place / name).write_bytes((place / "project.analysis.h5").read_bytes())
    with pytest.raises(FormatError, match="is one of the inputs and would be overwritten"):
        planned(name, name)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"id": 7, "file_name": "other.png"}, "an image with the id 7, and so has .*project.json"),
        ({"id": 70, "file_name": "photos/img7.png"}, "an image called photos/img7.png, and so has .*project.json"),
    ],
)
def test_results_of_labels_that_share_an_image_are_refused(place: Path, edit: dict[str, Any], words: str):
    content = json.loads((place / "project.json").read_text())
    content["images"] = [content["images"][7] | edit]
    content["annotations"] = []
    (place / "other").mkdir()
    (place / "other" / "labels.json").write_text(json.dumps(content))
    (place / "other" / "photos").mkdir()
    shutil.copy(place / "photos" / "img7.png", place / "other" / edit["file_name"])
    inputs = "project.json", "other/labels.json"
    with pytest.raises(FormatError, match=rf"labels.json has {words}: .*-o FOLDER --format json.*, or a .slp file for all"):
        planned("out.json", *inputs, frames="all")
    assert planned("out.slp", *inputs, frames="all")[0].total == 13
    (place / "out").mkdir()
    assert [job.total for job in planned("out", *inputs, frames="all", suffix="json")] == [12, 1]


def test_results_of_images_need_no_predictions_to_be_checked(place: Path):
    content = json.loads((place / "project.json").read_text())
    content["images"] = content["images"][:9]
    (place / "some.json").write_text(json.dumps(content))
    assert planned("out.json", "some.json")[0].total == 7
    with pytest.raises(FormatError, match="Frame 9 of .*photos .12 images. is no image of some.json"):
        planned("out.json", "photos", "some.json")

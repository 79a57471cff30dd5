from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from converters import (
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    read_project,
    write_predictions,
    write_project,
)
from converters.project import ANALYSIS, COCO, DLC, DLC_PREDICTIONS, PACKAGE, SLEAP, check_predictions, format_of, is_project


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.slp", None, "does not exist"),
        ("labels.txt", b"x", r"ends in \.txt, which is no known format; known are \.slp or \.pkg\.slp \(SLEAP\), config\.yaml"),
        ("labels", b"x", r"has no ending, which is no known format"),
        ("empty.slp", b"", "is an empty file"),
        ("empty.json", b"", "is an empty file"),
        ("CollectedData_ann.h5", b"x", "is a part of a DeepLabCut project; name the project's config.yaml"),
        ("text.slp", b"some words", r"is no SLEAP project \(not an HDF5 file\)"),
    ],
)
def test_not_a_project(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_project(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.slp").mkdir()
    with pytest.raises(FormatError, match="is a folder without a DeepLabCut config.yaml; name the project file in it"):
        read_project(tmp_path / "folder.slp")


def test_another_hdf5_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "analysis.slp", "w") as file:
        file["tracks"] = np.zeros(3)
    with pytest.raises(FormatError, match="an HDF5 file, but no SLEAP project: it has no 'metadata'"):
        read_project(tmp_path / "analysis.slp")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_json(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["metadata"].attrs["json"] = np.bytes_(b'{"skeletons": [')


def bad_video_json(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["videos_json"][0] = "{"


def no_points(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["pred_points"]


def foreign_video(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        frames = file["frames"][()]
        frames["video"] = 9
        file["frames"][...] = frames


def future(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["metadata"].attrs["format_id"] = 99.0


@pytest.mark.parametrize("damage", [cut, bad_json, bad_video_json, no_points, foreign_video, future])
def test_damage(make_project: Callable[..., Path], damage: Callable[[Path], None]) -> None:
    path = make_project()
    damage(path)
    with pytest.raises(FormatError, match="cannot be read as a SLEAP project and may be damaged") as caught:
        read_project(path)
    assert str(path) in str(caught.value) and caught.value.__cause__ is not None


def test_sleap_io_missing(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_project()
    monkeypatch.setitem(sys.modules, "sleap_io", None)
    with pytest.raises(FormatError, match="pip install sleap-io"):
        read_project(path)


def test_without_labels(make_project: Callable[..., Path]) -> None:
    assert read_project(make_project(frames={})).labelled_frames == []


def test_options_reach_the_reader(make_project: Callable[..., Path], tmp_path: Path) -> None:
    path = make_project("p.slp", video=Path("nowhere.mp4"), written="/a/b.mp4")
    with pytest.raises(FormatError, match="--video-root"):
        read_project(path)
    assert read_project(path, require_videos=False).videos[0].paths == (Path("/a/b.mp4"),)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/b.mp4").touch()
    assert read_project(path, video_root=tmp_path / "root").videos[0].paths == (tmp_path / "root/b.mp4",)


def test_write_and_read_back(tmp_path: Path, video_file: Path) -> None:
    skeleton, videos = Skeleton(("a", "b"), ((0, 1),)), [VideoSource((video_file,))]
    frames = [LabeledFrame(0, index, [], [PredictedInstance(np.full((2, 2), index), score=0.5)]) for index in range(3)]
    assert write_predictions(tmp_path / "p.slp", skeleton, videos, iter(frames), {"by": "test"}) == 3
    back = read_project(tmp_path / "p.slp")
    assert back.skeleton.keypoints == ("a", "b") and back.videos == videos
    assert [frame.predicted[0].points[0, 0] for frame in back.frames] == [0, 1, 2]
    with pytest.raises(FormatError, match=r"ends in \.txt"):
        write_predictions(tmp_path / "p.txt", skeleton, videos, frames, {})
    with pytest.raises(FormatError, match="would be a DeepLabCut project, which holds labels"):
        write_predictions(tmp_path / "folder/config.yaml", skeleton, videos, frames, {})
    assert write_predictions(tmp_path / "folder", skeleton, videos, frames, {}) == 3
    assert read_project(tmp_path / "folder" / "clipDLC_SemiMultiPose_best.h5").frames[2].predicted[0].points[0, 0] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.txt", r"ends in \.txt"),
        ("p.pkg.slp", "would be a package without images"),
        ("config.yaml", "would be a DeepLabCut project"),
        ("two.csv", "would hold 2 videos, but DeepLabCut keeps one in a file; name a folder"),
        ("two.analysis.h5", "can hold one video, and there are 2"),
        ("labels.json", "is one of the inputs and would be overwritten"),
        ("clip.h5", "is one of the inputs and would be overwritten"),
        ("nowhere/p.slp", "choose an existing folder that you may write to"),
        ("nowhere/p.h5", "choose an existing folder that you may write to"),
        ("ids.json", "Frame 3 of .*clip.mp4 is no image of .*labels.json"),
    ],
)
def test_what_fails_is_known_before(tmp_path: Path, video_file: Path, name: str, message: str) -> None:
    skeleton, videos = Skeleton(("a", "b")), [VideoSource((video_file,))] * (2 if "two" in name else 1)
    labels = tmp_path / "labels.json"
    labels.write_text('{"images": [], "annotations": [], "categories": []}')
    inputs = [tmp_path / "clip.h5", *([labels] if name.endswith("json") else [])]
    with pytest.raises(FormatError, match=message):
        check_predictions(tmp_path / name, skeleton, videos, [LabeledFrame(0, 3)], inputs)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("name", ["p.slp", "p.json", "p.analysis.h5", "p.h5", "p.csv", "folder"])
def test_the_check_writes_nothing(tmp_path: Path, video_file: Path, name: str) -> None:
    if "." in name:
        (tmp_path / name).write_text("of before")
    check_predictions(tmp_path / name, Skeleton(("a", "b")), [VideoSource((video_file,))], [LabeledFrame(0, 3)])
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == ([(name, "of before")] if "." in name else [])


def test_which_inputs_are_projects(tmp_path: Path) -> None:
    (tmp_path / "dlc").mkdir()
    (tmp_path / "dlc" / "config.yaml").touch()
    names = ["a.slp", "a.pkg.slp", "a.json", "a.analysis.h5", "a.csv", "dlc", "dlc/config.yaml", ".", "a.mp4", "a.png", "a"]
    assert [name for name in names if is_project(tmp_path / name)] == names[:7]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.slp", SLEAP),
        ("a.PKG.SLP", PACKAGE),
        ("a.json", COCO),
        ("config.yaml", DLC),
        ("new folder", DLC),
        (".", DLC),
        ("a.b.analysis.h5", ANALYSIS),
        ("a.h5", DLC_PREDICTIONS),
        ("a.csv", DLC_PREDICTIONS),
    ],
)
def test_names_say_the_format(tmp_path: Path, name: str, kind: str) -> None:
    assert format_of(tmp_path / name) == kind


def test_every_written_project_reads(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    labels = Labels(
        Skeleton(("a", "b")),
        [VideoSource(tuple(make_images(tmp_path / "photos", 3)))],
        [LabeledFrame(0, 1, [Instance(np.ones((2, 2)))])],
    )
    for name in ("a.slp", "a.pkg.slp", "a.json", "a.analysis.h5"):
        assert write_project(tmp_path / name, labels) == []
        back = read_project(tmp_path / name)
        assert [(f.index, f.instances[0].points.tolist()) for f in back.labelled_frames] == [(1, [[1, 1], [1, 1]])], name
    with pytest.raises(FormatError, match="would hold DeepLabCut predictions, not labels; to write labels, name a folder"):
        write_project(tmp_path / "a.csv", labels)

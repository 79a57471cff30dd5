from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from converters import FormatError, LabeledFrame, PredictedInstance, Skeleton, VideoSource, read_project, write_predictions


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.slp", None, "does not exist"),
        ("labels.txt", b"x", r"ends in \.txt; a SLEAP project \(\.slp or \.pkg\.slp\) is needed"),
        ("labels", b"x", r"has no ending; a SLEAP project"),
        ("empty.slp", b"", "is an empty file"),
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
    with pytest.raises(FormatError, match="is a folder; name the project file in it"):
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
    with pytest.raises(FormatError, match=r"ends in \.csv"):
        write_predictions(tmp_path / "p.csv", skeleton, videos, frames, {})

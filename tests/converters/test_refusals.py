"""Refusals that the tests of each format do not meet: what a person reads when a file cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
import sleap_io as sio
import yaml

from converters import FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource, read_project, write_project
from converters.deeplabcut import read_dlc
from converters.files import written_whole
from converters.sleap import write_slp_package
from converters.video import open_video, video_source


def test_images_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(FormatError, match=r"The folder given for the images, .*nowhere, does not exist; check --images"):
        read_project(tmp_path / "a.json", images=tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["[]", "3", '"labels"'])
def test_json_that_is_no_coco(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(FormatError, match=r"a\.json is no COCO file: it must hold an object with 'images'"):
        read_project(tmp_path / "results.json", annotations=tmp_path / "a.json")
    with pytest.raises(FormatError, match=r"a\.json is (no COCO file|a list, as COCO results are)"):
        read_project(tmp_path / "a.json")


def test_a_file_that_may_not_be_read(tmp_path: Path, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, own = make_project(), Path.open

    def closed(self: Path, *args: Any, **options: Any) -> Any:  # permissions do not hold for root
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return own(self, *args, **options)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(FormatError, match=r"project\.slp cannot be opened \(Permission denied\); check that you may read it"):
        read_project(path)


def test_settings_in_the_encoding_of_an_old_computer(tmp_path: Path) -> None:
    text = yaml.safe_dump({"Task": "Käfig", "scorer": "me", "bodyparts": ["Rüssel", "tail"], "video_sets": {}}, allow_unicode=True)
    (tmp_path / "config.yaml").write_bytes(text.encode("cp1252"))
    (tmp_path / "labeled-data").mkdir()
    assert read_dlc(tmp_path / "config.yaml").skeleton.keypoints == ("Rüssel", "tail")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "out.slp").mkdir()
    with pytest.raises(FormatError, match=r"out\.slp is a folder; name a file to write"), written_whole(tmp_path / "out.slp"):
        raise AssertionError


def test_a_project_without_skeleton(make_project: Callable[..., Path]) -> None:
    def bare(labels: sio.Labels, _: sio.Skeleton) -> None:
        labels.labeled_frames.clear()
        labels.skeletons.clear()

    with pytest.raises(FormatError, match=r"has no skeleton; open it in SLEAP, define one, and save it again"):
        read_project(make_project(edit=bare))


def test_a_package_of_a_video_that_is_damaged(tmp_path: Path, video_file: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(video_file.read_bytes())
    labels = Labels(Skeleton(("a", "b")), [VideoSource((clip,))], [LabeledFrame(0, 30, [Instance(np.ones((2, 2)))])])
    clip.write_bytes(video_file.read_bytes()[:-2000])
    with pytest.raises(FormatError, match=r"clip\.mp4 is not a video that can be read, or its recording was cut off"):
        write_slp_package(tmp_path / "out.pkg.slp", labels)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_recording_that_never_began(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "empty.avi"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with (
        pytest.raises(FormatError, match=r"empty\.avi holds no frames; record or export it again"),
        open_video(video_source(tmp_path / "empty.avi")),
    ):
        raise AssertionError


def test_no_images() -> None:
    with pytest.raises(FormatError, match="An image sequence has no images"), open_video(VideoSource(())):
        raise AssertionError


def test_a_package_that_is_damaged(make_project: Callable[..., Path], video_file: Path) -> None:
    path = make_project(name="a.pkg.slp", video=video_file, embed="user")
    source = read_project(path).videos[0]
    with h5py.File(path, "r+") as file:
        stored = file["video0/video"]
        attributes = dict(stored.attrs)
        del file["video0/video"]
        file["video0"].create_dataset("video", shape=(1,), dtype="int8").attrs.update(attributes)
    with pytest.raises(FormatError, match=r"a\.pkg\.slp .*is damaged.*; export the package again"), open_video(source) as video:
        video.read(20)


def test_a_folder_that_cannot_be_made(tmp_path: Path, video_file: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    labels = Labels(Skeleton(("a", "b")), [VideoSource((video_file,))], [])
    with pytest.raises(FormatError, match=r"me-dlc-2024-01-01.*(cannot be written|is no folder|does not exist)"):
        write_project(tmp_path / "file" / "me-dlc-2024-01-01", labels)
    assert (tmp_path / "file").read_text() == "in the way"

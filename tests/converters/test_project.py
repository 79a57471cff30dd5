from __future__ import annotations

import os
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
from converters.deeplabcut_writing import video_names
from converters.files import Finder, written_whole
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


@pytest.mark.parametrize("written", [r"C:\videos\clip.mp4", "C:/videos/clip.mp4", r"\\server\share\clip.mp4"])
def test_windows_paths_stay_where_nothing_is_found(make_project: Callable[..., Path], tmp_path: Path, written: str) -> None:
    path = Path(written.replace("\\", "/"))
    first = read_project(make_project("p.slp", video=Path("gone.mp4"), written=written), require_videos=False)
    assert first.videos[0].paths == (path,) and (path.stem, path.name) == ("clip", "clip.mp4")
    frames = [LabeledFrame(0, 1, [], [PredictedInstance(np.ones((3, 2)))])]
    for name in ("q.slp", "q.analysis.h5", "q.h5"):
        write_predictions(tmp_path / name, first.skeleton, first.videos, frames, {})
        assert read_project(tmp_path / name, require_videos=False).videos == first.videos, name
    package = VideoSource((tmp_path / "images.pkg.slp",), "video0", first.videos[0])
    assert video_names([package]) == ["clip"]


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


@pytest.mark.parametrize("name", ["x.h5", "x.csv", "x", "x.analysis.h5"])
def test_images_of_a_video_are_not_its_first_frames(tmp_path: Path, video_file: Path, make_images: Callable[..., list[Path]], name: str):
    """A table has a row for every frame, so the third image's animal would be shown on the video's third frame."""
    images = VideoSource(tuple(make_images(tmp_path / "clip", 3)), original=VideoSource((video_file,)))
    package = VideoSource((tmp_path / "p.pkg.slp",), "video0", images)
    for source in (images, package):
        with pytest.raises(FormatError, match=rf"{name} has a row for every frame of a video, and .* holds single images of clip\.mp4;"):
            write_predictions(tmp_path / name, Skeleton(("a",)), [source], [LabeledFrame(0, 2)], {})
    assert not (tmp_path / name).exists()


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


# --- hostile files: benchmarks/fuzz_formats.py found these ---


@pytest.fixture(params=["p.slp", "p.analysis.h5", "pDLC_net.h5", "p.pkg.slp"])
def hdf5_project(request: pytest.FixtureRequest, tmp_path: Path, make_images: Callable[..., list[Path]]) -> tuple[Path, str]:
    """A project, and a table in it."""
    path, video = tmp_path / request.param, VideoSource(tuple(make_images(tmp_path / "clip", 3)))
    points = np.ones((1, 2))
    frames = [LabeledFrame(0, 1, [] if path.name.endswith("net.h5") else [Instance(points)], [PredictedInstance(points)])]
    write = (
        write_project
        if path.name.endswith(".pkg.slp")
        else lambda p, each: write_predictions(p, each.skeleton, each.videos, each.frames, {})
    )
    write(path, Labels(Skeleton(("nose",)), [video], frames))
    return path, {"p.slp": "points", "p.pkg.slp": "video0/video", "p.analysis.h5": "tracks"}.get(path.name, "df_with_missing/block0_values")


@pytest.mark.parametrize("trap", ["a claim", "a large piece", "a link", "outside data", "a virtual table"])
def test_tables_larger_than_their_file_or_outside_of_it(hdf5_project: tuple[Path, str], trap: str) -> None:
    path, name = hdf5_project
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        dtype = file[name].dtype
        del file[name]
        if trap == "a claim":
            file.create_dataset(name, shape=(1 << 40,), dtype=dtype, chunks=(1 << 10,)).attrs.update(attributes)
        elif trap == "a large piece":
            file.create_dataset(name, shape=(1,), maxshape=(None,), dtype="u1", chunks=(1 << 31,))
        elif trap == "a link":
            file[name] = h5py.ExternalLink("other.h5", "x")
        elif trap == "outside data":
            file.create_dataset(name, shape=(64,), dtype="u1", external=[("/etc/passwd", 0, 64)])
        else:
            layout = h5py.VirtualLayout(shape=(1 << 20,), dtype="f8")
            layout[:16] = h5py.VirtualSource("other.h5", "x", shape=(16,))
            file.create_virtual_dataset(name, layout)
    with pytest.raises(FormatError, match="claims to hold|holds no numbers by|is kept in another file|is a link to another file") as caught:
        read_project(path)
    assert str(path) in str(caught.value)


def test_what_a_library_raises_is_one_sentence(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("out of\nbounds")

    monkeypatch.setattr("converters.sleap._read_frames", broken)
    path = make_project()
    with pytest.raises(FormatError) as caught:
        read_project(path)
    assert str(caught.value) == (f"{path} cannot be read as a SLEAP file and may be damaged (out of bounds); save or export it again.")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zeros.csv").symlink_to("/dev/zero")
    for name in ("pipe.json", "zeros.csv"):
        with pytest.raises(FormatError, match="is neither a file nor a folder"):
            read_project(tmp_path / name)


def test_one_wrong_frame_number_makes_no_endless_table(tmp_path: Path) -> None:
    video, frames = VideoSource((tmp_path / "gone.mp4",)), [LabeledFrame(0, 10**8, [], [PredictedInstance(np.ones((1, 2)))])]
    for name in ("p.analysis.h5", "p.h5", "p.csv"):
        with pytest.raises(FormatError, match="an animal or an image is in frame 100000000 of .*gone.mp4, where no video is seen to reach"):
            write_predictions(tmp_path / name, Skeleton(("nose",)), [video], frames, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png", "x" * 300 + ".png", "a/" * 3000 + "b.png"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="which no file can be called"):
        Finder(tmp_path).find(name)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"out\.json cannot be written \(.*No space"), written_whole(tmp_path / "out.json"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path, others = tmp_path / "out.slp", [".out.b.0123abcd.slp", ".out.0123abcd.csv", ".out.slp", ".about.0123abcd.slp", "out.0123abcd.slp"]
    for name in [*others, ".out.0123abcd.slp", ".out.0123abcd.linked.slp", "..out.0123abcd.linked.4567cdef.slp"]:
        (tmp_path / name).touch()
    with written_whole(path) as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "out.slp"]) and path.read_text() == "whole"


def test_of_two_that_write_one_file_the_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "out.slp"
    with pytest.raises(FormatError, match=r"out\.slp cannot be written"), written_whole(path) as first:
        first.write_text("first")
        with written_whole(path) as second:
            second.write_text("second")
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.fstat(file).st_ino))

    def replace(source: Path, target: Path) -> None:
        assert synced == [source.stat().st_ino]
        source.rename(target)

    monkeypatch.setattr("os.replace", replace)
    with written_whole(tmp_path / "out.slp") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "out.slp").read_text() == "whole" and synced

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sleap_io as sio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters import FormatError, Instance, LabeledFrame, PredictedInstance, Skeleton, VideoSource, read_project
from converters.sleap import write_slp
from converters.sleap_analysis import read_analysis, write_analysis

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "mouse")
SOME = np.arange(6, dtype=float).reshape(3, 2) * 5.25 + 1
HALF = np.array([[3.5, 4.0], [np.nan, np.nan], [7.25, 2.0]])
DATASETS = ["tracks", "track_occupancy", "point_scores", "instance_scores", "tracking_scores", "track_names", "node_names", "edge_names"]


def scored(points: np.ndarray, track: str | None, score: float) -> PredictedInstance:
    return PredictedInstance(points, track, score, np.where(np.isnan(points[:, 0]), 0, score))


def tracked() -> list[LabeledFrame]:
    return [
        LabeledFrame(0, 2, [], [scored(SOME, "a", 0.5), scored(HALF, "b", 0.25)]),
        LabeledFrame(0, 3, [Instance(SOME + 1, "a")], [scored(SOME, "a", 0.5)]),
        LabeledFrame(0, 9),
        LabeledFrame(0, 12, [], [scored(HALF, "b", 0.75)]),
    ]


@pytest.mark.parametrize("tracks", [True, False])
def test_the_arrays_are_those_of_sleaps_exporter(tmp_path: Path, video_file: Path, tracks: bool) -> None:
    frames = tracked()
    if not tracks:
        frames = [LabeledFrame(0, f.index, [], [scored(p.points, None, p.score) for p in f.predicted]) for f in frames]
    video = VideoSource((video_file,))
    write_slp(tmp_path / "p.slp", SKELETON, [video], frames, {})
    sio.save_analysis_h5(sio.load_slp(str(tmp_path / "p.slp")), str(tmp_path / "theirs.h5"))
    assert write_analysis(tmp_path / "ours.analysis.h5", SKELETON, [video], iter(frames), {}) == 4
    with h5py.File(tmp_path / "theirs.h5") as theirs, h5py.File(tmp_path / "ours.analysis.h5") as ours:
        for name in DATASETS:
            np.testing.assert_array_equal(ours[name][()], theirs[name][()], err_msg=name)
            assert ours[name].attrs.get("dims") == theirs[name].attrs.get("dims"), name
            assert ours[name].dtype.kind == theirs[name].dtype.kind, name
        np.testing.assert_array_equal(ours["edge_inds"][()], theirs["edge_inds"][()])
        assert ours["video_path"][()] == theirs["video_path"][()] and set(theirs) <= set(ours)
        assert ours["tracks"].shape == (2, 2, 3, 40), "as many frames as the video has"
        assert ours.attrs["preset"] == theirs.attrs["preset"]
        assert sorted(json.loads(theirs.attrs["skeleton_symmetries"])[0]) == sorted(json.loads(ours.attrs["skeleton_symmetries"])[0])


def test_sleap_io_reads_it_and_we_read_theirs(tmp_path: Path, video_file: Path) -> None:
    path = tmp_path / "p.analysis.h5"
    write_analysis(path, SKELETON, [VideoSource((video_file,))], tracked(), {"made": "hère"})
    theirs = sio.load_analysis_h5(str(path))
    assert theirs.provenance["made"] == "hère" and [track.name for track in theirs.tracks] == ["a", "b"]
    assert [(lf.frame_idx, len(lf.instances)) for lf in theirs] == [(2, 2), (3, 1), (12, 1)]
    for preset in ("standard", "matlab"):
        sio.save_analysis_h5(theirs, str(tmp_path / "again.h5"), preset=preset)
        labels = read_project(tmp_path / "again.h5")  # known by its content
        assert labels.skeleton == SKELETON and labels.videos == [VideoSource((video_file,))]
        assert [(f.index, [p.track for p in f.predicted]) for f in labels.frames] == [(2, ["a", "b"]), (3, ["a"]), (12, ["b"])]
        np.testing.assert_array_equal(labels.frames[0].predicted[1].points, HALF)
        assert labels.frames[0].predicted[1].score == 0.25


def test_people_come_before_models(tmp_path: Path, video_file: Path) -> None:
    write_analysis(tmp_path / "p.analysis.h5", SKELETON, [VideoSource((video_file,))], tracked(), {})
    labels = read_analysis(tmp_path / "p.analysis.h5")
    assert [(f.index, len(f.instances), len(f.predicted)) for f in labels.frames] == [(2, 0, 2), (3, 1, 0), (12, 0, 1)]
    np.testing.assert_array_equal(labels.frames[1].instances[0].points, SOME + 1)
    assert all(frame.predicted == [] for frame in read_analysis(tmp_path / "p.analysis.h5", predicted=False).frames)


def test_untracked_animals_are_kept_in_the_order_of_their_scores(tmp_path: Path, video_file: Path) -> None:
    path, video = tmp_path / "p.analysis.h5", VideoSource((video_file,))
    animals = [scored(SOME, None, 0.25), scored(SOME + 1, None, 0.75), scored(SOME + 2, None, 0.5)]
    frames = [LabeledFrame(0, 1, [], animals[:1]), LabeledFrame(0, 0, [Instance(SOME + 3)], animals)]
    write_analysis(path, SKELETON, [video], frames, {})
    with h5py.File(path) as file:
        assert file["track_names"][()].tolist() == [b"track_0", b"track_1", b"track_2", b"track_3"]
        assert file["tracks"][:, 0, 0, 0].tolist() == [4, 2, 3, 1] and file["track_occupancy"][1].tolist() == [1, 0, 0, 0]
    assert [i.track for f in read_analysis(path).frames for i in (*f.instances, *f.predicted)] == [None] * 5
    twins = [scored(SOME, "untracked_0", 0.5), scored(SOME + 1, "untracked_0", 0.25), scored(SOME + 2, None, 0.1)]
    write_analysis(path, SKELETON, [video], [LabeledFrame(0, 0, [], twins)], {})
    with h5py.File(path) as file:
        assert file["track_names"][()].tolist() == [b"untracked_0", b"untracked_0_", b"untracked_1"]
    assert [i.track for i in read_analysis(path).frames[0].predicted] == ["untracked_0", None, None]


def test_videos_of_each_kind(
    tmp_path: Path, make_images: Callable[..., list[Path]], make_project: Callable[..., Path], video_file: Path
) -> None:
    package = make_project("p.pkg.slp", video=video_file, embed="user")
    sequence = VideoSource(tuple(make_images(tmp_path / "photös", 12)))
    for source in (sequence, VideoSource((package,), embedded="video0"), VideoSource((sequence.paths[3],))):
        write_analysis(tmp_path / "p.analysis.h5", SKELETON, [source], [LabeledFrame(0, 0, [Instance(SOME)])], {})
        assert read_analysis(tmp_path / "p.analysis.h5").videos == [source]
    with h5py.File(tmp_path / "p.analysis.h5", "r+") as file:
        del file["video_path"], file["image_paths"]
        file["video_path"] = "/far/away/clip.mp4"
    with pytest.raises(FormatError, match="names the video /far/away/clip.mp4, which is not found; give its folder with --video-root"):
        read_analysis(tmp_path / "p.analysis.h5")
    assert read_analysis(tmp_path / "p.analysis.h5", video_file.parent).videos == [VideoSource((video_file,))]
    with h5py.File(tmp_path / "p.analysis.h5", "r+") as file:
        del file["video_path"]
    with pytest.raises(FormatError, match="does not name its video"):
        read_analysis(tmp_path / "p.analysis.h5")
    assert read_analysis(tmp_path / "p.analysis.h5", require_videos=False).videos[0].paths[0].name == "p.mp4"


def test_old_files(tmp_path: Path) -> None:
    """SLEAP wrote no edges, videos and scores once, and the names of axes only lately."""
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file["tracks"] = np.arange(2 * 2 * 3 * 5, dtype=float).reshape(2, 2, 3, 5)
        file["track_occupancy"] = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 0]], dtype=np.uint8)
        file["track_names"], file["node_names"] = [b"x", b"y"], [b"a", b"b", b"c"]
    labels = read_project(path, require_videos=False)
    assert labels.skeleton == Skeleton(("a", "b", "c"))
    assert [(f.index, [i.track for i in f.instances]) for f in labels.frames] == [(0, ["x"]), (1, ["y"]), (2, ["x", "y"])]
    assert labels.frames[1].instances[0].points.tolist() == [[31, 46], [36, 51], [41, 56]]


def drop(name: str) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        del file[name]

    return edit


def swap(name: str, value: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        del file[name]
        file[name] = value

    return edit


def misname(file: Any) -> None:
    file["tracks"].attrs["dims"] = "["


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("tracks"), "no SLEAP analysis file: it has no 'tracks'"),
        (drop("node_names"), "no SLEAP analysis file: it has no 'node_names'"),
        (swap("node_names", [b"a", b"b"]), "may be damaged"),
        (swap("node_names", [b"a", b"a", b"a"]), "may be damaged|names a keypoint twice"),
        (swap("tracks", np.zeros((2, 2, 3, 7))), r"'tracks' has the shape \(2, 2, 3, 7\)"),
        (swap("tracks", 3), "may be damaged"),
        (swap("track_names", [b"a"]), "may be damaged"),
        (swap("point_scores", np.zeros(3)), "may be damaged"),
        (misname, "may be damaged"),
    ],
)
def test_damage(tmp_path: Path, video_file: Path, edit: Callable[[Any], None], message: str) -> None:
    path = tmp_path / "p.analysis.h5"
    write_analysis(path, SKELETON, [VideoSource((video_file,))], tracked(), {})
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(FormatError, match=message) as caught:
        read_project(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_more_animals_than_are_stored(tmp_path: Path, video_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.sleap_analysis._FEW", 100)
    path = tmp_path / "p.analysis.h5"
    write_analysis(path, SKELETON, [VideoSource((video_file,))], tracked(), {})
    with h5py.File(path, "r+") as file:
        for name, axis in (("tracks", 3), ("point_scores", 2), ("instance_scores", 1), ("tracking_scores", 1), ("track_occupancy", 0)):
            file[name].resize(90_000, axis=axis)
        file["track_occupancy"][:] = 1
    with pytest.raises(FormatError, match="track_occupancy marks more animals than are stored"):
        read_analysis(path)


def test_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "p.analysis.h5").write_bytes(b"words")
    with pytest.raises(FormatError, match="cannot be read as a SLEAP analysis file"):
        read_project(tmp_path / "p.analysis.h5")


def test_what_cannot_be_written(tmp_path: Path, video_file: Path) -> None:
    path, video = tmp_path / "p.analysis.h5", VideoSource((video_file,))
    for videos, frame, message in [
        ([video, video], LabeledFrame(0, 0), "can hold one video, and there are 2"),
        ([video], LabeledFrame(1, 0), "frame 0 of video 1 cannot be written"),
        (
            [video],
            LabeledFrame(0, 4, [Instance(SOME[:2])]),
            "2 keypoints in frame 4 of .* cannot be written; the skeleton has 3",
        ),
    ]:
        with pytest.raises(FormatError, match=message):
            write_analysis(path, SKELETON, videos, [frame], {})
    assert list(tmp_path.iterdir()) == []
    path.write_text("before")

    def failing() -> Iterator[LabeledFrame]:
        yield from tracked()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_analysis(path, SKELETON, [video], failing(), {})
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FormatError, match="is one of the inputs"):
        write_analysis(path, SKELETON, [video], [], {}, [path])


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, video_file: Path) -> None:
    def peak(count: int) -> int:
        frames = (LabeledFrame(0, index, [], [scored(SOME, "a", 0.5)]) for index in range(count))
        tracemalloc.start()
        write_analysis(tmp_path / "p.analysis.h5", SKELETON, [VideoSource((video_file,))], frames, {})
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)
    assert peak(9000) < peak(3000) * 1.2


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(
    st.lists(NAMES, min_size=1, max_size=40, unique=True),
    st.lists(st.integers(0, 5000), max_size=5, unique=True),
    st.lists(NAMES, max_size=3, unique=True),
    st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(keypoints: list[str], indices: list[int], tracks: list[str], seed: int) -> None:
    rng, k = np.random.default_rng(seed), len(keypoints)
    skeleton = Skeleton(tuple(keypoints), ((0, k - 1),) if k > 1 else ())
    frames = []
    for index in indices:  # in any order
        animals: list[Instance] = []
        for name in [*tracks, *[None] * rng.integers(0, 30)]:
            points = rng.normal(200, 500, (k, 2))
            points[rng.random(k) < 0.4] = np.nan
            points[rng.integers(k)] = rng.normal(size=2)
            animals.append(Instance(points, name) if rng.random() < 0.3 else PredictedInstance(points, name, rng.random(), rng.random(k)))
        model = [animal for animal in animals if isinstance(animal, PredictedInstance)]
        frames.append(LabeledFrame(0, index, [animal for animal in animals if animal not in model], model))
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder).resolve() / "vidéo.mp4"
        video.write_bytes(b"not read")
        write_analysis(video.with_suffix(".analysis.h5"), skeleton, [VideoSource((video,))], frames, {})
        labels = read_analysis(video.with_suffix(".analysis.h5"))
    assert labels.skeleton == skeleton and labels.videos == [VideoSource((video,))]
    kept = sorted((f for f in frames if f.instances or f.predicted), key=lambda f: f.index)
    assert [content(f) for f in labels.frames] == [content(f) for f in kept]


def content(frame: LabeledFrame) -> tuple[int, list[str]]:
    animals = [(i.track, i.points.tolist()) for i in frame.instances]
    model = [(i.track, i.points.tolist(), i.score, i.point_scores.tolist()) for i in frame.predicted]
    return frame.index, sorted(json.dumps(each) for each in (*animals, *model))


def test_real_predictions(shared_data: Path, tmp_path: Path) -> None:
    labels = read_project(shared_data / "mice/mice_train.slp")
    write_analysis(tmp_path / "mice.analysis.h5", labels.skeleton, labels.videos, labels.frames, {})
    back = read_analysis(tmp_path / "mice.analysis.h5")
    assert [content(f) for f in back.frames] == [content(f) for f in sorted(labels.frames, key=lambda f: f.index)]

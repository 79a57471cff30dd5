from __future__ import annotations

import json
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sleap_io as sio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.sleap import labelled_animals, read_slp, write_slp, write_slp_package
from converters.video import open_video

SOME = np.arange(6, dtype=float).reshape(3, 2) * 5.25
SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "animal")


# --- reading ---


def test_read(make_project: Callable[..., Path]) -> None:
    path = make_project()
    labels = read_slp(path)
    assert labels.path == path and labels.skeleton == SKELETON
    assert [(frame.video, frame.index, len(frame.instances), len(frame.predicted)) for frame in labels.frames] == [
        (0, 3, 2, 0),
        (0, 20, 1, 0),
    ]
    assert np.array_equal(labels.frames[0].instances[1].points, SOME + 10)
    assert labels.videos == [VideoSource((path.parent / "clip.mp4",))]


def test_what_a_person_labelled_is_counted_without_reading_a_project(make_project: Callable[..., Path], tmp_path: Path) -> None:
    path, mixed = make_project(), tmp_path / "mixed.slp"
    frames = [LabeledFrame(0, i, [Instance(SOME)] * (i % 7 == 0), [PredictedInstance(SOME)] * 2) for i in range(5000)]
    write_slp(mixed, SKELETON, read_slp(path).videos, frames, {})
    assert (labelled_animals(path), labelled_animals(mixed), labelled_animals(tmp_path / "absent.slp")) == (3, 715, 0)
    with h5py.File(mixed, "r+") as file:
        del file["instances"]
        file["instances"] = h5py.ExternalLink(str(path), "/instances")
    assert labelled_animals(mixed) == 0, "another file's"


def test_invisible_nodes_empty_instances_and_negative_frames(make_project: Callable[..., Path]) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        first, second = labels[0].instances
        first.points["visible"][1] = False  # keeps its position
        second.points["visible"][:] = False
        labels.append(sio.LabeledFrame(video=labels.videos[0], frame_idx=5, is_negative=True))
        labels.append(sio.LabeledFrame(video=labels.videos[0], frame_idx=6))

    path = make_project(edit=edit)
    stored = sio.load_slp(str(path), open_videos=False)[0].instances[0].points
    assert np.isfinite(stored["xy"][1]).all(), "the file does hold a position for the invisible node"
    labels = read_slp(path)
    (instance,) = labels.frames[0].instances
    assert instance.labelled.tolist() == [True, False, True]
    assert [(frame.index, frame.negative) for frame in labels.frames] == [(3, False), (20, False), (5, True), (6, False)]
    assert [frame.index for frame in labels.labelled_frames] == [3, 20, 5]


def test_predictions_and_corrections(make_project: Callable[..., Path]) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        track = sio.Track("one")
        half = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]])
        free = sio.PredictedInstance.from_numpy(half, skeleton, point_scores=np.array([0.5, 0.0, 0.25]), score=0.75, track=track)
        corrected = sio.PredictedInstance.from_numpy(SOME, skeleton, point_scores=np.ones(3), score=1.0)
        nothing = sio.PredictedInstance.from_numpy(SOME * np.nan, skeleton, point_scores=np.zeros(3), score=0.1)
        labels[0].instances[0].from_predicted = corrected
        labels[0].instances[0].track = track
        labels[0].instances += [free, corrected, nothing]
        labels.tracks = [track]

    path = make_project(edit=edit)
    frame = read_slp(path).frames[0]
    (left,) = frame.predicted
    assert (left.score, left.track, left.point_scores.tolist()) == (0.75, "one", [0.5, 0.0, 0.25])
    assert [instance.track for instance in frame.instances] == ["one", None]
    assert read_slp(path, predicted=False).frames[0].predicted == []


def test_entries_for_one_frame_are_joined(make_project: Callable[..., Path]) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        again = [sio.Instance.from_numpy(points, skeleton=skeleton) for points in (SOME, SOME + 3)]
        labels.labeled_frames.append(sio.LabeledFrame(video=labels.videos[0], frame_idx=3, instances=again))

    frames = read_slp(make_project(edit=edit)).frames
    assert [frame.index for frame in frames] == [3, 20]
    assert [instance.points[0, 0] for instance in frames[0].instances] == [0.0, 10.0, 3.0], "the same animal twice is one animal"


@pytest.mark.parametrize(
    ("names", "fits"), [(["nose", "left ear", "right ear"], True), (["right ear", "nose", "left ear"], True), (["a", "b"], False)]
)
def test_several_skeletons(make_project: Callable[..., Path], names: list[str], fits: bool) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        other = sio.Skeleton(list(names), name="other")
        labels.skeletons.append(other)
        points = np.array([SOME[SKELETON.keypoints.index(name)] if fits else (1, 2) for name in names], dtype=float)
        labels[1].instances[0] = sio.Instance.from_numpy(points, skeleton=other)

    path = make_project(edit=edit)
    if fits:
        labels = read_slp(path)
        assert labels.skeleton == SKELETON
        assert np.array_equal(labels.frames[1].instances[0].points, SOME)
    else:
        with pytest.raises(FormatError, match=r"2 different skeletons \(nose, left ear, right ear \| a, b\); keep one"):
            read_slp(path)


def test_a_project_without_labels_reads(make_project: Callable[..., Path]) -> None:
    labels = read_slp(make_project(frames={}))
    assert labels.frames == [] and labels.skeleton == SKELETON and len(labels.videos) == 1


# --- finding videos ---


@pytest.mark.parametrize(
    ("written", "place", "root"),
    [
        ("clip.mp4", "project/clip.mp4", None),
        ("sub/clip.mp4", "project/sub/clip.mp4", None),
        ("../other/clip.mp4", "other/clip.mp4", None),
        ("/far/away/clip.mp4", "project/clip.mp4", None),
        (r"C:\data\mouse 1\clip.mp4", "project/clip.mp4", None),
        (r"sub\clip.mp4", "project/sub/clip.mp4", None),
        ("/far/away/clip.mp4", "videos/clip.mp4", "videos"),
        ("/far/away/clip.mp4", "videos/away/clip.mp4", "videos"),
        (r"D:\far\away\clip.mp4", "videos/far/away/clip.mp4", "videos"),
        ("../a/clip.mp4", "videos/a/clip.mp4", "videos"),
    ],
)
def test_moved_videos_are_found(
    tmp_path: Path, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, written: str, place: str, root: str | None
) -> None:
    path = make_project("project/p.slp", video=Path("nowhere.mp4"), written=written)
    monkeypatch.chdir("/")
    with pytest.raises(
        FormatError, match=r"names the video .*clip.mp4, which is not found; give its folder with --video-root FOLDER"
    ) as caught:
        read_slp(path)
    assert str(path) in str(caught.value)
    video = tmp_path / place
    video.parent.mkdir(parents=True, exist_ok=True)
    video.write_bytes(b"x")
    assert read_slp(path, tmp_path / root if root else None).videos[0].paths == (video,)


def test_longest_matching_tail_wins(tmp_path: Path, make_project: Callable[..., Path]) -> None:
    path = make_project("project/p.slp", video=Path("nowhere.mp4"), written="/x/cam2/clip.mp4")
    for place in ("videos/clip.mp4", "videos/cam2/clip.mp4", "videos/cam1/clip.mp4"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    assert read_slp(path, tmp_path / "videos").videos[0].paths == (tmp_path / "videos/cam2/clip.mp4",)


def test_absolute_paths_first(tmp_path: Path, make_project: Callable[..., Path]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/clip.mp4").write_bytes(b"x")
    path = make_project("project/p.slp", written=str(tmp_path / "there/clip.mp4"))
    assert (path.parent / "clip.mp4").exists()
    assert read_slp(path).videos[0].paths == (tmp_path / "there/clip.mp4",)


def test_missing_videos_on_request(make_project: Callable[..., Path], tmp_path: Path) -> None:
    path = make_project("p.slp", video=Path("nowhere.mp4"), written="sub/nowhere.mp4")
    assert read_slp(path, require_videos=False).videos[0].paths == (tmp_path / "sub/nowhere.mp4",)
    with pytest.raises(FormatError, match="gone, does not exist"):
        read_slp(path, tmp_path / "gone")


def test_a_missing_video_without_labels_is_left_out(tmp_path: Path, video_file: Path) -> None:
    path, videos = tmp_path / "p.slp", [VideoSource((tmp_path / "gone.mp4",)), VideoSource((video_file,))]
    predicted = LabeledFrame(0, 1, predicted=[PredictedInstance(SOME)])
    write_slp(path, SKELETON, videos, [predicted, LabeledFrame(1, 2, [Instance(SOME)])], {})
    labels = read_slp(path)
    assert labels.videos == videos[1:] and [(f.video, f.index) for f in labels.frames] == [(0, 2)]
    (note,) = labels.notes
    assert "1 of the project's videos are not found and have no labels" in note and "gone.mp4" in note and "--video-root" in note
    assert read_slp(path, require_videos=False).videos == videos
    for frames in ([LabeledFrame(0, 1, negative=True)], [predicted]):  # labelled, or the only video
        write_slp(tmp_path / "q.slp", SKELETON, videos if frames[0].negative else videos[:1], frames, {})
        with pytest.raises(FormatError, match=r"names the video .*gone\.mp4, which is not found"):
            read_slp(tmp_path / "q.slp")


@pytest.mark.parametrize("length", [40, 99])
def test_two_videos_of_one_name_are_not_mixed_up(tmp_path: Path, make_project: Callable[..., Path], length: int) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        for video, n_frames in ((labels.videos[0], 40), (sio.Video(filename=str(tmp_path / "b/clip.mp4"), open_backend=False), length)):
            video.backend_metadata = {"filename": str(video.filename), "type": "MediaVideo", "shape": [n_frames, 48, 64, 3]}
        labels.videos.append(video)

    path = make_project(edit=edit, written=str(tmp_path / "a/clip.mp4"))
    with pytest.raises(FormatError, match="two different videos for which only one file is found"):
        read_slp(path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clip.mp4").symlink_to("../clip.mp4")
    assert [video.paths[0].parent.name for video in read_slp(path).videos] == ["a", "b"]


def test_a_video_may_be_named_in_two_ways(make_project: Callable[..., Path]) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        labels.videos.append(sio.Video(filename="./clip.mp4", open_backend=False))
        labels.videos[1].backend_metadata = {"filename": "./clip.mp4", "type": "MediaVideo"}

    first, second = read_slp(make_project(edit=edit, written="clip.mp4")).videos
    assert first == second


def test_image_sequences(tmp_path: Path, make_project: Callable[..., Path], make_images: Callable, number_of: Callable) -> None:
    images = make_images(tmp_path / "data/seq", 4)
    names = [f"../data/seq/{image.name}" for image in images]
    path = make_project("project/p.slp", video=images, written=names, frames={2: [SOME]})
    labels = read_slp(path)
    assert labels.videos == [VideoSource(tuple(images))]
    assert number_of(open_video(labels.videos[0]).read(2)) == 2
    images[1].unlink()
    images[3].unlink()
    with pytest.raises(FormatError, match=r"names the video \.\./data/seq/img1.png \(and 1 more of its images\), which is not found"):
        read_slp(path)


def test_many_images_are_found_fast(tmp_path: Path, make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number:05d}.png" for number in range(3000)]
    for name in names:
        (folder / name).touch()
    path = make_project(video=[folder / name for name in names], written=[f"images/{name}" for name in names], frames={})
    asked: list[Path] = []
    monkeypatch.setattr(Path, "is_file", lambda self: bool(asked.append(self)))  # type: ignore[func-returns-value]
    assert len(read_slp(path).videos[0].paths) == 3000
    assert len(asked) < 10, "files are asked for one by one"


def test_package(tmp_path: Path, make_project: Callable[..., Path], video_file: Path, number_of: Callable) -> None:
    path = make_project("p.pkg.slp", video=video_file, embed="user")
    (source,) = read_slp(path).videos
    assert source == VideoSource((path,), "video0", VideoSource((video_file,)))
    with open_video(source) as video:
        assert [number_of(frame) for _, frame in video.stream()] == [3, 20]


def test_package_away_from_its_video(tmp_path: Path, make_project: Callable[..., Path], video_file: Path) -> None:
    copy = tmp_path / "raw" / "film.mp4"
    copy.parent.mkdir()
    copy.write_bytes(video_file.read_bytes())
    path = make_project("pack/p.pkg.slp", video=copy, embed="user")
    copy.rename(tmp_path / "film.mp4")
    (source,) = read_slp(path).videos
    assert source.original == VideoSource((copy,)), "as the project names it"
    (source,) = read_slp(path, video_root=tmp_path).videos
    assert source.original == VideoSource((tmp_path / "film.mp4",))
    path.rename(tmp_path / "renamed.pkg.slp")
    assert read_slp(tmp_path / "renamed.pkg.slp").videos[0].paths == (tmp_path / "renamed.pkg.slp",)


def test_package_with_gaps_in_its_numbers(
    make_project: Callable[..., Path], video_file: Path, make_images: Callable, tmp_path: Path
) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        second = sio.Video.from_filename([str(image) for image in make_images(tmp_path / "seq", 3)])
        labels.videos.append(second)
        labels.append(sio.LabeledFrame(video=second, frame_idx=1, instances=[sio.Instance.from_numpy(SOME + 7, skeleton=skeleton)]))

    path = make_project("p.pkg.slp", video=video_file, embed="user", edit=edit)
    with h5py.File(path, "r+") as file:  # as older SLEAP leaves it after videos were removed
        file.move("video1", "video15")
        rows = [json.loads(row) for row in file["videos_json"][()]]
        rows[1]["backend"]["dataset"] = "video15/video"
        file["videos_json"][1] = json.dumps(rows[1])
        frames = file["frames"][()]
        frames["video"][frames["video"] == 1] = 15
        file["frames"][...] = frames
    labels = read_slp(path)
    assert [source.embedded for source in labels.videos] == ["video0", "video15"]
    assert [(frame.video, frame.index) for frame in labels.frames] == [(0, 3), (0, 20), (1, 1)]
    assert np.array_equal(labels.frames[2].instances[0].points, SOME + 7)


# --- writing ---


def predictions() -> list[LabeledFrame]:
    half = np.array([[1.5, 2.25], [np.nan, np.nan], [3.0, 4.125]])
    one = PredictedInstance(half, "eins", 0.7, np.array([0.5, np.nan, 0.25]))
    two = PredictedInstance(SOME, None, 0.1, np.array([0.1, 0.2, 0.3]))
    return [
        LabeledFrame(0, 7, [Instance(SOME + 2, "zwei")], [one, two]),
        LabeledFrame(0, 3),
        LabeledFrame(0, 4, negative=True),
        LabeledFrame(0, 5, [], [PredictedInstance(SOME + 1, "eins", 1.0)]),
    ]


def native(skeleton: Skeleton, video: sio.Video, frames: list[LabeledFrame], provenance: dict) -> sio.Labels:
    """The same, built from sleap-io's objects."""
    theirs = sio.Skeleton(list(skeleton.keypoints), edges=list(skeleton.edges), symmetries=list(skeleton.symmetries), name=skeleton.name)
    tracks: dict[str | None, sio.Track | None] = {None: None}
    entries = []
    for frame in frames:
        instances: list = []
        for each in (*frame.instances, *frame.predicted):
            if each.track not in tracks:
                tracks[each.track] = sio.Track(each.track)
            common = {"skeleton": theirs, "track": tracks[each.track]}
            if isinstance(each, PredictedInstance):
                scores = np.nan_to_num(each.point_scores)
                instances.append(sio.PredictedInstance.from_numpy(each.points, point_scores=scores, score=each.score, **common))
            else:
                instances.append(sio.Instance.from_numpy(each.points, **common))
        entries.append(sio.LabeledFrame(video=video, frame_idx=frame.index, instances=instances, is_negative=frame.negative))
    named = [track for track in tracks.values() if track is not None]
    return sio.Labels(entries, videos=[video], skeletons=[theirs], tracks=named, provenance=provenance)


def tables(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        found = {
            name: file[name][()]
            for name in ("frames", "instances", "points", "pred_points", "negative_frames", "tracks_json", "videos_json")
        }
        found["provenance"] = file["provenance_json"][()]
        found["format"] = file["metadata"].attrs["format_id"]
        others = {"metadata", "provenance_json", "suggestions_json", "sessions_json"}
        assert set(file) == {*(set(found) - {"provenance", "format"}), *others}
    return found


@pytest.mark.parametrize("rows", [1, 16384])
def test_the_file_is_the_one_sleap_io_writes(tmp_path: Path, video_file: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("converters.sleap._ROWS_AT_ONCE", rows)
    provenance = {"model": "m.ckpt", "version": "0.1"}
    ours, theirs = tmp_path / "ours.slp", tmp_path / "theirs.slp"
    assert write_slp(ours, SKELETON, [VideoSource((video_file,))], predictions(), provenance) == 4
    sio.save_slp(native(SKELETON, sio.Video.from_filename(str(video_file)), predictions(), provenance), str(theirs), verbose=False)
    a, b = tables(ours), tables(theirs)
    for name in a:
        if name == "videos_json":
            assert json.loads(a[name][0]) == json.loads(b[name][0])
        elif isinstance(a[name], np.ndarray):
            assert a[name].dtype == b[name].dtype, name
            for column in a[name].dtype.names or [None]:
                np.testing.assert_array_equal(
                    a[name][column] if column else a[name], b[name][column] if column else b[name], f"{name} {column}"
                )
        else:
            assert a[name] == b[name], name
    one, other = (sio.load_slp(str(path)).skeleton for path in (ours, theirs))
    assert (one.name, one.node_names, one.edge_inds, one.symmetry_inds) == (
        other.name,
        other.node_names,
        other.edge_inds,
        other.symmetry_inds,
    )


def test_sleap_io_opens_it(tmp_path: Path, video_file: Path, number_of: Callable) -> None:
    path = tmp_path / "p.slp"
    write_slp(path, SKELETON, [VideoSource((video_file,))], predictions(), {"model": "m"})
    labels = sio.load_slp(str(path))
    assert len(labels) == 4 and [track.name for track in labels.tracks] == ["zwei", "eins"]
    assert labels.skeleton.edge_inds == [(0, 1), (1, 2)] and labels.skeleton.symmetry_inds == [(1, 2)]
    assert labels.video.shape == (40, 48, 64, 3) and number_of(labels[0].image) == 7
    assert labels.provenance["model"] == "m"
    assert labels[0].predicted_instances[0].score == np.float32(0.7)
    assert labels[2].is_negative and len(labels[1].instances) == 0


def test_images_and_packages_as_videos(
    tmp_path: Path, make_project: Callable[..., Path], make_images: Callable, number_of: Callable, video_file: Path
) -> None:
    package = make_project("p.pkg.slp", video=video_file, embed="user")
    sources = [VideoSource(tuple(make_images(tmp_path / "seq", 3))), *read_slp(package).videos, VideoSource((tmp_path / "gone.mp4",))]
    frames = [LabeledFrame(0, 2, [], [PredictedInstance(SOME)]), LabeledFrame(1, 20, [], [PredictedInstance(SOME)]), LabeledFrame(2, 0)]
    path = tmp_path / "predictions.slp"
    # the package's video has number 0 there, as the sequence has here: then both go by their place
    assert write_slp(path, SKELETON, sources, frames, {}) == 3
    labels = read_slp(path, require_videos=False)
    assert labels.videos == sources
    assert [(frame.video, frame.index) for frame in labels.frames] == [(0, 2), (1, 20), (2, 0)]
    theirs = sio.load_slp(str(path))
    assert number_of(theirs[0].image) == 2 and number_of(theirs[1].image) == 20
    assert theirs.videos[1].source_video.filename == str(video_file)


def test_images_of_a_video_do_not_merge_into_it(tmp_path: Path, make_images: Callable, video_file: Path) -> None:
    """SLEAP merges by the video behind a frame and by its number, and the first image is not the video's first frame."""
    video = VideoSource((video_file,))
    images = VideoSource(tuple(make_images(tmp_path / "images", 3)), original=video)
    for name, source in (("images.slp", images), ("video.slp", video)):
        write_slp(tmp_path / name, SKELETON, [source], [LabeledFrame(0, 1, [], [PredictedInstance(SOME)])], {})
    write_slp_package(tmp_path / "images.pkg.slp", Labels(SKELETON, [images], [LabeledFrame(0, 1, [Instance(SOME)])]))
    for name in ("images.slp", "images.pkg.slp"):
        labels = sio.load_slp(str(tmp_path / name))
        labels.merge(sio.load_slp(str(tmp_path / "video.slp")))
        assert len(labels.videos) == 2 and [len(frame.predicted_instances) for frame in labels][-1] == 1


def test_whole_or_not_at_all(tmp_path: Path, video_file: Path) -> None:
    def failing() -> Iterator[LabeledFrame]:
        yield from predictions()
        raise KeyboardInterrupt

    path = tmp_path / "p.slp"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_slp(path, SKELETON, [VideoSource((video_file,))], failing(), {})
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == ["p.slp"]
    write_slp(path, SKELETON, [VideoSource((video_file,))], predictions(), {})
    assert len(read_slp(path).frames) == 4
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "permissions as for any new file"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (LabeledFrame(1, 0), "frame 0 of video 1 cannot be written; there are 1 videos"),
        (LabeledFrame(0, -1), "frame -1"),
        (LabeledFrame(0, 9, [], [PredictedInstance(SOME[:2])]), "an instance of 2 keypoints in frame 9 .* the skeleton has 3"),
    ],
)
def test_frames_that_do_not_fit(tmp_path: Path, video_file: Path, frame: LabeledFrame, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        write_slp(tmp_path / "p.slp", SKELETON, [VideoSource((video_file,))], [frame], {})
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_not_overwritten(tmp_path: Path, make_project: Callable[..., Path], video_file: Path) -> None:
    project, package = make_project(), make_project("q.pkg.slp", video=video_file, embed="user")
    sources = read_slp(project).videos
    link = tmp_path / "link.slp"
    link.symlink_to(project)
    renamed = package.rename(tmp_path / "q.slp")
    for target, videos, inputs in [(project, sources, [project]), (link, sources, [project]), (renamed, read_slp(renamed).videos, [])]:
        before = target.read_bytes()
        with pytest.raises(FormatError, match="is one of the inputs and would be overwritten"):
            write_slp(target, SKELETON, videos, [], {}, inputs)
        assert target.read_bytes() == before
    for target, message in [(tmp_path / "no/p.slp", "choose an existing folder"), (tmp_path / "r.pkg.slp", "a package without images")]:
        with pytest.raises(FormatError, match=message):
            write_slp(target, SKELETON, sources, [], {})


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, video_file: Path) -> None:
    def peak(count: int) -> int:
        frames = (LabeledFrame(0, index, [], [PredictedInstance(SOME, "a", 0.5, np.ones(3))]) for index in range(count))
        tracemalloc.start()
        write_slp(tmp_path / "p.slp", SKELETON, [VideoSource((video_file,))], frames, {})
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)  # imports
    assert peak(9000) < peak(6000) * 1.2


def test_packages(tmp_path: Path, video_file: Path, make_images: Callable[..., list[Path]], number_of: Callable[[np.ndarray], int]) -> None:
    sources = [VideoSource((video_file,)), VideoSource(tuple(make_images(tmp_path / "photos", 9)))]
    animal, guess = Instance(SOME, "one"), PredictedInstance(SOME, score=0.5)
    frames = [
        LabeledFrame(0, 3, [animal], [guess]),
        LabeledFrame(0, 20, [], [guess]),
        LabeledFrame(1, 8, [animal]),
        LabeledFrame(1, 2, negative=True),
    ]
    path = tmp_path / "p.pkg.slp"
    assert write_slp_package(path, Labels(SKELETON, sources, frames)) == 4
    labels = read_slp(path)
    assert labels.skeleton == SKELETON
    assert [(f.video, f.index, len(f.instances), len(f.predicted), f.negative) for f in labels.frames] == [
        (0, 3, 1, 1, False),
        (0, 20, 0, 1, False),
        (1, 8, 1, 0, False),
        (1, 2, 0, 0, True),
    ]
    assert [source.original for source in labels.videos] == sources
    for source, numbers in zip(labels.videos, ([3], [2, 8]), strict=True):
        with open_video(source) as video:
            assert list(video.frame_numbers) == numbers and [number_of(video.read(n)) for n in numbers] == numbers
            assert abs(video.read(numbers[0])[40, 30].astype(int) - (200, 100, 30)).max() < 12, "red, green, blue"
    before = sorted(each.name for each in tmp_path.iterdir())
    no_image = VideoSource((*sources[1].paths[:8], tmp_path / "photos"))
    for wrong, message in [
        (Labels(SKELETON, [sources[0], no_image], frames), "q.pkg.slp cannot be written: the image .*photos is no file"),
        (Labels(SKELETON, sources, frames[1:2]), "would hold no image, because no frame is labelled"),
        (Labels(SKELETON, [sources[0], VideoSource((tmp_path / "gone.mp4",))], frames), "gone.mp4 does not exist"),
    ]:
        with pytest.raises(FormatError, match=message):
            write_slp_package(tmp_path / "q.pkg.slp", wrong)
    with pytest.raises(FormatError, match="is one of the inputs"):
        write_slp_package(path, labels)
    assert sorted(each.name for each in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("uneven.mp4", "libx264", "yuv420p"), ("dense.mkv", "libx264", "gray")])
def test_packages_of_uneven_videos(
    tmp_path: Path, make_video: Callable[..., Path], number_of: Callable[[np.ndarray], int], name: str, codec: str, pix_fmt: str
) -> None:
    times = np.cumsum(np.random.default_rng(0).choice([1, 2, 9], 90)).tolist()
    source = VideoSource((make_video(tmp_path / name, n_frames=90, codec=codec, pix_fmt=pix_fmt, times=times),))
    numbers, path = [0, 1, 5, 30, 31, 60, 80, 89], tmp_path / "p.pkg.slp"
    write_slp_package(path, Labels(SKELETON, [source], [LabeledFrame(0, number, [Instance(SOME)]) for number in numbers]))
    (package,) = read_slp(path).videos
    assert package.original == source
    with open_video(package) as images, open_video(source) as video:
        assert list(images.frame_numbers) == numbers
        for number in numbers:
            image = images.read(number)
            assert number_of(image) == number and np.array_equal(image, video.read(number))
        size = (video.n_frames, video.height, video.width)
    theirs = sio.load_slp(str(path))
    assert [number_of(frame.image) for frame in theirs] == numbers
    assert tuple(theirs.videos[0].source_video.backend_metadata["shape"][:3]) == size


def test_packages_list_videos_that_are_not_there_and_have_no_labels(
    tmp_path: Path, video_file: Path, number_of: Callable[[np.ndarray], int]
) -> None:
    damaged, images = tmp_path / "damaged.mp4", VideoSource(tuple(tmp_path / f"gone/img{number}.png" for number in range(3)))
    damaged.write_bytes(video_file.read_bytes()[:-2000])
    inside = VideoSource((tmp_path / "gone.pkg.slp",), "video0", VideoSource((tmp_path / "filmed.mp4",)))
    sources = [VideoSource((tmp_path / "gone.mp4",)), images, VideoSource((video_file,)), inside, VideoSource((damaged,))]
    guess, path = PredictedInstance(SOME, score=0.5), tmp_path / "p.pkg.slp"
    frames = [LabeledFrame(2, 20, [Instance(SOME)]), LabeledFrame(0, 7, [], [guess]), LabeledFrame(1, 2, [], [guess])]
    write_slp_package(path, Labels(SKELETON, sources, frames))
    labels = read_slp(path)
    assert labels.notes == [] and [video.original for video in labels.videos] == sources
    assert [(f.video, f.index, len(f.instances), len(f.predicted)) for f in labels.frames] == [(2, 20, 1, 0), (0, 7, 0, 1), (1, 2, 0, 1)]
    opened = [open_video(video) for video in labels.videos]
    assert [list(video.frame_numbers) for video in opened] == [[], [], [20], [], []] and number_of(opened[2].read(20)) == 20
    theirs = sio.load_slp(str(path))
    assert [str(video.source_video.filename) for video in theirs.videos if isinstance(video.source_video.filename, str)] == [
        str(source.paths[0]) for source in sources if source.kind != "images"
    ]
    assert number_of(theirs[0].image) == 20


def test_packages_of_images_that_are_no_png(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    paths = [*make_images(tmp_path / "a", 1), *make_images(tmp_path / "b", 2, ".tif"), *make_images(tmp_path / "c", 1, ".jpg")]
    deep = np.random.default_rng(0).integers(0, 2**16, (48, 64), dtype=np.uint16)
    Image.fromarray(deep).save(paths[2])
    Image.new("RGB", (64, 48)).save(paths[0])  # a first image without colours says nothing of the others
    source, path = VideoSource(tuple(paths)), tmp_path / "p.pkg.slp"
    write_slp_package(path, Labels(SKELETON, [source], [LabeledFrame(0, number, [Instance(SOME)]) for number in range(4)]))
    with open_video(read_slp(path).videos[0]) as images, open_video(source) as files:
        assert all(np.array_equal(images.read(number), files.read(number)) for number in range(4))


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@st.composite
def projects(draw: st.DrawFn) -> tuple[Skeleton, int, list[LabeledFrame]]:
    keypoints = draw(st.lists(NAMES, min_size=1, max_size=40, unique=True))
    k = len(keypoints)
    edges = (
        draw(st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)).filter(lambda e: e[0] != e[1]), max_size=5, unique=True))
        if k > 1
        else []
    )
    skeleton = Skeleton(tuple(keypoints), tuple(edges), ((0, 1),) if k > 1 and draw(st.booleans()) else (), draw(NAMES))
    n_videos = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tracks = [None, *draw(st.lists(NAMES, max_size=3, unique=True))]

    def points() -> np.ndarray:
        found = rng.normal(200, 500, (k, 2))
        found[rng.random(k) < 0.4] = np.nan
        found[rng.integers(k)] = rng.normal(size=2)  # at least one, else the reader drops the instance
        return found

    places = draw(st.lists(st.tuples(st.integers(0, n_videos - 1), st.integers(0, 10**6)), max_size=6, unique=True))
    frames = []
    for video, index in places:
        people, model = draw(st.integers(0, 4)), draw(st.integers(0, 6))
        instances = [Instance(points(), tracks[rng.integers(len(tracks))]) for _ in range(people)]
        predicted = [PredictedInstance(points(), tracks[rng.integers(len(tracks))], rng.random(), rng.random(k)) for _ in range(model)]
        frames.append(LabeledFrame(video, index, instances, predicted, negative=not people and draw(st.booleans())))
    return skeleton, n_videos, frames


@given(projects())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_round_trip(project: tuple[Skeleton, int, list[LabeledFrame]]) -> None:
    skeleton, n_videos, frames = project
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        videos = []
        for number in range(n_videos):
            path = Path(folder).resolve() / f"vidéo {number}.mp4"
            path.write_bytes(b"not read")
            videos.append(VideoSource((path,)))
        target = Path(folder) / "π.slp"
        assert write_slp(target, skeleton, videos, frames, {"where": "ünicode"}) == len(frames)
        labels = read_slp(target)
    assert labels.skeleton == skeleton and labels.videos == videos
    assert [(f.video, f.index, f.negative) for f in labels.frames] == [(f.video, f.index, f.negative) for f in frames]
    for back, frame in zip(labels.frames, frames, strict=True):
        for one, other in zip([*back.instances, *back.predicted], [*frame.instances, *frame.predicted], strict=True):
            np.testing.assert_array_equal(one.points, other.points)
            assert one.track == other.track and type(one) is type(other)
            if isinstance(one, PredictedInstance) and isinstance(other, PredictedInstance):
                assert one.score == np.float32(other.score)
                np.testing.assert_array_equal(one.point_scores, other.point_scores)


# --- real data ---


def test_every_real_project_reads_from_anywhere(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    projects = sorted(shared_data.rglob("*.slp"))
    assert len(projects) >= 15
    for path in projects:
        labels = read_slp(path)
        assert labels.labelled_frames, path
        assert all(file.is_file() for video in labels.videos for file in video.paths), path
        theirs = sio.load_slp(str(path), open_videos=False)
        assert len(labels.frames) == len(theirs), path
        for frame, entry in zip(labels.frames, theirs, strict=True):
            np.testing.assert_array_equal([i.points for i in frame.instances], [i.numpy() for i in entry.user_instances])


@pytest.mark.parametrize(
    ("name", "animals", "images", "size"),
    [
        ("honeybee/train105.slp", 1208, 185, (720, 1280)),
        ("pups_partial/pups_train.slp", 665, 185, (720, 1280)),
        ("flies/flies_train.slp", 120, None, (1024, 1024)),
        ("flies/pair24/pair24_train.slp", 120, None, (384, 384)),
        ("mice/mice_train.slp", 84, None, (768, 1024)),
    ],
)
def test_real_projects(shared_data: Path, name: str, animals: int, images: int | None, size: tuple[int, int]) -> None:
    labels = read_slp(shared_data / name)
    assert sum(len(frame.instances) for frame in labels.frames) == animals
    (source,) = labels.videos
    assert len(source.paths) == (images or 1)
    with open_video(source) as video:
        assert (video.height, video.width) == size
        assert video.read(labels.frames[0].index).shape == (*size, 3)

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sleap_io as sio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, convert, read_project
from converters.sleap import write_slp
from converters.video import open_video

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "mouse")
SOME = np.arange(6, dtype=float).reshape(3, 2) * 5.25 + 1
HALF = np.array([[3.5, 4.0], [np.nan, np.nan], [7.25, 2.0]])


@pytest.fixture
def project(tmp_path: Path, make_images: Callable[..., list[Path]]) -> Callable[..., Path]:
    """Writes ``in.slp``: an image sequence with labels, predictions, tracks, a negative and an empty frame; all but ``without``."""

    def make(*without: str, skeleton: Skeleton = SKELETON) -> Path:
        track = None if "tracks" in without else "ann"
        frames = [
            LabeledFrame(0, 1, [Instance(SOME, track), Instance(HALF)]),
            LabeledFrame(0, 3, [], [PredictedInstance(SOME, track, 0.5), PredictedInstance(HALF, None, 0.25)]),
            LabeledFrame(0, 5, negative="negative" not in without),
            LabeledFrame(0, 6),
        ]
        if "labels" in without:
            frames[0].instances = []
        if "predictions" in without:
            frames[1].predicted = []
        if "empty" in without:
            frames = [frame for frame in frames if frame.instances or frame.predicted or frame.negative]
        path = tmp_path / "in.slp"
        write_slp(path, skeleton, [VideoSource(tuple(make_images(tmp_path / "photos", 8)))], frames, {})
        return path

    return make


def test_a_package_of_a_project_of_which_a_video_without_labels_is_not_there(tmp_path: Path, video_file: Path) -> None:
    gone, here = VideoSource((tmp_path / "gone.mp4",)), VideoSource((video_file,))
    write_slp(tmp_path / "in.slp", SKELETON, [gone, here], [LabeledFrame(1, 3, [Instance(SOME)])], {})
    (note,) = convert(tmp_path / "in.slp", tmp_path / "out.pkg.slp")
    assert "gone.mp4, not found; the output names the same" in note and "--video-root" in note
    labels = read_project(tmp_path / "out.pkg.slp")
    assert [(f.video, f.index) for f in labels.frames] == [(1, 3)] and [video.original for video in labels.videos] == [gone, here]
    write_slp(tmp_path / "in.slp", SKELETON, [gone, here], [LabeledFrame(0, 3, [Instance(SOME)])], {})
    with pytest.raises(FormatError, match=r"gone\.mp4 does not exist; .*--video-root"):
        convert(tmp_path / "in.slp", tmp_path / "other.pkg.slp")


PLAIN = Skeleton(SKELETON.keypoints)


@pytest.mark.parametrize(
    ("target", "without", "skeleton", "only", "words"),
    [
        ("out.slp", (), SKELETON, None, []),
        ("out.pkg.slp", (), SKELETON, None, ["1 frames have predictions only"]),
        ("out.pkg.slp", ("predictions",), SKELETON, None, []),
        (
            "out.analysis.h5",
            (),
            SKELETON,
            None,
            ["2 animals have no track", "1 frames are marked as empty", "1 frames without animals leave"],
        ),
        ("out.analysis.h5", ("negative", "empty"), SKELETON, None, ["2 animals have no track"]),
        ("out.json", (), SKELETON, None, ["'track'", "'symmetries'", "'negative' marks 1", "2 predicted animals are left out"]),
        ("out.json", (), SKELETON, "labels", ["'track'", "'symmetries'", "'negative' marks 1"]),
        ("out.json", ("tracks", "negative", "predictions"), PLAIN, None, []),
        (
            "out.json",
            (),
            SKELETON,
            "predictions",
            ["keep in.slp", "the 1 are in the extra field 'track'", "no edges", "no symmetries", "1 frames without animals"],
        ),
        ("out.json", ("labels", "negative", "empty", "tracks"), PLAIN, None, ["keep in.slp or its COCO labels"]),
    ],
)
def test_only_what_is_lost_is_said(
    tmp_path: Path,
    project: Callable[..., Path],
    target: str,
    without: tuple[str, ...],
    skeleton: Skeleton,
    only: str | None,
    words: list[str],
) -> None:
    notes = convert(project(*without, skeleton=skeleton), tmp_path / target, only=only)
    assert len(notes) == len(words), notes
    for note, word in zip(notes, words, strict=True):
        assert word in note and note.startswith(str(tmp_path / target)) and "{" not in note
    assert (tmp_path / target).is_file()


def test_what_the_reader_says_comes_first(tmp_path: Path, project: Callable[..., Path]) -> None:
    convert(project("predictions"), tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0]["keypoints"][2] = 1
    content["images"][7]["file_name"] = "photos/gone.png"
    (tmp_path / "a.json").write_text(json.dumps(content))
    notes = convert(tmp_path / "a.json", tmp_path / "b.slp")
    assert ["1 keypoints are marked as hidden" in notes[0], "photos/gone.png, not found; the output names the same" in notes[1]] == [
        True
    ] * 2
    assert len(notes) == 2 and read_project(tmp_path / "b.slp", require_videos=False).videos[0].paths[7].name == "gone.png"


def test_the_input_is_not_overwritten(tmp_path: Path, project: Callable[..., Path]) -> None:
    source = project()
    before = source.read_bytes()
    (tmp_path / "link.slp").symlink_to(source)
    (tmp_path / "dlc").mkdir()
    (tmp_path / "dlc/config.yaml").write_text("scorer: ann")
    for one, other in [
        (source, source),
        (source, tmp_path / "link.slp"),
        (tmp_path / "dlc/config.yaml", tmp_path / "dlc"),
        (tmp_path / "dlc", tmp_path / "dlc/config.yaml"),
    ]:
        with pytest.raises(FormatError, match="is the input and would be overwritten; give the output another name"):
            convert(one, other)
    with pytest.raises(FormatError, match="img2.png is one of the inputs|no known format"):
        convert(source, tmp_path / "photos/img2.png")
    assert source.read_bytes() == before
    (tmp_path / "out.slp").write_text("before")
    convert(source, tmp_path / "out.slp")
    assert len(read_project(tmp_path / "out.slp").frames) == 4, "another file is replaced"


def test_labels_in_the_output_are_not_replaced(tmp_path: Path, project: Callable[..., Path]) -> None:
    source, other = project(), tmp_path / "other.slp"
    write_slp(other, PLAIN, [VideoSource((tmp_path / "clip.mp4",))], [LabeledFrame(0, 1, [], [PredictedInstance(SOME)])], {})
    for name in ("precious.slp", "precious.pkg.slp", "precious.json"):
        convert(source, tmp_path / name)
    (tmp_path / "CollectedData_me.csv").write_text("labels")
    before = {path: path.read_bytes() for path in tmp_path.glob("[pC]*.*")}
    assert len(before) >= 4
    for path in before:
        if not path.name.startswith("."):
            with pytest.raises(FormatError, match=rf"{path.name}(: DeepLabCut calls .* labels so| holds .* would be lost); .*choose"):
                convert(other, path)
    assert before == {path: path.read_bytes() for path in before}
    for _ in range(2):
        convert(source, tmp_path / "results.json", only="predictions")
        convert(other, tmp_path / "predicted.slp")


@pytest.mark.parametrize(
    ("without", "target", "only", "message"),
    [
        (("labels", "negative"), "out.pkg.slp", None, "takes labels, but there are only predictions in .*in.slp; .slp and .json files"),
        (("labels", "negative"), "new folder", None, "takes labels, but there are only predictions"),
        (("labels", "negative", "predictions"), "new folder", None, "takes labels, but there are no animals"),
        (("predictions",), "out.h5", None, "takes predictions, but there are only labels"),
        ((), "out.csv", "labels", "takes predictions, but there are only labels"),
        (("predictions",), "out.slp", "predictions", "holds no predictions; leave --only out"),
        ((), "out.mp4", None, r"ends in \.mp4, which is no known format"),
        ((), "no/out.slp", None, "choose an existing folder"),
    ],
)
def test_what_cannot_be_converted(
    tmp_path: Path, project: Callable[..., Path], without: tuple[str, ...], target: str, only: str | None, message: str
) -> None:
    source = project(*without)
    with pytest.raises(FormatError, match=message):
        convert(source, tmp_path / target, only=only)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.slp", "photos"]


def test_an_analysis_file_holds_the_one_video_with_animals(tmp_path: Path, video_file: Path) -> None:
    second = VideoSource((Path(shutil.copy(video_file, tmp_path / "second.mp4")),))
    frames = [LabeledFrame(1, 4, [Instance(SOME)])]
    write_slp(tmp_path / "in.slp", SKELETON, [VideoSource((video_file,)), second], frames, {})
    convert(tmp_path / "in.slp", tmp_path / "out.analysis.h5")
    labels = read_project(tmp_path / "out.analysis.h5")
    assert labels.videos == [second] and [(f.video, f.index) for f in labels.frames] == [(0, 4)]
    write_slp(tmp_path / "in.slp", SKELETON, [VideoSource((video_file,)), second], [*frames, LabeledFrame(0, 0, [Instance(SOME)])], {})
    with pytest.raises(FormatError, match=r"can hold one video, and 2 have animals \(clip.mp4, second.mp4"):
        convert(tmp_path / "in.slp", tmp_path / "other.analysis.h5")


@pytest.fixture
def proofread(tmp_path: Path, video_file: Path) -> Path:
    """A project in which a person has corrected one animal of frame 2, and added it to frame 5."""
    frames = [
        LabeledFrame(0, 2, [Instance(SOME, "a")], [PredictedInstance(SOME + 1, "a"), PredictedInstance(HALF, "b")]),
        LabeledFrame(0, 5, [Instance(SOME, "a")]),
    ]
    write_slp(tmp_path / "in.slp", Skeleton(SKELETON.keypoints), [VideoSource((video_file,))], frames, {})
    return tmp_path / "in.slp"


@pytest.mark.parametrize("ending", ["h5", "csv"])
def test_corrected_animals_are_among_deeplabcuts_predictions(tmp_path: Path, proofread: Path, ending: str) -> None:
    notes = convert(proofread, tmp_path / f"out.{ending}")
    assert sum("2 animals are a person's" in note or "1 predicted animals have the track" in note for note in notes) == 2
    found = {f.index: f.predicted for f in read_project(tmp_path / f"out.{ending}").frames if f.predicted}
    assert [(n, p.track, p.points[0].tolist()) for n in found for p in found[n]] == [
        (2, "a", SOME[0].tolist()),
        (2, "b", HALF[0].tolist()),
        (5, "a", SOME[0].tolist()),
    ]


def test_what_belongs_beside_deeplabcuts_predictions_is_not_replaced(tmp_path: Path, proofread: Path) -> None:
    convert(proofread, tmp_path / "clipDLC_net.csv", only="predictions")  # and all three files
    names = [f"clipDLC_net{ending}" for ending in (".h5", ".csv", "_meta.pickle")]
    first, table, meta = (tmp_path / name for name in names)
    first.unlink()
    before = [table.read_bytes(), meta.read_bytes()]
    notes = convert(table, first)
    assert any("stays as it is: clipDLC_net.csv, clipDLC_net_meta.pickle" in note for note in notes)
    assert [table.read_bytes(), meta.read_bytes()] == before
    assert [[len(f.predicted) for f in read_project(path, require_videos=False).frames] for path in (first, table)] == [
        [0, 0, 2] + [0] * 37
    ] * 2
    meta.write_bytes(pickle.dumps({"data": {"cropping": True, "cropping_parameters": [5, 60, 0, 40]}}))
    with pytest.raises(FormatError, match="clipDLC_net_meta.pickle says from a crop; give the output another name"):
        convert(table, first)


def test_a_folder_for_deeplabcuts_predictions_of_several_videos(tmp_path: Path, video_file: Path) -> None:
    (tmp_path / "other").mkdir()
    videos = [VideoSource((video_file,)), VideoSource((tmp_path / "unused.mp4",)), VideoSource((tmp_path / "other" / "clip.mp4",))]
    shutil.copy(video_file, videos[2].paths[0])
    frames = [LabeledFrame(0, 2, [], [PredictedInstance(SOME)]), LabeledFrame(2, 3, [Instance(SOME + 1)])]
    write_slp(tmp_path / "in.slp", PLAIN, videos, frames, {})
    with pytest.raises(FormatError, match="2 have animals .* name a folder and --format h5"):
        convert(tmp_path / "in.slp", tmp_path / "out.h5")
    with pytest.raises(FormatError, match="--format h5 is for a folder"):
        convert(tmp_path / "in.slp", tmp_path / "out.h5", suffix="h5")
    notes = convert(tmp_path / "in.slp", tmp_path / "out", suffix="h5")
    assert any("other/clip.mp4 is called clip_2 there" in note for note in notes)
    tables = [read_project(file) for file in sorted((tmp_path / "out").glob("*.h5"))]
    assert [table.videos for table in tables] == [[videos[0]], [videos[2]]]
    assert [[f.index for f in table.frames if f.predicted] for table in tables] == [[2], [3]]


def test_a_labelled_animal_hides_a_predicted_one_of_its_track(tmp_path: Path, proofread: Path) -> None:
    (note,) = convert(proofread, tmp_path / "out.analysis.h5")
    assert "1 predicted animals have the track of a labelled one" in note
    back, _ = read_project(tmp_path / "out.analysis.h5").frames
    assert [i.track for i in back.instances] == ["a"] and [p.track for p in back.predicted] == ["b"]


def test_results_need_their_labels(tmp_path: Path, project: Callable[..., Path]) -> None:
    source = project()
    convert(source, tmp_path / "labels.json", only="labels")
    convert(source, tmp_path / "results.json", only="predictions")
    with pytest.raises(FormatError, match="--annotations FILE"):
        convert(tmp_path / "results.json", tmp_path / "out.slp")
    assert convert(tmp_path / "results.json", tmp_path / "out.slp", annotations=tmp_path / "labels.json") == []
    back = read_project(tmp_path / "out.slp")
    (frame,) = back.frames
    assert back.skeleton == SKELETON and (frame.index, [p.track for p in frame.predicted]) == (3, ["ann", None])
    np.testing.assert_array_equal(frame.predicted[0].points, SOME)


def test_the_same_format_again_says_what_is_left_behind(tmp_path: Path, make_project: Callable[..., Path]) -> None:
    def edit(labels: sio.Labels, skeleton: sio.Skeleton) -> None:
        frame, labels.tracks = labels.labeled_frames[0], [sio.Track("ann") for _ in range(3)]
        guess = sio.PredictedInstance.from_numpy(SOME, skeleton=skeleton, score=0.5)
        frame.instances = [*frame.instances, guess, sio.Instance.from_numpy(SOME + 3, skeleton=skeleton)]
        frame.instances[0].from_predicted = guess
        for animal, track in zip(frame.instances[1:], labels.tracks, strict=True):
            animal.track = track
        labels.suggestions = [sio.SuggestionFrame(video=labels.videos[0], frame_idx=9)]
        labels.tracks.append(sio.Track("nobody"))
        frame.instances[1].tracking_score = 0.75
        labels.sessions = [sio.RecordingSession()]

    source = make_project("p.slp", edit=edit)
    tracks, *rest = convert(source, tmp_path / "q.slp")
    assert "2 tracks have the name of another one" in tracks
    said = ["1 tracks have no", "1 animals have a", "1 sessions of se", "1 suggested fram", "1 labels are cor"]
    assert [note.partition(": ")[2][:16] for note in rest] == said
    assert len(convert(source, tmp_path / "labels.json")) == 4, "suggestions and links are SLEAP's own"


def test_coco_again_says_what_is_new(tmp_path: Path, project: Callable[..., Path]) -> None:
    convert(project("tracks", "negative", "predictions", skeleton=PLAIN), tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"][1]["id"] = content["annotations"][0]["image_id"] = content["annotations"][1]["image_id"] = 40
    (tmp_path / "a.json").write_text(json.dumps(content))
    ids, boxes = convert(tmp_path / "a.json", tmp_path / "b.json")
    assert "1 images get other ids" in ids and "2 animals get the box of their keypoints" in boxes
    assert convert(tmp_path / "a.json", tmp_path / "c.slp") == []


@pytest.mark.parametrize("option", ["images", "category", "annotations"])
def test_options_for_coco_are_for_nothing_else(tmp_path: Path, project: Callable[..., Path], option: str) -> None:
    value: Any = "mouse" if option == "category" else tmp_path
    with pytest.raises(FormatError, match=f"in.slp is no COCO file, and --{option} is for these; leave it out"):
        convert(project(), tmp_path / "out.slp", **{option: value})


def test_pictures_travel(tmp_path: Path, video_file: Path, number_of: Callable[[np.ndarray], int]) -> None:
    """Video to package to COCO and back: each labelled frame still shows its number."""
    frames = [LabeledFrame(0, index, [Instance(SOME + index)]) for index in (3, 20)]
    write_slp(tmp_path / "a.slp", SKELETON, [VideoSource((video_file,))], frames, {})
    for one, other in [("a.slp", "b.pkg.slp"), ("b.pkg.slp", "c.json"), ("c.json", "d.pkg.slp"), ("d.pkg.slp", "e.slp")]:
        convert(tmp_path / one, tmp_path / other)
        labels = read_project(tmp_path / other)
        with open_video(labels.videos[0]) as video:
            shown = [number_of(video.read(frame.index)) for frame in labels.labelled_frames]
        assert shown == [3, 20]
        for number, frame in zip(shown, labels.labelled_frames, strict=True):
            np.testing.assert_array_equal(frame.instances[0].points, SOME + number)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@st.composite
def projects(draw: st.DrawFn) -> tuple[Skeleton, int, list[LabeledFrame]]:
    """A skeleton, a number of videos of 12 images each, and frames of 0-30 animals, each track at most once in a frame."""
    keypoints = draw(st.lists(NAMES, min_size=1, max_size=40, unique=True))
    k = len(keypoints)
    pair = st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)).filter(lambda edge: edge[0] != edge[1])
    edges = draw(st.lists(pair, max_size=5, unique=True)) if k > 1 else []
    skeleton = Skeleton(tuple(keypoints), tuple(edges), ((0, 1),) if k > 1 and draw(st.booleans()) else (), draw(NAMES))
    n_videos = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tracks = draw(st.lists(NAMES, max_size=3, unique=True))
    frames = []
    for video, index in draw(st.lists(st.tuples(st.integers(0, n_videos - 1), st.integers(0, 11)), max_size=6, unique=True)):
        frame = LabeledFrame(video, index)
        for track in [*tracks, *[None] * int(rng.integers(0, draw(st.sampled_from([1, 5, 28]))))]:
            points = rng.normal(200, 500, (k, 2))
            points[rng.random(k) < 0.4] = np.nan
            points[rng.integers(k)] = rng.normal(size=2)  # at least one, else the reader drops the instance
            if rng.random() < 0.5:
                frame.instances.append(Instance(points, track))
            else:
                scores = np.where(np.isnan(points[:, 0]), 0, rng.random(k) * 0.9 + 0.1)
                frame.predicted.append(PredictedInstance(points, track, float(np.float32(rng.random())), scores))
        frame.negative = not frame.instances and draw(st.booleans())
        frames.append(frame)
    return skeleton, n_videos, frames


def content(labels: Labels, people: bool = True, model: bool = True, empty: bool = True) -> dict[str, list[str]]:
    """Everything known of each image, by its path, in an order of its own."""
    found = {}
    for frame in labels.frames:
        animals: list[tuple] = [(i.track, i.points.tolist()) for i in frame.instances] if people else []
        if model:
            animals += [(i.track, i.points.tolist(), i.score, i.point_scores.tolist()) for i in frame.predicted]
        if empty and people and frame.negative:
            animals.append(("negative",))
        if animals:
            found[str(labels.videos[frame.video].paths[frame.index])] = sorted(json.dumps(each) for each in animals)
    return found


KINDS = {
    "slp": ("x.slp", {}),
    "labels": ("x.json", {"model": False}),
    "results": ("r.json", {"people": False}),
    "analysis": ("x.analysis.h5", {}),
}


PAIRS = [(one, other) for one in KINDS for other in KINDS if {one, other} != {"labels", "results"}]  # nothing is in both of these


@pytest.mark.parametrize(("first", "second"), PAIRS)
@given(made=projects())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_round_trips(first: str, second: str, made: tuple[Skeleton, int, list[LabeledFrame]]) -> None:
    """SLEAP to one format, to another, and back to SLEAP: what both can hold is unchanged."""
    skeleton, n_videos, frames = made
    if "analysis" in (first, second):  # one video, and a person's animal hides a model's of the same track
        n_videos, frames = 1, [frame for frame in frames if frame.video == 0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        videos = []
        for number in range(n_videos):
            (folder / f"vidéo {number}").mkdir()
            images = [folder / f"vidéo {number}" / f"{index}.png" for index in range(12)]
            for image in images:
                image.write_bytes(b"not read")
            videos.append(VideoSource(tuple(images)))
        start = Labels(skeleton, videos, frames)
        write_slp(folder / "start.slp", skeleton, videos, frames, {})
        here, annotations = folder / "start.slp", None
        if any(frame.negative or frame.instances for frame in frames):
            convert(here, folder / "all.json", only="labels")
        limits: dict[str, bool] = {}
        for step, kind in enumerate([first, second, "slp"]):
            file, limit = KINDS[kind]
            limits |= limit | ({"empty": False} if kind in ("analysis", "results") else {})
            only = {"labels": "labels", "results": "predictions"}.get(kind)
            wanted = content(start, **limits)
            if not wanted:
                return  # nothing to convert
            (folder / str(step)).mkdir()
            there = folder / str(step) / file
            convert(here, there, only=only, annotations=annotations)
            annotations = None
            if kind == "results":
                if not (folder / "all.json").exists():
                    return  # no labels: nothing names the images
                annotations = folder / "all.json"
            here = there
        back = read_project(here)
    assert back.skeleton == skeleton
    assert content(back, **limits) == content(start, **limits)


# --- DeepLabCut ---


def test_deeplabcut_projects(tmp_path: Path, project: Callable[..., Path], video_file: Path) -> None:
    source = project("predictions", "negative", "empty", "tracks")
    convert(source, tmp_path / "nest")
    convert(tmp_path / "nest", tmp_path / "back.slp")
    (frame,) = read_project(tmp_path / "back.slp").labelled_frames
    np.testing.assert_array_equal([i.points for i in frame.instances], [SOME, HALF])
    with open_video(read_project(tmp_path / "back.slp").videos[frame.video]) as video:
        assert video.read(frame.index).shape == (48, 64, 3)
    assert read_project(tmp_path / "nest/config.yaml").skeleton.edges == SKELETON.edges
    with pytest.raises(FormatError, match="exists already"):
        convert(source, tmp_path / "nest")
    notes = convert(project(), tmp_path / "loft")
    assert sum("predictions" in note.lower() for note in notes) == 1 and all(note.endswith(".") for note in notes)


@pytest.mark.parametrize("ending", ["h5", "csv"])
@given(made=projects())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_deeplabcut_predictions(ending: str, made: tuple[Skeleton, int, list[LabeledFrame]]) -> None:
    """To DeepLabCut's predictions and back: points, likelihoods and tracks are the same, to the thousandth that text may keep."""
    skeleton, _, frames = made
    skeleton = Skeleton(tuple(f"keypoint {number}" for number in range(len(skeleton))), skeleton.edges)
    kept = [LabeledFrame(0, f.index, [], [p for p in f.predicted if p.track is not None]) for f in frames if f.video == 0]
    names = {track: f"animal {number}" for number, track in enumerate(sorted({p.track or "" for f in kept for p in f.predicted}))}
    for animal in (p for f in kept for p in f.predicted):
        animal.track = names[animal.track or ""]
    if not names:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "clip.mp4").write_bytes(b"not read")
        write_slp(folder / "a.slp", skeleton, [VideoSource((folder / "clip.mp4",))], kept, {})
        notes = convert(folder / "a.slp", folder / f"clip.{ending}")
        assert ("no edges" in " ".join(notes)) == bool(skeleton.edges) and not any("no track" in note for note in notes)
        convert(folder / f"clip.{ending}", folder / "b.slp")
        back = read_project(folder / "b.slp")
    assert back.skeleton.keypoints == skeleton.keypoints
    start, end = (
        {
            f.index: {p.track: np.column_stack([p.points, p.point_scores]).round(3).tolist() for p in f.predicted}
            for f in each
            if f.predicted
        }
        for each in (kept, back.frames)
    )
    assert json.dumps(start, sort_keys=True) == json.dumps(end, sort_keys=True)


# --- real data ---


def test_honeybee_travels(shared_data: Path, tmp_path: Path) -> None:
    convert(shared_data / "honeybee/honeybee.json", tmp_path / "bees.slp")
    convert(tmp_path / "bees.slp", tmp_path / "bees.json")
    convert(tmp_path / "bees.json", tmp_path / "bees.analysis.h5")
    start, ends = (
        read_project(shared_data / "honeybee/honeybee.json"),
        [read_project(tmp_path / f"bees.{e}") for e in ("slp", "analysis.h5")],
    )
    assert all(content(end) == content(start) for end in ends) and all(end.skeleton == start.skeleton for end in ends)

from __future__ import annotations

import io
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, read_project, write_project
from converters.coco import read_coco, write_coco
from converters.coco_results import is_coco_results, read_coco_results, write_coco_results
from converters.sleap import read_slp
from converters.video import open_video

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "mouse")
SOME = np.arange(6, dtype=float).reshape(3, 2) * 5.25 + 1
HALF = np.array([[3.5, 4.0], [np.nan, np.nan], [7.25, 2.0]])


@pytest.fixture
def make_coco(tmp_path: Path, make_images: Callable[..., list[Path]]) -> Callable[..., Path]:
    """``make_coco(edit)`` writes a COCO file with three images and an animal in the first two; ``edit(content)`` may change it before."""

    def make(edit: Callable[[dict[str, Any]], object] | None = None, name: str = "labels.json") -> Path:
        make_images(tmp_path / "photos", 3)
        content: dict[str, Any] = {
            "images": [{"id": 7 + n, "file_name": f"photos/img{n}.png", "width": 64, "height": 48} for n in range(3)],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 4, "iscrowd": 0, "keypoints": [1, 2, 2, 3.5, 4, 1, 9, 9, 0], "bbox": [0, 0, 9, 9]},
                {"id": 2, "image_id": 8, "category_id": 4, "iscrowd": 0, "keypoints": [5, 6, 2, 7, 8, 2, 9, 10, 2]},
            ],
            "categories": [{"id": 4, "name": "mouse", "keypoints": list(SKELETON.keypoints), "skeleton": [[1, 2], [2, 3]]}],
        }
        if edit is not None:
            edit(content)
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return make


# --- reading ---


def test_read(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    labels = read_coco(make_coco())
    assert labels.skeleton == Skeleton(SKELETON.keypoints, SKELETON.edges, (), "mouse")
    assert labels.videos == [VideoSource(tuple(tmp_path / f"photos/img{n}.png" for n in range(3)))]
    assert [(f.video, f.index, len(f.instances), f.negative) for f in labels.frames] == [(0, 0, 1, False), (0, 1, 1, False)]
    np.testing.assert_array_equal(labels.frames[0].instances[0].points, [[1, 2], [3.5, 4], [np.nan, np.nan]])
    assert labels.notes == [
        f"{tmp_path / 'labels.json'}: 1 keypoints are marked as hidden (visibility 1); they have a position and count as labelled."
    ]


def test_a_pixels_number_is_its_centre(tmp_path: Path) -> None:
    """The brightest pixel's row and column are what COCO and this project both call its position."""
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[5, 17] = 255
    Image.fromarray(image).save(tmp_path / "dot.png")
    animal = Instance(np.array([[17.0, 5.0]]))
    labels = Labels(Skeleton(("dot",)), [VideoSource((tmp_path / "dot.png",))], [LabeledFrame(0, 0, [animal])])
    write_coco(tmp_path / "a.json", labels)
    (annotation,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert annotation["keypoints"] == [17, 5, 2] and annotation["num_keypoints"] == 1
    assert (annotation["bbox"], annotation["area"]) == ([17, 5, 1, 1], 1), "the box of one pixel"
    x, y = read_coco(tmp_path / "a.json").frames[0].instances[0].points[0].astype(int)
    assert image[y, x].tolist() == [255] * 3


def test_ids_of_every_kind(make_coco: Callable[..., Path]) -> None:
    def edit(content: dict[str, Any]) -> None:
        for image, key in zip(content["images"], [2**40 + 1, "0012", "frame b"], strict=True):
            image["id"] = key
        content["annotations"][0] |= {"image_id": float(2**40 + 1), "category_id": "4"}
        content["annotations"][1] |= {"image_id": 12, "category_id": 4.0}
        content["annotations"].append({**content["annotations"][1], "id": "third", "image_id": "frame b"})

    assert [frame.index for frame in read_coco(make_coco(edit)).frames] == [0, 1, 2]


def test_animals_without_keypoints_and_negative_images(make_coco: Callable[..., Path]) -> None:
    def edit(content: dict[str, Any]) -> None:
        plain = {"image_id": 9, "category_id": 4}
        content["annotations"] += [
            {**plain, "id": 3, "iscrowd": 1, "keypoints": [0] * 9, "segmentation": {"counts": [1], "size": [48, 64]}},
            {**plain, "id": 4, "iscrowd": 0, "keypoints": [0] * 9, "num_keypoints": 0},
            {**plain, "id": 5, "bbox": [1, 2, 3, 4]},
            {**plain, "id": 6, "keypoints": [None, None, 0, None, 3, 2, 4, 5, 0]},
            {**plain, "id": 7, "keypoints": [2e9, 3, 2] + [4, -2e9, 2] * 2},  # where no picture reaches
            *({**plain, "image_id": 7, "bbox": box} for box in ([1, 2, 3, 4], [1, 2, 0, 4], [[1]] * 4)),
            {**plain, "id": 8, "image_id": 99},
            {**plain, "id": 9, "category_id": 99},
        ]
        content["images"][1]["negative"] = True  # but it has an animal

    labels = read_coco(make_coco(edit))
    assert [frame.index for frame in labels.labelled_frames] == [0, 1] and not any(frame.negative for frame in labels.frames)
    assert [box.tolist() for frame in labels.frames for box in frame.unposed] == [[0.5, 1.5, 3.5, 5.5]]
    said = "\n".join(labels.notes)
    for sentence in (
        "1 annotations are crowds",
        "6 crowds or animals without keypoints have no box either",
        "7 animals have no keypoints",
        "1 annotations are of other",
        "1 annotations belong to images",
    ):
        assert sentence in said

    def empty(content: dict[str, Any]) -> None:
        content["images"][2]["negative"] = True

    assert [(f.index, f.negative) for f in read_coco(make_coco(empty)).frames] == [(0, False), (1, False), (2, True)]


def test_a_models_annotations(make_coco: Callable[..., Path]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][1] |= {"score": 0.5, "track_id": 3}

    path = make_coco(edit)
    (predicted,) = read_coco(path).frames[1].predicted
    assert (predicted.score, predicted.track) == (0.5, "3")
    assert [(len(f.instances), len(f.predicted)) for f in read_coco(path, predicted=False).frames] == [(1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("skeleton", "edges", "note"),
    [
        ([[1, 2], [2, 3]], ((0, 1), (1, 2)), None),
        ([[0, 1], [1, 2]], ((0, 1), (1, 2)), "counts keypoints from 0"),
        ([[1, 2], [3, 4], [2, 2]], ((0, 1),), "2 pairs of 'skeleton' name no two keypoints"),
        ([], (), None),
        (None, (), None),
    ],
)
def test_edges(make_coco: Callable[..., Path], skeleton: Any, edges: tuple[tuple[int, int], ...], note: str | None) -> None:
    labels = read_coco(make_coco(lambda content: content["categories"][0].update(skeleton=skeleton)))
    assert labels.skeleton.edges == edges
    assert any(note in each for each in labels.notes) if note else not any("'skeleton'" in each for each in labels.notes)


def test_categories(make_coco: Callable[..., Path]) -> None:
    def more(keypoints: list[str], used: bool) -> Callable[[dict[str, Any]], None]:
        def edit(content: dict[str, Any]) -> None:
            content["categories"] += [{"id": 5, "name": "rat", "keypoints": keypoints, "skeleton": [[1, 3]]}, {"id": 6, "name": "box"}]
            if used:
                content["annotations"][1] |= {"category_id": 5, "keypoints": [5, 6, 2] * len(keypoints)}

        return edit

    merged = read_coco(make_coco(more(list(SKELETON.keypoints), used=True)))
    assert len(merged.frames) == 2 and merged.skeleton.edges == ((0, 1), (1, 2), (0, 2))
    unused = read_coco(make_coco(more(["a", "b", "c", "d"], used=False)))
    assert unused.skeleton.keypoints == SKELETON.keypoints
    path = make_coco(more(["a", "b", "c", "d"], used=True))
    with pytest.raises(
        FormatError, match="several categories with different keypoints; choose one of 'mouse', 'rat' .smp-convert: --category"
    ):
        read_coco(path)
    rat = read_coco(path, category="rat")
    assert rat.skeleton.keypoints == ("a", "b", "c", "d") and [frame.index for frame in rat.frames] == [1]
    assert any("1 annotations are of other categories" in note for note in rat.notes)
    with pytest.raises(FormatError, match="no single category 'cat' with keypoints; choose one of 'mouse', 'rat'"):
        read_coco(path, category="cat")


def test_images_are_found(make_coco: Callable[..., Path], tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    make_images(tmp_path / "elsewhere/photos", 3)
    written = {"bare.json": "img{}.png", "windows.json": r"C:\data\photos\img{}.png", "far.json": "/far/away/photos/img{}.png"}
    for name, text in written.items():

        def edit(content: dict[str, Any], text: str = text) -> None:
            for number, image in enumerate(content["images"]):
                image["file_name"] = text.format(number)

        path = make_coco(edit, name)
        with pytest.raises(
            FormatError, match=r"names the image .*img0.png \(and 2 more\), which is not found; give its folder with --video-root"
        ):
            read_coco(path)
        photos, root = tmp_path / "photos", tmp_path / "elsewhere"
        assert read_coco(path, images=photos).videos[0].paths[2] == photos / "img2.png"
        assert len(read_coco(path, require_videos=False).videos[0].paths) == 3
        if name != "bare.json":
            assert read_coco(path, video_root=root).videos[0].paths[2] == root / "photos/img2.png"
            assert read_project(path, images=photos).videos == read_coco(path, images=photos).videos


def test_one_file_for_two_images(make_coco: Callable[..., Path]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"], content["images"][1]["file_name"] = "/a/x.png", "/b/x.png"

    path = make_coco(edit)
    Image.new("RGB", (8, 8)).save(path.with_name("x.png"))
    with pytest.raises(FormatError, match="different images for which only one file is found"):
        read_coco(path)

    def same(content: dict[str, Any]) -> None:
        content["images"][1]["file_name"] = content["images"][0]["file_name"]

    labels = read_coco(make_coco(same))
    assert len(labels.videos[0].paths) == 2 and [len(frame.instances) for frame in labels.frames] == [2]


def test_no_images(make_coco: Callable[..., Path]) -> None:
    labels = read_coco(make_coco(lambda content: content.update(images=[], annotations=[])))
    assert labels.videos == [] and labels.frames == []


def set_in(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """Put the last of ``keys`` where the others lead."""

    def edit(content: Any) -> None:
        for key in keys[:-2]:
            content = content[key]
        content[keys[-2]] = keys[-1]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_in("images", None), "'images' must be a list of objects"),
        (set_in("annotations", {"a": 1}), "'annotations' must be a list of objects"),
        (set_in("categories", ["mouse"]), "'categories' must be a list of objects"),
        (set_in("categories", []), "no category with keypoints"),
        (set_in("categories", 0, "keypoints", []), "no category with keypoints"),
        (set_in("categories", 0, "keypoints", "nose"), "'keypoints' must be a list of names"),
        (set_in("categories", 0, "keypoints", ["a", "a", "b"]), "names a keypoint twice"),
        (set_in("categories", 0, "skeleton", [[1, 2, 3]]), "'skeleton' of category 'mouse' must be a list of pairs"),
        (set_in("categories", 0, "skeleton", 5), "'skeleton' of category 'mouse' must be a list of pairs"),
        (set_in("categories", 0, "id", None), "'id' is None"),
        (set_in("images", 0, "id", 1.5), "'id' is 1.5"),
        (set_in("images", 0, "id", True), "'id' is True"),
        (set_in("images", 0, "id", 8), "two images have the id 8"),
        (set_in("images", 1, "file_name", 3), "'file_name' is 3"),
        (set_in("annotations", 0, "image_id", [1]), "annotation 1: 'image_id' is"),
        (set_in("annotations", 0, "keypoints", [1, 2, 2]), "annotation 1: 'keypoints' has 3 numbers; 9 are needed"),
        (set_in("annotations", 0, "keypoints", [1, 2]), "'keypoints' must be a flat list"),
        (set_in("annotations", 0, "keypoints", [[1, 2, 2]] * 3), "'keypoints' has 3 numbers|flat list"),
        (set_in("annotations", 0, "keypoints", ["x"] * 9), "'keypoints' must be a flat list"),
        (set_in("annotations", 0, "keypoints", {"nose": 3}), "'keypoints' must be a flat list"),
        (set_in("annotations", 0, "keypoints", 7), "'keypoints' must be a flat list"),
        (set_in("annotations", 0, "keypoints", [10**400] * 9), "'keypoints' must be a flat list"),
        (set_in("annotations", 0, "score", "high"), "'score' is 'high'"),
        (set_in("annotations", 0, "track", [1]), "'track' is"),
    ],
)
def test_bad_files_are_one_sentence(make_coco: Callable[..., Path], edit: Callable[[dict[str, Any]], None], message: str) -> None:
    path = make_coco(edit)
    with pytest.raises(FormatError, match=message) as caught:
        read_project(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON file, or is damaged"),
        (b"\xff\xfe\x00", "is no JSON file, or is damaged"),
        (b"[" * 100_000, "is no JSON file, or is damaged"),
        (b"3", "is no COCO file"),
        (b"[]", "is a list, as COCO results are"),
        (b"{}", "'annotations' must be a list of objects"),
    ],
)
def test_not_coco(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_project(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_reads_or_is_one_sentence(data: st.DataObject) -> None:
    content: Any = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": "8", "file_name": "b.png", "negative": True}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 4, "iscrowd": 0, "keypoints": [1, 2, 2, 3, 4, 1], "score": 1, "track": "a"}
        ],
        "categories": [{"id": 4, "name": "mouse", "keypoints": ["a", "b"], "skeleton": [[1, 2]], "symmetries": [[1, 2]]}],
    }
    place = content
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(content))
        try:
            labels = read_coco(path, require_videos=False)
            write_coco(path.with_name("b.json"), labels)
        except FormatError as error:
            assert "\n" not in str(error) and "a.json" in str(error)


# --- writing ---


def project(videos: list[VideoSource]) -> Labels:
    frames = [
        LabeledFrame(0, 0, [Instance(SOME, "ann"), Instance(HALF)], [PredictedInstance(SOME)]),
        LabeledFrame(0, 2, negative=True),
        LabeledFrame(0, 3),
    ]
    return Labels(SKELETON, videos, frames)


def test_write_and_read_back(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    images = make_images(tmp_path / "photös", 5)
    path = tmp_path / "labels.json"
    notes = write_coco(path, project([VideoSource(tuple(images))]))
    labels = read_coco(path)
    assert labels.skeleton == SKELETON and labels.videos == [VideoSource(tuple(images))] and labels.notes == []
    assert [(f.index, len(f.instances), f.negative) for f in labels.frames] == [(0, 2, False), (2, 0, True)]
    assert [i.track for i in labels.frames[0].instances] == ["ann", None]
    np.testing.assert_array_equal([i.points for i in labels.frames[0].instances], [SOME, HALF])
    for number, word in enumerate(["'track'", "'symmetries'", "'negative' marks 1", "1 predicted animals are left out"]):
        assert word in notes[number] and notes[number].startswith(str(path))
    written = json.loads(path.read_text())
    assert [image["file_name"] for image in written["images"]] == [f"photös/img{n}.png" for n in range(5)]
    assert {(image["width"], image["height"]) for image in written["images"]} == {(64, 48)}
    assert all(type(v) is int for a in written["annotations"] for v in a["keypoints"][2::3])


def test_predictions_are_written_among_the_labels_if_asked_for(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    made = project([VideoSource(tuple(make_images(tmp_path, 5)))])
    sure, unsure = PredictedInstance(SOME, "bob", 0.75, np.array([0.5, 0.0, 1.0])), PredictedInstance(np.full_like(SOME, np.nan))
    made.frames[0].predicted, made.frames[2].predicted = [sure], [replace(sure, track=None), unsure]
    assert not any("left out" in note for note in write_project(tmp_path / "labels.json", made, predicted=True))
    back = read_project(tmp_path / "labels.json")
    assert [(f.index, len(f.instances), len(f.predicted), f.negative) for f in back.frames] == [(0, 2, 1, 0), (2, 0, 0, 1), (3, 0, 1, 0)]
    for animal, track in zip((back.frames[0].predicted[0], back.frames[2].predicted[0]), ("bob", None), strict=True):
        np.testing.assert_array_equal(animal.points, SOME)
        np.testing.assert_allclose(animal.point_scores, [0.5, 0, 1], atol=2e-6)
        assert (animal.score, animal.track) == (0.75, track)
    assert back.notes == []


def test_pycocotools_loads_it(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    videos = [VideoSource(tuple(make_images(tmp_path / "photos", 5)))]
    labels = project(videos)
    write_coco(tmp_path / "labels.json", labels)
    found = [LabeledFrame(0, 0, [], [PredictedInstance(SOME, score=0.9), PredictedInstance(np.nan_to_num(HALF), score=0.8)])]
    assert write_coco_results(tmp_path / "results.json", SKELETON, videos, found, {}) == 1
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "labels.json"))
        results = truth.loadRes(str(tmp_path / "results.json"))
        evaluation = COCOeval(truth, results, "keypoints")
        evaluation.params.kpt_oks_sigmas = np.full(3, 0.1)
        evaluation.params.imgIds = [0]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert truth.getImgIds() == [0, 1, 2, 3, 4] and len(truth.anns) == 2
    assert truth.loadCats(1)[0]["skeleton"] == [[1, 2], [2, 3]]
    assert evaluation.stats[0] == pytest.approx(1), "what was labelled is found, where it was labelled"


def test_frames_of_videos_become_images(
    tmp_path: Path, video_file: Path, make_video: Callable[..., Path], number_of: Callable[[np.ndarray], int]
) -> None:
    (tmp_path / "other").mkdir()
    second = make_video(tmp_path / "other" / video_file.name, 10)
    labels = project([VideoSource((video_file,)), VideoSource((second,)), VideoSource((tmp_path / "not read.mp4",))])
    labels.frames.append(LabeledFrame(1, 9, [Instance(HALF)]))
    path = tmp_path / "labels.json"
    assert f"written as images into {tmp_path / 'labels_images'}" in write_coco(path, labels)[0]
    back = read_coco(path)
    with open_video(back.videos[0]) as video:
        assert [number_of(video.read(frame.index)) for frame in back.frames] == [0, 2, 9]
    written = json.loads(path.read_text())
    assert [(i["id"], i["file_name"]) for i in written["images"]] == [
        (0, "labels_images/0_clip/img000000.png"),
        (2, "labels_images/0_clip/img000002.png"),
        (10**9 + 9, "labels_images/1_clip/img000009.png"),
    ]
    with pytest.raises(FormatError, match="labels_images exists, and the images of the labelled frames go there; remove it"):
        write_coco(path, labels)
    assert json.loads(path.read_text()) == written


def test_whole_or_not_at_all(tmp_path: Path, video_file: Path, make_images: Callable[..., list[Path]]) -> None:
    path = tmp_path / "labels.json"
    path.write_text("before")
    labels = project([VideoSource((video_file,))])
    labels.frames.append(LabeledFrame(0, 999, [Instance(SOME)]))
    with pytest.raises(FormatError, match="frame 999 was asked for"):
        write_coco(path, labels)

    def failing() -> Iterator[LabeledFrame]:
        yield LabeledFrame(0, 0, [], [PredictedInstance(SOME)])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_coco_results(path, SKELETON, labels.videos, failing(), {})
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == ["labels.json"]
    (image,) = make_images(tmp_path / "photos", 1)
    with pytest.raises(FormatError, match="is one of the inputs and would be overwritten"):
        write_coco(image, Labels(SKELETON, [VideoSource((image,))]))
    path.write_text("[]")
    with pytest.raises(FormatError, match="is one of the inputs and would be overwritten"):
        write_coco_results(path, SKELETON, [], [], {}, [path])


# --- results ---


def test_results_of_coco_labels(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    annotations = make_coco(lambda content: content["images"][1].update(id=2**40))
    labels = read_coco(annotations)
    frames = [
        LabeledFrame(0, 1, [], [PredictedInstance(HALF, "ann", 0.75, np.array([0.5, 0, 0])), PredictedInstance(SOME, score=0.5)]),
        LabeledFrame(0, 2),
    ]
    path = tmp_path / "results.json"
    assert write_coco_results(path, labels.skeleton, labels.videos, frames, {}, [annotations]) == 2
    written = json.loads(path.read_text())
    assert {(each["image_id"], each["category_id"]) for each in written} == {(2**40, 4)}
    back = read_coco_results(path, annotations)
    assert back.path == path and back.skeleton == labels.skeleton and back.videos == labels.videos
    assert [(frame.index, len(frame.instances)) for frame in back.frames] == [(1, 0)]
    first, second = back.frames[0].predicted
    assert (first.track, first.score) == ("ann", 0.75) and second.track is None
    np.testing.assert_array_equal(first.points, HALF)
    np.testing.assert_allclose(first.point_scores, [0.5, 0, 0], atol=1e-5)
    assert read_project(path, annotations=annotations).frames[0].predicted[1].score == 0.5


@pytest.mark.parametrize("folder", ["./photos/", "../elsewhere/photos/", "/another/computer/photos/", "C:\\\\another\\\\photos\\\\"])
def test_results_name_images_that_lie_elsewhere_than_the_labels_say(make_coco: Callable[..., Path], tmp_path: Path, folder: str) -> None:
    def move(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = folder + image["file_name"].removeprefix("photos/")

    annotations, path = make_coco(move), tmp_path / "results.json"
    labels = read_coco(annotations, images=tmp_path / "photos")
    assert all(file.exists() for file in labels.videos[0].paths)
    write_coco_results(path, labels.skeleton, labels.videos, [LabeledFrame(0, 1, [], [PredictedInstance(SOME)])], {}, [annotations])
    assert [each["image_id"] for each in json.loads(path.read_text())] == [8]


def test_images_that_lie_elsewhere_may_be_of_two_labels_files(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    def move(content: dict[str, Any], day: int) -> None:
        for image in content["images"]:
            image |= {"id": image["id"] + 10 * day, "file_name": f"D:\\day{day}\\{Path(image['file_name']).name}"}

    several = [make_coco(lambda content, day=day: move(content, day), f"day{day}.json") for day in (1, 2)]
    videos, frames = read_coco(several[1], images=tmp_path / "photos").videos, [LabeledFrame(0, 1)]
    write_coco_results(tmp_path / "results.json", SKELETON, videos, frames, {}, several[1:])
    with pytest.raises(FormatError, match=r"is no image of .*day1.json, .*day2.json"):
        write_coco_results(tmp_path / "results.json", SKELETON, videos, frames, {}, several)


def test_results_that_do_not_fit(make_coco: Callable[..., Path], tmp_path: Path, video_file: Path) -> None:
    annotations, path = make_coco(), tmp_path / "results.json"
    frame = LabeledFrame(0, 1, [], [PredictedInstance(SOME)])
    for source in (VideoSource((video_file,)), VideoSource((tmp_path / "a.png", tmp_path / "b.png"))):
        with pytest.raises(FormatError, match=r"is no image of .*labels.json; write its predictions to another file"):
            write_coco_results(path, SKELETON, [source], [frame], {}, [annotations])
    path.write_text(json.dumps([{"image_id": 7, "category_id": 4, "keypoints": [1, 2, 1] * 3}]))
    with pytest.raises(FormatError, match="result 0 has no 'score'"):
        read_coco_results(path, annotations)
    with pytest.raises(FormatError, match="is no list of COCO results"):
        read_coco_results(annotations, annotations)
    path.write_text(json.dumps([3]))
    with pytest.raises(FormatError, match="'results' must be a list of objects"):
        read_coco_results(path, annotations)
    path.write_text(json.dumps([{"image_id": 99, "category_id": 4, "keypoints": [1, 2, 1] * 3, "score": 1}]))
    with pytest.raises(FormatError, match="none of its 1 results has keypoints and belongs to an image and a category of .*labels.json"):
        read_coco_results(path, annotations)
    assert is_coco_results(path) and not is_coco_results(annotations) and not is_coco_results(video_file)


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, video_file: Path) -> None:
    def peak(count: int) -> int:
        frames = (LabeledFrame(0, index, [], [PredictedInstance(SOME, "a", 0.5, np.ones(3))]) for index in range(count))
        tracemalloc.start()
        write_coco_results(tmp_path / "p.json", SKELETON, [VideoSource((video_file,))], frames, {})
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)
    assert peak(2000) < peak(500) * 1.2


# --- real data ---


def test_honeybee_is_the_same_as_coco_and_as_sleap(shared_data: Path) -> None:
    coco = read_coco(shared_data / "honeybee/honeybee.json")
    assert coco.skeleton.keypoints == ("Tail", "Head", "Thorax", "RAnt", "LAnt") and len(coco.frames) == 135
    frames = {coco.videos[0].paths[frame.index]: frame for frame in coco.frames}
    count = 0
    for name in ("train105.slp", "val30.slp"):
        labels = read_slp(shared_data / "honeybee" / name)
        assert labels.skeleton.edges == coco.skeleton.edges
        for frame in labels.labelled_frames:
            other = frames[labels.videos[frame.video].paths[frame.index]]
            np.testing.assert_array_equal([i.points for i in frame.instances], [i.points for i in other.instances])
            count += len(frame.instances)
    assert count == 1614


def test_honeybee_written_again(shared_data: Path, tmp_path: Path) -> None:
    labels = read_coco(shared_data / "honeybee/honeybee.json")
    write_coco(tmp_path / "again.json", labels)
    again = read_coco(tmp_path / "again.json")
    assert again.videos == labels.videos and again.skeleton == labels.skeleton
    for frame, other in zip(again.frames, labels.frames, strict=True):
        np.testing.assert_array_equal([i.points for i in frame.instances], [i.points for i in other.instances])

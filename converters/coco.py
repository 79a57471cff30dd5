"""COCO keypoint labels (``.json``), read and written; ``coco_results.py`` has the predictions.

Pixels: a COCO keypoint is "0-indexed", the number of a pixel, so whole numbers are centres of pixels and (0, 0) is the centre of the
top-left one, as in this project: nothing is shifted. (Boxes and masks of COCO count from the image's corner; detectron2's reader adds 0.5
to keypoints, and to nothing else, for that reason.) A box written here is that of the pixels its keypoints lie on.

Traps of the format:

* ``skeleton`` counts keypoints from 1, but some programs write it from 0; ids may be strings, floats, or larger than 32 bits;
* visibility 0 is not labelled, and its position means nothing; 1 is hidden but labelled; 2 is visible. Programs write null for 0, too;
* animals may have a box and no keypoints, or be a crowd: nothing to learn from, but no background either (`LabeledFrame.unposed`);
* an image without annotations may be empty or not labelled yet: only the field ``negative`` of this project tells, else it is not labelled;
* file names may be relative to the json file, to a folder that it does not name, or absolute on another computer.

Extra fields, which other programs ignore: ``track`` (a name) of an annotation or result, ``negative`` (true) of an image, ``symmetries``
(pairs, counted from 1) of a category.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import Finder, written_whole
from converters.labels import (
    MOST_FRAMES,
    MOST_PIXELS,
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    files_of,
)
from converters.video import open_video

Id = int | str

VIDEO_STEP = MOST_FRAMES  # between the image ids of two videos
_LEAST_SCORE = 1e-6  # of a keypoint; 0 would say that it is absent


def read_coco(
    path: Path,
    images: Path | None = None,
    video_root: Path | None = None,
    predicted: bool = True,
    require_videos: bool = True,
    category: str | None = None,
) -> Labels:
    """Read COCO keypoint labels; all images become one image sequence, in the order of the file.

    Positions are taken as they are (see the top of this module); a keypoint is labelled where its visibility is above 0. Annotations with a
    ``score`` are a model's and go to ``predicted``. Categories with the same keypoints are read as one.

    Args:
        path: the json file.
        images: folder that file names are relative to, looked at before the json file's own.
        video_root: folder to look for images in that are found in neither.
        predicted: read a model's annotations too.
        require_videos: raise for images that are not found; otherwise they keep the path the file names.
        category: the name of the category to read; needed only where several have different keypoints.

    Raises:
        FormatError: not COCO keypoints, damaged, several skeletons and no ``category``, or an image that is not found.
    """
    path = Path(path).absolute()
    data = load_json(path)
    if isinstance(data, list):
        raise FormatError(
            f"{path} is a list, as COCO results are, and names no keypoints; name its labels file (smp-convert: with --annotations FILE)."
        )
    found = entries(path, data, "annotations")
    labels = read_labels(path, data, path, found, category, images=images, video_root=video_root, required=require_videos)
    if not predicted:
        for frame in labels.frames:
            frame.predicted = []
    return labels


def image_paths(path: Path, names: Sequence[str], images: Path | None, video_root: Path | None, required: bool) -> tuple[Path, ...]:
    """Where the images that ``path`` names lie; FormatError for one that is required and not found, or two that are one file."""
    if images is not None and not Path(images).is_dir():
        what = "is a file" if Path(images).exists() else "does not exist"
        raise FormatError(f"The folder given for the images, {images}, {what}; check --images, which takes a folder.")
    folders = [path.parent] if images is None else [Path(images), path.parent]
    finders = [Finder(folder, video_root) for folder in folders]
    found = [next((file for finder in finders if (file := finder.find(name)) is not None), None) for name in names]
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing and required:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FormatError(f"{path} names the image {missing[0]}{more}, which is not found; give its folder with --video-root FOLDER.")
    paths = tuple(file or finders[0].expected(name) for name, file in zip(names, found, strict=True))
    twice = next((file for file, count in Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise FormatError(
            f"{path} names different images for which only one file is found, {twice}; put the folders that it names beside it "
            "(smp-train, smp-convert: or give --images FOLDER)."
        )
    return paths


def read_labels(path: Path, data: Any, source: Path, annotations: list[dict[str, Any]], category: str | None, **where: Any) -> Labels:
    """Labels from the images and categories of ``data``, which ``path`` holds, and the annotations that ``source`` holds.

    ``where`` to look for images: ``images``, ``video_root`` and ``required`` as for `image_paths`.
    """
    if not isinstance(data, dict):
        raise FormatError(f"{path} is no COCO file: it must hold an object with 'images', 'annotations' and 'categories'.")
    notes: list[str] = []
    names, places, negative = read_images(path, data)
    paths = image_paths(path, names, **where)
    skeleton, categories = _read_categories(path, data, annotations, category, notes)
    frames = {place: LabeledFrame(0, place, negative=True) for place in negative}
    counts: Counter[str] = Counter()
    unposed: dict[int, list[np.ndarray]] = {}
    for number, entry in enumerate(annotations):
        name = f"{source}: annotation {entry.get('id', f'number {number}')}"
        if as_id(name, entry, "category_id") not in categories:
            counts["category"] += 1
            continue
        place = places.get(as_id(name, entry, "image_id"))
        if place is None:
            counts["image"] += 1
            continue
        instance = _read_instance(name, entry, skeleton, counts)
        if instance is None:
            box = _box(entry)
            counts["unplaced"] += box is None
            unposed.setdefault(place, []).extend([] if box is None else [box])
            continue
        counts["boxes"] += any(entry.get(field) for field in ("bbox", "area", "segmentation"))
        frame = frames.setdefault(place, LabeledFrame(0, place))
        if isinstance(instance, PredictedInstance):
            frame.predicted.append(instance)
        else:
            frame.instances.append(instance)
            frame.negative = False
    for place, frame in frames.items():
        frame.unposed = unposed.get(place, [])
    notes += _said(source, counts, _NOTES)
    counts["ids"] = sum(key != place for key, place in places.items())
    sizes = _stated_sizes(data)
    videos = [VideoSource(paths, sizes=tuple(sizes[name] for name in names))] if paths else []
    return Labels(skeleton, videos, [frames[place] for place in sorted(frames)], path, notes, _said(source, counts, _LEFT_BEHIND))


_NOTES = {
    "occluded": "{} keypoints are marked as hidden (visibility 1); they have a position and count as labelled.",
    "crowd": "{} annotations are crowds without keypoints; they are left out, and smp-train takes nothing in their boxes for background.",
    "bare": "{} animals have no keypoints; they are left out, and smp-train takes nothing in their boxes for background.",
    "unplaced": "{} crowds or animals without keypoints have no box either; where labels count as complete, they are background.",
    "category": "{} annotations are of other categories and left out.",
    "image": "{} annotations belong to images that the file does not list, and are left out.",
}
_LEFT_BEHIND = {
    "ids": "{} images get other ids, and so do their animals; results that name the ids of here need this file.",
    "boxes": "{} animals get the box of their keypoints and its area, and no mask, whatever they have here.",
    "occluded": "{} hidden keypoints (visibility 1) become visible ones (2).",
}


def _said(path: Path, counts: Counter[str], sentences: Mapping[str, str]) -> list[str]:
    return [f"{path}: {sentence.format(counts[key])}" for key, sentence in sentences.items() if counts[key]]


def load_json(path: Path) -> Any:
    """What a json file holds; FormatError if it is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise FormatError(f"{path} cannot be opened ({error.strerror}); check the path, and that you may read it.") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON file, or is damaged ({error}); export it again.") from error


def entries(path: Path, data: Any, name: str) -> list[dict[str, Any]]:
    """``data[name]``, or FormatError if that is no list of objects."""
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise FormatError(f"{path} is no COCO file: '{name}' must be a list of objects; export it again as COCO keypoints.")
    return found


def as_id(where: str, entry: dict[str, Any], name: str) -> Id:
    """An id as an int of any size where it is one, however it is written; other texts as they are."""
    value = entry.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 4000 else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise FormatError(f"{where}: '{name}' is {value!r:.40}; it must be a whole number or a text.")
    return value


def read_images(path: Path, data: dict[str, Any]) -> tuple[list[str], dict[Id, int], set[int]]:
    """File names, each once; by image id the place among them; the places of images that are marked as empty."""
    numbers: dict[str, int] = {}
    places: dict[Id, int] = {}
    negative = set()
    for number, entry in enumerate(entries(path, data, "images")):
        where = f"{path}: image number {number}"
        key, name = as_id(where, entry, "id"), entry.get("file_name")
        if not isinstance(name, str) or not name or "\0" in name:
            raise FormatError(f"{where}: 'file_name' is {name!r:.40}; it must name an image file.")
        if key in places:
            raise FormatError(f"{path}: two images have the id {key}; give each its own.")
        places[key] = numbers.setdefault(name, len(numbers))
        if entry.get("negative") is True:
            negative.add(places[key])
    return list(numbers), places, negative


def _stated_sizes(data: dict[str, Any]) -> dict[str, tuple[int, int] | None]:
    """(height, width) of each file name's image, None where the file does not say."""
    sizes: dict[str, tuple[int, int] | None] = {}
    for entry in data["images"]:
        height, width = (entry.get(side) for side in ("height", "width"))
        known = all(isinstance(side, (int, float)) and 0 < side < MOST_PIXELS for side in (height, width))
        sizes.setdefault(entry["file_name"], (int(height), int(width)) if known else None)
    return sizes


def _read_categories(
    path: Path, data: dict[str, Any], annotations: list[dict[str, Any]], name: str | None, notes: list[str]
) -> tuple[Skeleton, set[Id]]:
    """The skeleton, and the ids of the categories that have it."""
    found: dict[Id, dict[str, Any]] = {}
    for number, entry in enumerate(entries(path, data, "categories")):
        where = f"{path}: category number {number}"
        keypoints = entry.get("keypoints") or []
        if not isinstance(keypoints, list) or not all(isinstance(each, str) for each in keypoints):
            raise FormatError(f"{where}: 'keypoints' must be a list of names.")
        if keypoints:
            found[as_id(where, entry, "id")] = entry
    if not found:
        raise FormatError(f"{path} has no category with keypoints: 'categories' must name them; export it again as COCO keypoints.")
    chosen = found
    if name is not None:
        chosen = {key: entry for key, entry in found.items() if entry.get("name") == name}
    elif len({tuple(entry["keypoints"]) for entry in found.values()}) > 1:
        used = {as_id(str(path), entry, "category_id") for entry in annotations}
        chosen = {key: entry for key, entry in found.items() if key in used}
    if len({tuple(entry["keypoints"]) for entry in chosen.values()}) != 1:
        known = ", ".join(repr(entry.get("name")) for entry in found.values())
        asked = "has several categories with different keypoints" if name is None else f"has no single category {name!r} with keypoints"
        raise FormatError(
            f"{path} {asked}; choose one of {known} (smp-convert: --category NAME; smp-train has it, too; for others convert first)."
        )
    first = next(iter(chosen.values()))
    edges = [edge for entry in chosen.values() for edge in _pairs(path, entry, "skeleton", notes)]
    symmetries = _pairs(path, first, "symmetries", notes)
    title = first.get("name") if isinstance(first.get("name"), str) else None
    try:
        return Skeleton(tuple(first["keypoints"]), tuple(dict.fromkeys(edges)), tuple(dict.fromkeys(symmetries)), title), set(chosen)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _pairs(path: Path, category: dict[str, Any], name: str, notes: list[str]) -> list[tuple[int, int]]:
    """Pairs of keypoints, counted from 0 here and from 1 in the file, unless one is 0 there."""
    pairs = category.get(name) or []
    count = len(category["keypoints"])
    try:
        read = [(int(a), int(b)) for a, b in pairs]
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{path}: '{name}' of category {category.get('name')!r} must be a list of pairs of numbers.") from error
    first = 0 if any(0 in pair for pair in read) else 1
    if not first:
        notes.append(f"{path}: '{name}' counts keypoints from 0, where COCO counts from 1; it is read as meant.")
    kept = [(a - first, b - first) for a, b in read if first <= a < count + first and first <= b < count + first and a != b]
    if len(kept) < len(read):
        notes.append(f"{path}: {len(read) - len(kept)} pairs of '{name}' name no two keypoints, and are left out.")
    return kept


def _read_instance(where: str, entry: dict[str, Any], skeleton: Skeleton, counts: Counter[str]) -> Instance | None:
    if entry.get("iscrowd") and not _any_keypoint(entry):
        counts["crowd"] += 1
        return None
    values = entry.get("keypoints") or []
    try:
        table = np.array(values, dtype=np.float64).reshape(-1, 3)  # null becomes NaN
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: 'keypoints' must be a flat list of numbers x, y, visibility.") from error
    if len(values) not in (0, 3 * len(skeleton)):
        raise FormatError(f"{where}: 'keypoints' has {len(values)} numbers; {3 * len(skeleton)} are needed, 3 for each keypoint.")
    animal = Instance(np.where(table[:, 2:] > 0, table[:, :2], np.nan))
    if not (labelled := animal.labelled).any():
        counts["bare"] += 1
        return None
    track = entry.get("track", entry.get("track_id"))
    name = None if track is None else track if isinstance(track, str) else str(as_id(where, {"track": track}, "track"))
    if "score" not in entry:
        counts["occluded"] += int((table[labelled, 2] == 1).sum())
        return replace(animal, track=name)
    try:
        score = float(entry["score"])
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: 'score' is {entry['score']!r:.40}; it must be a number.") from error
    return PredictedInstance(animal.points, name, score, np.where(labelled, np.clip(table[:, 2], 0, 1), 0.0))


def _box(entry: dict[str, Any]) -> np.ndarray | None:
    """Left, top, right and bottom, which COCO counts from the picture's corner; None where there is none."""
    try:
        values = np.array(entry.get("bbox"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if values.shape != (4,) or not (np.abs(values) < MOST_PIXELS).all() or not (values[2:] > 0).all():
        return None
    return np.concatenate((values[:2], values[:2] + values[2:])) - 0.5


def _any_keypoint(entry: dict[str, Any]) -> bool:
    values = entry.get("keypoints")
    return isinstance(values, list) and any(values[2::3])


# --- writing ---


def write_coco(path: Path, labels: Labels, inputs: Iterable[Path] = (), predicted: bool = False) -> list[str]:
    """Write a person's labels as COCO keypoints, whole or not at all.

    Images are referred to: relative to the json file where they lie below its folder, else by absolute path; those without labels are
    listed, too. Labelled frames of videos and packages are written as PNG into the new folder ``NAME_images`` beside ``NAME.json``. An
    image's id is its frame number, plus 10^9 times the number of its video, as in `write_coco_results`.

    Args:
        path: the json file; an existing one is replaced.
        labels: what to write; every labelled point gets visibility 2.
        inputs: further files that must not be overwritten; images and videos never are.
        predicted: write a model's animals too, among the others and with a ``score``, as `read_coco` reads them. Other programs may take
            them for labels.

    Returns:
        What COCO cannot hold, a sentence each.

    Raises:
        FormatError: ``path`` is an input or not writable, the folder for images exists, or a video cannot be read.
    """

    def animals(frame: LabeledFrame) -> list[Instance]:
        return [*frame.instances, *(frame.predicted if predicted else [])]

    path = Path(path).absolute()
    frames: dict[tuple[int, int], list[LabeledFrame]] = {}
    for frame in labels.frames:
        if frame.negative or any(i.labelled.any() for i in animals(frame)):
            frames.setdefault((frame.video, frame.index), []).append(frame)
    folder = path.with_name(f"{path.stem}_images")
    wanted = [number for number, video in enumerate(labels.videos) if video.kind != "images" and any(v == number for v, _ in frames)]
    with written_whole(path, [*files_of(labels.videos), *inputs]) as temporary, _new_folder(folder, bool(wanted)) as extracted:
        images = []
        for number, video in enumerate(labels.videos):
            indices = sorted(index for v, index in frames if v == number)
            if video.kind == "images":
                listed = _listed(video, path.parent)
            else:
                listed = _extracted(video, indices, extracted, f"{folder.name}/{_title(number, labels.videos)}")
            for index, image in listed:
                empty = {"negative": True} if any(f.negative for f in frames.get((number, index), [])) else {}
                images.append({"id": number * VIDEO_STEP + index, **image, **empty})
        written = [(v * VIDEO_STEP + i, one) for (v, i), some in sorted(frames.items()) for f in some for one in animals(f)]
        annotations = [_annotation(*each) for each in written if each[1].labelled.any()]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number  # from 1: pycocotools takes 0 for "no animal"
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": [_category(labels.skeleton)]}
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, ensure_ascii=False))  # json.dump is ten times slower
    left_out = 0 if predicted else sum(len(frame.predicted) for frame in labels.frames)
    return _lost(path, labels, folder if wanted else None, sum("width" not in image for image in images), left_out)


def _lost(path: Path, labels: Labels, folder: Path | None, unseen: int, predictions: int) -> list[str]:
    negative = sum(frame.negative for frame in labels.frames)
    said = {
        f"the labelled frames were written as images into {folder}, for COCO knows no videos.": folder is not None,
        "COCO has no tracks; they are in the extra field 'track', which other programs ignore.": any(
            i.track for f in labels.frames for i in f.instances
        ),
        "COCO has no symmetries; they are in the extra field 'symmetries', which other programs ignore.": labels.skeleton.symmetries,
        f"COCO cannot say that an image is empty; the extra field 'negative' marks {negative}, other programs ignore it.": negative,
        f"{predictions} predicted animals are left out: COCO keeps labels and predictions (results) in two files.": predictions,
        f"{unseen} images are not found, so the file does not hold their width and height.": unseen,
    }
    return [f"{path}: {sentence}" for sentence, there in said.items() if there]


@contextmanager
def _new_folder(folder: Path, wanted: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well, and is removed otherwise."""
    if not wanted:
        yield folder
        return
    if folder.exists():
        raise FormatError(f"{folder} exists, and the images of the labelled frames go there; remove it, or give the output another name.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _listed(video: VideoSource, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from PIL import Image

    for index, file in enumerate(video.paths):
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.as_posix()
        try:
            if not file.is_file():  # a pipe would be waited for
                raise FileNotFoundError
            with Image.open(file) as image:  # reads the header alone
                yield index, {"file_name": name, "width": image.width, "height": image.height}
        except (OSError, ValueError, Image.DecompressionBombError):
            yield index, {"file_name": name}


def _title(number: int, videos: Sequence[VideoSource]) -> str:
    """A folder's name for a video's images: the video's, with its number where another one is called the same."""
    stems = [(video.original or video).paths[0].stem for video in videos]
    return stems[number] if sum(stem.lower() == stems[number].lower() for stem in stems) == 1 else f"{number}_{stems[number]}"


def _extracted(video: VideoSource, indices: list[int], extracted: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write these frames into the folder ``extracted``, which will be the first part of ``name``."""
    from PIL import Image

    if not indices:
        return
    below = extracted / name.partition("/")[2]
    below.mkdir()
    with open_video(video) as opened:
        for index, frame in opened.read_many(indices):
            Image.fromarray(frame).save(below / f"img{index:06d}.png")
            yield index, {"file_name": f"{name}/img{index:06d}.png", "width": frame.shape[1], "height": frame.shape[0]}


def _category(skeleton: Skeleton) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": 1, "name": skeleton.name or "animal", "supercategory": "animal", "keypoints": list(skeleton.keypoints)}
    entry["skeleton"] = [[a + 1, b + 1] for a, b in skeleton.edges]
    return entry | ({"symmetries": [[a + 1, b + 1] for a, b in skeleton.symmetries]} if skeleton.symmetries else {})


def _annotation(image: int, instance: Instance) -> dict[str, Any]:
    labelled = instance.labelled
    (x, y), (right, bottom) = instance.points[labelled].min(axis=0).tolist(), instance.points[labelled].max(axis=0).tolist()
    width, height = right - x + 1, bottom - y + 1
    table = np.where(labelled[:, None], np.column_stack([instance.points, np.full(len(labelled), 2.0)]), 0.0)
    return {
        "id": 0,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": int(labelled.sum()),
        "keypoints": [int(v) if place % 3 == 2 else v for place, v in enumerate(table.ravel().tolist())],
        "bbox": [x, y, width, height],
        "area": width * height,
        "segmentation": [],
        **(scored(instance) if isinstance(instance, PredictedInstance) else {}),
    } | ({"track": instance.track} if instance.track is not None else {})


def scored(instance: PredictedInstance) -> dict[str, Any]:
    """What COCO says of a predicted animal, in results and among labels: the third number of a keypoint is its score."""
    scores = np.maximum(np.nan_to_num(instance.point_scores), _LEAST_SCORE)
    table = np.where(instance.labelled[:, None], np.column_stack([instance.points, scores]), 0.0)
    result = {"keypoints": table.ravel().tolist(), "score": float(np.nan_to_num(instance.score))}
    return result | ({"track": instance.track} if instance.track is not None else {})

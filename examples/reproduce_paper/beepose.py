"""beePose's annotations of honeybees read into the internal format; any format can be written from there.

They look like COCO keypoints and are none that a reader of COCO could take. Seen in the files:

* the training file lists every image and every animal twice, an animal with the same ``id`` both times;
* training keypoints are x, y, flag, where flag 1 is visible and 0 is hidden: a 0 has a position all the same, guessed, and mostly at the
  border. Validation keypoints are x, y without a flag (ten numbers for five keypoints), all visible;
* keypoints are called Rant and Lant in one file, RAnt, LAnt and Torax in the other;
* ``bbox`` is a square of 100 pixels in one file, the corners of a turned box in the other, and ``area`` belongs to neither: not used;
* ``segmentation`` is a turned box, clipped at 1299 instead of the image's 1440 pixels: not used;
* image names begin with zeros that their ids lack, so ids tell images and names tell files;
* the right and left antenna are swapped on about one animal in eleven. That cannot be told from a wrong guess, and stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converters import FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource
from converters.coco import as_id, entries, load_json

SKELETON = Skeleton(("Tail", "Head", "Thorax", "RAnt", "LAnt"), ((0, 2), (2, 1), (1, 3), (1, 4)), ((3, 4),), "bee")
SPELLINGS = {"Torax": "Thorax", "Rant": "RAnt", "Lant": "LAnt"}


def read_beepose(annotations: Path, images: Path, unlabelled: bool = False) -> Labels:
    """Read one of beePose's annotation files.

    Args:
        annotations: ``train_bee_annotations2018.json`` or ``validation.json``.
        images: the folder with its images.
        unlabelled: also list the folder's images that the file does not, behind the others: frames without a label.

    Returns:
        One image sequence in the order of the file names; positions in pixels of these images, hidden keypoints as not labelled. ``notes``
        say what was left out.

    Raises:
        FormatError: a file is missing, damaged, or not what beePose's files look like.
    """
    data = load_json(annotations)
    order = _columns(annotations, data)
    names = _images(annotations, data, images)
    place = {name: number for number, name in enumerate(sorted(set(names.values())))}
    poses: dict[int, list[np.ndarray]] = {}
    listed = hidden = 0
    for entry in entries(annotations, data, "annotations"):
        where = f"{annotations}: annotation {entry.get('id')}"
        key = as_id(where, entry, "image_id")
        if key not in names:
            raise FormatError(f"{where} belongs to image {key}, which the file does not list; download the file again.")
        points, unseen = _points(where, entry, order)
        animals = poses.setdefault(place[names[key]], [])
        if np.isnan(points).all():
            continue
        if any(np.array_equal(points, other, equal_nan=True) for other in animals):
            listed += 1  # no two animals have the same pose in one image: it is the same one
            continue
        hidden += unseen
        animals.append(points)
    paths = [images / name for name in place]
    if unlabelled:
        paths += sorted(path for path in images.glob("*.jpg") if path.name not in place)
    frames = [LabeledFrame(0, number, [Instance(p) for p in animals]) for number, animals in sorted(poses.items()) if animals]
    notes = [f"{annotations.name}: {listed} animals are listed twice and count once; {hidden} hidden keypoints are left out."]
    return Labels(SKELETON, [VideoSource(tuple(path.absolute() for path in paths))], frames, annotations, notes)


def _columns(path: Path, data: Any) -> list[int]:
    """Where each keypoint of ``SKELETON`` stands among those of the file."""
    for category in entries(path, data, "categories"):
        names = [SPELLINGS.get(name, name) for name in category.get("keypoints") or []]
        if set(names) == set(SKELETON.keypoints):
            return [names.index(name) for name in SKELETON.keypoints]
    raise FormatError(f"{path}: no category has the keypoints {', '.join(SKELETON.keypoints)}; is it an annotation file of beePose?")


def _images(path: Path, data: Any, folder: Path) -> dict[Any, str]:
    """File name by image id; each file is there, and of a size that the file gives it."""
    names: dict[Any, str] = {}
    sizes: dict[str, set[tuple[Any, Any]]] = {}
    for number, entry in enumerate(entries(path, data, "images")):
        key, name = as_id(f"{path}: image number {number}", entry, "id"), entry.get("file_name")
        if not isinstance(name, str) or Path(name).name != name or names.setdefault(key, name) != name:
            raise FormatError(f"{path}: image {key} is called {name!r:.60}; one plain file name is needed. Download the file again.")
        sizes.setdefault(name, set()).add((entry.get("width"), entry.get("height")))
    if missing := [name for name in sizes if not (folder / name).is_file()]:
        raise FormatError(
            f"{folder} lacks {len(missing)} of the {len(sizes)} images of {path.name}, such as {missing[0]}; copy them there."
        )
    for name, given in sizes.items():
        try:
            with Image.open(folder / name) as image:  # reads the header alone
                size = image.size
        except OSError as error:
            raise FormatError(f"{folder / name} is no image, or is damaged ({error}); copy it again.") from error
        if size not in given:
            raise FormatError(f"{folder / name} has {size[0]}x{size[1]} pixels, and {path.name} says otherwise; labels would not fit it.")
    return names


def _points(where: str, entry: dict[str, Any], order: list[int]) -> tuple[np.ndarray, int]:
    """(K, 2) positions in the order of ``SKELETON``, NaN where hidden, and how many are."""
    values = entry.get("keypoints")
    count = len(order)
    if not isinstance(values, list) or len(values) not in (2 * count, 3 * count):
        raise FormatError(f"{where}: 'keypoints' must hold {2 * count} or {3 * count} numbers; download the file again.")
    try:
        table = np.array(values, dtype=np.float64).reshape(count, -1)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: 'keypoints' must be numbers; download the file again.") from error
    seen = table[:, 2] > 0 if table.shape[1] == 3 else np.ones(count, dtype=bool)
    points = np.where(seen[:, None], table[:, :2], np.nan)
    return points[order], int((~seen).sum())

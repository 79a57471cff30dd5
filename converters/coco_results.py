"""COCO keypoint results (``.json``): a bare list of predicted animals, which has a meaning only with the labels file it belongs to.

Traps of the format:

* the list names neither images nor keypoints, only ids of the labels file; frames without animals leave no trace;
* the third number of a keypoint is its score here, not its visibility, and pycocotools ignores it;
* a ``bbox`` would make pycocotools take the results for boxes, so none is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from converters.coco import VIDEO_STEP, Id, as_id, entries, load_json, read_images, read_labels, scored
from converters.files import written_whole
from converters.labels import FormatError, LabeledFrame, Labels, Skeleton, VideoSource, files_of


def read_coco_results(
    path: Path, annotations: Path, images: Path | None = None, video_root: Path | None = None, category: str | None = None
) -> Labels:
    """Read COCO keypoint results into ``predicted``; a keypoint's third number is its score, and it is absent where that is 0.

    Args:
        path: the json list of results.
        annotations: the COCO labels that image and category ids refer to; their own annotations are not read.
        images, video_root, category: as in `read_coco`. Images that are not found keep the path that ``annotations`` names.

    Raises:
        FormatError: as `read_coco`, or a result without a score.
    """
    path, annotations = Path(path).absolute(), Path(annotations).absolute()
    results, data = load_json(path), load_json(annotations)
    if not isinstance(results, list):
        raise FormatError(f"{path} is no list of COCO results; to read it as labels, give no other labels file with it.")
    for number, entry in enumerate(entries(path, {"results": results}, "results")):
        if "score" not in entry:
            raise FormatError(f"{path}: result {number} has no 'score'; write the results again with one for each animal.")
    labels = read_labels(annotations, data, path, results, category, images=images, video_root=video_root, required=False)
    labels.path, labels.frames = path, [frame for frame in labels.frames if frame.predicted]
    if results and not labels.frames:
        raise FormatError(
            f"{path}: none of its {len(results)} results has keypoints and belongs to an image and a category of {annotations}; give the "
            "labels that the predictions were made for."
        )
    return labels


def is_coco_results(path: Path) -> bool:
    """Whether a json file holds a list, as results are, and no labels."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            return file.read(1000).lstrip().startswith("[")
    except (OSError, ValueError):
        return False


def write_coco_results(
    path: Path,
    skeleton: Skeleton,
    videos: Sequence[VideoSource],
    frames: Iterable[LabeledFrame],
    provenance: dict[str, Any],
    inputs: Iterable[Path] = (),
) -> int:
    """Write predictions as COCO keypoint results, whole or not at all, in memory that does not grow with their number.

    ``image_id`` and ``category_id`` are those of the COCO labels among ``inputs``, where there are some. Otherwise the category is 1, and
    an image's id is its frame number, plus 10^9 times the number of its video (0 for the first), as in the labels that `write_coco` writes.
    The third number of a keypoint is its score, above 0; all three are 0 where it is absent.

    Args:
        path: the json file; an existing one is replaced.
        skeleton: what the instances' points are.
        videos: what ``LabeledFrame.video`` counts.
        frames: read once, while writing; only ``predicted`` is written, so a frame without it leaves no trace.
        provenance: where the predictions come from; the format has no place for it.
        inputs: files that must not be overwritten, and among them the COCO labels that predictions were made for.

    Returns:
        The number of frames read.

    Raises:
        FormatError: ``path`` is an input or not writable, a frame is of no image of the COCO labels among ``inputs``, or several of these
            have images of the same id or name.
    """
    path, inputs = Path(path).absolute(), [Path(file) for file in inputs]
    image_id, category = _numbering(skeleton, videos, inputs)
    count, comma = 0, ""
    with written_whole(path, [*files_of(videos), *inputs]) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for frame in frames:
            count += 1
            image = image_id(frame)
            for instance in frame.predicted:
                result = {"image_id": image, "category_id": category, **scored(instance)}
                file.write(f"{comma}\n{json.dumps(result, ensure_ascii=False)}")
                comma = ","
        file.write("\n]\n")
    return count


def _numbering(skeleton: Skeleton, videos: Sequence[VideoSource], inputs: Iterable[Path]) -> tuple[Callable[[LabeledFrame], Id], Id]:
    """How images are called in results, and the category's id."""
    ids: dict[str, Id] = {}
    taken: set[Id] = set()
    lists: dict[tuple[str, ...], list[list[Id]]] = {}  # ids in the order of each file's images, by these images' names without folders
    category: Id | None = None
    named: list[str] = []
    for path in inputs:
        data = load_json(path) if path.suffix.lower() == ".json" else None
        if not isinstance(data, dict) or "images" not in data:
            continue  # results, or no COCO file
        names, places, _ = read_images(path, data)
        mine = {names[place].replace("\\", "/").lstrip("/"): key for key, place in places.items()}
        twice = [f"with the id {key}" for key in places if key in taken] + [f"called {name}" for name in mine if name in ids]
        if twice:
            raise FormatError(
                f"{path} has an image {twice[0]}, and so has {' or '.join(named)}: in one file of results nothing would tell them apart; "
                "name a folder, for a file for each (smp-predict: -o FOLDER --format json), or a .slp file for all."
            )
        ids |= mine
        taken |= places.keys()
        by_place = {place: key for key, place in places.items()}
        without_folders = tuple(PureWindowsPath(name).name for name in names)
        lists.setdefault(without_folders, []).append([by_place[place] for place in range(len(names))])
        same = [e for e in entries(path, data, "categories") if e.get("keypoints") == list(skeleton.keypoints)]
        category = as_id(str(path), same[0], "id") if same and category is None else category
        named.append(str(path))
    if not named:
        return lambda frame: frame.video * VIDEO_STEP + frame.index, 1

    # Images that lie elsewhere than the file says are known by being all of its images, in its order, and of no other file.
    image_lists = {number: tuple(path.name for path in source.paths) for number, source in enumerate(videos) if source.kind == "images"}
    found_elsewhere = {number: lists[names][0] for number, names in image_lists.items() if len(lists.get(names, [])) == 1}

    def image_id(frame: LabeledFrame) -> Id:
        source = videos[frame.video]
        if source.kind == "images":
            parts = source.paths[frame.index].as_posix().lstrip("/").split("/")
            for start in range(len(parts)):
                if (found := ids.get("/".join(parts[start:]))) is not None:
                    return found
            if frame.video in found_elsewhere:
                return found_elsewhere[frame.video][frame.index]
        raise FormatError(f"Frame {frame.index} of {source.name} is no image of {', '.join(named)}; write its predictions to another file.")

    return image_id, 1 if category is None else category

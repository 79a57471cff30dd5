"""DeepLabCut projects (``config.yaml``), read without DeepLabCut; `deeplabcut_writing` writes them.

Traps of the format:

* labels lie beside their images, ``labeled-data/VIDEO/CollectedData_SCORER.h5`` and ``.csv``; of the two the ``.h5`` counts;
* ``project_path`` and ``video_sets`` are absolute paths, stale as soon as the project moves: everything is found from where the file lies;
* rows name images, and a folder may have another name than its rows or its video say: the table's own folder counts;
* a point is labelled or not: hidden, outside and forgotten are the same;
* keypoints that exist once in a picture (``uniquebodyparts``) would be one more animal with other keypoints: they are left out;
* images may be cut out of the video (``crop``): labels are in the pixels of the images;
* YAML 1.1 takes a bodypart called ``no`` for false, and a file may hold instructions to run code: every scalar is read as text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from converters.deeplabcut_tables import UNIQUE, Table, predicted_instance, read_table
from converters.files import Finder, natural_order
from converters.labels import IMAGE_SUFFIXES, FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource

Box = tuple[int, int, int, int]


def read_dlc(config: Path, video_root: Path | None = None, predicted: bool = True, require_videos: bool = True) -> Labels:
    """Read a DeepLabCut project of one or several animals (layout as DeepLabCut 2 and 3 write it).

    Each folder of ``labeled-data`` becomes a video of kind "images" that holds all of the folder's images, labelled or not, in natural
    order; a frame's index is the image's place in it. Its ``original`` is the project's video of the same name, found or not: there the
    same image has the number that its file name ends in. Videos that are found but have no folder follow. Individuals become tracks. A
    labelled row without a point is a frame without instances.

    Args:
        config: the project's ``config.yaml``.
        video_root: folder to look for videos, and for the images of a labelled folder, that are not where the project says.
        predicted: read the newest ``machinelabels-iterN.h5`` too, for images that no person has labelled.
        require_videos: raise for labelled images that are not found; otherwise they keep the path they should have.

    Raises:
        FormatError: not a DeepLabCut project, damaged labels, or images that are not found.
    """
    config = Path(config).absolute()
    settings = read_config(config)
    notes: list[str] = []
    skeleton = _skeleton(config, settings, notes)
    named, crops = _find_videos(config, settings, video_root, notes)
    root = config.parent / "labeled-data"
    entries = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=natural_order) if root.is_dir() else []
    folders = [entry for entry in entries if entry.name in named or list(entry.glob("CollectedData_*"))]
    if others := [entry.name for entry in entries if entry not in folders and _holds_extracted_images(entry)]:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        notes.append(
            f"{config}: {len(others)} folders in labeled-data have neither labels nor a video in 'video_sets' ({some}); they are left out."
        )
    videos: list[VideoSource] = []
    frames: list[LabeledFrame] = []
    for folder in folders:
        table, file = _read_labels(folder, settings.get("scorer", ""), notes)
        guesses, _ = _read_newest_guesses(folder, notes) if predicted else (None, None)
        images = _images(config, folder, table, file, video_root, len(folders) == 1, require_videos)
        if images:
            original = named.get(folder.name)
            paths = _without_text_links(folder, images, notes)
            cut = _cut(folder, paths, crops[folder.name], notes) if folder.name in crops else None
            videos.append(VideoSource(paths, original=VideoSource((original,)) if original is not None else None, cut=cut))
            frames += _frames(len(videos) - 1, images, skeleton, table, guesses, folder, notes)
    done = {video.original for video in videos}
    videos += [source for path in named.values() if path.exists() and (source := VideoSource((path,))) not in done]
    left_behind = [f"{config}: training sets, models and settings other than keypoints, skeleton and videos are left out."]
    return Labels(skeleton, videos, frames, config, notes, left_behind, one_animal=not is_multi_animal(settings))


def read_config(config: Path) -> dict[str, Any]:
    """A project's settings: texts, lists and mappings of texts. FormatError if the file is none of DeepLabCut's."""
    import yaml

    if not config.is_file():
        raise FormatError(f"{config} does not exist, or is a folder; name the config.yaml of a DeepLabCut project.")
    try:
        content = config.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:  # DeepLabCut writes in the computer's own encoding
            text = content.decode("cp1252", errors="replace")
        settings = yaml.load(text, Loader=yaml.BaseLoader)  # makes texts of all scalars, and knows no objects
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"{config} cannot be read as YAML ({cause}); correct it, or restore it from a copy.") from error
    if not isinstance(settings, dict) or not ("bodyparts" in settings or "multianimalbodyparts" in settings):
        raise FormatError(f"{config} is no DeepLabCut project: it has no 'bodyparts'; name the config.yaml of a project.")
    return settings


def is_multi_animal(settings: dict[str, Any]) -> bool:
    """Whether the project is for several animals."""
    return settings.get("bodyparts") == "MULTI!" or str(settings.get("multianimalproject", "")).lower() in ("true", "yes")


def bodyparts(config: Path, settings: dict[str, Any]) -> list[str]:
    """The keypoints of every animal, without those that exist once in a picture."""
    field = "multianimalbodyparts" if is_multi_animal(settings) else "bodyparts"
    names = _names(config, settings, field)
    if not names:
        raise FormatError(f"{config}: '{field}' names no keypoints; list them there, as in the labels.")
    return names


def _names(config: Path, settings: dict[str, Any], field: str) -> list[str]:
    names = settings.get(field) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{config}: '{field}' is not a list of names; write one name a line, each after a hyphen.")
    return names


def _skeleton(config: Path, settings: dict[str, Any], notes: list[str]) -> Skeleton:
    keypoints = bodyparts(config, settings)
    places = {name: place for place, name in enumerate(keypoints)}
    chains = settings.get("skeleton") or []
    if not isinstance(chains, list) or not all(isinstance(c, list) and all(isinstance(n, str) for n in c) for c in chains):
        raise FormatError(f"{config}: 'skeleton' is not a list of pairs of keypoints; write pairs, or an empty list.")
    pairs = [pair for chain in chains for pair in itertools.pairwise(chain)]
    edges = [(places[a], places[b]) for a, b in pairs if a in places and b in places and a != b]
    if unknown := len([pair for pair in pairs if not set(pair) <= set(places)]):
        notes.append(f"{config}: {unknown} of the skeleton's lines join keypoints that the animals do not have; they are left out.")
    try:
        return Skeleton(tuple(keypoints), tuple(dict.fromkeys(edges)))
    except FormatError as error:
        raise FormatError(f"{config}: {error}") from error


def _find_videos(config: Path, settings: dict[str, Any], root: Path | None, notes: list[str]) -> tuple[dict[str, Path], dict[str, Box]]:
    """The project's videos by the name of their folder in ``labeled-data``; those that are not found, where they should be.

    And where they are cropped elsewhere than at their first pixel: (left, top, right, bottom).
    """
    sets = settings.get("video_sets") or {}
    if not isinstance(sets, dict):
        raise FormatError(f"{config}: 'video_sets' is not a mapping from videos to their crop; correct it as DeepLabCut writes it.")
    finder, beside = Finder(config.parent, root), Finder(config.parent / "videos")
    videos: dict[str, Path] = {}
    crops: dict[str, Box] = {}
    found: set[str] = set()
    for written, details in sets.items():
        file = PurePosixPath(str(written).replace("\\", "/"))
        if file.stem not in found:
            path = finder.find(str(written)) or beside.find(file.name)
            found |= {file.stem} if path is not None else set()
            videos[file.stem] = path or beside.expected(file.name)
        crop = details.get("crop", "") if isinstance(details, dict) else ""
        with suppress(ValueError, OverflowError):  # no four numbers
            left, right, top, bottom = (int(float(part)) for part in str(crop).split(","))
            if left or top:
                crops[file.stem] = left, top, right, bottom
    if missing := sorted(set(videos) - found):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(
            f"{config}: {len(missing)} of the project's videos are not found ({some}); only their images in labeled-data are used; "
            "--video-root FOLDER says where videos are."
        )
    written = settings.get("project_path")
    if isinstance(written, str) and written and found and Path(written).absolute() != config.parent:
        notes.append(f"{config}: 'project_path' says {written}; the folder that the file lies in is used instead.")
    return videos, crops


def _cut(folder: Path, images: Sequence[Path], crop: Box, notes: list[str]) -> Box | None:
    """``crop``, if the images are as large as this; whole frames are larger, since it begins within them."""
    from PIL import Image

    sizes = set()
    for image in images:
        with suppress(OSError, ValueError, Image.DecompressionBombError):
            if image.is_file():  # a pipe would be waited for
                with Image.open(image) as opened:  # reads the header alone
                    sizes.add(opened.size)
    left, top, right, bottom = crop
    if (right - left, bottom - top) not in sizes:
        return None
    where = f"cut out of the video at ({left}, {top}); positions count from the images' corner"
    if len(sizes) > 1:
        notes.append(
            f"{folder}: some images are {where}, but predictions of the video are not moved there, since other images are not cut."
        )
        return None
    notes.append(f"{folder}: the images are {where}, and predictions of the video are moved there to be compared.")
    return crop


def _holds_extracted_images(folder: Path) -> bool:
    """Not so the folders in which DeepLabCut draws labels on images, for a person to check."""
    return not folder.name.endswith("_labeled") and any(folder.glob("img*.png"))


def _read_labels(folder: Path, scorer: str, notes: list[str]) -> tuple[Table | None, Path | None]:
    """The labels of a folder, by the project's scorer where there are several."""
    stems = sorted({file.stem for file in folder.glob("CollectedData_*") if file.suffix.lower() in (".h5", ".csv")})
    if not stems:
        return None, None
    stem = f"CollectedData_{scorer}" if f"CollectedData_{scorer}" in stems else stems[0]
    if others := [other for other in stems if other != stem]:
        notes.append(f"{folder}: the labels in {stem} are read, those in {', '.join(others)} are left out.")
    elif stem != f"CollectedData_{scorer}":
        notes.append(f"{folder}: there are no labels by the project's scorer {scorer}; those in {stem} are read.")
    table, file = _read_either(folder / f"{stem}.h5", folder / f"{stem}.csv", notes)
    scorers = list(dict.fromkeys(column.scorer for column in table.columns))
    if len(scorers) > 1:
        chosen = scorer if scorer in scorers else scorers[0]
        others = [name for name in scorers if name != chosen]
        notes.append(f"{file}: the labels by {chosen} are read, those by {', '.join(others)} are left out.")
        table = table.of_scorer(chosen)
    if any(column.coord == "likelihood" for column in table.columns):
        notes.append(f"{file}: labels have no likelihood; its columns are left out.")
    return table, file


def _read_either(h5: Path, csv: Path, notes: list[str]) -> tuple[Table, Path]:
    if not h5.is_file():
        return read_table(csv), csv
    try:
        return read_table(h5), h5
    except FormatError:
        if not csv.is_file():
            raise
    notes.append(f"{h5} is damaged, so {csv.name} is read; deeplabcut.convertcsv2h5 makes a new one from it.")
    return read_table(csv), csv


def _read_newest_guesses(folder: Path, notes: list[str]) -> tuple[Table | None, Path | None]:
    numbered = [(int(m[1]), file) for file in folder.iterdir() if (m := re.fullmatch(r"machinelabels-iter(\d+)\.h5", file.name))]
    if not numbered:
        return None, None
    _, file = max(numbered)
    try:
        return read_table(file), file
    except FormatError as error:
        notes.append(f"{error} Its predictions are left out.")
        return None, None


def _image_names(table: Table | None) -> list[str]:
    return [str(row).rpartition("/")[2] for row in table.rows] if table is not None else []


def _images(
    config: Path, folder: Path, table: Table | None, file: Path | None, root: Path | None, alone: bool, required: bool
) -> tuple[Path, ...]:
    """All images of a labelled folder, those included that labels name and that are not there, in natural order."""
    wanted = set(_image_names(table))
    for name in sorted(wanted):
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            raise FormatError(f"{file}: the row {name!r} names no image; labels need rows like labeled-data/{folder.name}/img0001.png.")
    places = [folder]
    if root is not None:  # the root itself is meant only where it cannot be another folder's
        places += [root / "labeled-data" / folder.name, root / folder.name, *([root] if alone else [])]
    listed = {place: _listed(place) for place in places}
    best = max(places, key=lambda place: len(listed[place] & wanted))
    missing = sorted(wanted - listed[best])
    if missing and required:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(
            f"{file} labels the image {missing[0]}{others}, which {folder} does not hold; copy the images back, or give the folder above "
            "their folder with --video-root FOLDER."
        )
    return tuple(sorted((best / name for name in listed[best] | wanted), key=natural_order))


def _listed(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {file.name for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")}


def _without_text_links(folder: Path, images: Sequence[Path], notes: list[str]) -> tuple[Path, ...]:
    """The images, or those that they name: where there are no symbolic links, git leaves a file that holds the link's target as text."""
    paths = tuple(_target(image) for image in images)
    if links := sum(path != image for path, image in zip(paths, images, strict=True)):
        notes.append(f"{folder}: {links} images are links that were saved as text; the images that they name are used.")
    return paths


def _target(image: Path) -> Path:
    try:
        if not image.is_file() or image.stat().st_size > 1000:  # no path is so long, and hardly an image so small
            return image
        target = image.parent / image.read_text(encoding="utf-8").strip()
        return target.resolve() if target.suffix.lower() in IMAGE_SUFFIXES and target.is_file() else image
    except (OSError, ValueError):  # not there, or no text
        return image


def _frames(
    video: int, images: Sequence[Path], skeleton: Skeleton, table: Table | None, guesses: Table | None, folder: Path, notes: list[str]
) -> list[LabeledFrame]:
    numbers = {image.name: number for number, image in enumerate(images)}
    frames: dict[int, LabeledFrame] = {}
    if table is not None:
        _note_left_out(table, skeleton, folder, notes)
        animals = table.animals(skeleton.keypoints)
        twice = 0
        for row, name in enumerate(_image_names(table)):
            number = numbers[name]
            twice += number in frames
            if number not in frames:
                labelled = [Instance(values[row, :, :2], individual) for individual, values in animals.items()]
                frames[number] = LabeledFrame(video, number, [animal for animal in labelled if animal.labelled.any()])
        if twice:
            notes.append(f"{folder}: {twice} images are labelled twice; the first row of each is read.")
    if guesses is not None:
        animals = guesses.animals(skeleton.keypoints)
        for row, name in enumerate(_image_names(guesses)):
            if name in numbers and not (frame := frames.setdefault(numbers[name], LabeledFrame(video, numbers[name]))).instances:
                found = [predicted_instance(values[row], individual) for individual, values in animals.items()]
                frame.predicted = [animal for animal in found if animal is not None]
    return [frames[number] for number in sorted(frames)]


def _note_left_out(table: Table, skeleton: Skeleton, folder: Path, notes: list[str]) -> None:
    """Say which keypoints of a table are not the skeleton's. FormatError where none is."""
    given: dict[bool, dict[str, bool]] = {True: {}, False: {}}  # unique or not: name -> labelled somewhere
    for number, column in enumerate(table.columns):
        names = given[column.individual == UNIQUE]
        names[column.bodypart] = names.get(column.bodypart, False) or bool(np.isfinite(table.values[:, number]).any())
    unknown = {unique: [n for n, some in names.items() if some and n not in skeleton.keypoints] for unique, names in given.items()}
    if table.rows and not (set(given[False]) | set(given[True])) & set(skeleton.keypoints):
        ours, theirs = ", ".join(skeleton.keypoints), ", ".join([*given[False], *given[True]])
        raise FormatError(
            f"{folder}: the labels are of {theirs}, config.yaml has {ours}; correct 'bodyparts' there, or use the labels' own project."
        )
    if unknown[True]:
        notes.append(f"{folder}: {', '.join(unknown[True])} exist once in a picture and belong to no animal; they are left out.")
    if unknown[False]:
        notes.append(f"{folder}: {', '.join(unknown[False])} are labelled, but not among the project's bodyparts; they are left out.")

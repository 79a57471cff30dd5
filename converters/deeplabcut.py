"""DeepLabCut projects (``config.yaml``): read and written without DeepLabCut.

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
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from converters.deeplabcut_tables import (
    UNIQUE,
    Table,
    columns_of,
    individual_names,
    number_animals,
    predicted_instance,
    read_table,
    write_csv,
    write_h5,
)
from converters.files import Finder, natural_order
from converters.labels import IMAGE_SUFFIXES, FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource
from converters.video import open_video


def read_dlc(config: Path, video_root: Path | None = None, predicted: bool = True, require_videos: bool = True) -> Labels:
    """Read a DeepLabCut project of one or several animals (layout as DeepLabCut 2 and 3 write it).

    Each folder of ``labeled-data`` becomes a video of kind "images" that holds all of the folder's images, labelled or not, in natural
    order; a frame's index is the image's place in it. Its ``original`` is the video of the same name, where that is found: there the same
    image has the number that its file name ends in. Videos that are found but have no folder follow. Individuals become tracks. A
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
    named = _find_videos(config, settings, video_root, notes)
    root = config.parent / "labeled-data"
    entries = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=natural_order) if root.is_dir() else []
    folders = [entry for entry in entries if entry.name in named or list(entry.glob("CollectedData_*"))]
    videos: list[VideoSource] = []
    frames: list[LabeledFrame] = []
    for folder in folders:
        table, file = _read_labels(folder, settings.get("scorer", ""), notes)
        guesses, _ = _read_newest_guesses(folder, notes) if predicted else (None, None)
        images = _images(config, folder, table, file, video_root, len(folders) == 1, require_videos)
        if images:
            original = named.get(folder.name)
            videos.append(VideoSource(images, original=VideoSource((original,)) if original is not None else None))
            frames += _frames(len(videos) - 1, images, skeleton, table, guesses, folder, notes)
    done = {folder.name for folder in folders}
    videos += [VideoSource((path,)) for name, path in named.items() if path is not None and name not in done]
    return Labels(skeleton, videos, frames, config, notes)


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


def _find_videos(config: Path, settings: dict[str, Any], root: Path | None, notes: list[str]) -> dict[str, Path | None]:
    """The project's videos by the name of their folder in ``labeled-data``; None for those that are not found."""
    sets = settings.get("video_sets") or {}
    if not isinstance(sets, dict):
        raise FormatError(f"{config}: 'video_sets' is not a mapping from videos to their crop; correct it as DeepLabCut writes it.")
    finder, beside = Finder(config.parent, root), Finder(config.parent / "videos")
    videos: dict[str, Path | None] = {}
    for written, details in sets.items():
        file = PurePosixPath(str(written).replace("\\", "/"))
        videos[file.stem] = finder.find(str(written)) or beside.find(file.name)
        crop = details.get("crop", "") if isinstance(details, dict) else ""
        corner = [part.strip() for part in str(crop).split(",")][::2]
        if len(corner) == 2 and any(part not in ("0", "0.0") for part in corner):
            notes.append(
                f"{config}: the images of {file.stem} are cut out of the video at ({corner[0]}, {corner[1]}) if 'crop' was used; positions "
                "count from the images' corner."
            )
    if missing := sorted(name for name, path in videos.items() if path is None):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(f"{config}: {len(missing)} of the project's videos are not found ({some}); their images in labeled-data are used.")
    written = settings.get("project_path")
    if isinstance(written, str) and written and any(videos.values()) and Path(written).absolute() != config.parent:
        notes.append(f"{config}: 'project_path' says {written}; the folder that the file lies in is used instead.")
    return videos


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


def write_dlc(folder: Path, labels: Labels, inputs: Sequence[Path] = ()) -> list[str]:
    """Write a complete DeepLabCut project: settings as ``create_new_project`` writes them, images, and labels as ``.h5`` and ``.csv``.

    The project is for one animal where no frame has more than one and none has a track, and for several otherwise. Its folder appears
    whole or not at all. Images of the labelled frames are extracted, or copied where they are images already; videos stay where they are
    and are referred to. A name like ``Task-Scorer-2024-12-31`` gives the project's task, scorer and date.

    Args:
        folder: must not exist yet; the folder above it must.
        labels: what to write; frames that hold only predictions are left out.
        inputs: for the sake of one call for all formats; a new folder overwrites nothing.

    Returns:
        What the format cannot hold or what was changed, a sentence each.

    Raises:
        FormatError: the folder exists or cannot be written, or a labelled frame's video cannot be read.
    """
    folder = Path(folder).absolute()
    if folder.exists() or not folder.parent.is_dir():
        what = "exists already" if folder.exists() else "lies in a folder that does not exist"
        raise FormatError(f"{folder} {what}; name a new folder in an existing one for the DeepLabCut project.")
    kept = [frame for frame in labels.frames if frame.instances or not frame.predicted]
    multi = any(len(frame.instances) > 1 or any(animal.track is not None for animal in frame.instances) for frame in kept)
    notes = _losses(labels, kept, multi)
    scorer = _named(folder)["scorer"]
    rows = _animal_rows(kept) if multi else [[(0, animal) for animal in frame.instances] for frame in kept]
    tracks = list(dict.fromkeys(a.track for frame in kept for a in frame.instances if a.track is not None))
    others = max((-number for row in rows for number, _ in row), default=0) if multi else 0
    individuals = (individual_names(tracks, others) or ["animal1"]) if multi else None
    columns = columns_of(scorer, individuals, labels.skeleton.keypoints, ("x", "y"))
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            project = Path(scratch) / folder.name
            for part in ("videos", "labeled-data", "training-datasets", "dlc-models-pytorch"):
                (project / part).mkdir(parents=True)
            sets: dict[str, dict[str, str]] = {}
            for video, name in enumerate(video_names(labels.videos)):
                mine = sorted((number for number, frame in enumerate(kept) if frame.video == video), key=lambda n: kept[n].index)
                images, size = write_images(project / "labeled-data" / name, labels.videos[video], [kept[number].index for number in mine])
                if size is None:
                    notes.append(f"{labels.videos[video].name} has no labels and cannot be opened; it is left out.")
                    continue
                sets[_video_path(labels.videos[video], name, folder)] = {"crop": f"0, {size[0]}, 0, {size[1]}"}
                if mine:
                    values = np.full((len(mine), len(individuals or [0]), len(labels.skeleton), 2), np.nan)
                    for row, number in enumerate(mine):
                        for animal, instance in rows[number]:
                            values[row, animal if animal >= 0 else len(tracks) - animal - 1] = instance.points
                    index = [("labeled-data", name, image) for image in images]
                    stem = project / "labeled-data" / name / f"CollectedData_{scorer}"
                    flat = values.reshape(len(mine), -1)
                    write_h5(stem.with_name(f"{stem.name}.h5"), columns, index, [flat], {})
                    write_csv(stem.with_name(f"{stem.name}.csv"), columns, index, [flat])
            _write_config(project / "config.yaml", folder, labels.skeleton, individuals, sets)
            project.rename(folder)
    except OSError as error:
        raise FormatError(f"{folder} cannot be written ({error.strerror or error}); choose a folder that you may write to.") from error
    return notes


def _losses(labels: Labels, kept: list[LabeledFrame], multi: bool) -> list[str]:
    """What a project cannot hold of these labels."""
    notes = []
    if labels.skeleton.symmetries:
        notes.append("DeepLabCut projects have no left/right pairs of keypoints; the skeleton's are left out.")
    if left := sum(bool(frame.predicted) for frame in labels.frames):
        notes.append(f"Predictions are no labels; those in {left} frames are left out.")
    if empty := sum(frame.negative for frame in kept):
        notes.append(f"DeepLabCut cannot state that a frame is empty; {empty} such frames are written as rows without a point.")
    if multi and any(animal.track is None for frame in kept for animal in frame.instances):
        notes.append("Animals without a track are numbered in each frame anew (animal1, animal2, ...); a number is no identity.")
    return notes


def _animal_rows(frames: list[LabeledFrame]) -> list[list[tuple[int, Instance]]]:
    tracks: dict[str, int] = {}
    return [list(zip(number_animals(frame.instances, tracks), frame.instances, strict=True)) for frame in frames]


def video_names(videos: Sequence[VideoSource]) -> list[str]:
    """A name for each video's folder in ``labeled-data``; all differ, also where case does not count."""
    names: list[str] = []
    for video in videos:
        shown = video.original or video
        file = shown.paths[0]
        name = stem = (file.parent.name or "images") if shown.kind == "images" else file.stem.removesuffix(".pkg")
        number = 2
        while name.lower() in [other.lower() for other in names]:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


def write_images(folder: Path, source: VideoSource, indices: Sequence[int]) -> tuple[list[str], tuple[int, int] | None]:
    """Put frames of a video into a folder, made where needed: ``imgNNNN.png``, or copies of images under their own names.

    Images that are there already under these names are kept.

    Returns:
        The images' names, in the order of ``indices``, and the frames' (width, height): None where no frames are wanted and the video
        cannot be opened.

    Raises:
        FormatError: a frame cannot be read.
    """
    from PIL import Image

    try:
        video = open_video(source)
    except FormatError:
        if indices:
            raise
        return [], None
    folder.mkdir(parents=True, exist_ok=True)
    with video:
        size = video.width, video.height
        if source.kind == "images":
            own = [path.name for path in source.paths]
            digits = max(4, len(str(len(own))))
            distinct = len({name.lower() for name in own}) == len(own)
            names = {i: own[i] if distinct else f"img{i:0{digits}d}{source.paths[i].suffix}" for i in indices}
            for index, name in names.items():
                video.read(index)  # a damaged image is noticed here
                if not (folder / name).exists():
                    shutil.copyfile(source.paths[index], folder / name)
        else:
            digits = max(4, len(str(max([video.n_frames, *indices]))))
            names = {index: f"img{index:0{digits}d}.png" for index in indices}
            for index, frame in video.read_many(i for i in indices if not (folder / names[i]).exists()):
                Image.fromarray(frame).save(folder / names[index])
    return [names[index] for index in indices], size


def _video_path(source: VideoSource, name: str, project: Path) -> str:
    """What the project calls the video. Its name must be its folder's, or DeepLabCut does not find the labels."""
    file = (source.original or source).paths[0].absolute()
    if (source.original or source).kind == "file" and file.stem == name:
        return file.as_posix()
    return (project / "videos" / f"{name}.mp4").as_posix()


def _named(folder: Path) -> dict[str, str]:
    """Task, scorer and date from a folder's name; today where it says none."""
    match = re.fullmatch(r"(.+)-([^-]+)-(\d{4})-(\d\d)-(\d\d)", folder.name)
    today = time.localtime()
    month, day = (int(match[4]), int(match[5])) if match else (today.tm_mon, today.tm_mday)
    short = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()[(month - 1) % 12]  # strftime speaks the user's language
    return {"Task": match[1] if match else folder.name, "scorer": match[2] if match else "labeler", "date": f"{short}{day}"}


def _write_config(path: Path, folder: Path, skeleton: Skeleton, individuals: list[str] | None, sets: dict[str, Any]) -> None:
    import yaml

    keypoints = list(skeleton.keypoints)
    animals: dict[str, Any] = {"bodyparts": keypoints}
    if individuals is not None:
        animals = {"individuals": individuals, "uniquebodyparts": [], "multianimalbodyparts": keypoints, "bodyparts": "MULTI!"}
    settings = {
        **_named(folder),
        "multianimalproject": individuals is not None,
        "identity": False,
        "project_path": folder.as_posix(),
        "engine": "pytorch",
        "video_sets": sets,
        **animals,
        "start": 0,
        "stop": 1,
        "numframes2pick": 20,
        "skeleton": [[keypoints[a], keypoints[b]] for a, b in skeleton.edges],
        "skeleton_color": "black",
        "pcutoff": 0.6,
        "dotsize": 12,
        "alphavalue": 0.7,
        "colormap": "rainbow",
        "TrainingFraction": [0.95],
        "iteration": 0,
        "default_net_type": "resnet_50",
        "default_augmenter": "albumentations",
        **({"default_track_method": "ellipse"} if individuals is not None else {}),
        "snapshotindex": -1,
        "detector_snapshotindex": -1,
        "batch_size": 8,
        "detector_batch_size": 1,
        "cropping": False,
        "x1": 0,
        "x2": 640,
        "y1": 277,
        "y2": 624,
        "corner2move2": [50, 50],
        "move2corner": True,
    }
    # ASCII alone: DeepLabCut reads the file in the computer's own encoding.
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=False, width=10**6), encoding="ascii")

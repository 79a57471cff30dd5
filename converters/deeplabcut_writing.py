"""DeepLabCut projects, written without DeepLabCut so that it trains on them and its GUI opens them.

Traps of the format:

* labels are found by the names of the videos in ``video_sets``: a folder of ``labeled-data`` must be called as its video is;
* DeepLabCut reads ``config.yaml`` in the computer's own encoding and with YAML 1.2, this project with YAML 1.1: it is written in ASCII;
* the tables of all folders are put below each other, so all have the same individuals.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.deeplabcut_tables import columns_of, individual_names, number_animals, write_csv, write_h5
from converters.labels import FormatError, LabeledFrame, Labels, Skeleton, VideoSource
from converters.video import open_video

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # strftime speaks the user's language
_MOST_TRACKS = 20


def write_dlc(folder: Path, labels: Labels) -> list[str]:
    """Write a complete DeepLabCut project: settings as ``create_new_project`` writes them, images, and labels as ``.h5`` and ``.csv``.

    The project is for one animal where no frame has more than one and none has a track, and for several otherwise. Its folder appears
    whole or not at all. Images of the labelled frames are extracted, or copied where they are images already; videos stay where they are
    and are referred to. A name like ``Task-Scorer-2024-12-31`` gives the project's task, scorer and date.

    Args:
        folder: must not exist yet; the folder above it must.
        labels: what to write; frames that hold only predictions are left out.

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
    slots, individuals = _slots(kept, notes) if multi else ([[0] * len(frame.instances) for frame in kept], None)
    columns = columns_of(scorer, individuals, labels.skeleton.keypoints, ("x", "y"))
    unfinished = f".{folder.name}.unfinished."
    for left in folder.parent.iterdir():  # by a process that was killed
        if left.name.startswith(unfinished):
            shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=unfinished) as scratch:
            project = Path(scratch) / folder.name
            for part in ("videos", "labeled-data", "training-datasets", "dlc-models-pytorch"):
                (project / part).mkdir(parents=True)
            sets: dict[str, dict[str, str]] = {}
            for video, name in enumerate(video_names(labels.videos)):
                source = labels.videos[video]
                mine = sorted((number for number, frame in enumerate(kept) if frame.video == video), key=lambda n: kept[n].index)
                if not mine and (source.original or source).kind != "file":
                    notes.append(f"{source.name} has no labels and is no video file; it is left out.")
                    continue
                images, size = write_images(project / "labeled-data" / name, source, [kept[number].index for number in mine])
                if size is None:
                    notes.append(f"{source.name} has no labels and cannot be opened; it is left out.")
                    continue
                sets[path := _video_path(source, name, folder)] = {"crop": "{0}, {2}, {1}, {3}".format(*(source.cut or (0, 0, *size)))}
                if (shown := source.original or source).kind == "file" and path not in shown.written:
                    notes.append(f"{shown.name} is called {name} here, for another one has its name; put it, or a link to it, at {path}.")
                values = np.full((len(mine), len(individuals or [0]), len(labels.skeleton), 2), np.nan)
                for row, number in enumerate(mine):
                    for slot, instance in zip(slots[number], kept[number].instances, strict=True):
                        values[row, slot] = instance.points
                if mine:
                    index = [("labeled-data", name, image) for image in images]
                    stem, flat = project / "labeled-data" / name / f"CollectedData_{scorer}", values.reshape(len(mine), -1)
                    write_h5(stem.with_name(f"{stem.name}.h5"), columns, index, [flat], {})
                    write_csv(stem.with_name(f"{stem.name}.csv"), columns, index, [flat])
            _write_config(project / "config.yaml", folder, labels.skeleton, individuals, sets)
            project.rename(folder)
    except (OSError, UnicodeError) as error:
        raise FormatError(f"{folder} cannot be written ({error}); choose a folder that you may write to.") from error
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


def _slots(frames: list[LabeledFrame], notes: list[str]) -> tuple[list[list[int]], list[str]]:
    """Which individual each frame's animals are, and what the individuals are called."""
    tracks: dict[str, int] = {}
    numbers = [number_animals(frame.instances, tracks) for frame in frames]
    most = max(len(each) for each in numbers)
    if len(tracks) > max(_MOST_TRACKS, 2 * most):  # a tracker's pieces: as individuals each would get columns and outputs of its own
        notes.append(f"{len(tracks)} tracks are too many for individuals; the at most {most} animals of a frame are numbered instead.")
        tracks, numbers = {}, [list(range(-1, -len(each) - 1, -1)) for each in numbers]
    others = max((-number for each in numbers for number in each if number < 0), default=0)
    slots = [[number if number >= 0 else len(tracks) - number - 1 for number in each] for each in numbers]
    return slots, individual_names(tracks, others)


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
    """Put frames of a video into a folder, made where needed: ``imgNNN.png`` as DeepLabCut does, or copies of images under their own names.

    Images that are there already are kept: under these names, or those of a frame under its number with other zeros before it.

    Returns:
        The images' names, in the order of ``indices``, and the frames' (width, height): None where no frames are wanted and the video
        cannot be opened.

    Raises:
        FormatError: a frame cannot be read, or the image of it that is there was cut out of it.
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
            digits = len(str(max([video.n_frames - 1, *indices])))  # as DeepLabCut: ceil(log10(number of frames))
            there = {int(match[1]): file.name for file in sorted(folder.iterdir()) if (match := re.fullmatch(r"img(\d+)\.png", file.name))}
            names = {index: there.get(index, f"img{index:0{digits}d}.png") for index in indices}
            for index in there.keys() & names.keys():
                with open_video(VideoSource((folder / there[index],))) as image:
                    if (image.width, image.height) != size:
                        raise FormatError(
                            f"{folder / there[index]} is not as large as the frames of {source.name}, so that positions in these would be "
                            "wrong there; name the project in place of the video."
                        )
            for index, frame in video.read_many(i for i in indices if i not in there):
                Image.fromarray(frame).save(folder / names[index])
    return [names[index] for index in indices], size


def _video_path(source: VideoSource, name: str, project: Path) -> str:
    """What the project calls the video. Its name must be its folder's, or DeepLabCut does not find the labels."""
    shown = source.original or source
    if shown.kind == "file" and shown.paths[0].stem == name:
        return shown.written[0]
    return (project / "videos" / f"{name}.mp4").as_posix()


def _named(folder: Path) -> dict[str, str]:
    """Task, scorer and date from a folder's name; today where it says none."""
    match = re.fullmatch(r"(.+)-([^-]+)-(\d{4})-(\d\d)-(\d\d)", folder.name)
    today = time.localtime()
    month, day = (int(match[4]), int(match[5])) if match else (today.tm_mon, today.tm_mday)
    short = _MONTHS[(month - 1) % 12]
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

"""Which predicted frame belongs to which labelled frame.

The two files rarely name a video the same way: predictions hold absolute paths, projects relative ones; a project moves to another machine;
images are embedded. A *unit* is what carries one name: a whole video file, or one image of a sequence (a sequence may be a subset of the
other's). Units are paired at the first of these names that is unambiguous in both files: full path, original path of embedded images,
folder and file name, file name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path

from converters.labels import FormatError, LabeledFrame, Labels, VideoSource

Unit = tuple[int, int]  # video, image of a sequence or -1
Name = Callable[[VideoSource, int], Hashable | None]


def _shown(video: VideoSource) -> VideoSource:
    """What a frame's number counts: embedded images are numbered as in their original, a sequence by itself."""
    return video.original if video.kind == "embedded" and video.original is not None else video


def _file(video: VideoSource, image: int) -> Path:
    return video.paths[max(image, 0)]


def _full(video: VideoSource, image: int) -> Hashable | None:
    return str(_file(video, image)), video.embedded


def _original(video: VideoSource, image: int) -> Hashable | None:
    return str(_file(_shown(video), image))


def _folder_and_name(video: VideoSource, image: int) -> Hashable | None:
    return _file(_shown(video), image).parts[-2:]


def _name(video: VideoSource, image: int) -> Hashable | None:
    return _file(_shown(video), image).name


NAMES: tuple[Name, ...] = (_full, _original, _folder_and_name, _name)


def _is_sequence(video: VideoSource) -> bool:
    return _shown(video).kind == "images" and bool(_shown(video).paths)


def _unit(labels: Labels, frame: LabeledFrame) -> Unit:
    video = labels.videos[frame.video]
    images = len(_shown(video).paths)
    return frame.video, frame.index if _is_sequence(video) and frame.index < images else -1


def _units(labels: Labels) -> list[Unit]:
    return sorted(
        (v, i)
        for v, video in enumerate(labels.videos)
        if _shown(video).paths
        for i in (range(len(_shown(video).paths)) if _is_sequence(video) else (-1,))
    )


def _unique_names(labels: Labels, name: Name) -> dict[Hashable, Unit]:
    found: dict[Hashable, list[Unit]] = defaultdict(list)
    for v, i in _units(labels):
        video = labels.videos[v]
        # With embedded images only the container has a full path: it is no name of a single image.
        if not (name is _full and video.embedded is not None and i >= 0):
            found[name(video, i)].append((v, i))
    return {key: units[0] for key, units in found.items() if len(units) == 1 and key is not None}


def paired_units(truth: Labels, guess: Labels) -> dict[Unit, Unit]:
    """Units of the labels -> units of the predictions."""
    pairs: dict[Unit, Unit] = {}
    for name in NAMES:
        theirs = _unique_names(guess, name)
        taken = set(pairs.values())
        for key, unit in _unique_names(truth, name).items():
            if unit not in pairs and key in theirs and theirs[key] not in taken:
                pairs[unit] = theirs[key]
    return pairs


def frame_pairs(truth: Labels, guess: Labels, strict: bool = True) -> list[tuple[list[LabeledFrame], list[LabeledFrame]]]:
    """For every labelled frame, in the labels' order, what each file holds of it (the second list is empty where the predictions lack it).

    Raises FormatError when the files have no video in common and ``strict``.
    """
    pairs = paired_units(truth, guess)
    by_order = not pairs and len(truth.videos) == len(guess.videos) == 1
    if strict and not pairs and not by_order:
        raise FormatError(
            f"{truth.path or 'The labels'} and {guess.path or 'the predictions'} have no video in common: "
            f"{_some_names(truth)} against {_some_names(guess)}. Predict on the labelled videos, or rename one of them."
        )
    guesses: dict[tuple[Unit, int], list[LabeledFrame]] = defaultdict(list)
    for frame in guess.frames:
        unit = _unit(guess, frame) if not by_order else (0, -1)
        guesses[unit, frame.index if unit[1] < 0 else 0].append(frame)
    frames: dict[tuple[Unit, int], list[LabeledFrame]] = defaultdict(list)
    for frame in truth.labelled_frames:
        unit = _unit(truth, frame) if not by_order else (0, -1)
        frames[unit, frame.index if unit[1] < 0 else 0].append(frame)
    other = pairs if not by_order else {(0, -1): (0, -1)}
    return [(held, guesses.get((other[unit], number), []) if unit in other else []) for (unit, number), held in frames.items()]


def _some_names(labels: Labels) -> str:
    names = [video.name for video in labels.videos]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no video"

"""Which predicted frame belongs to which labelled frame.

The two files rarely name a video the same way: predictions hold absolute paths, projects relative ones; a project moves to another machine;
images are embedded. A *unit* is what carries one name: a whole video file, or one image of a sequence (a sequence may be a subset of the
other's). Units are paired at the first of these names that is unambiguous in both files: full path, original path of embedded images,
folder and file name, file name, file name without its suffix. The last two say little, since cameras and frames are numbered anew in every
folder: they count only where stricter names have not told the folders apart, and a sentence says where they decide. Images that were taken
from a video are paired as images where both files have images, and else by their numbers in that video.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path

from converters.labels import FormatError, Instance, LabeledFrame, Labels, VideoSource

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


def _stem(video: VideoSource, image: int) -> Hashable | None:
    return _file(_shown(video), image).stem, _is_sequence(video)


NAMES: tuple[Name, ...] = (_full, _original, _folder_and_name)
BARE_NAMES: tuple[Name, ...] = (_name, _stem)


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
        pairs |= _more_pairs(truth, guess, name, pairs)
    known = {(_folder(truth, unit), _folder(guess, partner)) for unit, partner in pairs.items()}
    ours, theirs = {folder for folder, _ in known}, {folder for _, folder in known}
    for name in BARE_NAMES:
        for unit, partner in _more_pairs(truth, guess, name, pairs).items():
            here, there = _folder(truth, unit), _folder(guess, partner)
            if (here, there) in known or not (here in ours or there in theirs):
                pairs[unit] = partner
    return pairs


def _more_pairs(truth: Labels, guess: Labels, name: Name, pairs: dict[Unit, Unit]) -> dict[Unit, Unit]:
    """Those of which both sides have one such name, and no partner yet."""
    theirs, taken = _unique_names(guess, name), set(pairs.values())
    ours = {key: unit for key, unit in _unique_names(truth, name).items() if unit not in pairs and key in theirs}
    return {unit: theirs[key] for key, unit in ours.items() if theirs[key] not in taken}


def _path(labels: Labels, unit: Unit) -> Path:
    video, image = unit
    return _file(_shown(labels.videos[video]), image)


def _folder(labels: Labels, unit: Unit) -> Path:
    return _path(labels, unit).parent


def same_by_name_alone(truth: Labels, guess: Labels) -> list[str]:
    """A sentence where labelled frames have partners in folders of another name, or of no common name: the files may be different ones."""
    behind = _behind(truth), _behind(guess)
    direct, indirect = (truth, guess, paired_units(truth, guess)), (*behind, paired_units(*behind))
    if not direct[-1] and not indirect[-1] and _alike(truth.videos, guess.videos):
        names = f"{truth.videos[0].name} of the labels is taken to be {guess.videos[0].name} of the predictions"
        return [f"{names}, since each file has only one; check that it is."]
    doubtful: dict[tuple[Path, Path], None] = {}
    for frames in zip(truth.labelled_frames, behind[0].labelled_frames, strict=True):
        for frame, (ours, theirs, pairs) in zip(frames, (direct, indirect), strict=True):
            unit = _unit(ours, frame)
            if unit in pairs:
                paths = _path(ours, unit), _path(theirs, pairs[unit])
                if paths[0].parent.name != paths[1].parent.name:
                    doubtful[paths] = None
                break
    if not doubtful:
        return []
    here, there = ("/".join(path.parts[-2:]) for path in next(iter(doubtful)))
    more = f" (and {len(doubtful) - 1} more)" if len(doubtful) > 1 else ""
    return [f"{here} of the labels is taken to be {there} of the predictions{more}, by its name alone; check that it is."]


def frame_pairs(truth: Labels, guess: Labels, strict: bool = True) -> list[tuple[list[LabeledFrame], list[LabeledFrame]]]:
    """For every labelled frame, in the labels' order, what each file holds of it (the second list is empty where the predictions lack it).

    Where no video has a name in common, ``strict`` takes it that each file's only video is the same, and raises FormatError where that
    can't be.
    """
    by_order = False
    pairs, behind = paired_units(truth, guess), paired_units(_behind(truth), _behind(guess))
    if strict and not pairs and not behind:
        by_order = _alike(truth.videos, guess.videos)
        if not by_order:
            raise FormatError(
                f"{truth.path or 'The labels'} and {guess.path or 'the predictions'} have no video in common: "
                f"{_some_names(truth)} against {_some_names(guess)}. Predict on the labelled videos, or rename one of them."
            )
    direct = _found(truth, guess, pairs, by_order)
    indirect = _found(_behind(truth), _behind(guess), behind)
    frames: dict[tuple[int, int], tuple[list[LabeledFrame], list[LabeledFrame]]] = {}
    for frame, here, there in zip(truth.labelled_frames, direct, indirect, strict=True):
        guesses = here if here is not None else [_in_image(each, truth.videos[frame.video]) for each in there or []]
        frames.setdefault((frame.video, frame.index), ([], guesses))[0].append(frame)
    return list(frames.values())


def _in_image(frame: LabeledFrame, video: VideoSource) -> LabeledFrame:
    """A frame of a video as an image of it shows it: in the image's pixels, without animals that lie outside."""
    if video.cut is None:
        return frame
    left, top, right, bottom = video.cut
    moved = _moved(frame, -left, -top)

    def seen(animal: Instance) -> bool:
        return bool(((animal.points > -0.5) & (animal.points < (right - left - 0.5, bottom - top - 0.5))).all(axis=1).any())

    return replace(moved, instances=list(filter(seen, moved.instances)), predicted=list(filter(seen, moved.predicted)))


def _moved(frame: LabeledFrame, x: float, y: float) -> LabeledFrame:
    if not (x or y):
        return frame
    instances = [replace(animal, points=animal.points + (x, y)) for animal in frame.instances]
    return replace(frame, instances=instances, predicted=[replace(animal, points=animal.points + (x, y)) for animal in frame.predicted])


def _behind(labels: Labels) -> Labels:
    """The same frames in the numbers and pixels of the videos that images were taken from, where these are known."""
    places = {video: number for number, video in enumerate(labels.videos) if video.kind == "file"}
    taken = {number: v.original for number, v in enumerate(labels.videos) if v.kind == "images" and v.original is not None}
    videos = list(labels.videos)
    for original in taken.values():
        if places.setdefault(original, len(videos)) == len(videos):
            videos.append(original)
    frames = []
    for frame in labels.frames:
        source, index = labels.videos[frame.video].in_original(frame.index)
        known = frame.video in taken and source is taken[frame.video]  # an image's name may hold no number
        left, top, *_ = labels.videos[frame.video].cut or (0, 0)
        frames.append(_moved(replace(frame, video=places[source], index=index), left, top) if known else frame)
    return replace(labels, videos=videos, frames=frames)


def _alike(ours: list[VideoSource], theirs: list[VideoSource]) -> bool:
    """Whether each has one video only and, by its kind and number of images, these may be the same under different names."""
    if len(ours) != 1 or len(theirs) != 1:
        return False
    a, b = ours[0], theirs[0]
    return _is_sequence(a) == _is_sequence(b) and len(_shown(a).paths) == len(_shown(b).paths)


def _found(truth: Labels, guess: Labels, pairs: dict[Unit, Unit], by_order: bool = False) -> list[list[LabeledFrame] | None]:
    """For each labelled frame the same frame in the predictions; None where its video or image has no partner."""

    def place(labels: Labels, frame: LabeledFrame) -> tuple[Unit, int]:
        unit = (0, -1) if by_order else _unit(labels, frame)
        return unit, frame.index if unit[1] < 0 else 0

    guesses: dict[tuple[Unit, int], list[LabeledFrame]] = defaultdict(list)
    for frame in guess.frames:
        guesses[place(guess, frame)].append(frame)
    partners = {(0, -1): (0, -1)} if by_order else pairs
    places = [place(truth, frame) for frame in truth.labelled_frames]
    return [guesses.get((partners[unit], number), []) if unit in partners else None for unit, number in places]


def _some_names(labels: Labels) -> str:
    names = [video.name for video in labels.videos]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no video"

"""Any native format to any other, and what gets lost on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from converters.deeplabcut_predictions import existing_companions
from converters.deeplabcut_writing import video_names
from converters.labels import FormatError, LabeledFrame, Labels, Skeleton
from converters.project import (
    ANALYSIS,
    COCO,
    DLC,
    DLC_PREDICTIONS,
    PACKAGE,
    SLEAP,
    files_written,
    format_of,
    read_project,
    refuse_losing,
    write_predictions,
    write_project,
)

LABELS, PREDICTIONS = "labels", "predictions"

# What each format cannot hold. The writers of labels to COCO and DeepLabCut say it themselves.
_NO_NEGATIVE = "{negative} frames are marked as empty (negative), which {format} cannot say; they become frames that nothing is known of."
_NO_EMPTY = "{empty} frames without animals leave no trace in {format}."
_NO_SYMMETRIES = "{format} has no symmetries (which keypoint is the left or right one of another); {symmetries} pairs are left out."
_NO_EDGES = "{format} has no edges between keypoints; {edges} are left out."
_UNTRACKED = (
    "{untracked} animals have no track; {format} numbers them, in each frame anew, and its readers take the numbers for tracks "
    "(smp-predict --track follows animals)."
)
_HIDDEN = "{hidden} predicted animals have the track of a labelled one in the same frame, where {format} keeps the labelled one alone."
_LOSSES = {
    SLEAP: [],
    PACKAGE: ["{only_predicted} frames have predictions only; their poses are in the package, but not their images."],
    ANALYSIS: [
        _UNTRACKED,
        _HIDDEN,
        _NO_NEGATIVE,
        _NO_EMPTY,
    ],
    COCO: [
        "{format} names no keypoints and images; keep {source} or its COCO labels with it.",
        "{format} has no tracks; the {tracks} are in the extra field 'track', which other programs ignore.",
        _NO_EDGES,
        _NO_SYMMETRIES,
        _NO_NEGATIVE,
        _NO_EMPTY,
    ],
    DLC_PREDICTIONS: [
        "{format} has a score (likelihood) for each keypoint, but none for a whole animal; these are left out.",
        "{labelled} animals are a person's, which {format} cannot say; their keypoints get the likelihood 1.",
        _UNTRACKED,
        _HIDDEN,
        _NO_EDGES,
        _NO_SYMMETRIES,
        _NO_NEGATIVE,
    ],
}


def convert(
    source: Path,
    target: Path,
    *,
    only: str | None = None,
    suffix: str | None = None,
    video_root: Path | None = None,
    images: Path | None = None,
    category: str | None = None,
    annotations: Path | None = None,
    refuse: Callable[[Collection[Path]], None] = refuse_losing,
) -> list[str]:
    """Read one native format and write another, whole or not at all. Where ``target`` can hold only one, labels go before predictions.

    Args:
        source: any path that `read_project` reads.
        target: any path that `write_project` or `write_predictions` writes; an existing file is replaced, but see `refuse_losing`.
        only: "labels" or "predictions": leave the others out.
        suffix: "h5" or "csv": ``target`` is a folder for DeepLabCut's predictions of each video, and not for a project.
        video_root, images, category, annotations: as in `read_project`. Videos are needed only where their images are written.
        refuse: raises where one of the files that will be written is not to be lost.

    Returns:
        What was repaired or left out on reading, what could not be found, and what ``target`` cannot hold, a sentence each.

    Raises:
        FormatError: as the reader and the writer, ``target`` is ``source`` or not to be lost, or can hold nothing of it.
    """
    source, target = Path(source), Path(target)
    kind = format_of(target)
    if suffix is not None:
        if kind != DLC or (target / "config.yaml").is_file():
            raise FormatError(f"{target}: --format {suffix} is for a folder that is no DeepLabCut project; leave it out, or name one.")
        kind = DLC_PREDICTIONS
    if len({(path / "config.yaml" if path.is_dir() else path).resolve() for path in (source, target)}) == 1:
        raise FormatError(f"{target} is the input and would be overwritten; give the output another name.")
    if suffix is None:
        refuse([target])
    for_coco = {"--images": images, "--category": category, "--annotations": annotations}
    if given := [option for option, value in for_coco.items() if value is not None and format_of(source) != COCO]:
        raise FormatError(f"{source} is no COCO file, and {given[0]} is for these; leave it out.")
    labels = read_project(source, video_root, require_videos=False, images=images, category=category, annotations=annotations)
    part = _part(labels, kind, only, source, target)
    again = {format_of(source), kind} in ({SLEAP, PACKAGE}, {kind}) and not (kind == COCO and part == PREDICTIONS)
    notes = [*labels.notes, *(labels.left_behind if again else []), *_missing(labels)]
    labels = _kept(labels, part)
    if kind in (ANALYSIS, DLC_PREDICTIONS):
        labels = _used_videos(labels, target, several=suffix is not None)
    inputs = [source, *([annotations] if annotations is not None else [])]
    if kind in (DLC, PACKAGE) or (kind == COCO and part != PREDICTIONS):
        notes += write_project(target, labels, inputs)
        return notes + (lost(Contents.of(labels.frames), labels.skeleton, kind, source.name, target) if kind == PACKAGE else [])
    if suffix is not None:
        refuse(files_written(target, labels.videos, to_folder=True))
        notes += _renamed(labels, target)
    elif kind == DLC_PREDICTIONS and (beside := existing_companions(target, labels.videos[0])):
        notes.append(f"{target}: what belongs beside it and is there already stays as it is: {', '.join(file.name for file in beside)}.")
        inputs += beside
    write_predictions(target, labels.skeleton, labels.videos, labels.frames, {"source": str(source.absolute())}, inputs)
    return notes + lost(Contents.of(labels.frames), labels.skeleton, kind, source.name, target)


def _part(labels: Labels, kind: str, only: str | None, source: Path, target: Path) -> str | None:
    """What to write: labels, predictions, or None for both."""
    if only is not None and not _has(labels, only):
        raise FormatError(f"{source} holds no {only}; leave --only out.")
    takes = {DLC: LABELS, PACKAGE: LABELS, DLC_PREDICTIONS: PREDICTIONS}.get(kind)  # at least these
    if takes is not None and (only not in (None, takes) or not _has(labels, takes)):
        other = PREDICTIONS if takes == LABELS else LABELS
        what = f"only {other}" if only is not None or _has(labels, other) else "no animals"
        chosen = "" if only is None else f" with --only {only}"
        folder = " (and a folder with --format h5 takes predictions)" if kind == DLC else ""
        raise FormatError(
            f"{target} takes {takes}, but there are {what} in {source}{chosen}; .slp and .json files take both kinds{folder}."
        )
    if kind == COCO and only is None:
        return PREDICTIONS if _has(labels, PREDICTIONS) and not _has(labels, LABELS) else None
    return only


def _has(labels: Labels, part: str) -> bool:
    return bool(labels.labelled_frames) if part == LABELS else any(frame.predicted for frame in labels.frames)


def _kept(labels: Labels, part: str | None) -> Labels:
    if part == LABELS:
        kept = [replace(frame, predicted=[]) for frame in labels.frames if frame.instances or frame.negative or not frame.predicted]
    elif part == PREDICTIONS:
        kept = [replace(frame, instances=[], negative=False) for frame in labels.frames if frame.predicted or not _labelled(frame)]
    else:
        kept = labels.frames
    return replace(labels, frames=kept)


def _labelled(frame: LabeledFrame) -> bool:
    return frame.negative or bool(frame.instances)


def _missing(labels: Labels) -> list[str]:
    missing = [path for video in labels.videos for path in video.paths if not os.path.exists(path)]
    if not missing:
        return []
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    return [f"{labels.path} names {missing[0]}{more}, not found; the output names the same. --video-root FOLDER says where else to look."]


def _used_videos(labels: Labels, target: Path, several: bool) -> Labels:
    """The same with nothing but the videos that have animals, else the first. FormatError where ``target`` cannot hold ``several``."""
    used = sorted({frame.video for frame in labels.frames if frame.instances or frame.predicted}) or [0]
    if len(used) > 1 and not several:
        names = ", ".join(labels.videos[number].paths[0].name for number in used[:3])
        raise FormatError(
            f"{target} can hold one video, and {len(used)} have animals ({names}...); write a .slp, or name a folder and --format h5 for "
            "DeepLabCut predictions of each."
        )
    places = {number: place for place, number in enumerate(used)}
    frames = [replace(frame, video=places[frame.video]) for frame in labels.frames if frame.video in places]
    return replace(labels, videos=[video for number, video in enumerate(labels.videos) if number in places], frames=frames)


def _renamed(labels: Labels, target: Path) -> list[str]:
    called = zip(labels.videos, video_names(labels.videos), strict=True)
    renamed = [(video.name, name) for video, name in called if [name] != video_names([video])]
    return [f"{target}: {video} is called {name} there, for another one has its name." for video, name in renamed]


@dataclass
class Contents:
    """What frames hold, counted as they pass, to say what a format cannot hold."""

    negative: int = 0
    empty: int = 0
    only_predicted: int = 0
    labelled: int = 0
    hidden: int = 0
    untracked: int = 0
    most: int = 0  # animals in a frame
    tracks: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, frames: Iterable[LabeledFrame]) -> Contents:
        """Those of all frames."""
        contents = cls()
        for frame in frames:
            contents.add(frame)
        return contents

    def add(self, frame: LabeledFrame) -> None:
        """Count one more frame."""
        animals = [*frame.instances, *frame.predicted]
        self.negative += frame.negative
        self.empty += not (frame.negative or animals)
        self.only_predicted += bool(frame.predicted) and not _labelled(frame)
        self.labelled += len(frame.instances)
        self.hidden += len(animals) - len(frame.shown)
        self.untracked += sum(animal.track is None for animal in animals)
        self.most = max(self.most, len(animals))
        self.tracks |= {animal.track for animal in animals if animal.track is not None}


def lost(contents: Contents, skeleton: Skeleton, kind: str, source: str, target: Path) -> list[str]:
    """One sentence for each thing that was there and that the format ``kind`` cannot hold; ``source`` and ``target`` are named in them."""
    alone = contents.most < 2 and not contents.tracks  # then no numbers are needed
    counts = {
        "negative": contents.negative,
        "empty": contents.empty,
        "only_predicted": contents.only_predicted,
        "labelled": contents.labelled,
        "hidden": contents.hidden,
        "tracks": len(contents.tracks),
        "untracked": 0 if alone else contents.untracked,
        "edges": len(skeleton.edges),
        "symmetries": len(skeleton.symmetries),
    }
    names = {COCO: "a list of COCO results", ANALYSIS: "a SLEAP analysis file", DLC_PREDICTIONS: "a file of DeepLabCut predictions"}
    told = [text for text in _LOSSES[kind] if all(number or f"{{{name}}}" not in text for name, number in counts.items())]
    return [f"{target}: {text.format(**counts, format=names.get(kind, kind), source=source)}" for text in told]

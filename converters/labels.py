"""The internal format: what every native format is read into and written from.

Conventions kept everywhere in the project:

* points are ``(x, y)`` in *frame pixels*, float64, with the centre of the top-left pixel at (0, 0);
* NaN means "not labelled"; a labelled point is always finite in both coordinates;
* an instance is one animal in one frame; a frame without instances is only known to be empty when it is marked ``negative``.

The classes check themselves once, on construction; everything behind them may trust what they hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np

MOST_FRAMES = 10**9  # a year of video; larger numbers are damage, and make tables without end
MOST_PIXELS = 1e9  # so far from the corner no picture reaches
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of characters


def printable(text: str) -> str:
    """The same on one line, without what a terminal would obey."""
    return _UNWRITABLE.sub("?", " ".join(text.splitlines()))


class FormatError(ValueError):
    """Bad input. The message names the file, the field and what to do about it, for a person to read.

    It is one line of 1,500 characters at most, whatever texts of a damaged file are in it.
    """

    def __init__(self, message: str) -> None:
        line = printable(message)
        super().__init__(line if len(line) <= 1500 else f"{line[:1000]} ... {line[-495:]}")


def _is_text(name: object) -> bool:
    """Whether every format can hold it."""
    return isinstance(name, str) and not _UNWRITABLE.search(name)


@dataclass(frozen=True)
class Skeleton:
    """Named keypoints, the edges drawn between them, and left/right pairs, both as index pairs into ``keypoints``."""

    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    symmetries: tuple[tuple[int, int], ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.keypoints:
            raise FormatError("The skeleton has no keypoints; add at least one.")
        if bad := [name for name in self.keypoints if not name or not _is_text(name)]:
            raise FormatError(f"The skeleton has a keypoint called {bad[0]!r}; give it a name of letters.")
        if len(set(self.keypoints)) != len(self.keypoints):
            raise FormatError(f"The skeleton names a keypoint twice: {', '.join(self.keypoints)}. Rename one of them.")
        for kind, pairs in (("edge", self.edges), ("symmetry", self.symmetries)):
            for a, b in pairs:
                if not (0 <= a < len(self.keypoints) and 0 <= b < len(self.keypoints)) or a == b:
                    raise FormatError(
                        f"The skeleton's {kind} between keypoints number {a + 1} and {b + 1} is no pair of its {len(self.keypoints)} "
                        "keypoints; remove or correct it."
                    )

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def mirrored(self) -> list[int]:
        """Index of each keypoint's mirror image (itself where it has none): the order of keypoints after a flip."""
        order = list(range(len(self)))
        for a, b in self.symmetries:
            order[a], order[b] = b, a
        return order


def symmetric_pairs(skeleton: Skeleton) -> list[tuple[int, int]]:
    """Keypoints (left, right) that are each other's mirror image.

    A pair is a symmetry of the skeleton, or two names that differ in "left"/"right" or one letter l/r. A symmetry whose names do not tell
    (A1, A2) counts its first keypoint as left: which of the two is meant matters less than that they differ.
    """
    names = [name.casefold().replace("left", "l").replace("right", "r") for name in skeleton.keypoints]
    pairs = {frozenset(pair): pair for pair in skeleton.symmetries}
    for a in range(len(names)):
        for b in range(len(names)):
            pair = frozenset((a, b))
            taken = any(pair & other for other in pairs if pair != other)  # a keypoint has one mirror image
            if not taken and _side_letters(names[a], names[b]) == ("l", "r"):
                pairs[pair] = (a, b)
    return list(pairs.values())


def _side_letters(a: str, b: str) -> tuple[str, str] | None:
    """The letters in the only place where two names of one length differ."""
    if len(a) != len(b):
        return None
    different = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    return different[0] if len(different) == 1 else None


@dataclass(eq=False)
class Instance:
    """One labelled animal. ``points``: (K, 2) frame pixels, NaN where not labelled."""

    points: np.ndarray
    track: str | None = None

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise FormatError(f"An instance's points have shape {points.shape}; (keypoints, 2) is needed.")
        points[~(np.abs(points) < MOST_PIXELS).all(axis=1)] = np.nan
        self.points = points

    @property
    def labelled(self) -> np.ndarray:
        """(K,) bool: which keypoints have a position."""
        return ~np.isnan(self.points[:, 0])


def stacked(points: Sequence[np.ndarray], keypoints: int) -> np.ndarray:
    """Points (K, 2) of n animals as one array (n, K, 2), also of none."""
    return np.array(points, dtype=np.float64).reshape(-1, keypoints, 2)


@dataclass(eq=False)
class PredictedInstance(Instance):
    """One predicted animal. ``score`` and ``point_scores`` (K,) are in [0, 1] when this project's models made them.

    A score that is no finite number becomes 0.
    """

    score: float = 1.0
    point_scores: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        scores = np.array(self.point_scores, dtype=np.float64)
        self.point_scores = scores if scores.size else np.where(self.labelled, 1.0, 0.0)
        if self.point_scores.shape != (len(self.points),):
            raise FormatError(f"An instance of {len(self.points)} keypoints has point scores of shape {self.point_scores.shape}.")
        self.point_scores = np.where(np.isfinite(self.point_scores), self.point_scores, 0.0)
        self.score = float(self.score) if math.isfinite(self.score) else 0.0


Place = tuple[Path, str | None, int]  # file with links followed, HDF5 group in a package, number there (0 of an image)


@dataclass(frozen=True)
class VideoSource:
    """Where frames come from: a video file, an image sequence, or images embedded in a ``.pkg.slp``.

    A small picklable reference; ``converters.video.open_video`` opens it.

    Attributes:
        paths: one video file, one ``.pkg.slp``, or the images of a sequence in frame order. Absolute, if only on the
            computer that a project comes from.
        embedded: HDF5 group that holds the images inside ``paths[0]`` (a ``.pkg.slp``), else None.
        original: the video that the images were taken from, as the project names it; it may be absent. `in_original` says which frame of
            it an image is.
        cut: (left, top, right, bottom) of the part of the original's frames that the images show, pixels; None: all of them.
        sizes: (height, width) that the project says the video file, or each image, has; None where it does not. They may be wrong, and tell
            nothing apart.
        kind: "file", "images" or "embedded".
    """

    paths: tuple[Path, ...]
    embedded: str | None = None
    original: VideoSource | None = None
    cut: tuple[int, int, int, int] | None = None
    sizes: tuple[tuple[int, int] | None, ...] = field(default=(), repr=False, compare=False)

    @property
    def kind(self) -> str:
        """``file``, ``images`` or ``embedded``."""
        if self.embedded is not None:
            return "embedded"
        return "images" if len(self.paths) != 1 or self.paths[0].suffix.lower() in IMAGE_SUFFIXES else "file"

    def in_original(self, index: int) -> tuple[VideoSource, int]:
        """The video that a frame was taken from and its number there; the frame itself where that is unknown.

        Embedded images keep the video's numbers. Of an image sequence the number ends the file's name (DeepLabCut's img0042.png).
        """
        if self.original is None:
            return self, index
        if self.kind == "embedded":
            return self.original, index
        digits = re.search(r"([0-9]+)$", self.paths[index].stem) if index < len(self.paths) else None
        return (self.original, int(digits[1])) if digits else (self, index)

    def place(self, index: int) -> Place:
        """What tells a frame from all others: an image's file, or the video's (links followed), with its group in a package and number."""
        if self.kind == "images" and index < len(self.paths):
            return self.paths[index].resolve(), None, 0
        return (self.paths[0].resolve() if self.paths else Path()), self.embedded, index

    def places(self, index: int) -> set[Place]:
        """A frame's place, and that in the video it was taken from: several projects may share a video."""
        source, number = self.in_original(index)
        return {self.place(index), source.place(number)}

    def title(self, index: int) -> str:
        """What a person calls a frame: the image's name, with its folder, or the video's with the number."""
        if self.kind == "images" and index < len(self.paths):
            return "/".join(self.paths[index].parts[-2:])
        source, number = self.in_original(index)
        return f"{source.paths[0].name if source.paths else source.name}, frame {number}"

    @property
    def written(self) -> list[str]:
        """What files call the ``paths``: absolute, with slashes. A Windows path stays as it is where it means nothing."""
        return [(path if PureWindowsPath(str(path)).is_absolute() else path.absolute()).as_posix() for path in self.paths]

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0].parent} ({len(self.paths)} images)"


def files_of(videos: Iterable[VideoSource]) -> list[Path]:
    """Every file that a video is read from, or was once: what an output must not overwrite."""
    return [file for video in videos for source in (video, video.original) if source is not None for file in source.paths]


IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(eq=False)
class LabeledFrame:
    """One frame of one video with what is known about it.

    Attributes:
        video: index into ``Labels.videos``.
        index: frame number in that video, from 0.
        instances: animals a person labelled.
        predicted: animals a model predicted; never used as labels unless asked for.
        negative: a person states that no animal is here.
        unposed: (4,) arrays, left, top, right and bottom in frame pixels, of boxes around animals that nobody knows the keypoints of.
    """

    video: int
    index: int
    instances: list[Instance] = field(default_factory=list)
    predicted: list[PredictedInstance] = field(default_factory=list)
    negative: bool = False
    unposed: list[np.ndarray] = field(default_factory=list)

    @property
    def shown(self) -> list[Instance]:
        """A person's animals, then a model's that have none of their tracks: all that a format holds in which a track has one place."""
        labelled = {animal.track for animal in self.instances} - {None}
        return [*self.instances, *(animal for animal in self.predicted if animal.track not in labelled)]


def check_frame(path: Path, frame: LabeledFrame, skeleton: Skeleton, videos: Sequence[VideoSource]) -> None:
    """FormatError where a frame is of none of the ``videos``, or an animal has other keypoints than the file ``path`` that it is for."""
    if not 0 <= frame.video < len(videos) or frame.index < 0:
        raise FormatError(f"{path}: frame {frame.index} of video {frame.video} cannot be written; there are {len(videos)} videos.")
    for instance in (*frame.instances, *frame.predicted):
        if len(instance.points) != len(skeleton):
            animal = f"an instance of {len(instance.points)} keypoints in frame {frame.index} of {videos[frame.video].name}"
            raise FormatError(f"{path}: {animal} cannot be written; the skeleton has {len(skeleton)}.")


@dataclass(eq=False)
class Labels:
    """A project: one skeleton, videos, and frames.

    ``path`` is the file it was read from, for messages; ``notes`` what its reader repaired or left out, a sentence each, for the user.
    ``left_behind`` is what matters only to those who write the same format again: what that file lacks or has anew, a sentence each.
    ``one_animal``: the project says that there is one in a picture; others may have one, too.
    """

    skeleton: Skeleton
    videos: list[VideoSource]
    frames: list[LabeledFrame] = field(default_factory=list)
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    one_animal: bool = False

    def __post_init__(self) -> None:
        where = f"{self.path}: " if self.path else ""
        tracks: set[str] = set()
        for frame in self.frames:
            if not 0 <= frame.video < len(self.videos):
                raise FormatError(f"{where}a frame names video {frame.video}, but there are {len(self.videos)} videos.")
            if frame.index < 0:
                raise FormatError(f"{where}a frame of {self.videos[frame.video].name} has the number {frame.index}; numbers start at 0.")
            if frame.index >= MOST_FRAMES:
                raise FormatError(f"{where}a frame has the number {frame.index}, and no video is so long; correct it, or save it again.")
            for instance in (*frame.instances, *frame.predicted):
                if instance.track is not None and instance.track not in tracks:
                    if not _is_text(instance.track):
                        raise FormatError(f"{where}frame {frame.index} has a track called {instance.track!r}; give it a name of letters.")
                    tracks.add(instance.track)
                if len(instance.points) != len(self.skeleton):
                    raise FormatError(
                        f"{where}frame {frame.index} of {self.videos[frame.video].name} holds an instance of {len(instance.points)} "
                        f"keypoints, but the skeleton has {len(self.skeleton)}."
                    )

    @property
    def labelled_frames(self) -> list[LabeledFrame]:
        """Frames to learn from: with at least one labelled point, or marked negative."""
        return [f for f in self.frames if f.negative or any(i.labelled.any() for i in f.instances)]

"""Poses drawn on frames, and frames written to a video.

Smooth edges come from drawing each animal three times too large on a small transparent patch and shrinking that: whole frames need not be
enlarged, so a video of 640 x 480 is drawn far faster than it plays. Colours are told apart by colour-blind people and stand on a dark
outline, so that they show on light and on dark fur.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from converters.files import written_whole
from converters.labels import FormatError, Skeleton, symmetric_pairs
from smp_plugin.similarity import animal_areas, assign

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    Array = NDArray[np.float64]

Colour = tuple[int, int, int]

# Okabe and Ito's palette, its black and dark blue replaced by tones that show on dark frames.
PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 190, 130),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (160, 150, 255),
    (250, 150, 150),
)
OUTLINE: Colour = (18, 18, 24)
FOUND: Colour = (240, 240, 236)  # poses among marks of errors: what is coloured is wrong
MISSED: Colour = (255, 64, 56)
INVENTED: Colour = (255, 222, 0)
DOUBLED: Colour = (236, 120, 255)
OVERSAMPLING = 3
TAG = "smp-plugin overlay"  # comment in an overlay
SIDES = "A left keypoint has a light centre, a right one a dark centre."  # where a skeleton has such pairs


def animal_colours(count: int) -> list[Colour]:
    """One colour per animal; they repeat after eight."""
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def keypoint_sides(skeleton: Skeleton) -> list[str]:
    """ "left", "right" or "" for each keypoint."""
    sides = [""] * len(skeleton)
    for a, b in symmetric_pairs(skeleton):
        sides[a], sides[b] = "left", "right"
    return sides


def line_width(poses: Array, size: tuple[int, int]) -> float:
    """A width in pixels that suits animals of this size, (n, K, 2), on a frame of (height, width)."""
    spans = [float(np.nanmax(np.ptp(p[~np.isnan(p[:, 0])], axis=0))) for p in poses if (~np.isnan(p[:, 0])).sum() > 1]
    most = max(2.0, max(size) / 250)
    return float(np.clip(0.03 * float(np.median(spans)), max(1.2, max(size) / 900), most)) if spans else most / 2


def draw_poses(
    image: Frame,
    skeleton: Skeleton,
    poses: Array,
    colours: Sequence[Colour] | None = None,
    point_scores: Array | None = None,
    width: float | None = None,
) -> Frame:
    """A copy of the frame with the animals on it.

    Args:
        image: (H, W, 3) uint8, RGB.
        skeleton: whose edges are drawn; left and right are marked as `SIDES` says.
        poses: (n, K, 2) frame pixels, NaN where there is no point.
        colours: n of them; default: the palette in order.
        point_scores: (n, K) in [0, 1]; unsure points are paler.
        width: of the lines, frame pixels; default: by the size of the animals.
    """
    canvas = Image.fromarray(np.ascontiguousarray(image))
    poses = np.asarray(poses, dtype=np.float64).reshape(-1, len(skeleton), 2)
    width = width or line_width(poses, image.shape[:2])
    sides = keypoint_sides(skeleton)
    for n, (pose, colour) in enumerate(zip(poses, colours or animal_colours(len(poses)), strict=True)):
        scores = np.ones(len(pose)) if point_scores is None else np.nan_to_num(np.asarray(point_scores[n], dtype=np.float64))
        _draw_animal(canvas, skeleton, pose, colour, np.clip(scores, 0.0, 1.0), sides, width)
    return np.array(canvas)


def _draw_animal(
    canvas: Image.Image, skeleton: Skeleton, pose: Array, colour: Colour, scores: Array, sides: list[str], width: float
) -> None:
    seen = np.isfinite(pose[:, 0] + pose[:, 1])
    if not seen.any():
        return
    margin = 3 * width + 6
    low = np.maximum(np.floor(np.min(pose[seen], axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(np.max(pose[seen], axis=0) + margin), canvas.size).astype(int)
    if np.any(high <= low):  # outside the frame
        return
    s = OVERSAMPLING
    # The empty patch has the outline's colour, so that shrinking leaves no foreign fringe.
    patch = Image.new("RGBA", (int(high[0] - low[0]) * s, int(high[1] - low[1]) * s), (*OUTLINE, 0))
    pen = ImageDraw.Draw(patch)
    at = (np.nan_to_num(pose) - low + 0.5) * s  # centre of the top-left pixel is (0, 0): its corner is half a pixel before
    alpha = (70 + 185 * scores).round().astype(int)
    edges = [(a, b) for a, b in skeleton.edges if seen[a] and seen[b]]
    for fill, extra in ((OUTLINE, 0.9), (colour, 0.0)):
        for a, b in edges:
            thick = max(1, round((width + 2 * extra) * s))
            pen.line([tuple(at[a]), tuple(at[b])], fill=(*fill, int(min(alpha[a], alpha[b]))), width=thick)
    dot = 1.15 * width if seen.sum() > 1 else max(1.8 * width, 3.5)  # one point alone is easily overlooked
    for k in np.flatnonzero(seen):
        x, y = at[k]
        for fill, radius in ((OUTLINE, dot + 0.9), (colour, dot)):
            r = radius * s
            pen.ellipse([x - r, y - r, x + r, y + r], fill=(*fill, int(alpha[k])))
        if sides[k]:
            r = 0.54 * dot * s
            pen.ellipse([x - r, y - r, x + r, y + r], fill=((255, 255, 255) if sides[k] == "left" else OUTLINE) + (int(alpha[k]),))
    small = patch.reduce(s)
    canvas.paste(small, (int(low[0]), int(low[1])), small)


@dataclass(frozen=True)
class Verdict:
    """What is right and wrong with the m predictions of a frame with n labelled animals, by the rule of ``similarity.assign``."""

    pairs: list[tuple[int, int]]  # labelled animal, its prediction
    missed: list[int]  # labelled animals
    invented: list[int]  # predictions where no animal is labelled
    doubled: list[int]  # predictions beyond the first of an animal

    def __str__(self) -> str:
        counts = [(len(self.missed), "missed"), (len(self.invented), "invented"), (len(self.doubled), "doubled")]
        return ", ".join(f"{count} {name}" for count, name in counts if count) or "all animals found"


def judge(truth: Array, poses: Array, areas: Array | None = None) -> Verdict:
    """Compare the predictions (m, K, 2) of a frame with its labels (n, K, 2), frame pixels, NaN where there is no point.

    ``areas``: (n,) px^2; default: as this frame alone suggests.
    """
    found = assign(truth, poses, animal_areas([truth])[0] if areas is None else areas)
    rows, columns = {row for row, _ in found.pairs}, {column for _, column in found.pairs}
    missed = [row for row in range(len(truth)) if row not in rows]
    spare = [column for column in range(len(poses)) if column not in columns]
    return Verdict(found.pairs, missed, [c for c in spare if not found.near[c]], [c for c in spare if found.near[c]])


def draw_errors(image: Frame, skeleton: Skeleton, truth: Array, poses: Array, verdict: Verdict, least: float = 1.0) -> Frame:
    """A copy of the frame with predictions and what is wrong with them.

    A red line leads from a labelled point to the predicted one, a red ring stands where a point was not predicted; a missed animal has a
    dashed red box, an invented one a yellow box, a doubled one a double violet box.

    Args:
        image: (H, W, 3) uint8, RGB.
        skeleton: whose edges are drawn.
        truth: (n, K, 2) labelled animals, frame pixels.
        poses: (m, K, 2) predicted ones.
        verdict: of ``judge`` on these two.
        least: width of a line, pixels: more for a picture that is shown smaller than it is.
    """
    width = max(least, line_width(np.concatenate([truth, poses]), image.shape[:2]))
    drawn = Image.fromarray(draw_poses(image, skeleton, poses, [FOUND] * len(poses), width=width))
    marks = _Marks(drawn.size, width)
    for row, column in verdict.pairs:
        for labelled, predicted in zip(truth[row], poses[column], strict=True):
            if np.isfinite(labelled).all():
                marks.error(labelled, predicted)
    for row in verdict.missed:
        for a, b in skeleton.edges:
            if np.isfinite(truth[row][[a, b]]).all():
                marks.line(truth[row][a], truth[row][b], MISSED, 0.6)
        marks.box(truth[row], MISSED, dashed=True)
    for columns, colour in ((verdict.invented, INVENTED), (verdict.doubled, DOUBLED)):
        for column in columns:
            marks.box(poses[column], colour)
            if colour == DOUBLED:
                marks.box(poses[column], colour, inset=2.6)
    small = marks.canvas.reduce(OVERSAMPLING)
    drawn.paste(small, (0, 0), small)
    return np.array(drawn)


class _Marks:
    """A transparent sheet, three times too large, on which errors are marked; positions and lengths are those of the frame, pixels."""

    def __init__(self, size: tuple[int, int], width: float) -> None:
        self.size, self.width = size, width
        self.canvas = Image.new("RGBA", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), (*OUTLINE, 0))
        self.pen = ImageDraw.Draw(self.canvas)

    def line(self, start: Array, end: Array, colour: Colour, thickness: float) -> None:
        """``thickness``: in widths of a line."""
        ends = [tuple(np.clip((np.asarray(p) + 0.5) * OVERSAMPLING, -1e5, 1e5)) for p in (start, end)]
        for fill, extra in ((OUTLINE, 1.4), (colour, 0.0)):
            self.pen.line(ends, fill=(*fill, 150 if extra else 255), width=max(1, round((self.width * thickness + extra) * OVERSAMPLING)))

    def error(self, labelled: Array, predicted: Array) -> None:
        """From where a point is to where it was predicted; nothing where the drawn points overlap."""
        if np.isnan(predicted).any():
            self._ring(labelled, 1.9 * self.width)
        elif np.linalg.norm(predicted - labelled) > 1.2 * self.width:
            self.line(labelled, predicted, MISSED, 0.8)

    def _ring(self, centre: Array, radius: float) -> None:
        low, high = ((centre + 0.5 + side * radius) * OVERSAMPLING for side in (-1, 1))
        self.pen.ellipse([*low, *high], outline=(*MISSED, 255), width=max(1, round(0.8 * self.width * OVERSAMPLING)))

    def box(self, pose: Array, colour: Colour, dashed: bool = False, inset: float = 0.0) -> None:
        """Around an animal, inside of the frame. ``inset``: how much smaller, in widths of a line."""
        seen = pose[np.isfinite(pose).all(axis=1)]
        if not len(seen):
            return
        margin, edge = (4 - inset) * self.width + 3, np.array(self.size) - 1 - self.width
        x0, y0 = np.clip(seen.min(axis=0) - margin, self.width, edge)
        x1, y1 = np.clip(seen.max(axis=0) + margin, self.width, edge)
        corners = [np.array(corner) for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))]
        for start, end in zip(corners, corners[1:], strict=False):
            pieces = max(1, round(float(np.linalg.norm(end - start)) / (5 * self.width))) if dashed else 1
            for n in range(pieces):
                self.line(start + (end - start) * n / pieces, start + (end - start) * (n + (0.55 if dashed else 1)) / pieces, colour, 0.8)


def is_overlay(path: Path) -> bool:
    """Whether a file was written by `OverlayWriter`, which says so in it."""
    import av

    try:
        with av.open(str(path), format="mp4") as container:
            comment = container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return False
    return comment == TAG


class OverlayWriter:
    """Frames with poses on them as an H.264 mp4; a context manager.

    The video is written under a temporary name beside ``path`` and moved there when complete. Interrupted with Ctrl-C, it keeps the frames
    so far; on any other error nothing is left. Odd sizes are padded to even ones, and frames of another size than the first are fitted into
    its frame.

    Args:
        path: the video to write; its folder is made.
        skeleton: of the poses.
        fps: frames per second.
    """

    def __init__(self, path: Path, skeleton: Skeleton, fps: float = 25.0) -> None:
        if path.suffix.lower() != ".mp4":
            raise FormatError(f"{path}: an overlay is written as .mp4; name it so.")
        self.path, self.skeleton = path, skeleton
        self.fps = fps if math.isfinite(fps) and fps > 0 else 25.0
        self._file = contextlib.ExitStack()  # appears whole under its name
        self._container: Any = None
        self._stream: Any = None
        self._width: float | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a frame."""
        return self._stream is not None

    def write(self, image: Frame, poses: Array, colours: Sequence[Colour] | None = None, point_scores: Array | None = None) -> None:
        """One frame more; arguments as in ``draw_poses``."""
        import av

        if self._width is None and len(poses):  # of the first frame with animals: a width that changes flickers
            self._width = line_width(np.asarray(poses), image.shape[:2])
        drawn = draw_poses(image, self.skeleton, poses, colours, point_scores, self._width)
        if self._stream is None:
            self._open(drawn.shape[:2])
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(self._fitted(drawn), format="rgb24")):
            self._container.mux(packet)

    def _open(self, size: tuple[int, ...]) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            part = stack.enter_context(written_whole(self.path))
            self._container = av.open(str(part), mode="w", format="mp4", options={"movflags": "faststart"})
            self._file = stack.pop_all()
        self._container.metadata["comment"] = TAG
        self._stream = self._container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
        self._stream.height, self._stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}

    def _fitted(self, image: Frame) -> Frame:
        height, width = self._stream.height, self._stream.width
        factor = min(height / image.shape[0], width / image.shape[1])
        if factor < 1 or image.shape[0] + 1 < height and image.shape[1] + 1 < width:
            size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        padding = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
        return np.ascontiguousarray(np.pad(image, padding, mode="edge" if max(padding[0][1], padding[1][1]) <= 1 else "constant"))

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._container is None:
            return
        if kind is not None and not issubclass(kind, (KeyboardInterrupt, GeneratorExit)):
            try:
                self._container.close()
            finally:
                self._file.__exit__(kind, error, trace)
            return
        with self._file:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()

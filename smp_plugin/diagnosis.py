"""What looks wrong with labels: each finding is a sentence that names the place and the remedy, and the animals to look at.

`certain` says what the labels alone prove, `likely` what a person has to judge by the pictures. Everything here is a function of the
labels, of the sizes of their frames and of thumbnails; nothing is read or written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from converters.labels import LabeledFrame, Labels, Place, symmetric_pairs
from smp_plugin.preparation import FEW_VALIDATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Thumbnail = NDArray[np.int16]

SAME = 0.02  # share of the animal's length by which two poses of one animal differ at most
OUTSIDE = 1.0  # pixels beyond the border from which a point is outside: clicks on the border itself are meant
FEW_ANIMALS = 10  # statistics over fewer say nothing
ONE_WAY = 0.75  # share of animals that show left and right the same way round, from which the others are conspicuous
REVERSED = 0.5  # of the usual distance between left and right: so far the other way round is not by chance
UNUSUAL, UNUSUAL_LENGTHS = 8.0, 0.35  # medians of a keypoint's own deviation, and animal lengths, beyond which it is far off
MOST_UNUSUAL = 12  # shown
THUMBNAIL = 64  # pixels; in much smaller ones, small animals could not be seen to move
ALIKE = 3  # levels of 256 by which thumbnails of nearly the same picture differ at most
FEW_FRAMES = 5  # labelled frames of a video from which it may be called frozen


@dataclass(frozen=True)
class Spot:
    """Where to look: a frame, and which of its animals."""

    frame: LabeledFrame
    animals: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One problem, and what to do about it; ``spots`` worst first."""

    sentence: str
    spots: tuple[Spot, ...] = ()


def certain(
    training: Labels, validation: Labels, sizes: Mapping[tuple[int, int], tuple[int, int]], scale: float, crop: int, finest: int
) -> list[Finding]:
    """What the labels alone prove to be wrong, or to be lost on the model.

    Args:
        training, validation: of one skeleton and the same videos.
        sizes: (height, width) of frames by (video, index); points in other frames are not judged.
        scale: input pixels per frame pixel.
        crop: side of a training crop, input pixels.
        finest: input pixels between the places at which animals are looked for.
    """
    labels = Labels(training.skeleton, training.videos, training.frames + validation.frames)
    found = [
        frames_twice(training), frames_twice(validation),
        animals_twice(labels), points_outside(labels, sizes), points_together(labels), rare_keypoints(labels),
        larger_than_crop(labels, scale, crop), smaller_than_grid(labels, scale, finest),
    ]  # fmt: skip
    return [finding for finding in found if finding]


def likely(training: Labels, validation: Labels, thumbnails: Mapping[tuple[int, int], Thumbnail]) -> list[Finding]:
    """What a person has to judge: left and right exchanged, unusual poses, poses or pictures that are all alike, few validation animals.

    Args:
        training, validation: of one skeleton and the same videos.
        thumbnails: of their frames (`thumbnail`), by (video, index).
    """
    every = Labels(training.skeleton, training.videos, training.frames + validation.frames)
    found = [*exchanged_sides(every), unusual_poses(every), poses_alike(every), few_to_validate(validation)]
    found += [*frozen_videos(every, thumbnails), seen_in_both(training, validation, thumbnails)]
    return [finding for finding in found if finding]


# --- what the labels prove ----------------------------------------------------------------------------------------------------------------


def frames_twice(labels: Labels) -> Finding | None:
    """One frame of one video, labelled more than once."""
    frames: dict[Place, list[LabeledFrame]] = defaultdict(list)
    for frame in labels.frames:
        source, number = labels.videos[frame.video].in_original(frame.index)  # whatever name it has
        frames[source.place(number)].append(frame)
    spots = [Spot(several[1]) for several in frames.values() if len(several) > 1]
    return _finding(
        labels,
        spots,
        f"{_many(spots, 'frame')} labelled more than once, so that animals of one entry count as background in the other",
        "keep one",
    )


def animals_twice(labels: Labels) -> Finding | None:
    """Two nearly identical poses in one frame: at least two keypoints in common, or one at exactly the same place."""
    spots = []
    for frame in labels.frames:
        poses = np.array([animal.points for animal in frame.instances])  # (animals, K, 2)
        lengths = np.array([_length(pose) for pose in poses])
        for a in range(len(poses) - 1):  # all pairs at once could fill the memory
            gaps = np.linalg.norm(poses[a] - poses[a + 1 :], axis=2)  # (later animals, K)
            common = np.isfinite(gaps).sum(axis=1)
            tolerance = np.where(common == 1, 0.5, np.maximum(0.5, SAME * np.maximum(lengths[a], lengths[a + 1 :])))
            same = (common > 0) & (np.nansum(gaps, axis=1) <= tolerance * common)
            spots += [Spot(frame, (a, a + 1 + int(later))) for later in np.flatnonzero(same)]
    return _finding(labels, spots, f"{_many(spots, 'animal')} labelled twice in one frame", "delete one of the two")


def points_outside(labels: Labels, sizes: Mapping[tuple[int, int], tuple[int, int]]) -> Finding | None:
    """Points beyond the border of their frame."""
    spots, points, names = [], 0, set()
    for frame, number, pose in _animals(labels):
        if (frame.video, frame.index) in sizes:
            height, width = sizes[frame.video, frame.index]
            beyond = ((pose < -0.5 - OUTSIDE) | (pose > np.array((width, height)) - 0.5 + OUTSIDE)).any(axis=1)
            if beyond.any():
                spots.append(Spot(frame, (number,)))
                points += int(beyond.sum())
                names |= set(np.flatnonzero(beyond).tolist())
    what = f"{points} point{'s lie' if points > 1 else ' lies'} outside of the picture ({_names(labels, sorted(names))})"
    return _finding(
        labels,
        spots,
        what,
        "move or delete them; if it is another video than the labelled one, rename it, and give the right one's folder with --video-root",
    )


def points_together(labels: Labels) -> Finding | None:
    """Animals whose points, at least two, are all at one place."""
    spots = [Spot(f, (n,)) for f, n, pose in _animals(labels) if np.isfinite(pose[:, 0]).sum() > 1 and _length(pose) < 1]
    return _finding(labels, spots, f"{_many(spots, 'animal')} with all points at one place", "place the points anew, or delete the animal")


def rare_keypoints(labels: Labels) -> Finding | None:
    """Keypoints that nobody labelled, or in a single frame only."""
    frames = np.zeros(len(labels.skeleton), dtype=int)
    for frame in labels.frames:
        frames += np.any([i.labelled for i in frame.instances] or np.zeros((1, len(frames)), dtype=bool), axis=0)
    parts = [
        f"{what}: {_names(labels, np.flatnonzero(which).tolist())}"
        for what, which in (("never labelled", frames == 0), ("labelled in a single frame", frames == 1))
        if which.any() and (len(labels.frames) > 1 or what == "never labelled")
    ]
    return Finding(f"keypoints {'; '.join(parts)}: label more of them or remove them, they can't be learnt.") if parts else None


def larger_than_crop(labels: Labels, scale: float, crop: int) -> Finding | None:
    """Animals that no training crop can show whole."""
    sized = sorted(((_box(pose) * scale, Spot(f, (n,))) for f, n, pose in _animals(labels)), key=lambda pair: -pair[0])
    spots = [spot for size, spot in sized if size > crop]
    largest = sized[0][0] if sized else 0.0
    what = f"{_many(spots, 'animal')} larger than the training crop of {crop} input pixels (up to {largest:.0f})"
    needed = 32 * math.ceil(1.3 * largest / 32)
    return _finding(labels, spots, what, f"correct the labels if they are wrong, else --set data.crop={needed}, or lower data.input_scale")


def smaller_than_grid(labels: Labels, scale: float, finest: int) -> Finding | None:
    """Animals whose keypoints, at least half of them, lie closer together than the places at which animals are looked for."""
    spots = []
    for frame, number, pose in _animals(labels):
        known = np.isfinite(pose[:, 0]).sum()
        if known > 1 and 2 * known >= len(pose) and _length(pose) >= 1 and _length(pose) * scale < finest:
            spots.append(Spot(frame, (number,)))
    what = f"{_many(spots, 'animal')} smaller than {finest} input pixels, so that the finest level can't tell the keypoints apart"
    return _finding(labels, spots, what, f"raise data.input_scale ({scale:g} here), or correct the labels if they are wrong")


# --- what a person has to judge -----------------------------------------------------------------------------------------------------------


def exchanged_sides(labels: Labels) -> list[Finding]:
    """For each symmetric pair, the animals that have left where most have right.

    The sign of ``axis x (right - left)`` tells the sides, with the longest axis between two keypoints on the midline (a pair's middle is
    one). Animals seen from either side show no majority, and are not judged.
    """
    pairs = symmetric_pairs(labels.skeleton)
    animals = list(_animals(labels))
    if len(animals) < FEW_ANIMALS or not pairs:
        return []
    poses = np.stack([pose for _, _, pose in animals])
    single = [k for k in range(poses.shape[1]) if not any(k in pair for pair in pairs)]
    findings = []
    for left, right in pairs:
        others = [pair for pair in pairs if pair != (left, right)]
        midline = [poses[:, k] for k in single] + [poses[:, pair].mean(axis=1) for pair in others]
        across = poses[:, right] - poses[:, left]
        axes = [b - a for a, b in combinations(midline, 2)]
        known = [np.isfinite(axis[:, 0] + across[:, 0]) for axis in axes]
        worth = [float(np.linalg.norm(axis[k], axis=1).sum()) for axis, k in zip(axes, known, strict=True)]
        if not worth or known[int(np.argmax(worth))].sum() < FEW_ANIMALS:
            continue
        axis, seen = axes[int(np.argmax(worth))], known[int(np.argmax(worth))]
        side = (axis[:, 0] * across[:, 1] - axis[:, 1] * across[:, 0]) / np.maximum((axis**2).sum(axis=1), 1e-9)  # N, axis lengths
        usual = float(np.median(np.abs(side[seen])))
        side = np.where(seen, side * np.sign(np.median(np.sign(side[seen]))), 0.0)
        clear = np.abs(side) > REVERSED * usual
        wrong = clear & (side < 0)
        if not wrong.any() or wrong.sum() > (1 - ONE_WAY) * clear.sum():
            continue
        order = sorted(np.flatnonzero(wrong), key=lambda n: side[n])
        names = f"{labels.skeleton.keypoints[left]} and {labels.skeleton.keypoints[right]}"
        what = f"{names} are the other way round in {wrong.sum()} of {seen.sum()} animals ({wrong.sum() / seen.sum():.1%}) than in most"
        findings.append(
            _finding(labels, [Spot(animals[n][0], (animals[n][1],)) for n in order], what, "exchange them where the picture agrees")
        )
    return [finding for finding in findings if finding]


def unusual_poses(labels: Labels) -> Finding | None:
    """Animals with a keypoint far from where their other keypoints and the typical pose put it: wrong labels, or rare postures.

    The typical pose is fitted to the other keypoints by shift, turn, scale and mirroring. A keypoint is judged by the median deviation of
    its own kind: a leg may move more than a head.
    """
    animals = [(f, n, pose) for f, n, pose in _animals(labels) if np.isfinite(pose[:, 0]).sum() > 2]
    if len(animals) < FEW_ANIMALS:
        return None
    poses = np.stack([pose for _, _, pose in animals])
    deviation = deviations(poses[..., 0] + 1j * poses[..., 1])  # N, K
    usual = np.array([np.median(d[np.isfinite(d)]) if np.isfinite(d).sum() >= FEW_ANIMALS else np.inf for d in deviation.T])
    ratio = np.nan_to_num(np.where(deviation > UNUSUAL_LENGTHS, deviation / np.maximum(usual, 0.01), 0.0))
    worst = [n for n in np.argsort(-ratio.max(axis=1)) if ratio[n].max() > UNUSUAL]
    if not worst:
        return None
    names = _names(labels, sorted({int(ratio[n].argmax()) for n in worst[:MOST_UNUSUAL]}))
    what = f"{_many(worst, 'animal')} in a posture unlike the others ({names} far from where the other keypoints suggest)"
    return _finding(
        labels, [Spot(animals[n][0], (animals[n][1],)) for n in worst], what, "they may well be right: look, and correct what is not"
    )


def deviations(points: NDArray[np.complex128]) -> Array:
    """How far each keypoint (N, K), as x + iy, is from where the others put it, in animal lengths; NaN where unknown."""
    known = np.isfinite(points)
    typical = points[np.argmax(known.sum(axis=1))]
    mask = known & np.isfinite(typical)
    for _ in range(3):  # typical pose: median of all animals laid onto it
        scale, shift = _fit(points, np.broadcast_to(typical, points.shape), mask)
        laid = np.where(mask, scale[:, None] * points + shift[:, None], np.nan)
        typical = np.array([np.nan if np.isnan(k).all() else np.nanmedian(k.real) + 1j * np.nanmedian(k.imag) for k in laid.T])
    span = float(np.nanmax(np.abs(typical[:, None] - typical)))
    length = np.array([_length(np.stack((p.real, p.imag), axis=1)) for p in points])
    result = np.full(points.shape, np.inf)
    for template in (typical, typical.conj()):
        for k in range(points.shape[1]):
            others = mask & (np.arange(points.shape[1]) != k)
            scale, shift = _fit(np.broadcast_to(template, points.shape), points, others)
            size = np.maximum(np.abs(scale) * span, 0.5 * np.median(length))
            gap = np.abs(points[:, k] - scale * template[k] - shift) / size
            result[:, k] = np.fmin(result[:, k], np.where(others.sum(axis=1) > 1, gap, np.nan))
    return np.where(np.isfinite(result), result, np.nan)


def _fit(source: NDArray[np.complex128], target: NDArray[np.complex128], mask: NDArray[np.bool_]) -> tuple[NDArray[np.complex128], ...]:
    """Turn with scale, and shift, (N,) each, that bring the masked points of each row of ``source`` (N, K) nearest to ``target``."""
    count = np.maximum(mask.sum(axis=1), 1)[:, None]
    source, target = np.where(mask, source, 0), np.where(mask, target, 0)
    from_, to = source.sum(axis=1, keepdims=True) / count, target.sum(axis=1, keepdims=True) / count
    centred = np.where(mask, source - from_, 0)
    scale = (centred.conj() * (target - to)).sum(axis=1) / np.maximum((np.abs(centred) ** 2).sum(axis=1), 1e-9)
    return scale, (to - scale[:, None] * from_)[:, 0]


def poses_alike(labels: Labels) -> Finding | None:
    """All animals in exactly one posture, not even turned: labels of a program, or copied."""
    poses = [pose - np.nanmean(pose, axis=0) for _, _, pose in _animals(labels) if np.isfinite(pose).all()]
    if len(poses) < FEW_ANIMALS or poses[0].shape[0] < 2:
        return None
    apart = np.linalg.norm(np.stack(poses) - np.median(poses, axis=0), axis=2).max(axis=1)
    if np.quantile(apart, 0.9) > SAME * np.median([_length(pose) for pose in poses]):
        return None
    return Finding(f"the {len(poses)} complete animals all have the same posture: correct the labels if they were copied from one another.")


def few_to_validate(validation: Labels) -> Finding | None:
    """Too few animals to choose a model by."""
    animals = sum(len(f.instances) for f in validation.frames)
    if animals >= FEW_VALIDATION or not validation.frames:
        return None
    return Finding(
        f"{animals} animal{'' if animals == 1 else 's'} in {len(validation.frames)} validation frames are few to choose a model by, so the "
        "last one is kept: label more frames, or name a project with --val."
    )


def thumbnail(frame: NDArray[np.uint8]) -> Thumbnail:
    """A frame (H, W, 3) as THUMBNAIL x THUMBNAIL pixels, each the mean of its part: compression noise averages out."""
    small = Image.fromarray(np.ascontiguousarray(frame)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.int16)


def alike(one: Thumbnail, other: Thumbnail) -> bool:
    """Nearly the same picture?"""
    return bool(np.abs(one - other).max() <= ALIKE)


def frozen_videos(labels: Labels, thumbnails: Mapping[tuple[int, int], Thumbnail]) -> list[Finding]:
    """Videos whose labelled frames all show the same picture."""
    findings = []
    for number, video in enumerate(labels.videos):
        frames = [f for f in labels.frames if f.video == number and (number, f.index) in thumbnails]
        if len(frames) >= FEW_FRAMES and all(alike(thumbnails[number, frames[0].index], thumbnails[number, f.index]) for f in frames):
            findings.append(
                Finding(
                    f"{video.name}: all {len(frames)} labelled frames show the same picture, as if the recording were stuck: look at it; "
                    "if it is another video than the labelled one, rename it, and give the right one's folder with --video-root.",
                    tuple(Spot(f) for f in frames[:2]),
                )
            )
    return findings


def seen_in_both(training: Labels, validation: Labels, thumbnails: Mapping[tuple[int, int], Thumbnail]) -> Finding | None:
    """Validation frames of which training has nearly the same picture, under whatever name."""
    known = [(f, thumbnails[f.video, f.index]) for f in training.frames if (f.video, f.index) in thumbnails]
    stack = np.stack([t for _, t in known]) if known else np.empty((0, THUMBNAIL, THUMBNAIL, 3))
    twins = []
    for frame in validation.frames:
        if known and (frame.video, frame.index) in thumbnails:
            apart = np.abs(stack - thumbnails[frame.video, frame.index]).max(axis=(1, 2, 3))
            if apart.min() <= ALIKE:
                twins.append((frame, known[int(apart.argmin())][0]))
    if not twins:
        return None
    first = _name(training, twins[0][1])
    what = f"{len(twins)} of {len(validation.frames)} validation frames look the same as a training frame (the first as {first})"
    return _finding(validation, [Spot(f) for f, _ in twins], what, "figures on them flatter; hold out frames of another time or animal")


# --- words --------------------------------------------------------------------------------------------------------------------------------


def _finding(labels: Labels, spots: Sequence[Spot], what: str, remedy: str) -> Finding | None:
    """None where there is nothing to look at."""
    if not spots:
        return None
    names = list(dict.fromkeys(_name(labels, spot.frame) for spot in spots))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Finding(f"{what}: {', '.join(names[:3])}{more}; {remedy}.", tuple(spots))


def _many(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _name(labels: Labels, frame: LabeledFrame) -> str:
    return labels.videos[frame.video].title(frame.index)


def _names(labels: Labels, keypoints: Sequence[int]) -> str:
    return ", ".join(labels.skeleton.keypoints[k] for k in keypoints)


def _animals(labels: Labels) -> list[tuple[LabeledFrame, int, Array]]:
    """Frame, number in it, and points (K, 2) of every animal with a labelled point."""
    return [(f, n, i.points) for f in labels.frames for n, i in enumerate(f.instances) if i.labelled.any()]


def _box(pose: Array) -> float:
    """Longer side of the box round the labelled points (K, 2), pixels."""
    return float(np.ptp(pose[np.isfinite(pose[:, 0])], axis=0).max())


def _length(pose: Array) -> float:
    """Greatest distance between two labelled points (K, 2), pixels."""
    seen = pose[np.isfinite(pose[:, 0])]
    return float(np.linalg.norm(seen[:, None] - seen, axis=2).max()) if len(seen) else 0.0

"""How alike two poses are, relative to the animal's size, and which prediction belongs to which labelled animal.

The similarity is COCO's: ``OKS = mean over labelled k of exp(-d_k^2 / (2 * area * s2))``, with ``d_k`` in frame pixels. One ``s2`` serves
all keypoints; it stands where pycocotools has ``(2 * sigma_k)^2``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[np.bool_]

PAPER_S2, MEDIUM_S2, SLEAP_S2 = 1.0, 0.1, 0.0025  # the paper's (bees, pups); one at which both detection and position count; (2 * .025)^2
DEEPLABCUT_S2 = 0.04  # (2 * .1)^2
MATCH_OKS = 0.3  # at MEDIUM_S2: the similarity from which a pose is of an animal
LAST_RESORT_AREA = 32.0**2  # px^2, COCO's limit of a small object; only where no labelled animal has an extent


def animal_areas(truth: Sequence[Array]) -> list[Array]:
    """Area of each animal's keypoint box, px^2: per frame (n,) for (n, K, 2).

    A box with a side below one pixel says nothing about the animal's size (one labelled point, or a body along an axis with two points);
    such an animal gets the median area of the complete animals, or of all animals with a proper box where none is complete, or (32 px)^2
    where none has one.
    """
    boxes = [box_sides(poses) for poses in truth]  # each (n, 2)
    sides = np.concatenate(boxes) if boxes else np.empty((0, 2))
    complete = np.concatenate([~np.isnan(p).any(axis=(1, 2)) for p in truth]) if truth else np.empty(0, dtype=bool)
    proper = (sides >= 1.0).all(axis=1)
    typical = sides[proper & complete] if (proper & complete).any() else sides[proper]
    fallback = float(np.median(typical.prod(axis=1))) if len(typical) else LAST_RESORT_AREA
    return [np.where((s >= 1.0).all(axis=1), s.prod(axis=1), fallback) for s in boxes]


def box_sides(poses: Array) -> Array:
    """(n, K, 2) -> (n, 2) width and height over the labelled points, px; 0 where none is."""
    low, high = np.where(np.isnan(poses), np.inf, poses).min(axis=1), np.where(np.isnan(poses), -np.inf, poses).max(axis=1)
    sides: Array = np.where(np.isfinite(low), high, 0.0) - np.where(np.isfinite(low), low, 0.0)
    return sides


def animal_lengths(truth: Sequence[Array]) -> list[Array]:
    """Greatest distance between two labelled keypoints, px, per frame (n,); the others' median where an animal has one point."""
    spans = [np.nan_to_num(np.linalg.norm(p[:, :, None] - p[:, None], axis=-1)).max(axis=(1, 2), initial=0.0) for p in truth]
    every = np.concatenate(spans) if spans else np.empty(0)
    typical = float(np.median(every[every > 0])) if (every > 0).any() else math.sqrt(LAST_RESORT_AREA)
    return [np.where(s > 0, s, typical) for s in spans]


def oks(truth: Array, poses: Array, areas: Array, s2: float) -> Array:
    """Similarity in [0, 1] of every labelled animal to every prediction: (n, K, 2), (m, K, 2), (n,) px^2 -> (n, m). Missing predicted
    points give 0.
    """
    squared = ((truth[:, None] - poses[None]) ** 2).sum(axis=-1)  # n, m, K
    labelled = ~np.isnan(truth[..., 0])  # n, K
    similar = np.where(np.isnan(squared), 0.0, np.exp(-squared / (2 * s2 * areas[:, None, None])))
    matrix: Array = (similar * labelled[:, None]).sum(axis=-1) / np.maximum(labelled.sum(axis=1), 1)[:, None]
    return matrix


def match(similarity: Array, least: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of a similarity matrix, best first, each row and column once, none below ``least``."""
    pairs: list[tuple[int, int]] = []
    rows, columns = set(range(similarity.shape[0])), set(range(similarity.shape[1]))
    for flat in np.argsort(-similarity, axis=None, kind="stable"):
        row, column = (int(i) for i in np.unravel_index(flat, similarity.shape))
        if similarity[row, column] < least:
            break
        if row in rows and column in columns:
            pairs.append((row, column))
            rows.remove(row)
            columns.remove(column)
    return pairs


def found_by(similarity: Array, least: float) -> list[int]:
    """The columns, best first, that find a row of a similarity matrix: each takes the row it is most like of those that are free.

    As COCO counts: which row a column takes does not depend on the columns after it, as in ``match`` it does.
    """
    columns, free = [], np.ones(len(similarity), dtype=bool)
    for column in range(similarity.shape[1]):
        likeness = np.where(free, similarity[:, column], 0.0)
        if len(likeness) and likeness.max() >= least:
            free[likeness.argmax()] = False
            columns.append(column)
    return columns


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which of the m predictions of a frame belong to which of its n labelled animals.

    Attributes:
        pairs: (animal, prediction).
        near: (m,) predictions beyond the first that fit a labelled animal.
        again: (m,) those of ``near`` that resemble the animal's own prediction as well, in all keypoints: the same animal predicted twice.
            The others may be its neighbours, where few keypoints are labelled.
        judged: (m,) under the rule for partial labels: what is paired, or ``again``; everything in a frame that is known to be empty.
    """

    pairs: list[tuple[int, int]]
    near: Mask
    again: Mask
    judged: Mask


def assign(truth: Array, poses: Array, areas: Array, *, empty: bool = False, s2: float = MEDIUM_S2) -> Assignment:
    """A prediction belongs to an animal when their OKS at ``s2`` is at least .3; pairs are taken best first.

    Args:
        truth: (n, K, 2) labelled animals of a frame.
        poses: (m, K, 2) its predictions.
        areas: (n,) px^2 of the labelled animals.
        empty: the frame is known to hold no animal at all.
        s2: squared tolerance. Whether two predictions resemble each other is asked at s2 = .1 all the same.
    """
    similarity = oks(truth, poses, areas, s2)  # n, m
    pairs = match(similarity, MATCH_OKS)
    own = dict(pairs)
    paired, again = np.zeros(len(poses), dtype=bool), np.zeros(len(poses), dtype=bool)
    paired[list(own.values())] = True
    near = (similarity >= MATCH_OKS).any(axis=0) & ~paired
    for spare in np.flatnonzero(near):
        for animal in np.flatnonzero(similarity[:, spare] >= MATCH_OKS).tolist():  # each has one of its own, or it would have this one
            first = own[animal]
            alike = oks(poses[first : first + 1], poses[spare : spare + 1], areas[animal : animal + 1], MEDIUM_S2)
            again[spare] |= bool(alike[0, 0] >= MATCH_OKS)
    return Assignment(pairs, near, again, np.ones_like(paired) if empty else paired | again)


def on_boxes(truth: Sequence[Array], predicted: Sequence[Array], boxes: Sequence[Sequence[Array]]) -> list[Mask]:
    """Which predictions nothing can judge: per frame (m,) those that lie on animals whose keypoints nobody knows, with half of their points
    or more, and belong to no labelled animal.

    To belong to one it is enough that they would at the paper's tolerance, so that none is left out that counts as found at any. Of
    several in reach the best belongs to it, and what resembles that one, as in ``assign``. COCO leaves out what it matches to no labelled
    animal, there within three times a box's sides.

    Args:
        truth: per frame the labelled animals (n, K, 2), frame pixels.
        predicted: per frame poses (m, K, 2).
        boxes: per frame (4,) arrays: left, top, right, bottom.
    """
    masks = []
    for labelled, poses, areas, unknown in zip(truth, predicted, animal_areas(truth), boxes, strict=True):
        inside = np.zeros(len(poses), dtype=bool)
        for left, top, right, bottom in unknown:
            within = ((poses >= (left, top)) & (poses <= (right, bottom))).all(axis=-1).sum(axis=1)
            inside |= (within > 0) & (2 * within >= np.isfinite(poses[..., 0]).sum(axis=1))
        masks.append(inside & ~assign(labelled, poses, areas, s2=PAPER_S2).judged if inside.any() else inside)
    return masks

"""How good poses are: AP, points found, pixel errors, left and right exchanged, and animals missed, invented or doubled.

All of it for arrays in memory; ``evaluation`` does it for files. What belongs to what, and relative to which size, is said in
``similarity``; AP in ``average_precision``.

*Partial labels.* Where animals without a label are to be expected, a prediction that fits no labelled animal says nothing, and two sets of
figures are given. The strict ones take every such prediction as a mistake. The others judge a prediction only when it belongs to a
labelled animal, or predicts one a second time (``similarity.Assignment.judged``), or is in a frame that is known to be empty; the rest is
left out before AP is computed. It belongs to an animal at OKS .3, at s2 = .1 or the tolerance of the AP, whichever is greater. An animal
with one labelled keypoint is matched by this keypoint alone, relative to the area of the median complete animal: the prediction's keypoint
lies within .49 of that area's root (OKS .3 at s2 = .1), and predictions beyond the first are doubles only if they also resemble the first
in all keypoints. Missed animals, points found and pixel errors do not depend on the rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from smp_plugin.average_precision import KeypointAP, checked, deeplabcut_ap, keypoint_ap
from smp_plugin.similarity import (
    LAST_RESORT_AREA,
    MEDIUM_S2,
    PAPER_S2,
    SLEAP_S2,
    Assignment,
    animal_areas,
    animal_lengths,
    assign,
    box_sides,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Predicted = tuple[Array, Array]

DEFAULT_S2 = (PAPER_S2, MEDIUM_S2, SLEAP_S2)
PCK_FRACTIONS = (0.05, 0.1, 0.2)  # of the animal's length
CURVE_FRACTIONS = tuple(round(0.005 * i, 3) for i in range(41))  # 0 to 20 %
ERROR_PERCENTILES = (50, 75, 90, 95, 99)
SWAP_RATIO = 0.5  # exchanging left and right at least halves the error
UNKNOWN_SIZE = (
    "No animal has two labelled points, so that their size is not known: similarity (AP, missed, invented) and shares of an animal's "
    f"length take them to be {math.sqrt(LAST_RESORT_AREA):.0f} pixels long."
)


@dataclass(frozen=True)
class KeypointErrors:
    """Errors of one keypoint. ``n``: pairs of a labelled and a predicted point on matched animals."""

    n: int
    pixel_error: dict[int, float]  # percentile -> frame pixels; NaN when n is 0
    pck: dict[float, float]  # fraction of the animal's length -> share of all labelled points within it


@dataclass(frozen=True)
class PckCurve:
    """Share of labelled points that were found within a distance; those of missed animals are not found. Lists of equal length."""

    fraction: list[float]  # of the animal's length: 0 to .2
    within_fraction: list[float]  # shares in [0, 1]
    pixels: list[float]  # the same fractions of the median length
    within_pixels: list[float]


@dataclass(frozen=True)
class PartialFigures:
    """With the predictions left out that may be of animals without a label; see the module's docstring."""

    ap: dict[float, KeypointAP]
    deeplabcut: KeypointAP
    ignored: int  # predictions left out (at s2 = .1, as all counts)
    invented: int  # in frames known to be empty
    doubled: int  # the same animal predicted again


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found. Lengths in frame pixels, shares in [0, 1]; NaN where nothing can be said."""

    ap: dict[float, KeypointAP]  # by s2
    deeplabcut: KeypointAP  # by DeepLabCut's definition
    pck: dict[float, float]  # fraction of the animal's length -> share of labelled points found within it; a missed animal's are not found
    pck_curve: PckCurve
    pixel_error: dict[int, float]  # percentile -> error over the labelled points of matched animals
    keypoints: dict[str, KeypointErrors]
    frames: int
    animals: int  # labelled
    predictions: int
    missed: int  # labelled animals without a prediction
    doubled: int  # predictions beyond the first of an animal
    invented: int  # predictions where no animal is labelled
    animal_length: float  # median
    symmetric_pairs: int | None = None  # left/right pairs of matched animals, both labelled and both predicted; None without symmetries
    swapped_pairs: int | None = None  # those of them that are better exchanged; see ``swapped_pairs``
    partial: PartialFigures | None = None  # where labels are partial
    labels: str = ""  # complete or partial, and why, where files were compared
    peers: dict[str, dict[str, float]] = field(default_factory=dict)  # what SLEAP and DeepLabCut themselves say, where asked for
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: keys as text, NaN as null."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate_poses(
    truth: Sequence[Array],
    predicted: Sequence[Predicted],
    keypoints: Sequence[str],
    *,
    s2: Sequence[float] = DEFAULT_S2,
    symmetries: Sequence[tuple[int, int]] = (),
    partial: bool = False,
    point_scores: Sequence[Array] | None = None,
) -> Evaluation:
    """All figures for poses in memory.

    For pixel errors and counts a prediction belongs to a labelled animal when their OKS at s2 = .1 is at least .3; pairs are taken best
    first. A prediction that fits an animal already taken is doubled, one that fits none is invented.

    Args:
        truth: per frame the labelled animals, (n, K, 2) frame pixels, NaN where not labelled; n = 0 where it is known that there are none.
        predicted: per frame poses (m, K, 2), NaN where missing, and scores (m,).
        keypoints: K names.
        s2: tolerances at which AP is wanted.
        symmetries: pairs of keypoints that are each other's left and right, indices.
        partial: give the figures of the rule for partial labels, too.
        point_scores: per frame (m,), the mean scores of the predictions' points, by which DeepLabCut ranks; default: the scores.
    """
    empty = [not len(poses) for poses in truth]
    truth, predicted = checked(truth, predicted)
    areas, lengths = animal_areas(truth), animal_lengths(truth)
    assigned = _assigned(truth, predicted, areas, empty)
    ranked = predicted if point_scores is None else [(p, s) for (p, _), s in zip(predicted, point_scores, strict=True)]
    table = _errors(truth, predicted, assigned).reshape(-1, len(keypoints))  # animals, K
    length = np.concatenate(lengths) if lengths else np.empty(0)
    relative = table / length[:, None]
    typical = float(np.median(length)) if len(length) else math.nan
    unknown = bool(len(table)) and not any((box_sides(poses) > 0).any() for poses in truth)
    swapped, symmetric = swapped_pairs(truth, predicted, assigned, symmetries) if symmetries else (None, None)
    return Evaluation(
        ap={tolerance: keypoint_ap(truth, predicted, tolerance) for tolerance in s2},
        deeplabcut=deeplabcut_ap(truth, ranked),
        pck=_pck(relative),
        pck_curve=_curve(table, relative, typical),
        pixel_error=_percentiles(table),
        keypoints={
            name: KeypointErrors(int(np.isfinite(errors).sum()), _percentiles(errors), _pck(shares))
            for name, errors, shares in zip(keypoints, table.T, relative.T, strict=True)
        },
        frames=len(truth),
        animals=len(table),
        predictions=sum(len(poses) for poses, _ in predicted),
        missed=len(table) - sum(len(a.pairs) for a in assigned),
        doubled=sum(int(a.near.sum()) for a in assigned),
        invented=sum(len(a.near) - len(a.pairs) - int(a.near.sum()) for a in assigned),
        animal_length=math.nan if unknown else typical,
        warnings=[UNKNOWN_SIZE] if unknown else [],
        symmetric_pairs=symmetric,
        swapped_pairs=swapped,
        partial=_partial_figures(truth, predicted, ranked, assigned, areas, empty, s2) if partial else None,
    )


def _assigned(
    truth: list[Array], predicted: Sequence[Predicted], areas: list[Array], empty: list[bool], s2: float = MEDIUM_S2
) -> list[Assignment]:
    """``empty``: which frames are known to hold no animal."""
    frames = zip(truth, predicted, areas, empty, strict=True)
    return [assign(labelled, poses, area, empty=bare, s2=s2) for labelled, (poses, _), area, bare in frames]


def _judged(
    truth: list[Array], predicted: Sequence[Predicted], areas: list[Array], empty: list[bool], s2: float = MEDIUM_S2
) -> list[Predicted]:
    """What the rule for partial labels leaves of the predictions where AP is wanted at ``s2``."""
    assigned = _assigned(truth, predicted, areas, empty, max(s2, MEDIUM_S2))
    return [(poses[a.judged], scores[a.judged]) for (poses, scores), a in zip(predicted, assigned, strict=True)]


def _errors(truth: list[Array], predicted: Sequence[Predicted], assigned: list[Assignment]) -> Array:
    """(animals, K) px; NaN where nothing is labelled, inf where nothing is predicted."""
    errors: list[Array] = []
    for labelled, (poses, _), assignment in zip(truth, predicted, assigned, strict=True):
        of_frame = np.where(np.isnan(labelled[..., 0]), np.nan, np.inf)
        for row, column in assignment.pairs:
            distance = np.linalg.norm(labelled[row] - poses[column], axis=-1)
            of_frame[row] = np.where(np.isnan(distance), of_frame[row], distance)
        errors.append(of_frame)
    return np.concatenate(errors) if errors else np.empty(0)


def swapped_pairs(
    truth: Sequence[Array], predicted: Sequence[Predicted], assigned: Sequence[Assignment], symmetries: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """How many left/right pairs of matched animals are exchanged, and how many could be told.

    A pair counts where both keypoints are labelled and both are predicted. It is exchanged when the sum of the two distances to the
    labels is at most half as great with left and right exchanged: so clearly better, whatever the size of the animal, and impossible where
    both predicted points lie on the same label or left and right are closer together than the errors.
    """
    left, right = (list(side) for side in zip(*symmetries, strict=True))
    swapped = told = 0
    for labelled, (poses, _), assignment in zip(truth, predicted, assigned, strict=True):
        rows, columns = [row for row, _ in assignment.pairs], [column for _, column in assignment.pairs]
        animals, found = labelled[rows], poses[columns]  # pairs, K, 2

        def distance(of: list[int], to: list[int], found: Array = found, animals: Array = animals) -> Array:
            distances: Array = np.linalg.norm(found[:, of] - animals[:, to], axis=-1)
            return distances

        direct = distance(left, left) + distance(right, right)  # pairs, symmetries
        exchanged = distance(left, right) + distance(right, left)
        told += int((~np.isnan(direct)).sum())
        swapped += int(((exchanged <= SWAP_RATIO * direct) & (direct > 0)).sum())
    return swapped, told


def _partial_figures(
    truth: list[Array],
    predicted: Sequence[Predicted],
    ranked: Sequence[Predicted],
    assigned: list[Assignment],
    areas: list[Array],
    empty: list[bool],
    s2: Sequence[float],
) -> PartialFigures:
    # DeepLabCut leaves animals with one labelled point out: what is predicted there must not count as wrong, either.
    proper = [poses[(~np.isnan(poses[..., 0])).sum(axis=1) > 1] for poses in truth]
    return PartialFigures(
        ap={t: keypoint_ap(truth, _judged(truth, predicted, areas, empty, t), t) for t in s2},
        deeplabcut=deeplabcut_ap(proper, _judged(proper, ranked, animal_areas(proper), empty)),
        ignored=sum(int((~a.judged).sum()) for a in assigned),
        invented=sum(len(a.judged) for bare, a in zip(empty, assigned, strict=True) if bare),
        doubled=sum(int(a.again.sum()) for a in assigned),
    )


def _curve(table: Array, relative: Array, typical: float) -> PckCurve:
    pixels = [fraction * typical for fraction in CURVE_FRACTIONS]
    return PckCurve(list(CURVE_FRACTIONS), _shares(relative, CURVE_FRACTIONS), pixels, _shares(table, pixels))


def _pck(relative: Array) -> dict[float, float]:
    return dict(zip(PCK_FRACTIONS, _shares(relative, PCK_FRACTIONS), strict=True))


def _shares(errors: Array, limits: Sequence[float]) -> list[float]:
    """Share of the labelled points with an error of at most each limit."""
    labelled = errors[~np.isnan(errors)]
    return [float((labelled <= limit).mean()) if labelled.size else math.nan for limit in limits]


def _percentiles(errors: Array) -> dict[int, float]:
    found = errors[np.isfinite(errors)]
    return {p: float(np.percentile(found, p)) if found.size else math.nan for p in ERROR_PERCENTILES}

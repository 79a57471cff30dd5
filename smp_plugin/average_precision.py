"""COCO keypoint AP and AR through pycocotools, at any tolerance, and as DeepLabCut defines them.

AP is the mean over the thresholds .50:.05:.95 of the 101-point interpolated precision, without a score cut: every prediction counts, and
every labelled frame counts whether or not it was predicted.

Traps: pycocotools drops detections beyond 20 per frame, ignores large unmatched ones, and takes an annotation id of 0 for "no match"; it
prints to stdout. It knows no missing predicted point: here such a point has similarity 0.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smp_plugin.similarity import DEEPLABCUT_S2, PAPER_S2, animal_areas, box_sides

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Predicted = tuple[Array, Array]  # poses (m, K, 2) frame pixels, scores (m,)

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
COMMON_COLUMNS = {"category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0]}  # of pycocotools' tables; the box plays no part
FAR = 1e9  # px; similarity 0 to anything in a frame
NO_AREA = 1e-8  # px^2; numpy.isclose(area, 0), DeepLabCut's test


@dataclass(frozen=True)
class KeypointAP:
    """COCO figures at one ``s2``, all in [0, 1]; NaN when there is no labelled animal."""

    ap: float  # mean over the thresholds
    ap50: float
    ap75: float
    ar: float  # recall, mean over the thresholds


def keypoint_ap(truth: Sequence[Array], predicted: Sequence[Predicted], s2: float = PAPER_S2) -> KeypointAP:
    """COCO keypoint AP and AR.

    Args:
        truth: per frame the labelled animals, (n, K, 2) frame pixels, NaN where not labelled. Animals without any point are left out.
        predicted: per frame poses (m, K, 2), NaN where missing, and scores (m,).
        s2: squared tolerance, in units of the animal's area; see ``animal_areas``.
    """
    truth, predicted = checked(truth, predicted)
    return _average_precision(truth, animal_areas(truth), predicted, s2)


def deeplabcut_ap(truth: Sequence[Array], predicted: Sequence[Predicted]) -> KeypointAP:
    """mAP and mAR as ``deeplabcut.core.metrics.compute_metrics`` of DeepLabCut 3.0.2 finds them, as shares where it gives percent.

    It differs from COCO's in this: sigma is .1 for all keypoints (s2 = .04); labelled and predicted animals with fewer than two points
    are left out; the area is that of the tight keypoint box, and an animal whose box has none can't be found, but counts; a prediction
    whose most similar animal is taken has no second choice. DeepLabCut ranks animals by the mean score of their points.

    Args:
        truth: as in ``keypoint_ap``.
        predicted: as in ``keypoint_ap``; the scores should be the mean scores of the points.
    """
    truth, predicted = checked(truth, predicted)
    truth = [poses[_points(poses) > 1] for poses in truth]
    predicted = [(poses[_points(poses) > 1], scores[_points(poses) > 1]) for poses, scores in predicted]
    areas = [box_sides(poses).prod(axis=1) for poses in truth]
    truth = [np.where(area[:, None, None] <= NO_AREA, poses - FAR, poses) for poses, area in zip(truth, areas, strict=True)]
    return _average_precision(truth, areas, predicted, DEEPLABCUT_S2, first_choice=True)


def checked(truth: Sequence[Array], predicted: Sequence[Predicted]) -> tuple[list[Array], list[Predicted]]:
    """Arrays of the shapes promised in ``keypoint_ap``; animals without any labelled point are left out."""
    if len(truth) != len(predicted):
        raise ValueError(
            f"{len(truth)} labelled frames and {len(predicted)} predicted ones; give an empty array for a frame without predictions."
        )
    shapes = [np.shape(poses) for poses in (*truth, *(poses for poses, _ in predicted)) if np.ndim(poses) == 3]
    # An empty frame need not know how many.
    keypoints = next((k for count, k, _ in shapes if count), max((k for _, k, _ in shapes), default=1))
    poses = [np.asarray(p, dtype=np.float64).reshape(-1, keypoints, 2) for p in truth]
    poses = [p[_points(p) > 0] for p in poses]
    return poses, [
        (np.asarray(p, dtype=np.float64).reshape(-1, keypoints, 2), np.asarray(s, dtype=np.float64).reshape(-1)) for p, s in predicted
    ]


def _points(poses: Array) -> NDArray[np.int64]:
    """(n, K, 2) -> (n,) how many points have a position."""
    counts: NDArray[np.int64] = (~np.isnan(poses[..., 0])).sum(axis=1)
    return counts


def _average_precision(
    truth: list[Array], areas: list[Array], predicted: list[Predicted], s2: float, first_choice: bool = False
) -> KeypointAP:
    """``first_choice``: a prediction can only be matched to the animal it is most similar to."""
    from pycocotools.cocoeval import COCOeval

    if not any(len(poses) for poses in truth):
        return KeypointAP(math.nan, math.nan, math.nan, math.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(*_as_coco(truth, areas, predicted), "keypoints")
        run.params.kpt_oks_sigmas = np.full(truth[0].shape[1], math.sqrt(s2) / 2)
        run.params.iouThrs = np.array(COCO_THRESHOLDS)
        run.params.maxDets = [max(1, *(len(poses) for poses, _ in predicted))]
        run.params.areaRng, run.params.areaRngLbl = [[0.0, math.inf]], ["all"]
        if first_choice:
            every = run.computeOks
            run.computeOks = lambda image, category: _best_of_each_row(np.asarray(every(image, category), dtype=np.float64))
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, 0, 0, 0].mean(axis=1)  # thresholds x 101 recalls -> thresholds
    at = {t: _rounded(p) for t, p in zip(COCO_THRESHOLDS, precision, strict=True)}
    return KeypointAP(_rounded(precision.mean()), at[0.5], at[0.75], _rounded(run.eval["recall"].mean()))


def _best_of_each_row(similarity: Array) -> Array:
    """(m, n) -> (m, n) with 0 in place of all but the first greatest value of each row; what has no animals or predictions stays."""
    if not similarity.size:
        return similarity
    chosen = np.arange(similarity.shape[1]) == similarity.argmax(axis=1)[:, None]
    return np.where(chosen, similarity, 0.0)


def _rounded(value: float) -> float:
    """Without the last digits: pycocotools divides by a little more than it should, and 1 becomes .9999999999999998."""
    return round(float(value), 12)


def _as_coco(truth: list[Array], areas: list[Array], predicted: list[Predicted]) -> tuple[Any, Any]:
    """pycocotools' two tables. Ids count from 1; a missing predicted point is put so far off that its similarity is 0."""
    from pycocotools.coco import COCO

    images = [{"id": i} for i in range(len(truth))]
    labels: list[dict[str, Any]] = []
    for image, (poses, sizes) in enumerate(zip(truth, areas, strict=True)):
        for pose, area in zip(poses, sizes, strict=True):
            seen = ~np.isnan(pose[:, :1])
            flat = np.concatenate([np.where(seen, pose, 0.0), np.where(seen, 2, 0)], axis=1).ravel()
            row = {"iscrowd": 0, "num_keypoints": int(seen.sum()), "area": float(area), "keypoints": flat}
            labels.append({"id": len(labels) + 1, "image_id": image, **COMMON_COLUMNS, **row})
    results: list[dict[str, Any]] = []
    for image, (poses, scores) in enumerate(predicted):
        for pose, score in zip(poses, scores, strict=True):
            flat = np.concatenate([np.where(np.isnan(pose), FAR, pose), np.ones((len(pose), 1))], axis=1).ravel()
            row = {"area": 1.0, "keypoints": flat, "score": float(score)}
            results.append({"id": len(results) + 1, "image_id": image, **COMMON_COLUMNS, **row})
    tables = []
    for rows in (labels, results):
        table = COCO()
        table.dataset = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "animal"}]}
        table.createIndex()
        tables.append(table)
    return tables[0], tables[1]

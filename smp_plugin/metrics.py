"""How good are predictions: COCO keypoint AP through pycocotools, PCK, pixel errors, and animals missed, invented or doubled.

The similarity of a predicted pose to a labelled one is COCO's: ``OKS = mean over labelled k of exp(-d_k^2 / (2 * area * s2))``, with
``d_k`` in frame pixels. One ``s2`` serves all keypoints; it stands where pycocotools has ``(2 * sigma_k)^2``. AP is the mean over the
thresholds .50:.05:.95 of the 101-point interpolated precision, without a score cut: every prediction counts, and every labelled frame
counts whether or not it was predicted.

Traps: pycocotools drops detections beyond 20 per frame, ignores large unmatched ones, and takes an annotation id of 0 for "no match"; it
prints to stdout. It knows no missing predicted point: here such a point has similarity 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.labels import FormatError, LabeledFrame, Labels
from smp_plugin.pairing import frame_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
PAPER_S2, MEDIUM_S2, SLEAP_S2 = 1.0, 0.1, 0.0025  # the paper's (bees, pups); one at which both detection and position count; (2 * .025)^2
MATCH_OKS = 0.3  # at MEDIUM_S2: the similarity at which pose NMS, too, takes two poses for one animal
PCK_FRACTIONS = (0.05, 0.1, 0.2)  # of the animal's length
ERROR_PERCENTILES = (50, 75, 90, 95, 99)
COMMON_COLUMNS = {"category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0]}  # of pycocotools' tables; the box plays no part
LAST_RESORT_AREA = 32.0**2  # px^2, COCO's limit of a small object; only where no labelled animal has an extent


@dataclass(frozen=True)
class KeypointAP:
    """COCO figures at one ``s2``, all in [0, 1]; NaN when there is no labelled animal."""

    ap: float  # mean over the thresholds
    ap50: float  # NaN when .5 is not among the thresholds
    ap75: float
    ar: float  # recall, mean over the thresholds


@dataclass(frozen=True)
class KeypointErrors:
    """Errors of one keypoint. ``n``: pairs of a labelled and a predicted point on matched animals."""

    n: int
    median: float  # frame pixels; NaN when n is 0
    p90: float
    pck: dict[float, float]  # fraction of the animal's length -> share of all labelled points within it


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found. Lengths in frame pixels, shares in [0, 1]; NaN where nothing can be said."""

    ap: dict[float, KeypointAP]  # by s2: PAPER_S2, MEDIUM_S2, SLEAP_S2
    pck: dict[float, float]  # fraction of the animal's length -> share of labelled points found within it; a missed animal's are not found
    pixel_error: dict[int, float]  # percentile -> error over the labelled points of matched animals
    keypoints: dict[str, KeypointErrors]
    frames: int
    animals: int  # labelled
    predictions: int
    missed: int  # labelled animals without a prediction
    doubled: int  # predictions beyond the first of an animal
    invented: int  # predictions where no animal is labelled
    animal_length: float  # median
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


def animal_areas(truth: Sequence[Array], padding: float = 0.0) -> list[Array]:
    """Area of each animal's keypoint box, px^2: per frame (n,) for (n, K, 2).

    ``padding`` px are added on every side (the COCO file of the honeybees has 10). A box with a side below one pixel says nothing about the
    animal's size (one labelled point, or a body along an axis with two points); such an animal gets the median area of the complete
    animals, or of all animals with a proper box where none is complete, or (32 px)^2 where none has one.
    """
    boxes = [_box_sides(poses) + 2 * padding for poses in truth]  # each (n, 2)
    sides = np.concatenate(boxes) if boxes else np.empty((0, 2))
    complete = np.concatenate([~np.isnan(p).any(axis=(1, 2)) for p in truth]) if truth else np.empty(0, dtype=bool)
    proper = (sides >= 1.0).all(axis=1)
    typical = sides[proper & complete] if (proper & complete).any() else sides[proper]
    fallback = float(np.median(typical.prod(axis=1))) if len(typical) else LAST_RESORT_AREA
    return [np.where((s >= 1.0).all(axis=1), s.prod(axis=1), fallback) for s in boxes]


def _box_sides(poses: Array) -> Array:
    """(n, K, 2) -> (n, 2) width and height over the labelled points; 0 where none is."""
    low, high = np.where(np.isnan(poses), np.inf, poses).min(axis=1), np.where(np.isnan(poses), -np.inf, poses).max(axis=1)
    sides: Array = np.where(np.isfinite(low), high, 0.0) - np.where(np.isfinite(low), low, 0.0)
    return sides


def oks(truth: Array, poses: Array, areas: Array, s2: float) -> Array:
    """Similarity in [0, 1] of every labelled animal to every prediction: (n, K, 2), (m, K, 2), (n,) px^2 -> (n, m). Missing predicted
    points give 0.
    """
    squared = ((truth[:, None] - poses[None]) ** 2).sum(axis=-1)  # n, m, K
    labelled = ~np.isnan(truth[..., 0])  # n, K
    similar = np.where(np.isnan(squared), 0.0, np.exp(-squared / (2 * s2 * areas[:, None, None])))
    matrix: Array = (similar * labelled[:, None]).sum(axis=-1) / np.maximum(labelled.sum(axis=1), 1)[:, None]
    return matrix


def keypoint_ap(
    truth: Sequence[Array],
    predicted: Sequence[tuple[Array, Array]],
    s2: float = PAPER_S2,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    padding: float = 0.0,
) -> KeypointAP:
    """COCO keypoint AP and AR.

    Args:
        truth: per frame the labelled animals, (n, K, 2) frame pixels, NaN where not labelled. Animals without any point are left out.
        predicted: per frame poses (m, K, 2), NaN where missing, and scores (m,).
        s2: squared tolerance, in units of the animal's area.
        thresholds: of OKS.
        padding: px added to each side of the keypoint box whose area OKS is relative to; see ``animal_areas``.
    """
    from pycocotools.cocoeval import COCOeval

    truth, predicted = _checked(truth, predicted)
    if not any(len(poses) for poses in truth):
        return KeypointAP(math.nan, math.nan, math.nan, math.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(*_as_coco(truth, predicted, padding), "keypoints")
        run.params.kpt_oks_sigmas = np.full(truth[0].shape[1], math.sqrt(s2) / 2)
        run.params.iouThrs = np.array(thresholds, dtype=np.float64)
        run.params.maxDets = [max(1, *(len(poses) for poses, _ in predicted))]
        run.params.areaRng, run.params.areaRngLbl = [[0.0, math.inf]], ["all"]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, 0, 0, 0].mean(axis=1)  # thresholds x 101 recalls -> thresholds
    at = {round(float(t), 4): _rounded(p) for t, p in zip(thresholds, precision, strict=True)}
    return KeypointAP(_rounded(precision.mean()), at.get(0.5, math.nan), at.get(0.75, math.nan), _rounded(run.eval["recall"].mean()))


def _rounded(value: float) -> float:
    """Without the last digits: pycocotools divides by a little more than it should, and 1 becomes .9999999999999998."""
    return round(float(value), 12)


def _checked(truth: Sequence[Array], predicted: Sequence[tuple[Array, Array]]) -> tuple[list[Array], list[tuple[Array, Array]]]:
    if len(truth) != len(predicted):
        raise ValueError(
            f"{len(truth)} labelled frames and {len(predicted)} predicted ones; give an empty array for a frame without predictions."
        )
    keypoints = next((np.shape(t)[1] for t in truth if np.ndim(t) == 3), 0)
    poses = [np.asarray(p, dtype=np.float64).reshape(-1, keypoints, 2) for p in truth]
    poses = [p[(~np.isnan(p[..., 0])).any(axis=1)] for p in poses]
    return poses, [
        (np.asarray(p, dtype=np.float64).reshape(-1, keypoints, 2), np.asarray(s, dtype=np.float64).reshape(-1)) for p, s in predicted
    ]


def _as_coco(truth: list[Array], predicted: list[tuple[Array, Array]], padding: float) -> tuple[Any, Any]:
    """pycocotools' two tables. Ids count from 1; a missing predicted point is put so far off that its similarity is 0."""
    from pycocotools.coco import COCO

    images = [{"id": i} for i in range(len(truth))]
    labels: list[dict[str, Any]] = []
    for image, (poses, areas) in enumerate(zip(truth, animal_areas(truth, padding), strict=True)):
        for pose, area in zip(poses, areas, strict=True):
            seen = ~np.isnan(pose[:, :1])
            flat = np.concatenate([np.where(seen, pose, 0.0), np.where(seen, 2, 0)], axis=1).ravel()
            row = {"iscrowd": 0, "num_keypoints": int(seen.sum()), "area": float(area), "keypoints": flat}
            labels.append({"id": len(labels) + 1, "image_id": image, **COMMON_COLUMNS, **row})
    results: list[dict[str, Any]] = []
    for image, (poses, scores) in enumerate(predicted):
        for pose, score in zip(poses, scores, strict=True):
            flat = np.concatenate([np.where(np.isnan(pose), 1e9, pose), np.ones((len(pose), 1))], axis=1).ravel()
            row = {"area": 1.0, "keypoints": flat, "score": float(score)}
            results.append({"id": len(results) + 1, "image_id": image, **COMMON_COLUMNS, **row})
    tables = []
    for rows in (labels, results):
        table = COCO()
        table.dataset = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "animal"}]}
        table.createIndex()
        tables.append(table)
    return tables[0], tables[1]


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


def animal_lengths(truth: Sequence[Array]) -> list[Array]:
    """Greatest distance between two labelled keypoints, px, per frame (n,); the others' median where an animal has one point."""
    spans = [np.nan_to_num(np.linalg.norm(p[:, :, None] - p[:, None], axis=-1)).max(axis=(1, 2), initial=0.0) for p in truth]
    every = np.concatenate(spans) if spans else np.empty(0)
    typical = float(np.median(every[every > 0])) if (every > 0).any() else math.sqrt(LAST_RESORT_AREA)
    return [np.where(s > 0, s, typical) for s in spans]


def evaluate_poses(
    truth: Sequence[Array], predicted: Sequence[tuple[Array, Array]], keypoints: Sequence[str], *, padding: float = 0.0
) -> Evaluation:
    """All figures for poses in memory; arguments as in ``keypoint_ap``, ``keypoints``: their K names.

    For pixel errors and counts a prediction belongs to a labelled animal when their OKS at s2 = .1 is at least .3; pairs are taken best
    first. A prediction that fits an animal already taken is doubled, one that fits none is invented.
    """
    truth, predicted = _checked(truth, predicted)
    areas, lengths = animal_areas(truth, padding), animal_lengths(truth)
    errors: list[Array] = []  # per labelled animal (K,), px; NaN where nothing is labelled, inf where nothing is predicted
    missed = doubled = invented = 0
    for labelled, (poses, _), area in zip(truth, predicted, areas, strict=True):
        similarity = oks(labelled, poses, area, MEDIUM_S2)
        pairs = match(similarity, MATCH_OKS)
        frame_errors = np.where(np.isnan(labelled[..., 0]), np.nan, np.inf)
        for row, column in pairs:
            distance = np.linalg.norm(labelled[row] - poses[column], axis=-1)
            frame_errors[row] = np.where(np.isnan(distance), frame_errors[row], distance)
        errors.extend(frame_errors)
        missed += len(labelled) - len(pairs)
        spare = similarity[:, sorted(set(range(len(poses))) - {c for _, c in pairs})]
        doubled += int((spare >= MATCH_OKS).any(axis=0).sum())
        invented += int((spare < MATCH_OKS).all(axis=0).sum())
    table = np.array(errors).reshape(-1, len(keypoints))  # animals, K
    length = np.concatenate(lengths) if lengths else np.empty(0)
    relative = table / length[:, None]
    return Evaluation(
        ap={s2: keypoint_ap(truth, predicted, s2, padding=padding) for s2 in (PAPER_S2, MEDIUM_S2, SLEAP_S2)},
        pck=_pck(relative),
        pixel_error={p: _percentile(table, p) for p in ERROR_PERCENTILES},
        keypoints={
            name: KeypointErrors(
                int(np.isfinite(table[:, k]).sum()), _percentile(table[:, k], 50), _percentile(table[:, k], 90), _pck(relative[:, k])
            )
            for k, name in enumerate(keypoints)
        },
        frames=len(truth),
        animals=len(table),
        predictions=sum(len(poses) for poses, _ in predicted),
        missed=missed,
        doubled=doubled,
        invented=invented,
        animal_length=float(np.median(length)) if len(length) else math.nan,
    )


def _pck(relative: Array) -> dict[float, float]:
    labelled = relative[~np.isnan(relative)]
    return {fraction: float((labelled <= fraction).mean()) if labelled.size else math.nan for fraction in PCK_FRACTIONS}


def _percentile(errors: Array, percentile: float) -> float:
    found = errors[np.isfinite(errors)]
    return float(np.percentile(found, percentile)) if found.size else math.nan


def evaluate(
    labels: Labels | Path | str, predictions: Labels | Path | str, *, video_root: Path | None = None, padding: float = 0.0
) -> Evaluation:
    """Compare a file of predictions with a file of labels.

    Every labelled frame counts, and one that the predictions lack is missed; predictions on other frames are not judged. Videos are paired
    by path, else by name, else by being the only ones; images by file, else by their numbers in the video that they were taken from;
    keypoints by name. Neither videos nor images need to be there.

    Args:
        labels: a labelled project, or its path, in any format.
        predictions: predictions, or their path, in any format. People's labels in it are not judged. COCO results belong to the COCO labels
            that ``labels`` names.
        video_root: where videos named in the files are looked for next.
        padding: see ``animal_areas``.

    Raises:
        FormatError: a file cannot be read, holds no labels, or the two have no keypoint or no video in common, or no image by its id.
    """
    truth, guess = _read(labels, video_root), _read(predictions, video_root, labels)
    truth_name, guess_name = truth.path or "the labels", guess.path or "the predictions"
    if not any(frame.instances for frame in truth.labelled_frames):
        raise FormatError(
            f"{truth_name}: no animal is labelled in it. The labels come first, then the predictions: are the two in that order?"
        )
    pairs: list[tuple[list[LabeledFrame], list[LabeledFrame]]]
    common, left_out = _common_keypoints(truth, guess, truth_name, guess_name)
    warnings = [*truth.notes, *guess.notes, *left_out]
    columns = [truth.skeleton.keypoints.index(name) for name in common]
    guess_columns = [guess.skeleton.keypoints.index(name) for name in common]
    if not any(frame.predicted for frame in guess.frames):
        theirs = sum(len(frame.instances) for frame in guess.frames)
        labelled = f" It holds {theirs} labelled animals, which are not judged." if theirs else ""
        warnings.append(f"{guess_name} holds no predictions: every animal counts as missed.{labelled}")
        pairs = [(frames, []) for frames, _ in frame_pairs(truth, dataclasses.replace(guess, frames=[]), strict=False)]
    else:
        pairs = frame_pairs(truth, guess)
    true_poses, predicted = [], []
    for frames, guesses in pairs:
        true_poses.append(_stack([i.points for f in frames for i in f.instances], columns))
        animals = [p for f in guesses for p in f.predicted]
        predicted.append((_stack([p.points for p in animals], guess_columns), np.array([p.score for p in animals], dtype=np.float64)))
    absent = sum(not guesses for _, guesses in pairs)
    if absent and absent < len(pairs):
        warnings.append(f"{absent} of {len(pairs)} labelled frames are not in {guess_name}: their animals count as missed.")
    return dataclasses.replace(evaluate_poses(true_poses, predicted, common, padding=padding), warnings=warnings)


def _read(source: Labels | Path | str, video_root: Path | None, labels: Labels | Path | str | None = None) -> Labels:
    """``labels``: where ``source`` holds predictions, the labels that these are compared with."""
    if isinstance(source, Labels):
        return source
    from converters.coco_results import is_coco_results
    from converters.project import COCO, format_of, read_project

    path, annotations = Path(source), labels.path if isinstance(labels, Labels) else Path(labels) if labels is not None else None
    if labels is None or not (path.is_file() and format_of(path) == COCO and is_coco_results(path)):
        return read_project(path, video_root, require_videos=False)
    if annotations is None or annotations.is_dir() or format_of(annotations) != COCO:
        raise FormatError(
            f"{path} holds COCO results, which call images by the ids of COCO labels, and {annotations or 'what is given first'} holds no "
            "COCO labels; give those, or predict into a .slp file."
        )
    return read_project(path, video_root, annotations=annotations)


def _common_keypoints(truth: Labels, guess: Labels, truth_name: object, guess_name: object) -> tuple[list[str], list[str]]:
    """Keypoint names both files have, in the labels' order, and a warning where some are left out."""
    common = [name for name in truth.skeleton.keypoints if name in guess.skeleton.keypoints]
    if not common:
        raise FormatError(
            f"{truth_name} and {guess_name} have no keypoint name in common: {', '.join(truth.skeleton.keypoints)} against "
            f"{', '.join(guess.skeleton.keypoints)}. Rename the keypoints of one of them."
        )
    left_out = sorted({*truth.skeleton.keypoints, *guess.skeleton.keypoints} - set(common))
    return common, [f"Keypoints in only one of the two files are left out: {', '.join(left_out)}."] if left_out else []


def _stack(points: list[Array], columns: list[int]) -> Array:
    return np.stack(points)[:, columns] if points else np.empty((0, len(columns), 2))

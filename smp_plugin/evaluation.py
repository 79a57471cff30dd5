"""Compare a file of predictions with a file of labels, whatever their formats.

Every labelled frame counts, and one that the predictions lack is missed; predictions on other frames are not judged. What the figures mean
is said in ``metrics``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.labels import FormatError, LabeledFrame, Labels, stacked
from smp_plugin.completeness import looks_partial
from smp_plugin.metrics import DEFAULT_S2, Evaluation, evaluate_poses
from smp_plugin.pairing import frame_pairs, same_by_name_alone
from smp_plugin.peer_figures import PACKAGES, PeerFrame, installed, peer_figures, remedy
from smp_plugin.similarity import on_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RULES = ("auto", "complete", "partial")


def evaluate(
    labels: Labels | Path | str,
    predictions: Labels | Path | str,
    *,
    video_root: Path | None = None,
    s2: Sequence[float] = DEFAULT_S2,
    rule: str = "auto",
    peers: bool = False,
) -> Evaluation:
    """All figures for two files.

    Videos are paired by path, else by name, else by being the only ones; images by file, else by their numbers in the video that they were
    taken from; keypoints by name. Neither videos nor images need to be there.

    Args:
        labels: a labelled project, or its path, in any format.
        predictions: predictions, or their path, in any format. People's labels in it are not judged. COCO results belong to the COCO labels
            that ``labels`` names.
        video_root: where videos named in the files are looked for next.
        s2: tolerances at which AP is wanted.
        rule: whether animals without a label are to be expected: ``complete``, ``partial``, or ``auto`` as in training, see
            ``completeness``. Where labels are partial, the figures of both rules are given; see ``metrics``.
        peers: also what sleap-nn and DeepLabCut say themselves, where installed; takes seconds.

    Raises:
        FormatError: a file cannot be read, holds no labels, or the two have no keypoint or no video in common, or no image by its id; peers
            are asked for and none is installed.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(RULES)}.")
    if peers and not installed():
        raise FormatError(f"No other evaluator can be asked: {' and '.join(remedy(name) for name in PACKAGES)}.")
    truth, guess = _read(labels, video_root), _read(predictions, video_root, labels)
    truth_name, guess_name = truth.path or "the labels", guess.path or "the predictions"
    if not any(frame.instances for frame in truth.labelled_frames):
        raise FormatError(
            f"{truth_name}: no animal is labelled in it. The labels come first, then the predictions: are the two in that order?"
        )
    partial, said = _completeness(truth, rule)
    common, left_out = _common_keypoints(truth, guess, truth_name, guess_name)
    warnings = [*truth.notes, *guess.notes, *left_out]
    frames = _with_point_scores(_frames(_paired(truth, guess, guess_name, warnings), truth, guess, common, warnings))
    predicted, point_scores = _arrays(frames, len(common))
    found = evaluate_poses(
        [frame.truth for frame in frames],
        predicted,
        common,
        s2=s2,
        symmetries=_symmetries(truth, guess, common),
        partial=partial,
        point_scores=point_scores,
    )
    return dataclasses.replace(found, labels=said, peers=_ask(frames, warnings) if peers else {}, warnings=[*found.warnings, *warnings])


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


def _completeness(truth: Labels, rule: str) -> tuple[bool, str]:
    """Whether labels are partial, and a phrase that says so."""
    if rule != "auto":
        return rule == "partial", f"{rule}, as asked for"
    partial, reason = looks_partial(truth.labelled_frames, len(truth.skeleton))
    return partial, f"taken as {'partial' if partial else 'complete'}, since {reason}"


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


def _symmetries(truth: Labels, guess: Labels, common: list[str]) -> list[tuple[int, int]]:
    """Left/right pairs among the common keypoints, of the labels' skeleton, or of the predictions' where the labels know none."""
    skeleton = truth.skeleton if truth.skeleton.symmetries else guess.skeleton
    pairs = [(skeleton.keypoints[a], skeleton.keypoints[b]) for a, b in skeleton.symmetries]
    return [(common.index(a), common.index(b)) for a, b in pairs if a in common and b in common]


def _paired(truth: Labels, guess: Labels, guess_name: object, warnings: list[str]) -> list[tuple[list[LabeledFrame], list[LabeledFrame]]]:
    """What each file holds of every labelled frame; a warning is added where the predictions lack some, or may be of others."""
    if not any(frame.predicted for frame in guess.frames):
        theirs = sum(len(frame.instances) for frame in guess.frames)
        labelled = f" It holds {theirs} labelled animals, which are not judged." if theirs else ""
        warnings.append(f"{guess_name} holds no predictions: every animal counts as missed.{labelled}")
        return [(frames, []) for frames, _ in frame_pairs(truth, dataclasses.replace(guess, frames=[]), strict=False)]
    pairs = frame_pairs(truth, guess)
    absent = sum(not guesses for _, guesses in pairs)
    if absent < len(pairs) and any(frame.predicted for _, guesses in pairs for frame in guesses):
        if absent:
            warnings.append(f"{absent} of {len(pairs)} labelled frames are not in {guess_name}: their animals count as missed.")
    elif pairs:  # by default, smp-predict leaves labelled frames out
        remedy = "smp-predict PROJECT --frames labeled predicts them"
        warnings.append(
            f"{guess_name} holds no prediction in any of the {len(pairs)} labelled frames: every animal counts as missed; {remedy}."
        )
    warnings += same_by_name_alone(truth, guess)
    return pairs


def _frames(
    pairs: list[tuple[list[LabeledFrame], list[LabeledFrame]]], truth: Labels, guess: Labels, common: list[str], warnings: list[str]
) -> list[PeerFrame]:
    """Both files' animals in the common keypoints; of an animal no point may be left. Predictions that nothing can judge are left out, and
    a warning says how many.
    """
    columns = [truth.skeleton.keypoints.index(name) for name in common]
    order = [guess.skeleton.keypoints.index(name) for name in common]
    points = [stacked([i.points[columns] for f in labelled for i in f.instances], len(common)) for labelled, _ in pairs]
    found = [
        [dataclasses.replace(p, points=p.points[order], point_scores=p.point_scores[order]) for f in guesses for p in f.predicted]
        for _, guesses in pairs
    ]
    poses = [stacked([p.points for p in animals], len(common)) for animals in found]
    left_out = on_boxes(points, poses, [[box for f in labelled for box in f.unposed] for labelled, _ in pairs])
    if unjudged := sum(int(out.sum()) for out in left_out):
        warnings.append(f"{unjudged} predictions lie on animals or crowds that have a box and no keypoints, and are not judged.")
    return [
        PeerFrame(labelled, list(itertools.compress(animals, ~out)) if guesses else None)
        for labelled, animals, out, (_, guesses) in zip(points, found, left_out, pairs, strict=True)
    ]


def _with_point_scores(frames: list[PeerFrame]) -> list[PeerFrame]:
    """DeepLabCut ranks animals by their points: where the file gives points no scores (all are 1), each gets its animal's."""
    if any((p.point_scores[p.labelled] != 1).any() for frame in frames for p in frame.predicted or []):
        return frames
    return [
        dataclasses.replace(
            frame,
            predicted=frame.predicted
            and [dataclasses.replace(p, point_scores=np.where(p.labelled, p.score, 0.0)) for p in frame.predicted],
        )
        for frame in frames
    ]


def _arrays(frames: list[PeerFrame], keypoints: int) -> tuple[list[tuple[Array, Array]], list[Array]]:
    """Per frame poses (m, K, 2) with scores (m,), and the mean scores of their points (m,)."""
    found = [frame.predicted or [] for frame in frames]
    poses = [stacked([p.points for p in animals], keypoints) for animals in found]
    scores = [np.array([p.score for p in animals], dtype=np.float64) for animals in found]
    means = [np.array([p.point_scores[p.labelled].mean() if p.labelled.any() else 0.0 for p in animals]) for animals in found]
    return list(zip(poses, scores, strict=True)), means


def _ask(frames: list[PeerFrame], warnings: list[str]) -> dict[str, dict[str, float]]:
    """Each peer's figures by its name and version; a warning is added where one can't be asked, or fails."""
    answers = {}
    for name in PACKAGES:
        if name not in installed():
            warnings.append(f"{remedy(name)}: its own figures are not shown.")
            continue
        try:
            title, figures = peer_figures(name, frames)
        except Exception as error:  # foreign code on any data: ours stands without it
            warnings.append(f"{name}'s own figures are not shown, since its code failed: {type(error).__name__}: {error}")
        else:
            answers[title] = figures
    return answers

"""The score from which animals are kept: most right and fewest wrong, also where many animals have no label."""

import numpy as np
import pytest

from smp_plugin.inference import FramePoses
from smp_plugin.metrics import evaluate_poses
from smp_plugin.run_folder import choose_min_score, with_counts

SHAPE = np.array([[0.0, 0.0], [20.0, 0.0], [40.0, 10.0]])


def frame_of(rng: np.random.Generator, animals: int, junk: int) -> tuple[np.ndarray, FramePoses]:
    """All animals of a frame, found 1 px off with scores around .6, and inventions around .2."""
    truth = np.array([SHAPE + (100 * i, 0) for i in range(animals)]).reshape(-1, 3, 2)
    poses = np.concatenate((truth + 1, [SHAPE + (100 * i, 500) for i in range(junk)]))
    scores = np.concatenate((rng.normal(0.6, 0.05, animals), rng.normal(0.2, 0.05, junk)))
    order = np.argsort(scores)[::-1]
    return truth, FramePoses(poses[order], scores[order], np.ones((len(scores), 3)))


def test_animals_are_kept_and_inventions_are_not():
    rng = np.random.default_rng(0)
    truth, found = zip(*(frame_of(rng, 5, 8) for _ in range(20)), strict=True)
    assert 0.26 < choose_min_score(list(truth), list(found), partial=False) < 0.56


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_with_partial_labels_it_does_not_matter_how_many_animals_have_one(share: float):
    rng = np.random.default_rng(1)
    truth, found = zip(*(frame_of(rng, 6, 8) for _ in range(40)), strict=True)
    labelled = [np.where(rng.random((len(t), 1, 1)) < share, t, np.nan) for t in truth]
    labelled = [t[np.isfinite(t).all(axis=(1, 2))] for t in labelled]
    assert 0.26 < choose_min_score(labelled, list(found), partial=True) < 0.56


def test_nothing_found_keeps_what_may_come():
    truth = [SHAPE[None]]
    nothing = FramePoses(np.empty((0, 3, 2)), np.empty(0), np.empty((0, 3)))
    assert choose_min_score(truth, [nothing], partial=False) == choose_min_score(truth, [nothing], partial=True) == 0.1


def test_the_report_has_ap_of_all_predictions_and_counts_of_those_kept():
    truth, poses = [SHAPE[None]], np.stack([SHAPE, SHAPE + 1, SHAPE + 500])
    both = [(poses, np.array([0.5, 0.4, 0.9]))], [(poses[:1], np.array([0.5]))]
    result, counted = (evaluate_poses(truth, p, "abc", symmetries=((1, 2),), partial=True) for p in both)
    shown = with_counts(result, counted)
    assert (shown.ap, shown.deeplabcut) == (result.ap, result.deeplabcut) and result.ap != counted.ap
    assert (shown.predictions, shown.invented, shown.doubled, shown.missed) == (1, 0, 0, 0) and (result.invented, result.doubled) == (1, 1)
    assert shown.partial and result.partial and (shown.partial.ignored, result.partial.ignored) == (0, 1)
    assert shown.partial.ap == result.partial.ap and (shown.partial.doubled, result.partial.doubled) == (0, 1)

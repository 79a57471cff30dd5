"""Figures of merit of poses in memory against cases worked out by hand."""

import json
import math

import numpy as np
import pytest

from smp_plugin.metrics import evaluate_poses
from smp_plugin.similarity import MEDIUM_S2, PAPER_S2, SLEAP_S2

NAN = math.nan
ANIMAL = np.array([[0.0, 0.0], [60.0, 0.0], [30.0, 30.0]])  # 60 x 30 px
NO_POSES = (np.empty((0, 3, 2)), np.empty(0))


def _crowd(rng: np.random.Generator, count: int) -> np.ndarray:
    return ANIMAL + rng.uniform(0, 1000, (count, 1, 2)) + rng.normal(0, 3, (count, 3, 2))


def test_order_does_not_matter():
    rng = np.random.default_rng(1)
    truth = [_crowd(rng, 6) for _ in range(4)]
    predicted = [(p + rng.normal(0, 8, p.shape), rng.random(len(p))) for p in truth]
    first = evaluate_poses(truth, predicted, "abc")
    frames = rng.permutation(4)
    shuffled = [(predicted[f][0][order], predicted[f][1][order]) for f in frames for order in [rng.permutation(6)]]
    assert evaluate_poses([truth[f][rng.permutation(6)] for f in frames], shuffled, "abc") == first


def test_counts_and_pixel_errors():
    far = ANIMAL + [500.0, 0.0]
    shifted = ANIMAL + [3.0, 4.0]
    truth = [np.stack([ANIMAL, far]), ANIMAL[None]]
    predicted = [(np.stack([shifted, shifted + 1, ANIMAL + [0, 900]]), np.array([0.9, 0.8, 0.7])), NO_POSES]
    found = evaluate_poses(truth, predicted, ["nose", "tail", "back"])
    assert (found.frames, found.animals, found.predictions) == (2, 3, 3)
    assert (found.missed, found.doubled, found.invented) == (2, 1, 1)
    assert found.pixel_error[50] == pytest.approx(5.0)
    assert found.animal_length == pytest.approx(60.0)
    assert found.pck == {0.05: 0.0, 0.1: pytest.approx(1 / 3), 0.2: pytest.approx(1 / 3)}  # 5 of 60 px: .083; missed animals are not found
    assert found.keypoints["nose"].n == 1 and found.keypoints["tail"].pixel_error[50] == pytest.approx(5.0)


def test_a_size_that_nothing_tells_is_not_made_up():
    truth = [np.where(np.arange(3)[:, None] == 0, pose, NAN)[None] for pose in (ANIMAL, ANIMAL + 50)]
    found = evaluate_poses(truth, [(t + 3, np.ones(1)) for t in truth], "abc")
    assert math.isnan(found.animal_length) and found.missed == 0
    (warning,) = found.warnings
    assert "size is not known" in warning and "32 pixels" in warning
    assert evaluate_poses([truth[0], ANIMAL[None]], [NO_POSES, NO_POSES], "abc").warnings == []
    assert evaluate_poses([], [], "abc").warnings == []


def test_result_is_json():
    found = evaluate_poses([ANIMAL[None]], [NO_POSES], ["nose", "tail", "back"])
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["pixel_error"]["50"] is None and plain["ap"]["0.0025"]["ap"] == 0.0


def test_percentiles_of_a_keypoint_by_hand():
    truth = [ANIMAL[None]] * 5
    moved = [ANIMAL + np.array([[float(n), 0.0], [0.0, 0.0], [0.0, 0.0]]) for n in range(5)]  # the nose 0 to 4 px off
    found = evaluate_poses(truth, [(pose[None], np.ones(1)) for pose in moved], ["nose", "tail", "back"])
    expected = {50: 2.0, 75: 3.0, 90: 3.6, 95: 3.8, 99: 3.96}
    assert found.keypoints["nose"].pixel_error == {p: pytest.approx(v) for p, v in expected.items()}
    assert set(found.keypoints["tail"].pixel_error.values()) == {0.0}
    assert found.keypoints["nose"].pck[0.05] == pytest.approx(4 / 5)  # 3 px are 5 % of 60


def test_curve_by_hand():
    truth = [np.stack([ANIMAL, 10 * ANIMAL + 2000.0])]
    predicted = [(np.stack([ANIMAL + [3.0, 4.0], 10 * ANIMAL + 2000.0 + [0.0, 30.0]]), np.ones(2))]  # 5 of 60 px, 30 of 600 px
    curve = evaluate_poses(truth, predicted, "abc").pck_curve
    at = dict(zip(curve.fraction, curve.within_fraction, strict=True))
    assert len(at) == 41 and (at[0.0], at[0.045], at[0.05], at[0.08], at[0.085], at[0.2]) == (0, 0, 0.5, 0.5, 1, 1)
    pixels = dict(zip(np.round(curve.pixels, 6), curve.within_pixels, strict=True))  # median length 330: steps of 1.65 px
    assert (pixels[4.95], pixels[6.6], pixels[29.7], pixels[31.35], pixels[66.0]) == (0, 0.5, 0.5, 1, 1)


# --- left and right -----------------------------------------------------------------------------------------------------------------------

FOUR = np.array([[0.0, 0.0], [-10.0, 20.0], [10.0, 20.0], [0.0, 60.0]])  # nose, left, right, tail


def _swaps(*poses: np.ndarray, truth: np.ndarray = FOUR) -> tuple[int | None, int | None]:
    found = evaluate_poses([truth[None]] * len(poses), [(p[None], np.ones(1)) for p in poses], "nlrt", symmetries=((1, 2),))
    return found.swapped_pairs, found.symmetric_pairs


def _crossed(by: float) -> np.ndarray:
    """Left and right on the wrong side, ``by`` px from the middle."""
    pose = FOUR.copy()
    pose[1, 0], pose[2, 0] = by, -by
    return pose


def test_exchanged_pairs_are_counted():
    both_left = FOUR.copy()
    both_left[2] = FOUR[1]
    assert _swaps(FOUR, FOUR[[0, 2, 1, 3]], both_left) == (1, 3)
    assert _swaps(_crossed(3), _crossed(4)) == (1, 2)  # 10 - x is at most half of 10 + x from x = 3.33 on


def test_pairs_that_cannot_be_told_are_left_out():
    lacks = FOUR.copy()
    lacks[2] = NAN
    assert _swaps(lacks) == (0, 0) and _swaps(FOUR[[0, 2, 1, 3]], truth=lacks) == (0, 0)
    assert _swaps(FOUR + 900) == (0, 0)  # no matched animal
    together = FOUR.copy()
    together[1] = together[2]
    assert _swaps(together, truth=together) == (0, 1)
    found = evaluate_poses([FOUR[None]], [(FOUR[None], np.ones(1))], "nlrt")
    assert found.swapped_pairs is None and found.symmetric_pairs is None


# --- partial labels -----------------------------------------------------------------------------------------------------------------------


def _partly_labelled():
    nose = np.full((3, 2), NAN)
    nose[0] = [300.0, 300.0]
    own, neighbour = ANIMAL + [300.0, 300.0], [300.0, 310.0] - ANIMAL
    poses = np.stack([ANIMAL, own, ANIMAL + [600.0, 0.0], ANIMAL + 1, neighbour])
    return [np.stack([ANIMAL, nose])], [(poses, np.array([0.7, 0.6, 0.9, 0.5, 0.8]))]


def test_predictions_of_unlabelled_animals_are_left_out_of_the_second_figures():
    truth, predicted = _partly_labelled()
    found = evaluate_poses(truth, predicted, "abc", partial=True)
    rule = found.partial
    assert rule is not None and (found.missed, found.invented, found.doubled) == (0, 1, 2)
    assert (rule.invented, rule.doubled, rule.ignored) == (0, 1, 2)
    # by score: far, neighbour, animal, nose's own, double; the first two are wrong, so precision is 2/4 at best
    assert found.ap[SLEAP_S2].ap == pytest.approx(0.5) and rule.ap[SLEAP_S2].ap == 1 and rule.ap[SLEAP_S2].ar == 1
    # so tolerant that the neighbour takes the labelled nose: the second and third are right
    assert found.ap[PAPER_S2].ap == pytest.approx(2 / 3) and rule.ap[PAPER_S2].ap == 1
    # DeepLabCut leaves the nose out: one animal, third in order
    assert found.deeplabcut.ap == pytest.approx(1 / 3) and rule.deeplabcut.ap == 1
    strict = evaluate_poses(truth, predicted, "abc")
    assert strict.partial is None and strict.ap == found.ap and strict.pixel_error == found.pixel_error


def test_a_greater_tolerance_leaves_less_out():
    """30 px off: OKS exp(-900 / 360) = .08 at s2 = .1, exp(-900 / 3600) = .78 at s2 = 1."""
    found = evaluate_poses([ANIMAL[None]], [(ANIMAL[None] + [30.0, 0.0], np.ones(1))], "abc", partial=True)
    assert found.partial is not None and (found.partial.ignored, found.missed) == (1, 1)
    assert found.partial.ap[PAPER_S2].ap == found.ap[PAPER_S2].ap == pytest.approx(0.6)
    assert found.partial.ap[MEDIUM_S2].ap == found.ap[MEDIUM_S2].ap == 0


@pytest.mark.parametrize("seed", range(8))
def test_leaving_out_lowers_no_figure(seed: int):
    rng = np.random.default_rng(seed)
    truth = [ANIMAL + rng.uniform(0, 150, (4, 1, 2)) for _ in range(5)]
    predicted = [(np.concatenate([t, t, t]) + rng.normal(0, 25, (12, 1, 2)), rng.random(12)) for t in truth]
    few = [np.where(rng.random((4, 1, 1)) < 0.5, t, np.where(np.arange(3)[:, None] == 0, t, NAN)) for t in truth]
    found = evaluate_poses(few, predicted, "abc", partial=True)
    assert found.partial is not None and found.partial.ignored > 5
    assert all(found.partial.ap[s2].ap > found.ap[s2].ap - 1e-9 for s2 in found.ap)


def test_a_double_is_wrong_under_both_rules():
    truth, predicted = [ANIMAL[None]] * 2, [(np.stack([ANIMAL, ANIMAL + 1]), np.array([0.5, 0.9]))] * 2
    found = evaluate_poses(truth, predicted, "abc", s2=[PAPER_S2], partial=True)
    assert found.partial is not None and found.partial.ap == found.ap and found.partial.doubled == found.doubled == 2


def test_what_is_predicted_in_an_empty_frame_is_wrong_under_both_rules():
    truth = [ANIMAL[None], np.empty((0, 3, 2)), np.full((1, 3, 2), NAN)]  # known to be empty; an animal without a point: unknown
    poses = (ANIMAL[None], np.array([0.9]))
    found = evaluate_poses(truth, [(ANIMAL[None], np.array([0.5])), poses, poses], "abc", partial=True)
    assert found.partial is not None and (found.partial.invented, found.partial.ignored, found.invented) == (1, 1, 2)
    assert found.partial.ap[PAPER_S2].ap == pytest.approx(1 / 2) and found.ap[PAPER_S2].ap == pytest.approx(1 / 3)


def test_tolerances_are_those_asked_for():
    found = evaluate_poses([ANIMAL[None]], [(ANIMAL[None] + [5.0, 0.0], np.ones(1))], "abc", s2=(0.02, 0.04))
    assert list(found.ap) == [0.02, 0.04]
    assert found.ap[0.02].ap == pytest.approx(0.5)  # OKS exp(-25 / 72) = .707: .50 to .70
    assert found.ap[0.04].ap == pytest.approx(0.7)  # exp(-25 / 144) = .841: .50 to .80


def test_deeplabcut_ranks_by_the_points():
    truth, predicted = [ANIMAL[None]], [(np.stack([ANIMAL, ANIMAL + 500]), np.array([0.9, 0.1]))]
    assert evaluate_poses(truth, predicted, "abc").deeplabcut.ap == 1
    assert evaluate_poses(truth, predicted, "abc", point_scores=[np.array([0.1, 0.9])]).deeplabcut.ap == pytest.approx(0.5)


def test_of_empty_frames_the_number_of_keypoints_need_not_be_known():
    """Neither animals nor predictions are there to tell it, and a skeleton may have symmetries."""
    found = evaluate_poses([np.empty((0, 1, 2))], [(np.empty((0, 2, 2)), np.empty(0))], ["left", "right"], symmetries=[(0, 1)])
    assert found.animals == found.predictions == 0 and found.swapped_pairs == 0

"""COCO AP against a second implementation, cases worked out by hand, and DeepLabCut's own function where it is installed."""

import math

import numpy as np
import pytest

from smp_plugin.average_precision import COCO_THRESHOLDS, deeplabcut_ap, keypoint_ap
from smp_plugin.similarity import MEDIUM_S2, PAPER_S2, SLEAP_S2, animal_areas, oks

NAN = math.nan
ANIMAL = np.array([[0.0, 0.0], [60.0, 0.0], [30.0, 30.0]])  # 60 x 30 px
NO_POSES = (np.empty((0, 3, 2)), np.empty(0))


def _crowd(rng: np.random.Generator, count: int) -> np.ndarray:
    return ANIMAL + rng.uniform(0, 1000, (count, 1, 2)) + rng.normal(0, 3, (count, 3, 2))


# --- a second implementation, written from COCO's definition ------------------------------------------------------------------------------


def _simple_ap(truth, predicted, s2):
    """Mean over thresholds of 101-point interpolated precision."""
    areas = animal_areas(truth)
    ranked = sorted(
        ((s, f, pose) for f, (poses, scores) in enumerate(predicted) for pose, s in zip(poses, scores, strict=True)), key=lambda r: -r[0]
    )
    total = sum(len(poses) for poses in truth)
    values = []
    for threshold in COCO_THRESHOLDS:
        taken: list[set[int]] = [set() for _ in truth]
        hits = []
        for _, f, pose in ranked:
            best, best_similarity = None, threshold
            for n, label in enumerate(truth[f]):
                seen = ~np.isnan(label[:, 0])
                squared = ((pose - label) ** 2).sum(axis=1)[seen]
                similarity = np.where(np.isnan(squared), 0, np.exp(-squared / (2 * s2 * areas[f][n]))).mean()
                if n not in taken[f] and similarity >= best_similarity:
                    best, best_similarity = n, similarity
            hits.append(best is not None)
            if best is not None:
                taken[f].add(best)
        right = np.cumsum(hits)
        precision = right / np.arange(1, len(hits) + 1)
        values.append(np.mean([max(precision[right / total >= recall], default=0.0) for recall in np.linspace(0, 1, 101)]))
    return float(np.mean(values))


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_second_implementation(seed: int):
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    for _ in range(6):
        labels = _crowd(rng, int(rng.integers(0, 9)))
        labels[rng.random(labels.shape[:2]) < 0.15] = NAN
        labels = labels[~np.isnan(labels[..., 0]).all(axis=1)]
        guesses = np.concatenate([labels, labels[:2], _crowd(rng, int(rng.integers(0, 4)))])
        guesses = np.nan_to_num(guesses, nan=500.0) + rng.normal(0, 6, guesses.shape)
        guesses[rng.random(guesses.shape[:2]) < 0.1] = NAN
        guesses = guesses[rng.random(len(guesses)) < 0.9]
        truth.append(labels)
        predicted.append((guesses, rng.random(len(guesses))))
    for s2 in (PAPER_S2, MEDIUM_S2, SLEAP_S2):
        assert keypoint_ap(truth, predicted, s2).ap == pytest.approx(_simple_ap(truth, predicted, s2), abs=1e-9)


# --- by hand ------------------------------------------------------------------------------------------------------------------------------


def test_missing_points():
    label, guess = ANIMAL.copy(), ANIMAL.copy()
    guess[1] = NAN
    assert oks(label[None], guess[None], np.array([1800.0]), 1.0)[0, 0] == pytest.approx(2 / 3)
    label[1] = NAN  # not labelled: not judged
    assert oks(label[None], ANIMAL[None], np.array([1800.0]), 1.0)[0, 0] == 1.0
    found = keypoint_ap([ANIMAL[None]], [(guess[None], np.ones(1))])
    assert found.ap == pytest.approx(0.4)  # .6667 passes .50, .55, .60, .65


def test_perfect_predictions():
    rng = np.random.default_rng(0)
    truth = [_crowd(rng, n) for n in (1, 5, 45)]  # pycocotools alone would cut the 45 to 20
    found = keypoint_ap(truth, [(poses, np.full(len(poses), 0.9)) for poses in truth], SLEAP_S2)
    assert (found.ap, found.ap50, found.ap75, found.ar) == (1, 1, 1, 1)


def test_a_better_scored_double_lowers_ap():
    rng = np.random.default_rng(0)
    truth = [_crowd(rng, 4) for _ in range(3)]
    doubles = [(np.concatenate([p, p]), np.concatenate([np.linspace(0.5, 0.9, 4)] * 2)) for p in truth]
    assert keypoint_ap(truth, doubles).ap < 0.7
    assert keypoint_ap(truth, doubles).ar == 1


def test_half_the_frames_missing():
    truth = [ANIMAL[None], ANIMAL[None]]
    found = keypoint_ap(truth, [(ANIMAL[None], np.ones(1)), NO_POSES])
    assert found.ap == pytest.approx(51 / 101) and found.ar == 0.5  # recalls 0 to .50 of 101


def test_false_animal_in_an_empty_frame_counts():
    truth = [ANIMAL[None], np.empty((0, 3, 2))]
    far = (ANIMAL[None] * 40, np.ones(1))  # large: pycocotools alone ignores unmatched animals beyond its area limits
    assert keypoint_ap(truth, [(ANIMAL[None], np.array([0.5])), far]).ap == pytest.approx(0.5)
    assert keypoint_ap(truth, [(ANIMAL[None], np.array([1.5])), far]).ap == 1


def test_no_labels_no_figure():
    assert math.isnan(keypoint_ap([np.empty((0, 3, 2))], [NO_POSES]).ap)
    assert math.isnan(keypoint_ap([], []).ap)
    with pytest.raises(ValueError, match="empty array"):
        keypoint_ap([ANIMAL[None]], [])

"""Figures of merit of poses in memory against cases worked out by hand."""

import json
import math

import numpy as np
import pytest

from smp_plugin.metrics import MEDIUM_S2, PAPER_S2, SLEAP_S2, evaluate_poses, swapped_pairs

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


def test_result_is_json():
    found = evaluate_poses([ANIMAL[None]], [NO_POSES], ["nose", "tail", "back"])
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["pixel_error"]["50"] is None and plain["ap"]["0.0025"]["ap"] == 0.0

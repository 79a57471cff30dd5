"""Similarity, sizes and assignment against cases worked out by hand."""

import math

import numpy as np
import pytest

from smp_plugin.similarity import MEDIUM_S2, SLEAP_S2, animal_areas, animal_lengths, assign, match, oks

NAN = math.nan
ANIMAL = np.array([[0.0, 0.0], [60.0, 0.0], [30.0, 30.0]])  # 60 x 30 px


def test_oks_by_hand():
    """SLEAP's documented example: 5 px on a 60 x 30 animal is 0.0622 at sigma .025."""
    moved = ANIMAL + [5.0, 0.0]
    area = animal_areas([ANIMAL[None]])[0]
    assert area == [1800.0]
    assert oks(ANIMAL[None], moved[None], area, SLEAP_S2)[0, 0] == pytest.approx(math.exp(-25 / (2 * 0.0025 * 1800)))
    assert oks(ANIMAL[None], moved[None], area, SLEAP_S2)[0, 0] == pytest.approx(0.0622, abs=1e-4)


def test_areas():
    one_point = np.full((3, 2), NAN)
    one_point[0] = 5.0
    flat = np.array([[0.0, 0.0], [80.0, 0.0], [NAN, NAN]])
    partial = np.array([[0.0, 0.0], [10.0, 10.0], [NAN, NAN]])
    frames = [np.stack([ANIMAL, one_point]), np.stack([ANIMAL * 2, flat, partial])]
    (first, second) = animal_areas(frames)
    middle = (1800 + 7200) / 2  # median of the complete animals
    assert list(first) == [1800, middle] and list(second) == [7200, middle, 100]
    assert list(animal_areas(frames, padding=10)[0]) == [80 * 50, 400]
    assert list(animal_areas([one_point[None]])[0]) == [32 * 32]
    assert list(animal_areas([np.stack([one_point, partial])])[0]) == [100, 100]
    assert animal_lengths([np.stack([ANIMAL, one_point])])[0].tolist() == [60, 60]


def test_match_takes_the_best_first():
    assert match(np.array([[0.9, 0.8], [0.95, 0.1]]), 0.3) == [(1, 0), (0, 1)]
    assert match(np.empty((0, 3)), 0.3) == [] and match(np.array([[0.2]]), 0.3) == []

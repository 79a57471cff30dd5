"""Similarity, sizes and assignment against cases worked out by hand."""

import math

import numpy as np
import pytest

from smp_plugin.similarity import SLEAP_S2, animal_areas, animal_lengths, assign, found_by, match, oks, on_boxes

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
    assert list(animal_areas([one_point[None]])[0]) == [32 * 32]
    assert list(animal_areas([np.stack([one_point, partial])])[0]) == [100, 100]
    assert animal_lengths([np.stack([ANIMAL, one_point])])[0].tolist() == [60, 60]


def test_an_animal_is_found_by_the_first_prediction_that_fits_it():
    like = np.array([[0.2, 0.6, 0.9, 0.0], [0.1, 0.5, 0.8, 0.4]])
    assert found_by(like, 0.3) == [1, 2]  # the second and, where the first animal is taken, the third, though more like the first
    assert found_by(like[:1], 0.3) == [1] and found_by(like, 0.95) == [] == found_by(np.empty((0, 3)), 0.3)


def test_match_takes_the_best_first():
    assert match(np.array([[0.9, 0.8], [0.95, 0.1]]), 0.3) == [(1, 0), (0, 1)]
    assert match(np.empty((0, 3)), 0.3) == [] and match(np.array([[0.2]]), 0.3) == []


def test_assignment_by_hand():
    """A complete animal, and one of which only the nose is labelled: its prediction, and a neighbour that faces the other way."""
    nose = np.full((3, 2), NAN)
    nose[0] = [300.0, 300.0]
    own, other = ANIMAL + [300.0, 300.0], [300.0, 310.0] - ANIMAL
    poses = np.stack([ANIMAL, own, ANIMAL + [600.0, 0.0], ANIMAL + 1, other])
    found = assign(np.stack([ANIMAL, nose]), poses, np.array([1800.0, 1800.0]))
    assert sorted(found.pairs) == [(0, 0), (1, 1)]
    assert found.near.tolist() == [False, False, False, True, True]  # the neighbour's nose is 10 px off: OKS exp(-100 / 360) = .757
    assert found.again.tolist() == [False, False, False, True, False]  # its other points are not: OKS .757 / 3 = .252 to the first
    assert found.judged.tolist() == [True, True, False, True, False]
    assert assign(np.empty((0, 3, 2)), poses, np.empty(0), empty=True).judged.all()
    assert not assign(np.empty((0, 3, 2)), poses, np.empty(0)).judged.any()
    assert assign(ANIMAL[None], np.empty((0, 3, 2)), np.array([1800.0])).pairs == []


def test_one_keypoint_is_matched_within_half_the_root_of_the_typical_area():
    """OKS .3 at s2 = .1: d^2 = -2 * .1 * 1800 * ln .3, d = 20.8 px = .49 * sqrt(1800)."""
    nose = np.full((1, 3, 2), NAN)
    nose[0, 0] = 0.0
    area = np.array([1800.0])
    assert len(assign(nose, ANIMAL[None] + [20.5, 0.0], area).pairs) == 1
    assert len(assign(nose, ANIMAL[None] + [21.0, 0.0], area).pairs) == 0


BOX = np.array([100.0, 100.0, 300.0, 200.0])


def test_with_half_of_its_points_on_a_box_a_prediction_cannot_be_judged():
    inside = ANIMAL + [150.0, 130.0]
    half, less = np.where([[1], [0], [0]], inside, 500.0), np.where([[1], [0], [0]], inside, [[NAN], [500.0], [NAN]])
    nothing = np.full((3, 2), NAN)
    poses = np.stack([inside, half, less, np.where([[1], [0], [0]], inside, NAN), nothing, ANIMAL + 400])
    (found,) = on_boxes([np.empty((0, 3, 2))], [poses], [[BOX + 1000, BOX]])
    assert found.tolist() == [True, False, True, True, False, False]
    assert not on_boxes([ANIMAL[None]], [poses], [[]])[0].any()


def test_what_belongs_to_a_labelled_animal_is_judged_on_a_box_too():
    """30 px off a 60 x 30 animal OKS is .78 at the paper's tolerance and .08 at the one at which animals are counted."""
    truth = ANIMAL + [150.0, 130.0]
    near, far = truth + [30.0, 0.0], truth - [45.0, 0.0]
    assert on_boxes([truth[None]], [near[None]], [[BOX]])[0].tolist() == [False]
    # Of several that would do the best one belongs to it, and what resembles that one.
    assert on_boxes([truth[None]], [np.stack([far, near, near + 1])], [[BOX]])[0].tolist() == [True, False, False]
    assert on_boxes([truth[None]], [np.stack([near, truth])], [[BOX]])[0].tolist() == [True, False]


@pytest.mark.parametrize(("size", "judged"), [(4.0, True), (0.25, False)])
def test_how_large_an_animal_of_one_point_is_other_frames_say(size: float, judged: bool):
    nose = np.full((3, 2), NAN)
    nose[0] = [200.0, 150.0]
    away = ANIMAL * size + nose[0] + [40.0, 0.0]
    assert on_boxes([ANIMAL[None] * size, nose[None]], [np.empty((0, 3, 2)), away[None]], [[], [BOX]])[1].tolist() == [not judged]

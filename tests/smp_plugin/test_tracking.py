"""Animals on paths that are known, seen well and badly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smp_plugin.tracking import FARTHEST, MEMORY, Tracker, Trackers

LENGTH = 40.0
SHAPE = np.array([(-20.0, 0.0), (0.0, 3.0), (20.0, 0.0)])


def turned(angle: float) -> np.ndarray:
    return SHAPE @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def names(tracker: Tracker, poses: Callable[[int], list[np.ndarray]], frames: range) -> list[list[int]]:
    return [tracker(frame, np.array(poses(frame)).reshape(-1, 3, 2)) for frame in frames]


def test_animals_that_pass_through_each_other_keep_their_tracks() -> None:
    def poses(frame: int) -> list[np.ndarray]:
        pair = [SHAPE + (6.0 * frame, 50.0), SHAPE[::-1] + (240 - 6.0 * frame, 54.0)]
        return pair if frame % 2 else pair[::-1]

    assert names(Tracker(LENGTH), poses, range(40)) == [[0, 1] if frame % 2 == 0 else [1, 0] for frame in range(40)]


def test_animals_that_lie_across_each_other_are_told_apart_by_how_they_lie() -> None:
    def poses(frame: int) -> list[np.ndarray]:  # one turns while they touch; their middles are the same
        pair = [turned(0.05 * frame) + 100.0, turned(1.6 + 0.05 * frame) + 100.0]
        return pair if frame % 3 else pair[::-1]

    assert names(Tracker(LENGTH), poses, range(1, 30)) == [[0, 1] if frame % 3 else [1, 0] for frame in range(1, 30)]


def test_fast_animals_are_sought_where_their_motion_takes_them() -> None:
    """They pass each other between two frames, so that each is nearer to where the other was."""
    found = names(Tracker(LENGTH), lambda f: [np.full((3, 2), (14.0 * f, 50.0)), np.full((3, 2), (273.0 - 14.0 * f, 52.0))], range(21))
    assert found == [[0, 1]] * 21


@pytest.mark.parametrize("most", [0, 2])
def test_one_that_is_hidden_for_a_while_is_the_same_where_its_motion_would_take_it(most: int) -> None:
    def poses(frame: int) -> list[np.ndarray]:
        walking = [] if 10 <= frame < 15 else [SHAPE + (5.0 * frame, 100.0)]
        return [*walking, SHAPE + (60.0, 140.0)]

    found = names(Tracker(LENGTH, most), poses, range(30))
    assert found[:10] + found[15:] == [[0, 1]] * 25 and found[10:15] == [[1]] * 5


def test_who_was_away_for_long_is_another_unless_their_number_is_known() -> None:
    def poses(frame: int) -> list[np.ndarray]:
        away = 5 <= frame < 5 + MEMORY + 1
        return [SHAPE + (60.0, 140.0)] + ([] if away else [SHAPE + (400.0 if frame > 5 else 200.0, 20.0)])

    end = range(MEMORY + 12)
    assert names(Tracker(LENGTH), poses, end)[-1] == [0, 2]
    assert names(Tracker(LENGTH, 2), poses, end)[-1] == [0, 1]


def test_nobody_leaps_unless_their_number_is_known() -> None:
    leap = (FARTHEST + 1) * LENGTH

    def poses(frame: int) -> list[np.ndarray]:
        return [SHAPE + 100.0 + (leap if frame > 3 else 0)]

    assert names(Tracker(LENGTH), poses, range(6)) == [[0]] * 4 + [[1]] * 2
    assert names(Tracker(LENGTH, 1), poses, range(6)) == [[0]] * 6
    assert names(Tracker(LENGTH, 3), poses, range(6)) == [[0]] * 4 + [[1]] * 2  # two of them have not been seen yet


def test_a_hidden_animal_is_expected_to_slow_down() -> None:
    """It went 6 pixels a frame and was hidden for 20: it is looked for some 30 pixels on, and neither where it was nor at 120."""

    def poses(frame: int) -> list[np.ndarray]:
        if frame < 10:
            return [SHAPE + (6.0 * frame, 100.0)]
        return [] if frame < 30 else [SHAPE + (54.0 + far, 100.0) for far in (120.0, 30.0, -24.0)]

    assert names(Tracker(LENGTH), poses, range(31))[-1] == [1, 0, 2]


def test_a_keypoint_that_jumps_does_not_make_another_animal() -> None:
    def poses(frame: int) -> list[np.ndarray]:
        pose = SHAPE + (3.0 * frame, 100.0)
        if frame % 4 == 3:
            pose[frame % 3, 0] += 5 * LENGTH
        return [pose]

    assert names(Tracker(LENGTH), poses, range(20)) == [[0]] * 20


def test_frames_without_a_common_keypoint_are_bridged() -> None:
    def poses(frame: int) -> list[np.ndarray]:
        both = np.array([SHAPE + (3.0 * frame, 50.0), SHAPE + (3.0 * frame, 95.0)])
        if frame:  # one point each, never the same twice
            both[:, [frame % 3, (frame + 1) % 3]] = np.nan
        return list(both)

    assert names(Tracker(LENGTH), poses, range(30)) == [[0, 1]] * 30


def test_videos_have_tracks_of_their_own() -> None:
    trackers = Trackers(LENGTH)
    assert [trackers(video, 0, SHAPE[None]) for video in "ab"] == [[0], [0]]
    assert trackers("a", 1, np.array([SHAPE + 300, SHAPE])) == [1, 0] and trackers("b", 1, SHAPE[None] + 300) == [1]
    assert trackers("a", 2, np.empty((0, 3, 2))) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 1), st.floats(0, 0.2))
def test_a_swarm_is_followed_in_whatever_order_it_comes(seed: int, count: int, known: int, hidden: float) -> None:
    """Animals walk about their own places, a length and a half apart, some unseen now and then."""
    rng = np.random.default_rng(seed)
    tracker, number = Tracker(LENGTH, known * count), dict[int, int]()
    steps = np.zeros((count, 2))
    for frame in range(25):
        steps = 0.8 * steps + rng.normal(0, 1.5, (count, 2))
        seen = [animal for animal in rng.permutation(count).tolist() if frame == 0 or rng.random() >= hidden]
        poses = [turned(0.1 * frame + animal) + (animal * 1.5 * LENGTH, 50) + steps[animal] for animal in seen]
        given_ = tracker(frame, np.array(poses).reshape(-1, 3, 2))
        assert len(set(given_)) == len(seen)
        assert all(number.setdefault(animal, track) == track for animal, track in zip(seen, given_, strict=True))
    assert sorted(number.values()) == list(range(count))

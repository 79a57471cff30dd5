"""Which animal of a frame is which of the frames before: tracks, given while the frames pass, with a memory that does not grow.

An animal is expected where its motion takes it, each keypoint for itself, so that look-alikes that touch are told apart by how they lie.
The animals of a frame go to the tracks with the least total distance (Hungarian method, `scipy.optimize.linear_sum_assignment`), as in SORT
(arXiv 1602.00763), whose boxes and Kalman filter keypoints and a smoothed velocity replace.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

REACH = 1.0  # lengths of an animal that it may be from where it is expected, one frame later; more by the root of the frames it was unseen
FARTHEST = 3.0  # lengths, however long it was unseen
MEMORY = 100  # frames that an animal may be unseen and is still looked for, where their number is not known
SLOWING = 0.8  # share of its velocity that an unseen animal is expected to keep from frame to frame
CAPPED = 2.0  # lengths: one keypoint that jumps does not make another animal
_NEVER = 1e6


@dataclass
class _Track:
    """An animal: the place where each keypoint was last seen, moved along since, (K, 2), and its motion, pixels a frame, (2,)."""

    pose: Array
    frame: int
    velocity: Array

    def expected(self, frame: int) -> Array:
        gap = frame - self.frame
        return self.pose + self.velocity * (1 - SLOWING**gap) / (1 - SLOWING)

    def update(self, frame: int, pose: Array) -> None:
        known = np.isfinite(pose[:, 0] + pose[:, 1])
        both = known & np.isfinite(self.pose[:, 0])
        shift = np.median((pose - self.pose)[both], axis=0) if both.any() else np.nanmean(pose, axis=0) - np.nanmean(self.pose, axis=0)
        self.velocity = (self.velocity + shift / (frame - self.frame)) / 2
        self.pose, self.frame = np.where(known[:, None], pose, self.pose + shift), frame


class Tracker:
    """Follows the animals of one video.

    Args:
        length: of a typical animal, frame pixels; distances are measured in it.
        most: how many animals there are, 0 where that is not known. Where it is, there are never more tracks, and whatever is found goes to
            one of them, however far away: an animal that comes back is one of those that were lost.
    """

    def __init__(self, length: float, most: int = 0) -> None:
        self.length, self.most = length, most
        self._tracks: dict[int, _Track] = {}
        self._count = 0

    def __call__(self, frame: int, poses: Array) -> list[int]:
        """The tracks, numbered from 0, of the animals of the next frame.

        Args:
            frame: its number, larger than that of the frame before.
            poses: (n, K, 2) frame pixels, NaN where there is no point; each with a point, and at most ``most``.
        """
        if not self.most:
            self._tracks = {n: track for n, track in self._tracks.items() if frame - track.frame <= MEMORY}
        numbers, tracks = list(self._tracks), list(self._tracks.values())
        found: dict[int, int] = {}
        if numbers and len(poses):
            distance = self._distance(frame, tracks, poses)
            reach = np.minimum(REACH * np.sqrt([frame - track.frame for track in tracks]), FARTHEST)[:, None]
            self._pair(np.where(distance <= reach, distance, _NEVER), numbers, found)
            if self.most and (free := self.most - self._count) < (new := len(poses) - len(found)):
                rest = np.where(np.isin(numbers, list(found.values()))[:, None], _NEVER, distance)
                rest[:, list(found)] = _NEVER
                self._pair(rest, numbers, found, new - free)
        for animal, pose in enumerate(poses):
            if animal in found:
                self._tracks[found[animal]].update(frame, pose)
            else:
                found[animal] = self._count
                self._tracks[self._count] = _Track(pose, frame, np.zeros(2))
                self._count += 1
        return [found[animal] for animal in range(len(poses))]

    @staticmethod
    def _pair(distance: Array, numbers: list[int], found: dict[int, int], limit: int | None = None) -> None:
        """Add the animals of the best pairs to ``found``, the ``limit`` nearest of them; `_NEVER` is no pair."""
        pairs = sorted((distance[row, column], row, column) for row, column in zip(*linear_sum_assignment(distance), strict=True))
        found |= {int(column): numbers[row] for far, row, column in pairs[:limit] if far < _NEVER}

    def _distance(self, frame: int, tracks: list[_Track], poses: Array) -> Array:
        """(T, n) mean distance of the keypoints that both have, else of their middles, in lengths."""
        expected = np.stack([track.expected(frame) for track in tracks])
        apart = np.linalg.norm(expected[:, None] - poses, axis=-1) / self.length  # T, n, K
        both = np.isfinite(apart)
        middles = np.nanmean(expected, axis=1)[:, None] - np.nanmean(poses, axis=1)
        mean = np.where(both, np.minimum(apart, CAPPED), 0.0).sum(axis=-1) / np.maximum(both.sum(axis=-1), 1)
        far = np.linalg.norm(middles, axis=-1) / self.length
        return np.where(both.any(axis=-1) & (far <= CAPPED), mean, far)


class Trackers:
    """Those of several videos, by what tells videos apart; arguments as of `Tracker`."""

    def __init__(self, length: float, most: int = 0) -> None:
        self.length, self.most = length, most
        self._of: dict[Hashable, Tracker] = {}

    def __call__(self, video: Hashable, frame: int, poses: Array) -> list[int]:
        """As of `Tracker`."""
        if video not in self._of:
            self._of[video] = Tracker(self.length, self.most)
        return self._of[video](frame, poses)

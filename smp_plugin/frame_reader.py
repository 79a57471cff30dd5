"""Frames of a project's videos, as the network sees them."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor

from converters.labels import FormatError, VideoSource
from converters.video import Video, open_video
from smp_plugin import transforms


class FrameReader:
    """Frames of several videos at the input scale, (3, H, W) uint8; opens videos when first needed, also inside loader processes."""

    def __init__(self, videos: list[VideoSource], scale: float, cache_bytes: float = 0) -> None:
        self.videos, self.scale, self.room = videos, scale, cache_bytes
        self._open: dict[int, Video] = {}
        self._cache: dict[tuple[int, int], tuple[Tensor, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_open": {}}  # open files do not travel to other processes

    def video(self, number: int) -> Video:
        """The opened video."""
        if number not in self._open:
            self._open[number] = open_video(self.videos[number])
        return self._open[number]

    def frame_bytes(self, number: int) -> float:
        """Of a frame of this video at the input scale, as far as its first frame tells; 1 where it can't be opened."""
        with contextlib.suppress(FormatError):
            return max(1.0, 3 * self.video(number).height * self.video(number).width * self.scale**2)
        return 1.0

    def prepared(self, frame: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """A frame (H, W, 3) at the input scale, and the matrix frame -> input pixels."""
        tensor = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        return transforms.resize_frames(tensor, self.scale)[0].contiguous(), transforms.resize_matrix(
            frame.shape[0], frame.shape[1], self.scale
        )

    def get(self, video: int, index: int) -> tuple[Tensor, np.ndarray]:
        """One frame, kept as long as there is room."""
        found = self._cache.get((video, index))
        if found is None:
            found = self.prepared(self.video(video).read(index))
            if self.room > found[0].numel():
                self.room -= found[0].numel()
                self._cache[video, index] = found
        return found

    def get_many(self, video: int, indices: list[int]) -> list[Tensor]:
        """Several frames in ascending order, read in one forward pass, up to one that can't be read: headers promise more frames than
        there are, and recordings end damaged.
        """
        found: list[Tensor] = []
        with contextlib.suppress(FormatError):
            for _, frame in self.video(video).read_many(indices):
                found.append(self.prepared(frame)[0])
        return found

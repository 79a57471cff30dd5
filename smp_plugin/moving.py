"""Where animals probably are in frames without labels: where a frame differs from the median of its video's frames."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8  # input pixels, about; what is smaller than that is no animal
LEAST_FRAMES = 5  # a median of fewer is none
NOISE = 6.0  # standard deviations of the noise, from which on a difference is one
LEAST = 4.0  # of 256 levels: less is compression


def moving(frames: list[Tensor]) -> list[np.ndarray]:
    """Of some frames (3, H, W) uint8 of one video, per frame the places (n, 2: x, y), input pixels, where something was not at other times.

    Light that changes in the whole frame is no difference. Few frames, or frames of different sizes, have no such places; where the
    camera moves, or images have nothing in common, they are everywhere.
    """
    if len(frames) < LEAST_FRAMES or len({frame.shape for frame in frames}) > 1 or min(frames[0].shape[1:]) < CELL:
        return [np.empty((0, 2)) for _ in frames]
    height, width = frames[0].shape[1:]
    shape = (height // CELL, width // CELL)
    shrunk = [F.interpolate(frame[None], shape, mode="bilinear", antialias=True)[0] for frame in frames]
    small = torch.stack(shrunk).float()  # n, 3, h, w
    small -= small.flatten(2).median(dim=2).values[..., None, None]
    gap = (small - small.median(dim=0).values).abs().amax(dim=1)  # n, h, w
    noise = 1.4826 * gap.flatten(1).median(dim=1).values
    differs = gap > (NOISE * noise).clamp(min=LEAST)[:, None, None]
    cell = (width / shape[1], height / shape[0])
    return [(np.argwhere(cells.numpy())[:, ::-1] + 0.5) * cell - 0.5 for cells in differs]

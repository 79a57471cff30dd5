"""Frames as the network sees them: kept while there is room, and the same either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converters.labels import VideoSource
from smp_plugin.frame_reader import FrameReader


def test_the_cache_keeps_what_fits_and_changes_nothing(video_file: Path) -> None:
    source = VideoSource((video_file,))
    size = 3 * 24 * 32
    cached, plain = FrameReader([source], 0.5, 2.5 * size), FrameReader([source], 0.5)
    for index in (0, 1, 2, 0, 2):
        (a, matrix), (b, same) = cached.get(0, index), plain.get(0, index)
        assert torch.equal(a, b) and np.array_equal(matrix, same) and a.shape == (3, 24, 32)
    assert cached.get(0, 0)[0] is cached.get(0, 0)[0] and cached.get(0, 2)[0] is not cached.get(0, 2)[0]
    assert all(torch.equal(a, plain.get(0, i)[0]) for i, a in zip((1, 4), plain.get_many(0, [1, 4]), strict=True))
    source_missing = FrameReader([VideoSource((Path("nowhere") / "a.png", Path("nowhere") / "b.png"))], 1.0)
    with pytest.raises(ValueError, match="a.png"):
        source_missing.get(0, 0)

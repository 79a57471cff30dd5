"""Where something moves: against scenes whose moving part is known, and what unlabelled crops then show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from converters.labels import Instance, LabeledFrame, Skeleton, VideoSource
from smp_plugin.config import Config
from smp_plugin.datasets import LabelSource, TrainingSteps
from smp_plugin.moving import moving
from smp_plugin.unlabeled import UnlabeledPool

SIDE = 32  # of the square that moves, pixels


def scene(count: int, height: int, width: int, noise: float = 2.0) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """Frames of a textured ground under light that changes, with a bright square somewhere; and its upper left corners."""
    rng = np.random.default_rng(count)
    ground = rng.uniform(20, 160, (3, height // 20 + 1, width // 20 + 1)).repeat(20, axis=1).repeat(20, axis=2)[:, :height, :width]
    frames, corners = [], []
    for _ in range(count):
        x, y = int(rng.integers(0, width - SIDE)), int(rng.integers(0, height - SIDE))
        frame = ground.copy()
        frame[:, y : y + SIDE, x : x + SIDE] = 215
        frame += rng.uniform(-20, 20) + rng.normal(0, noise, frame.shape)
        frames.append(torch.from_numpy(frame.clip(0, 255).astype(np.uint8)))
        corners.append((x, y))
    return frames, corners


@pytest.mark.parametrize("count", [6, 36])
def test_what_moves_is_found_and_nothing_else(count: int) -> None:
    frames, corners = scene(count, 300, 420)
    for places, (x, y) in zip(moving(frames), corners, strict=True):
        assert len(places) >= 9  # whole cells of 8 pixels within the square
        apart = places - (x + (SIDE - 1) / 2, y + (SIDE - 1) / 2)
        assert np.abs(apart).max() < SIDE / 2 + 12
        assert np.abs(apart.mean(axis=0)).max() < 5


def test_where_nothing_moves_or_nothing_can_be_told_there_are_no_places() -> None:
    frames, _ = scene(36, 300, 420)
    still = [frames[0]] * 6
    for several in (still, frames[:4], [*frames[:5], frames[5][:, :200]], [frame[:, :6, :6] for frame in frames], []):
        assert [len(places) for places in moving(several)] == [0] * len(several)


def test_unlabelled_crops_are_laid_on_what_moves(tmp_path: Path) -> None:
    """A crop covers a tenth of the frame."""
    frames, corners = scene(30, 400, 600)
    paths = tuple(tmp_path / f"{i}.png" for i in range(len(frames)))
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(path)
    x, y = corners[0]
    labels = LabelSource([LabeledFrame(0, 0, [Instance(np.array([[x, y], [x + SIDE, y + SIDE]], float))])], [0, 1], False)
    shares = {}
    for share in (0.0, 0.8, 1.0):
        config = Config()
        config.data.crop, config.data.input_scale, config.data.animal_size = 128, 1.0, float(SIDE)
        config.train.batch, config.train.unlabeled_batch = 1, 4
        config.augment.moving, config.augment.brightness, config.augment.contrast = share, 0.0, 0.0
        config.augment.scale = (1.0, 1.0)
        source = VideoSource(paths)
        steps = TrainingSteps([labels], [source], Skeleton(("a", "b")), config, [source], UnlabeledPool([30], [{0}], None))
        steps.first_unlabeled_step.fill_(0)
        crops = torch.cat([steps[step].weak for step in range(25)]).float()
        shares[share] = float((crops.amin(dim=1).flatten(1).topk(100, dim=1).values.amin(dim=1) > 180).float().mean())
    assert shares[0.0] < 0.45 and shares[0.8] > 0.75 and shares[1.0] == 1.0

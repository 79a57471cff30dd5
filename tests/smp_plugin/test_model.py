"""What the network promises: shapes, places, independence of neighbours, and gradients everywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from smp_plugin.config import LossConfig, ModelConfig
from smp_plugin.consistency import fusion_loss
from smp_plugin.losses import supervised
from smp_plugin.model import PoseModel
from smp_plugin.targets import Instances
from smp_plugin.transforms import PIXEL_MEAN

SMALL = ModelConfig(channels=16, tower_depth=1, heatmap_channels=16, norm="group")


def images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 65), (64, 96), (97, 33)])
@pytest.mark.parametrize("heatmap_stride", [4, 8])
@pytest.mark.parametrize("levels", [2, 3])
def test_any_image_size_is_padded_to_whole_cells_of_every_level(height: int, width: int, heatmap_stride: Any, levels: Any) -> None:
    torch.manual_seed(0)
    strides = (8, 16, 32)[:levels]
    model = PoseModel(dataclasses.replace(SMALL, heatmap_stride=heatmap_stride, levels=levels), 3).eval()
    with torch.no_grad():
        outputs = model(images(2, height, width))
    h, w = (-(-side // strides[-1]) * strides[-1] for side in (height, width))
    count = sum((h // s) * (w // s) for s in strides)
    assert [tuple(m.shape) for m in outputs.maps(outputs.scores)] == [(2, 1, h // s, w // s) for s in strides]
    assert outputs.heatmaps.shape == (2, 3, h // heatmap_stride, w // heatmap_stride)
    assert outputs.presence.shape == outputs.quality.shape == outputs.scores.shape == (2, count)
    assert outputs.vectors.shape == outputs.poses.shape == (2, count, 3, 2)
    assert outputs.heatmap_stride == heatmap_stride
    expected = [(s * j + (s - 1) / 2, s * i + (s - 1) / 2, s) for s in strides for i in range(h // s) for j in range(w // s)]
    assert torch.cat((outputs.locations, outputs.strides[:, None]), dim=1).tolist() == [list(map(float, e)) for e in expected]


@pytest.mark.parametrize("training", [True, False])
def test_an_image_is_seen_the_same_whatever_lies_beside_it_in_the_batch(training: bool) -> None:
    torch.manual_seed(0)
    model = PoseModel(SMALL, 2).train(training)
    batch = images(3, 64, 64)
    with torch.no_grad():
        together, alone = model(batch), model(batch[1:2])
    for name in ("heatmaps", "presence", "quality", "vectors"):
        torch.testing.assert_close(getattr(together, name)[1:2], getattr(alone, name), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(getattr(together.images(slice(1, 2)), name), getattr(alone, name), rtol=1e-4, atol=1e-5)


def test_padding_is_the_mean_colour() -> None:
    torch.manual_seed(0)
    model = PoseModel(SMALL, 2).eval()
    image = images(1, 50, 70).float()
    padded = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1).expand(1, 3, 64, 80).clone()
    padded[:, :, :50, :70] = image
    with torch.no_grad():
        torch.testing.assert_close(model(image).heatmaps, model(padded).heatmaps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kpalign", [True, False])
@pytest.mark.parametrize("heatmap_stride", [4, 8])
@pytest.mark.parametrize("levels", [2, 3])
def test_every_parameter_gets_a_gradient(kpalign: bool, heatmap_stride: Any, levels: Any) -> None:
    torch.manual_seed(0)
    model = PoseModel(dataclasses.replace(SMALL, kpalign=kpalign, heatmap_stride=heatmap_stride, levels=levels), 2)
    outputs = model(images(1, 288, 288))
    lengths = (40.0, 180.0, 270.0)  # one animal for each level
    keypoints = torch.tensor([[[[140 - s / 2, 120], [140 + s / 2, 150]] for s in lengths]])
    config = LossConfig()
    terms = supervised(outputs, Instances(keypoints, torch.ones(1, 3), torch.ones(1, 1, 1)), config, 60.0)
    indices = torch.tensor([[300, 700]])
    total = torch.stack([*terms.values(), fusion_loss(outputs, indices, torch.tensor([[0.9, 0.4]]), config)]).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_gradients_exist_without_any_animal() -> None:
    torch.manual_seed(0)
    model = PoseModel(SMALL, 2)
    outputs = model(images(1, 64, 64))
    nothing = Instances(torch.full((1, 1, 2, 2), torch.nan), torch.zeros(1, 1), torch.ones(1, 1, 1))
    torch.stack(list(supervised(outputs, nothing, LossConfig(), 60.0).values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name

"""Turning outputs back is the inverse of turning images, by the coordinates of every point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from smp_plugin.budget import Budget
from smp_plugin.config import Config
from smp_plugin.model import PoseOutputs
from smp_plugin.training import PoseTraining
from smp_plugin.turning import WAYS, turn, turn_back

SIDE = 96
MIRRORED = (0, 2, 1)


def moved(points: torch.Tensor, way: int) -> torch.Tensor:
    """Points (..., 2: x, y) of the square to where they lie in it afterwards: a quarter turn takes the right side to the top."""
    x, y = points.unbind(dim=-1)
    for _ in range(way % 4):
        x, y = y, SIDE - 1 - x
    return torch.stack((SIDE - 1 - x if way >= 4 else x, y), dim=-1)


@pytest.mark.parametrize("way", range(WAYS))
def test_images_are_turned_as_points_are(way: int) -> None:
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[0, 0, 7, 30] = 1  # x 30, y 7
    ((y, x),) = turn(image, way)[0, 0].nonzero().tolist()
    assert [x, y] == moved(torch.tensor([30, 7]), way).tolist()


@pytest.mark.parametrize("way", range(WAYS))
def test_outputs_are_turned_back(way: int, make_outputs: Callable[..., PoseOutputs]) -> None:
    laid = make_outputs(images=2, keypoints=3, height=SIDE, width=SIDE, seed=1)
    back = turn_back(laid, way, torch.tensor(MIRRORED))
    mirrored = list(MIRRORED) if way >= 4 else [0, 1, 2]
    for here, (centre, stride) in enumerate(zip(laid.locations, laid.strides, strict=True)):
        same = ((laid.locations - moved(centre, way)).abs().amax(dim=1) < 1e-6) & (laid.strides == stride)
        (there,) = same.nonzero().flatten().tolist()
        torch.testing.assert_close(back.presence[:, here], laid.presence[:, there])
        torch.testing.assert_close(back.quality[:, here], laid.quality[:, there])
        torch.testing.assert_close(moved(back.poses[:, here], way), laid.poses[:, there][:, mirrored])
    cells = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(24), indexing="xy"), dim=-1) * 4 + 1.5  # centres of heatmap cells
    column, row = ((moved(cells.double(), way) - 1.5) / 4).round().long().unbind(dim=-1)
    torch.testing.assert_close(back.heatmaps, laid.heatmaps[:, mirrored][:, :, row, column])
    assert torch.autograd.grad(back.vectors.sum() + back.heatmaps.sum(), laid.vectors, retain_graph=True)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ({}, [*range(WAYS)]),
        ({"augment__flip": False}, [0, 1, 2, 3]),
        ({"augment__rotation": 20.0}, [0, 4]),  # animals that stand on a floor
        ({"augment__turn": False}, [0]),
        ({"data__crop": 100}, [0]),  # padded on one side
    ],
)
def test_crops_are_turned_as_augmentation_allows(settings: dict[str, object], ways: list[int], make_config: Callable[..., Config]) -> None:
    config = make_config(**{"augment__flip": True, "augment__rotation": 180.0, "augment__turn": True, "data__crop": SIDE, **settings})
    config.model.norm = "group"
    assert PoseTraining(config, MIRRORED, 28.0, False, Budget(10, 0.0), None).ways == ways

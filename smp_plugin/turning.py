"""The eight ways to lay a square: images turned and mirrored, and what the network says of them turned back. Nothing is interpolated."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from smp_plugin.model import PoseOutputs

WAYS = 8  # 0 to 3: so many quarter turns; 4 to 7: these, then left and right exchanged


def turn(images: Tensor, way: int) -> Tensor:
    """Images (N, C, S, S), laid another way."""
    turned = torch.rot90(images, way % 4, (-2, -1))
    return turned.flip(-1) if way >= 4 else turned


def turn_back(outputs: PoseOutputs, way: int, mirrored: Tensor) -> PoseOutputs:
    """Outputs for images laid in this ``way`` -> as for the images before. With gradient.

    Args:
        outputs: of square images whose side is a multiple of the coarsest stride, so that every grid is turned onto itself.
        way: as in ``turn``.
        mirrored: (K,) for every keypoint the one that it becomes in a mirror.
    """
    side = outputs.heatmaps.shape[2] * outputs.heatmap_stride
    sides = [side // stride for stride in outputs.level_strides]

    def level(values: Tensor) -> Tensor:
        parts = values.split([n * n for n in sides], dim=1)
        return torch.cat([grid(p.unflatten(1, (n, n)), (1, 2)).flatten(1, 2) for p, n in zip(parts, sides, strict=True)], dim=1)

    def grid(values: Tensor, dims: tuple[int, int]) -> Tensor:
        return torch.rot90(values.flip(dims[1]) if way >= 4 else values, -(way % 4), dims)

    heatmaps, vectors = outputs.heatmaps, outputs.vectors
    if way >= 4:
        heatmaps, vectors = heatmaps.index_select(1, mirrored), vectors.index_select(2, mirrored)
        vectors = torch.stack((-vectors[..., 0], vectors[..., 1]), dim=-1)
    for _ in range(way % 4):
        vectors = torch.stack((-vectors[..., 1], vectors[..., 0]), dim=-1)
    return replace(
        outputs,
        heatmaps=grid(heatmaps, (2, 3)),
        presence=level(outputs.presence),
        quality=level(outputs.quality),
        vectors=level(vectors),
    )

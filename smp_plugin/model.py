"""Images -> ``PoseOutputs``. The network never sees targets and works the same in training and in prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from smp_plugin.backbone import Backbone
from smp_plugin.config import ModelConfig
from smp_plugin.heads import HeatmapHead, PresenceHead, VectorHead, locations
from smp_plugin.transforms import normalise, pad_to_stride

LEVEL_STRIDES = (8, 16, 32)


@dataclass
class PoseOutputs:
    """What the network says about N images; the L locations of all levels stand one behind the other.

    Attributes:
        heatmaps: A, (N, K, h, w) logits.
        presence: B, (N, L) logits.
        quality: C, (N, L) logits.
        vectors: D, (N, L, K, 2), in strides of each location's level.
        locations: (L, 2) centres of the cells, input pixels.
        strides: (L,) input pixels.
        heatmap_stride: input pixels per heatmap cell.
        level_strides: input pixels per cell of each level, the finest first.
    """

    heatmaps: Tensor
    presence: Tensor
    quality: Tensor
    vectors: Tensor
    locations: Tensor
    strides: Tensor
    heatmap_stride: int
    level_strides: tuple[int, ...]

    @property
    def poses(self) -> Tensor:
        """y, (N, L, K, 2) input pixels: each location's keypoints (eq. 2)."""
        return self.locations[:, None] + self.strides[:, None, None] * self.vectors

    @property
    def scores(self) -> Tensor:
        """v, (N, L) in [0, 1]: sigma(B) sigma(C)."""
        return torch.sigmoid(self.presence) * torch.sigmoid(self.quality)

    def maps(self, values: Tensor) -> list[Tensor]:
        """What the locations have, (N, L), as a map of each level, (N, 1, h, w)."""
        height, width = (side * self.heatmap_stride for side in self.heatmaps.shape[2:])
        shapes = [(height // stride, width // stride) for stride in self.level_strides]
        levels = values.split([h * w for h, w in shapes], dim=1)
        return [level.view(-1, 1, *shape) for level, shape in zip(levels, shapes, strict=True)]

    def images(self, which: slice) -> PoseOutputs:
        """The same for some of the images."""
        return replace(
            self,
            heatmaps=self.heatmaps[which],
            presence=self.presence[which],
            quality=self.quality[which],
            vectors=self.vectors[which],
        )


class PoseModel(nn.Module):
    """One-stage multi-animal pose network: backbone, feature pyramid (P3, P4 and, with 3 levels, P5), heads A, B, C, D.

    Args:
        config: the model's settings; ``norm`` must be resolved ("group" or "frozen").
        keypoints: K.
    """

    def __init__(self, config: ModelConfig, keypoints: int) -> None:
        super().__init__()
        self.heatmap_stride, self.strides = config.heatmap_stride, LEVEL_STRIDES[: config.levels]
        self.backbone = Backbone(config.backbone, config.norm, 1 + config.levels)
        fine, *pyramid = self.backbone.channels
        self.pyramid = FeaturePyramidNetwork(pyramid, config.channels)
        self.heatmap = HeatmapHead(fine, config.channels, config.heatmap_channels, keypoints, config.heatmap_stride)
        self.presence = PresenceHead(config.channels, config.tower_depth)
        self.vector = VectorHead(
            config.channels, config.heatmap_channels, config.tower_depth, keypoints, config.groups, config.kpalign, self.strides
        )

    def forward(self, images: Tensor) -> PoseOutputs:
        """images: (N, 3, H, W), uint8 or float, 0-255, of any size (padded inside to a multiple of the coarsest stride)."""
        return self.outputs(*self.answers(images))

    def outputs(self, heatmaps: Tensor, presence: Tensor, quality: Tensor, vectors: Tensor) -> PoseOutputs:
        """`answers`, with the places that they are about."""
        height, width = (side * self.heatmap_stride for side in heatmaps.shape[2:])
        centres = [locations(height // s, width // s, s, heatmaps.device) for s in self.strides]
        return PoseOutputs(
            heatmaps=heatmaps,
            presence=presence,
            quality=quality,
            vectors=vectors,
            locations=torch.cat(centres),
            strides=torch.cat([c.new_full((len(c),), s) for c, s in zip(centres, self.strides, strict=True)]),
            heatmap_stride=self.heatmap_stride,
            level_strides=self.strides,
        )

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, C and D of `PoseOutputs`, in single precision: all that the network computes, and what another runtime may compute."""
        x = pad_to_stride(normalise(images), self.strides[-1]).contiguous(memory_format=torch.channels_last)
        fine, *features = self.backbone(x)
        levels = list(self.pyramid({str(i): f for i, f in enumerate(features)}).values())
        heatmaps, heatmap_features = self.heatmap(fine, levels[0])
        presence = [self.presence(level) for level in levels]
        quality, vectors = self.vector(levels, heatmap_features, self.heatmap_stride)
        return (
            heatmaps.float(),
            torch.cat([p.flatten(1) for p in presence], dim=1).float(),
            torch.cat([q.flatten(1) for q in quality], dim=1).float(),
            torch.cat(vectors, dim=1).float(),
        )

"""The four heads: keypoint heatmaps A, presence B, quality C, keypoint vectors D (with KPAlign).

Names and shapes follow the method: SemiMultiPose (arXiv 2204.07072), section 3.1; KPAlign is DirectPose's (arXiv 1911.07451), section 3.2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp_plugin.backbone import group_norm
from smp_plugin.waiting import numbers

LAST_LAYERS = {"logits", "quality", "locator", "predictor", "fine_predictor"}  # names of the convolutions that say something
PRIOR = 0.01  # probability that heatmaps and presence start from, so that the many empty cells do not swamp the first steps


def _tower(channels: int, depth: int) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for _ in range(depth):
        blocks += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), group_norm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*blocks)


def _logit_conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
    return conv


class HeatmapHead(nn.Module):
    """A: logits (N, K, h, w) at stride 4 or 8, and the features they are made from.

    At stride 4 the backbone's finest features are joined with P3, at stride 8 the branch works on P3 alone.
    """

    def __init__(self, fine_channels: int, channels: int, width: int, keypoints: int, stride: int) -> None:
        super().__init__()
        self.from_pyramid = nn.Conv2d(channels, width, 1, bias=False)
        self.from_fine = nn.Conv2d(fine_channels, width, 1, bias=False) if stride == 4 else None
        self.mix = nn.Sequential(group_norm(width), nn.ReLU(inplace=True), *_tower(width, 2))
        self.logits = _logit_conv(width, keypoints, 1)

    def forward(self, fine: Tensor, p3: Tensor) -> tuple[Tensor, Tensor]:
        x = self.from_pyramid(p3)
        if self.from_fine is not None:
            larger = F.interpolate(x, scale_factor=2.0, mode="nearest").to(x.dtype)  # of which autocast makes single precision
            x = larger + self.from_fine(fine)
        features = self.mix(x)
        return self.logits(features), features


class PresenceHead(nn.Module):
    """B: logits (N, 1, h, w) per level, animal or not. The tower is shared over levels."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.tower = _tower(channels, depth)
        self.logits = _logit_conv(channels, 1, 3)

    def forward(self, level: Tensor) -> Tensor:
        return self.logits(self.tower(level))


class VectorHead(nn.Module):
    """C and D: quality logits (N, 1, h, w) and keypoint vectors (N, h*w, K, 2) in strides, per level; towers shared over levels.

    With KPAlign, D = coarse + residual: the *locator* gives one coarse vector per keypoint group and location; the *predictor*, a 1x1
    deformable convolution, samples a finer map where the coarse vector points. A 1x1 convolution is linear and bilinear sampling an
    average, so the two commute: the convolution runs once on the finer map, and only its 2 K outputs are sampled (the same values
    and gradients as sampling all channels first, for a fraction of the work). The finer map of the finest level is the heatmap
    branch's, of every other level the next finer level's tower.
    """

    def __init__(
        self, channels: int, fine_channels: int, depth: int, keypoints: int, groups: int, kpalign: bool, strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.kpalign, self.strides = kpalign, strides
        groups = min(groups or keypoints, keypoints)
        # Neighbouring keypoints share a group where there are fewer groups than keypoints.
        self.register_buffer("group_of", torch.arange(keypoints) * groups // keypoints, persistent=False)
        self.tower = _tower(channels, depth)
        self.quality = nn.Conv2d(channels, 1, 3, padding=1)
        self.locator = nn.Conv2d(channels, 2 * (groups if kpalign else keypoints), 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(strides)))  # levels share the locator but not the typical length of its vectors
        for conv in (self.quality, self.locator):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        if kpalign:
            self.predictor = nn.Conv2d(channels, 2 * keypoints, 1)
            self.fine_predictor = nn.Conv2d(fine_channels, 2 * keypoints, 1)
            for conv in (self.predictor, self.fine_predictor):
                nn.init.normal_(conv.weight, std=0.01)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor], fine: Tensor, fine_stride: int) -> tuple[list[Tensor], list[Tensor]]:
        towers = [self.tower(level) for level in levels]
        qualities = [self.quality(t) for t in towers]
        vectors = []
        for index, (tower, stride) in enumerate(zip(towers, self.strides, strict=True)):
            n, _, h, w = tower.shape
            coarse = self.locator(tower).float() * self.scales[index]
            coarse = coarse.view(n, -1, 2, h * w).permute(0, 3, 1, 2)  # N, h*w, groups, 2
            if self.kpalign:
                coarse = coarse[:, :, self.group_of]  # N, h*w, K, 2
                source, conv = (fine, self.fine_predictor) if index == 0 else (towers[index - 1], self.predictor)
                source_stride = fine_stride if index == 0 else self.strides[index - 1]
                points = locations(h, w, stride, tower.device)[:, None] + stride * coarse  # input pixels
                vectors.append(coarse + sample_keypoints(conv(source), points, source_stride))
            else:
                vectors.append(coarse)
        return qualities, vectors


def locations(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """(height*width, 2) centres (x, y) of the cells of a map, input pixels."""
    ys, xs = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32), torch.arange(width, device=device, dtype=torch.float32), indexing="ij"
    )
    return torch.stack((xs, ys), dim=-1).view(-1, 2) * stride + (stride - 1) / 2


def sample_keypoints(maps: Tensor, points: Tensor, stride: int) -> Tensor:
    """Sample keypoint k's C channels at keypoint k's point, bilinear.

    Args:
        maps: (N, K C, h, w), channel order x0, y0, x1, y1, ... where C is 2.
        points: (N, P, K, 2) input pixels; outside the map the border value is taken.
        stride: input pixels per cell of ``maps``.

    Returns:
        (N, P, K, C).
    """
    n, channels, h, w = maps.shape
    count, keypoints = points.shape[1:3]
    grid = (points + 0.5) * (2 / (stride * numbers((w, h), points))) - 1  # cell centres at (p + .5) / stride - .5, in grid_sample's unit
    grid = grid.permute(0, 2, 1, 3).reshape(n * keypoints, count, 1, 2)
    maps = maps.to(points.dtype).reshape(n * keypoints, channels // keypoints, h, w)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.view(n, keypoints, channels // keypoints, count).permute(0, 3, 1, 2)

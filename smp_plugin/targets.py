"""Labelled (or pseudo-labelled) animals -> what each cell and location should say, and how much it counts.

What is not labelled is not background: a keypoint missing from a labelled animal has no negatives around that animal, and where labels
are partial nothing away from the labels is a sure negative.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smp_plugin.config import LossConfig
from smp_plugin.model import PoseOutputs
from smp_plugin.waiting import numbers

WINDOW = 4  # heatmap cells to either side of a keypoint in which its Gaussian is drawn, at least; three sigma where that is more


@dataclass
class Instances:
    """Animals of N images in input pixels, padded to M per image.

    Attributes:
        keypoints: (N, M, K, 2), NaN where not labelled; all NaN in padding.
        weights: (N, M) how much each animal counts, 0 to 1. An animal of weight 0 teaches nothing, and nothing is background around it.
        background: (N, h', w') or (N, 1, 1): how much "no animal here" counts away from the animals; maps are resized to each grid.
        own: (N, K) bool: which keypoints the image's project has: an animal with these is complete. None: all.
    """

    keypoints: Tensor
    weights: Tensor
    background: Tensor
    own: Tensor | None = None

    def of_images(self, which: Tensor) -> Instances:
        """The same without the animals of images that are not marked in ``which`` (N,) bool."""
        keypoints = torch.where(which[:, None, None, None], self.keypoints, torch.nan)
        return replace(self, keypoints=keypoints, weights=self.weights * which[:, None])


@dataclass
class PoseTargets:
    """Targets beside ``PoseOutputs``: heatmaps (N, K, h, w) and presence (N, L), each with a weight of the same shape, and for every
    location the index of the animal it belongs to, ``assigned`` (N, L), -1 for none."""

    heatmaps: Tensor
    heatmap_weights: Tensor
    presence: Tensor
    presence_weights: Tensor
    assigned: Tensor


def extents(keypoints: Tensor, typical: float, own: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Box (..., 4: x0, y0, x1, y1), length and area (...) of animals (..., K, 2), input pixels.

    The length is the longer side of the labelled keypoints' box; an animal without some of its project's keypoints (``own``, as of
    `Instances`) is taken to be at least as long as ``typical``, the median complete animal. The area is the box's, at least a tenth of the
    length squared (animals lying along an axis).
    """
    known = keypoints.isfinite().all(dim=-1, keepdim=True)
    low = torch.where(known, keypoints, torch.inf).amin(dim=-2)
    high = torch.where(known, keypoints, -torch.inf).amax(dim=-2)
    side = (high - low).clamp(min=0).nan_to_num(0, 0, 0)
    complete = (known.squeeze(-1) if own is None else known.squeeze(-1) | ~own[:, None]).all(dim=-1)
    length = side.amax(dim=-1)
    length = torch.where(complete & (length > 0), length, length.clamp(min=typical))
    return torch.cat((low, high), dim=-1), length, torch.maximum(side.prod(dim=-1), 0.1 * length**2)


def build_targets(outputs: PoseOutputs, instances: Instances, config: LossConfig, typical: float) -> PoseTargets:
    """Targets on the grids of ``outputs``, made on its device. ``typical``: length of the median complete animal, input pixels."""
    boxes, lengths, _ = extents(instances.keypoints, typical, instances.own)
    heatmaps, heatmap_weights = _heatmap_targets(outputs, instances, boxes, lengths, config, typical)
    assigned = _assign(outputs, instances, boxes, lengths, config)
    positive = assigned >= 0
    weight = _resize_background(instances.background, outputs)
    xs, ys = outputs.locations.unbind(dim=1)
    # Cells in a labelled animal's box but away from its centre are sure negatives, also where labels are partial; not of an animal with
    # half of its keypoints or fewer, whose centre may lie anywhere within reach.
    exists, known = _exists(instances), instances.keypoints.isfinite().all(dim=-1)
    had = known.shape[-1] if instances.own is None else instances.own.sum(dim=-1, keepdim=True)
    placed = known.sum(dim=-1) > 0.5 * had
    weight = torch.where(_inside(boxes, placed & (instances.weights > 0), xs, ys), 1.0, weight)
    weight = torch.where(_inside(_reach(boxes, lengths, typical, 0.0), exists & ~placed, xs, ys), 0.0, weight)
    # The box of an animal of one keypoint says nothing about its size.
    margin = torch.where((boxes[..., :2] == boxes[..., 2:]).all(dim=-1), 0.5, 0.1) * lengths
    weight = torch.where(_inside(_grow(boxes, margin), exists & (instances.weights == 0), xs, ys), 0.0, weight)
    weight = torch.where(positive, instances.weights.gather(1, assigned.clamp(min=0)), weight)
    return PoseTargets(heatmaps, heatmap_weights, positive.float(), weight, assigned)


def _exists(instances: Instances) -> Tensor:
    return instances.keypoints.isfinite().all(dim=-1).any(dim=-1)


def _grow(boxes: Tensor, margin: Tensor) -> Tensor:
    return torch.cat((boxes[..., :2] - margin[..., None], boxes[..., 2:] + margin[..., None]), dim=-1)


def _reach(boxes: Tensor, lengths: Tensor, typical: float, margin: float) -> Tensor:
    """Where an animal's unlabelled keypoints may be: boxes (..., 4) grown by ``margin`` lengths, or by what is missing to ``typical``."""
    side = (boxes[..., 2:] - boxes[..., :2]).amax(dim=-1).nan_to_num(0, 0, 0)
    return _grow(boxes, torch.maximum(margin * lengths, typical - side))


def _inside(boxes: Tensor, which: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """(N, P) bool: is the point (xs[p], ys[p]) in any of the boxes (N, M, 4) marked by ``which`` (N, M)?"""
    x0, y0, x1, y1 = boxes[..., None].unbind(dim=2)
    return ((xs >= x0) & (xs <= x1) & (ys >= y0) & (ys <= y1) & which[..., None]).any(dim=1)


def _resize_background(background: Tensor, outputs: PoseOutputs) -> Tensor:
    """Background weights as given (N, h', w') -> (N, L) at the locations."""
    n, h, w = background.shape
    if h == w == 1:
        return background.view(n, 1).expand(n, len(outputs.locations))
    rows, columns = outputs.heatmaps.shape[2:]
    extent = numbers((columns, rows), outputs.locations) * outputs.heatmap_stride
    index = ((outputs.locations + 0.5) / extent * numbers((w, h), outputs.locations)).long()
    return background[:, index[:, 1].clamp(max=h - 1), index[:, 0].clamp(max=w - 1)]


def _heatmap_targets(
    outputs: PoseOutputs, instances: Instances, boxes: Tensor, lengths: Tensor, config: LossConfig, typical: float
) -> tuple[Tensor, Tensor]:
    n, k, h, w = outputs.heatmaps.shape
    stride = outputs.heatmap_stride
    counted = instances.keypoints.isfinite().all(dim=-1) & (instances.weights > 0)[..., None]  # N, M, K
    cells = (instances.keypoints + 0.5) / stride - 0.5  # N, M, K, 2 in heatmap cells
    sigma, half = (math.inf, 0) if config.heatmap_target == "cell" else (config.heatmap_sigma, None)
    target = draw_gaussians((n, k, h, w), cells, counted, torch.ones_like(instances.weights), sigma, half)
    weights_at = draw_gaussians((n, k, h, w), cells, counted, instances.weights, math.inf, WINDOW)  # a flat square around each keypoint

    xs = torch.arange(w, device=cells.device) * stride + (stride - 1) / 2
    ys = torch.arange(h, device=cells.device) * stride + (stride - 1) / 2
    if instances.background.shape[1:] == (1, 1):
        background = instances.background[:, None]
    else:
        background = torch.nn.functional.interpolate(instances.background[:, None], size=(h, w), mode="nearest")
    weight = background.expand(n, k, h, w)
    # Around an animal whose keypoint k has no label (or that does not count at all), heatmap k has no negatives: keypoint k may be there.
    exists = _exists(instances)
    missing = exists[..., None] & ~counted  # N, M, K
    region = _reach(boxes, lengths, typical, 0.25)
    in_x = (xs >= region[..., 0, None]) & (xs <= region[..., 2, None])  # N, M, w
    in_y = (ys >= region[..., 1, None]) & (ys <= region[..., 3, None])  # N, M, h
    known = _separable_any(missing, in_y, in_x)
    weight = weight.masked_fill(known, 0.0)
    # Cells drawn around a labelled keypoint count as much as their animal, whatever lies around them.
    return target, torch.where(weights_at > 0, weights_at, weight)


def _separable_any(which: Tensor, in_y: Tensor, in_x: Tensor) -> Tensor:
    """(N, K, h, w) bool: is the cell in the rectangle of any animal marked for keypoint k? One matrix product per image."""
    n, m, k = which.shape
    rows = (which.transpose(1, 2)[..., None] & in_y[:, None]).float()  # N, K, M, h
    with torch.autocast(which.device.type, enabled=False):
        count = rows.permute(0, 1, 3, 2).reshape(n, -1, m) @ in_x.float()
    return (count > 0).view(n, k, in_y.shape[2], in_x.shape[2])


def draw_gaussians(
    shape: tuple[int, int, int, int], cells: Tensor, which: Tensor, heights: Tensor, sigma: float, half: int | None = None
) -> Tensor:
    """Maps (N, K, h, w) with a Gaussian of height ``heights`` (N, M) at every marked keypoint, the highest where they overlap.

    Differentiable in ``cells`` (N, M, K, 2), positions in cells. Drawn up to ``half`` cells around the nearest centre, by default as far
    as can be seen; with an infinite ``sigma`` all of these are as high.
    """
    n, k, h, w = shape
    half = max(WINDOW, math.ceil(3 * sigma)) if half is None else half
    reach = torch.arange(-half, half + 1, device=cells.device)
    safe = torch.where(which[..., None], cells, 0.0)
    middle = safe.detach().round().long()
    columns, rows = middle[..., 0, None] + reach, middle[..., 1, None] + reach  # N, M, K, R
    gain_x = torch.exp(-((columns - safe[..., 0, None]) ** 2) / (2 * sigma**2))
    gain_y = torch.exp(-((rows - safe[..., 1, None]) ** 2) / (2 * sigma**2))
    value = heights[..., None, None, None] * gain_y[..., :, None] * gain_x[..., None, :]  # N, M, K, R, R
    on_map = which[..., None, None] & ((rows >= 0) & (rows < h))[..., :, None] & ((columns >= 0) & (columns < w))[..., None, :]
    image = torch.arange(n, device=cells.device).view(n, 1, 1, 1, 1) * k + torch.arange(k, device=cells.device).view(1, 1, k, 1, 1)
    index = (image * h + rows.clamp(0, h - 1)[..., :, None]) * w + columns.clamp(0, w - 1)[..., None, :]
    flat = value.new_zeros(n * k * h * w)
    return flat.scatter_reduce(0, index.flatten(), value.masked_fill(~on_map, 0.0).flatten(), "amax").view(n, k, h, w)


def _assign(outputs: PoseOutputs, instances: Instances, boxes: Tensor, lengths: Tensor, config: LossConfig) -> Tensor:
    """(N, L) index of the animal that each location belongs to, -1 for none.

    Locations within ``center_radius`` strides of an animal's centre on the level that fits its size, and always the nearest one there; of
    several animals, the nearest centre wins. Levels by half the length as in the paper, (0, 64], (64, 128] and everything above; with
    two levels, all above 64.
    With ``keypoint_anchors``, locations around each labelled keypoint are the animal's too: an animal with one labelled keypoint has no
    other place, and what is found there must know the whole pose, which only complete animals can teach.
    """
    exists = _exists(instances) & (instances.weights > 0)
    anchors = ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, :, None]  # N, M, 1, 2: the centres
    if config.keypoint_anchors:
        anchors = torch.cat((anchors, instances.keypoints), dim=2)
    anchors = torch.where(anchors.isfinite() & exists[..., None, None], anchors, torch.inf)
    half = lengths / 2
    level_of_animal = ((half > 64).long() + (half > 128).long()).clamp(max=len(outputs.level_strides) - 1)  # N, M
    level_of_location = torch.bucketize(outputs.strides, numbers(outputs.level_strides, outputs.strides))  # L
    distance = _to_nearest(outputs.locations, anchors)  # N, L, M
    usable = (level_of_location[None, :, None] == level_of_animal[:, None]) & exists[:, None]  # N, L, M
    distance = torch.where(usable, distance, torch.inf) / outputs.strides[:, None]
    nearest = torch.zeros_like(usable).scatter_(1, distance.argmin(dim=1, keepdim=True), True) & usable
    candidate = (distance <= config.center_radius) | nearest
    best, animal = torch.where(candidate, distance, torch.inf).min(dim=2)
    return torch.where(best.isfinite(), animal, -1)


def _to_nearest(points: Tensor, anchors: Tensor) -> Tensor:
    """(N, L, M) distance from each of ``points`` (L, 2) to the nearest anchor of each animal (N, M, A, 2).

    One anchor after the other: all at once would be the largest tensor of a training step.
    """
    xs, ys = points[:, None].unbind(dim=-1)  # L, 1
    squares = ((xs - x[:, None]).square() + (ys - y[:, None]).square() for x, y in (a.unbind(dim=-1) for a in anchors.unbind(dim=2)))
    return functools.reduce(torch.minimum, squares).sqrt()

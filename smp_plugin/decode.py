"""Outputs -> animals: candidates, pose NMS, refinement by the heatmaps. All in input pixels, batched, without a loop over animals."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from smp_plugin.config import PredictConfig
from smp_plugin.model import PoseOutputs
from smp_plugin.targets import extents
from smp_plugin.waiting import may_look, places

NMS_S2 = 0.1  # OKS constant of the similarity between two poses
MIN_PRESENCE = 0.05  # sigma(B) below which a location is no candidate (delta in the paper)
CANDIDATES = 150  # per image, before suppression
SAME = 0.15  # lengths of an animal between poses of neighbouring locations that are taken for the same: less than what suppression asks
MAX_RADIUS = 5.0  # heatmap cells, of refinement: larger animals have no more precise vectors, but far too many cells to look at
ROUNDS = 15  # of suppression where the host may not look whether it is over; odd, see there
MIN_PEAK = 0.1  # heatmap probability below which there is nothing to refine to


@dataclass
class Detections:
    """Animals of N images, padded to S: poses (N, S, K, 2) input pixels, scores (N, S), point scores (N, S, K); score 0 is padding."""

    poses: Tensor
    scores: Tensor
    point_scores: Tensor


def candidates(outputs: PoseOutputs, min_presence: float, limit: int, typical: float, min_score: float = 0.0) -> tuple[Tensor, Tensor]:
    """Indices (N, S) and scores v (N, S), best first, of the locations with sigma(B) > ``min_presence``; v = 0 is padding.

    Dozens of locations see the same animal. Those that a neighbour surpasses are left out, or the clearest animals would take all places
    of a crowd.
    """
    scores = outputs.scores
    scores = torch.where((torch.sigmoid(outputs.presence) > min_presence) & (scores > min_score), scores, 0.0)
    scores = torch.where(_surpassed(outputs, scores, typical), 0.0, scores)
    best, indices = scores.topk(min(limit, scores.shape[1]), dim=1)
    used = places((best > 0).sum(dim=1), best.shape[1])  # most images need far fewer than the limit
    return indices[:, :used], best[:, :used]


def _surpassed(outputs: PoseOutputs, scores: Tensor, typical: float) -> Tensor:
    """(N, L) bool: does one of the eight neighbours on its level say the same pose with a higher score?

    Poses are compared by two of their points, the means of every other keypoint: animals that lie across each other stay apart.
    """
    points = [outputs.vectors[:, :, start::2].mean(dim=2) for start in range(min(2, outputs.vectors.shape[2]))]
    places = [outputs.locations + outputs.strides[:, None] * point for point in points]  # each (N, L, 2) input pixels
    levels = [outputs.maps(values) for values in (scores, *(axis for place in places for axis in place.unbind(dim=-1)))]
    surpassed = []
    for score, *axes in zip(*levels, strict=True):
        near = [(_around(axis) - axis[..., None, None]).square() for axis in axes]  # N, 1, h, w, 3, 3
        same = [x + y <= (SAME * typical) ** 2 for x, y in zip(near[::2], near[1::2], strict=True)]
        surpassed.append(((_around(score) > score[..., None, None]) & functools.reduce(torch.logical_and, same)).any(dim=-1).any(dim=-1))
    return torch.cat([level.flatten(1) for level in surpassed], dim=1)


def _around(maps: Tensor) -> Tensor:
    """(N, 1, h, w) -> (N, 1, h, w, 3, 3), each cell and its neighbours, zero beyond the edge."""
    return F.pad(maps, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)


def gather_poses(outputs: PoseOutputs, indices: Tensor) -> Tensor:
    """y at locations ``indices`` (N, S) -> (N, S, K, 2) input pixels, with gradient to D."""
    n, _, k, _ = outputs.vectors.shape
    vectors = outputs.vectors.gather(1, indices[..., None, None].expand(-1, -1, k, 2))
    return outputs.locations[indices][:, :, None] + outputs.strides[indices][..., None, None] * vectors


def similarity(poses: Tensor, typical: float) -> Tensor:
    """OKS (s2 = .1) between all pairs of poses (N, S, K, 2) -> (N, S, S), with the smaller animal's area."""
    area = _own_areas(poses, typical)
    square = (poses[:, :, None] - poses[:, None]).square().sum(dim=-1)  # N, S, S, K
    smaller = torch.minimum(area[:, :, None], area[:, None])
    return torch.exp(-square / (2 * NMS_S2 * smaller[..., None])).mean(dim=-1)


def _own_areas(poses: Tensor, typical: float) -> Tensor:
    """Areas (N, S) of boxes along the animals' own axes, at least a tenth of the length squared, and a sixteenth of ``typical`` squared.

    COCO's box lies along the picture's: for a long animal that lies across it is many times as large, and what lies beside it would be
    taken for the same animal.
    """
    x, y = (poses - poses.mean(dim=2, keepdim=True)).unbind(dim=-1)
    angle = torch.atan2(2 * (x * y).sum(dim=-1), (x * x - y * y).sum(dim=-1)) / 2  # of the principal axis
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]
    length, width = ((v.amax(dim=-1) - v.amin(dim=-1)) for v in (cos * x + sin * y, cos * y - sin * x))
    length = torch.where(length > 0, length, typical)  # of one keypoint
    return torch.maximum(length * width, 0.1 * length**2).clamp(min=(0.25 * typical) ** 2)


def suppress(alike: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy NMS -> (N, S) bool, by ``alike`` (N, S, S) and ``scores`` (N, S), of equal ones the first. Score 0 is never kept.

    A candidate is dropped when a *kept* better one is too alike. Iterating that rule from "all kept" reaches the greedy solution after
    as many rounds as the longest chain of drops, a handful in practice. Where the host may not look whether that is so, it makes ``ROUNDS``
    of them: exact for chains of up to ``ROUNDS`` + 1 candidates, each too alike to the one before. What lies further down a longer chain
    is not settled; as rounds keep too many and too few in turn, an odd number of them drops it, and it teaches nothing.
    """
    size = scores.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=scores.device).tril(-1)
    mine, other = scores[:, :, None], scores[:, None]
    beats = (alike > threshold) & ((other > mine) | ((other == mine) & earlier))  # [i, j]: j drops i
    valid = scores > 0
    keep = valid
    look = may_look(scores)
    for _ in range(size if look else ROUNDS):
        updated = valid & ~(beats & keep[:, None, :]).any(dim=2)
        if look and torch.equal(updated, keep):
            break
        keep = updated
    return keep


def refine(heatmaps: Tensor, poses: Tensor, radius: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Move each keypoint to the near heatmap maximum, with a sub-cell offset, and read its point score there.

    A maximum within ``radius`` is found whatever its shape. The search is soft: cells up to 1.5 radii away count, the farther the less, so
    that a keypoint far off moves some way up the slope it stands on.

    Args:
        heatmaps: (N, K, h, w) probabilities.
        poses: (N, S, K, 2) input pixels.
        radius: (N, S) how far the maximum is expected, input pixels; at least one cell and at most ``MAX_RADIUS`` cells are taken.
        stride: input pixels per cell.

    Returns:
        poses (N, S, K, 2) and point scores (N, S, K). A keypoint with no maximum above ``MIN_PEAK`` near it stays, with the score there.
    """
    n, s, k, _ = poses.shape
    h, w = heatmaps.shape[2:]
    cells = (poses + 0.5) / stride - 0.5
    limit = (radius / stride).clamp(min=1.0, max=MAX_RADIUS)[..., None, None, None]
    reach = int(1.5 * (float(limit.max()) if may_look(limit) else MAX_RADIUS) + 0.5)  # what lies beyond an animal's own limit never counts
    steps = torch.arange(-reach, reach + 1, device=poses.device)
    columns = cells[..., 0].round().long()[..., None] + steps  # N, S, K, R
    rows = cells[..., 1].round().long()[..., None] + steps
    padded = F.pad(heatmaps, (1, 1, 1, 1)).flatten(2)  # a border of zeros, so that neighbours of edge cells exist

    def at(row: Tensor, column: Tensor) -> Tensor:  # both (N, S, K, ...), to which they are broadcast
        row, column = torch.broadcast_tensors(row, column)
        index = (row.clamp(-1, h) + 1) * (w + 2) + column.clamp(-1, w) + 1
        flat = index.transpose(1, 2).reshape(n, k, -1)
        return padded.gather(2, flat).view(n, k, s, *index.shape[3:]).transpose(1, 2)

    patch = at(rows[..., :, None], columns[..., None, :])
    far = (rows[..., :, None] - cells[..., 1, None, None]) ** 2 + (columns[..., None, :] - cells[..., 0, None, None]) ** 2
    # Nearer maxima are preferred: of two animals that touch, the neighbour's keypoint is the farther one.
    wanted = torch.where(far <= (1.5 * limit) ** 2, patch * torch.exp(-far / (2 * limit**2)), 0.0).flatten(3)
    best = wanted.argmax(dim=3)
    row = rows.gather(3, (best // len(steps))[..., None])[..., 0]
    column = columns.gather(3, (best % len(steps))[..., None])[..., 0]
    # That preference draws the choice towards where the keypoint stood: one step uphill undoes it.
    ring = torch.arange(-1, 2, device=poses.device)
    uphill = at((row[..., None] + ring)[..., :, None], (column[..., None] + ring)[..., None, :]).flatten(3).argmax(dim=3)
    row, column = row + uphill // 3 - 1, column + uphill % 3 - 1
    peak = at(row, column)
    # Off the map nothing is known: a maximum in its outermost cells has no offset across the border.
    dx = torch.where((column > 0) & (column < w - 1), _vertex(at(row, column - 1), peak, at(row, column + 1)), 0.0)
    dy = torch.where((row > 0) & (row < h - 1), _vertex(at(row - 1, column), peak, at(row + 1, column)), 0.0)
    found = torch.stack((column + dx, row + dy), dim=-1) * stride + (stride - 1) / 2
    use = (peak > MIN_PEAK) & (wanted.amax(dim=3) > 0)
    own = at(cells[..., 1].round().long(), cells[..., 0].round().long())
    return torch.where(use[..., None], found, poses), torch.where(use, peak, own)


def _vertex(before: Tensor, peak: Tensor, after: Tensor) -> Tensor:
    """Where, within half a cell, the parabola through three neighbouring log-probabilities peaks: exact for a Gaussian."""
    a, b, c = (x.clamp(min=1e-4).log() for x in (before, peak, after))
    return ((c - a) / (2 * (2 * b - a - c)).clamp(min=1e-3)).clamp(-0.5, 0.5)


def decode(outputs: PoseOutputs, config: PredictConfig, typical: float) -> Detections:
    """Animals best first by v, in input pixels; a score is 0 also where refinement shows a double. ``typical``: length of the median
    complete animal, input pixels.
    """
    indices, scores = candidates(outputs, MIN_PRESENCE, CANDIDATES, typical, config.min_score)
    poses = gather_poses(outputs, indices)
    keep = suppress(similarity(poses, typical), scores, config.nms)
    if config.max_animals:
        keep = keep & (keep.cumsum(dim=1) <= config.max_animals)
    count = places(keep.sum(dim=1), config.max_animals or keep.shape[1])
    order = keep.float().argsort(dim=1, descending=True, stable=True)[:, :count]
    scores = (scores * keep).gather(1, order)
    poses = poses.gather(1, order[..., None, None].expand(-1, -1, *poses.shape[2:]))
    radius = config.refine_radius * extents(poses, typical)[1] if config.refine else poses.new_zeros(poses.shape[:2])
    refined, point_scores = refine(torch.sigmoid(outputs.heatmaps), poses, radius, outputs.heatmap_stride)
    if not config.refine:
        return Detections(poses, scores, point_scores)
    return without_doubles(Detections(refined, scores, point_scores), config.nms, typical)


def without_doubles(found: Detections, nms: float, typical: float) -> Detections:
    """Pose NMS again, which sets scores to 0: refinement may have moved poses of one animal to the same maxima.

    The pose is kept that the heatmaps confirm most.
    """
    keep = suppress(similarity(found.poses, typical), _confirmed(found.scores, found.point_scores), nms)
    return replace(found, scores=found.scores * keep)


def _confirmed(scores: Tensor, point_scores: Tensor) -> Tensor:
    """v sqrt(mean point score): v is learnt at an animal's place and never sees the heatmaps, which know better whether its keypoints are
    there.
    """
    return scores * point_scores.mean(dim=-1).sqrt()


def ranked(found: Detections, config: PredictConfig) -> Detections:
    """Animals scored by v and their keypoints, best first, of which ``config`` limits score and number."""
    scores = _confirmed(found.scores, found.point_scores)
    scores, order = torch.where(scores > config.min_score, scores, 0.0).sort(dim=1, descending=True, stable=True)
    poses = found.poses.gather(1, order[..., None, None].expand_as(found.poses))
    point_scores = found.point_scores.gather(1, order[..., None].expand_as(found.point_scores))
    most = config.max_animals or scores.shape[1]
    return Detections(poses[:, :most], scores[:, :most], point_scores[:, :most])

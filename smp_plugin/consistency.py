"""The semi-supervised part: the fusion loss L_f (eq. 8-9), agreement with a teacher, and its sure detections where labels are partial.

L_f ties the heatmaps A to the poses y that the vectors D point to. Candidates s, with `relative_scores` v, are chosen without gradient, on
unlabelled frames by the teacher; y is then
gathered *with* gradient. With h the identity or a 3x3 Gaussian, p = sigma(A) and the focal terms l1, l0 of eq. 4,

    L_f = sum_cells l0(A) + sum_{s,k} v_s bilinear_sample(h * (l1 - l0)_k, u_sk),      u = y in heatmap cells.

This is eq. 9 with the pseudo-label map drawn by a bilinear splat of v (blurred by h), because sampling is the adjoint of splatting:
sum_cells W (l1 - l0) with W = h * splat(v, u) equals the second sum. It costs O(N S K) and never renders a map. v is detached, or L_f
would drive it to 0; so L_f reaches A and D, never B or C.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from smp_plugin.config import LossConfig, PredictConfig
from smp_plugin.decode import candidates, decode, gather_poses, similarity, suppress
from smp_plugin.heads import sample_keypoints
from smp_plugin.losses import focal_terms, quality_focal
from smp_plugin.model import PoseOutputs
from smp_plugin.targets import Instances, draw_gaussians
from smp_plugin.waiting import numbers

MIN_CONFIDENCE = (
    0.25  # a network that scores even labelled animals lower has nothing sure to teach; believing it lets errors feed on themselves
)
MOST_FOUND = 50  # animals that the teacher finds in a crop, at most; crops are a few animals wide


@torch.no_grad()
def select(outputs: PoseOutputs, config: LossConfig, typical: float, nms: float) -> tuple[Tensor, Tensor]:
    """Candidates of eq. 8: location indices (N, S) and detached scores v (N, S), 0 where suppressed by pose NMS or padding."""
    indices, scores = candidates(outputs, config.candidate_threshold, config.max_candidates, typical)
    keep = suppress(similarity(gather_poses(outputs, indices), typical), scores, nms)
    return indices, scores * keep


def fusion_loss(outputs: PoseOutputs, indices: Tensor, scores: Tensor, config: LossConfig) -> Tensor:
    """L_f of eq. 9 for candidates ``indices``, ``scores`` (N, S), divided by max(1, K sum v).

    ``config.fusion`` "focal" is the form above; "quality" the quality-focal loss to a map of Gaussians of height v, which is smallest
    at p = v; "release" the authors' hard cells, gradient to A only. ``config.fusion_gradient`` cuts the way to y or to A.
    """
    poses = gather_poses(outputs, indices)
    if config.fusion_gradient == "heatmap" or config.fusion == "release":
        poses = poses.detach()
    heatmaps = outputs.heatmaps.detach() if config.fusion_gradient == "vectors" and config.fusion != "release" else outputs.heatmaps
    cells = (poses + 0.5) / outputs.heatmap_stride - 0.5  # u: N, S, K, 2
    h, w = heatmaps.shape[2:]
    # Keypoints off the grid are dropped: at the border their gradient would push them further out.
    with torch.no_grad():
        on_grid = ((cells >= 0) & (cells <= numbers((w - 1, h - 1), cells))).all(dim=-1)
        norm = (scores[..., None] * on_grid).sum().clamp(min=1)
    if config.fusion == "quality":
        target = draw_gaussians(tuple(heatmaps.shape), cells, on_grid & (scores > 0)[..., None], scores, config.heatmap_sigma)  # type: ignore[arg-type]
        return quality_focal(heatmaps, target, config.gamma).sum() / norm
    blur = config.fusion_blur and config.fusion != "release"
    if config.fusion == "release":
        cells = cells.round()
    positive, negative = focal_terms(heatmaps, config.gamma, config.kappa)
    difference = positive - negative
    if blur:
        difference = _blur(difference, config.heatmap_sigma)
    values = sample_keypoints(difference, cells, 1)[..., 0]  # map k at cell position u_sk: N, S, K
    weights = scores[..., None] * on_grid
    weights = weights / _overlap(weights, cells, h, w, config.heatmap_sigma if blur else 0.0)
    return (negative.sum() + (weights * values).sum()) / norm


def relative_scores(scores: Tensor, confidence: Tensor) -> Tensor:
    """Scores v as a share, at most 1, of ``confidence``, which counts at least ``MIN_CONFIDENCE``."""
    return (scores / confidence.clamp(min=MIN_CONFIDENCE)).clamp(max=1)


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """3x3 Gaussian of height 1 at its middle, as the supervised target has: a pseudo-label is drawn as a label is. Its own adjoint."""
    line = torch.exp(-(torch.arange(-1, 2, device=maps.device, dtype=maps.dtype) ** 2) / (2 * sigma**2))
    kernel = (line[:, None] * line).expand(maps.shape[1], 1, 3, 3)
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(maps, kernel, padding=1, groups=maps.shape[1])


@torch.no_grad()
def _overlap(weights: Tensor, cells: Tensor, h: int, w: int, sigma: float) -> Tensor:
    """(N, S, K), at least 1: by how much the largest of the cells that each keypoint is drawn on exceeds weight 1 once all are drawn."""
    n, s, k = weights.shape
    low = cells.floor()
    drawn = weights.new_zeros(n * k, h * w)
    corners = []
    for dy in (0, 1):
        for dx in (0, 1):
            corner = low + numbers((dx, dy), low)
            share = (1 - (cells - corner).abs()).clamp(min=0).prod(dim=-1) * weights
            index = (corner[..., 1].clamp(0, h - 1) * w + corner[..., 0].clamp(0, w - 1)).long().transpose(1, 2)  # N, K, S
            drawn.scatter_add_(1, index.reshape(n * k, s), share.transpose(1, 2).reshape(n * k, s))
            corners.append((index, share > 0))
    maps = drawn.view(n, k, h, w)
    if sigma:  # the blur draws on the cells around the four corners too
        maps = F.max_pool2d(_blur(maps, sigma), 3, stride=1, padding=1)
    return torch.stack([maps.flatten(2).gather(2, index).transpose(1, 2) * used for index, used in corners]).amax(dim=0).clamp(min=1)


@torch.no_grad()
def label_confidence(outputs: PoseOutputs, labels: Instances) -> Tensor:
    """Median over labelled animals of the best score v within a stride of their middle: what "sure" means to the network now.

    Focal losses keep scores far below 1 when labels are few, by a factor that changes during the run, so that thresholds and weights are
    taken relative to this figure. NaN without animals.
    """
    known = labels.keypoints.isfinite().all(dim=-1, keepdim=True)
    low = torch.where(known, labels.keypoints, torch.inf).amin(dim=2)
    high = torch.where(known, labels.keypoints, -torch.inf).amax(dim=2)
    middle = (low + high) / 2  # N, M, 2
    near = (outputs.locations[None, :, None] - middle[:, None]).abs().amax(dim=-1) <= outputs.strides[:, None]  # N, L, M
    best = (outputs.scores[..., None] * near).amax(dim=1)
    counted = known.squeeze(-1).any(dim=-1) & (labels.weights > 0)
    # No waiting for a GPU, as indexing with a mask would; nor, as nanmedian without a dimension does in some versions of torch.
    return torch.where(counted, best, torch.nan).flatten().nanmedian(dim=0).values


@torch.no_grad()
def pseudo_instances(teacher: PoseOutputs, config: LossConfig, predict: PredictConfig, typical: float, confidence: Tensor) -> Instances:
    """The teacher's sure detections as labels, weighted by their scores relative to ``confidence`` (of a typical labelled animal).

    Above ``sure`` a detection is an animal; down to a quarter of it, nothing is learnt there. A keypoint that the teacher's own heatmap
    does not confirm (point score below a fifth) is left out; a detection without any other is not sure. An image has at most
    ``MOST_FOUND``.
    """
    found = decode(teacher, replace(predict, min_score=0.0, max_animals=MOST_FOUND, refine=True), typical)
    relative = relative_scores(found.scores, confidence)
    confirmed = found.point_scores >= 0.2
    sure = (relative >= config.sure) & confirmed.any(dim=-1)
    seen = confirmed | ~sure[..., None]
    exists = relative >= config.sure / 4
    keypoints = torch.where((seen & exists[..., None])[..., None], found.poses, torch.nan)
    return Instances(keypoints, relative * sure, torch.ones_like(found.scores[:, :1, None]))


def agreement(student: PoseOutputs, teacher: PoseOutputs, confidence: Tensor, config: LossConfig) -> Tensor:
    """The student, who sees a disturbed view, learns the teacher's soft answers to the clean view: one scalar over all heads.

    Heatmaps and presence by the quality focal loss, smallest where student and teacher say the same; vectors and quality where the
    teacher is sure, weighted by its scores relative to ``confidence``. Each is divided as its supervised counterpart is, by soft counts
    of keypoints, animals' locations and weights. Easy view for the teacher, hard view for the student: arXiv 2011.12498.
    """
    with torch.no_grad():
        heatmaps, presence = torch.sigmoid(teacher.heatmaps), torch.sigmoid(teacher.presence)
        keypoints = _sum_of_sure(heatmaps) / (2 * math.pi * config.heatmap_sigma**2)
        relative = relative_scores(teacher.scores, confidence)
        sure = relative * (relative >= config.sure)
        weight = sure / sure.sum().clamp(min=1)
    heatmap = quality_focal(student.heatmaps, heatmaps, config.gamma).sum() / keypoints.clamp(min=1)
    box = quality_focal(student.presence, presence, config.gamma).sum() / _sum_of_sure(presence).clamp(min=1)
    gap = F.smooth_l1_loss(student.vectors, teacher.vectors, beta=config.vector_beta, reduction="none").sum(dim=-1).mean(dim=-1)
    quality = F.binary_cross_entropy_with_logits(student.quality, torch.sigmoid(teacher.quality), reduction="none")
    return (
        config.heatmap_weight * heatmap
        + config.box_weight * box
        + config.vector_weight * (gap * weight).sum()
        + config.quality_weight * (quality * weight).sum()
    )


def _sum_of_sure(probabilities: Tensor) -> Tensor:
    """What is nearly nothing at each of very many cells would be most of their sum."""
    return (probabilities * (probabilities > 0.2)).sum()


@torch.no_grad()
def merge_instances(labels: Instances, found: Instances, background: Tensor, typical: float) -> Instances:
    """Partly labelled frames completed by the teacher: what it found is added as animals, or as the rest of an animal labelled in part.

    A detection lies on a labelled animal when, over the keypoints labelled there, it is less than a quarter of ``typical`` away. It is no
    animal of its own then; of those that the teacher is sure of, the nearest gives the animal the keypoints that nobody labelled, if
    it is nearest to that animal.
    """
    gap = (found.keypoints[:, :, None] - labels.keypoints[:, None]).square().sum(dim=-1).sqrt()  # N, S, M, K; NaN where either is unknown
    gap = gap.nanmean(dim=-1).nan_to_num(nan=torch.inf)  # N, S, M
    on_label = gap < 0.25 * typical
    usable = torch.where(on_label & (found.weights > 0)[:, :, None] & (labels.weights > 0)[:, None], gap, torch.inf)
    nearest = usable.isfinite() & (usable == usable.amin(dim=1, keepdim=True)) & (usable == usable.amin(dim=2, keepdim=True))
    index = nearest.float().argmax(dim=1)[..., None, None].expand(-1, -1, *found.keypoints.shape[2:])
    rest = found.keypoints.gather(1, index)  # N, M, K, 2
    fill = nearest.any(dim=1)[..., None, None] & labels.keypoints.isnan()
    same = on_label.any(dim=2)
    fresh = torch.where(same[..., None, None], torch.nan, found.keypoints)
    keypoints = torch.cat((torch.where(fill, rest, labels.keypoints), fresh), dim=1)
    return Instances(keypoints, torch.cat((labels.weights, found.weights * ~same), dim=1), background, labels.own)


@torch.no_grad()
def background_of(teacher: PoseOutputs, weights: Tensor, config: LossConfig) -> Tensor:
    """(N, h, w) at stride 8: background counts fully where the teacher sees no animal of any size, else as ``weights`` (N,) say."""
    maps = teacher.maps(torch.sigmoid(teacher.presence))
    finest = maps[0].shape[2:]
    # Two cells to either side of a location, in strides of its level: the larger the animal, the farther it reaches.
    near = [F.interpolate(F.max_pool2d(m, 5, stride=1, padding=2), size=finest, mode="nearest") for m in maps]
    return torch.where(torch.cat(near, dim=1).amax(dim=1) < config.candidate_threshold, 1.0, weights[:, None, None])

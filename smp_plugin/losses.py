"""Supervised terms: L_a, L_b, L_d of the paper (eq. 3-7) and the quality term of head C, each a scalar with a name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smp_plugin.config import LossConfig
from smp_plugin.model import PoseOutputs
from smp_plugin.targets import Instances, PoseTargets, build_targets, extents
from smp_plugin.waiting import places


def focal_terms(logits: Tensor, gamma: float, kappa: float) -> tuple[Tensor, Tensor]:
    """Focal loss of a positive and of a negative cell (eq. 4): l1 = kappa (1-p)^gamma (-log p), l0 = (1-kappa) p^gamma (-log(1-p))."""
    p = torch.sigmoid(logits)
    return kappa * (1 - p) ** gamma * F.softplus(-logits), (1 - kappa) * p**gamma * F.softplus(logits)


def quality_focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """|t - p|^gamma BCE(p, t) for soft targets t in [0, 1] (arXiv 2006.04388, eq. 2): smallest at p = t."""
    p = torch.sigmoid(logits)
    return (target - p).abs() ** gamma * (F.softplus(logits) - target * logits)


def supervised(outputs: PoseOutputs, instances: Instances, config: LossConfig, typical: float) -> dict[str, Tensor]:
    """The weighted supervised terms: ``heatmap`` (L_a), ``box`` (L_b), ``vector`` (L_d), ``quality`` (C).

    Args:
        outputs: of N images.
        instances: the animals of the same images.
        typical: length of the median complete animal, input pixels.
    """
    with torch.no_grad():
        targets = build_targets(outputs, instances, config, typical)
    terms = {"heatmap": config.heatmap_weight * heatmap_loss(outputs, targets, instances, config)}
    terms["box"] = config.box_weight * presence_loss(outputs, targets, config)
    vector, quality = instance_losses(outputs, targets, instances, config, typical)
    terms["vector"] = config.vector_weight * vector
    terms["quality"] = config.quality_weight * quality
    return terms


def heatmap_loss(outputs: PoseOutputs, targets: PoseTargets, instances: Instances, config: LossConfig) -> Tensor:
    """L_a: focal loss (soft targets: quality focal) over all cells, divided by the number of labelled keypoints."""
    if config.heatmap_target == "cell":
        positive, negative = focal_terms(outputs.heatmaps, config.gamma, config.kappa)
        loss = torch.where(targets.heatmaps > 0, positive, negative)
    else:
        loss = quality_focal(outputs.heatmaps, targets.heatmaps, config.gamma)
    count = (instances.keypoints.isfinite().all(dim=-1) * instances.weights[..., None]).sum()
    return (loss * targets.heatmap_weights).sum() / count.clamp(min=1)


def presence_loss(outputs: PoseOutputs, targets: PoseTargets, config: LossConfig) -> Tensor:
    """L_b: focal loss over all locations, divided by the number of positive ones."""
    positive, negative = focal_terms(outputs.presence, config.gamma, config.kappa)
    loss = torch.where(targets.presence > 0, positive, negative) * targets.presence_weights
    return loss.sum() / (targets.presence * targets.presence_weights).sum().clamp(min=1)


def instance_losses(
    outputs: PoseOutputs, targets: PoseTargets, instances: Instances, config: LossConfig, typical: float
) -> tuple[Tensor, Tensor]:
    """L_d, smooth L1 in strides to the labelled keypoints of each positive location's animal, and BCE of the quality C there.

    Without positive locations both are 0, and every parameter still gets a gradient, as several GPUs need.
    """
    animal, place = targets.assigned.topk(_most_positive(targets, instances, config), dim=1)  # N, P: positive locations before all others
    positive, animal = animal >= 0, animal.clamp(min=0)
    truth = _at(instances.keypoints, animal)  # N, P, K, 2
    weight = instances.weights.gather(1, animal) * positive  # N, P
    known = truth.isfinite().all(dim=-1) & positive[..., None]  # N, P, K
    centre, stride = outputs.locations[place], outputs.strides[place]
    vectors = _at(outputs.vectors, place)  # N, P, K, 2
    wanted = torch.where(known[..., None], (truth - centre[:, :, None]) / stride[..., None, None], vectors.detach())
    error = F.smooth_l1_loss(vectors, wanted, beta=config.vector_beta, reduction="none").sum(dim=-1)
    vector = (error * weight[..., None]).sum() / (known * weight[..., None]).sum().clamp(min=1)

    with torch.no_grad():
        boxes, _, area = extents(truth, typical, instances.own)
        if config.quality == "oks":
            square = ((vectors - wanted) * stride[..., None, None]).square().sum(dim=-1)
            similarity = torch.exp(-square / (2 * config.quality_s2 * area[..., None]))
            target = (similarity * known).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
        else:
            target = torch.where(positive, _centerness(boxes, centre, typical), 0.0)  # boxes without keypoints have no middle
    quality = F.binary_cross_entropy_with_logits(outputs.quality.gather(1, place), target, reduction="none")
    return vector, (quality * weight).sum() / weight.sum().clamp(min=1)


def _most_positive(targets: PoseTargets, instances: Instances, config: LossConfig) -> int:
    """Positive locations in the image with most of them; where the host may not look, as many as there can be.

    An animal's lie on one level, within ``center_radius`` strides of one of its anchors: 2 radius + 1 in a row, and as many rows.
    """
    _, animals, keypoints, _ = instances.keypoints.shape
    anchors = 1 + keypoints if config.keypoint_anchors else 1
    possible = animals * anchors * int(2 * config.center_radius + 1) ** 2
    return places((targets.assigned >= 0).sum(dim=1), min(possible, targets.assigned.shape[1]))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """``values`` (N, M, K, 2) at ``index`` (N, P) -> (N, P, K, 2), with gradient."""
    return values.gather(1, index[..., None, None].expand(-1, -1, *values.shape[2:]))


def _centerness(boxes: Tensor, centre: Tensor, typical: float) -> Tensor:
    """FCOS, eq. 3: root of the product of smaller over larger distance to opposite sides of the box, at least ``typical / 4`` wide."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=typical / 8)
    low, high = (centre - middle + half).clamp(min=0), (middle + half - centre).clamp(min=0)
    return (torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-6)).prod(dim=-1).sqrt()

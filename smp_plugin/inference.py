"""Frames -> animals in frame pixels: the road that validation during training and prediction share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from smp_plugin import transforms
from smp_plugin.config import PredictConfig
from smp_plugin.decode import Detections, decode, ranked
from smp_plugin.devices import autocast, in_bf16
from smp_plugin.model import PoseModel
from smp_plugin.normalization import fold


@dataclass
class FramePoses:
    """Animals of one frame, best first: poses (n, K, 2) frame pixels, scores (n,) and point scores (n, K) in [0, 1]."""

    poses: np.ndarray
    scores: np.ndarray
    point_scores: np.ndarray


def for_prediction(model: PoseModel, device: torch.device, precision: str) -> PoseModel:
    """The same function, in place, made ready for many images: nothing about the weights is left to do for each."""
    fold(model)
    if in_bf16(device, precision):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def detect(model: PoseModel, frames: Tensor, scale: float, config: PredictConfig, typical: float, precision: str) -> Detections:
    """Frames (N, 3, H, W) uint8 on the model's device -> animals there, in input pixels, of which a frame pixel is ``scale``."""
    images = transforms.resize_frames(frames, scale)
    with autocast(frames.device, precision):
        outputs = model(images)
    return ranked(decode(outputs, replace(config, max_animals=0), typical), config)


@torch.inference_mode()
def infer(model: PoseModel, frames: Tensor, scale: float, config: PredictConfig, typical: float, precision: str) -> list[FramePoses]:
    """Predict frames of one size.

    Args:
        frames: (N, 3, H, W) uint8, frame pixels, on any device.
        scale: input pixels per frame pixel, before ``config.shrink``.
        typical: length of the median complete animal, in the same pixels.
    """
    scale, typical = scale * config.shrink, typical * config.shrink
    device = next(model.parameters()).device
    height, width = frames.shape[2:]
    found = detect(model, frames.to(device, non_blocking=device.type == "cuda"), scale, config, typical, precision)
    to_frame = np.linalg.inv(transforms.resize_matrix(height, width, scale))
    poses = transforms.apply_matrix(to_frame, found.poses.cpu().numpy())  # in double precision from here on: Apple's GPUs have none
    scores, point_scores = found.scores.cpu().numpy(), found.point_scores.cpu().numpy()
    return [FramePoses(p[s > 0], s[s > 0], q[s > 0]) for p, s, q in zip(poses, scores, point_scores, strict=True)]

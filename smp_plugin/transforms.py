"""Frame pixels <-> input pixels, normalisation and augmentation: the only place where coordinates change space.

A 3x3 matrix takes homogeneous (x, y, 1) from one space to another; pixel (0, 0) has its centre at (0, 0) in both, so a
resize by r is x -> r x + (r - 1) / 2. Cells of a map of stride s have their centres at s j + (s - 1) / 2 input pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smp_plugin.config import AugmentConfig
from smp_plugin.waiting import numbers

PIXEL_MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB, 0-255: what pretrained backbones expect
PIXEL_STD = (58.395, 57.12, 57.375)


def normalise(images: Tensor) -> Tensor:
    """uint8 or float images (N, 3, H, W), 0-255 -> float32 with ImageNet's mean and deviation removed."""
    images = images.float()
    mean, std = (numbers(values, images).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std


def resized_shape(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width, input pixels, of a frame at an input scale."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_matrix(height: int, width: int, scale: float) -> np.ndarray:
    """(3, 3) frame -> input pixels for ``resize_frames`` (whole pixels make the true factors differ a little from ``scale``)."""
    rows, columns = resized_shape(height, width, scale)
    fx, fy = columns / width, rows / height
    return np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1.0]])


def resize_frames(frames: Tensor, scale: float) -> Tensor:
    """uint8 frames (N, 3, H, W) -> uint8 at the input scale, averaged when shrinking so that thin limbs do not flicker away."""
    shape = resized_shape(frames.shape[2], frames.shape[3], scale)
    if shape == tuple(frames.shape[2:]):
        return frames
    if frames.device.type == "cpu":
        return F.interpolate(frames, shape, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(frames.float(), shape, mode="bilinear", antialias=True, align_corners=False).round_().clamp_(0, 255).byte()


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Normalised images padded at the right and the bottom, with the mean colour, to a multiple of the coarsest ``stride``."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride))


def apply_matrix(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 2) points through a (3, 3) matrix; NaN stays NaN."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def random_matrix(rng: np.random.Generator, centre: np.ndarray, size: int, config: AugmentConfig) -> np.ndarray:
    """(3, 3) resized frame -> crop: turns, scales and perhaps mirrors about ``centre`` (x, y), which lands in the middle of the crop."""
    angle = math.radians(rng.uniform(-config.rotation, config.rotation))
    scale = math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))
    mirror = -1.0 if config.flip and rng.random() < 0.5 else 1.0
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = (size - 1) / 2 - linear @ centre
    return matrix


def is_mirrored(matrix: np.ndarray) -> bool:
    """Does the matrix turn left into right?"""
    return float(np.linalg.det(matrix[:2, :2])) < 0


def warp(image: Tensor, matrix: np.ndarray, height: int, width: int) -> Tensor:
    """Bilinear warp of a uint8 image (3, H, W) by ``matrix`` (source -> output) into float32 (3, height, width), 0-255.

    Outside the source the mean colour is shown, which is what padding shows in prediction.
    """
    inverse = np.linalg.inv(matrix)
    rows, columns = image.shape[1:]
    # The region of the source that is needed, so that a crop from a large frame does not convert all of it to float.
    corners = apply_matrix(inverse, np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], float))
    x0, y0 = (int(max(0, v)) for v in np.floor(corners.min(axis=0)) - 1)
    x1, y1 = int(min(columns, np.ceil(corners[:, 0].max()) + 2)), int(min(rows, np.ceil(corners[:, 1].max()) + 2))
    mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    if x1 <= x0 or y1 <= y0:
        return mean.expand(3, height, width).clone()
    source = image[:, y0:y1, x0:x1].float() - mean
    columns, rows = x1 - x0, y1 - y0
    # grid_sample wants the source position of each output pixel in [-1, 1], with -1 at the outer edge of the first pixel.
    to_unit = np.array([[2 / columns, 0, (1 - 2 * x0) / columns - 1], [0, 2 / rows, (1 - 2 * y0) / rows - 1], [0, 0, 1.0]]) @ inverse
    theta = torch.from_numpy(to_unit).float()
    xs, ys = torch.arange(width, dtype=torch.float32), torch.arange(height, dtype=torch.float32)
    grid = torch.stack(
        (
            theta[0, 0] * xs[None, :] + theta[0, 1] * ys[:, None] + theta[0, 2],
            theta[1, 0] * xs[None, :] + theta[1, 1] * ys[:, None] + theta[1, 2],
        ),
        dim=-1,
    )
    return F.grid_sample(source[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0] + mean


def jitter(rng: np.random.Generator, image: Tensor, config: AugmentConfig, strength: float = 1.0) -> Tensor:
    """Random brightness, contrast, gamma and colour balance of a uint8 image (3, H, W), through one table per channel."""
    contrast = math.exp(rng.normal(0, config.contrast / 2) * strength)
    shift = rng.normal(0, config.brightness / 2) * strength
    balance = np.exp(rng.normal(0, 0.05 * strength, (3, 1)))
    gamma = math.exp(rng.normal(0, 0.12 * strength))
    levels = (np.linspace(0, 1, 256) - 0.45) * contrast * balance + 0.45 + shift
    tables = (np.clip(levels, 0, 1) ** gamma * 255).round().astype(np.uint8)
    return torch.from_numpy(np.stack([table[channel] for table, channel in zip(tables, image.numpy(), strict=True)]))


def disturb(rng: np.random.Generator, image: Tensor, config: AugmentConfig) -> Tensor:
    """The student's view of an unlabelled crop (3, S, S) uint8: strong colours, noise or blur, wiped-out patches; the geometry stays."""
    image = jitter(rng, image, config, config.strong)
    if rng.random() < 0.5:
        noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        image = to_bytes(image + noise * rng.uniform(2, 12))
    elif rng.random() < 0.5:
        image = to_bytes(F.avg_pool2d(image[None].float(), 3, stride=1, padding=1, count_include_pad=False)[0])
    size = image.shape[1]
    for _ in range(rng.integers(0, config.erase + 1)):
        height, width = (int(v) for v in rng.uniform(0.04, 0.15, 2) * size)
        y, x = int(rng.integers(0, size - height)), int(rng.integers(0, size - width))
        image[:, y : y + height, x : x + width] = torch.from_numpy(rng.integers(0, 256, (3, 1, 1), dtype=np.uint8))
    return image


def to_bytes(image: Tensor) -> Tensor:
    """Float image, 0-255 -> uint8."""
    return image.round().clamp_(0, 255).byte()


def animal_mask(points: np.ndarray, edges: tuple[tuple[int, int], ...], radius: float, height: int, width: int) -> Tensor:
    """(height, width) float, 1 on an animal and 0 away from it with a soft edge: a band of ``radius`` pixels around its skeleton.

    ``points``: (K, 2) in the pixels of the mask, NaN for keypoints that the animal's project does not have. Keypoints that no edge joins
    are joined to the middle of the animal.
    """
    known = np.isfinite(points).all(axis=1)
    edges = tuple(edge for edge in edges if known[list(edge)].all())
    joined = {i for edge in edges for i in edge}
    middle = points[known].mean(axis=0)
    segments = [(points[a], points[b]) for a, b in edges]
    segments += [(points[i], middle) for i in np.flatnonzero(known) if i not in joined]
    xs, ys = torch.arange(width, dtype=torch.float32)[None, :], torch.arange(height, dtype=torch.float32)[:, None]
    nearest = torch.full((height, width), math.inf)
    for start, end in segments:
        dx, dy = float(end[0] - start[0]), float(end[1] - start[1])
        along = (((xs - float(start[0])) * dx + (ys - float(start[1])) * dy) / max(dx * dx + dy * dy, 1e-6)).clamp(0, 1)
        square = (xs - float(start[0]) - along * dx) ** 2 + (ys - float(start[1]) - along * dy) ** 2
        nearest = torch.minimum(nearest, square)
    return ((radius - nearest.sqrt()) / (0.4 * radius) + 0.5).clamp(0, 1)

"""Geometry: points move exactly where the image moves, there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.labels import Skeleton
from smp_plugin import transforms
from smp_plugin.config import AugmentConfig

DARK = 20


def blob(height: int, width: int, x: float, y: float, sigma: float = 3.0) -> torch.Tensor:
    """uint8 (3, height, width) with a bright Gaussian blob centred at (x, y) on a dark ground."""
    xs, ys = torch.arange(width), torch.arange(height)[:, None]
    image = DARK + 220 * torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    return image.round().to(torch.uint8).expand(3, -1, -1).contiguous()


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """Centre of brightness over the dark ground of the green channel."""
    weight = (image[1].double() - DARK - 4).clamp(min=0)
    ys, xs = torch.meshgrid(torch.arange(image.shape[1]), torch.arange(image.shape[2]), indexing="ij")
    return ((weight * xs).sum() / weight.sum()).item(), ((weight * ys).sum() / weight.sum()).item()


# --- resizing -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.31, 0.5, 0.777, 1.0, 1.5])
@pytest.mark.parametrize(("height", "width"), [(97, 150), (120, 81)])
def test_a_resized_frame_and_its_matrix_agree(scale: float, height: int, width: int) -> None:
    point = np.array([52.3, 40.6])
    frame = blob(height, width, float(point[0]), float(point[1]), 5.0)
    resized = transforms.resize_frames(frame[None], scale)[0]
    assert resized.shape[1:] == transforms.resized_shape(height, width, scale) and resized.dtype == torch.uint8
    expected = transforms.apply_matrix(transforms.resize_matrix(height, width, scale), point)
    assert centroid(resized) == pytest.approx(expected.tolist(), abs=0.1)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 2), st.floats(-100, 3000), st.floats(-100, 3000))
@settings(deadline=None)
def test_frame_to_input_and_back_is_the_identity(height: int, width: int, scale: float, x: float, y: float) -> None:
    matrix = transforms.resize_matrix(height, width, scale)
    there = transforms.apply_matrix(matrix, np.array([[x, y], [np.nan, np.nan]]))
    back = transforms.apply_matrix(np.linalg.inv(matrix), there)
    assert back[0].tolist() == pytest.approx([x, y], abs=1e-6) and np.isnan(back[1]).all()
    # The outer edges of the frame are the outer edges of the input.
    rows, columns = transforms.resized_shape(height, width, scale)
    corner = transforms.apply_matrix(matrix, np.array([width - 0.5, height - 0.5]))
    assert corner.tolist() == pytest.approx([columns - 0.5, rows - 0.5])


def test_thin_limbs_survive_shrinking() -> None:
    frame = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    frame[..., 33] = 255
    small = transforms.resize_frames(frame, 0.25)
    assert small.float().sum(dim=3).mean().item() == pytest.approx(255 / 4, rel=0.05)


# --- warping ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_warped_image_and_its_points_agree(flip: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre = np.array([160.0, 150.0])
    matrix = transforms.random_matrix(rng, centre, 96, AugmentConfig(scale=(0.7, 1.5), flip=flip))
    point = centre + rng.uniform(-12, 12, 2)
    warped = transforms.warp(blob(300, 320, float(point[0]), float(point[1])), matrix, 96, 96)
    assert warped.shape == (3, 96, 96)
    assert centroid(warped) == pytest.approx(transforms.apply_matrix(matrix, point).tolist(), abs=0.1)
    assert transforms.apply_matrix(matrix, centre).tolist() == pytest.approx([47.5, 47.5])
    assert flip or not transforms.is_mirrored(matrix)


def test_half_of_the_matrices_mirror() -> None:
    rng = np.random.default_rng(0)
    mirrored = [transforms.is_mirrored(transforms.random_matrix(rng, np.zeros(2), 64, AugmentConfig())) for _ in range(400)]
    assert 150 < sum(mirrored) < 250


@pytest.mark.parametrize(("shift_x", "shift_y"), [(-40, 0), (45, 30), (0, -35), (-60, -30)])
def test_a_crop_partly_outside_shows_the_mean_colour_there_and_the_image_elsewhere(shift_x: int, shift_y: int) -> None:
    image = torch.randint(0, 256, (3, 60, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    matrix = np.array([[1.0, 0, shift_x], [0, 1, shift_y], [0, 0, 1]])
    expected = torch.tensor(transforms.PIXEL_MEAN).view(3, 1, 1).expand(3, 50, 70).clone()
    for y in range(50):
        for x in range(70):
            if 0 <= x - shift_x < 80 and 0 <= y - shift_y < 60:
                expected[:, y, x] = image[:, y - shift_y, x - shift_x]
    torch.testing.assert_close(transforms.warp(image, matrix, 50, 70), expected, rtol=0, atol=0.02)


def test_a_crop_wholly_outside_is_the_mean_colour() -> None:
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    for shift in (-500.0, 500.0):
        warped = transforms.warp(image, np.array([[1.0, 0, shift], [0, 1, 0], [0, 0, 1]]), 8, 9)
        torch.testing.assert_close(warped, torch.tensor(transforms.PIXEL_MEAN).view(3, 1, 1).expand(3, 8, 9))


def test_reading_only_the_needed_region_changes_nothing() -> None:
    image = torch.randint(0, 256, (3, 300, 400), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    matrix = transforms.random_matrix(np.random.default_rng(3), np.array([300.0, 200.0]), 40, AugmentConfig())
    large = transforms.warp(image, matrix, 300, 300)  # needs the whole image
    torch.testing.assert_close(transforms.warp(image, matrix, 40, 40), large[:, :40, :40], rtol=0, atol=0.05)


def test_mirroring_swaps_left_and_right_keypoints() -> None:
    skeleton = Skeleton(("nose", "left", "right", "tail"), symmetries=((1, 2),))
    points = np.array([[0.0, 10], [-4, 0], [4, 0], [0, -10]])
    mirror = np.diag([-1.0, 1.0, 1.0])
    assert transforms.is_mirrored(mirror) and not transforms.is_mirrored(np.eye(3))
    # A mirrored symmetric animal is the same animal: "left" has to be where it was.
    assert np.array_equal(transforms.apply_matrix(mirror, points)[skeleton.mirrored], points)


# --- colours ------------------------------------------------------------------------------------------------------------------------------


def test_normalised_images_are_padded_with_the_mean_colour() -> None:
    images = torch.tensor(transforms.PIXEL_MEAN).view(1, 3, 1, 1).expand(1, 3, 33, 40)
    padded = transforms.pad_to_stride(transforms.normalise(images), 32)
    assert padded.shape == (1, 3, 64, 64) and padded.abs().max() < 1e-5
    whole = torch.zeros(1, 3, 64, 32)
    assert transforms.pad_to_stride(whole, 32).shape == whole.shape
    one = transforms.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist()
    assert one == pytest.approx([(255 - m) / s for m, s in zip(transforms.PIXEL_MEAN, transforms.PIXEL_STD, strict=True)])


def test_colour_changes_leave_the_geometry_and_the_input_alone() -> None:
    config = AugmentConfig(erase=0)
    image = blob(64, 64, 30.4, 22.8)
    before = image.clone()
    for seed in range(6):
        for changed in (
            transforms.jitter(np.random.default_rng(seed), image, config),
            transforms.disturb(np.random.default_rng(seed), image, config),
        ):
            assert changed.dtype == torch.uint8 and changed.shape == image.shape
            brightest = changed.float().mean(dim=0)
            smooth = torch.nn.functional.avg_pool2d(brightest[None, None], 9, stride=1, padding=4, count_include_pad=False)[0, 0]
            row, column = divmod(int(smooth.argmax()), 64)
            assert math.dist((column, row), (30.4, 22.8)) < 3
    assert torch.equal(image, before)


def test_the_student_has_the_harder_view() -> None:
    """Stronger colours, noise or blur, and patches of one colour, as many as allowed at most."""
    flat = torch.full((3, 200, 200), 120, dtype=torch.uint8)
    ramp = torch.arange(200).repeat(200, 1).byte().expand(3, -1, -1).contiguous()
    config, views = AugmentConfig(), range(60)
    plain = AugmentConfig(erase=0)

    def change(image: torch.Tensor, seen: torch.Tensor) -> float:
        return float((seen.float() - image.float()).mean(dim=(1, 2)).abs().mean())

    teacher = [change(flat, transforms.jitter(np.random.default_rng(seed), flat, config, 0.3)) for seed in views]
    student = [change(flat, transforms.disturb(np.random.default_rng(seed), flat, plain)) for seed in views]
    assert np.mean(student) > 4 * np.mean(teacher)
    noise = np.array([float(transforms.disturb(np.random.default_rng(seed), flat, plain).float().std(dim=(1, 2)).mean()) for seed in views])
    assert 0.3 < np.mean(noise > 1) < 0.7 and noise.max() > 8  # about half of the views, up to 12 levels
    edges = ramp.clone()
    edges[:, :, ::2] = 0
    rough = [float(transforms.disturb(np.random.default_rng(seed), edges, plain).float().diff(dim=2).abs().mean()) for seed in views]
    assert 0.1 < np.mean(np.array(rough) < 0.6 * np.median(rough)) < 0.45  # a quarter is blurred
    counts = []
    for seed in views:
        wiped = transforms.disturb(np.random.default_rng(seed), flat, config).float()
        whole = transforms.disturb(np.random.default_rng(seed), flat, plain).float()
        counts.append(float(((wiped - whole).abs().amax(dim=0) > 0).float().mean()))
    assert 0.1 < np.mean(np.array(counts) == 0) < 0.4 and np.mean(counts) > 0.005 and max(counts) < 3 * 0.15**2


def test_no_jitter_without_strength() -> None:
    image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    changed = transforms.jitter(np.random.default_rng(0), image, AugmentConfig(), 0.0)
    assert (changed.int() - image.int()).abs().max() <= 1


def test_an_animals_mask_is_a_soft_band_around_its_skeleton() -> None:
    points = np.array([[10.0, 20.0], [40.0, 20.0], [25.0, 35.0]])
    mask = transforms.animal_mask(points, ((0, 1),), 5.0, 48, 60)
    middle = points.mean(axis=0)
    for y in range(0, 48, 3):
        for x in range(0, 60, 3):
            ends = [(points[0], points[1]), (points[2], middle)]  # a keypoint without an edge is joined to the middle
            gaps = []
            for a, b in ends:
                t = np.clip(np.dot((x, y) - a, b - a) / np.dot(b - a, b - a), 0, 1)
                gaps.append(math.dist((x, y), a + t * (b - a)))
            assert mask[y, x].item() == pytest.approx(min(1, max(0, (5 - min(gaps)) / 2 + 0.5)), abs=1e-4)

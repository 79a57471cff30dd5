"""Decoding: greedy suppression against a naive loop, refinement against rendered Gaussians, and animals put in against animals got out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smp_plugin import decode as decoding
from smp_plugin import waiting
from smp_plugin.config import PredictConfig
from smp_plugin.decode import (
    CANDIDATES,
    MIN_PEAK,
    ROUNDS,
    Detections,
    candidates,
    decode,
    gather_poses,
    ranked,
    refine,
    similarity,
    suppress,
    without_doubles,
)
from smp_plugin.model import PoseOutputs

TYPICAL = 60.0
CONFIG = PredictConfig(min_score=0.1, nms=0.3, refine=False)
TRIANGLE = torch.tensor([(-20.0, 0.0), (25.0, 4.0), (0.0, 18.0)], dtype=torch.float64)
OTHER = torch.tensor([70.0, 30.0], dtype=torch.float64)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# --- suppression --------------------------------------------------------------------------------------------------------------------------


def naive_nms(alike: Tensor, scores: Tensor, threshold: float) -> list[bool]:
    kept: list[int] = []
    for i in range(len(scores)):
        if scores[i] > 0 and not any(alike[i, j] > threshold for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(scores))]


@given(st.integers(0, 10**6), st.integers(1, 25), st.floats(0, 1), st.integers(0, 25))
@settings(deadline=None)
def test_suppression_is_the_greedy_one(seed: int, size: int, threshold: float, padding: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    alike = torch.rand(3, size, size, generator=generator)
    alike = (alike + alike.transpose(1, 2)) / 2
    scores = torch.rand(3, size, generator=generator).sort(dim=1, descending=True).values + 0.01
    scores[0, max(0, size - padding) :] = 0
    keep = suppress(alike, scores, threshold)
    assert keep.tolist() == [naive_nms(alike[i], scores[i], threshold) for i in range(3)]
    mixed = torch.randperm(size, generator=generator)
    assert torch.equal(suppress(alike[:, mixed][:, :, mixed], scores[:, mixed], threshold), keep[:, mixed])


def test_a_long_chain_of_neighbours_keeps_every_other_one() -> None:
    size = 41
    alike = (torch.arange(size)[:, None] - torch.arange(size)).abs().le(1).double()[None]
    keep = suppress(alike, torch.linspace(1, 0.1, size)[None], 0.5)
    assert keep[0].tolist() == [i % 2 == 0 for i in range(size)]


@contextlib.contextmanager
def not_looking() -> Iterator[None]:
    """As on a GPU in training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "may_look", lambda _: False)
        patch.setattr(decoding, "may_look", lambda _: False)
        yield


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 1))
@settings(deadline=None)
def test_suppression_without_looking_is_the_greedy_one_or_keeps_less(seed: int, size: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    alike = torch.rand(2, size, size, generator=generator)
    alike = torch.maximum(alike, alike.transpose(1, 2))
    scores = torch.rand(2, size, generator=generator).sort(dim=1, descending=True).values + 0.01
    scores[0, size // 2 :] = 0
    with not_looking():
        keep = suppress(alike, scores, threshold)
    greedy = torch.tensor([naive_nms(alike[i], scores[i], threshold) for i in range(2)])
    assert not (keep & ~greedy).any()
    assert torch.equal(keep[:, : ROUNDS + 1], greedy[:, : ROUNDS + 1])


def test_suppression_without_looking_settles_the_beginning_of_a_long_chain_and_drops_the_rest() -> None:
    size = 41
    alike = (torch.arange(size)[:, None] - torch.arange(size)).abs().le(1).double()[None]
    with not_looking():
        keep = suppress(alike, torch.linspace(1, 0.1, size)[None], 0.5)
    assert keep[0].tolist() == [i % 2 == 0 and i <= ROUNDS for i in range(size)]


@pytest.mark.parametrize("gap", [0.0, 0.1, 0.15, 0.25])  # of two animals side by side, in lengths
def test_long_animals_side_by_side_are_two_whichever_way_they_lie(gap: float) -> None:
    along = torch.linspace(-36, 36, 5, dtype=torch.float64)
    body = torch.stack((along, torch.tensor([0.0, 3, 0, -3, 0], dtype=torch.float64)), dim=-1)
    two = torch.stack((body, body + torch.tensor([0, gap * 72])))
    scores = torch.tensor([[0.9, 0.8]])
    for degrees in range(0, 180, 15):
        angle = torch.tensor(math.radians(degrees), dtype=torch.float64)
        turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
        assert suppress(similarity((two @ turn.T)[None], 72), scores, 0.4).sum() == (2 if gap > 0.1 else 1), degrees


def test_similarity_is_oks_with_the_smaller_area() -> None:
    small, large = TRIANGLE + 100, 3 * TRIANGLE + 110
    alike = similarity(torch.stack((small, large))[None], TYPICAL)[0]
    _, axes = np.linalg.eigh(np.cov(small.numpy().T))
    width, length = np.ptp(small.numpy() @ axes, axis=0)  # ascending, as the eigenvalues
    area = max(length * width, 0.1 * length**2, (TYPICAL / 4) ** 2)
    expected = sum(math.exp(-(math.dist(a, b) ** 2) / (2 * 0.1 * area)) for a, b in zip(small.tolist(), large.tolist(), strict=True)) / 3
    assert alike[0, 1].item() == pytest.approx(expected) == alike[1, 0].item()
    assert alike.diagonal().tolist() == [1.0, 1.0]


# --- refinement ---------------------------------------------------------------------------------------------------------------------------


def gaussian(h: int, w: int, x: float, y: float, sigma: float = 1.25, height: float = 0.9) -> Tensor:
    """(h, w) of a Gaussian at cell position (x, y)."""
    xs, ys = torch.arange(w, dtype=torch.float64), torch.arange(h, dtype=torch.float64)[:, None]
    return height * torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))


def refined(maps: Tensor, cells: list[tuple[float, float]], radius: float, stride: int = 4) -> tuple[Tensor, Tensor]:
    """Keypoint 0 of one animal for each of ``cells`` in a map (h, w), refined; positions in cells."""
    poses = torch.tensor(cells, dtype=torch.float64).view(1, -1, 1, 2) * stride + (stride - 1) / 2
    moved, scores = refine(maps[None, None], poses, torch.full((1, len(cells)), radius * stride, dtype=torch.float64), stride)
    return (moved[0, :, 0] - (stride - 1) / 2) / stride, scores[0, :, 0]


@given(
    st.floats(4, 26),
    st.floats(4, 14),
    st.floats(-math.pi, math.pi),
    st.floats(0, 1),
    st.floats(1, 5),
    st.floats(0.8, 2),
    st.sampled_from([4, 8]),
)
@settings(max_examples=100, deadline=None)
def test_refinement_finds_the_place_of_a_gaussian_within_the_cell(
    x: float, y: float, angle: float, share: float, radius: float, sigma: float, stride: int
) -> None:
    away = share * (radius - 0.5)
    start = (x + away * math.cos(angle), y + away * math.sin(angle))
    found, score = refined(gaussian(19, 31, x, y, sigma), [start], radius, stride)
    assert math.dist(found[0].tolist(), (x, y)) < 0.05
    assert score.item() == pytest.approx(0.9, abs=0.3)


def test_without_a_peak_a_keypoint_stays_and_reports_the_probability_there() -> None:
    found, score = refined(gaussian(19, 31, 10, 8, height=0.8 * MIN_PEAK), [(10.6, 8.2)], 3.0)
    assert torch.allclose(found, torch.tensor([[10.6, 8.2]], dtype=torch.float64))
    assert score.item() == pytest.approx(0.8 * MIN_PEAK * math.exp(-1 / (2 * 1.25**2)))
    found, score = refined(torch.zeros(19, 31, dtype=torch.float64), [(10.6, 8.2), (-30.0, 8.0), (500.0, 500.0)], 3.0)
    assert found[:, 0].tolist() == pytest.approx([10.6, -30, 500]) and score.tolist() == [0, 0, 0]


@pytest.mark.parametrize("radius", [1.0, 2.0, 4.0])
def test_a_peak_outside_the_reach_is_not_jumped_to(radius: float) -> None:
    maps = gaussian(19, 31, 15, 9, sigma=0.4)
    away = 1.5 * radius + 1.01
    found, score = refined(maps, [(15 + away, 9.0), (15.0, 9 - away)], radius)
    assert torch.allclose(found, torch.tensor([[15 + away, 9.0], [15.0, 9 - away]], dtype=torch.float64)) and score.max() < MIN_PEAK


def test_the_nearer_of_two_maxima_is_taken() -> None:
    maps = torch.maximum(gaussian(19, 31, 10, 9, sigma=0.8, height=0.7), gaussian(19, 31, 15, 9, sigma=0.8, height=0.9))
    found, _ = refined(maps, [(11.0, 9.0)], 3.0)
    assert found[0].tolist() == pytest.approx([10, 9], abs=0.1)


def test_keypoints_at_and_beyond_the_border_stay_within_reach_of_the_map() -> None:
    maps = torch.maximum(gaussian(19, 31, 0, 9), gaussian(19, 31, 30, 18))
    found, score = refined(maps, [(0.4, 8.8), (-1.2, 9.0), (30.8, 18.9)], 2.0)
    assert torch.allclose(found, torch.tensor([[0.0, 9], [0, 9], [30, 18]], dtype=torch.float64), atol=0.05)
    assert score.tolist() == pytest.approx([0.9] * 3)
    beyond, _ = refined(gaussian(19, 31, -1.0, 9), [(-1.0, 9.0)], 2.0)  # the maximum itself lies outside the image
    assert -1.5 < beyond[0, 0].item() <= 0.5


def test_one_animals_refinement_does_not_depend_on_the_others() -> None:
    maps = gaussian(19, 31, 12, 9)
    poses = torch.tensor([[8.0, 9.0], [20.0, 9.0]], dtype=torch.float64).view(1, 2, 1, 2) * 4 + 1.5
    both, _ = refine(maps[None, None], poses, torch.tensor([[11.0, 30.0]]), 4)
    alone, _ = refine(maps[None, None], poses[:, :1], torch.tensor([[11.0]]), 4)
    assert torch.equal(both[:, :1], alone)


# --- the whole way ------------------------------------------------------------------------------------------------------------------------


def place(outputs: PoseOutputs, image: int, pose: Tensor, presence: float, quality: float, apart: float = 1.0) -> None:
    """Let the three locations nearest to the pose's middle point to it, the nearest with the scores given, the others with less.

    ``apart``: how far the poses of the others are from it, pixels.
    """
    distance = (outputs.locations - pose.mean(dim=0)).norm(dim=1) + 1000 * (outputs.strides != 8)
    with torch.no_grad():
        for rank, location in enumerate(distance.argsort()[:3].tolist()):
            outputs.presence[image, location] = logit(presence * 0.95**rank)
            outputs.quality[image, location] = logit(quality)
            outputs.vectors[image, location] = (pose + rank * apart - outputs.locations[location]) / outputs.strides[location]


SCENE = [[((50.0, 40.0), 0.9, 0.8), ((110.0, 60.0), 0.6, 0.5)], [], [((80.0, 50.0), 0.99, 0.9)]]


@pytest.fixture
def scene(make_outputs: Callable[..., PoseOutputs]) -> PoseOutputs:
    """Three images with two, no and one animal."""
    outputs = make_outputs(images=3, keypoints=3)
    for image, animals in enumerate(SCENE):
        for middle, presence, quality in animals:
            place(outputs, image, TRIANGLE + torch.tensor(middle), presence, quality)
    return outputs


def test_animals_come_out_once_best_first_and_the_rest_is_padding(scene: PoseOutputs) -> None:
    found = decode(scene, CONFIG, TYPICAL)
    assert found.poses.shape == (3, 2, 3, 2) and found.point_scores.shape == (3, 2, 3)
    expected = torch.tensor([[0.72, 0.3], [0, 0], [0.891, 0]], dtype=torch.float64)
    torch.testing.assert_close(found.scores, expected)
    for image, animals in enumerate(SCENE):
        for rank, (middle, _, _) in enumerate(animals):
            torch.testing.assert_close(found.poses[image, rank], TRIANGLE + torch.tensor(middle))


def test_low_scores_and_surplus_animals_are_dropped(scene: PoseOutputs) -> None:
    best = decode(scene, dataclasses.replace(CONFIG, max_animals=1), TYPICAL)
    assert (best.scores > 0).sum(dim=1).tolist() == [1, 0, 1] and best.scores[0, 0].item() == pytest.approx(0.72)
    sure = decode(scene, dataclasses.replace(CONFIG, min_score=0.75), TYPICAL)
    assert (sure.scores > 0).sum(dim=1).tolist() == [0, 0, 1] and sure.scores.shape == (3, 1)
    none = decode(scene, dataclasses.replace(CONFIG, min_score=0.95), TYPICAL)
    assert none.scores.tolist() == [[0.0]] * 3


def test_suppression_follows_its_setting(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    place(outputs, 0, TRIANGLE + torch.tensor([50.0, 40.0]), 0.9, 0.8, apart=0.11 * TYPICAL)
    for nms, count in ((1.0, 3), (0.3, 2), (0.05, 1)):
        assert (decode(outputs, dataclasses.replace(CONFIG, nms=nms), TYPICAL).scores > 0).sum() == count


def test_many_locations_of_one_animal_leave_room_for_another(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    for middle, presence in ((40.0, 0.9), (110.0, 0.3)):
        place(outputs, 0, TRIANGLE + torch.tensor([middle, 50.0]), presence, 0.9)
    indices, scores = candidates(outputs, 0.05, 2, TYPICAL)
    assert (scores > 0).tolist() == [[True, True]]
    assert gather_poses(outputs, indices).mean(dim=2)[0, :, 0].tolist() == pytest.approx([40, 110], abs=10)


@pytest.mark.parametrize("keypoints", [1, 2, 5])
def test_a_location_is_left_out_where_a_neighbour_says_the_same_pose_more_surely(
    make_outputs: Callable[..., PoseOutputs], keypoints: int
) -> None:
    outputs = make_outputs(images=2, keypoints=keypoints, seed=3)
    with torch.no_grad():  # poses that agree with about half of the neighbours'
        outputs.vectors.mul_(0.1).sub_(outputs.locations[None, :, None] / outputs.strides[:, None, None])
    typical, reach = 40.0, 0.15 * 40.0
    indices, scores = candidates(outputs, 0.0, len(outputs.locations), typical)
    v, left = outputs.scores, 0
    for image in range(2):
        kept = set(indices[image][scores[image] > 0].tolist())
        for place_, (at, stride) in enumerate(zip(outputs.locations, outputs.strides, strict=True)):
            near = ((outputs.locations - at).abs().amax(dim=1) <= stride) & (outputs.strides == stride) & (v[image] > v[image, place_])
            gaps = (outputs.poses[image] - outputs.poses[image, place_])[near]
            means = [gaps[:, start::2].mean(dim=1).norm(dim=1) for start in range(min(2, keypoints))]
            surpassed = bool(near.any()) and bool((torch.stack(means).amax(dim=0) <= reach).any())
            assert (place_ in kept) != surpassed
            left += surpassed
    assert 0.1 < left / v.numel() < 0.9


def test_animals_are_ranked_by_their_keypoints_too() -> None:
    poses = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    points = torch.tensor([[[0.1, 0.1], [0.9, 0.7], [0.5, 0.0]]])
    found = Detections(poses, torch.tensor([[0.8, 0.5, 0.0]]), points)
    best = ranked(found, dataclasses.replace(CONFIG, min_score=0.0, max_animals=2))
    torch.testing.assert_close(best.scores, torch.tensor([[0.5 * 0.8**0.5, 0.8 * 0.1**0.5]]))
    assert best.poses[0, :, 0, 0].tolist() == [1, 0] and torch.equal(best.point_scores, points[:, [1, 0]])
    assert (ranked(found, dataclasses.replace(CONFIG, min_score=0.3)).scores > 0).sum() == 1


def test_an_image_is_decoded_the_same_alone(scene: PoseOutputs) -> None:
    config = dataclasses.replace(CONFIG, refine=True)
    together = decode(scene, config, TYPICAL)
    for image, animals in enumerate(SCENE):
        alone = decode(scene.images(slice(image, image + 1)), config, TYPICAL)
        for name in ("poses", "scores", "point_scores"):
            assert torch.equal(getattr(together, name)[image, : len(animals)], getattr(alone, name)[0, : len(animals)])


@pytest.mark.parametrize("heatmap_stride", [4, 8])
def test_refinement_moves_poses_to_the_heatmaps_and_scores_points_there(
    make_outputs: Callable[..., PoseOutputs], heatmap_stride: int
) -> None:
    outputs = make_outputs(keypoints=3, heatmap_stride=heatmap_stride)
    truth = TRIANGLE + torch.tensor([50.0, 40.0])
    place(outputs, 0, truth + torch.tensor([3.0, -2.0]), 0.9, 0.8)
    with torch.no_grad():
        for k in range(2):  # keypoint 2 has no peak
            x, y = ((truth[k] + 0.5) / heatmap_stride - 0.5).tolist()
            h, w = outputs.heatmaps.shape[2:]
            outputs.heatmaps[0, k] = gaussian(h, w, x, y).clamp(min=1e-4).logit()
    plain = decode(outputs, CONFIG, TYPICAL)
    found = decode(outputs, dataclasses.replace(CONFIG, refine=True, refine_radius=0.12), TYPICAL)
    assert (found.poses[0, 0, :2] - truth[:2]).norm(dim=1).max() < 0.05 * heatmap_stride
    assert torch.equal(found.poses[0, 0, 2], plain.poses[0, 0, 2])
    assert found.point_scores[0, 0, :2].min() > 0.7 and found.point_scores[0, 0, 2] < 0.01
    torch.testing.assert_close(plain.poses[0, 0], truth + torch.tensor([3.0, -2.0]))


def test_poses_that_refinement_makes_one_come_out_once(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs, truth = make_outputs(keypoints=3), TRIANGLE + torch.tensor([40.0, 40.0])
    place(outputs, 0, truth + OTHER, 0.6, 0.6, apart=0.0)  # another animal
    for shift, presence in ((-9.0, 0.9), (9.0, 0.7)):
        place(outputs, 0, truth + shift, presence, 0.9, apart=0.0)
    with torch.no_grad():
        for animal in (truth, truth + OTHER):
            for k, (x, y) in enumerate(((animal + 0.5) / outputs.heatmap_stride - 0.5).tolist()):
                peak = gaussian(outputs.heatmaps.shape[2], outputs.heatmaps.shape[3], x, y).clamp(min=1e-4).logit()
                outputs.heatmaps[0, k] = torch.maximum(outputs.heatmaps[0, k], peak)
        outputs.heatmaps[0, 0] = logit(0.01)
    config = dataclasses.replace(CONFIG, nms=0.4, refine_radius=0.4)
    assert (decode(outputs, config, TYPICAL).scores > 0).sum() == 3
    found = decode(outputs, dataclasses.replace(config, refine=True), TYPICAL)
    left = found.poses[0, found.scores[0] > 0]
    assert len(left) == 2 and (left[:, 1:] - torch.stack((truth, truth + OTHER))[:, 1:]).norm(dim=-1).max() < 0.5


def test_of_two_poses_that_are_as_good_the_first_is_kept() -> None:
    assert suppress(torch.ones(1, 2, 2), torch.tensor([[0.6, 0.6]]), 0.4).tolist() == [[True, False]]


def test_of_poses_that_refinement_makes_one_the_heatmaps_choose() -> None:
    alike, scores = TRIANGLE.expand(1, 2, 3, 2), torch.tensor([[0.6, 0.5]])
    for seen, kept in ((0.9, [0.0, 0.5]), (0.2, [0.6, 0.0])):  # the second one's keypoints, clearly or as little as the first one's
        point_scores = torch.tensor([0.2, seen])[None, :, None].expand(1, 2, 3)
        found = without_doubles(Detections(alike, scores, point_scores), 0.4, TYPICAL)
        assert torch.equal(found.scores, torch.tensor([kept]))


@pytest.mark.parametrize("max_animals", [0, 1])
def test_animals_are_the_same_where_the_host_may_not_look(scene: PoseOutputs, max_animals: int) -> None:
    with torch.no_grad():
        scene.heatmaps.copy_(torch.randn(scene.heatmaps.shape, generator=torch.Generator().manual_seed(0)))
    config = dataclasses.replace(CONFIG, refine=True, max_animals=max_animals)
    found = decode(scene, config, TYPICAL)
    with not_looking():
        padded = decode(scene, config, TYPICAL)
    count = found.scores.shape[1]
    assert padded.scores.shape[1] == (max_animals or CANDIDATES) and padded.scores[:, count:].abs().sum() == 0
    real = found.scores > 0
    for field in dataclasses.fields(Detections):
        assert torch.equal(getattr(padded, field.name)[:, :count][real], getattr(found, field.name)[real])


def test_candidates_are_the_best_locations_above_the_threshold(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(images=2, seed=1)
    indices, scores = candidates(outputs, 0.6, 10, 1e-9, 0.2)
    for i in range(2):
        b, c = torch.sigmoid(outputs.presence[i]), torch.sigmoid(outputs.quality[i])
        ranked = sorted(((b[j] * c[j]).item(), j) for j in range(len(b)) if b[j] > 0.6 and b[j] * c[j] > 0.2)[::-1][:10]
        assert [s for s, _ in ranked] == pytest.approx(scores[i].tolist()) and [j for _, j in ranked] == indices[i].tolist()
    poses = gather_poses(outputs, indices)
    assert torch.equal(poses[1, 3], outputs.poses[1, indices[1, 3]])


def test_without_candidates_there_is_one_empty_place(make_outputs: Callable[..., PoseOutputs]) -> None:
    indices, scores = candidates(make_outputs(images=2), 0.05, 10, TYPICAL)
    assert indices.shape == scores.shape == (2, 1) and scores.tolist() == [[0.0], [0.0]]

"""Supervised terms against naive float64 sums, and what missing labels must not teach."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smp_plugin import waiting
from smp_plugin.config import LossConfig
from smp_plugin.losses import (
    _most_positive,
    focal_terms,
    heatmap_loss,
    instance_losses,
    presence_loss,
    quality_focal,
    supervised,
)
from smp_plugin.model import PoseOutputs
from smp_plugin.targets import Instances, build_targets

NAN = math.nan
TYPICAL = 40.0
CONFIG = LossConfig()
TRIANGLE = torch.tensor([(60.0, 40.0), (90.0, 46.0), (70.0, 60.0)], dtype=torch.float64)


def instances_of(keypoints: Tensor, weights: list[list[float]] | None = None, background: float = 1.0) -> Instances:
    keypoints = keypoints.double()
    counts = torch.ones(keypoints.shape[:2]) if weights is None else torch.tensor(weights)
    return Instances(keypoints, counts.double(), torch.full((len(keypoints), 1, 1), background, dtype=torch.float64))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@given(st.floats(-12, 12), st.floats(0, 4), st.floats(0.05, 0.95))
@settings(deadline=None)
def test_focal_terms_are_equation_4(logit: float, gamma: float, kappa: float) -> None:
    p = sigmoid(logit)
    positive, negative = focal_terms(torch.tensor(logit, dtype=torch.float64), gamma, kappa)
    assert positive.item() == pytest.approx(kappa * (1 - p) ** gamma * -math.log(p), rel=1e-7, abs=1e-12)
    assert negative.item() == pytest.approx((1 - kappa) * p**gamma * -math.log(1 - p), rel=1e-7, abs=1e-12)


@given(st.floats(-12, 12), st.floats(0, 1), st.floats(1, 4))
@settings(deadline=None)
def test_quality_focal_is_a_weighted_cross_entropy(logit: float, target: float, gamma: float) -> None:
    p = sigmoid(logit)
    expected = abs(target - p) ** gamma * -(target * math.log(p) + (1 - target) * math.log(1 - p))
    assert quality_focal(
        torch.tensor(logit, dtype=torch.float64), torch.tensor(target, dtype=torch.float64), gamma
    ).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("target", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_quality_focal_is_smallest_where_the_probability_is_the_target(target: float) -> None:
    logits = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    best = torch.sigmoid(logits[quality_focal(logits, torch.tensor(target), 2.0).argmin()])
    assert best.item() == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize("logit", [-200.0, -60.0, 60.0, 200.0])
def test_losses_and_gradients_stay_finite_far_out(logit: float) -> None:
    x = torch.tensor(logit, requires_grad=True)
    total = torch.stack([*focal_terms(x, 2.0, 0.25), quality_focal(x, torch.tensor(0.7), 2.0)]).sum()
    total.backward()
    assert total.isfinite() and x.grad is not None and x.grad.isfinite()


@pytest.mark.parametrize("target", ["gaussian", "cell"])
def test_heatmap_and_presence_losses_are_weighted_sums_over_cells(make_outputs: Callable[..., PoseOutputs], target: Any) -> None:
    config = dataclasses.replace(CONFIG, heatmap_target=target)
    outputs = make_outputs(images=2, keypoints=3, height=64, width=96, seed=1)
    keypoints = torch.full((2, 2, 3, 2), NAN, dtype=torch.float64)
    keypoints[0, 0], keypoints[0, 1], keypoints[1, 0] = TRIANGLE - 10, TRIANGLE - 40, TRIANGLE - 30
    keypoints[1, 0, 2] = NAN
    instances = instances_of(keypoints, [[1.0, 0.4], [1.0, 0.0]], background=0.3)
    targets = build_targets(outputs, instances, config, TYPICAL)
    heat = 0.0
    cells = zip(
        outputs.heatmaps.flatten().tolist(), targets.heatmaps.flatten().tolist(), targets.heatmap_weights.flatten().tolist(), strict=True
    )
    for logit, t, weight in cells:
        p = sigmoid(logit)
        if target == "gaussian":
            heat += weight * (t - p) ** 2 * -(t * math.log(p) + (1 - t) * math.log(1 - p))
        else:
            heat += weight * (0.25 * (1 - p) ** 2 * -math.log(p) if t else 0.75 * p**2 * -math.log(1 - p))
    assert heatmap_loss(outputs, targets, instances, config).item() == pytest.approx(heat / (3 + 0.4 * 3 + 2))
    box, count = 0.0, 0.0
    for logit, t, weight in zip(
        outputs.presence.flatten().tolist(), targets.presence.flatten().tolist(), targets.presence_weights.flatten().tolist(), strict=True
    ):
        p = sigmoid(logit)
        box += weight * (0.25 * (1 - p) ** 2 * -math.log(p) if t else 0.75 * p**2 * -math.log(1 - p))
        count += weight * t
    assert count > 3 and presence_loss(outputs, targets, config).item() == pytest.approx(box / count)


@pytest.fixture(params=[True, False], ids=["looking", "not looking"])
def looking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """May the host look at values? Losses may not depend on it."""
    if not request.param:
        monkeypatch.setattr(waiting, "may_look", lambda _: False)
    return bool(request.param)


@pytest.mark.parametrize("quality", ["oks", "centerness"])
def test_vector_and_quality_losses_are_sums_over_positive_locations(
    make_outputs: Callable[..., PoseOutputs], looking: bool, quality: Any
) -> None:
    config = dataclasses.replace(CONFIG, quality=quality)
    outputs = make_outputs(images=2, keypoints=3, height=96, width=160, seed=2)
    keypoints = torch.full((2, 2, 3, 2), NAN, dtype=torch.float64)
    keypoints[0, 0], keypoints[0, 1], keypoints[1, 0] = TRIANGLE, TRIANGLE * 2 - 60, TRIANGLE - 30
    keypoints[1, 0, 2] = NAN
    weights = [[1.0, 0.4], [1.0, 0.0]]
    instances = instances_of(keypoints, weights)
    targets = build_targets(outputs, instances, config, TYPICAL)
    vector = quality_sum = points = places = 0.0
    for i in range(2):
        for place in range(len(outputs.locations)):
            m = int(targets.assigned[i, place])
            if m < 0:
                continue
            stride, centre, weight = outputs.strides[place].item(), outputs.locations[place].tolist(), weights[i][m]
            known = [p for p in keypoints[i, m].tolist() if not math.isnan(p[0])]
            x0, x1 = min(p[0] for p in known), max(p[0] for p in known)
            y0, y1 = min(p[1] for p in known), max(p[1] for p in known)
            length = max(x1 - x0, y1 - y0, TYPICAL if len(known) < 3 else 0)
            area = max((x1 - x0) * (y1 - y0), 0.1 * length**2)
            alike = 0.0
            for k, p in enumerate(keypoints[i, m].tolist()):
                if math.isnan(p[0]):
                    continue
                square = 0.0
                for axis in range(2):
                    error = abs(outputs.vectors[i, place, k, axis].item() - (p[axis] - centre[axis]) / stride)
                    vector += weight * (
                        error - config.vector_beta / 2 if error > config.vector_beta else error**2 / (2 * config.vector_beta)
                    )
                    square += (error * stride) ** 2
                alike += math.exp(-square / (2 * config.quality_s2 * area)) / len(known)
                points += weight
            if quality == "centerness":
                alike = 1.0
                for c, low, high in ((centre[0], x0, x1), (centre[1], y0, y1)):
                    half = max((high - low) / 2, TYPICAL / 8)
                    left, right = max(0, c - (low + high) / 2 + half), max(0, (low + high) / 2 + half - c)
                    alike *= min(left, right) / max(left, right)
                alike = math.sqrt(alike)
            p = sigmoid(outputs.quality[i, place].item())
            quality_sum += weight * -(alike * math.log(p) + (1 - alike) * math.log(1 - p))
            places += weight
    mine = instance_losses(outputs, targets, instances, config, TYPICAL)
    assert mine[0].item() == pytest.approx(vector / points) and mine[1].item() == pytest.approx(quality_sum / places)


@pytest.mark.parametrize("quality", ["oks", "centerness"])
def test_gradients_of_vectors_and_quality_are_those_of_positive_locations_one_by_one(
    make_outputs: Callable[..., PoseOutputs], looking: bool, quality: Any
) -> None:
    config = dataclasses.replace(CONFIG, quality=quality, keypoint_anchors=True)
    outputs = make_outputs(images=3, keypoints=3, height=96, width=160, seed=7)  # the third image has no animal
    keypoints = torch.full((3, 3, 3, 2), NAN, dtype=torch.float64)
    keypoints[0, 0], keypoints[0, 1], keypoints[1, 0], keypoints[1, 2, 1] = TRIANGLE, TRIANGLE * 2 - 60, TRIANGLE - 30, TRIANGLE[1]
    keypoints[0, 1, 0] = NAN
    weights = [[1.0, 0.4, 0.0], [0.0, 1.0, 0.7], [1.0, 0.0, 0.0]]
    instances = instances_of(keypoints, weights)
    targets = build_targets(outputs, instances, config, TYPICAL)
    vector, quality_sum, points, places = outputs.vectors.sum() * 0, outputs.quality.sum() * 0, 0.0, 0.0
    for i, place in (targets.assigned >= 0).nonzero().tolist():
        m = int(targets.assigned[i, place])
        known = keypoints[i, m].isfinite().all(dim=1)
        wanted = (keypoints[i, m, known] - outputs.locations[place]) / outputs.strides[place]
        error = (outputs.vectors[i, place, known] - wanted).abs()
        square = (error.detach() * outputs.strides[place]).square().sum(dim=1)
        vector = vector + weights[i][m] * torch.where(error > 0.1, error - 0.05, error.square() / 0.2).sum()
        points += weights[i][m] * int(known.sum())
        sides = keypoints[i, m, known].amax(dim=0) - keypoints[i, m, known].amin(dim=0)
        length = max(sides.max().item(), 0.0 if known.all() else TYPICAL)
        alike = torch.exp(-square / (2 * config.quality_s2 * max(sides.prod().item(), 0.1 * length**2))).mean()
        if quality == "centerness":
            off = (outputs.locations[place] - keypoints[i, m, known].amax(dim=0) + sides / 2).abs()
            half = (sides / 2).clamp(min=TYPICAL / 8)
            alike = ((half - off).clamp(min=0) / (half + off)).prod().sqrt()
        quality_sum = quality_sum + weights[i][m] * F.binary_cross_entropy_with_logits(outputs.quality[i, place], alike)
        places += weights[i][m]
    mine = instance_losses(outputs, targets, instances, config, TYPICAL)
    theirs = (vector / points, quality_sum / places)
    assert places > 20 and targets.assigned[2].max() < 0
    for a, b, leaf in zip(mine, theirs, (outputs.vectors, outputs.quality), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(*(torch.autograd.grad(x, leaf)[0] for x in (a, b)))


@pytest.mark.parametrize("quality", ["oks", "centerness"])
@pytest.mark.parametrize("anchors", [False, True])
def test_without_positive_locations_losses_and_gradients_are_zero(
    make_outputs: Callable[..., PoseOutputs], looking: bool, quality: Any, anchors: bool
) -> None:
    config = dataclasses.replace(CONFIG, quality=quality, keypoint_anchors=anchors)
    for keypoints, weight in ((torch.full((1, 1, 3, 2), NAN), 1.0), (torch.full((1, 1, 3, 2), NAN), 0.0), (TRIANGLE[None, None], 0.0)):
        outputs, instances = make_outputs(keypoints=3, seed=8), instances_of(keypoints, [[weight]])
        losses = instance_losses(outputs, build_targets(outputs, instances, config, TYPICAL), instances, config, TYPICAL)
        assert [x.item() for x in losses] == [0.0, 0.0]
        gradients = torch.autograd.grad(sum(losses), [outputs.vectors, outputs.quality])  # type: ignore[arg-type]
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@given(st.integers(0, 10**6), st.floats(0, 4), st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_there_is_a_place_for_every_positive_location(
    make_outputs: Callable[..., PoseOutputs], seed: int, radius: float, animals: int, anchors: bool
) -> None:
    config = dataclasses.replace(CONFIG, center_radius=radius, keypoint_anchors=anchors)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([0, 0]) + torch.rand(1, animals, 1, 2, generator=generator, dtype=torch.float64) * torch.tensor([160, 96])
    instances = instances_of(centres + 20 * torch.randn(1, animals, 2, 2, generator=generator, dtype=torch.float64))
    outputs = make_outputs(keypoints=2)
    targets = build_targets(outputs, instances, config, TYPICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "may_look", lambda _: False)
        assert (targets.assigned >= 0).sum() <= _most_positive(targets, instances, config) <= len(outputs.locations)


def test_the_quality_target_carries_no_gradient_to_the_vectors(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3, seed=3)
    instances = instances_of(TRIANGLE[None, None])
    _, quality = instance_losses(outputs, build_targets(outputs, instances, CONFIG, TYPICAL), instances, CONFIG, TYPICAL)
    gradients = torch.autograd.grad(quality, [outputs.vectors, outputs.quality], allow_unused=True)
    reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
    assert reached == [False, True]


@pytest.mark.parametrize("target", ["gaussian", "cell"])
def test_a_missing_keypoint_teaches_nothing_at_its_animal_and_all_else_is_as_if_complete(
    make_outputs: Callable[..., PoseOutputs], target: Any
) -> None:
    config = dataclasses.replace(CONFIG, heatmap_target=target)
    partly = TRIANGLE.clone()
    partly[1] = NAN
    gradients = []
    for animal in (partly, TRIANGLE):
        outputs = make_outputs(keypoints=3, seed=4)
        instances = instances_of(torch.stack((animal, torch.full_like(TRIANGLE, NAN)))[None])
        targets = build_targets(outputs, instances, config, TYPICAL)
        known = animal.isfinite().all(dim=1).sum()
        heat = heatmap_loss(outputs, targets, instances, config) * known
        vector, _ = instance_losses(outputs, targets, instances, config, TYPICAL)
        chosen = targets.assigned[0] >= 0
        gradients.append((torch.autograd.grad(heat, outputs.heatmaps)[0][0], torch.autograd.grad(vector, outputs.vectors)[0][0], chosen))
    (heat, vector, chosen), (whole, _, _) = gradients
    ys, xs = torch.meshgrid(torch.arange(24) * 4 + 1.5, torch.arange(40) * 4 + 1.5, indexing="ij")
    away = torch.maximum((xs - 65).abs() - 5, (ys - 50).abs() - 10)  # px from the box of the two known keypoints
    near, far = away <= TYPICAL - 20, away > TYPICAL
    assert heat[1][near].abs().max() == 0 and near[11, 22]  # the place where keypoint 1 really is
    assert (heat[1][far] != 0).all() and torch.equal(heat[1][far], whole[1][far])
    assert torch.equal(heat[[0, 2]], whole[[0, 2]]) and (heat[[0, 2]] != 0).all()
    assert vector[:, 1].abs().max() == 0 and (vector[chosen][:, [0, 2]] != 0).all() and vector[~chosen].abs().max() == 0


def test_an_ignored_animal_gives_no_gradient_at_all_around_it(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3, seed=5)
    terms = supervised(outputs, instances_of(TRIANGLE[None, None], [[0.0]]), CONFIG, TYPICAL)
    heat, presence, quality, vectors = torch.autograd.grad(
        torch.stack(list(terms.values())).sum(), [outputs.heatmaps, outputs.presence, outputs.quality, outputs.vectors]
    )
    assert heat[0, :, 10:15, 15:22].abs().max() == 0 and (heat[0, :, :, :4] != 0).all()
    x, y = outputs.locations.unbind(dim=1)
    in_box = (x >= 60) & (x <= 90) & (y >= 40) & (y <= 60)
    assert presence[0, in_box].abs().max() == 0 and (presence[0, x < 20] != 0).all()
    assert quality.abs().max() == 0 and vectors.abs().max() == 0


def test_supervised_terms_carry_their_weights(make_outputs: Callable[..., PoseOutputs]) -> None:
    config = dataclasses.replace(CONFIG, heatmap_weight=2.0, box_weight=3.0, vector_weight=5.0, quality_weight=7.0)
    unit = dataclasses.replace(CONFIG, heatmap_weight=1.0, box_weight=1.0, vector_weight=1.0, quality_weight=1.0)
    instances = instances_of(TRIANGLE[None, None])
    outputs = make_outputs(keypoints=3, seed=6)
    weighted, plain = (supervised(outputs, instances, c, TYPICAL) for c in (config, unit))
    factors = {"heatmap": 2.0, "box": 3.0, "vector": 5.0, "quality": 7.0}
    assert {k: v.item() for k, v in weighted.items()} == pytest.approx({k: factors[k] * v.item() for k, v in plain.items()})


def test_descending_the_supervised_losses_finds_the_animal(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    instances = instances_of(TRIANGLE[None, None])
    leaves = [outputs.heatmaps, outputs.presence, outputs.quality, outputs.vectors]
    optimizer = torch.optim.Adam(leaves, lr=0.6)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(supervised(outputs, instances, CONFIG, TYPICAL).values())).sum().backward()
        optimizer.step()
    best = outputs.scores[0].argmax()
    assert outputs.scores[0, best] > 0.5
    assert (outputs.poses[0, best] - TRIANGLE).abs().max() < 1
    peak = F.one_hot(outputs.heatmaps[0].flatten(1).argmax(dim=1), 960).view(3, 24, 40).nonzero()
    assert peak.tolist() == [[0, 10, 15], [1, 11, 22], [2, 15, 17]]

"""What unlabelled crops teach: who teaches whom, on which view, and that turned crops are compared where they belong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp_plugin import training
from smp_plugin.budget import Budget
from smp_plugin.config import Config, LossConfig
from smp_plugin.consistency import agreement, relative_scores, select
from smp_plugin.datasets import Batch
from smp_plugin.model import LEVEL_STRIDES, PoseOutputs
from smp_plugin.targets import Instances
from smp_plugin.training import PoseTraining
from smp_plugin.turning import WAYS

pytestmark = pytest.mark.usefixtures("thin_backbone")

SIDE = 96
MIRRORED = (0, 2, 1)


class Equivariant(nn.Module):
    """A network that says the same of an image however that is laid: made of means, of differences and of nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> PoseOutputs:
        self.seen.append(images)
        values = images.double() / 32 - 4
        heat = F.avg_pool2d(values, 4)  # one keypoint by itself, and a left and a right one that look the same
        maps = [F.avg_pool2d(values, stride) for stride in LEVEL_STRIDES]
        slopes = []
        for m in maps:
            p = F.pad(m, (1, 1, 1, 1))
            x, y = p[:, :, 1:-1, 2:] - p[:, :, 1:-1, :-2], p[:, :, 2:, 1:-1] - p[:, :, :-2, 1:-1]
            slopes.append(torch.stack((x, y), dim=-1)[:, [0, 1, 1]].flatten(2, 3).transpose(1, 2))  # N, h w, K, 2
        grids = [SIDE // stride for stride in LEVEL_STRIDES]
        centres = [
            torch.stack(torch.meshgrid(*[torch.arange(n) * s + (s - 1) / 2] * 2, indexing="xy"), dim=-1).view(-1, 2)
            for n, s in zip(grids, LEVEL_STRIDES, strict=True)
        ]
        return PoseOutputs(
            heatmaps=self.gain * heat[:, [0, 1, 1]],
            presence=self.gain * torch.cat([m[:, 0].flatten(1) for m in maps], dim=1),
            quality=self.gain * torch.cat([m[:, 2].flatten(1) for m in maps], dim=1),
            vectors=self.gain * torch.cat(slopes, dim=1),
            locations=torch.cat(centres).double(),
            strides=torch.cat([torch.full((n * n,), float(s)) for n, s in zip(grids, LEVEL_STRIDES, strict=True)]).double(),
            heatmap_stride=4,
            level_strides=LEVEL_STRIDES,
        )


@pytest.fixture
def module(make_config: Callable[..., Config]) -> PoseTraining:
    """In the third phase, with the same network for student and teacher."""
    config = make_config(data__crop=SIDE, model__norm="group", loss__alpha=0.0, augment__flip=True, augment__rotation=180.0)
    made = PoseTraining(config, MIRRORED, 28.0, False, Budget(10, 0.0), None)
    made.budget.progress = lambda step: 1.0  # type: ignore[method-assign]
    made.model, made.teacher = Equivariant(), Equivariant()  # type: ignore[assignment]
    made.confidence = made.confidence.double()
    return made


def batch_of(weak: Tensor, strong: Tensor) -> Batch:
    """With a labelled crop in which nothing is labelled."""
    nothing = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    nowhere = torch.full((1, 1, 3, 2), math.nan).double()
    every = torch.ones(1, 3, dtype=torch.bool)
    return Batch(nothing, nowhere, torch.zeros(1, 1), torch.ones(1), ~every[:, 0], every, weak, strong)


def crops(seed: int) -> Tensor:
    """Smooth, and without symmetry."""
    small = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(small, size=(SIDE, SIDE), mode="bilinear")).to(torch.uint8)


def test_turned_crops_are_compared_where_they_belong(module: PoseTraining) -> None:
    found = []
    for way in range(WAYS):
        module.ways = [way]
        terms = module.loss_terms(batch_of(crops(1), crops(2)))
        found.append([terms[name].item() for name in ("fusion_unlabeled", "agreement")])
    assert min(found[0]) > 0.01
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize(
    ("partial", "unlabelled", "name"),
    [(False, True, "unlabelled"), (True, True, "unlabelled"), (True, False, "gaps filled"), (False, False, "labelled fusion")],
)
def test_a_phase_is_named_after_what_is_learnt_in_it(
    make_config: Callable[..., Config], partial: bool, unlabelled: bool, name: str
) -> None:
    made = PoseTraining(make_config(model__norm="group"), MIRRORED, 28.0, partial, Budget(10, 0.0), None, unlabelled)
    made.budget.progress = lambda step: 1.0  # type: ignore[method-assign]
    assert made.phase == name


@pytest.mark.parametrize(
    ("partial", "fill", "progress", "filled"),
    [
        (True, True, 1.0, True),
        (False, True, 1.0, False),
        (True, False, 1.0, False),
        (True, True, 0.2, False),
    ],
)
def test_gaps_are_filled_late_and_only_where_labels_are_partial(
    partial: bool, fill: bool, progress: float, filled: bool, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the teacher says about the same crops, and only in crops of projects whose labels are."""
    config = make_config(data__crop=SIDE, model__norm="group", loss__fill=fill, train__unlabeled_fusion_start=0.5)
    made = PoseTraining(config, MIRRORED, 28.0, partial, Budget(10, 0.0), None)
    made.budget.progress = lambda step: progress  # type: ignore[method-assign]
    made.model, made.teacher = Equivariant(), Equivariant()  # type: ignore[assignment]
    made.confidence = made.confidence.double()
    learnt: list[Tensor] = []

    def supervised(outputs: PoseOutputs, labels: Instances, *_: object) -> dict[str, Tensor]:
        learnt.append(labels.keypoints)
        return {"heatmap": outputs.heatmaps.sum()}

    pose = torch.arange(6).view(3, 2).double() + 20
    sure = Instances(pose.expand(2, 1, 3, 2), torch.ones(2, 1), torch.ones(2, 1, 1))
    monkeypatch.setattr(training, "supervised", supervised)
    monkeypatch.setattr(training, "pseudo_instances", lambda *_: sure)
    one = batch_of(crops(1)[:0], crops(2)[:0])
    two = {name: torch.cat([getattr(one, name)] * 2) for name in ("keypoints", "weights", "background", "own")}
    batch = replace(one, images=crops(3), partial=torch.tensor([True, False]), **two)
    made.loss_terms(batch)
    (keypoints,) = learnt
    assert torch.equal(keypoints[0][keypoints[0].isfinite().all(dim=(1, 2))], pose[None]) if filled else keypoints.isnan().all()
    assert keypoints[1].isnan().all()
    assert [torch.equal(seen, batch.images) for seen in made.teacher.seen] == [True] * filled  # type: ignore[union-attr]


def test_the_teacher_sees_the_clean_view_and_chooses(module: PoseTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Tensor] = []
    real = training.fusion_loss

    def fusion_loss(outputs: PoseOutputs, indices: Tensor, scores: Tensor, config: LossConfig) -> Tensor:
        chosen.extend((indices, scores))
        return real(outputs, indices, scores, config)

    monkeypatch.setattr(training, "fusion_loss", fusion_loss)
    module.ways = [0]
    batch = batch_of(crops(1), crops(2))
    terms = module.loss_terms(batch)
    student, teacher = (network.seen for network in (module.model, module.teacher))
    assert len(teacher) == len(student) == 1 and torch.equal(teacher[0], batch.weak)  # type: ignore[arg-type, index]
    assert torch.equal(student[0], torch.cat((batch.images, batch.strong)))  # type: ignore[index]
    indices, scores = select(Equivariant()(batch.weak), module.config.loss, module.typical, module.config.predict.nms)
    assert torch.equal(chosen[0], indices) and torch.allclose(chosen[1], relative_scores(scores, module.confidence))
    (terms["fusion_unlabeled"] + terms["agreement"]).backward()
    assert module.model.gain.grad is not None and module.teacher.gain.grad is None


# --- agreement ----------------------------------------------------------------------------------------------------------------------------


def by_hand(student: PoseOutputs, teacher: PoseOutputs, confidence: float, config: LossConfig) -> float:
    """Number by number."""

    def focal(logits: Tensor, targets: Tensor) -> float:
        total = 0.0
        for x, t in zip(logits.flatten().tolist(), targets.flatten().sigmoid().tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            total += abs(p - t) ** config.gamma * -(t * math.log(p) + (1 - t) * math.log(1 - p))
        return total

    def counted(logits: Tensor) -> float:
        return sum(p for p in logits.flatten().sigmoid().tolist() if p > 0.2)

    total = focal(student.heatmaps, teacher.heatmaps) / max(1, counted(teacher.heatmaps) / (2 * math.pi * config.heatmap_sigma**2))
    total += focal(student.presence, teacher.presence) / max(1, counted(teacher.presence))
    weights, sums = [], [0.0, 0.0]
    for image in range(len(student.presence)):
        for place in range(student.presence.shape[1]):
            weight = min(1.0, teacher.scores[image, place].item() / confidence)
            if weight < config.sure:
                continue
            weights.append(weight)
            gaps = (student.vectors[image, place] - teacher.vectors[image, place]).abs().flatten().tolist()
            smooth = [g * g / 2 / config.vector_beta if g < config.vector_beta else g - config.vector_beta / 2 for g in gaps]
            q, t = student.quality[image, place].item(), teacher.quality[image, place].sigmoid().item()
            sums[0] += weight * sum(smooth) / (len(smooth) / 2)
            sums[1] += weight * (math.log(1 + math.exp(q)) - t * q)
    total += sums[0] / max(1, sum(weights)) * config.vector_weight
    return total + sums[1] / max(1, sum(weights)) * config.quality_weight


@pytest.mark.parametrize("confidence", [0.3, 0.8])
def test_agreement_by_hand(make_outputs: Callable[..., PoseOutputs], confidence: float) -> None:
    config = LossConfig()
    student, teacher = (make_outputs(images=2, height=64, width=64, seed=seed) for seed in (1, 2))
    wanted = by_hand(student, teacher, confidence, config)
    assert agreement(student, teacher, torch.tensor(confidence).double(), config).item() == pytest.approx(wanted, rel=1e-6)


def test_who_agrees_has_nothing_to_learn_from_it(make_outputs: Callable[..., PoseOutputs]) -> None:
    student, teacher = (make_outputs(images=1, height=64, width=64, seed=3) for _ in range(2))
    agreement(student, teacher, torch.tensor(0.3).double(), LossConfig()).backward()
    fields: list[Any] = [student.heatmaps, student.presence, student.quality, student.vectors]
    assert all(field.grad.abs().max() < 1e-9 for field in fields) and teacher.heatmaps.grad is None

"""The fusion loss against a dense float64 rendering of equation 9, value and gradients, and who teaches whom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smp_plugin.config import LossConfig, PredictConfig
from smp_plugin.consistency import background_of, fusion_loss, label_confidence, merge_instances, pseudo_instances, select
from smp_plugin.model import PoseOutputs
from smp_plugin.targets import Instances

NAN = math.nan
TYPICAL = 40.0
CONFIG = LossConfig(fusion="focal")
SPACED = [21, 27, 33, 145, 152]  # finest-level locations of a 96 x 160 image, 20 to a row: 48 px apart and more
SCORES = [0.9, 0.35, 0.6, 0.05, 0.8]


# --- equation 9, drawn out ----------------------------------------------------------------------------------------------------------------


def positions(outputs: PoseOutputs, indices: Tensor) -> Tensor:
    """u of eq. 8, (N, S, K, 2) heatmap cells, one image at a time."""
    stride = outputs.heatmap_stride
    poses = [
        outputs.locations[chosen][:, None] + outputs.strides[chosen][:, None, None] * outputs.vectors[i][chosen]
        for i, chosen in enumerate(indices)
    ]
    return (torch.stack(poses) - (stride - 1) / 2) / stride


def splat(h: int, w: int, position: Tensor) -> Tensor:
    """(h, w) bilinear splat of a unit at ``position`` (x, y), differentiable."""
    tent_x = (1 - (torch.arange(w) - position[0]).abs()).clamp(min=0)
    tent_y = (1 - (torch.arange(h) - position[1]).abs()).clamp(min=0)
    return tent_y[:, None] * tent_x


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """3x3 Gaussian of height 1 by shifts of the map."""
    h, w = maps.shape
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1))
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    parts = [padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] * math.exp(-(dy**2 + dx**2) / (2 * sigma**2)) for dy, dx in shifts]
    return torch.stack(parts).sum(dim=0)


def terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    p = 1 / (1 + torch.exp(-logits))
    return -0.25 * (1 - p) ** 2 * torch.log(p), -0.75 * p**2 * torch.log(1 - p)


def on_map(position: Tensor, h: int, w: int) -> bool:
    x, y = position.tolist()
    return 0 <= x <= w - 1 and 0 <= y <= h - 1


def dense(outputs: PoseOutputs, indices: Tensor, scores: Tensor, config: LossConfig) -> Tensor:
    """Equation 9 as it is written: draw W, then sum W l1 + (1 - W) l0 over all cells."""
    u = positions(outputs, indices)
    n, s, k, _ = u.shape
    h, w = outputs.heatmaps.shape[2:]
    total, norm = outputs.heatmaps.new_zeros(()), 0.0
    for i in range(n):
        for j in range(k):
            drawn = torch.zeros(h, w, dtype=torch.float64)
            for c in range(s):
                if not on_map(u[i, c, j], h, w):
                    continue
                norm += scores[i, c].item()
                if config.fusion == "quality":
                    xs, ys = torch.arange(w) - u[i, c, j, 0], torch.arange(h)[:, None] - u[i, c, j, 1]
                    peak = scores[i, c] * torch.exp(-(xs**2 + ys**2) / (2 * config.heatmap_sigma**2))
                    x, y = u[i, c, j].detach().round().tolist()
                    near = ((torch.arange(w) - x).abs() <= 4) & ((torch.arange(h)[:, None] - y).abs() <= 4)
                    drawn = torch.maximum(drawn, peak * near)
                else:
                    unit = splat(h, w, u[i, c, j].round() if config.fusion == "release" else u[i, c, j])
                    drawn = drawn + scores[i, c] * (blurred(unit, config.heatmap_sigma) if config.fusion_blur else unit)
            logits = outputs.heatmaps[i, j]
            positive, negative = terms(logits)
            if config.fusion == "quality":
                p = 1 / (1 + torch.exp(-logits))
                total = total - ((drawn - p) ** 2 * (drawn * torch.log(p) + (1 - drawn) * torch.log(1 - p))).sum()
            else:
                total = total + (drawn * positive + (1 - drawn) * negative).sum()
    return total / max(1.0, norm)


def scene(make_outputs: Callable[..., PoseOutputs], heatmap_stride: int = 4) -> tuple[PoseOutputs, Tensor, Tensor]:
    """Two images of random outputs, with five candidates each, whose keypoints fall between the cells; some leave the map."""
    outputs = make_outputs(images=2, keypoints=2, heatmap_stride=heatmap_stride, seed=7)
    with torch.no_grad():
        outputs.vectors.mul_(0.6)
        outputs.vectors[0, 21, 1] = torch.tensor([-5.2, 0.1])
        outputs.vectors[1, 152, 0] = torch.tensor([0.3, 9.0])
    return outputs, torch.tensor([SPACED, SPACED]), torch.tensor([SCORES, SCORES[::-1]], dtype=torch.float64)


def gradients(loss: Tensor, outputs: PoseOutputs) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, [outputs.heatmaps, outputs.vectors, outputs.presence, outputs.quality], allow_unused=True)


@pytest.mark.parametrize("fusion", ["focal", "quality"])
@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize("heatmap_stride", [4, 8])
def test_sampling_equals_drawing_in_value_and_gradients(
    make_outputs: Callable[..., PoseOutputs], fusion: Any, blur: bool, heatmap_stride: int
) -> None:
    config = dataclasses.replace(CONFIG, fusion=fusion, fusion_blur=blur)
    outputs, indices, scores = scene(make_outputs, heatmap_stride)
    mine, theirs = fusion_loss(outputs, indices, scores, config), dense(outputs, indices, scores, config)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-10)
    a, b = gradients(mine, outputs), gradients(theirs, outputs)
    for one, other in zip(a[:2], b[:2], strict=True):
        assert one is not None and other is not None and other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fusion", ["focal", "quality"])
def test_gradients_agree_with_finite_differences(make_outputs: Callable[..., PoseOutputs], fusion: Any) -> None:
    config = dataclasses.replace(CONFIG, fusion=fusion)
    outputs, indices, scores = scene(make_outputs)
    _, slopes, *_ = gradients(fusion_loss(outputs, indices, scores, config), outputs)
    assert slopes is not None
    for entry in [(0, 27, 0, 0), (0, 33, 1, 1), (1, 145, 1, 0)]:
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                outputs.vectors[entry] += step
                values.append(fusion_loss(outputs, indices, scores, config).item())
                outputs.vectors[entry] -= step
        assert slopes[entry].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("fusion", ["focal", "quality"])
@pytest.mark.parametrize(("reaches", "wanted"), [("both", (True, True)), ("heatmap", (True, False)), ("vectors", (False, True))])
def test_the_loss_reaches_heatmaps_and_vectors_as_set_and_never_the_scores(
    make_outputs: Callable[..., PoseOutputs], fusion: Any, reaches: Any, wanted: tuple[bool, bool]
) -> None:
    outputs, _, _ = scene(make_outputs)
    indices, scores = select(outputs, CONFIG, TYPICAL, 0.3)
    assert not scores.requires_grad and (scores > 0).sum() >= 4
    values = []
    for setting in (reaches, "both"):
        config = dataclasses.replace(CONFIG, fusion=fusion, fusion_gradient=setting)
        loss = fusion_loss(outputs, indices, scores, config)
        values.append((loss.item(), gradients(loss, outputs)))
    (value, found), (whole, both) = values
    assert value == whole
    for one, other, reached in zip(found[:2], both[:2], wanted, strict=True):
        assert torch.equal(one, other) if reached else one is None or one.abs().max() == 0  # type: ignore[arg-type]
    assert found[2] is None and found[3] is None


@pytest.mark.parametrize("reaches", ["both", "heatmap", "vectors"])
def test_release_labels_one_whole_cell_and_reaches_the_heatmaps_alone(make_outputs: Callable[..., PoseOutputs], reaches: Any) -> None:
    config = dataclasses.replace(CONFIG, fusion="release", fusion_gradient=reaches)
    outputs, indices, scores = scene(make_outputs)
    mine = fusion_loss(outputs, indices, scores, config)
    theirs = dense(outputs, indices, scores, dataclasses.replace(config, fusion_blur=False))
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-10)
    heat, *others = gradients(mine, outputs)
    torch.testing.assert_close(heat, torch.autograd.grad(theirs, outputs.heatmaps)[0], rtol=1e-8, atol=1e-12)
    assert others == [None, None, None]


def test_without_candidates_everything_is_background(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(seed=3)
    with torch.no_grad():
        outputs.presence.fill_(-9.0)
    indices, scores = select(outputs, CONFIG, TYPICAL, 0.3)
    assert scores.abs().max() == 0
    names: list[Any] = ["focal", "release"]
    for fusion in names:
        loss = fusion_loss(outputs, indices, scores, dataclasses.replace(CONFIG, fusion=fusion))
        assert loss.item() == pytest.approx(terms(outputs.heatmaps)[1].sum().item())
        _, vectors, *_ = gradients(loss, outputs)
        assert vectors is None or vectors.abs().max() == 0


def test_keypoints_off_the_map_are_dropped(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(seed=3)
    with torch.no_grad():
        outputs.vectors[0, 33] = torch.tensor([[30.0, 0.0], [0.0, -30.0]])
    indices = torch.tensor([[33]])
    loss = fusion_loss(outputs, indices, torch.tensor([[0.9]], dtype=torch.float64), CONFIG)
    assert loss.item() == pytest.approx(terms(outputs.heatmaps)[1].sum().item())
    _, vectors, *_ = gradients(loss, outputs)
    assert vectors is not None and vectors.abs().max() == 0


# --- the weights that are drawn -----------------------------------------------------------------------------------------------------------


def drawn_weights(outputs: PoseOutputs, indices: Tensor, scores: Tensor, config: LossConfig) -> Tensor:
    """W (N, K, h, w), read from the gradient of the loss: dL/dA = l0' + W (l1' - l0')."""
    config = dataclasses.replace(config, fusion_gradient="heatmap")
    logits = outputs.heatmaps.detach().requires_grad_()
    slopes = [torch.autograd.grad(t.sum(), logits, retain_graph=True)[0] for t in terms(logits)]
    loss, *_ = gradients(fusion_loss(outputs, indices, scores, config), outputs)
    u = positions(outputs, indices)
    h, w = outputs.heatmaps.shape[2:]
    inside = [[on_map(p, h, w) for p in keypoints] for keypoints in u.flatten(0, 1)]
    norm = max(1.0, (scores.flatten()[:, None] * torch.tensor(inside)).sum().item())
    assert loss is not None
    return (loss * norm - slopes[1]) / (slopes[0] - slopes[1])


@given(
    st.lists(st.tuples(st.floats(10, 16), st.floats(10, 16), st.floats(0.05, 1)), min_size=1, max_size=12),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_cell_is_drawn_with_more_than_weight_one(
    make_outputs: Callable[..., PoseOutputs], animals: list[tuple[float, float, float]], blur: bool
) -> None:
    outputs = make_outputs(keypoints=1)
    indices = torch.arange(len(animals))[None]
    with torch.no_grad():
        for i, (x, y, _) in enumerate(animals):
            outputs.vectors[0, i, 0] = (torch.tensor([x, y]) * 4 + 1.5 - outputs.locations[i]) / 8
    scores = torch.tensor([[v for _, _, v in animals]], dtype=torch.float64)
    config = dataclasses.replace(CONFIG, fusion_blur=blur)
    drawn = drawn_weights(outputs, indices, scores, config)[0, 0]
    assert drawn.min() > -1e-9 and drawn.max() <= 1 + 1e-9
    plain = torch.zeros_like(drawn)
    for i, (x, y, v) in enumerate(animals):
        unit = splat(24, 40, positions(outputs, indices)[0, i, 0].detach())
        plain += v * (blurred(unit, config.heatmap_sigma) if blur else unit)
        del x, y
    assert (drawn <= plain + 1e-9).all()
    if plain.max() <= 1:
        torch.testing.assert_close(drawn, plain, rtol=1e-6, atol=1e-8)


# --- what the gradient does ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fusion", "blur"), [("focal", True), ("focal", False), ("quality", True)])
def test_poses_are_drawn_to_a_heatmap_peak_three_cells_away(make_outputs: Callable[..., PoseOutputs], fusion: Any, blur: bool) -> None:
    config = dataclasses.replace(CONFIG, fusion=fusion, fusion_blur=blur, fusion_gradient="vectors")
    index, score = torch.tensor([[50]]), torch.tensor([[0.9]], dtype=torch.float64)
    outputs = make_outputs(keypoints=1)
    peak = torch.tensor([20.3, 11.6], dtype=torch.float64)
    xs, ys = torch.arange(40) - peak[0], torch.arange(24)[:, None] - peak[1]
    with torch.no_grad():
        outputs.heatmaps[0, 0] = (0.9 * torch.exp(-(xs**2 + ys**2) / (2 * 1.25**2)) + 0.01).logit()
    for angle in (0.1, 2.9, 4.4):
        at = peak + 3.0 * torch.tensor([math.cos(angle), math.sin(angle)])
        for step in range(45):  # steps of a tenth of a cell down the slope, then smaller ones
            with torch.no_grad():
                outputs.vectors[0, 50, 0] = (at * 4 + 1.5 - outputs.locations[50]) / 8
            slope = torch.autograd.grad(fusion_loss(outputs, index, score, config), outputs.vectors)[0][0, 50, 0]
            if step == 0:
                towards = (peak - at) / 3.0
                assert -(slope @ towards) > 0.5 * slope.norm() > 0
            at = at - (0.1 if step < 30 else 0.03) * slope / slope.norm()
        assert (at - peak).norm() < 0.6  # bilinear sampling has its extremes at cell centres


@pytest.mark.parametrize("fusion", ["focal", "quality", "release"])
def test_the_heatmap_is_raised_where_a_sure_pose_points_and_lowered_elsewhere(
    make_outputs: Callable[..., PoseOutputs], fusion: Any
) -> None:
    outputs = make_outputs(keypoints=1)
    with torch.no_grad():
        outputs.heatmaps.fill_(-2.0)
    index, score = torch.tensor([[50]]), torch.tensor([[0.9]], dtype=torch.float64)
    loss = fusion_loss(outputs, index, score, dataclasses.replace(CONFIG, fusion=fusion))
    slope = torch.autograd.grad(loss, outputs.heatmaps)[0][0, 0]
    x, y = positions(outputs, index)[0, 0, 0].round().long().tolist()
    assert slope[y, x] < 0
    ys, xs = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    assert (slope[torch.maximum((xs - x).abs(), (ys - y).abs()) > 4] > 0).all()


# --- candidates and pseudo-labels ---------------------------------------------------------------------------------------------------------


def place(outputs: PoseOutputs, location: int, pose: Tensor, score: float, image: int = 0, confirmed: tuple[bool, ...] = ()) -> None:
    """Let a location see a pose with score v; where ``confirmed``, the heatmap does too."""
    root = math.sqrt(score)
    with torch.no_grad():
        outputs.presence[image, location] = outputs.quality[image, location] = math.log(root / (1 - root))
        outputs.vectors[image, location] = (pose - outputs.locations[location]) / outputs.strides[location]
        for k, sure in enumerate(confirmed):
            if sure:
                x, y = ((pose[k] + 0.5) / outputs.heatmap_stride - 0.5).round().long().tolist()
                outputs.heatmaps[image, k, y, x] = 3.0


PAIR = torch.tensor([(0.0, 0.0), (40.0, 12.0)], dtype=torch.float64)


def test_candidates_are_suppressed_where_they_see_the_same_animal(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs()
    place(outputs, 43, PAIR + 30, 0.5)
    place(outputs, 44, PAIR + 35, 0.4)
    place(outputs, 150, PAIR + 50, 0.3)
    indices, scores = select(outputs, CONFIG, TYPICAL, 0.2)
    assert indices[0].tolist() == [43, 44, 150] and scores[0].tolist() == pytest.approx([0.5, 0, 0.3])
    few, _ = select(outputs, dataclasses.replace(CONFIG, max_candidates=1), TYPICAL, 0.2)
    assert few.tolist() == [[43]]


def test_sure_detections_become_animals_doubtful_ones_are_ignored_and_faint_ones_are_nothing(
    make_outputs: Callable[..., PoseOutputs],
) -> None:
    outputs = make_outputs()
    config, confidence = dataclasses.replace(CONFIG, sure=0.6), torch.tensor(0.5, dtype=torch.float64)
    poses = [PAIR + torch.tensor([x, y], dtype=torch.float64) for x, y in ((8, 10), (90, 10), (8, 70), (90, 70))]
    for location, pose, score in zip((22, 33, 182, 193), poses, (0.7, 0.4, 0.2, 0.05), strict=True):
        place(outputs, location, pose, score, confirmed=(True, True))
    found = pseudo_instances(outputs, config, PredictConfig(refine_radius=0.0), TYPICAL, confidence)
    assert found.weights[0].tolist() == pytest.approx([1.0, 0.8, 0.0, 0.0])
    assert (found.keypoints[0, :3] - torch.stack(poses[:3])).abs().max() < 2  # refined to the marked cells
    assert found.keypoints[0, 3].isnan().all()


def test_keypoints_that_the_heatmap_does_not_confirm_are_left_out(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs()
    place(outputs, 22, PAIR + 12, 0.9, confirmed=(True, False))
    place(outputs, 193, PAIR + 72, 0.8, confirmed=(False, False))
    found = pseudo_instances(outputs, CONFIG, PredictConfig(), TYPICAL, torch.tensor(0.9, dtype=torch.float64))
    assert found.keypoints[0].isfinite().all(dim=2).tolist() == [[True, False], [True, True]]
    # Where nothing is confirmed an animal may still be: its keypoints stand, with weight 0, so that nothing is background there.
    assert found.weights[0].tolist() == pytest.approx([1, 0])


def test_confidence_is_the_median_best_score_at_labelled_animals(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs()
    keypoints = torch.stack([PAIR + 10, PAIR + 50, PAIR * NAN, torch.tensor([[100.0, 20], [NAN, NAN]])])[None]
    middles = [(30.0, 16.0), (70.0, 56.0), None, (100.0, 20.0)]
    for middle, score in zip(middles, (0.3, 0.5, 0.0, 0.7), strict=True):
        if middle is not None:
            nearest = (outputs.locations - torch.tensor(middle)).norm(dim=1).argmin().item()
            place(outputs, int(nearest), PAIR, score)
    instances = Instances(keypoints, torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 1, 1))
    assert label_confidence(outputs, instances).item() == pytest.approx(0.5)
    ignored = dataclasses.replace(instances, weights=torch.tensor([[0.0, 0, 1, 1]]))
    assert label_confidence(outputs, ignored).item() == pytest.approx(0.7)
    assert label_confidence(outputs, dataclasses.replace(instances, weights=torch.zeros(1, 4))).isnan()


def test_detections_away_from_the_labels_are_added_and_others_complete_them() -> None:
    missing = torch.full((2, 2), NAN, dtype=torch.float64)
    half = torch.stack((PAIR[0] + 100, missing[0]))
    labels = Instances(torch.stack((PAIR, half, missing))[None], torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 1, 1))
    found = torch.stack((PAIR + 4, PAIR + 98, PAIR + torch.tensor([0.0, 60.0]), missing))[None]
    background = torch.full((1, 1, 1), 0.02)
    merged = merge_instances(labels, Instances(found, torch.tensor([[0.9, 0.8, 0.7, 0.0]]), torch.ones(1, 1, 1)), background, TYPICAL)
    assert torch.equal(merged.keypoints[0, 0], PAIR) and merged.background is background
    assert torch.equal(merged.keypoints[0, 1], torch.stack((PAIR[0] + 100, PAIR[1] + 98)))
    assert merged.keypoints[0, 2].isnan().all()
    assert merged.keypoints[0, 3:].isfinite().flatten(1).all(dim=1).tolist() == [False, False, True, False]
    assert merged.weights[0].tolist() == pytest.approx([1, 1, 0, 0, 0, 0.7, 0])


@pytest.mark.parametrize(("offset", "sure", "counts"), [(98.0, 0.0, 1.0), (98.0, 0.8, 0.0), (80.0, 0.8, 1.0)])
def test_labels_are_completed_only_by_what_is_sure_and_near(offset: float, sure: float, counts: float) -> None:
    half = torch.stack((PAIR[0] + 100, torch.full((2,), NAN, dtype=torch.float64)))[None, None]
    labels = Instances(half, torch.tensor([[counts]]), torch.ones(1, 1, 1))
    merged = merge_instances(
        labels, Instances((PAIR + offset)[None, None], torch.tensor([[sure]]), torch.ones(1, 1, 1)), labels.background, TYPICAL
    )
    assert torch.equal(merged.keypoints[:, :1].nan_to_num(-1), half.nan_to_num(-1))


def test_images_with_complete_labels_are_left_alone() -> None:
    half = torch.stack((PAIR[0], torch.full((2,), NAN, dtype=torch.float64)))[None, None].expand(2, 1, 2, 2)
    labels = Instances(half, torch.ones(2, 1), torch.ones(2, 1, 1))
    found = Instances(torch.stack((PAIR + 2, PAIR + 60))[None].expand(2, 2, 2, 2), torch.ones(2, 2), torch.ones(2, 1, 1))
    merged = merge_instances(labels, found.of_images(torch.tensor([True, False])), labels.background, TYPICAL)
    assert merged.keypoints.isfinite().flatten(2).all(dim=2).tolist() == [[True, False, True], [False, False, False]]
    assert merged.weights.tolist() == [[1, 0, 1], [1, 0, 0]]


def test_a_detection_completes_one_animal_the_nearest() -> None:
    """Two animals with one keypoint each, 6 px apart; two detections, the first nearer to either than the second."""
    halves = torch.full((1, 2, 2, 2), NAN, dtype=torch.float64)
    halves[0, :, 0] = PAIR[0] + torch.tensor([[0.0, 0.0], [6.0, 0.0]])
    labels = Instances(halves, torch.ones(1, 2), torch.ones(1, 1, 1))
    found = torch.stack((PAIR + torch.tensor([2.0, 0.0]), PAIR + torch.tensor([-3.0, 0.0])))[None]
    merged = merge_instances(labels, Instances(found, torch.tensor([[0.7, 0.9]]), torch.ones(1, 1, 1)), labels.background, TYPICAL)
    assert torch.equal(merged.keypoints[0, 0, 1], PAIR[1] + torch.tensor([2.0, 0.0]))
    assert merged.keypoints[0, 1, 1].isnan().all()
    assert merged.weights[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("heatmap_stride", [4, 8])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_background_is_trusted_where_no_level_sees_an_animal(
    make_outputs: Callable[..., PoseOutputs], heatmap_stride: int, stride: int
) -> None:
    outputs = make_outputs(images=2, height=192, width=352, heatmap_stride=heatmap_stride)
    at = outputs.locations - torch.tensor([112.0, 80.0])
    seen = int((at.norm(dim=1) + 1000 * (outputs.strides != stride)).argmin())
    with torch.no_grad():
        outputs.presence[1, seen] = 0.0
    background = background_of(outputs, torch.tensor([0.3, 0.02], dtype=torch.float64), CONFIG)
    assert background.shape == (2, 24, 44)
    assert (background[0] == 1).all()
    x, y = outputs.locations[seen].tolist()
    ys, xs = torch.meshgrid(torch.arange(24) * 8 + 3.5, torch.arange(44) * 8 + 3.5, indexing="ij")
    near = torch.maximum((xs - x).abs(), (ys - y).abs()) < 2.5 * stride
    torch.testing.assert_close(background[1], torch.where(near, 0.02, 1.0).double())

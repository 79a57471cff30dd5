"""Targets against dense renderings and naive loops: where each cell stands, and what counts how much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smp_plugin.config import LossConfig
from smp_plugin.consistency import merge_instances
from smp_plugin.model import PoseOutputs
from smp_plugin.targets import WINDOW, Instances, build_targets, draw_gaussians, extents

NAN = math.nan
TYPICAL = 40.0
CONFIG = LossConfig()


def instances_of(
    animals: list[list[tuple[float, float]]], weights: list[float] | None = None, background: Tensor | None = None
) -> Instances:
    keypoints = torch.tensor([animals], dtype=torch.float64)
    weights_of = torch.tensor([weights or [1.0] * len(animals)], dtype=torch.float64)
    return Instances(keypoints, weights_of, torch.ones(1, 1, 1, dtype=torch.float64) if background is None else background.double())


def grid(outputs: PoseOutputs) -> tuple[Tensor, Tensor]:
    """x and y of the heatmap cells' centres, (h, w) input pixels."""
    h, w = outputs.heatmaps.shape[2:]
    stride = outputs.heatmap_stride
    ys, xs = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    return xs * stride + (stride - 1) / 2, ys * stride + (stride - 1) / 2


ANIMAL = [(60.0, 40.0), (90.0, 46.0), (70.0, 60.0)]  # 30 x 20 px


# --- heatmaps -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heatmap_stride", [4, 8])
def test_gaussian_target_peaks_at_the_exact_place_within_the_cell(make_outputs: Callable[..., PoseOutputs], heatmap_stride: int) -> None:
    outputs = make_outputs(keypoints=3, heatmap_stride=heatmap_stride)
    animals = [ANIMAL, [(64.3, 41.7), (158.9, 0.2), (10.0, 94.0)], [(-3.0, 50.0), (NAN, NAN), (400.0, 50.0)]]
    targets = build_targets(outputs, instances_of(animals), CONFIG, TYPICAL)
    xs, ys = grid(outputs)
    for k in range(3):
        dense = torch.zeros_like(xs)
        for animal in animals:
            x, y = animal[k]
            if not math.isnan(x):
                square = ((xs - x) ** 2 + (ys - y) ** 2) / heatmap_stride**2
                dense = torch.maximum(dense, torch.exp(-square / (2 * CONFIG.heatmap_sigma**2)))
        drawn = targets.heatmaps[0, k]
        clear = dense > 0.007  # what the window cuts off is less
        torch.testing.assert_close(drawn[clear], dense[clear], rtol=1e-12, atol=0)
        assert (drawn <= dense + 1e-12).all()
        assert drawn.max() > 0.5


def test_drawing_is_differentiable_in_the_position() -> None:
    cells = torch.tensor([[[[5.3, 4.1]], [[9.8, 6.4]]]], dtype=torch.float64, requires_grad=True)
    heights = torch.tensor([[0.9, 0.4]], dtype=torch.float64)
    which = torch.ones(1, 2, 1, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda c: draw_gaussians((1, 1, 12, 16), c, which, heights, 1.25).square(), cells)


def test_cell_target_is_one_cell_for_each_keypoint(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    animals = [ANIMAL, [(60.4, 41.0), (NAN, NAN), (70.2, 12.9)]]
    targets = build_targets(outputs, instances_of(animals), dataclasses.replace(CONFIG, heatmap_target="cell"), TYPICAL)
    expected = torch.zeros(3, 24, 40, dtype=torch.float64)
    for animal in animals:
        for k, (x, y) in enumerate(animal):
            if not math.isnan(x):
                expected[k, round((y - 1.5) / 4), round((x - 1.5) / 4)] = 1  # two keypoints in one cell: one positive
    assert torch.equal(targets.heatmaps[0], expected)


def test_around_an_animal_a_missing_keypoint_has_no_negatives_and_everything_else_counts_fully(
    make_outputs: Callable[..., PoseOutputs],
) -> None:
    outputs = make_outputs(keypoints=3)
    animal = [ANIMAL[0], (NAN, NAN), ANIMAL[2]]
    targets = build_targets(outputs, instances_of([animal]), CONFIG, TYPICAL)
    complete = build_targets(outputs, instances_of([ANIMAL]), CONFIG, TYPICAL)
    xs, ys = grid(outputs)
    weight = targets.heatmap_weights[0]
    assert torch.equal(weight[[0, 2]], torch.ones(2, 24, 40, dtype=torch.float64))
    assert targets.heatmaps[0, 1].max() == 0
    away = torch.maximum((xs - 65).abs() - 5, (ys - 50).abs() - 10)  # px from the box of the two known keypoints
    assert (weight[1][away <= 0.25 * TYPICAL] == 0).all()
    assert (weight[1][away > TYPICAL] == 1).all()
    assert set(weight[1].unique().tolist()) == {0.0, 1.0}
    for name in ("heatmaps", "heatmap_weights"):
        assert torch.equal(getattr(targets, name)[:, [0, 2]], getattr(complete, name)[:, [0, 2]])


def test_a_single_keypoint_frees_the_other_channels_for_a_whole_animals_length(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=2)
    targets = build_targets(outputs, instances_of([[(80.0, 48.0), (NAN, NAN)]]), CONFIG, TYPICAL)
    xs, ys = grid(outputs)
    away = torch.maximum((xs - 80).abs(), (ys - 48).abs())
    assert torch.equal(targets.heatmap_weights[0, 1], (away > TYPICAL).double())


def test_an_animal_with_few_of_its_keypoints_may_have_its_centre_anywhere_near(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    x, y = outputs.locations.unbind(dim=1)
    one = build_targets(outputs, instances_of([[ANIMAL[0], (NAN, NAN), (NAN, NAN)]]), CONFIG, TYPICAL)
    away = torch.maximum((x - ANIMAL[0][0]).abs(), (y - ANIMAL[0][1]).abs())
    assert one.presence.sum() > 0
    expected = ((away > TYPICAL) | (one.presence[0] > 0)).double()
    assert torch.equal(one.presence_weights[0].double(), expected)
    two = build_targets(outputs, instances_of([[ANIMAL[0], (NAN, NAN), ANIMAL[2]]]), CONFIG, TYPICAL)
    assert (two.presence_weights == 1).all()


def test_a_keypoint_labelled_beside_an_animal_that_misses_it_still_counts(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=2)
    targets = build_targets(outputs, instances_of([[(80.0, 48.0), (NAN, NAN)], [(85.5, 60.0), (89.5, 49.5)]]), CONFIG, TYPICAL)
    window = targets.heatmap_weights[0, 1, 12 - WINDOW : 13 + WINDOW, 22 - WINDOW : 23 + WINDOW]
    assert window.min() == 1 and targets.heatmaps[0, 1, 12, 22] == 1


def test_an_ignored_animal_teaches_nothing_and_nothing_is_background_around_it(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    targets = build_targets(outputs, instances_of([ANIMAL], [0.0]), CONFIG, TYPICAL)
    assert targets.heatmaps.max() == 0 and targets.presence.max() == 0 and (targets.assigned == -1).all()
    xs, ys = grid(outputs)
    in_box = (xs >= 60) & (xs <= 90) & (ys >= 40) & (ys <= 60)
    far = (xs < 20) | (xs > 130)
    assert (targets.heatmap_weights[0][:, in_box] == 0).all() and (targets.heatmap_weights[0][:, far] == 1).all()
    x, y = outputs.locations.unbind(dim=1)
    in_box = (x >= 60) & (x <= 90) & (y >= 40) & (y <= 60)
    assert in_box.any() and (targets.presence_weights[0, in_box] == 0).all()
    assert (targets.presence_weights[0, (x < 20) | (x > 130)] == 1).all()


def test_around_an_ignored_animal_of_one_keypoint_a_typical_animal_has_room(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=1)
    nose = torch.tensor([60.0, 50.0])
    ignored = Instances(nose.view(1, 1, 1, 2), torch.zeros(1, 1), torch.ones(1, 1, 1))
    targets = build_targets(outputs, ignored, CONFIG, TYPICAL)
    away = (outputs.locations - nose).abs().amax(dim=1)
    assert torch.equal(targets.presence_weights[0] == 0, away <= TYPICAL / 2)
    counted = build_targets(outputs, Instances(nose.view(1, 1, 1, 2), torch.ones(1, 1), torch.ones(1, 1, 1)), CONFIG, TYPICAL)
    assert (targets.presence_weights[counted.presence > 0] == 0).all()


def test_a_doubtful_animal_counts_as_much_as_its_weight(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=3)
    targets = build_targets(outputs, instances_of([ANIMAL], [0.25]), CONFIG, TYPICAL)
    assert (targets.heatmap_weights[targets.heatmaps > 0] == 0.25).all()
    assert (targets.presence_weights[targets.presence > 0] == 0.25).all()
    assert set(targets.heatmap_weights.unique().tolist()) == {0.25, 1.0} and targets.heatmaps.max() > 0.9


def test_where_labels_are_partial_background_counts_little_away_from_the_animals_alone(
    make_outputs: Callable[..., PoseOutputs],
) -> None:
    outputs = make_outputs(keypoints=3)
    targets = build_targets(outputs, instances_of([ANIMAL], background=torch.full((1, 1, 1), 0.02)), CONFIG, TYPICAL)
    assert (targets.heatmap_weights[targets.heatmaps > 0] == 1).all()
    xs, ys = grid(outputs)
    far = (xs < 30) | (xs > 120)
    assert (targets.heatmap_weights[0][:, far] == torch.tensor(0.02).double()).all()
    x, y = outputs.locations.unbind(dim=1)
    in_box = (x >= 60) & (x <= 90) & (y >= 40) & (y <= 60)
    assert (targets.presence_weights[0, in_box] == 1).all()
    free = ~in_box & (targets.presence[0] == 0)
    assert (targets.presence_weights[0, free] == torch.tensor(0.02).double()).all()


@pytest.mark.parametrize("heatmap_stride", [4, 8])
def test_a_background_map_is_read_where_each_cell_lies(make_outputs: Callable[..., PoseOutputs], heatmap_stride: int) -> None:
    outputs = make_outputs(images=2, height=64, width=160, heatmap_stride=heatmap_stride)
    background = torch.rand(2, 8, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # cells of 8 px
    nobody = Instances(torch.full((2, 1, 2, 2), NAN, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64), background)
    targets = build_targets(outputs, nobody, CONFIG, TYPICAL)
    for place, (x, y) in enumerate(outputs.locations.tolist()):
        assert targets.presence_weights[1, place] == background[1, int((y + 0.5) // 8), int((x + 0.5) // 8)]
    xs, ys = grid(outputs)
    assert torch.equal(targets.heatmap_weights[1, 0], background[1, ((ys + 0.5) // 8).long(), ((xs + 0.5) // 8).long()])


# --- locations ----------------------------------------------------------------------------------------------------------------------------


def naive_assignment(outputs: PoseOutputs, animals: list[list[tuple[float, float]]], radius: float) -> list[int]:
    """The rule of the method, one location at a time."""
    boxes = []
    for animal in animals:
        known = [(x, y) for x, y in animal if not math.isnan(x)]
        xs, ys = [p[0] for p in known], [p[1] for p in known]
        side = max(max(xs) - min(xs), max(ys) - min(ys))
        length = side if len(known) == len(animal) and side > 0 else max(side, TYPICAL)
        stride = min(8 if length / 2 <= 64 else 16 if length / 2 <= 128 else 32, outputs.level_strides[-1])
        boxes.append(((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, stride))
    places = list(zip(outputs.locations.tolist(), outputs.strides.tolist(), strict=True))
    nearest = []
    for cx, cy, stride in boxes:
        distances = [math.dist((cx, cy), c) if s == stride else math.inf for c, s in places]
        nearest.append(distances.index(min(distances)))
    assigned = []
    for place, ((x, y), stride) in enumerate(places):
        best, who = math.inf, -1
        for m, (cx, cy, level) in enumerate(boxes):
            distance = math.dist((x, y), (cx, cy)) / stride
            if level == stride and (distance <= radius or nearest[m] == place) and distance < best:
                best, who = distance, m
        assigned.append(who)
    return assigned


@given(
    st.lists(
        st.tuples(st.floats(5, 315), st.floats(5, 251), st.floats(1, 2000), st.floats(0.1, 1), st.booleans(), st.booleans()),
        min_size=1,
        max_size=4,
        unique_by=lambda a: (round(a[0] / 16), round(a[1] / 16)),
    ),
    st.sampled_from([(8, 16), (8, 16, 32)]),
)
@settings(max_examples=60, deadline=None)
def test_locations_belong_to_the_nearest_animal_of_their_level(
    make_outputs: Callable[..., PoseOutputs], animals: list[tuple[float, float, float, float, bool, bool]], strides: tuple[int, ...]
) -> None:
    points = []
    for x, y, length, aspect, upright, single in animals:
        dx, dy = (length * aspect / 2, length / 2) if upright else (length / 2, length * aspect / 2)
        points.append([(x, y), (NAN, NAN), (NAN, NAN)] if single else [(x - dx, y - dy), (x, y), (x + dx, y + dy)])
    outputs = make_outputs(height=256, width=320, keypoints=3, level_strides=strides)
    targets = build_targets(outputs, instances_of(points), CONFIG, TYPICAL)
    assert targets.assigned[0].tolist() == naive_assignment(outputs, points, CONFIG.center_radius)
    assert torch.equal(targets.presence[0], (targets.assigned[0] >= 0).double())


@given(st.floats(0, 319), st.floats(0, 255), st.floats(0, 2000), st.floats(0, 1), st.sampled_from([0.1, 1.5]))
@settings(max_examples=60, deadline=None)
def test_an_animal_of_any_size_gets_a_location_that_knows_it(
    make_outputs: Callable[..., PoseOutputs], x: float, y: float, length: float, aspect: float, radius: float
) -> None:
    outputs = make_outputs(height=256, width=320)
    animal = [(x - length / 2, y - length * aspect / 2), (x + length / 2, y + length * aspect / 2)]
    for animals in ([animal], [[animal[0], (NAN, NAN)]] if min(animal[0]) >= 0 else []):
        if animals:
            config = dataclasses.replace(CONFIG, center_radius=radius)
            targets = build_targets(outputs, instances_of([list(a) for a in animals]), config, TYPICAL)
            chosen = targets.presence[0] > 0
            assert chosen.any() and targets.presence_weights[0, chosen].min() == 1
            box = [p for p in animals[0] if not math.isnan(p[0])]
            centre = torch.tensor([sum(p[0] for p in box), sum(p[1] for p in box)]) / len(box)
            gaps = (outputs.locations[chosen] - centre).norm(dim=1) / outputs.strides[chosen]
            assert gaps.max() <= max(radius, math.sqrt(0.5) + 1e-6)


def test_a_model_of_one_keypoint_gets_locations_too(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs(keypoints=1)
    targets = build_targets(outputs, instances_of([[(50.0, 50.0)]]), CONFIG, TYPICAL)
    assert (targets.presence > 0).sum() >= 4 and outputs.strides[targets.presence[0] > 0].unique().tolist() == [8.0]


def test_images_do_not_share_their_animals(make_outputs: Callable[..., PoseOutputs]) -> None:
    keypoints = torch.tensor([[ANIMAL, [(NAN, NAN)] * 3], [[(x + 40, y) for x, y in ANIMAL], ANIMAL]], dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    background = torch.tensor([1.0, 0.02], dtype=torch.float64).view(2, 1, 1)
    both = build_targets(make_outputs(images=2, keypoints=3), Instances(keypoints, weights, background), CONFIG, TYPICAL)
    for i in range(2):
        one = Instances(keypoints[i : i + 1], weights[i : i + 1], background[i : i + 1])
        alone = build_targets(make_outputs(keypoints=3), one, CONFIG, TYPICAL)
        for name in ("heatmaps", "heatmap_weights", "presence", "presence_weights", "assigned"):
            assert torch.equal(getattr(both, name)[i], getattr(alone, name)[0]), name


# --- sizes --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "box", "length", "area"),
    [
        ([(0, 0), (60, 20)], (0, 0, 60, 20), 60, 1200),
        ([(0, 5), (60, 5)], (0, 5, 60, 5), 60, 360),  # along an axis: a tenth of the length squared
        ([(8, 9), (NAN, NAN)], (8, 9, 8, 9), TYPICAL, 160),  # one keypoint: as long as the typical animal
        ([(8, 9), (8, 9)], (8, 9, 8, 9), TYPICAL, 160),
        ([(0, 0), (100, 10), (NAN, NAN)], (0, 0, 100, 10), 100, 1000),
    ],
)
def test_extents_of_an_animal(points: list[tuple[float, float]], box: tuple[float, ...], length: float, area: float) -> None:
    boxes, lengths, areas = extents(torch.tensor(points, dtype=torch.float64), TYPICAL)
    assert boxes.tolist() == list(box) and lengths.item() == length and areas.item() == pytest.approx(area)


def test_completeness_is_judged_by_the_projects_own_keypoints(make_outputs: Callable[..., PoseOutputs]) -> None:
    """A small species of three keypoints beside one of three others is told from background as if it were alone."""
    alone = instances_of([ANIMAL])
    beside = instances_of([[*ANIMAL, *[(NAN, NAN)] * 3]])
    beside.own = torch.tensor([[True] * 3 + [False] * 3])
    length, typical = 30.0, 120.0
    assert extents(beside.keypoints, typical, beside.own)[1].item() == extents(alone.keypoints, typical)[1].item() == length
    expected = build_targets(make_outputs(keypoints=3), alone, CONFIG, typical)
    targets = build_targets(make_outputs(keypoints=6), beside, CONFIG, typical)
    for name in ("presence", "presence_weights", "assigned"):
        assert torch.equal(getattr(targets, name), getattr(expected, name)), name
    assert torch.equal(targets.heatmap_weights[:, :3], expected.heatmap_weights)
    assert targets.heatmap_weights[:, 3:].amin() == 0, "what its project does not have may be there"
    merged = merge_instances(beside, dataclasses.replace(beside, own=None), beside.background, typical)
    assert merged.own is beside.own is beside.of_images(torch.tensor([True])).own


def test_with_keypoint_anchors_a_complete_animal_is_also_found_at_its_keypoints(make_outputs: Callable[..., PoseOutputs]) -> None:
    outputs = make_outputs()
    keypoints = torch.tensor([[20.0, 40.0], [100.0, 40.0]], dtype=outputs.locations.dtype)[None, None]
    instances = Instances(keypoints, torch.ones(1, 1), torch.ones(1, 1, 1))
    for anchored in (False, True):
        config = dataclasses.replace(LossConfig(), keypoint_anchors=anchored)
        assigned = build_targets(outputs, instances, config, 80.0).assigned[0]
        for x in (20.0, 100.0):
            near = (outputs.locations - torch.tensor([x, 40.0])).square().sum(dim=1).argmin()
            assert (int(assigned[near]) == 0) is anchored
        middle = (outputs.locations - torch.tensor([60.0, 40.0])).square().sum(dim=1).argmin()
        assert int(assigned[middle]) == 0

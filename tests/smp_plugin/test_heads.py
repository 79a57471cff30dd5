"""KPAlign against torchvision's deformable convolution, and the mapping between cells of two levels against coordinates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from smp_plugin.heads import PRIOR, HeatmapHead, PresenceHead, VectorHead, locations, sample_keypoints

STRIDES = (8, 16, 32)


def deformed(source: Tensor, cells: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 deformable convolution of ``source`` (N, C, h, w) sampled at ``cells`` (N, P, 2: x, y) -> (N, P, C'), P at most h*w."""
    n, _, h, w = source.shape
    count = cells.shape[1]
    padded = torch.cat((cells, cells.new_zeros(n, h * w - count, 2)), dim=1)
    grid = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), dim=-1).view(h * w, 2)
    offset = (padded - grid).flip(-1).transpose(1, 2).reshape(n, 2, h, w)  # deform_conv2d wants (y, x)
    return deform_conv2d(source, offset, weight, bias).flatten(2).transpose(1, 2)[:, :count]


def assert_same_gradients(mine: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    weights = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5))
    mine_by_leaf = torch.autograd.grad((mine * weights).sum(), leaves, retain_graph=True)
    theirs_by_leaf = torch.autograd.grad((theirs * weights).sum(), leaves, retain_graph=True)
    for a, b in zip(mine_by_leaf, theirs_by_leaf, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a.abs().max() > 0


@pytest.mark.parametrize("keypoints", [1, 3])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_sampling_after_the_convolution_equals_deformable_convolution(keypoints: int, stride: int) -> None:
    torch.manual_seed(keypoints)
    conv = torch.nn.Conv2d(6, 2 * keypoints, 1)
    features = torch.randn(2, 6, 7, 9, requires_grad=True)
    cells = torch.rand(2, 40, keypoints, 2) * torch.tensor([8.0, 6.0])  # between the outermost cell centres
    points = (cells * stride + (stride - 1) / 2).requires_grad_()
    mine = sample_keypoints(conv(features), points, stride)
    at = (points - (stride - 1) / 2) / stride
    assert conv.bias is not None
    theirs = torch.stack(
        [deformed(features, at[:, :, k], conv.weight[2 * k : 2 * k + 2], conv.bias[2 * k : 2 * k + 2]) for k in range(keypoints)],
        dim=2,
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert_same_gradients(mine, theirs, [features, points, conv.weight, conv.bias])


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_map_of_its_own_coordinates_sampled_at_a_point_returns_the_point(stride: int) -> None:
    h, w = 6, 10
    xy = locations(h, w, stride, torch.device("cpu")).view(h, w, 2).permute(2, 0, 1)
    maps = torch.cat((xy, xy + 1000))[None].expand(2, -1, -1, -1)  # keypoint 1 is told apart by 1000
    inner = torch.tensor([w - 1.0, h - 1.0]) * stride
    points = torch.rand(2, 30, 2, 2, generator=torch.Generator().manual_seed(0)) * inner + (stride - 1) / 2
    sampled = sample_keypoints(maps, points, stride)
    torch.testing.assert_close(sampled[:, :, 0], points[:, :, 0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sampled[:, :, 1], points[:, :, 1] + 1000, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("fine", "coarse"), [(4, 8), (8, 16), (16, 32), (8, 8)])
def test_a_cell_lies_at_half_the_ratio_less_half_a_cell_of_the_finer_level(fine: int, coarse: int) -> None:
    ratio = coarse / fine
    h, w = 12, 12
    columns = torch.arange(w, dtype=torch.float32).expand(2, h, w)[None]
    points = locations(3, 3, coarse, torch.device("cpu"))[None, :, None]
    sampled = sample_keypoints(columns, points, fine)[0, :3, 0, 0]
    torch.testing.assert_close(sampled, torch.arange(3) * ratio + ratio / 2 - 0.5)


def test_points_off_the_map_take_the_border_value() -> None:
    maps = torch.arange(12, dtype=torch.float32).view(1, 1, 3, 4).expand(1, 2, 3, 4)
    points = torch.tensor([[-50.0, -50.0], [500.0, -50.0], [500.0, 500.0]]).view(1, 3, 1, 2)
    assert sample_keypoints(maps, points, 8)[0, :, 0, 0].tolist() == [0.0, 3.0, 11.0]


def head_and_levels(keypoints: int, groups: int, kpalign: bool, fine_stride: int) -> tuple[VectorHead, list[Tensor], Tensor]:
    torch.manual_seed(3)
    head = VectorHead(16, 12, 1, keypoints, groups, kpalign, STRIDES)
    with torch.no_grad():
        head.scales.copy_(torch.tensor([0.6, 0.9, 1.2]))
        for name, parameter in head.named_parameters():
            if name.startswith(("locator", "predictor", "fine_predictor")):
                parameter.normal_(std=0.05)
    levels = [torch.randn(2, 16, 64 // s, 96 // s, requires_grad=True) for s in STRIDES]
    fine = torch.randn(2, 12, 64 // fine_stride, 96 // fine_stride, requires_grad=True)
    return head, levels, fine


@pytest.mark.parametrize(
    ("keypoints", "groups", "group_of"), [(3, 0, [0, 1, 2]), (3, 1, [0, 0, 0]), (5, 2, [0, 0, 0, 1, 1]), (1, 0, [0]), (2, 9, [0, 1])]
)
@pytest.mark.parametrize("fine_stride", [4, 8])
def test_vectors_are_coarse_plus_deformable_residual(keypoints: int, groups: int, group_of: list[int], fine_stride: int) -> None:
    head, levels, fine = head_and_levels(keypoints, groups, True, fine_stride)
    _, vectors = head(levels, fine, fine_stride)
    towers = [head.tower(level) for level in levels]
    sources = [(fine, fine_stride, head.fine_predictor), (towers[0], 8, head.predictor), (towers[1], 16, head.predictor)]
    for index, (source, source_stride, conv) in enumerate(sources):
        n, _, h, w = towers[index].shape
        coarse = head.scales[index] * head.locator(towers[index])  # N, 2 G, h, w
        expected, interior = [], []
        for k, group in enumerate(group_of):
            vector = coarse[:, 2 * group : 2 * group + 2].flatten(2).transpose(1, 2)  # N, h*w, 2
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            centre = torch.stack((xs, ys), dim=-1).view(-1, 2) * STRIDES[index] + (STRIDES[index] - 1) / 2
            cells = (centre + STRIDES[index] * vector - (source_stride - 1) / 2) / source_stride
            assert conv.bias is not None
            residual = deformed(source, cells, conv.weight[2 * k : 2 * k + 2], conv.bias[2 * k : 2 * k + 2])
            expected.append(vector + residual)
            interior.append(((cells >= 0) & (cells <= torch.tensor([source.shape[3] - 1, source.shape[2] - 1]))).all(dim=-1))
        inside = torch.stack(interior, dim=2)  # elsewhere torchvision pads with zeros, and we take the border
        assert inside.float().mean() > 0.3
        mine, theirs = vectors[index][inside], torch.stack(expected, dim=2)[inside]
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        leaves = [levels[index], head.locator.weight, conv.weight, fine if index == 0 else levels[index - 1]]
        assert_same_gradients(mine, theirs, leaves)


def test_without_kpalign_vectors_are_the_locators_alone() -> None:
    head, levels, fine = head_and_levels(3, 1, False, 4)
    assert not hasattr(head, "predictor")
    _, vectors = head(levels, fine, 4)
    for index, level in enumerate(levels):
        expected = head.scales[index] * head.locator(head.tower(level))
        torch.testing.assert_close(vectors[index], expected.flatten(2).transpose(1, 2).unflatten(2, (3, 2)))


@pytest.mark.parametrize("stride", [4, 8])
def test_heatmaps_and_presence_start_near_the_prior(stride: int) -> None:
    torch.manual_seed(0)
    fine = torch.randn(1, 12, 32, 24)
    p3 = torch.randn(1, 16, 16, 12)
    logits, features = HeatmapHead(12, 16, 8, 3, stride)(fine, p3)
    assert logits.shape == (1, 3, 64 // (stride // 2), 48 // (stride // 2)) and features.shape[2:] == logits.shape[2:]
    for p in (torch.sigmoid(logits), torch.sigmoid(PresenceHead(16, 2)(p3))):
        assert abs(p.mean().item() - PRIOR) < 0.005

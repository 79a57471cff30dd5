"""Our normalisation layers against PyTorch's and torchvision's."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FrozenBatchNorm2d

from smp_plugin.backbone import Backbone
from smp_plugin.normalization import FrozenNorm, GroupNorm, fold


def gradients(norm: torch.nn.GroupNorm, images: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return list(torch.autograd.grad(norm(images), (images, norm.weight, norm.bias), grad))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (96, 32), (6, 1), (8, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("size", [(9, 7), (33, 32), (1, 4)])  # small maps are computed by us, large ones by PyTorch
def test_values_and_gradients_are_those_of_group_norm(size, channels, groups, dtype, tolerance, memory_format):
    torch.manual_seed(0)
    # Means that differ from channel to channel and image to image, and are larger than the deviation.
    offset = 2 * torch.randn(3, channels, 1, 1)
    images = (torch.randn(3, channels, *size) + offset).to(dtype).contiguous(memory_format=memory_format)
    grad = torch.randn(3, channels, *size).to(dtype).contiguous(memory_format=memory_format)
    norm = GroupNorm(groups, channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    reference = torch.nn.GroupNorm(groups, channels).double()
    reference.load_state_dict(norm.state_dict())
    values = F.group_norm(images.double(), groups, reference.weight, reference.bias)
    want = [values, *gradients(reference, images.double(), grad.double())]
    for got, wanted in zip([norm(images), *gradients(norm, images, grad)], want, strict=True):
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max() + 1e-12


def test_without_gradient_the_values_are_the_same():
    norm, images = GroupNorm(4, 8), torch.randn(2, 8, 5, 6)
    with torch.inference_mode():
        still = norm(images)
    assert torch.equal(norm(images).detach(), still)


def test_a_second_derivative_is_refused_and_not_wrong():
    norm, images = GroupNorm(4, 8), torch.randn(2, 8, 5, 6, requires_grad=True)
    first = torch.autograd.grad(norm(images).square().sum(), images, create_graph=True)[0]
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), images)


def with_statistics(module: torch.nn.Module) -> torch.nn.Module:
    """Frozen norms as of a trained network, which the fresh ones, that change nothing, are not."""
    for part in module.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_()
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module


def test_frozen_norm_is_torchvisions_in_the_precision_it_is_given():
    norm = with_statistics(FrozenNorm(8))
    reference = FrozenBatchNorm2d(8)
    reference.load_state_dict(norm.state_dict())
    images = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(norm(images), reference(images))
    half = norm(images.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), reference(images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folded_the_backbone_is_the_same_function(name: str):
    torch.manual_seed(0)
    backbone = with_statistics(Backbone(name, "frozen")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images)
        after = fold(backbone)(images)
    assert not any(isinstance(part, FrozenBatchNorm2d) for part in backbone.modules())
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))

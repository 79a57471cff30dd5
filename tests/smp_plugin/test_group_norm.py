"""The gradient of group normalisation against PyTorch's own, in double precision."""

import pytest
import torch
import torch.nn.functional as F

from smp_plugin.group_norm import GroupNorm


def gradients(norm: torch.nn.GroupNorm, images: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return list(torch.autograd.grad(norm(images), (images, norm.weight, norm.bias), grad))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (96, 32), (6, 1), (8, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_group_norm(channels, groups, dtype, tolerance, memory_format):
    torch.manual_seed(0)
    # Means that differ from channel to channel and image to image, and are larger than the deviation.
    offset = 2 * torch.randn(3, channels, 1, 1)
    images = (torch.randn(3, channels, 9, 7) + offset).to(dtype).contiguous(memory_format=memory_format)
    grad = torch.randn(3, channels, 9, 7).to(dtype).contiguous(memory_format=memory_format)
    norm = GroupNorm(groups, channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    reference = torch.nn.GroupNorm(groups, channels).double()
    reference.load_state_dict(norm.state_dict())
    want = gradients(reference, images.double(), grad.double())
    for got, wanted in zip(gradients(norm, images, grad), want, strict=True):
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert torch.equal(norm(images), F.group_norm(images, groups, norm.weight, norm.bias))


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

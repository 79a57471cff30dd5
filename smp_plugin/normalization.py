"""Group norm and frozen batch norm that cost little in bf16 and for images stored channels-last, as all are here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm``; same values, parameters and gradients.

    In groups of less than 16 channels, PyTorch's CPU kernels for channels-last images in bf16 are slow: for the gradient, and for values of
    maps below 1024 cells (``benchmarks/results/group_norm.json``).
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu":
            arguments = images, self.weight, self.bias, self.num_groups, self.eps
            result: Tensor = _GroupNorm.apply(*arguments) if torch.is_grad_enabled() else _normalised(*arguments)[0]
            return result
        # Not torch.nn's own forward, which refuses a map of one cell whose groups are single channels. On a GPU, autocast would compute it,
        # and keep all that follows up to the next convolution, in single precision; its kernels want parameters as precise as the images.
        weight, bias = self.weight.to(images.dtype), self.bias.to(images.dtype)
        with torch.autocast(images.device.type, enabled=False):
            return torch.group_norm(images, self.num_groups, weight, bias, self.eps)


def _normalised(images: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, C, H, W) normalised, and each group's mean and inverse deviation (N, groups)."""
    n, c, h, w = images.shape
    if h * w >= 1024 or c // groups >= 16:
        return torch.native_group_norm(images, weight, bias, n, c, h * w, groups, eps)
    x = images.to(torch.promote_types(images.dtype, torch.float32))

    def of_group(per_channel: Tensor) -> Tensor:
        return per_channel.view(n, groups, c // groups).mean(dim=2)

    def per_channel(of_group: Tensor) -> Tensor:
        return of_group.repeat_interleave(c // groups, dim=1)

    mean = of_group(x.mean(dim=(2, 3)))
    x = x - per_channel(mean)[..., None, None]
    inverse = (of_group(x.square().mean(dim=(2, 3))) + eps).rsqrt()
    scale = weight * per_channel(inverse)
    return torch.addcmul(bias[:, None, None], x, scale[..., None, None]).to(images.dtype), mean, inverse


class _GroupNorm(torch.autograd.Function):
    """With r the inverse deviation, m the number of values in a group, and sums over a group,

        dx = r gamma dy - r^3 (x - mean) sum(gamma dy (x - mean)) / m - r sum(gamma dy) / m,

    which is one factor for dy, one for x and a constant, each per image and channel (Wu and He 2018, arXiv 1803.08494, eq. 1, derived).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        result, mean, inverse = _normalised(images, weight, bias, groups, eps)
        ctx.save_for_backward(images, weight, mean, inverse)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse = ctx.saved_tensors
        n, c, h, w = images.shape
        groups, size = mean.shape[1], c // mean.shape[1]
        gamma, mean, inverse = weight.float().view(1, groups, size), mean.float()[..., None], inverse.float()[..., None]  # n, groups, 1
        x, dy = images.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # n, h, w, c
        # Rows are summed in the images' precision and rows' sums in single: `dtype` on the whole would copy it.
        dy_sum = dy.sum(dim=2).sum(dim=1, dtype=torch.float32).view(n, groups, size)
        dy_x_sum = (dy * x).sum(dim=2).sum(dim=1, dtype=torch.float32).view(n, groups, size)
        centred = dy_x_sum - mean * dy_sum  # sum of dy (x - mean) over the pixels
        slope = (gamma * centred).sum(dim=2, keepdim=True) * inverse**3 / (size * h * w)
        constant = slope * mean - (gamma * dy_sum).sum(dim=2, keepdim=True) * inverse / (size * h * w)

        def per_channel(factor: Tensor) -> Tensor:
            return factor.expand(n, groups, size).reshape(n, 1, 1, c).to(x.dtype)

        dx = torch.addcmul(per_channel(constant), dy, per_channel(gamma * inverse)).addcmul_(x, per_channel(-slope))
        dweight, dbias = (centred * inverse).sum(dim=0).view(c), dy_sum.sum(dim=0).view(c)
        return dx.permute(0, 3, 1, 2), dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's, in the images' own precision: theirs makes single precision of half, and with it of all that follows."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


def fold(module: nn.Module) -> nn.Module:
    """Put every frozen norm into the convolution before it, in place: the same function, for prediction. Returns ``module``."""
    before: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, FrozenBatchNorm2d) and isinstance(before, nn.Conv2d):
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight, before.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias
            )
            setattr(module, name, nn.Identity())
        before = fold(child)
    return module

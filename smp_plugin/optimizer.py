"""Muon for convolution kernels, AdamW for everything else: from scratch, far more is learnt in the same steps.

On honeybee with 25 labels, 600 steps end at AP .896 (s2 = 1) and .720 (.1), those of AdamW at .851 and .634, one run each:
`benchmarks/results/honeybee_optimizer.json`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smp_plugin.config import TrainConfig
from smp_plugin.heads import LAST_LAYERS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration: steepest at zero (Jordan et al. 2024)
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2  # of an update before the learning rate, as AdamW's is in practice: one learning rate serves both (arXiv 2502.16982, eq. 4)
LARGEST = 256  # output channels; wider kernels are few, and orthogonalising them would take as long as the rest of a step on a CPU
SMALLEST = 32  # a map to a few outputs has no directions to even out


def is_kernel(parameter: Tensor) -> bool:
    """Does Muon change it? Kernels of inner convolutions; never what sees pixels, nor biases, normalisation and last layers."""
    return parameter.ndim == 4 and SMALLEST <= parameter.shape[0] <= LARGEST and parameter.shape[1] > 3


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices: singular values of ``matrices`` (..., R, C) moved to about 1, between .7 and 1.2.

    The Newton-Schulz iteration of Muon (Jordan et al. 2024), carried out on the smaller Gram matrix, which kernels with many more columns
    than rows make several times cheaper; the same polynomial of the same matrix.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    gram = wide @ wide.mT
    identity = torch.eye(gram.shape[-1], device=gram.device)
    product = identity
    for _ in range(ITERATIONS):
        factor = a * identity + b * gram + c * (gram @ gram)
        product, gram = factor @ product, factor @ gram @ factor
    wide = product @ wide
    return wide.mT if tall else wide


class Muon(torch.optim.AdamW):
    """AdamW, but parameter groups with ``kernels=True`` take orthogonalised Nesterov momentum.

    Each kernel (O, I, h, w) is a matrix (O, I h w). torch.optim.Muon takes matrices only, and needs another optimiser for the rest.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **options: Any) -> None:
        super().__init__([{"kernels": False, **group} for group in groups], lr=lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["kernels"]:
                self._step_kernels(group)
        try:
            self.param_groups = [g for g in groups if not g["kernels"]]
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _step_kernels(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for kernel in group["params"]:
            if kernel.grad is None:
                continue
            state = self.state[kernel]
            if not state:
                state["step"] = torch.zeros(())  # AdamW looks for it wherever there is a state
                state["momentum"] = torch.zeros_like(kernel)
            state["step"] += 1
            alike[kernel.shape].append((kernel, kernel.grad, state["momentum"]))
        for shape, members in alike.items():  # one by one, they would be thousands of small tasks for a GPU
            kernels, gradients, momenta = map(list, zip(*members, strict=True))
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = torch.stack(gradients).lerp(torch.stack(momenta), MOMENTUM).flatten(2).float()
            scale = RMS * max(updates.shape[1:]) ** 0.5  # an orthogonal (R, C) matrix has a root mean square of max(R, C)^-1/2
            changes = orthogonalized(updates).view(-1, *shape).unbind()
            torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(kernels, changes, alpha=-group["lr"] * scale)


def make_optimizer(network: nn.Module, settings: TrainConfig, fused: bool) -> torch.optim.Optimizer:
    """The optimiser that ``settings`` ask for; the ``factor`` of a group of parameters multiplies the learning rate."""
    # By what parameters are, not by rates that may be equal: resumed with others, the run has the same groups.
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        kernel = settings.optimizer == "muon" and is_kernel(parameter) and name.split(".")[-2] not in LAST_LAYERS
        groups[(name.startswith("backbone."), parameter.ndim > 1, kernel)].append(parameter)
    factor, decay = settings.backbone_lr or 1.0, settings.weight_decay  # no decay of biases and normalisation
    options = [
        {"params": p, "factor": factor if backbone else 1.0, "weight_decay": decay if wide else 0.0, "kernels": kernel}
        for (backbone, wide, kernel), p in groups.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(options, lr=settings.lr, momentum=0.9)
    return Muon(options, lr=settings.lr, betas=(0.9, 0.99), fused=fused)


def go_on_with(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of a stopped run, but keep the rates and decay that are asked for now, and how this device computes a step."""
    kept = {"factor", "weight_decay", "fused", "foreach"}
    asked = [{name: group[name] for name in kept & {*group}} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, asked, strict=True):
        group.update(values)

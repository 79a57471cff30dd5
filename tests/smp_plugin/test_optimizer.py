"""Muon against torch's own on matrices, AdamW on the rest, and the state that a resumed run needs."""

import copy

import pytest
import torch
from torch import nn

from smp_plugin.optimizer import Muon, go_on_with, is_kernel, orthogonalized


@pytest.mark.parametrize("shape", [(32, 32), (48, 432), (96, 64)])
def test_orthogonalized_keeps_directions_and_evens_out_their_lengths(shape: tuple[int, int]):
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, min(shape)))[0] for n in shape)
    matrix = left @ torch.diag(torch.logspace(-1, 1, min(shape))) @ right.T  # lengths from 1 to 100
    found = left.T @ orthogonalized(matrix) @ right
    lengths = found.diagonal()
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    assert (found - torch.diag(lengths)).abs().max() < 1e-3
    assert torch.equal(orthogonalized(torch.zeros(shape)), torch.zeros(shape))


def test_a_step_is_that_of_torch_on_matrices():
    torch.manual_seed(0)
    kernel, matrix = nn.Parameter(torch.randn(40, 64, 1, 1)), nn.Parameter(torch.empty(40, 64))
    with torch.no_grad():
        matrix.copy_(kernel.flatten(1))
    start = matrix.detach().clone()
    ours = Muon([{"params": [kernel], "kernels": True, "weight_decay": 0.1}], lr=0.01)
    theirs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(40, 64)
        kernel.grad, matrix.grad = gradient.view(kernel.shape), gradient
        ours.step()
        theirs.step()
    moved = (matrix - start).norm()
    assert (kernel.flatten(1) - matrix).norm() < 0.02 * moved  # torch iterates in bfloat16


def test_kernels_of_one_shape_move_as_if_alone():
    """They are computed together; gradients differ by orders of magnitude, and one kernel has none at first."""
    torch.manual_seed(0)
    start = [torch.randn(48, 40, 3, 3).to(memory_format=torch.channels_last) for _ in range(3)] + [torch.randn(64, 32, 1, 1)]
    together, alone = ([nn.Parameter(k.clone()) for k in start] for _ in range(2))
    group = {"kernels": True, "weight_decay": 0.1}
    optimizers = [Muon([{"params": together, **group}], lr=0.01), *(Muon([{"params": [k], **group}], lr=0.01) for k in alone)]
    for step in range(3):
        for number, (a, b) in enumerate(zip(together, alone, strict=True)):
            a.grad = b.grad = None if step == 0 and number == 1 else torch.randn_like(a) * 10.0 ** (3 * number)
        for optimizer in optimizers:
            optimizer.step()
    for a, b, k in zip(together, alone, start, strict=True):
        assert torch.allclose(a, b, atol=1e-6) and a.stride() == k.stride() and not torch.allclose(a, k, atol=1e-3)


def test_what_is_no_kernel_takes_adamw_steps():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3, 4))]
    copies = [nn.Parameter(w.detach().clone()) for w in weights]
    kernel = nn.Parameter(torch.randn(32, 8, 3, 3))
    ours = Muon([{"params": [kernel], "kernels": True}, {"params": weights}], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    theirs = torch.optim.AdamW(copies, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    before = kernel.detach().clone()
    for _ in range(3):
        for ours_w, theirs_w in zip(weights, copies, strict=True):
            ours_w.grad = theirs_w.grad = torch.randn_like(theirs_w)
        ours.step()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
    assert torch.equal(kernel, before)  # no gradient, no step, no decay
    assert len(ours.param_groups) == 2


def test_state_goes_on_where_it_was_saved():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 32, 3), nn.Conv2d(32, 32, 3))

    def make(network: nn.Module) -> Muon:
        kernels = [p for p in network.parameters() if is_kernel(p)]
        rest = [p for p in network.parameters() if not is_kernel(p)]
        return Muon([{"params": kernels, "kernels": True}, {"params": rest}], lr=0.01)

    def step(network: nn.Module, optimizer: Muon, seed: int) -> None:
        optimizer.zero_grad()
        network(torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()

    optimizer = make(net)
    step(net, optimizer, 0)
    saved, twin = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net)
    again = make(twin)
    again.load_state_dict(saved)
    step(net, optimizer, 1)
    step(twin, again, 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_a_run_of_another_device_goes_on_with_this_one_s_way():
    """An Apple GPU takes AdamW's steps one parameter at a time, which would be slow on others."""
    there, here = (Muon([{"params": [nn.Parameter(torch.ones(3))], "factor": 1.0}], lr=0.01, fused=fused) for fused in (False, True))
    there.param_groups[0]["params"][0].grad = torch.ones(3)
    there.step()
    go_on_with(here, there.state_dict())
    assert here.param_groups[0]["fused"] and float(here.state[here.param_groups[0]["params"][0]]["step"]) == 1


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((64, 64, 3, 3), True),
        ((96, 512, 1, 1), True),
        ((64, 3, 7, 7), False),
        ((10, 96, 1, 1), False),
        ((512, 512, 3, 3), False),
        ((64,), False),
    ],
)
def test_kernels_are_inner_convolutions(shape: tuple[int, ...], kernel: bool):
    assert is_kernel(torch.empty(shape)) is kernel

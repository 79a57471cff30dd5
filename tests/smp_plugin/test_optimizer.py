"""Muon against torch's own on matrices, AdamW on the rest, and the state that a resumed run needs."""

import copy

import pytest
import torch
from torch import nn

from smp_plugin.optimizer import Muon, is_kernel, orthogonalized


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

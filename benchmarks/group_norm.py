"""How long GroupNorm and its gradient take on this machine: PyTorch's own against ours, channels-last, at the sizes of the small preset.

python benchmarks/group_norm.py -o benchmarks/results/group_norm.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine

from smp_plugin.normalization import GroupNorm

SIZES = ((64, 80), (128, 40), (256, 20), (512, 10), (96, 40), (96, 20), (96, 10))  # channels and side of the maps of a 320 px crop
BATCH = 9
REPEATS = 15


def processor_seconds(call: Callable[[], object]) -> float:
    """The least of several runs: other work on the machine only ever adds."""
    call()
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def backward(norm: torch.nn.GroupNorm, images: torch.Tensor, grad: torch.Tensor) -> float:
    result = norm(images)
    inputs = (images, norm.weight, norm.bias)
    return processor_seconds(lambda: torch.autograd.grad(result, inputs, grad, retain_graph=True))


def forward(norm: torch.nn.GroupNorm, images: torch.Tensor) -> float:
    with torch.inference_mode():
        return processor_seconds(lambda: norm(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for channels, side in SIZES:
            shape = (BATCH, channels, side, side)
            images, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
            images.requires_grad_()
            row = {"dtype": str(dtype).removeprefix("torch."), "shape": shape}
            for what, part in (("gradient", backward), ("values", lambda norm, x, _: forward(norm, x))):
                torch_ms, ours_ms = (1e3 * part(kind(32, channels), images, grad) for kind in (torch.nn.GroupNorm, GroupNorm))
                row |= {f"{what}_torch_ms": torch_ms, f"{what}_ours_ms": ours_ms, f"{what}_ratio": torch_ms / ours_ms}
                print(f"{row['dtype']} {shape} {what}: torch {torch_ms:.2f} ms, ours {ours_ms:.2f} ms, {torch_ms / ours_ms:.1f} times")
            rows.append(row)
    if args.output:
        command = "python benchmarks/group_norm.py -o benchmarks/results/group_norm.json"
        args.output.write_text(json.dumps({"rows": rows, "command": command, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

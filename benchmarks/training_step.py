"""What a training step costs: supervised, and with an unlabelled batch beside it (teacher included), part by part.

    python benchmarks/training_step.py PROJECT.slp -o benchmarks/results/training_step.json

On a CPU processor time is counted, so that other work on the machine disturbs little; the median of ``--steps`` steps is kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from smp_plugin.budget import Budget
from smp_plugin.config import preset, set_value
from smp_plugin.datasets import Batch, TrainingSteps
from smp_plugin.devices import autocast, choose_device
from smp_plugin.preparation import prepare
from smp_plugin.progress import Reporter
from smp_plugin.training import PoseTraining


class Stopwatch:
    """Milliseconds of the calls it makes, by name."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.taken = device.type == "cuda", dict[str, list[float]]()

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        clock = time.perf_counter if self.cuda else time.process_time
        started = clock()
        result = call()
        if self.cuda:
            torch.cuda.synchronize()
        self.taken.setdefault(name, []).append(1e3 * (clock() - started))
        return result

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.taken.items()}


def costs(module: PoseTraining, steps: TrainingSteps, unlabelled: bool, count: int, device: torch.device) -> dict[str, float]:
    """Medians of the parts of ``count`` steps, ms; the first two warm up."""
    steps.first_unlabeled_step.fill_(0 if unlabelled else 10**9)
    optimizer, watch = module.configure_optimizers(), Stopwatch(device)
    module.ramp = lambda start: 1.0  # type: ignore[method-assign]  # every term that the batch allows
    for number in range(count + 2):
        if number == 2:
            watch = Stopwatch(device)
        batch: Batch = watch("data", lambda n=number: steps[n]).to(device)  # type: ignore[misc]
        with autocast(device, module.config.train.precision):
            loss = watch("forward", lambda b=batch: module.training_step(b, 0))  # type: ignore[misc]
        optimizer.zero_grad()
        watch("backward", loss.backward)
        watch("clip", lambda: module.on_before_optimizer_step(optimizer))
        watch("optimizer", optimizer.step)
    parts = watch.medians()
    return {**parts, "step": sum(parts.values()), "images": len(batch.images) + len(batch.strong)}


def main() -> None:
    """Measure both kinds of step, print them, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="as train.compile=yes does it, the gain of which is kept as `said`")
    args = parser.parse_args()
    device, _ = choose_device(args.device)
    config, _ = preset(args.preset, cuda=device.type == "cuda")
    config.model.norm = "group"
    set_value(config, "data.projects", [str(args.project)])
    material = prepare(config, Reporter(quiet=True))
    module = PoseTraining(config, material.skeleton.mirrored, material.typical_length, material.partial, Budget(1000, 0.0), None).to(device)
    steps = TrainingSteps(material.sources, material.videos, material.skeleton, config, material.unlabeled_videos, material.pool, 0, 1)
    said: list[str] = []
    if args.compile:
        module.reporter = Reporter()
        module.compile_network()
        said = [*itertools.chain.from_iterable(module.reporter.take())]
    rows = {name: costs(module, steps, name == "unlabelled", args.steps, device) for name in ("supervised", "unlabelled")}
    ratio = rows["unlabelled"]["step"] / rows["supervised"]["step"]
    extra = rows["unlabelled"]["step"] - rows["supervised"]["step"]
    per_image = (extra / config.train.unlabeled_batch) / (rows["supervised"]["step"] / config.train.batch)
    options = f"--preset {args.preset} --steps {args.steps} --device {args.device}" + " --compile" * args.compile
    command = f"python benchmarks/training_step.py DATA/{args.project.name} -o OUT {options}"
    result = {
        "rows": rows, "ratio": ratio, "unlabelled_image_over_labelled_image": per_image,
        "crop": config.data.crop, "said": said, "command": command, "machine": machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

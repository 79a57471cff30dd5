"""How long a device that takes a step in T milliseconds waits for its crops, with the next unlabelled frames read ahead and without.

    python benchmarks/loading.py PROJECT.slp --step 600 --workers 1 --steps 120 -o benchmarks/results/loading.json

No device is there: between two batches the process sleeps for T, which leaves the processor to the loader processes as a GPU does.
Rounds with and without take turns; the first steps, in which processes start and the first frames are read, are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from machine import machine

from smp_plugin import unlabeled
from smp_plugin.config import preset, set_value
from smp_plugin.datasets import TrainingSteps
from smp_plugin.preparation import Material, prepare
from smp_plugin.progress import Reporter
from smp_plugin.training import loader

FIRST = 20  # steps that are left out


def waits(material: Material, settings: dict[str, object], count: int, step: float) -> list[float]:
    """Seconds waited for each of ``count`` steps but the `FIRST`, with unlabelled frames in all of them."""
    config, _ = preset("gpu", cuda=True)
    for key, value in settings.items():
        set_value(config, key, value)
    workers = config.train.workers
    steps = TrainingSteps(
        material.sources, material.videos, material.skeleton, config, material.unlabeled_videos, material.pool, 0, 1, workers,
        material.typical_length,
    )  # fmt: skip
    steps.first_unlabeled_step.fill_(0)
    found, position = [], 0
    batches = loader(steps, config, torch.device("cpu"), lambda: position)
    while position < count:
        source = iter(batches)
        while True:
            started = time.perf_counter()
            if next(source, None) is None:
                break
            found.append(time.perf_counter() - started)
            position += 1
            time.sleep(step)
    return found[FIRST:count]


def main() -> None:
    """Measure in turns, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--step", type=float, default=600.0, help="milliseconds that a step takes")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    settings: dict[str, object] = {
        "data.projects": [str(args.project)], "train.workers": args.workers, "train.steps": args.steps, "train.val_every": args.steps,
        "data.val_fraction": 0.0, "model.weights": "none",
    }  # fmt: skip
    config, _ = preset("gpu", cuda=True)
    for key, value in settings.items():
        set_value(config, key, value)
    material = prepare(config, Reporter(quiet=True))
    settings |= {f"data.{name}": getattr(config.data, name) for name in ("crop", "input_scale")}
    is_worker, runs = unlabeled.get_worker_info, []
    for number in range(args.rounds):
        for ahead in (True, False):
            unlabeled.get_worker_info = is_worker if ahead else lambda: None  # processes are forked, and have what is set here
            taken = waits(material, settings, args.steps, args.step / 1e3)
            share = sum(taken) / (sum(taken) + len(taken) * args.step / 1e3)
            runs.append({"round": number, "ahead": ahead, "waited": share, "longest_seconds": max(taken)})
            print(json.dumps(runs[-1]), flush=True)
    rows = [
        {"ahead": ahead}
        | {key: statistics.median(float(r[key]) for r in runs if r["ahead"] == ahead) for key in ("waited", "longest_seconds")}
        for ahead in (True, False)
    ]
    command = (
        f"python benchmarks/loading.py DATA/{args.project.name} -o OUT --step {args.step:g} --workers {args.workers} --steps {args.steps}"
    )
    result = {"rows": rows, "runs": runs, "crop": config.data.crop, "command": command, "machine": machine()}
    print(json.dumps(rows, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What unlabelled frames are worth in equal time: one run that all share, gone on with in several ways for the same minutes each.

    python benchmarks/branches.py DATA -o branches.json --train 'train5_[01]' --minutes 40 --trunk 14 --methods without,default

DATA is the folder with ``train*.slp`` and ``val30.slp``. The trunk learns from labelled frames only, and is stopped after ``--trunk``
minutes; each branch resumes a copy of it with its own settings, until ``--minutes`` are spent. What differs between branches so owes
nothing to how a run began. Time is the processor's, of one thread, so that other work on the machine does not count.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from accuracy import measure, read_results, summary
from machine import machine

from smp_plugin import budget
from smp_plugin.checkpoint import load_model
from smp_plugin.config import preset, read_config, set_value
from smp_plugin.progress import Reporter
from smp_plugin.training import train

METHODS: dict[str, dict[str, object]] = {
    "without": {"loss.beta": 0.0, "loss.agreement": 0.0},  # no unlabelled frames
    "default": {},
    "fusion-only": {"loss.agreement": 0.0},
    "no-fusion": {"loss.beta": 0.0, "loss.alpha": 0.0},
    "beta-1": {"loss.beta": 1.0},
    "alpha-0": {"loss.alpha": 0.0},
    "alpha-0.1": {"loss.alpha": 0.1},
    "agreement-1": {"loss.agreement": 1.0},
    "teacher-0.99": {"train.ema": 0.99},
    "teacher-0.9995": {"train.ema": 0.9995},
    "one-crop": {"train.unlabeled_batch": 1},
}


def interrupt(until: float) -> None:
    """Press Ctrl-C when the process has worked so long."""
    while time.process_time() < until:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def trunk(name: str, out: Path, arguments: argparse.Namespace) -> None:
    """The beginning that all branches share."""
    config, _ = preset("small", cuda=False)
    settings = {"model.weights": "none", "data.val_fraction": 0.0, "train.val_every": 100, "train.minutes": arguments.minutes}
    for key, value in (settings | {"train.unlabeled_first_step": 10**6}).items():
        set_value(config, key, value)
    until = time.process_time() + 60 * arguments.trunk
    threading.Thread(target=interrupt, args=[until], daemon=True).start()
    try:
        train([arguments.data / f"{name}.slp"], config=config, out=out, reporter=Reporter())
    except KeyboardInterrupt:
        return
    raise SystemExit("the trunk was not stopped: --trunk is to be shorter than --minutes")


def branch(method: str, begun: Path, out: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Go on with a copy, and measure."""
    shutil.copytree(begun, out)
    config = read_config(out / "config.yaml")
    begins = {"train.unlabeled_first_step": 0, "train.unlabeled_fusion_start": arguments.trunk / arguments.minutes}
    for key, value in ({"train.minutes": arguments.minutes} | begins | METHODS[method]).items():
        set_value(config, key, value)
    train(config=config, out=out, resume=True, reporter=Reporter())
    figures = measure(out / "model.pt", arguments.data / "val30.slp")
    return {"steps": load_model(out / "model.pt").facts["step"], **{k: round(v, 4) for k, v in figures.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--train", default="train5_0", help="name or pattern of the training projects")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--trunk", type=float, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background have it switched off
    budget.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    for project in sorted(arguments.data.glob(f"{arguments.train}.slp")):
        begun = arguments.output.parent / f"trunk_{project.stem}"
        if not (begun / "last.ckpt").exists():
            trunk(project.stem, begun, arguments)
        for method in arguments.methods.split(","):
            kept = read_results(arguments.output)
            if any((r["train"], r["method"]) == (project.stem, method) for r in kept["runs"]):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = {"method": method, "train": project.stem, **branch(method, begun, Path(folder) / "run", arguments)}
            print(json.dumps(row), flush=True)
            kept["runs"].append(row)
            command = f"python benchmarks/branches.py DATA {' '.join(sys.argv[2:])}"
            kept |= {"command": command, "machine": machine(), "summary": summary(kept["runs"])}
            arguments.output.write_text(json.dumps(kept, indent=1))

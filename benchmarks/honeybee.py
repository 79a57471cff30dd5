"""Accuracy on honeybee (Table 1 of the SemiMultiPose paper): our method and its ablations, trained on few labels, measured on val30.

    python benchmarks/honeybee.py DATA -o benchmarks/results/honeybee_train5.json --train 'train5_*' --steps 500

DATA is the folder with ``train*.slp`` and ``val30.slp``. Every run gets the same steps (or ``--minutes``), and its last model is
measured: val30 chooses nothing. The result file holds every run, mean and standard error over runs, the command, machine and versions.
A run that the file already holds is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import read_project
from smp_plugin.checkpoint import load_model
from smp_plugin.config import preset, set_value
from smp_plugin.datasets import FrameReader
from smp_plugin.metrics import evaluate_poses
from smp_plugin.progress import Reporter
from smp_plugin.run_folder import predict_frames, truth_of
from smp_plugin.training import train

METHODS: dict[str, dict[str, object]] = {
    "directpose": {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.agreement": 0.0},  # L_a + L_b + L_d
    "smp-labeled": {"loss.beta": 0.0, "loss.agreement": 0.0},  # + L_fl
    "smp": {},  # + L_fu and agreement with the teacher
}


def measure(model_file: Path, val: Path) -> dict[str, float]:
    """AP on the labelled frames of ``val`` at s2 = 1, .1 and .0025 (area: keypoint box), and the median pixel error."""
    kept, labels = load_model(model_file), read_project(val)
    frames = labels.labelled_frames
    kept.config.predict.min_score = 0.0  # AP has no score cut
    started = time.perf_counter()
    found = predict_frames(kept.model, frames, FrameReader(labels.videos, 1.0), kept.config, kept.typical_length)
    seconds = time.perf_counter() - started
    result = evaluate_poses(truth_of(frames), [(f.poses, f.scores) for f in found], labels.skeleton.keypoints)
    figures = {f"ap_s2_{s2:g}": ap.ap for s2, ap in result.ap.items()}
    return figures | {
        "ar_s2_1": result.ap[1.0].ar,
        "pixel_error_median": result.pixel_error[50],
        "missed": result.missed,
        "invented": result.invented,
        "frames_per_second": len(frames) / seconds,
    }


def run(data: Path, name: str, method: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Train once and measure."""
    config, _ = preset(arguments.preset, cuda=torch.cuda.is_available())
    settings = {"data.val_fraction": 0.0, "train.seed": arguments.seed, "train.val_every": 250, **METHODS[method]}
    settings |= {"train.minutes": arguments.minutes} if arguments.minutes else {"train.steps": arguments.steps}
    settings |= dict(s.split("=", 1) for s in arguments.set)
    for key, value in settings.items():
        set_value(config, key, value)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = train([data / f"{name}.slp"], config=config, out=Path(folder) / "run", reporter=Reporter())
        minutes = (time.perf_counter() - started) / 60
        figures = measure(out / "model.pt", data / "val30.slp")
        steps = load_model(out / "model.pt").facts["step"]
    return {"train": name, "method": method, "minutes": round(minutes, 2), "steps": steps, **{k: round(v, 4) for k, v in figures.items()}}


def summary(runs: list[dict[str, object]]) -> dict[str, dict[str, str]]:
    """Per method, mean and standard error over runs."""
    table: dict[str, dict[str, str]] = {}
    for method in dict.fromkeys(str(r["method"]) for r in runs):
        rows = [r for r in runs if r["method"] == method]
        table[method] = {"runs": str(len(rows))}
        for key in ("ap_s2_1", "ap_s2_0.1", "ap_s2_0.0025", "pixel_error_median"):
            values = np.array([float(str(r[key])) for r in rows])
            error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            table[method][key] = f"{values.mean():.3f} +- {error:.3f}"
    return table


def machine() -> dict[str, object]:
    """Where and with what the figures were made."""
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    packages = ("smp-plugin", "torch", "torchvision", "lightning", "numpy", "pycocotools")
    return {"device": device, "platform": platform.platform(), "versions": {p: version(p) for p in packages}}


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--train", default="train25_0", help="name or pattern of the training projects")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    names = sorted(p.stem for p in arguments.data.glob(f"{arguments.train}.slp"))
    if not names:
        parser.error(f"{arguments.data} holds no {arguments.train}.slp")
    here = machine()
    for name in names:
        for method in arguments.methods.split(","):
            if any(r["train"] == name and r["method"] == method for r in read_results(arguments.output)["runs"]):
                continue
            made = run(arguments.data, name, method, arguments)
            kept = read_results(arguments.output)
            kept["runs"].append(made)
            command = "python benchmarks/honeybee.py DATA " + " ".join(sys.argv[2:])
            kept |= {"command": command, "machine": here, "summary": summary(kept["runs"])}
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(kept, indent=1))
            print(json.dumps(made), flush=True)
    print(json.dumps(read_results(arguments.output).get("summary"), indent=1))


def read_results(path: Path) -> dict[str, Any]:
    """What a result file holds so far."""
    return json.loads(path.read_text()) if path.exists() else {"runs": []}


if __name__ == "__main__":
    main()

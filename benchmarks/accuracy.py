"""What the accuracy benchmarks share: train on few labels, measure on frames of their own, keep mean and standard error.

Every run gets the same steps (or ``--minutes``), and its last model is measured: the frames it is measured on choose nothing. The result
file holds every run, the command, machine and versions. A run that the file already holds is not repeated; processes that run at the
same time need a file each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from converters import read_project
from smp_plugin.checkpoint import load_model
from smp_plugin.config import preset, set_value
from smp_plugin.frame_reader import FrameReader
from smp_plugin.metrics import evaluate_poses
from smp_plugin.progress import Reporter
from smp_plugin.run_folder import predict_frames, truth_of
from smp_plugin.training import train


def measure(model_file: Path, val: Path) -> dict[str, float]:
    """AP on the labelled frames of ``val`` at s2 = 1, .1 and .0025 (area: keypoint box), and the median pixel error."""
    kept, labels = load_model(model_file), read_project(val)
    frames = labels.labelled_frames
    kept.config.predict.min_score = 0.0  # AP has no score cut
    started = time.perf_counter()
    found = predict_frames(kept.model, frames, FrameReader(labels.videos, 1.0), kept.config, kept.typical_length)
    seconds = time.perf_counter() - started
    kept.config.predict.refine = False
    unrefined = predict_frames(kept.model, frames, FrameReader(labels.videos, 1.0), kept.config, kept.typical_length)
    result, plain = (
        evaluate_poses(truth_of(frames), [(f.poses, f.scores) for f in poses], labels.skeleton.keypoints) for poses in (found, unrefined)
    )
    figures = {f"ap_s2_{s2:g}": ap.ap for s2, ap in result.ap.items()}
    return (
        figures
        | {f"unrefined_ap_s2_{s2:g}": ap.ap for s2, ap in plain.ap.items()}
        | {
            "ar_s2_1": result.ap[1.0].ar,
            "pixel_error_median": result.pixel_error[50],
            "missed": result.missed,
            "invented": result.invented,
            "doubled": result.doubled,
            "frames_per_second": len(frames) / seconds,
        }
    )


def run(name: str, method: dict[str, object], val: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Train once and measure."""
    config, _ = preset(arguments.preset, cuda=torch.cuda.is_available())
    settings = {"model.weights": "none", "data.val_fraction": 0.0, "train.seed": seed, "train.val_every": 250, **method}
    settings.setdefault("train.unlabeled_first_step", 0)  # all three phases in short runs, too
    settings |= {"train.minutes": arguments.minutes} if arguments.minutes else {"train.steps": arguments.steps}
    settings |= dict(s.split("=", 1) for s in arguments.set)
    for key, value in settings.items():
        set_value(config, key, value)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = train([arguments.data / f"{name}.slp"], config=config, out=Path(folder) / "run", reporter=Reporter())
        minutes = (time.perf_counter() - started) / 60
        figures = measure(out / "model.pt", arguments.data / val)
        steps = load_model(out / "model.pt").facts["step"]
    return {"train": name, "seed": seed, "minutes": round(minutes, 2), "steps": steps, **{k: round(v, 4) for k, v in figures.items()}}


FIGURES = ("ap_s2_1", "ap_s2_0.1", "ap_s2_0.0025", "unrefined_ap_s2_0.1", "unrefined_ap_s2_0.0025", "pixel_error_median")


def mean(values: list[float]) -> str:
    """With the standard error, where there are several."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.3f} +- {error:.3f}"


def summary(runs: list[dict[str, object]]) -> dict[str, dict[str, str]]:
    """Per method, mean and standard error over runs, and of the difference to the first method on the same frames and seed."""
    table: dict[str, dict[str, str]] = {}
    first = {(r["train"], r.get("seed", 0)): r for r in runs if r["method"] == runs[0]["method"]}
    for method in dict.fromkeys(str(r["method"]) for r in runs):
        rows = [r for r in runs if r["method"] == method]
        table[method] = {"runs": str(len(rows))}
        pairs = [(r, first[key]) for r in rows if (key := (r["train"], r.get("seed", 0))) in first and r["method"] != runs[0]["method"]]
        for key in (key for key in FIGURES if all(key in r for r in runs)):
            table[method][key] = mean([float(str(r[key])) for r in rows])
            if pairs:
                table[method][f"{key}_minus_{runs[0]['method']}"] = mean([float(str(r[key])) - float(str(f[key])) for r, f in pairs])
    return table


def parser(description: str, train: str, methods: Iterable[str]) -> argparse.ArgumentParser:
    """The arguments that all accuracy benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("-o", "--output", type=Path, required=True)
    made.add_argument("--train", default=train, help="name or pattern of the training projects")
    made.add_argument("--methods", default=",".join(methods))
    made.add_argument("--preset", default="small")
    made.add_argument("--steps", type=int, default=1000)
    made.add_argument("--minutes", type=float, default=0.0)
    made.add_argument("--seeds", default="0", help="e.g. 0,1,2")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return made


def runs_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of benchmarks that measure finished runs on labelled frames."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("labels", type=Path)
    made.add_argument("runs", type=Path, nargs="+")
    made.add_argument("-o", "--output", type=Path)
    return made


def grid(arguments: argparse.Namespace, methods: dict[str, dict[str, object]], val: str) -> None:
    """Every training project, method and seed, and the table."""
    names = sorted(p.stem for p in arguments.data.glob(f"{arguments.train}.slp"))
    if not names:
        raise SystemExit(f"{arguments.data} holds no {arguments.train}.slp")
    here = machine()
    for name, seed, method in itertools.product(names, map(int, arguments.seeds.split(",")), arguments.methods.split(",")):
        done = read_results(arguments.output)["runs"]
        if any((r["train"], r["method"], r.get("seed", 0)) == (name, method, seed) for r in done):
            continue
        made = {"method": method, **run(name, methods[method], val, seed, arguments)}
        kept = read_results(arguments.output)
        kept["runs"].append(made)
        command = f"python benchmarks/{Path(sys.argv[0]).name} DATA " + " ".join(sys.argv[2:])
        kept |= {"command": command, "machine": here, "summary": summary(kept["runs"])}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(kept, indent=1))
        print(json.dumps(made), flush=True)
    print(json.dumps(read_results(arguments.output).get("summary"), indent=1))


def read_results(path: Path) -> dict[str, Any]:
    """What a result file holds so far."""
    return json.loads(path.read_text()) if path.exists() else {"runs": []}

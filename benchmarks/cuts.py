"""Which animals a person is shown: cuts chosen on the frames that were learnt from, tried on others.

    python benchmarks/cuts.py DATA/val30.slp RUN... -o benchmarks/results/cuts.json

RUN are folders of runs without validation frames, or on projects whose labels are partial. On their labelled frames many scores serve as
cut (`smp_plugin.run_folder.good_cuts`); their middle is what a run chooses. Beside it the lowest of them, half of that (a rule of before),
and what would be best on the frames tried, all animals of which have labels.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import mean, runs_parser
from machine import machine

from converters import read_project
from smp_plugin.checkpoint import load_model
from smp_plugin.frame_reader import FrameReader
from smp_plugin.inference import FramePoses
from smp_plugin.metrics import evaluate_poses
from smp_plugin.run_folder import good_cuts, predict_frames, truth_of

FIGURES = ("missed", "invented", "doubled", "f1")


def predicted(run: Path, projects: list[Path]) -> tuple[list[np.ndarray], list[FramePoses]]:
    """Labels and predictions, with any score, of the projects' labelled frames."""
    kept, truth, found = load_model(run), [], []
    kept.config.predict.min_score = 0.0
    for project in projects:
        labels = read_project(project)
        frames, reader = labels.labelled_frames, FrameReader(labels.videos, 1.0)
        truth += truth_of(frames)
        found += predict_frames(kept.model, frames, reader, kept.config, kept.typical_length)
    return truth, found


def counts(truth: list[np.ndarray], found: list[FramePoses], cut: float) -> dict[str, Any]:
    """What is missed and too much from this score on."""
    kept = [f.poses[f.scores >= cut] for f in found]
    result = evaluate_poses(truth, [(p, np.ones(len(p))) for p in kept], [str(k) for k in range(truth[0].shape[1])])
    f1 = 2 * (result.animals - result.missed) / (result.predictions + result.animals)
    return {"cut": round(cut, 4), "missed": result.missed, "invented": result.invented, "doubled": result.doubled, "f1": round(f1, 4)}


def main() -> None:
    """Measure, print and keep the table."""
    args = runs_parser(__doc__ or "").parse_args()
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        kept = load_model(run)
        learnt, (truth, found) = predicted(run, [Path(p) for p in kept.config.data.projects]), predicted(run, [args.labels])
        partial = kept.config.data.labels == "partial"
        good, best = good_cuts(*learnt, partial=partial), good_cuts(truth, found, partial=False)
        assert good is not None and best is not None, f"{run.name} finds no animal"
        cuts = {
            "middle (as it is)": math.sqrt(good[0] * good[1]),
            "lowest": good[0],
            "half of the lowest (before)": good[0] / 2,
            "middle of the best on the frames tried": math.sqrt(best[0] * best[1]),
        }
        for rule, cut in cuts.items():
            rows.append({"run": run.name, "steps": kept.facts["step"], "rule": rule, **counts(truth, found, cut)})
            print(json.dumps(rows[-1]), flush=True)
    rules = dict.fromkeys(row["rule"] for row in rows)
    table = {rule: {name: mean([row[name] for row in rows if row["rule"] == rule]) for name in FIGURES} for rule in rules}
    print(json.dumps(table, indent=1))
    if args.output:
        command = "python benchmarks/cuts.py DATA/val30.slp RUN... -o OUT"
        args.output.write_text(json.dumps({"summary": table, "runs": rows, "command": command, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

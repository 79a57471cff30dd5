"""The protocol of the paper's Table 1 (SemiMultiPose, arXiv 2204.07072) as one command: data, subsets, trainings, table.

    python examples/reproduce_paper/run.py --dataset honeybee --preset paper -o runs/paper_honeybee                 # as in the paper: a GPU
    python examples/reproduce_paper/run.py --dataset honeybee --source FOLDER --minutes 15 -o runs/paper_honeybee   # scaled down: a CPU

Interrupted, the same command goes on where it was. README.md beside this script says what differs from the paper.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from fetch import Prepared, prepare  # type: ignore[import-not-found]  # noqa: E402  # beside this script, not in a package
from machine import machine  # type: ignore[import-not-found]  # noqa: E402
from protocol import METHODS, PAPER, collect, gains, markdown, runs_of, summarise  # type: ignore[import-not-found]  # noqa: E402

from converters import FormatError  # noqa: E402
from converters.files import written_whole  # noqa: E402
from smp_plugin.baselines import budget_in_words  # noqa: E402
from smp_plugin.comparison import compare  # noqa: E402
from smp_plugin.progress import Reporter  # noqa: E402

NOTES = (
    "The paper's subsets were not published; these are others.",
    "The frames measured on choose no model here; the paper chose alpha and beta on them. Settings were chosen on val30 of the bees.",
    "alpha = 0.01 and beta = 0.1 throughout, unless settings say otherwise; the paper raises alpha to 5-10 where labels are very few.",
    "SLEAP is sleap-nn with its own training profiles; the paper used the SLEAP of its time.",
)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--dataset", choices=list(PAPER), required=True)
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="where the data lie; without it they are downloaded")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="for data, trainings and the result")
    parser.add_argument("--result", type=Path, metavar="FILE", help="the result's .json, with a .md beside it (default DIR/table1.json)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default all of the paper's: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="wall-clock budget of each training, or")
    parser.add_argument("--steps", type=int, default=0, help="optimiser steps of each network (default with --preset paper: as the paper)")
    parser.add_argument("--subsets", type=int, default=5, help="random subsets of the rows with few labels (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of the row with all labels (default %(default)s)")
    parser.add_argument("--rows", default="", help="rows to train, e.g. 5,25 (default all)")
    parser.add_argument("--preset", default="auto", choices=["auto", "small", "gpu", "paper"], help="of our own methods")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, as for smp-compare; repeatable")
    parser.add_argument("--device", default="auto")
    made = parser.parse_args(argv)
    if unknown := [m for m in made.methods.split(",") if m not in METHODS]:
        parser.error(f"--methods {unknown[0]}: choose of {', '.join(METHODS)}")
    if made.minutes < 0 or made.steps < 0 or made.subsets < 1 or made.seeds < 1:
        parser.error("--minutes, --steps, --subsets and --seeds are above 0")
    if made.minutes and made.steps:
        parser.error("give --minutes or --steps, not both")
    if not made.minutes and not made.steps and made.preset != "paper":
        parser.error("give --minutes or --steps, the budget of each training, or --preset paper for the paper's")
    if bad := [text for text in made.set if "=" not in text]:
        parser.error(f"--set {bad[0]}: write KEY=VALUE")
    return made


def settings_of(made: argparse.Namespace) -> dict[str, str]:
    """Those of the data set in the paper, where the paper's preset is asked for, then the user's."""
    starts = PAPER[made.dataset].starts
    paper = {
        "train.labeled_fusion_start": f"{starts[0]:.4g}",
        "train.unlabeled_fusion_start": f"{starts[1]:.4g}",
        "train.unlabeled_first_step": "0",
    }
    return (paper if made.preset == "paper" else {}) | dict(text.split("=", 1) for text in made.set)


def shown(argv: Sequence[str]) -> str:
    """The command without the names of a person's folders."""
    hidden = {"--source": "SOURCE", "--output": "DIR", "-o": "DIR", "--result": "FILE"}
    words = ["python examples/reproduce_paper/run.py"]
    for before, word in zip(["", *argv[:-1]], argv, strict=True):
        option, joined, _ = word.partition("=")
        if before in hidden:
            words.append(hidden[before])
        elif joined and option in hidden:
            words.append(f"{option}={hidden[option]}")
        else:
            words.append("-oDIR" if word.startswith("-o") and len(word) > 2 else word)
    return " ".join(words)


def result_of(made: argparse.Namespace, data: Prepared, budget: str, command: str) -> dict[str, Any]:
    """Everything that is known so far, as plain JSON values."""
    lines = collect(made.dataset, made.output)
    paper = PAPER[made.dataset]
    return {
        "dataset": made.dataset,
        "command": command,
        "machine": machine(),
        "budget": budget,
        "preset": made.preset,
        "settings": settings_of(made),
        "s2": paper.s2,
        "notes": [*data.notes, *NOTES],
        "paper": {row: dict(zip(METHODS, figures, strict=True)) for row, figures in paper.figures.items()},
        "summary": summarise(lines),
        "gains": gains(lines),
        "runs": lines,
    }


def claim(made: argparse.Namespace, budget: str) -> None:
    """What stands in one table was trained alike: remember how, and refuse to mix."""
    mine = {"dataset": made.dataset, "budget": budget, "preset": made.preset, "settings": settings_of(made)}
    path = made.output / "protocol.json"
    if not path.exists():
        write(path, json.dumps(mine, indent=1))
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    if other := [key for key in mine if theirs.get(key) != mine[key]]:
        raise FormatError(f"-o {made.output} holds trainings with another {other[0]} ({theirs.get(other[0])}); choose another folder.")


def reproduce(made: argparse.Namespace, command: str, reporter: Reporter) -> Path:
    """Do what the arguments say; returns the result's file, which is written anew after every comparison."""
    steps = 0 if made.minutes else made.steps or PAPER[made.dataset].steps
    budget = budget_in_words(made.minutes, steps)
    claim(made, budget)
    data = prepare(made.dataset, made.source, made.output / "data")
    runs = runs_of(made.dataset, data, made.output / "data", [r for r in made.rows.split(",") if r], made.subsets, made.seeds)
    file: Path = made.result or made.output / "table1.json"
    for number, run in enumerate(runs):
        reporter.say(f"comparison {number + 1} of {len(runs)}: row {run.row}, number {run.number}")
        compare(
            run.project, val=data.val, out=run.folder(made.output), methods=made.methods.split(","), minutes=made.minutes, steps=steps,
            seeds=(run.seed,), preset=made.preset, settings=settings_of(made), device=made.device, reporter=reporter,
        )  # fmt: skip
        result = result_of(made, data, budget, command)
        write(file, json.dumps(result, indent=1) + "\n")
        write(file.with_suffix(".md"), markdown(made.dataset, result))
    return file


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = arguments(words)
    try:
        file = reproduce(made, shown(words), Reporter())
    except FormatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    print(file.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

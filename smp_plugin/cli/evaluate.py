"""``smp-evaluate``: labels and predictions in, figures out."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from converters.labels import FormatError
from smp_plugin.cli import _common
from smp_plugin.cli._common import FILE
from smp_plugin.progress import Reporter

if TYPE_CHECKING:
    from smp_plugin.metrics import Evaluation

EPILOG = "Example:  smp-evaluate heldout.slp heldout.predictions.slp"


@click.command("smp-evaluate", epilog=EPILOG, context_settings=_common.HELP)
@click.argument("labels", type=FILE)
@click.argument("predictions", type=FILE)
@click.option("--s2", "tolerances", multiple=True, metavar="X[,X]", help="Tolerances of AP (default 1, 0.1, 0.0025); repeatable.")
@click.option(
    "--labels",
    "rule",
    type=click.Choice(["auto", "complete", "partial"]),
    default="auto",
    help="partial: there are animals without a label; what is predicted there is left out of a second set of figures.",
)
@click.option("--peers", is_flag=True, help="Also what sleap-nn and deeplabcut, where installed, say themselves (takes seconds).")
@click.option("--plot", type=FILE, metavar="FILE.png", help="Picture of points found over distance, and errors by keypoint.")
@click.option("--video-root", type=FILE, metavar="DIR", help="Where the files' videos and images are looked for next.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on stdout.")
@click.pass_obj
def command(state: _common.State, labels: Path, predictions: Path, **options: Any) -> None:
    """Compare PREDICTIONS with LABELS: average precision, points found, pixel errors, animals missed and invented.

    Both may be of any format: .slp, config.yaml (DeepLabCut), .json (COCO; results with their labels), .analysis.h5, .h5, .csv. Every
    labelled frame counts; one that is not among the predictions is missed.
    """
    state.reporter = Reporter(json=options["as_json"])
    for path in (labels, predictions):
        _common.existing(path)
    tolerances, plot = _tolerances(options["tolerances"]), options["plot"]
    if plot is not None:
        _check_plot(plot)

    from smp_plugin.evaluation import evaluate
    from smp_plugin.metrics import DEFAULT_S2

    found = evaluate(
        labels,
        predictions,
        video_root=options["video_root"],
        s2=tolerances or DEFAULT_S2,
        rule=options["rule"],
        peers=options["peers"],
    )
    if plot is not None:
        from smp_plugin.report import write_evaluation

        write_evaluation(found, plot)
    if options["as_json"]:
        import json

        print(json.dumps(found.to_dict(), indent=2))
        return
    for warning in found.warnings:
        state.reporter.warn(warning)
    _print_tables(found)
    if plot is not None:
        state.reporter.say(f"written: {plot}")


def _tolerances(texts: Sequence[str]) -> tuple[float, ...]:
    """``--s2``: the values in the order given, each once."""
    values = []
    for text in ",".join(texts).split(",") if texts else []:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise FormatError(f"--s2 {text or 'with nothing between commas'}: a tolerance is a number above 0, for example 0.1.")
        values.append(value)
    return tuple(dict.fromkeys(values))


def _check_plot(path: Path) -> None:
    """Said before anything slow begins."""
    if path.suffix.lower() != ".png":
        raise FormatError(f"--plot {path}: the picture is a PNG; give it a name that ends in .png.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FormatError(f"--plot {path}: {'this is a folder' if path.is_dir() else 'its folder is not there'}; name a file in a folder.")


def _print_tables(found: Evaluation) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from smp_plugin.peer_figures import installed
    from smp_plugin.report import KEYPOINT_COLUMNS, evaluation_rows, keypoint_rows

    console = Console(width=None if sys.stdout.isatty() else 110)
    summary = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in evaluation_rows(found):
        summary.add_row(name, value)
    if installed() and not found.peers:
        summary.add_row(f"By {' and '.join(installed())} {'themselves' if len(installed()) > 1 else 'itself'}", "--peers")
    points = Table(KEYPOINT_COLUMNS[0], box=box.SIMPLE, pad_edge=False, header_style="bold")
    for head in KEYPOINT_COLUMNS[1:]:
        points.add_column(head, justify="right")
    for row in keypoint_rows(found):
        points.add_row(*(Text(cell) for cell in row))  # a keypoint's name is no markup
    console.print(summary, points)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    return _common.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())

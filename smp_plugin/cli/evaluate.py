"""``smp-evaluate``: labels and predictions in, figures out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from smp_plugin.cli import _common
from smp_plugin.progress import Reporter

if TYPE_CHECKING:
    from smp_plugin.metrics import Evaluation

FILE = click.Path(path_type=Path)

EPILOG = "Example:  smp-evaluate heldout.slp heldout.predictions.slp"


@click.command("smp-evaluate", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("labels", type=FILE)
@click.argument("predictions", type=FILE)
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

    from smp_plugin.metrics import evaluate

    found = evaluate(labels, predictions, video_root=options["video_root"])
    if options["as_json"]:
        import json

        print(json.dumps(found.to_dict(), indent=2))
        return
    for warning in found.warnings:
        state.reporter.warn(warning)
    _print_tables(found)


def _print_tables(found: Evaluation) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from smp_plugin.report import evaluation_rows, keypoint_rows

    console = Console(width=None if sys.stdout.isatty() else 110)
    summary = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, value in evaluation_rows(found):
        summary.add_row(name, value)
    points = Table("keypoint", box=box.SIMPLE, pad_edge=False, header_style="bold")
    for head in ("points", "pixel error, median (90 %)", "within 10 % of length"):
        points.add_column(head, justify="right")
    for row in keypoint_rows(found):
        points.add_row(*(Text(cell) for cell in row))  # a keypoint's name is no markup
    console.print(summary, points)


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    return _common.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())

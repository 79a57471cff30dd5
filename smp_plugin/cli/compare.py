"""``smp-compare``: several methods on the same labels, one table and one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from converters.labels import FormatError
from smp_plugin.baselines import DEFAULT, METHODS, MINUTES
from smp_plugin.cli import _common
from smp_plugin.cli._common import FILE
from smp_plugin.progress import Reporter

EPILOG = "Example:  smp-compare --slp flies.slp --val heldout.slp --labels-fraction 5,25,all --seeds 3 -o comparison"


@click.command("smp-compare", epilog=EPILOG, context_settings=_common.UNNAMED)
@click.option("--slp", type=FILE, metavar="FILE", help="SLEAP project (.slp, .pkg.slp).")
@click.option("--dlc", type=FILE, metavar="FILE", help="DeepLabCut project (its config.yaml).")
@click.option("--coco", type=FILE, metavar="FILE", help="COCO keypoints (.json).")
@click.option(
    "--val", metavar="FILE|SHARE", default="0.25", help="Project to measure on, or a share of the labelled frames (default 0.25)."
)
@click.option("--video-root", type=FILE, metavar="DIR", help="Where videos and images are looked for next.")
@click.option("--labels-fraction", "fractions", metavar="LIST", default="all", help="Labelled frames to learn from, e.g. 5,20%,all.")
@click.option("--methods", metavar="LIST", default=",".join(DEFAULT), help=f"Of {', '.join(METHODS)}.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, metavar="N", help="Runs of each, with seeds 0 to N-1 (default 1).")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="M",
    help=f"Wall-clock budget of each training (default {MINUTES:g}, without --steps).",
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Optimiser steps of each network, in place of minutes.")
@click.option("-o", "--output", type=FILE, default=Path("comparison"), metavar="DIR", help="Folder; goes on where it was interrupted.")
@click.option("--preset", type=click.Choice(["auto", "small", "gpu", "paper"]), default="auto", help="Of our own methods (default auto).")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting of ours, or sleap.KEY, dlc.KEY of the peers'; repeatable."
)
@_common.device_option
@_common.output_options
@click.option_panel("Data", options=["--slp", "--dlc", "--coco", "--val", "--video-root", "--labels-fraction"])
@click.option_panel("Comparison", options=["--methods", "--seeds", "--minutes", "--steps", "--output", "--preset", "--set"])
@click.option_panel("Machine and output", options=["--device", "--quiet", "--json", "--help"])
@click.pass_obj
def command(state: _common.State, **options: Any) -> None:
    """Train our method, its ablations, SLEAP's models and DeepLabCut's on the same labels with the same budget, and compare them."""
    reporter = state.reporter = Reporter(quiet=options["quiet"], json=options["as_json"])
    _common.refuse_unnamed()
    named = [options[kind] for kind in ("slp", "dlc", "coco") if options[kind]]
    if len(named) != 1:
        raise click.UsageError("Name one labelled project, with --slp, --dlc or --coco.")
    methods = [m.strip() for m in options["methods"].split(",") if m.strip()]
    if unknown := [m for m in methods if m not in METHODS]:
        raise FormatError(f"--methods {unknown[0]}: there is no such method; choose from {', '.join(METHODS)}.")
    val, share = _common.validation(options["val"])

    from smp_plugin.comparison import compare

    compare(
        _common.existing(named[0]),
        val=val or share or 0.0,
        out=options["output"],
        methods=methods,
        minutes=options["minutes"] or 0.0,
        steps=options["steps"] or 0,
        seeds=range(options["seeds"]),
        fractions=[f.strip() for f in options["fractions"].split(",") if f.strip()],
        preset=options["preset"],
        settings=_common.key_values(options["sets"]),
        device=options["device"] or "auto",
        video_root=options["video_root"],
        reporter=reporter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    return _common.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())

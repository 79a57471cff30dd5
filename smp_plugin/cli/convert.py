"""``smp-convert``: one native format in, another one out."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from smp_plugin.cli import _common
from smp_plugin.cli._common import FILE
from smp_plugin.progress import Reporter

EPILOG = "Example:  smp-convert labels.json labels.slp --images photos"


@click.command("smp-convert", epilog=EPILOG, context_settings=_common.HELP)
@click.argument("source", type=FILE, metavar="IN")
@click.argument("target", type=FILE, metavar="OUT")
@click.option("--only", type=click.Choice(["labels", "predictions"]), help="Leave the others out.")
@click.option("--format", "suffix", type=click.Choice(["h5", "csv"]), help="OUT is a folder for DeepLabCut predictions of each video.")
@click.option("--video-root", type=FILE, metavar="DIR", help="Where IN's videos and images are looked for next.")
@click.option("--images", type=FILE, metavar="DIR", help="COCO: the folder that file names in IN are relative to.")
@click.option("--category", metavar="NAME", help="COCO: which category to read, if they have different keypoints.")
@click.option("--annotations", type=FILE, metavar="FILE", help="COCO: IN is a list of results, FILE the labels it belongs to.")
@_common.output_options
@click.option_panel("Input and output", options=["--only", "--format", "--video-root", "--images", "--category", "--annotations"])
@click.option_panel("Messages", options=["--quiet", "--json", "--help"])
@click.pass_obj
def command(state: _common.State, source: Path, target: Path, **options: Any) -> None:
    """Convert labels or predictions from one native format to another; what OUT cannot hold is said, each with a warning.

    Names say the format: .slp and .pkg.slp (SLEAP), config.yaml or a folder (DeepLabCut), .json (COCO), .analysis.h5 (SLEAP analysis), .h5
    and .csv (DeepLabCut predictions). Where OUT takes one kind only, labels go before predictions.
    """
    reporter = state.reporter = Reporter(quiet=options["quiet"], json=options["as_json"])
    for path in (source, options["annotations"]):
        if path is not None:
            _common.existing(path)

    from converters import convert
    from smp_plugin.records import forget, refuse_replacing

    replaced: list[Path] = []

    def refuse(paths: Collection[Path]) -> None:
        refuse_replacing(paths)
        replaced.extend(paths)

    settings = {name: options[name] for name in ("only", "suffix", "video_root", "images", "category", "annotations")}
    for note in convert(source, target, refuse=refuse, **settings):
        reporter.warn(note)
    forget(replaced)  # or smp-predict --resume would take them for its own
    reporter.say(f"written: {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    return _common.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())

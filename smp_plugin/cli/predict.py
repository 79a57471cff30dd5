"""``smp-predict``: videos, image folders or a project in, predicted poses out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from converters.labels import FormatError
from converters.project import is_project, project_title
from smp_plugin.cli import _common
from smp_plugin.cli._common import FILE
from smp_plugin.config import parse_ranges
from smp_plugin.progress import Reporter

EPILOG = "Example:  smp-predict video.mp4 -o video.predictions.slp --model runs/flies --overlay video.poses.mp4"
FORMATS = ("slp", "h5", "csv", "json", "analysis.h5")


@click.command("smp-predict", epilog=EPILOG, context_settings=_common.HELP)
@click.argument("inputs", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, metavar="FILE|DIR", help="What to write (default: INPUT.predictions.slp beside the input).")
@click.option("--format", "suffix", type=click.Choice(FORMATS), help="Format in a folder (default: slp); a file's name says its own.")
@click.option("--model", type=FILE, metavar="RUN|FILE", help="Run folder or model.pt (default: the newest finished run under runs/).")
@click.option("--frames", metavar="WHICH", help="all | labeled | unlabeled | 0-999,1500 (default: all; of a project: unlabeled).")
@click.option("--video-root", type=FILE, metavar="DIR", help="Where the project's videos and images are looked for next.")
@click.option("--max-animals", type=click.IntRange(min=1), metavar="N", help="At most so many animals in a frame.")
@click.option("--track", is_flag=True, default=None, help="Follow animals: one name for each in all frames.")
@click.option("--min-score", type=click.FloatRange(0, 1), metavar="X", help="Drop animals below this score, 0 to 1.")
@click.option("--refine/--no-refine", default=None, help="Move keypoints to the nearby heatmap maximum (default: yes).")
@click.option("--fast", is_flag=True, help="Read frames smaller, where that costs little; says how much.")
@click.option("--overlay", type=FILE, metavar="OUT.mp4", help="Also draw the poses on a video.")
@_common.device_option
@click.option("--runtime", type=click.Choice(["pytorch", "compile", "onnx"]), help="What computes, where faster than PyTorch.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Frames a batch.")
@click.option("--resume", is_flag=True, help="Go on with the same command where it was cut off; skip finished files.")
@click.option("--scheduler", metavar="ADDRESS", help="On a Dask scheduler's workers (tcp://host:8786).")
@click.option("--local-cluster", type=click.IntRange(min=1), metavar="N", help="On N Dask workers of this machine.")
@_common.output_options
@click.option_panel("Input and output", options=["--output", "--format", "--model", "--frames", "--video-root", "--overlay", "--resume"])
@click.option_panel("Poses", options=["--max-animals", "--track", "--min-score", "--refine", "--fast"])
@click.option_panel(
    "Machine and messages", options=["--device", "--runtime", "--batch", "--scheduler", "--local-cluster", "--quiet", "--json", "--help"]
)
@click.pass_obj
def command(state: _common.State, **options: Any) -> None:
    """Predict poses in videos, image folders, or the frames of a project (.slp, .pkg.slp, config.yaml, COCO .json).

    The output's name says its format: .slp for all inputs together; .json (COCO results); .analysis.h5 (SLEAP) or .h5, .csv (DeepLabCut) of
    one video; a folder: a file for each. PROJECT/labeled-data puts predictions into a DeepLabCut project for a person to correct.
    """
    reporter = state.reporter = Reporter(quiet=options["quiet"], json=options["as_json"])
    inputs = [_common.existing(path) for path in options["inputs"]]
    if options["model"] is not None:
        _common.existing(options["model"])
    if options["scheduler"] and options["local_cluster"]:
        raise click.UsageError("--scheduler and --local-cluster exclude each other.")
    frames = options["frames"]
    if frames is not None and frames not in ("all", "labeled", "unlabeled"):
        if not frames[:1].isdigit():
            raise FormatError(f"--frames is {frames!r}; write all, labeled, unlabeled, or numbers like 0-999,1500.")
        parse_ranges(frames)
    names = ("min_score", "max_animals", "track", "runtime", "batch", "refine")
    overrides = {f"predict.{name}": options[name] for name in names if options[name] is not None}
    output = options["output"] or _default_output(inputs, options["suffix"])

    from smp_plugin.prediction import predict

    predict(
        inputs,
        output,
        suffix=options["suffix"],
        model=options["model"],
        config_overrides=overrides,
        frames=frames,
        video_root=options["video_root"],
        device=options["device"] or "auto",
        overlay=options["overlay"],
        fast=options["fast"],
        resume=options["resume"],
        scheduler=options["scheduler"],
        local_cluster=options["local_cluster"] or 0,
        reporter=reporter,
    )


def _default_output(inputs: list[Path], suffix: str | None) -> Path:
    if len(inputs) > 1:
        raise click.UsageError("Several inputs need -o: where to write the predictions.")
    (path,) = inputs
    if suffix in ("h5", "csv"):
        return path.parent  # where DeepLabCut looks for them
    name = project_title(path) if is_project(path) else path.absolute().name
    return path.parent / f"{name}.predictions.{suffix or 'slp'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    return _common.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())

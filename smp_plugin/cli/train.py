"""``smp-train``: a labelled project in, a run folder with a model out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from converters.labels import FormatError
from converters.project import COCO, DLC, SLEAP, format_of
from smp_plugin.cli import _common
from smp_plugin.cli._common import FILE
from smp_plugin.config import parse_ranges, read_config, refuse_changes
from smp_plugin.progress import Reporter

EPILOG = "Example:  smp-train --slp flies.slp -o runs/flies --minutes 30"


@click.command("smp-train", epilog=EPILOG, context_settings=_common.UNNAMED)
@click.option("--slp", type=FILE, multiple=True, metavar="FILE", help="SLEAP project (.slp, .pkg.slp); these three repeat.")
@click.option("--dlc", type=FILE, multiple=True, metavar="FILE", help="DeepLabCut project (its config.yaml).")
@click.option("--coco", type=FILE, multiple=True, metavar="FILE", help="COCO keypoints (.json).")
@click.option("--images", type=FILE, metavar="DIR", help="COCO: folder of the images (default: the file's).")
@click.option("--category", metavar="NAME", help="COCO: which of several categories to learn.")
@click.option("--aliases", type=FILE, metavar="FILE", help="Table of names that mean the same keypoint.")
@click.option("--val", metavar="FILE|SHARE", help="Project to validate on, or a share of the labelled frames (default: a tenth).")
@click.option("--video-root", type=FILE, metavar="DIR", help="Where videos and images are looked for next.")
@click.option(
    "--unlabeled", type=FILE, multiple=True, metavar="VIDEO", help="To learn from without labels, beside the project's; repeatable."
)
@click.option("--unlabeled-frames", metavar="RANGE", help="Which frames of each, e.g. 0-999,1500 (default: all).")
@click.option("--labels", type=click.Choice(["auto", "complete", "partial"]), help="partial: there are animals without a label.")
@click.option("-o", "--output", type=FILE, metavar="DIR", help="Run folder (default: a dated one under runs/).")
@click.option(
    "--preset", type=click.Choice(["auto", "small", "gpu", "paper"]), default="auto", help="Starting point of all settings (default auto)."
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Optimiser steps.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Wall-clock budget in place of steps.")
@click.option("--weights", metavar="NAME|FILE", help="Of the backbone: auto | imagenet | none | FILE.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Of everything random.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder of -o.")
@click.option("--check", is_flag=True, help="Train nothing: say what looks wrong with the labels, with pictures.")
@click.option("--config", "config_file", type=FILE, metavar="FILE", help="Settings, as in a run's config.yaml.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. train.lr=0.0005; repeatable.")
@_common.device_option
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Processes, one per GPU.")
@click.option("--num-nodes", type=click.IntRange(min=1), metavar="N", help="Machines.")
@_common.output_options
@click.option_panel(
    "Data",
    options=[
        "--slp",
        "--dlc",
        "--coco",
        "--images",
        "--category",
        "--aliases",
        "--val",
        "--video-root",
        "--unlabeled",
        "--unlabeled-frames",
        "--labels",
    ],
)
@click.option_panel(
    "Run", options=["--output", "--preset", "--steps", "--minutes", "--weights", "--seed", "--resume", "--check", "--config", "--set"]
)
@click.option_panel("Machine and output", options=["--device", "--devices", "--num-nodes", "--quiet", "--json", "--help"])
@click.pass_obj
def command(state: _common.State, **options: Any) -> None:
    """Train a pose model on a labelled project, and on its unlabelled frames."""
    reporter = state.reporter = Reporter(quiet=options["quiet"], json=options["as_json"])
    _common.refuse_unnamed()
    projects = _projects(options)
    if options["steps"] and options["minutes"]:
        raise click.UsageError("Give --minutes or --steps, not both: the budget of the training.")
    if projects and not options["coco"] and (given := [name for name in ("images", "category") if options[name]]):
        raise FormatError(f"--{given[0]} is for COCO labels, and none are named with --coco; leave it out.")
    unlabeled = [_common.existing(path) for path in options["unlabeled"]]
    val, share = _common.validation(options["val"])
    if options["unlabeled_frames"]:
        parse_ranges(options["unlabeled_frames"], "--unlabeled-frames")
    config_file = options["config_file"]
    if options["check"] and options["resume"]:
        raise click.UsageError("--check trains nothing, so there is nothing to --resume; leave one of them out.")
    if options["resume"]:
        if options["output"] is None:
            raise click.UsageError("--resume needs -o: the folder of the run to go on with.")
        settings = _common.existing(options["output"]) / "config.yaml"
        config_file = config_file or (settings if settings.is_file() else None)
    config, reasons = _common.build_config(
        options["preset"], config_file, options["sets"], _flags(options, share), options["device"] or "auto",
        bool(projects) and not options["resume"],
    )  # fmt: skip
    if options["resume"] and config_file is not None and options["config_file"] is None:
        refuse_changes(config, read_config(config_file))
    if not projects and not config.data.projects:
        raise click.UsageError("Missing option '--slp', '--dlc' or '--coco': the labelled project to learn from.")
    for reason in reasons:
        reporter.say(reason)

    what: dict[str, Any] = {
        "config": config, "out": options["output"], "val": val, "video_root": options["video_root"], "unlabeled": unlabeled,
        "reporter": reporter,
    }  # fmt: skip
    if options["check"]:
        from smp_plugin import checking

        checking.check(projects or None, **what)
        return
    from smp_plugin import training

    run = training.train(projects or None, resume=options["resume"], **what)
    suffix = {DLC: ".h5", COCO: ".json"}.get(format_of(projects[0]) if projects else SLEAP, ".slp")
    reporter.say(f"predict with: smp-predict VIDEO -o OUT{suffix} --model {shlex.quote(str(run))}")


def _projects(options: dict[str, Any]) -> list[Path]:
    """The projects of all formats; one behind the wrong flag is better named than guessed at."""
    known = _common.PROJECTS
    flags = {kind: flag for flag, kinds in known.items() for kind in kinds}
    for flag, kinds in known.items():
        for path in options[flag]:
            if _common.existing(path).is_dir() and flag != "dlc":
                raise FormatError(f"--{flag} {path} is a folder; name the project file in it.")
            kind = format_of(path)
            if kind not in kinds:
                remedy = f"name it with --{flags[kind]}" if kind in flags else "a labelled project is needed"
                raise FormatError(f"--{flag} {path} is a {kind} file; {remedy}.")
    return [path for flag in known for path in options[flag]]


def _flags(options: dict[str, Any], share: float | None) -> dict[str, object]:
    steps, minutes = options["steps"], options["minutes"]
    return {
        "data.labels": options["labels"],
        "data.images": str(options["images"].absolute()) if options["images"] else None,
        "data.category": options["category"],
        "data.aliases": str(_common.existing(options["aliases"]).absolute()) if options["aliases"] else None,
        "data.val_fraction": share,
        "data.val": None if share is None else "",  # a share asked for here beats the project of a settings file
        "data.unlabeled_frames": options["unlabeled_frames"],
        "model.weights": options["weights"],
        "train.steps": steps,
        "train.minutes": 0.0 if steps and minutes is None else minutes,  # steps asked for here beat minutes of a settings file
        "train.device": options["device"],
        "train.devices": options["devices"],
        "train.num_nodes": options["num_nodes"],
        "train.seed": options["seed"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    return _common.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Does DeepLabCut take what our trained models predict? From its project through our training to its own functions.

    python benchmarks/deeplabcut_roundtrip.py CONFIG VIDEO WORK -o benchmarks/results/deeplabcut_interop.json --steps 60 --frames 0-59

DeepLabCut has to be installed (``pip install 'smp-plugin[dlc]'``). The project is copied to WORK, trained on for a few steps (accuracy is
not the question), and the poses of VIDEO are handed to DeepLabCut's functions; each line of the result names a function, the file that it
was given and the file that it wrote. Functions that ask for a trained shuffle are given the name of one, and load no network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("deeplabcut", "torch", "numpy", "pandas", "tables", "filterpy", "matplotlib", "smp-plugin")
SHUFFLE, SNAPSHOT = 77, 5000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file; the project's entry in it is replaced")
    parser.add_argument("--model", type=Path, help="a finished run folder, in place of training")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--frames", default="0-59")
    parser.add_argument("--set", action="append", default=[], help="a setting of smp-train; repeatable")
    return parser.parse_args()


def command(name: str, *words: object) -> None:
    """One of our commands, as a user types it; its end is the benchmark's where it fails."""
    module = __import__(f"smp_plugin.cli.{name}", fromlist=["main"])
    if code := module.main([str(word) for word in words]):
        raise SystemExit(f"smp-{name} ended with {code}")


def pseudo_shuffle(config: Path) -> str:
    """Make the folders of a shuffle of DeepLabCut's other engine, which it only asks for a name; return the scorer's name."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    name, percent = f"{settings['Task']}{settings['date']}", int(settings["TrainingFraction"][0] * 100)
    folder = config.parent / "dlc-models" / f"iteration-{settings['iteration']}" / f"{name}-trainset{percent}shuffle{SHUFFLE}"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
    (folder / "train" / "pose_cfg.yaml").write_text("net_type: smp_resnet_50\n", encoding="ascii")
    (folder / "train" / f"snapshot-{SNAPSHOT}.index").touch()
    keypoints = keypoints_of(settings)
    test = {
        "dataset": name,
        "num_joints": len(keypoints),
        "all_joints": [[n] for n in range(len(keypoints))],
        "all_joints_names": keypoints,
    }
    (folder / "test" / "pose_cfg.yaml").write_text(yaml.safe_dump(test), encoding="ascii")
    return f"DLC_smpresnet50_{name}shuffle{SHUFFLE}_{SNAPSHOT}"


def keypoints_of(settings: dict[str, Any]) -> list[str]:
    return settings["multianimalbodyparts"] if settings.get("multianimalproject") else settings["bodyparts"]


class Taken:
    """What DeepLabCut's functions made of our files."""

    def __init__(self) -> None:
        self.lines: list[dict[str, str]] = []

    def call(self, function: str, given: Path, made: tuple[Path, str], *words: Any, **options: Any) -> None:
        """Call a function; it has taken the file if it raised nothing and wrote what was not there before. ``made``: folder and pattern."""
        import deeplabcut

        folder, pattern = made
        before, here = {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}, os.getcwd()
        line = {"function": function, "given": given.name}
        try:
            getattr(deeplabcut, function)(*words, **options)
            wrote = sorted(path.name for path in folder.rglob(pattern) if before.get(path) != path.stat().st_mtime_ns)
            line["wrote"] = ", ".join(wrote[:3]) + (f" and {len(wrote) - 3} more" if len(wrote) > 3 else "")
            if not wrote:
                line["failed"] = f"wrote no {pattern}"
        except Exception as error:
            line["failed"] = f"{type(error).__name__}: {error}"[:300]
        finally:
            os.chdir(here)  # some functions change it
        self.lines.append(line)
        print(line, flush=True)


def roundtrip(config: Path, video: Path, out: Path, run: Path, frames: str) -> list[dict[str, str]]:
    """Predict the video and hand the files to DeepLabCut."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    animals = len(settings["individuals"]) if settings.get("multianimalproject") else 1
    ending, taken = "_el" if animals > 1 else "", Taken()
    common: tuple[str, list[str]] = str(config), [str(video)]
    options = ("--model", run, "--max-animals", animals, "--min-score", 1e-6)  # a hardly trained model is sure of nothing

    command("predict", video, "-o", out, "--format", "h5", "--frames", frames, *options)
    found = out / f"{video.stem}DLC_SemiMultiPose_best{ending}.h5"
    made = {"init_weights": "/any/SemiMultiPose_best.pt", "destfolder": str(out), "fastmode": True}
    taken.call("create_labeled_video", found, (out, "*_labeled.mp4"), *common, **made)
    found.with_suffix(".csv").unlink()
    taken.call("analyze_videos_converth5_to_csv", found, (out, "*.csv"), video_folder=str(out), videotype=video.suffix)

    found = out / f"{video.stem}{pseudo_shuffle(config)}{ending}.h5"
    command("predict", video, "-o", found, "--frames", frames, *options)
    shuffle: dict[str, Any] = {"shuffle": SHUFFLE, "destfolder": str(out)}
    taken.call("filterpredictions", found, (out, "*_filtered.h5"), *common, **shuffle)
    filtered = found.with_name(f"{found.stem}_filtered.h5")
    taken.call("create_labeled_video", filtered, (out, "*_filtered*_labeled.mp4"), *common, **shuffle, filtered=True, fastmode=True)
    taken.call("plot_trajectories", found, (out, "*.png"), *common, **shuffle)
    labelled = config.parent / "labeled-data"
    unsure: dict[str, Any] = {"outlieralgorithm": "uncertain", "p_bound": 0.99, "automatic": True, "extractionalgorithm": "uniform"}
    taken.call("extract_outlier_frames", found, (labelled, "machinelabels*.h5"), *common, **shuffle, **unsure)

    for file in labelled.rglob("machinelabels*"):
        file.unlink()
    first = frames.partition("-")[0]
    command("predict", video, "-o", labelled, "--frames", f"{first}-{int(first) + 9}", *options)
    taken.lines.append(corrected(config, next(labelled.rglob("machinelabels*.h5"))))
    return taken.lines


def corrected(config: Path, machine: Path) -> dict[str, str]:
    """Machine labels as DeepLabCut's GUI saves them when a person agrees with all of them, and the training set that it makes of them."""
    import deeplabcut
    import pandas as pd

    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    line = {"function": "merge_datasets, create_training_dataset", "given": machine.name}
    try:
        table: Any = pd.read_hdf(machine)
        assert all((config.parent / Path(*row)).is_file() for row in table.index), "an image is missing"
        table = table.drop(columns="likelihood", level="coords").rename(columns={table.columns[0][0]: settings["scorer"]}, level="scorer")
        target = machine.with_name(f"CollectedData_{settings['scorer']}.h5")
        if target.exists():
            old: Any = pd.read_hdf(target)
            table = pd.concat([old, table.reindex(columns=old.columns)[~table.index.isin(old.index)]])
        table.to_hdf(target, key="df_with_missing", mode="w")
        table.to_csv(target.with_suffix(".csv"))
        settings["video_sets"] = {
            str(config.parent / "videos" / f"{folder.name}.mp4"): {"crop": "0, 1, 0, 1"}
            for folder in (config.parent / "labeled-data").iterdir()
            if folder.is_dir() and not folder.name.endswith("_labeled")
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        with contextlib.chdir(config.parent):
            deeplabcut.merge_datasets(str(config))
            deeplabcut.create_training_dataset(str(config), Shuffles=[1], userfeedback=False, net_type=settings["default_net_type"])
        wrote = [path.name for path in (config.parent / "training-datasets").rglob("Documentation_data-*.pickle")]
        line |= {"wrote": ", ".join(wrote)} if wrote else {"failed": "no training set"}
    except Exception as error:
        line["failed"] = f"{type(error).__name__}: {error}"[:300]
    print(line, flush=True)
    return line


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> int:
    options = arguments()
    import matplotlib

    matplotlib.use("Agg")
    name = options.config.absolute().parent.name
    work = options.work.absolute() / name
    if work.exists():
        raise SystemExit(f"{work} exists; name another folder to work in.")
    shutil.copytree(options.config.absolute().parent, work / name, copy_function=shutil.copyfile)
    config, out = work / name / "config.yaml", work / "poses"
    out.mkdir()
    video = Path(shutil.copyfile(options.video, out / options.video.name))
    run = options.model or work / "run"
    if options.model is None:
        extra = [word for setting in ("train.val_every=50", *options.set) for word in ("--set", setting)]
        command("train", "--dlc", config, "-o", run, "--preset", "small", "--steps", options.steps, *extra)
    lines = roundtrip(config, video, out, run.absolute(), options.frames)
    result = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    entry = {"versions": versions(), "video": video.name, "frames": options.frames, "trained_on": name, "functions": lines}
    result[name] = entry
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any("failed" in line for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())

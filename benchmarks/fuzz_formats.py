"""Damaged and hostile files of every native format: each must be read, or refused in one sentence that names the file.

    python benchmarks/fuzz_formats.py                        # 2,000 cases a format; exit code 1 if one fails
    python benchmarks/fuzz_formats.py --formats coco --case 17 --keep kept    # one case again, with its files

Small projects are made, and in each case one file of one of them is changed: cut, flipped, with values, keys, types, shapes and links
replaced by others, some of them traps. The project is then read, and converted to some other format where it still can be; where it
cannot, every fourth case tries all the same. A case fails if

* anything is raised but a `FormatError` of one line that names the file, or the labels are not what the internal format promises;
* it takes longer than ``--timeout`` seconds or more than ``--memory`` MB above what the process had before, or the process dies;
* anything outside the output folder is written, a pickle imports something, a program or a connection is started;
* an output is there after a refusal, or cannot be read after none.

A few cases at a time run in a process of their own, of whose largest memory in each the system keeps account; it is looked at every 50 ms,
and ended where it is too much. Case and seed together give the same damage again; the result file lists every failure.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_case import TARGETS, Limits, Seed, attempt, run_cases

from converters import Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, write_predictions, write_project

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "mouse")


# --- whole projects ---


def make_seeds(root: Path) -> dict[str, list[Seed]]:
    """By format, small projects to damage."""
    import pandas as pd
    from PIL import Image

    def images(folder: Path) -> VideoSource:
        folder.mkdir(parents=True)
        paths = tuple(folder / f"img{number:04d}.png" for number in range(4))
        for number, path in enumerate(paths):
            Image.fromarray(np.full((12, 16, 3), 40 * number, np.uint8)).save(path)
        return VideoSource(paths)

    points = np.array([[1.5, 2.0], [8.0, np.nan], [12.0, 10.25]])
    person = [Instance(points, "one"), Instance(points[::-1] + 1, None)]
    model = [PredictedInstance(points, "one", 0.75, np.array([0.5, 0, 1])), PredictedInstance(points - 1, None, 0.5)]
    labelled = [LabeledFrame(0, 0, person), LabeledFrame(0, 2, person[:1])]
    mixed = [LabeledFrame(0, 0, person, model), LabeledFrame(0, 1, [], model), LabeledFrame(0, 3, negative=True)]
    predicted = [LabeledFrame(0, 0, [], model), LabeledFrame(0, 2, [], model[:1])]
    seeds: dict[str, list[Seed]] = {}
    root.mkdir()
    with h5py.File(root / "other.h5", "w") as file:  # what links to another file point at
        file.create_dataset("big", shape=(1 << 29,), dtype="f8", chunks=(1 << 20,))

    def add(name: str, write: Callable[[Path, VideoSource], Any], project: str, victim: str = "", annotations: str | None = None) -> None:
        folder = root / f"{name}{len(seeds.get(name, []))}"
        write(folder, images(folder / "clip"))
        victims = sorted(folder.glob(victim or project))
        seeds.setdefault(name, []).append(Seed(folder, project, str(victims[0].relative_to(folder)), annotations))

    def project(name: str, frames: list[LabeledFrame]) -> Callable[[Path, VideoSource], Any]:
        return lambda folder, video: write_project(folder / name, Labels(SKELETON, [video], frames))

    def predictions(name: str, video: bool = True) -> Callable[[Path, VideoSource], Any]:
        return lambda folder, v: write_predictions(
            folder / name, SKELETON, [v if video else VideoSource((folder / "clip.mp4",))], predicted, {"by": "fuzz"}
        )

    def table(folder: Path, _: VideoSource) -> None:
        names = [("DLC_net", "one", k, c) for k in SKELETON.keypoints for c in ("x", "y", "likelihood")]
        columns = pd.MultiIndex.from_tuples(names, names=["scorer", "individuals", "bodyparts", "coords"])
        frame = pd.DataFrame(np.arange(27.0).reshape(3, 9), columns=columns)
        frame.to_hdf(folder / "clipDLC_net_el.h5", key="tracks", format="table")

    def dlc(drop: str) -> Callable[[Path, VideoSource], Any]:
        def write(folder: Path, video: VideoSource) -> None:
            write_project(folder / "dlc", Labels(SKELETON, [video], labelled))
            for file in (folder / "dlc").rglob(drop):
                file.unlink()

        return write

    def results(folder: Path, video: VideoSource) -> None:
        write_project(folder / "truth.json", Labels(SKELETON, [video], labelled))
        write_predictions(folder / "results.json", SKELETON, [video], predicted, {}, [folder / "truth.json"])

    add("slp", project("project.slp", mixed), "project.slp")
    add("slp", predictions("project.slp", video=False), "project.slp")
    add("pkg.slp", project("project.pkg.slp", mixed), "project.pkg.slp")
    add("analysis.h5", predictions("clip.analysis.h5"), "clip.analysis.h5")
    add("analysis.h5", project("clip.analysis.h5", mixed), "clip.analysis.h5")
    add("coco", project("labels.json", mixed), "labels.json")
    add("coco results", results, "results.json", annotations="truth.json")
    add("coco results", results, "results.json", "truth.json", annotations="truth.json")
    add("dlc config", dlc(".none"), "dlc/config.yaml")
    add("dlc h5", dlc("*.csv"), "dlc/config.yaml", "dlc/labeled-data/*/*.h5")
    add("dlc csv", dlc("*.h5"), "dlc/config.yaml", "dlc/labeled-data/*/*.csv")
    stem = "clipDLC_net_el"
    add("dlc predictions h5", predictions(f"{stem}.h5"), f"{stem}.h5")
    add("dlc predictions h5", table, f"{stem}.h5")
    add("dlc predictions h5", predictions(f"{stem}.h5", video=False), f"{stem}.h5", "*_meta.pickle")
    add("dlc predictions csv", predictions(f"{stem}.csv"), f"{stem}.csv")
    add("dlc predictions csv", predictions(f"{stem}.csv", video=False), f"{stem}.csv", "*_meta.pickle")
    return seeds


# --- all cases ---


FINE = ("converted", "refused", "read, not converted")


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the cases; by format how many were read and refused, and every failure."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz", dir=arguments.keep) as place:  # a pipe cannot be moved to another disk
        root = Path(place).resolve()
        all_seeds = make_seeds(root / "seeds")
        for name in arguments.formats or all_seeds:
            try_whole(name, all_seeds[name], root)
            gc.collect()
            gc.freeze()  # or the first collection in each process would copy all pages
            rows[name] = fuzz_format(name, all_seeds[name], root, arguments)
            print(line(name, rows[name]), flush=True)
    return rows


def try_whole(name: str, seeds: list[Seed], root: Path) -> None:
    """Projects that nothing was done to must convert; this also imports all that the cases need."""
    for number, seed in enumerate(seeds):
        for target in TARGETS:
            folder = root / f"whole{number}{target}"
            (folder / "out").mkdir(parents=True)
            shutil.copytree(seed.folder, folder / "in")
            if (outcome := attempt(seed, target, folder)) not in FINE[::2]:
                raise RuntimeError(f"{name}: a whole project is {outcome} on the way to {target}")
            shutil.rmtree(folder)


def fuzz_format(name: str, seeds: list[Seed], root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A format's row of the result."""
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    started, most = cpu_seconds(), 0.0
    numbers = [arguments.case] if arguments.case is not None else range(arguments.start, arguments.start + arguments.cases)
    for result in run_cases(seeds, name, numbers, root, arguments.seed, Limits(arguments.timeout, arguments.memory)):
        folder, fine = root / f"case{result.number}", result.outcome in FINE
        most = max(most, result.memory)
        counts[result.outcome if fine else "failed"] += 1
        if not fine:
            failures.append({"case": result.number, "damage": result.done, "outcome": result.outcome.replace(str(folder), "CASE")})
            print(f"{name}, case {result.number}: {result.done}: {failures[-1]['outcome']}", flush=True)
        if arguments.keep and (not fine or arguments.case is not None):
            kept = arguments.keep / f"{name.replace(' ', '-')}-{result.number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(folder, kept)
        shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = {**{kind: counts[kind] for kind in (*FINE, "failed")}, "cases": counts.total()}
    return row | {"largest_mb": round(most), "cpu_seconds": round(cpu_seconds() - started), "failures": failures}


def cpu_seconds() -> float:
    """Work of this process and those that ended; the time on the clock says more of what else the machine does."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def line(name: str, row: dict[str, Any]) -> str:
    """A format's line of the table."""
    return f"{name:20}" + "".join(f"{row[key]:>{width}}" for key, width in COLUMNS.items())


def joined(before: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A format's earlier cases and these."""
    return {key: max(value, before[key]) if key == "largest_mb" else before[key] + value for key, value in row.items()}


COLUMNS = {"cases": 7, "converted": 11, "read, not converted": 21, "refused": 9, "failed": 8, "largest_mb": 12, "cpu_seconds": 13}


def machine() -> dict[str, object]:
    """Where and with what the figures were made."""
    packages = ("numpy", "h5py", "sleap-io", "pandas", "PyYAML")
    return {"platform": platform.platform(), "python": platform.python_version(), "versions": {p: version(p) for p in packages}}


def main() -> int:
    """Run, print a table, write the result; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", metavar="NAME", help="only these, such as: slp coco 'dlc h5'")
    parser.add_argument("--cases", type=int, default=2000, help="for each format (2000)")
    parser.add_argument("--start", type=int, default=0, help="number of the first case (0); later ones are added to the output")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds of work for a case (10); of waiting, twelve times as long")
    parser.add_argument("--memory", type=int, default=700, help="MB for a case (700)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of failed cases there")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "fuzz_formats.json")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    rows = fuzz(arguments)
    if arguments.case is None:
        command = f"python benchmarks/fuzz_formats.py --cases {arguments.cases} --seed {arguments.seed}"
        kept = {"command": command, "machine": machine(), "formats": {}}
        if arguments.output.exists() and (arguments.formats or arguments.start):
            kept["formats"] = json.loads(arguments.output.read_text())["formats"]
        for name, row in rows.items():
            before = kept["formats"].get(name) if arguments.start else None
            kept["formats"][name] = joined(before, row) if before else row
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(kept, indent=1) + "\n")
    print("\n" + " " * 20 + "".join(f"{key.replace('_', ' '):>{width}}" for key, width in COLUMNS.items()))
    for name, row in rows.items():
        print(line(name, row))
    return int(any(row["failed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())

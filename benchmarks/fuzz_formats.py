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

Each case runs in a process of its own, whose largest memory the system tells; it is looked at every 50 ms, and ended where it is too
much. Case and seed together give the same damage again; the result file lists every failure.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_damage import Rng, damage_csv, damage_json, damage_pickle, damage_yaml, pick
from fuzz_damage_hdf5 import damage_h5

from converters import (
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    convert,
    read_project,
    write_predictions,
    write_project,
)

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "mouse")
DAMAGE = {".json": damage_json, ".yaml": damage_yaml, ".csv": damage_csv, ".pickle": damage_pickle, ".h5": damage_h5, ".slp": damage_h5}
TARGETS = ("out.slp", "out.pkg.slp", "out.json", "out.analysis.h5", "out.h5", "out.csv", "out-dlc")
ADDRESS_SPACE = 12 << 30  # a claim of more than this fails at once, as on a small machine; less is watched as it is used


# --- whole projects ---


@dataclass(frozen=True)
class Seed:
    """A project in a folder of its own; ``victim`` is the file to damage, by the function of its kind."""

    folder: Path
    project: str
    victim: str
    annotations: str | None = None


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


# --- one case ---


def prepare(seeds: list[Seed], rng: Rng, folder: Path) -> tuple[Seed, str]:
    """A damaged copy of one of the projects, and things for its links to point at; says what was done."""
    seed = pick(rng, seeds)
    shutil.copytree(seed.folder, folder / "in", copy_function=os.link)
    (folder / "out").mkdir()
    (folder / "outside").mkdir()
    os.link(seed.folder / "clip" / "img0000.png", folder / "outside" / "secret.png")
    os.link(seed.folder.parent / "other.h5", folder / "outside" / "other.h5")
    (folder / "in" / "link.png").symlink_to("../outside/secret.png")
    (folder / "in" / "zero.png").symlink_to("/dev/zero")
    (folder / "in" / "loop").symlink_to(".")
    os.mkfifo(folder / "in" / "pipe.png")
    victim = folder / "in" / seed.victim
    content = victim.read_bytes()
    victim.unlink()  # it was a link to the whole project
    victim.write_bytes(content)
    return seed, f"{victim.name}: {DAMAGE[victim.suffix](rng, victim)}"


def attempt(seed: Seed, target: str, folder: Path, insist: bool = True) -> str:
    """Read, and convert where that is possible, or ``insist``. Returns "converted", "read, not converted", "refused" or what is wrong."""
    source, out = folder / "in" / seed.project, folder / "out" / target
    options: dict[str, Any] = {} if seed.annotations is None else {"annotations": folder / "in" / seed.annotations}
    outcome = "converted"
    try:
        problems = check(read_project(source, require_videos=False, **options))
        if problems:
            return problems
    except FormatError as error:
        outcome = "refused"
        if (told := badly_told(error, folder)) or not insist:
            return told or outcome
    try:
        convert(source, out, **options)
    except FormatError as error:
        if told := badly_told(error, folder):
            return told
        if left := [file.name for file in (folder / "out").iterdir()]:
            return f"left {', '.join(left)} after a refusal ({error})"
        return "refused" if outcome == "refused" else "read, not converted"
    if outcome == "refused":
        return "read_project refuses what convert takes"
    if target == "out.json" and isinstance(json.loads(out.read_text()), list):
        return outcome
    if problems := check(read_project(out, require_videos=False)):
        return f"written: {problems}"
    return outcome


def badly_told(error: FormatError, folder: Path) -> str:
    """What is wrong with a message, if anything."""
    message = str(error)
    if len(message.splitlines()) != 1 or re.search(r"[\0-\x1f\ud800-\udfff]", message) or len(message) > 2000:
        return f"a message of {len(message)} characters and {len(message.splitlines())} lines: {message[:300]!r}"
    return "" if str(folder) in message or folder.name in message else f"a message that names no file: {message}"


def check(labels: Labels) -> str:
    """What is wrong with labels, if anything."""
    names = [*labels.skeleton.keypoints, *(i.track for f in labels.frames for i in (*f.instances, *f.predicted) if i.track is not None)]
    if not all(isinstance(name, str) for name in names):
        return f"names that are no texts: {names}"
    if not all(isinstance(path, Path) and path.is_absolute() for video in labels.videos for path in video.paths):
        return "a video without an absolute path"
    if len({(frame.video, frame.index) for frame in labels.frames}) < len(labels.frames):
        return "two entries for one frame"
    for frame in labels.frames:
        if not all(type(number) is int for number in (frame.video, frame.index)) or not 0 <= frame.video < len(labels.videos):
            return f"a frame numbered {frame.video!r}, {frame.index!r}"
        for instance in (*frame.instances, *frame.predicted):
            if instance.points.shape != (len(labels.skeleton), 2) or np.isinf(instance.points).any():
                return f"points {instance.points}"
            if isinstance(instance, PredictedInstance) and not (np.isfinite(instance.score) and np.isfinite(instance.point_scores).all()):
                return f"a score {instance.score}, points' {instance.point_scores}"
    return ""


def watch(folder: Path, seen: list[str]) -> None:
    """Note whatever this process does outside the output folder. It cannot be taken back."""
    inside = (str(folder / "out"), "/dev/null")
    places = {
        "os.remove": (0,),
        "os.rename": (0, 1),
        "os.mkdir": (0,),
        "os.rmdir": (0,),
        "os.link": (1,),
        "os.symlink": (1,),
        "os.truncate": (0,),
    }
    places |= {"os.chmod": (0,), "os.chown": (0,), "shutil.move": (0, 1), "shutil.rmtree": (0,), "os.utime": (0,)}
    started = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class", "ctypes.dlopen")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        written: list[Any] = []
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            written = [arguments[0]]
        elif event in places:
            written = [_place(arguments, place) for place in places[event]]
        elif event.startswith(started):
            seen.append(f"{event}{arguments}")
        for path in written:
            if not isinstance(path, int) and not os.path.abspath(os.fsdecode(path)).startswith(inside):
                seen.append(f"{event} {path}")

    sys.addaudithook(note)


def _place(arguments: tuple[Any, ...], place: int) -> Any:
    """A path that an audited call was given; those that removing a whole folder uses are relative to an open one."""
    path, last = arguments[place], arguments[-1]
    return (
        os.path.join(os.readlink(f"/proc/self/fd/{last}"), os.fsdecode(path))
        if isinstance(last, int) and 0 < last < 1000 and len(arguments) == 2
        else path
    )


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a case's folder, but for the output."""
    found = {}
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and "out" in folders:
            folders.remove("out")
        for name in (*folders, *files):
            state = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = state.st_size if name in files else 0, state.st_mtime_ns if name in files else 0
    return found


def child(seeds: list[Seed], rng: Rng, folder: Path, pipe: int, timeout: float, insist: bool) -> None:
    """Run one case; what comes of it is written to ``pipe``."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    seen: list[str] = []
    try:
        seed, done = prepare(seeds, rng, folder)
    except Exception:
        os.write(pipe, json.dumps([traceback.format_exc()[-1500:]]).encode() + b"\n")
        raise
    target = pick(rng, TARGETS)
    os.write(pipe, json.dumps([done, target]).encode() + b"\n")
    os.chdir(folder)
    before = listed(folder)
    watch(folder, seen)
    signal.setitimer(signal.ITIMER_PROF, timeout)  # ends the process, also inside a library
    try:
        outcome = attempt(seed, target, folder, insist)
    except BaseException as error:
        last = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)][-5:]
        outcome = f"{type(error).__name__} at {' '.join(last)}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    if changed := [path for path, state in {**before, **listed(folder)}.items() if before.get(path) != state or not os.path.lexists(path)]:
        outcome = f"changed {changed[0]} ({outcome})"
    if seen:
        outcome = f"did {seen[0]} ({outcome})"
    os.write(pipe, outcome.encode(errors="replace")[:600])


def run_case(seeds: list[Seed], name: str, number: int, folder: Path, arguments: argparse.Namespace) -> tuple[str, str, float]:
    """What was done to the project, what came of it, and the megabytes that it took."""
    rng = np.random.default_rng([arguments.seed, zlib.crc32(name.encode()), number])
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork, beside threads that sleep
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(receive)
            child(seeds, rng, folder, send, arguments.timeout, number % 4 == 0)
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    at_first, most, told, too_large, late = _resident(pid), 0.0, b"", False, False
    deadline = time.monotonic() + 12 * arguments.timeout  # the child's own clock counts the time that it works, not that it waits
    while True:
        ready, _, _ = select.select([receive], [], [], 0.05)
        if ready:
            piece = os.read(receive, 65536)
            told += piece
            if not piece:
                break
        most = max(most, _resident(pid) - at_first)
        if most > arguments.memory or time.monotonic() > deadline:
            too_large, late = most > arguments.memory, most <= arguments.memory
            os.kill(pid, signal.SIGKILL)
            break
    os.close(receive)
    _, status, used = os.wait4(pid, 0)
    most = max(most, used.ru_maxrss * 1024 / 1e6 - at_first)  # also what was given back between two looks
    too_large = too_large or most > arguments.memory
    first, _, outcome = told.decode(errors="replace").partition("\n")
    done = " -> ".join(json.loads(first)) if first else "damage"
    if too_large:
        outcome = f"took more than {arguments.memory} MB"
    elif late:
        outcome = f"waited for more than {12 * arguments.timeout} s"
    elif os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status)).name
        outcome = f"took more than {arguments.timeout} s" if ended == "SIGPROF" else f"ended by {ended}"
    elif not first or status:
        outcome = "the fuzzer itself failed while it did its damage"
    return done, outcome, most


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except (OSError, IndexError):
        return 0.0


# --- all cases ---


FINE = ("converted", "refused", "read, not converted")


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the cases; by format how many were read and refused, and every failure."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        root = Path(place).resolve()
        all_seeds = make_seeds(root / "seeds")
        for name in arguments.formats or all_seeds:
            seeds = all_seeds[name]
            for number, seed in enumerate(seeds):  # whole projects must convert; this also imports all that the cases need
                for target in TARGETS:
                    folder = root / f"whole{number}{target}"
                    (folder / "out").mkdir(parents=True)
                    shutil.copytree(seed.folder, folder / "in")
                    if (outcome := attempt(seed, target, folder)) not in FINE[::2]:
                        raise RuntimeError(f"{name}: a whole project is {outcome} on the way to {target}")
                    shutil.rmtree(folder)
            gc.collect()
            gc.freeze()  # or the first collection in each process would copy all pages
            counts: Counter[str] = Counter()
            failures = []
            started, most = time.perf_counter(), 0.0
            for number in [arguments.case] if arguments.case is not None else range(arguments.start, arguments.start + arguments.cases):
                folder = root / f"case{number}"
                folder.mkdir()
                done, outcome, memory = run_case(seeds, name, number, folder, arguments)
                most = max(most, memory)
                counts[outcome if outcome in FINE else "failed"] += 1
                if outcome not in FINE:
                    failures.append({"case": number, "damage": done, "outcome": outcome.replace(str(folder), "CASE")})
                    print(f"{name}, case {number}: {done}: {failures[-1]['outcome']}", flush=True)
                if arguments.keep and (outcome not in FINE or arguments.case is not None):
                    kept = arguments.keep / f"{name.replace(' ', '-')}-{number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.move(folder, kept)
                shutil.rmtree(folder, ignore_errors=True)
            rows[name] = {**{kind: counts[kind] for kind in (*FINE, "failed")}, "cases": counts.total()}
            rows[name] |= {"largest_mb": round(most), "seconds": round(time.perf_counter() - started), "failures": failures}
            print(line(name, rows[name]), flush=True)
    return rows


def line(name: str, row: dict[str, Any]) -> str:
    """A format's line of the table."""
    return f"{name:20}" + "".join(f"{row[key]:>{width}}" for key, width in COLUMNS.items())


def joined(before: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A format's earlier cases and these."""
    return {key: max(value, before[key]) if key == "largest_mb" else before[key] + value for key, value in row.items()}


COLUMNS = {"cases": 7, "converted": 11, "read, not converted": 21, "refused": 9, "failed": 8, "largest_mb": 12, "seconds": 9}


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
        kept = {"command": "python benchmarks/fuzz_formats.py", "seed": arguments.seed, "machine": machine(), "formats": {}}
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

"""One case of `fuzz_formats`: a project is damaged, read and converted, in a process that is watched."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_damage import Rng, damage_csv, damage_json, damage_pickle, damage_yaml, pick
from fuzz_damage_hdf5 import damage_h5

from converters import FormatError, Labels, PredictedInstance, convert, read_project

DAMAGE = {".json": damage_json, ".yaml": damage_yaml, ".csv": damage_csv, ".pickle": damage_pickle, ".h5": damage_h5, ".slp": damage_h5}
TARGETS = ("out.slp", "out.pkg.slp", "out.json", "out.analysis.h5", "out.h5", "out.csv", "out-dlc")
ADDRESS_SPACE = 12 << 30  # a claim of more than this fails at once, as on a small machine; less is watched as it is used
TOGETHER = 25  # cases in a process
LOOK = 0.05  # seconds between two looks at a process's memory


@dataclass(frozen=True)
class Seed:
    """A project in a folder of its own; ``victim`` is the file to damage, by the function of its kind."""

    folder: Path
    project: str
    victim: str
    annotations: str | None = None


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
    named = folder.name in message or re.search(r"The (image|video|package) /", message)  # a project's video may be said to be elsewhere
    return "" if named else f"a message that names no file: {message}"


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


class Watch:
    """Notes whatever this process does outside a case's output folder. The hook cannot be taken back, but it can be told to look away."""

    _PLACES = dict.fromkeys(
        ["os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree"], (0,)
    ) | {"os.rename": (0, 1), "shutil.move": (0, 1), "os.link": (1,), "os.symlink": (1,)}
    _STARTED = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class", "ctypes.dlopen")

    def __init__(self) -> None:
        self._inside: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def start(self, folder: Path) -> None:
        self._inside, self.seen = (str(folder / "out"), "/dev/null"), []

    def stop(self) -> None:
        self._inside = None

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside is None:
            return
        written: list[Any] = []
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            written = [arguments[0]]
        elif event in self._PLACES:
            written = [_place(arguments, place) for place in self._PLACES[event]]
        elif event.startswith(self._STARTED):
            self.seen.append(f"{event}{arguments}")
        for path in written:
            if not isinstance(path, int) and not os.path.abspath(os.fsdecode(path)).startswith(self._inside):
                self.seen.append(f"{event} {path}")


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


# --- processes ---


@dataclass(frozen=True)
class Result:
    """What was done to a project, what came of it, and the megabytes that it took."""

    number: int
    done: str
    outcome: str
    memory: float


@dataclass(frozen=True)
class Limits:
    """For a case: seconds of work (of waiting, twelve times as long), and megabytes."""

    seconds: float
    megabytes: int


def run_cases(seeds: list[Seed], name: str, numbers: Sequence[int], root: Path, seed: int, limits: Limits) -> Iterator[Result]:
    """Run cases, in the folders ``root / "caseN"``, in processes of at most `TOGETHER` cases, for to start one takes as long as a case.

    A process that is ended, for it takes too much or dies, is followed by a new one. A case's memory counts from what its process had at
    first, so what an earlier case did not give back counts, too.
    """
    waiting = list(numbers)
    while waiting:
        receive, send = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork, beside threads that sleep
            pid = os.fork()
        if pid == 0:
            try:
                os.close(receive)
                _work(seeds, name, waiting[:TOGETHER], root, seed, send, limits)
            finally:
                os._exit(0)
        os.close(send)
        done = 0
        for result in _results(pid, receive, waiting[:TOGETHER], limits):
            done += 1
            yield result
        del waiting[:done]


def _work(seeds: list[Seed], name: str, numbers: list[int], root: Path, seed: int, pipe: int, limits: Limits) -> None:
    """In a process of its own: run cases. Of each it tells first what was done, target, megabytes; in the end outcome, megabytes."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    watch, at_first = Watch(), memory(os.getpid(), "VmRSS")
    for number in numbers:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        folder = root / f"case{number}"
        folder.mkdir()
        try:
            chosen, done = prepare(seeds, rng, folder)
        except Exception:
            os.write(pipe, json.dumps([traceback.format_exc()[-1500:], "", 0]).encode() + b"\n")
            return
        target = pick(rng, TARGETS)
        with suppress(OSError):  # where it may not, the largest memory of all cases counts for each
            Path("/proc/self/clear_refs").write_text("5")  # forgets the largest memory until now
        os.write(pipe, json.dumps([done, target, at_first]).encode() + b"\n")
        outcome = _case(chosen, target, folder, watch, limits, insist=number % 4 == 0)
        os.write(pipe, json.dumps([outcome.encode(errors="replace").decode()[:600], memory(os.getpid(), "VmHWM")]).encode() + b"\n")


def _case(chosen: Seed, target: str, folder: Path, watch: Watch, limits: Limits, insist: bool) -> str:
    os.chdir(folder)
    before = listed(folder)
    watch.start(folder)
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)  # ends the process, also inside a library
    try:
        outcome = attempt(chosen, target, folder, insist)
    except BaseException as error:
        last = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)][-5:]
        outcome = f"{type(error).__name__} at {' '.join(last)}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    watch.stop()
    if changed := [path for path, state in {**before, **listed(folder)}.items() if before.get(path) != state or not os.path.lexists(path)]:
        outcome = f"changed {changed[0]} ({outcome})"
    return f"did {watch.seen[0]} ({outcome})" if watch.seen else outcome


def _results(pid: int, receive: int, numbers: list[int], limits: Limits) -> Iterator[Result]:
    """What a process tells of its cases, or of the last one what it is ended for."""
    told, lines, at_first, largest, ended = b"", [], 0.0, 0.0, ""
    looks = 0  # in vain; the process's own clock counts the time that it works, not that it waits
    waiting = iter(numbers)
    while True:
        ready, _, _ = select.select([receive], [], [], LOOK)
        looks = 0 if ready else looks + 1
        if ready:
            piece = os.read(receive, 65536)
            *whole, told = (told + piece).split(b"\n")
            for text in whole:
                lines.append(json.loads(text))
                if len(lines) == 1:
                    at_first = lines[0][2]
                else:
                    (done, target, before), (outcome, most) = lines
                    yield Result(next(waiting), f"{done} -> {target}", *_bounded(outcome, max(largest, most - before), limits))
                    lines, largest = [], 0.0
            if not piece:
                break
        if lines:
            largest = max(largest, memory(pid, "VmRSS") - at_first)
        if largest > limits.megabytes or looks * LOOK > 12 * limits.seconds:
            ended = "too large" if largest > limits.megabytes else f"waited for more than {12 * limits.seconds} s"
            os.kill(pid, signal.SIGKILL)
            break
    os.close(receive)
    _, status = os.waitpid(pid, 0)
    if not ended and os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        ended = f"took more than {limits.seconds} s" if name == "SIGPROF" else f"ended by {name}"
    number = next(waiting, None)
    if number is not None:
        if not lines or not lines[0][1]:
            ended = "the fuzzer itself failed while it did its damage"
        yield Result(number, " -> ".join(lines[0][:2]) if lines else "damage", *_bounded(ended or "ended without a word", largest, limits))


def _bounded(outcome: str, megabytes: float, limits: Limits) -> tuple[str, float]:
    return (f"took more than {limits.megabytes} MB" if megabytes > limits.megabytes else outcome), megabytes


def memory(pid: int, name: str) -> float:
    """Megabytes that a process has now, VmRSS, or had at most, VmHWM; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0

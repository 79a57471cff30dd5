"""``compare``: the same labels, validation frames and budget for every method, in one folder that can be interrupted and gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters import FormatError, LabeledFrame, Labels, read_project, write_project
from converters.files import refuse_links
from converters.project import COCO, format_of
from converters.supplement import write_supplement
from smp_plugin.baselines import (
    DEFAULT,
    DLC,
    METHODS,
    MINUTES,
    OWN,
    SAID_OTHERWISE,
    SLEAP,
    Job,
    Outcome,
    budget_in_words,
    own_settings,
    read_predictions,
)
from smp_plugin.baselines.__main__ import REFUSED, UNAVAILABLE
from smp_plugin.comparison_report import write_comparison
from smp_plugin.comparison_results import append_result, cell_folder, read_results, said_by, shown
from smp_plugin.completeness import looks_partial
from smp_plugin.config import Config, set_value
from smp_plugin.evaluation import evaluate
from smp_plugin.pairing import frame_pairs
from smp_plugin.peer_figures import installed, remedy
from smp_plugin.progress import Reporter, duration
from smp_plugin.similarity import MEDIUM_S2, PAPER_S2, SLEAP_S2

CAMPS = (OWN, SLEAP, DLC)  # what is not available for one method is not for its camp
TRIES = 2  # failures in a row after which a method is left out of the rest
SAVING = 300.0  # seconds that an interrupted run has to keep what it has; a second Ctrl-C ends it at once


def compare(
    project: Path,
    *,
    val: Path | float = 0.25,
    out: Path = Path("comparison"),
    methods: Sequence[str] = DEFAULT,
    minutes: float = 0.0,
    steps: int = 0,
    seeds: Sequence[int] = (0,),
    fractions: Sequence[str] = ("all",),
    preset: str = "auto",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    video_root: Path | None = None,
    curve: int = 6,
    reporter: Reporter | None = None,
) -> Path:
    """Train and measure every method on the same labels, for every number of labelled frames and every seed.

    Each run is a process of its own. A run that is finished (a line in ``results.csv``) is not repeated when this is called again. The
    validation frames choose nothing, in no method.

    Args:
        project: a labelled project of any format.
        val: a project whose labelled frames are predicted and measured, or the share of the labelled frames that are.
        out: the folder for ``results.csv``, ``report.html`` and the runs.
        methods: of ``baselines.METHODS``.
        minutes: wall-clock budget of each training, ``baselines.MINUTES`` where there are no steps; or
        steps: optimiser steps of each network.
        seeds: one run each. A seed also draws which labelled frames are learnt from.
        fractions: how many labelled frames are learnt from: "all", a number, or a percentage such as "20%"; the others are unlabelled.
        preset: of our methods.
        settings: further settings of our methods, ``section.name`` -> value, and of the peers, such as ``sleap.data_config....``.
        curve: points of AP over training time, measured outside of the budget.

    Returns:
        ``report.html``.

    Raises:
        FormatError: bad input, or ``out`` holds a comparison with another budget, another kind of device or other frames.
        KeyboardInterrupt: after ``report.html`` of the finished runs was written.
    """
    reporter = reporter or Reporter(quiet=True)
    if not methods:
        raise FormatError(f"--methods names none; choose from {', '.join(METHODS)}.")
    if not fractions:
        raise FormatError("--labels-fraction names none; write numbers of labelled frames, percentages or all, such as 5,20%,all.")
    if minutes and steps:
        raise FormatError("Give --minutes or --steps, not both: the budget that each training gets.")
    if not steps:
        minutes = minutes or MINUTES
    chosen = Config()
    for key, value in own_settings(settings or {}).items():  # a wrong one is better said now than in every run
        set_value(chosen, key, value)
        if how := SAID_OTHERWISE.get(key):
            raise FormatError(f"--set {key} would have no effect in a comparison: {how}; leave it out.")
    rule = chosen.data.labels  # one for the curves and figures of all methods
    budget = budget_in_words(minutes, steps)
    labels = read_project(project, video_root)
    held = read_project(val, video_root) if isinstance(val, Path) else None
    train, judged = _split(labels, held, val if isinstance(val, float) else 0.0)
    counts = {fraction: count_of(fraction, len(train.labelled_frames)) for fraction in fractions}
    for fraction, seed in itertools.product(fractions, seeds):
        if not _shows_animals(drawn(train, counts[fraction], seed).frames):
            raise FormatError(
                f"--labels-fraction {fraction}: no animal is labelled in the frames that seed {seed} draws; ask for more than "
                f"{counts[fraction]} of the {len(train.labelled_frames)}."
            )
    notes = [*labels.notes, *(_twice(train, judged) if held is not None else [])]
    _claim(out, project, val, (train, judged), budget, preset, settings or {}, device)
    for note in notes:
        reporter.warn(note)
    val_file = out / "data" / f"val.{_ending(val if isinstance(val, Path) else project, judged)}"
    val_file.parent.mkdir(exist_ok=True)
    _write(val_file, judged)
    beside = val_file.with_name("supplement.json").absolute()
    supplement = beside if write_supplement(beside, train, judged) else None
    reporter.say(
        f"{len(methods)} methods x {len(fractions)} numbers of labels x {len(seeds)} seeds, {budget} each; "
        f"measured on {len(judged.labelled_frames)} frames, which choose nothing"
    )
    # As smp-train takes it; DeepLabCut is told, too.
    settings = {**({"predict.max_animals": "1"} if train.one_animal else {}), **(settings or {})}
    jobs: list[tuple[str, int, Job]] = []
    for fraction, seed in itertools.product(fractions, seeds):
        train_file = out / "data" / f"train_{counts[fraction]}_{seed}.{_ending(project, train)}"
        _write(train_file, drawn(train, counts[fraction], seed))
        for method in sorted(set(methods), key=METHODS.index):
            folder = cell_folder(out, method, fraction, seed)
            job = Job(
                method, train_file.absolute(), val_file.absolute(), folder.absolute(), seed, minutes, steps, device, preset,
                settings, curve, rule, supplement,
            )  # fmt: skip
            jobs.append((fraction, counts[fraction], job))

    def show(problems: list[str]) -> Path:
        facts = _facts(project, train, judged, budget, rule, settings.get("predict.max_animals") == "1", out)
        page = write_comparison(out, title=f"Methods on {project.name}", val=judged, facts=facts, notes=[*notes, *problems])
        reporter.say(f"results: {out / 'results.csv'}; report: {page}")
        return page

    try:
        problems = _do(jobs, out, reporter)
    except KeyboardInterrupt:
        if read_results(out):
            show(["The comparison was interrupted, and runs are missing; the same command goes on with them."])
        raise
    if not read_results(out):
        raise FormatError(f"No method could be run: {' '.join(problems)}")
    return show(problems)


def _facts(project: Path, train: Labels, judged: Labels, budget: str, rule: str, one: bool, out: Path) -> dict[str, object]:
    """What was compared, and on which machine, for the page."""
    cells = read_results(out)
    alone = "one, as the project says: this project's methods and DeepLabCut's predict no more, SLEAP's are not told"
    partial, why = looks_partial(judged.labelled_frames, len(judged.skeleton)) if rule == "auto" else (rule == "partial", "as asked for")
    return {
        "Project": str(project),
        "Labelled frames to learn from": len(train.labelled_frames),
        "Frames measured": f"{len(judged.labelled_frames)} ({sum(len(f.instances) for f in judged.labelled_frames)} animals)",
        "Labels there": "partial: predictions where nothing is labelled are not judged" if partial else f"complete: {why}",
        "Keypoints": ", ".join(train.skeleton.keypoints),
        "Budget of each training": budget,
        **({"Animals in a frame": alone} if train.one_animal and one else {}),
        "Seeds": ", ".join(map(str, sorted({cell.seed for cell in cells}))),
        "Machine": "; ".join(said_by(out, cells, lambda outcome: [outcome.machine])) or "not recorded",
    }


def _do(jobs: Sequence[tuple[str, int, Job]], out: Path, reporter: Reporter) -> list[str]:
    """Run what ``results.csv`` does not hold yet: (fraction, labelled frames, job). Returns what went wrong, in sentences.

    A run that fails is skipped. A method that is not available, or fails ``TRIES`` times in a row, is left out of the rest.
    """
    said: list[str] = []
    left_out: set[str] = set()
    failures: Counter[str] = Counter()  # in a row

    def tell(sentence: str) -> None:
        said.append(sentence)
        reporter.warn(sentence)

    finished = {cell.key for cell in read_results(out)}
    wanted = [job for fraction, _, job in jobs if (job.method, fraction, job.seed) not in finished and not _finished(job)]
    for camp, package in ((SLEAP, "sleap-nn"), (DLC, "deeplabcut")):  # our own methods may train for hours before it is their turn
        if (lacking := [method for method in camp if any(job.method == method for job in wanted)]) and package not in installed():
            tell(f"{', '.join(lacking)}: {remedy(package)}; left out.")
            left_out.update(camp)
    trainings = [job for job in wanted if job.method not in left_out]
    if seconds := 60 * sum(job.minutes for job in trainings):
        what = f"{len(trainings)} {'training' if len(trainings) == 1 else 'trainings'} of {budget_in_words(trainings[0].minutes, 0)}"
        reporter.say(f"{what}: about {duration(seconds)} at least, as start-up, curves and predictions come on top")
    with reporter.task("comparing", len(jobs), "runs") as task:
        for number, (fraction, labels, job) in enumerate(jobs):
            task.update(number, method=job.method, labels=fraction, seed=job.seed)
            if job.method in left_out or any(cell.key == (job.method, fraction, job.seed) for cell in read_results(out)):
                continue
            share = 1 / (66 * job.minutes + 60)  # of a run that a second is, about: what is not training takes a while, too
            found = _one(job, labels, fraction, lambda seconds, n=number, s=share: task.update(n + min(seconds * s, 0.95)))  # type: ignore[misc]
            if not isinstance(found, _Problem):
                failures[job.method] = 0
                append_result(out, found)
                figures = f"AP {found['ap_s2_1']:.3f}, {found['ap_s2_0.1']:.3f} (s2 = .1)"
                reporter.say(f"{job.method}, {labels} labelled frames, seed {job.seed}: {figures}")
            elif found.unavailable:
                tell(found.sentence)
                left_out.update(next(camp for camp in CAMPS if job.method in camp))
            else:
                tell(f"{job.method} with {labels} labelled frames and seed {job.seed} is left out: {found.sentence}")
                failures[job.method] += 1
                if failures[job.method] == TRIES:
                    left_out.add(job.method)
                    if any(later.method == job.method for _, _, later in jobs[number + 1 :]):
                        tell(f"{job.method} failed {TRIES} times in a row, so that its other runs are left out.")
    return said


def _one(job: Job, labels: int, fraction: str, tick: Callable[[float], None]) -> dict[str, object] | _Problem:
    """One cell's line of ``results.csv``, from a run that was finished before or from a new one."""
    problem = None if _finished(job) else _run(job, tick)
    if problem:
        return problem
    try:
        return _row(job, labels, fraction)
    except Exception as error:  # what another package wrote may be broken in any way
        (job.folder / "outcome.json").unlink(missing_ok=True)  # or the same would be read again for ever
        why = str(error).rstrip(".") if isinstance(error, FormatError) else f"{type(error).__name__}: {error}"
        return _Problem(f"its predictions can't be measured ({why}); the same command tries it again.", False)


def count_of(fraction: str, available: int) -> int:
    """Labelled frames that "all", "25" or "20%" stand for. Raises FormatError where that is none or more than there are."""
    text = fraction.strip()
    try:
        count = available if text == "all" else round(float(text[:-1]) / 100 * available) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise FormatError(
            f"--labels-fraction {fraction}: write numbers of labelled frames, percentages or all, such as 5,20%,all."
        ) from None
    if not 1 <= count <= available:
        raise FormatError(f"--labels-fraction {fraction}: that is {count} labelled frames, and there are {available} to learn from.")
    return count


def drawn(labels: Labels, count: int, seed: int) -> Labels:
    """The project with ``count`` labelled frames, drawn by ``seed``; a smaller draw is part of a larger one with the same seed."""
    frames = labels.labelled_frames
    order = np.random.default_rng((seed, 1)).permutation(len(frames))[:count]
    return replace(labels, frames=[frames[i] for i in sorted(order)], notes=[])


def _shows_animals(frames: Sequence[LabeledFrame]) -> bool:
    return any(frame.instances for frame in frames)  # not where all are marked as empty


def _twice(train: Labels, judged: Labels) -> list[str]:
    """A sentence where frames are both learnt from and measured on."""
    both = sum(bool(found) for _, found in frame_pairs(judged, train, strict=False))
    frames = f"{both} of the {len(judged.labelled_frames)} frames measured {'is' if both == 1 else 'are'}"
    return [f"{frames} also among those learnt from, by the names of their videos, so that accuracy on them flatters."] if both else []


def _split(labels: Labels, held: Labels | None, share: float) -> tuple[Labels, Labels]:
    """What is learnt from and what is measured on. The split does not depend on a seed: all runs are measured on the same frames."""
    frames = labels.labelled_frames
    if not _shows_animals(frames):
        raise FormatError(f"{labels.path}: no animal is labelled in it; label some frames and try again.")
    if held is not None:
        if not _shows_animals(held.labelled_frames):
            raise FormatError(f"--val {held.path}: no animal is labelled in it, so nothing can be measured on it.")
        if unknown := [name for name in held.skeleton.keypoints if name not in labels.skeleton.keypoints]:
            raise FormatError(
                f"--val {held.path}: its keypoints {', '.join(unknown)} are not among those of {labels.path} "
                f"({', '.join(labels.skeleton.keypoints)}); measure on a project with the same keypoints."
            )
        return replace(labels, frames=frames), replace(held, frames=_without_predictions(held.labelled_frames))
    count = round(share * len(frames))
    if not 1 <= count < len(frames):
        raise FormatError(f"--val {share:g} of {len(frames)} labelled frames leaves none to measure or none to learn from; name a project.")
    chosen = set(np.random.default_rng(0).permutation(len(frames))[:count].tolist())
    learnt, measured = ([f for i, f in enumerate(frames) if (i in chosen) == wanted] for wanted in (False, True))
    for part, what in ((measured, "measure on"), (learnt, "learn from")):
        if not _shows_animals(part):
            raise FormatError(
                f"--val {share:g}: no animal is labelled in the {len(part)} frames that are left to {what}; name a project with --val, or "
                "another share."
            )
    return replace(labels, frames=learnt), replace(labels, frames=_without_predictions(measured))


def _without_predictions(frames: list[LabeledFrame]) -> list[LabeledFrame]:
    return [replace(f, predicted=[]) for f in frames]


def _claim(
    out: Path,
    project: Path,
    val: Path | float,
    labels: tuple[Labels, Labels],
    budget: str,
    preset: str,
    settings: Mapping[str, str],
    device: str,
) -> None:
    """Results of one folder must be comparable: remember what was compared how, and refuse to mix."""
    mine = {
        "project": str(project.absolute()),
        "val": str(val.absolute()) if isinstance(val, Path) else val,
        "set of labels": " and ".join(map(_digest, labels)),
        "budget": budget,
        "preset": preset,
        "settings": dict(settings),
        "device": _kind_of(device),
    }
    path = out / "comparison.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_links(itertools.chain(*map(out.glob, ("*", "data/*", "cells/*", "cells/*/*"))))
        if path.exists():
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
            if other := [key for key in mine if theirs.get(key) != mine[key]]:
                what = {"val": "--val", "preset": "--preset", "settings": "choice of --set", "device": "--device"}.get(other[0], other[0])
                before, now = (_in_words(values.get(other[0])) for values in (theirs, mine))
                raise FormatError(f"-o {out} holds a comparison with another {what} ({before}, now {now}); choose another folder.")
            return
        path.write_text(json.dumps(mine, indent=1), encoding="utf-8")
    except FormatError:
        raise
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"-o {out}: it can't be used ({error}); choose another folder.") from error


def _kind_of(device: str) -> str:
    """cpu, cuda or mps: what a run uses."""
    if device != "auto":
        return device.partition(":")[0]
    import torch

    if not torch.cuda.is_available():
        from smp_plugin.devices import choose_device

        return choose_device(device)[0].type
    # A process that has tried a GPU keeps some of it, and the runs may need it all: one that ends tries it.
    code = "from smp_plugin.devices import choose_device; print(choose_device('auto')[0].type)"
    found = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True)
    return found.stdout.split()[-1] if found.returncode == 0 else "cuda"


def _in_words(value: object) -> str:
    return (", ".join(f"{key}={text}" for key, text in value.items()) or "none") if isinstance(value, dict) else str(value)


def _digest(labels: Labels) -> str:
    """Short, and another one as soon as a label is moved, added or removed."""
    content = hashlib.sha256(repr(labels.skeleton.keypoints).encode())
    for frame in labels.frames:
        content.update(repr((frame.video, frame.index, frame.negative, len(frame.instances))).encode())
        for animal in frame.instances:
            content.update(animal.points.tobytes())
    return f"{len(labels.labelled_frames)} frames {content.hexdigest()[:8]}"


def _write(path: Path, labels: Labels) -> None:
    """Unless it is there already. The labels of a comparison stay the same, but their videos may have moved (``--video-root``)."""
    with contextlib.suppress(FormatError):  # damaged
        if path.exists() and _paths(read_project(path, require_videos=False)) == _paths(labels):
            return
    write_project(path, labels, predicted=True)


def _ending(source: Path, labels: Labels) -> str:
    """Of a file for labels from ``source``: that of COCO where these are, so that it needs no sleap-io, and else SLEAP's."""
    return "json" if format_of(source) == COCO and all(video.kind == "images" for video in labels.videos) else "slp"


def _paths(labels: Labels) -> list[tuple[list[str], list[str]]]:
    """Of each video, and of that which embedded images were taken from."""
    return [(v.written, v.original.written if v.embedded and v.original else []) for v in labels.videos]


@dataclass(frozen=True)
class _Problem:
    sentence: str
    unavailable: bool


def _finished(job: Job) -> bool:
    """Whether exactly this was done before, and only its line in ``results.csv`` is missing: the process that waited for it was killed."""
    try:
        return Job.read(job.folder) == job and job.predictions.exists() and (job.folder / "outcome.json").exists()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _run(job: Job, tick: Callable[[float], None]) -> _Problem | None:
    """One run in a process of its own, whatever it prints in its ``log.txt``; ``tick`` is told the seconds it has taken so far. Ctrl-C
    is handed on to that process, and it is waited for.
    """
    for left in (job.folder / "outcome.json", job.predictions, job.everything):
        left.unlink(missing_ok=True)
    job.write()
    log = job.folder / "log.txt"
    command = [sys.executable, "-m", "smp_plugin.baselines", str(job.folder)]
    group = 0 if os.name == "posix" else None  # of its own, or a terminal would send Ctrl-C to both
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_environment(), process_group=group
        )
        started = time.monotonic()
        try:
            while (code := process.poll()) is None:
                tick(time.monotonic() - started)
                time.sleep(0.5)
        except BaseException:
            _interrupt(process)
            raise
    if code == 0:
        return None
    if code == UNAVAILABLE:
        return _Problem((job.folder / "unavailable.txt").read_text(encoding="utf-8"), True)
    if code == REFUSED:
        return _Problem((job.folder / "refused.txt").read_text(encoding="utf-8"), False)
    why = "it was killed (out of memory?)" if code < 0 else f"it failed (exit code {code})"
    return _Problem(f"{why}; {log} has all that it said, and the same command tries it again.", False)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for a run, which has a while to save what it has, but not where Ctrl-C is pressed again."""
    try:
        if os.name == "posix":  # on Windows, Ctrl-C has reached it
            process.send_signal(signal.SIGINT)
        process.wait(SAVING)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """The child finds this package where its parent did, installed or not, and imports nothing from the current folder."""
    here = str(Path(__file__).parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}


def _row(job: Job, labels: int, fraction: str) -> dict[str, object]:
    """AP over all predictions, which AP weighs by score; counts and pixel errors over those that a person would be shown."""
    outcome = Outcome.read(job.folder)
    found, truth = read_predictions(job.predictions), job.truth()
    every = read_project(job.everything, require_videos=False) if job.everything.exists() else found
    full = evaluate(truth, every, rule=job.rule)
    seen = evaluate(truth, shown(found, outcome.min_score), rule=job.rule)
    said = [text.replace(f"{job.folder}{os.sep}", "") for text in (*full.warnings, *seen.warnings)]
    replace(outcome, warnings=list(dict.fromkeys([*outcome.warnings, *said]))).write(job.folder)
    ap, counts = (full.partial or full).ap, seen.partial or seen  # where labels are partial, what has no label is not judged
    return {
        "method": job.method, "labels": labels, "fraction": fraction, "seed": job.seed, "steps": outcome.steps,
        "train_minutes": outcome.train_seconds / 60, "ap_s2_1": ap[PAPER_S2].ap, "ap_s2_0.1": ap[MEDIUM_S2].ap,
        "ap_s2_0.0025": ap[SLEAP_S2].ap, "ar_s2_1": ap[PAPER_S2].ar, "pixel_error_median": seen.pixel_error[50],
        "missed": seen.missed, "invented": counts.invented, "doubled": counts.doubled,
        "frames_per_second": outcome.frames / max(outcome.predict_seconds, 1e-9), "peak_memory_gb": outcome.peak_memory / 1e9,
        "version": outcome.version,
    }  # fmt: skip

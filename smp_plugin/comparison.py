"""``compare``: the same labels, validation frames and budget for every method, in one folder that can be interrupted and gone on with."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters import FormatError, LabeledFrame, Labels, read_project, write_project
from converters.files import refuse_links
from smp_plugin.baselines import DLC, METHODS, OWN, SLEAP, Job, Outcome, own_settings
from smp_plugin.baselines.__main__ import REFUSED, UNAVAILABLE
from smp_plugin.comparison_report import write_comparison
from smp_plugin.comparison_results import append_result, cell_folder, read_results, shown
from smp_plugin.completeness import looks_partial
from smp_plugin.config import Config, set_value
from smp_plugin.evaluation import evaluate
from smp_plugin.metrics import MEDIUM_S2, PAPER_S2, SLEAP_S2
from smp_plugin.progress import Reporter

DEFAULT = (*OWN, *SLEAP)
CAMPS = (OWN, SLEAP, DLC)  # what is not available for one method is not for its camp


@dataclass(frozen=True)
class Budget:
    """What every method may spend: ``minutes`` of wall-clock, or else optimiser ``steps``."""

    minutes: float
    steps: int

    def __str__(self) -> str:
        return f"{self.minutes:g} minutes" if self.minutes else f"{self.steps} steps"


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
        minutes: wall-clock budget of each training; or
        steps: optimiser steps of each network.
        seeds: one run each. A seed also draws which labelled frames are learnt from.
        fractions: how many labelled frames are learnt from: "all", a number, or a percentage such as "20%"; the others are unlabelled.
        preset: of our methods.
        settings: further settings of our methods, ``section.name`` -> value, and of the peers, such as ``sleap.data_config....``.
        curve: points of AP over training time, measured outside of the budget.

    Returns:
        ``report.html``.

    Raises:
        FormatError: bad input, or ``out`` holds a comparison with another budget or other frames.
    """
    reporter = reporter or Reporter(quiet=True)
    if not minutes and not steps:
        raise FormatError("--minutes or --steps is missing: the budget that every method gets.")
    for key, value in own_settings(settings or {}).items():  # a wrong one is better said now than in every run
        set_value(Config(), key, value)
    budget = Budget(minutes, 0 if minutes else steps)
    labels = read_project(project, video_root)
    held = read_project(val, video_root) if isinstance(val, Path) else None
    train, judged = _split(labels, held, val if isinstance(val, float) else 0.0)
    counts = {fraction: count_of(fraction, len(train.labelled_frames)) for fraction in fractions}
    _claim(out, project, val, (train, judged), budget, preset, settings or {})
    val_file = out / "data" / "val.slp"
    val_file.parent.mkdir(exist_ok=True)
    _write_once(val_file, judged)
    reporter.say(
        f"{len(methods)} methods x {len(fractions)} numbers of labels x {len(seeds)} seeds, {budget} each; "
        f"measured on {len(judged.labelled_frames)} frames, which choose nothing"
    )
    jobs: list[tuple[str, int, Job]] = []
    for fraction, seed, method in itertools.product(fractions, seeds, sorted(set(methods), key=METHODS.index)):
        train_file = out / "data" / f"train_{counts[fraction]}_{seed}.slp"
        _write_once(train_file, drawn(train, counts[fraction], seed))
        folder = cell_folder(out, method, fraction, seed)
        job = Job(
            method, train_file.absolute(), val_file.absolute(), folder.absolute(), seed, budget.minutes, budget.steps, device, preset,
            dict(settings or {}), curve,
        )  # fmt: skip
        jobs.append((fraction, counts[fraction], job))
    left_out = _do(jobs, out, reporter)
    if not read_results(out):
        raise FormatError(f"No method could be run: {' '.join(dict.fromkeys(left_out.values()))}")
    facts = _facts(project, train, judged, budget, seeds)
    page = write_comparison(out, title=f"Methods on {project.name}", val=judged, facts=facts, notes=sorted(set(left_out.values())))
    reporter.say(f"results: {out / 'results.csv'}; report: {page}")
    return page


def _facts(project: Path, train: Labels, judged: Labels, budget: Budget, seeds: Sequence[int]) -> dict[str, object]:
    """What was compared, for the page."""
    partial, why = looks_partial(judged.labelled_frames, len(judged.skeleton))
    return {
        "Project": str(project),
        "Labelled frames to learn from": len(train.labelled_frames),
        "Frames measured": f"{len(judged.labelled_frames)} ({sum(len(f.instances) for f in judged.labelled_frames)} animals)",
        "Labels there": "partial: predictions where nothing is labelled are not judged" if partial else f"complete: {why}",
        "Keypoints": ", ".join(train.skeleton.keypoints),
        "Budget of each training": str(budget),
        "Seeds": ", ".join(map(str, seeds)),
    }


def _do(jobs: Sequence[tuple[str, int, Job]], out: Path, reporter: Reporter) -> dict[str, str]:
    """Run what ``results.csv`` does not hold yet: (fraction, labelled frames, job). Returns the methods that can't be run, and why."""
    left_out: dict[str, str] = {}
    with reporter.task("comparing", len(jobs), "runs") as task:
        for number, (fraction, labels, job) in enumerate(jobs):
            task.update(number, method=job.method, labels=fraction, seed=job.seed)
            if job.method in left_out or any(cell.key == (job.method, fraction, job.seed) for cell in read_results(out)):
                continue
            share = 1 / (66 * job.minutes + 60)  # of a run that a second is, about: what is not training takes a while, too
            problem = _run(job, lambda seconds, n=number, s=share: task.update(n + min(seconds * s, 0.95)))  # type: ignore[misc]
            if problem:
                alike = next(camp for camp in CAMPS if job.method in camp) if problem.unavailable else (job.method,)
                left_out |= dict.fromkeys(alike, problem.sentence)
                reporter.warn(problem.sentence)
                continue
            row = _row(job, labels, fraction)
            append_result(out, row)
            figures = f"AP {row['ap_s2_1']:.3f}, {row['ap_s2_0.1']:.3f} (s2 = .1)"
            reporter.say(f"{job.method}, {labels} labelled frames, seed {job.seed}: {figures}")
    return left_out


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


def _split(labels: Labels, held: Labels | None, share: float) -> tuple[Labels, Labels]:
    """What is learnt from and what is measured on. The split does not depend on a seed: all runs are measured on the same frames."""
    frames = labels.labelled_frames
    if not any(f.instances for f in frames):
        raise FormatError(f"{labels.path}: no animal is labelled in it; label some frames and try again.")
    if held is not None:
        if not any(f.instances for f in held.labelled_frames):
            raise FormatError(f"--val {held.path}: no animal is labelled in it, so nothing can be measured on it.")
        return replace(labels, frames=frames), replace(held, frames=_without_predictions(held.labelled_frames))
    count = round(share * len(frames))
    if not 1 <= count < len(frames):
        raise FormatError(f"--val {share:g} of {len(frames)} labelled frames leaves none to measure or none to learn from; name a project.")
    chosen = set(np.random.default_rng(0).permutation(len(frames))[:count].tolist())
    learnt, measured = ([f for i, f in enumerate(frames) if (i in chosen) == wanted] for wanted in (False, True))
    return replace(labels, frames=learnt), replace(labels, frames=_without_predictions(measured))


def _without_predictions(frames: list[LabeledFrame]) -> list[LabeledFrame]:
    return [replace(f, predicted=[]) for f in frames]


def _claim(
    out: Path, project: Path, val: Path | float, labels: tuple[Labels, Labels], budget: Budget, preset: str, settings: Mapping[str, str]
) -> None:
    """Results of one folder must be comparable: remember what was compared how, and refuse to mix."""
    mine = {
        "project": str(project.absolute()),
        "val": str(val.absolute()) if isinstance(val, Path) else val,
        "set of labels": " and ".join(map(_digest, labels)),
        "budget": str(budget),
        "preset": preset,
        "settings": dict(settings),
    }
    path = out / "comparison.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_links(itertools.chain(*map(out.glob, ("*", "data/*", "cells/*", "cells/*/*"))))
        if path.exists():
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
            if other := [key for key in mine if theirs.get(key) != mine[key]]:
                what = {"val": "--val", "preset": "--preset", "settings": "choice of --set"}.get(other[0], other[0])
                before, now = (_in_words(values.get(other[0])) for values in (theirs, mine))
                raise FormatError(f"-o {out} holds a comparison with another {what} ({before}, now {now}); choose another folder.")
            return
        path.write_text(json.dumps(mine, indent=1), encoding="utf-8")
    except FormatError:
        raise
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"-o {out}: it can't be used ({error}); choose another folder.") from error


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


def _write_once(path: Path, labels: Labels) -> None:
    if not path.exists():
        write_project(path, labels)


@dataclass(frozen=True)
class _Problem:
    sentence: str
    unavailable: bool


def _run(job: Job, tick: Callable[[float], None]) -> _Problem | None:
    """One run in a process of its own, whatever it prints in its ``log.txt``; ``tick`` is told the seconds it has taken so far. Ctrl-C
    reaches that process, too, and it is waited for.
    """
    job.write()
    log = job.folder / "log.txt"
    command = [sys.executable, "-m", "smp_plugin.baselines", str(job.folder)]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=_environment())
        started = time.monotonic()
        try:
            while (code := process.poll()) is None:
                tick(time.monotonic() - started)
                time.sleep(0.5)
        except KeyboardInterrupt:
            process.wait()
            raise
    if code == 0:
        return None
    if code == UNAVAILABLE:
        return _Problem((job.folder / "unavailable.txt").read_text(encoding="utf-8"), True)
    if code == REFUSED:
        return _Problem(f"{job.method} is left out: {(job.folder / 'refused.txt').read_text(encoding='utf-8')}", False)
    why = "it was killed (out of memory?)" if code < 0 else f"it failed (exit code {code})"
    return _Problem(f"{job.method} is left out: {why}; {log} has all that it said, and the same command tries it again.", False)


def _environment() -> dict[str, str]:
    """The child finds this package where its parent did, installed or not, and imports nothing from the current folder."""
    here = str(Path(__file__).parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}


def _row(job: Job, labels: int, fraction: str) -> dict[str, object]:
    """AP over all predictions, which AP weighs by score; counts and pixel errors over those that a person would be shown."""
    outcome = Outcome.from_dict(json.loads((job.folder / "outcome.json").read_text(encoding="utf-8")))
    found, truth = read_project(job.predictions, require_videos=False), read_project(job.val, require_videos=False)
    every = read_project(job.everything, require_videos=False) if job.everything.exists() else found
    full = evaluate(truth, every)
    seen = evaluate(truth, shown(found, outcome.min_score))
    ap, counts = (full.partial or full).ap, seen.partial or seen  # where labels are partial, what has no label is not judged
    return {
        "method": job.method, "labels": labels, "fraction": fraction, "seed": job.seed, "steps": outcome.steps,
        "train_minutes": outcome.train_seconds / 60, "ap_s2_1": ap[PAPER_S2].ap, "ap_s2_0.1": ap[MEDIUM_S2].ap,
        "ap_s2_0.0025": ap[SLEAP_S2].ap, "ar_s2_1": ap[PAPER_S2].ar, "pixel_error_median": seen.pixel_error[50],
        "missed": seen.missed, "invented": counts.invented, "doubled": counts.doubled,
        "frames_per_second": outcome.frames / max(outcome.predict_seconds, 1e-9), "peak_memory_gb": outcome.peak_memory / 1e9,
        "version": outcome.version,
    }  # fmt: skip

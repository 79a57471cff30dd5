"""``predict``: videos or projects -> native prediction files. Streamed: decoding, the network and writing overlap, memory stays flat."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import FormatError, LabeledFrame, Skeleton, write_predictions
from converters.conversion import Contents, lost
from converters.deeplabcut_machinelabels import write_machinelabels
from converters.video import open_video
from smp_plugin import __version__, cluster
from smp_plugin.checkpoint import Checkpoint
from smp_plugin.config import MIN_SCORE, to_dict
from smp_plugin.devices import choose_device, every_device, say_device
from smp_plugin.drawing import PALETTE, OverlayWriter, is_overlay
from smp_plugin.inference import FramePoses
from smp_plugin.jobs import MACHINELABELS, Job, check, is_folder, output_kind, plan
from smp_plugin.pipeline import behind
from smp_plugin.predictor import Predictor, Recipe, in_segments, load, predict_segment, smallest
from smp_plugin.progress import Reporter, Task
from smp_plugin.records import digest
from smp_plugin.runtimes import check_runtime
from smp_plugin.segments import Segment, Work, divide, leave
from smp_plugin.stopping import stoppable
from smp_plugin.tracking import Trackers


def predict(
    inputs: list[Path],
    output: Path,
    *,
    suffix: str | None = None,
    model: Path | None = None,
    config_overrides: dict[str, object] | None = None,
    frames: str | None = None,
    video_root: Path | None = None,
    device: str = "auto",
    overlay: Path | None = None,
    fast: bool = False,
    resume: bool = False,
    scheduler: str | None = None,
    local_cluster: int = 0,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Predict videos, image folders or projects. What can be known to fail fails before anything is predicted.

    Finished parts are kept in a hidden folder beside each output until it is whole (`smp_plugin.segments`), so that a run that was killed
    can be resumed. With several GPUs, and on a local cluster, frames are predicted by processes that are started for it: a script that
    calls this then needs the usual ``if __name__ == "__main__":``.

    Args:
        inputs: videos, image folders, images, or projects of any format.
        output: a file for all inputs together, in the format that its name says: ``.slp``, ``.json`` (COCO results), ``.analysis.h5``
            (SLEAP analysis), ``.h5`` or ``.csv`` (DeepLabCut); the last three hold one video. Or a folder, which may be new, for one file
            per input or video. Or ``labeled-data`` of a DeepLabCut project, for a person to correct the predictions there
            (``machinelabels``): they are made for images without labels, and for frames of videos that ``frames`` numbers.
        suffix: the format in a folder, one of the endings above without the first dot; default "slp". With "h5" or "csv" files are called
            as DeepLabCut calls them.
        model: a run folder or model file; default the newest finished run under ``runs/``.
        config_overrides: settings by key, such as ``{"predict.min_score": 0.3}`` or ``{"predict.track": True}``; JSON values.
        frames: "all", "labeled", "unlabeled" or ranges like "0-999,1500"; default all of a video, the unlabelled ones of a project.
        device: "auto" (every GPU where there are several), "cpu", "cuda", "cuda:1" or "mps"; on a cluster, that of each worker.
        overlay: an mp4 with the poses drawn on the frames; of what is there, it replaces only another one.
        fast: read frames smaller, where that costs little accuracy on the model's validation frames.
        resume: go on with an earlier call that did not finish, and skip files that did.
        scheduler: address of a Dask scheduler whose workers predict; they see model and videos under the same paths.
        local_cluster: or start so many Dask workers on this machine.

    Returns:
        The outputs, each file whole, also those finished earlier.

    Raises:
        FormatError: bad input, or what is to be resumed was made with another model, other settings, frames or videos. Where a video turned
            out to be damaged, after the frames before the damage, and other videos, were written.
        KeyboardInterrupt: after the frames predicted so far were written, or kept for ``resume`` where a person is to correct them.
    """
    reporter = reporter or Reporter(quiet=True)
    if on_cluster := scheduler is not None or local_cluster > 0:
        cluster.check_installed("--scheduler" if scheduler else "--local-cluster")
    output_kind(output, suffix)  # a wrong name is said before the model is loaded
    path = model or newest_run()
    weights = (path / "model.pt" if path.is_dir() else path).absolute()
    overrides = dict(config_overrides or {})
    checkpoint = load(path, overrides)
    where, why = (torch.device("cpu"), "device: those of the workers") if on_cluster else choose_device(device)
    reporter.say(f"model: {path} ({', '.join(checkpoint.skeleton.keypoints)})" + ("" if model else ", the newest finished run"))
    say_device(reporter, why)
    if not on_cluster:
        check_runtime(checkpoint.config.predict.runtime, where)
    if checkpoint.config.predict.min_score == 0 and "predict.min_score" not in overrides:
        overrides["predict.min_score"] = checkpoint.config.predict.min_score = MIN_SCORE
        reporter.warn(
            f"{path}: its training has not ended, which chooses the score that animals need; {MIN_SCORE:g} is taken (--min-score)."
        )
    if fast:
        overrides["predict.shrink"] = checkpoint.config.predict.shrink = smallest(checkpoint, path, reporter)
    skeleton = checkpoint.skeleton
    jobs = plan(inputs, output, suffix, frames, video_root, skeleton, reporter)
    if jobs[0].kind == MACHINELABELS and overrides.get("predict.track"):
        raise FormatError(f"--track: the frames in {output} are too few to follow animals from one to the next; leave --track out.")
    if overlay:
        _check_overlay(overlay, jobs)
    works, damage = divide(jobs, weights, checkpoint.config, resume, reporter)
    if overlay and len(works) < len(jobs):
        raise FormatError(
            f"--overlay {overlay}: it would lack what was finished earlier ({len(jobs) - len(works)} of {len(jobs)} inputs); leave "
            "--overlay out, or --resume to predict everything again."
        )
    with _folder_for(output):
        check([work.job for work in works], skeleton)
    recipe = Recipe(weights, digest(weights), __version__, json.dumps(overrides), device)
    done = _carry_out(works, checkpoint, path, recipe, where, (scheduler, local_cluster), overlay, resume, reporter)
    _tell(done, jobs, skeleton, inputs[0].name, output, reporter)
    if done.drawn:
        reporter.say(f"written: {overlay}")
    if done.interrupted:
        raise KeyboardInterrupt
    if damage := damage + [sentence for work in works for sentence in work.damage]:
        raise FormatError(f"{' '.join(damage)} What comes before it was predicted and written.")
    return done.written if jobs[0].kind == MACHINELABELS else [job.output for job in jobs]


@dataclass
class _Done:
    """What was written, what there is to say of it, whether an overlay was, and whether the user ended it."""

    contents: Contents = field(default_factory=Contents)
    notes: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    drawn: bool = False
    interrupted: bool = False


def _carry_out(
    works: list[Work],
    checkpoint: Checkpoint,
    run: Path,
    recipe: Recipe,
    here: torch.device,
    workers: tuple[str | None, int],
    overlay: Path | None,
    resume: bool,
    reporter: Reporter,
) -> _Done:
    """Predict and write: on the device ``here``, unless ``workers``, a scheduler's address or how many, or several GPUs do it.

    An output is written while the next one is predicted.
    """
    done, started = _Done(), time.time()

    def write(work: Work, given_up: threading.Event) -> None:
        provenance = _provenance(checkpoint, run, work.job, started)
        found = _tracked(_merged(work, reporter), None if work.job.kind == MACHINELABELS else _trackers(checkpoint))
        try:
            work.record.unlink(missing_ok=True)  # it is of what is now replaced
            done.notes += _write(work.job, checkpoint, _counted(_unless(given_up, found), done.contents), provenance)
            done.written.append(work.job.output)
            if not work.missing:
                work.finish()
        except BaseException:
            stopped.set()  # what is predicted meanwhile would be in vain, or for hours
            raise

    with stoppable() as stopped, contextlib.ExitStack() as stack:
        video = stack.enter_context(OverlayWriter(overlay, checkpoint.skeleton, _fps(works[0].job))) if overlay else None
        drawn = _Overlay(video, checkpoint) if video else None
        begun: list[Work] = []
        stack.callback(lambda: leave(begun, stopped.is_set() or bool(done.written), reporter))
        for work in works:
            begun.append(work)
            work.begin(resume, reporter)
        devices = every_device(recipe.device)[: sum(len(work.missing) for work in works)] if workers == (None, 0) else []
        pool = stack.enter_context(cluster.executor(*workers, devices, reporter))
        task = stack.enter_context(reporter.task("predicting", sum(work.left for work in works), "frames"))
        if pool is None:
            complete = _done_here(Predictor(checkpoint, here, reporter), works, drawn, task, stopped)
        else:
            complete = _done_there(pool, recipe, works, drawn, task, stopped, reporter)
        # Half of what a person is to correct would be taken for the whole, and is not replaced later: it waits for --resume.
        halves = (work for work in works if stopped.is_set() and work.begun and work.job.kind != MACHINELABELS)
        behind(write, complete)
        behind(write, halves)  # by now what is complete has been written, so that it is none of them
    done.drawn, done.interrupted = video is not None and video.begun, stopped.is_set()
    return done


def _tell(done: _Done, jobs: list[Job], skeleton: Skeleton, name: str, output: Path, reporter: Reporter) -> None:
    """What was written and what of it the format does not hold. ``name``: of the first input."""
    for_a_person = jobs[0].kind == MACHINELABELS
    if for_a_person and done.written and not done.contents.most:
        done.notes.append(f"{output}: no animal was found, so there is nothing to correct and nothing was written; lower --min-score.")
        done.written.clear()
    if not for_a_person and done.written:
        done.notes += lost(done.contents, skeleton, jobs[0].kind, name, jobs[0].output if len(jobs) == 1 else output)
    for note in done.notes:
        reporter.warn(note)
    for job_output in dict.fromkeys(done.written):
        reporter.say(f"written: {job_output}")
    if for_a_person and done.written:
        reporter.say("to correct them: open each folder's machinelabels in deeplabcut.refine_labels, save, call deeplabcut.merge_datasets")


def newest_run() -> Path:
    """The newest run that smp-train ended, or that Ctrl-C did (report.html is written last). FormatError where there is none.

    Runs of a comparison, whose ``job.json`` is above them, don't count: they have learnt from a part of the labels, or are ablations.
    """
    runs = [p.parent for p in Path("runs").glob("**/model.pt") if (p.parent / "report.html").exists()]
    own = [run for run in runs if not (run.parent / "job.json").exists()]
    if not own:
        but = " but those of a comparison" if runs else ""
        raise FormatError(f"there is no finished run under runs/{but}; train one with smp-train, or name a model with --model.")
    return max(own, key=lambda run: (run / "model.pt").stat().st_mtime)


def _done_here(
    predictor: Predictor, works: list[Work], drawn: _Overlay | None, task: Task, stopped: threading.Event
) -> Generator[Work, None, None]:
    """Predict what is missing in this process; yields works when they are complete."""
    count = itertools.count(1)
    for work in works:
        for (number, missing), group in itertools.groupby([(s, (s.video, s.place in work.missing)) for s in work.segments], lambda p: p[1]):
            run = [segment for segment, _ in group]

            def seen(index: int, frame: np.ndarray, found: FramePoses, video: tuple[Path, int] = (work.name, number)) -> None:
                if drawn is not None:
                    drawn.write(video, index, frame, found.poses, found.point_scores)
                task.update(next(count))

            if missing:
                with (
                    open_video(work.job.videos[number]) as video,
                    contextlib.closing(in_segments(predictor, video, video.n_frames, run, seen, stopped)) as pieces,
                ):
                    for segment, found in pieces:
                        work.save(segment, found)
            elif drawn is not None:
                _draw(work, run, drawn, stopped)
            if stopped.is_set():
                return
        yield work


def _done_there(
    pool: Executor,
    recipe: Recipe,
    works: list[Work],
    drawn: _Overlay | None,
    task: Task,
    stopped: threading.Event,
    reporter: Reporter,
) -> Generator[Work, None, None]:
    """Have what is missing predicted by other processes; yields works when they are complete. What several say is said once."""
    futures = {
        pool.submit(predict_segment, recipe, work.job.videos[segment.video], segment): (work, segment)
        for work in works
        for segment in work.segments
        if segment.place in work.missing
    }
    complete = [work for work in works if not work.missing]
    count, told = 0, set[str]()
    if drawn is None:
        yield from complete
    for (work, segment), (found, notes) in cluster.finished(futures, stopped):
        for tell, texts in zip((reporter.say, reporter.warn), notes, strict=True):
            for text in texts:
                if text not in told:
                    tell(text)
            told.update(texts)
        work.save(segment, found)
        count += len(segment.frames)
        task.update(count)
        if not work.missing and drawn is None:
            yield work
    if drawn is not None:
        for work in works:  # frames are drawn in order, so after all
            _draw(work, work.segments, drawn, stopped)
            if stopped.is_set():
                return
            yield work


def _merged(work: Work, reporter: Reporter) -> Iterator[LabeledFrame]:
    """The frames of all segments in order, also of one that was cut short; of a damaged video, those before the damage, which is noted."""
    damaged = set[int]()
    for segment in work.segments:
        found = work.read(segment)
        if found is None or segment.video in damaged:
            continue
        yield from found.frames(segment.video)
        if found.damage:
            damaged.add(segment.video)
            work.damage.append(found.damage)
            continue
        source, (n_frames, promised) = work.job.videos[segment.video], found.length.tolist()
        last = found.complete and work.job.wanted[segment.video][-1] == segment.frames[-1]
        if source.kind == "file" and last and segment.frames[-1] >= n_frames:  # a package's frames keep the numbers they had in its video
            reporter.warn(f"{source.name} holds {n_frames:,} frames, not the {promised:,} that its header promises; all are done.")


def _draw(work: Work, run: list[Segment], drawn: _Overlay, stopped: threading.Event) -> None:
    """Draw segments that were predicted earlier, or elsewhere."""
    for number, group in itertools.groupby(run, lambda segment: segment.video):
        with open_video(work.job.videos[number]) as video:
            for found in filter(None, map(work.read, group)):
                for labelled, (index, frame) in zip(found.frames(number), video.stream(found.numbers.tolist()), strict=True):
                    if stopped.is_set():
                        return
                    poses = np.array([animal.points for animal in labelled.predicted])
                    scores = np.array([animal.point_scores for animal in labelled.predicted])
                    drawn.write((work.name, number), index, frame, poses, scores)


class _Overlay:
    """Poses drawn on their frames, in the order of the frames of each video; followed animals keep their colour."""

    def __init__(self, writer: OverlayWriter, checkpoint: Checkpoint) -> None:
        self.writer, self._trackers = writer, _trackers(checkpoint)

    def write(self, video: tuple[Path, int], index: int, frame: np.ndarray, poses: np.ndarray, point_scores: np.ndarray) -> None:
        numbers = range(len(poses)) if self._trackers is None else self._trackers(video, index, poses)
        self.writer.write(frame, poses, [PALETTE[number % len(PALETTE)] for number in numbers], point_scores)


def _trackers(checkpoint: Checkpoint) -> Trackers | None:
    """What follows the animals of new videos, where that is asked for."""
    config = checkpoint.config
    length = checkpoint.typical_length / config.data.input_scale
    return Trackers(length, config.predict.max_animals) if config.predict.track else None


def _tracked(frames: Iterable[LabeledFrame], trackers: Trackers | None) -> Iterator[LabeledFrame]:
    """The same frames, their animals with names where they are followed."""
    for frame in frames:
        if trackers is not None and (animals := [animal for animal in frame.predicted if animal.labelled.any()]):
            numbers = trackers(frame.video, frame.index, np.stack([animal.points for animal in animals]))
            for animal, number in zip(animals, numbers, strict=True):
                animal.track = f"animal{number + 1}"
        yield frame


def _write(job: Job, checkpoint: Checkpoint, frames: Iterable[LabeledFrame], provenance: dict[str, Any]) -> list[str]:
    """What was left out, a sentence each."""
    if job.kind == MACHINELABELS:
        return write_machinelabels(job.config, checkpoint.skeleton, job.videos, frames)
    several = checkpoint.config.predict.max_animals != 1
    write_predictions(job.output, checkpoint.skeleton, job.videos, frames, provenance, job.inputs, several=several)
    return []


def _unless(given_up: threading.Event, frames: Iterable[LabeledFrame]) -> Iterator[LabeledFrame]:
    for frame in frames:
        if given_up.is_set():
            raise KeyboardInterrupt
        yield frame


def _counted(frames: Iterable[LabeledFrame], contents: Contents) -> Iterator[LabeledFrame]:
    for frame in frames:
        contents.add(frame)
        yield frame


@contextlib.contextmanager
def _folder_for(output: Path) -> Iterator[None]:
    """Make the folder that files are written to, and remove it again if anything is raised, Ctrl-C included."""
    wanted = output if is_folder(output) else output.parent
    if wanted.exists():
        yield
        return
    new = [folder for folder in (wanted, *wanted.parents) if not folder.exists()]
    _make_folder(wanted, "-o")
    try:
        yield
    except BaseException:
        for folder in new:
            folder.rmdir()
        raise


def _make_folder(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{flag} {folder}: the folder can't be made ({error.strerror}); choose one that you may write to.") from error


def _check_overlay(overlay: Path, jobs: list[Job]) -> None:
    """Before anything is predicted: an overlay must replace nothing but an overlay, and its folder must exist."""
    read = [p for job in jobs for p in (*job.inputs, *(q for video in job.videos for q in video.paths))]
    if overlay.resolve() in {p.resolve() for p in read}:
        raise FormatError(f"--overlay {overlay}: it is one of the inputs and would be overwritten; give the overlay another name.")
    if overlay.exists() and not is_overlay(overlay):
        raise FormatError(f"--overlay {overlay}: what is there is no overlay by smp-predict and would be lost; name another .mp4 file.")
    _make_folder(overlay.parent, "--overlay")
    if not os.access(overlay.parent, os.W_OK):
        raise FormatError(f"--overlay {overlay}: the folder can't be written to; choose one that you may write to.")


def _fps(job: Job) -> float:
    with open_video(job.videos[0]) as video:
        return video.fps or 25.0


def _provenance(checkpoint: Checkpoint, path: Path, job: Job, started: float) -> dict[str, Any]:
    import sys

    return {
        "producer": f"smp-plugin {__version__}",
        "model": str(path.resolve()),
        "command": shlex.join(sys.argv),
        "settings": to_dict(checkpoint.config)["predict"],
        "source_files": [str(p.resolve()) for p in job.inputs],
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
    }

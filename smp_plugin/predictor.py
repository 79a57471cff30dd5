"""``predict``: videos or projects -> native prediction files. Streamed: decoding, the network and writing overlap, memory stays flat."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import FormatError, LabeledFrame, PredictedInstance, VideoSource, read_project, write_predictions
from converters.video import Video, open_video, video_source
from smp_plugin import __version__
from smp_plugin.checkpoint import Checkpoint, load_model
from smp_plugin.config import parse_ranges, set_value, to_dict
from smp_plugin.drawing import OverlayWriter
from smp_plugin.inference import FramePoses, choose_device, infer
from smp_plugin.progress import Reporter, Task

PROJECT_SUFFIXES = (".slp",)


class Predictor:
    """A loaded model on a device: frames -> animals in frame pixels.

    Args:
        checkpoint: from ``load_model``.
        device: where the network runs.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint, self.device, self.config = checkpoint, device, checkpoint.config
        self.model = checkpoint.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch = self.config.predict.batch or (16 if device.type == "cuda" else 4)

    def __call__(self, frames: list[np.ndarray]) -> list[FramePoses]:
        """Predict frames (H, W, 3) uint8 of one size."""
        images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        config = self.config
        return infer(self.model, images, config.data.input_scale, config.predict, self.checkpoint.typical_length, config.train.precision)

    def stream(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray, FramePoses]]:
        """(number, frame) pairs, decoded ahead in a thread, -> (number, frame, animals) in the same order."""
        waiting: list[tuple[int, np.ndarray]] = []
        for number, frame in ahead(frames, 2 * self.batch):
            if waiting and (len(waiting) == self.batch or waiting[0][1].shape != frame.shape):
                yield from self._run(waiting)
                waiting = []
            waiting.append((number, frame))
        if waiting:
            yield from self._run(waiting)

    def _run(self, waiting: list[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray, FramePoses]]:
        found = self([frame for _, frame in waiting])
        for (number, frame), poses in zip(waiting, found, strict=True):
            yield number, frame, poses


def ahead(items: Iterable[Any], depth: int) -> Iterator[Any]:
    """The same items, made in a thread up to ``depth`` ahead. An error there is raised here, in its place."""
    line: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                line.put(entry, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            more, item = line.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        stop.set()
        thread.join()


@dataclass
class _Job:
    """What is predicted into one output: ``wanted`` holds per video the frame numbers, ascending."""

    output: Path
    videos: list[VideoSource]
    wanted: list[list[int] | range]
    inputs: list[Path] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(len(w) for w in self.wanted)


def predict(
    inputs: list[Path],
    output: Path,
    *,
    model: Path | None = None,
    config_overrides: dict[str, object] | None = None,
    frames: str | None = None,
    video_root: Path | None = None,
    device: str = "auto",
    overlay: Path | None = None,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Predict videos, image folders or projects.

    Args:
        inputs: videos, image folders, images, or SLEAP projects.
        output: a ``.slp`` file for all inputs together, or a folder, which may be new, for one file per input.
        model: a run folder or model file; default the newest finished run under ``runs/``.
        config_overrides: settings by key, such as ``{"predict.min_score": 0.3}``.
        frames: "all", "labeled", "unlabeled" or ranges like "0-999,1500"; default all of a video, the unlabelled ones of a project.
        overlay: an mp4 with the poses drawn on the frames.

    Returns:
        The files written, each whole.

    Raises:
        FormatError: bad input.
        KeyboardInterrupt: after the frames predicted so far were written.
    """
    reporter = reporter or Reporter(quiet=True)
    path = model or newest_run()
    checkpoint = load_model(path)
    for key, value in (config_overrides or {}).items():
        set_value(checkpoint.config, key, value, key)
    where, why = choose_device(device)
    reporter.say(f"model: {path} ({', '.join(checkpoint.skeleton.keypoints)})" + ("" if model else ", the newest finished run"))
    reporter.say(why)
    jobs = _jobs(inputs, output, frames, video_root, checkpoint, reporter)
    if overlay:
        _check_overlay(overlay, jobs)
    predictor = Predictor(checkpoint, where)
    with _stoppable() as stopped, contextlib.ExitStack() as stack:
        drawn = stack.enter_context(OverlayWriter(overlay, checkpoint.skeleton, _fps(jobs[0]))) if overlay else None
        task = stack.enter_context(reporter.task("predicting", sum(j.total for j in jobs), "frames"))
        written, done = [], 0
        for job in jobs:
            if stopped.is_set():
                break
            started = time.time()
            provenance = _provenance(checkpoint, path, job, started)
            with contextlib.closing(_predicted(predictor, job, drawn, task, done, stopped, reporter)) as made:
                write_predictions(job.output, checkpoint.skeleton, job.videos, made, provenance, job.inputs)
            written.append(job.output)
            done += job.total
    for job_output in written:
        reporter.say(f"written: {job_output}")
    if overlay:
        reporter.say(f"written: {overlay}")
    if stopped.is_set():
        raise KeyboardInterrupt
    return written


def newest_run(folder: Path = Path("runs")) -> Path:
    """The newest run that smp-train finished (it writes report.html last). Raises FormatError where there is none."""
    runs = [p.parent for p in folder.glob("**/model.pt") if (p.parent / "report.html").exists()]
    if not runs:
        raise FormatError(f"there is no finished run under {folder}/; train one with smp-train, or name a model with --model.")
    return max(runs, key=lambda run: (run / "model.pt").stat().st_mtime)


def _predicted(
    predictor: Predictor, job: _Job, drawn: OverlayWriter | None, task: Task, done: int, stopped: threading.Event, reporter: Reporter
) -> Generator[LabeledFrame, None, None]:
    for number, (source, wanted) in enumerate(zip(job.videos, job.wanted, strict=True)):
        with open_video(source) as video:
            promised = video.n_frames
            for index, frame, found in predictor.stream(_to_the_end(video, wanted)):
                if drawn is not None:
                    drawn.write(frame, found.poses, point_scores=found.point_scores)
                done += 1
                task.update(done)
                animals = [
                    PredictedInstance(p, None, float(s), q) for p, s, q in zip(found.poses, found.scores, found.point_scores, strict=True)
                ]
                yield LabeledFrame(number, index, predicted=animals)
                if stopped.is_set():
                    return
            if len(wanted) and wanted[-1] >= video.n_frames:
                reporter.warn(f"{video.name} holds {video.n_frames:,} frames, not the {promised:,} that its header promises; all are done.")


def _to_the_end(video: Video, wanted: list[int] | range) -> Iterator[tuple[int, np.ndarray]]:
    """The frames wanted, up to the real end of the video: headers often promise a few more than there are."""
    promised = video.n_frames
    if isinstance(wanted, range):  # the whole video
        yield from video.stream()
        return
    for index in wanted:
        try:
            frame = video.read(index)
        except FormatError:
            if video.source.kind != "file" or not video.n_frames <= index < promised:
                raise
            return
        yield index, frame


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Ctrl-C asks to stop after the current frame; pressed again, it stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _jobs(
    inputs: list[Path], output: Path, frames: str | None, video_root: Path | None, checkpoint: Checkpoint, reporter: Reporter
) -> list[_Job]:
    separate = output.is_dir() or output.suffix == ""
    jobs: list[_Job] = []
    names: set[str] = set()
    for path in inputs:
        videos, wanted = _frames_of(path, frames, video_root, checkpoint, reporter)
        if separate:
            name = path.name.removesuffix(path.suffix).removesuffix(".pkg") if path.is_file() else path.name
            while name in names:
                name += "_"
            names.add(name)
            jobs.append(_Job(output / f"{name}.predictions.slp", videos, wanted, [path]))
        elif jobs:
            jobs[0].videos += videos
            jobs[0].wanted += wanted
            jobs[0].inputs.append(path)
        else:
            jobs.append(_Job(output, videos, wanted, [path]))
    if not sum(j.total for j in jobs):
        raise FormatError(
            f"{', '.join(map(str, inputs))}: no frames are asked for with --frames {frames or 'unlabeled'}; try --frames all."
        )
    if separate:
        _make_folder(output, "-o")
    return jobs


def _make_folder(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{flag} {folder}: the folder can't be made ({error.strerror}); choose one that you may write to.") from error


def _check_overlay(overlay: Path, jobs: list[_Job]) -> None:
    """Before anything is predicted: an overlay must not replace what is read, and its folder must exist."""
    read = [p for job in jobs for p in (*job.inputs, *(q for video in job.videos for q in video.paths))]
    if overlay.resolve() in {p.resolve() for p in read}:
        raise FormatError(f"--overlay {overlay}: it is one of the inputs and would be overwritten; give the overlay another name.")
    _make_folder(overlay.parent, "--overlay")
    if not os.access(overlay.parent, os.W_OK):
        raise FormatError(f"--overlay {overlay}: the folder can't be written to; choose one that you may write to.")


def _frames_of(
    path: Path, frames: str | None, video_root: Path | None, checkpoint: Checkpoint, reporter: Reporter
) -> tuple[list[VideoSource], list[list[int] | range]]:
    """Videos of one input and the frames wanted of each."""
    if path.suffix.lower() not in PROJECT_SUFFIXES:
        if frames in ("labeled", "unlabeled"):
            raise FormatError(f"--frames {frames}: {path} is no project and has no labels; give a project, or --frames all or 0-999.")
        source = video_source(path)
        chosen = _numbers(source, frames or "all", set(), path)
        reporter.say(f"{path}: {len(chosen):,} frames")
        return [source], [chosen]
    labels = read_project(path, video_root)
    if labels.skeleton.keypoints != checkpoint.skeleton.keypoints:
        raise FormatError(
            f"{path}: its keypoints are {', '.join(labels.skeleton.keypoints)}, "
            f"those of the model {', '.join(checkpoint.skeleton.keypoints)}; "
            "choose a model that was trained on this skeleton with --model."
        )
    wanted: list[list[int] | range] = []
    for number, source in enumerate(labels.videos):
        labelled = {f.index for f in labels.labelled_frames if f.video == number}
        wanted.append(_numbers(source, frames or "unlabeled", labelled, path))
    reporter.say(
        f"{path}: {sum(len(w) for w in wanted):,} frames ({frames or 'unlabeled, as for any project'}) of {len(labels.videos)} videos"
    )
    return labels.videos, wanted


def _numbers(source: VideoSource, frames: str, labelled: set[int], path: Path) -> list[int] | range:
    with open_video(source) as video:
        existing = video.frame_numbers
    if frames == "all":
        return existing if isinstance(existing, range) else list(existing)
    if frames == "labeled":
        return sorted(labelled)
    if frames == "unlabeled":
        return [i for i in existing if i not in labelled]
    wanted = parse_ranges(frames)
    last = max(existing, default=-1)
    for _, end in wanted:
        if end > last:
            raise FormatError(f"--frames {frames}: {path} has {len(existing):,} frames (0-{last}); frame {end} does not exist.")
    chosen = {i for a, b in wanted for i in range(a, b + 1)}
    return [i for i in existing if i in chosen]


def _fps(job: _Job) -> float:
    with open_video(job.videos[0]) as video:
        return video.fps or 25.0


def _provenance(checkpoint: Checkpoint, path: Path, job: _Job, started: float) -> dict[str, Any]:
    import sys

    return {
        "producer": f"smp-plugin {__version__}",
        "model": str(path.resolve()),
        "command": " ".join(sys.argv),
        "settings": to_dict(checkpoint.config)["predict"],
        "source_files": [str(p.resolve()) for p in job.inputs],
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
    }

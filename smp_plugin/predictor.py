"""``predict``: videos or projects -> native prediction files. Streamed: decoding, the network and writing overlap, memory stays flat."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import FormatError, LabeledFrame, Skeleton, VideoSource, write_predictions
from converters.conversion import Contents, lost
from converters.deeplabcut_machinelabels import write_machinelabels
from converters.video import Video, open_video
from smp_plugin import __version__, cluster
from smp_plugin.checkpoint import Checkpoint, load_model
from smp_plugin.config import set_value, to_dict
from smp_plugin.drawing import OverlayWriter
from smp_plugin.inference import FramePoses, choose_device, every_device, for_prediction, infer, out_of_memory, say_device
from smp_plugin.jobs import MACHINELABELS, Job, check, is_folder, plan
from smp_plugin.progress import Reporter, Task
from smp_plugin.segments import Found, Segment, Work, digest, divide, stamp

MOST_PIXELS = 2**27  # in a batch, 16 frames of 4K; four batches are in memory at once, and a video of a few kilobytes may claim any size


class Predictor:
    """A loaded model on a device: frames -> animals in frame pixels.

    Args:
        checkpoint: from ``load_model``.
        device: where the network runs.
        reporter: is told if its memory is too small for the batches wanted.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, reporter: Reporter | None = None) -> None:
        self.checkpoint, self.device, self.config = checkpoint, device, checkpoint.config
        self.model = for_prediction(checkpoint.model, device, self.config.train.precision)
        self.batch = self.config.predict.batch or (16 if device.type == "cuda" else 4)
        self._warn: Callable[[str], None] | None = (reporter or Reporter(quiet=True)).warn  # once

    def __call__(self, images: torch.Tensor) -> list[FramePoses]:
        """Predict frames of one size, (N, 3, H, W) uint8 from ``images``.

        Where the device's memory is too small, batches are halved from then on. FormatError where it is too small for one frame.
        """
        found: list[FramePoses] = []
        while len(found) < len(images):
            some = images[len(found) : len(found) + self.batch]
            poses = self._attempt(some)
            if poses is None:
                self._halve(some)
            else:
                found += poses
        return found

    def _attempt(self, images: torch.Tensor) -> list[FramePoses] | None:
        """None where memory is too small; on return all that was computed has been given back."""
        config, typical = self.config, self.checkpoint.typical_length
        try:
            return infer(self.model, images, config.data.input_scale, config.predict, typical, config.train.precision)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        return None

    def _halve(self, images: torch.Tensor) -> None:
        count, _, height, width = images.shape
        if count == 1:
            remedy = "choose another --device, or make the video smaller"
            raise FormatError(f"{self.device}: its memory is not enough for a frame of {width} x {height} pixels; {remedy}.")
        if self._warn:
            self._warn(f"{self.device}: its memory is not enough for --batch {count}; smaller batches are tried.")
        self.batch, self._warn = count // 2, None

    def images(self, frames: list[np.ndarray]) -> torch.Tensor:
        """Frames (H, W, 3) uint8 of one size -> (N, 3, H, W) on the device. A copy from pinned memory to a GPU holds nothing up."""
        images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        return images.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else images

    def stream(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray, FramePoses]]:
        """(number, frame) pairs -> (number, frame, animals) in the same order. A thread decodes and sends ahead."""
        for batch, images in ahead(self._batches(frames), 2):
            for (number, frame), poses in zip(batch, self(images), strict=True):
                yield number, frame, poses

    def _batches(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[list[tuple[int, np.ndarray]], torch.Tensor]]:
        batch: list[tuple[int, np.ndarray]] = []
        scale = self.config.data.input_scale
        for number, frame in frames:
            height, width = frame.shape[:2]
            most = int(MOST_PIXELS / (height * width * max(1.0, scale) ** 2))
            if not most:
                read = f"{width} x {height} pixels, which the model reads at {scale:g} times their size"
                raise FormatError(f"Frame {number} has {read}; {MOST_PIXELS:,} pixels are the most, so make the video smaller.")
            if batch and (len(batch) >= min(self.batch, most) or batch[0][1].shape != frame.shape):
                yield batch, self.images([frame for _, frame in batch])
                batch = []
            batch.append((number, frame))
        if batch:
            yield batch, self.images([frame for _, frame in batch])


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
        config_overrides: settings by key, such as ``{"predict.min_score": 0.3}``; JSON values.
        frames: "all", "labeled", "unlabeled" or ranges like "0-999,1500"; default all of a video, the unlabelled ones of a project.
        device: "auto" (every GPU where there are several), "cpu", "cuda", "cuda:1" or "mps"; on a cluster, that of each worker.
        overlay: an mp4 with the poses drawn on the frames.
        resume: go on with an earlier call that did not finish, and skip files that did: those newer than the model and what is predicted.
        scheduler: address of a Dask scheduler whose workers predict; they see model and videos under the same paths.
        local_cluster: or start so many Dask workers on this machine.

    Returns:
        The outputs, each file whole, also those finished earlier.

    Raises:
        FormatError: bad input, or what is to be resumed was made with another model, other settings, frames or videos. Where a video turned
            out to be damaged, after the frames before the damage, and other videos, were written.
        KeyboardInterrupt: after the frames predicted so far were written.
    """
    reporter = reporter or Reporter(quiet=True)
    if on_cluster := scheduler is not None or local_cluster > 0:
        cluster.check_installed("--scheduler" if scheduler else "--local-cluster")
    path = model or newest_run()
    weights = (path / "model.pt" if path.is_dir() else path).absolute()
    checkpoint = _load(path, config_overrides or {})
    where, why = (torch.device("cpu"), "device: those of the workers") if on_cluster else choose_device(device)
    reporter.say(f"model: {path} ({', '.join(checkpoint.skeleton.keypoints)})" + ("" if model else ", the newest finished run"))
    say_device(reporter, why)
    skeleton = checkpoint.skeleton
    jobs = plan(inputs, output, suffix, frames, video_root, skeleton, reporter)
    if overlay:
        _check_overlay(overlay, jobs)
    works = divide(jobs, weights, checkpoint.config, resume, reporter)
    with _folder_for(output):
        check([work.job for work in works], skeleton)
    contents, notes, written, damage, started = Contents(), [], [], list[str](), time.time()
    with _stoppable() as stopped, contextlib.ExitStack() as stack:
        drawn = stack.enter_context(OverlayWriter(overlay, skeleton, _fps(jobs[0]))) if overlay and works else None
        for work in works:
            stack.callback(work.close, reporter)
            work.begin(resume, reporter)
        devices = [] if on_cluster else every_device(device)[: sum(len(work.missing) for work in works)]
        pool = stack.enter_context(cluster.executor(scheduler, local_cluster, devices, reporter))
        task = stack.enter_context(reporter.task("predicting", sum(work.left for work in works), "frames"))
        if pool is None:
            done = _done_here(Predictor(checkpoint, where, reporter), works, drawn, task, stopped)
        else:
            recipe = Recipe(weights, digest(weights), __version__, json.dumps(config_overrides or {}), device)
            done = _done_there(pool, recipe, works, drawn, task, stopped)
        for work in itertools.chain(done, (work for work in works if stopped.is_set() and work.begun)):
            provenance = _provenance(checkpoint, path, work.job, started)
            notes += _write(work.job, skeleton, _counted(_merged(work, damage, reporter), contents), provenance)
            written.append(work.job.output)
            if not work.missing:
                work.remove()
    for_a_person = jobs[0].kind == MACHINELABELS
    if for_a_person and not contents.most:
        notes.append(f"{output}: no animal was found, so there is nothing to correct and nothing was written; lower --min-score.")
        written.clear()
    if not for_a_person and written:
        notes += lost(contents, skeleton, jobs[0].kind, inputs[0].name, jobs[0].output if len(jobs) == 1 else output)
    for note in notes:
        reporter.warn(note)
    for job_output in dict.fromkeys(written):
        reporter.say(f"written: {job_output}")
    if for_a_person and written:
        reporter.say("to correct them: open each folder's machinelabels in deeplabcut.refine_labels, save, call deeplabcut.merge_datasets")
    if drawn is not None and drawn.begun:
        reporter.say(f"written: {overlay}")
    if stopped.is_set():
        raise KeyboardInterrupt
    if damage:
        raise FormatError(f"{' '.join(damage)} What comes before it was predicted and written.")
    return written if for_a_person else [job.output for job in jobs]


def newest_run(folder: Path = Path("runs")) -> Path:
    """The newest run that smp-train finished (it writes report.html last). Raises FormatError where there is none."""
    runs = [p.parent for p in folder.glob("**/model.pt") if (p.parent / "report.html").exists()]
    if not runs:
        raise FormatError(f"there is no finished run under {folder}/; train one with smp-train, or name a model with --model.")
    return max(runs, key=lambda run: (run / "model.pt").stat().st_mtime)


@dataclass(frozen=True)
class Recipe:
    """How a process anywhere makes the same predictor.

    Attributes:
        model: an absolute path.
        digest: of that file, from `digest`.
        version: of this package.
        overrides: settings by key, as JSON.
        device: a name that `choose_device` takes.
    """

    model: Path
    digest: str
    version: str
    overrides: str
    device: str

    def predictor(self) -> Predictor:
        """Load the model. Raises FormatError where it, or this package, is another one here."""
        if __version__ != self.version:
            raise FormatError(f"{platform.node()} has smp-plugin {__version__}, the caller {self.version}; install the same version.")
        checkpoint = _load(self.model, json.loads(self.overrides))
        if digest(self.model) != self.digest:
            raise FormatError(f"--model {self.model}: on {platform.node()} this is another file; give a path that all machines share.")
        return Predictor(checkpoint, choose_device(cluster.own_device or self.device)[0])


def _load(path: Path, overrides: Mapping[str, object]) -> Checkpoint:
    checkpoint = load_model(path)
    for key, value in overrides.items():
        set_value(checkpoint.config, key, value, key)
    return checkpoint


def _done_here(
    predictor: Predictor, works: list[Work], drawn: OverlayWriter | None, task: Task, stopped: threading.Event
) -> Generator[Work, None, None]:
    """Predict what is missing in this process; yields works when they are complete."""
    count = itertools.count(1)

    def seen(frame: np.ndarray, found: FramePoses) -> None:
        if drawn is not None:
            drawn.write(frame, found.poses, point_scores=found.point_scores)
        task.update(next(count))

    for work in works:
        for (number, missing), group in itertools.groupby([(s, (s.video, s.place in work.missing)) for s in work.segments], lambda p: p[1]):
            run = [segment for segment, _ in group]
            if missing:
                with (
                    open_video(work.job.videos[number]) as video,
                    contextlib.closing(_in_segments(predictor, video, video.n_frames, run, seen, stopped)) as pieces,
                ):
                    for segment, found in pieces:
                        work.save(segment, found)
            elif drawn is not None:
                _draw(work, run, drawn, stopped)
            if stopped.is_set():
                return
        yield work


def _done_there(
    pool: Executor, recipe: Recipe, works: list[Work], drawn: OverlayWriter | None, task: Task, stopped: threading.Event
) -> Generator[Work, None, None]:
    """Have what is missing predicted by other processes; yields works when they are complete."""
    futures = {
        pool.submit(predict_segment, recipe, work.job.videos[segment.video], segment): (work, segment)
        for work in works
        for segment in work.segments
        if segment.place in work.missing
    }
    complete = [work for work in works if not work.missing]
    count = 0
    if drawn is None:
        yield from complete
    for (work, segment), found in cluster.finished(futures, stopped):
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


def predict_segment(recipe: Recipe, source: VideoSource, segment: Segment) -> bytes:
    """What a worker does: predict frames of a video, which ``recipe`` and ``source`` name by paths; a safetensors file, as `Found` says.

    Raises:
        FormatError: the model or the video can't be read, or is another one here.
    """
    with _ONE_AT_A_TIME:  # Dask's workers may have several threads
        predictor = _predictor(recipe)
        video, promised = _video(source, *(part for path in source.paths for part in stamp(path)))
        ((_, found),) = _in_segments(predictor, video, promised, [segment], lambda *_: None, threading.Event())
        return found


_ONE_AT_A_TIME = threading.Lock()
_predictor = functools.lru_cache(maxsize=1)(Recipe.predictor)


@functools.lru_cache(maxsize=4)  # open videos know where their frames are, which takes a reading of the file
def _video(source: VideoSource, *stamps: int) -> tuple[Video, int]:
    video = open_video(source)
    return video, video.n_frames


def _in_segments(
    predictor: Predictor,
    video: Video,
    promised: int,
    run: list[Segment],
    seen: Callable[[np.ndarray, FramePoses], None],
    stopped: threading.Event,
) -> Generator[tuple[Segment, bytes], None, None]:
    """Predict segments that follow each other in one go; each as `Found` packs it, the last one cut short if ``stopped``."""
    wanted = itertools.chain.from_iterable(segment.frames for segment in run)
    damage: list[str] = []
    frames = video.stream(start=run[0].frames[0]) if run[-1].to_end else _to_the_end(video, wanted, promised)

    def animals() -> Generator[tuple[int, FramePoses], None, None]:
        for index, frame, found in predictor.stream(_up_to_damage(frames, damage, refuse=run[0].first)):
            seen(frame, found)
            yield index, found
            if stopped.is_set():
                return

    with contextlib.closing(animals()) as found:
        for segment in run:
            some = list(found if segment.to_end else itertools.islice(found, len(segment.frames)))
            complete = not stopped.is_set() or (not segment.to_end and len(some) == len(segment.frames))
            length = video.n_frames, promised
            here = " ".join(damage) if segment.to_end or len(some) < len(segment.frames) else ""  # frames are read ahead of what was found
            yield segment, Found.of(some, len(predictor.checkpoint.skeleton), length, complete, here).to_bytes()
            if stopped.is_set():
                return


def _to_the_end(video: Video, wanted: Iterable[int], promised: int) -> Iterator[tuple[int, np.ndarray]]:
    """The frames wanted, up to the real end of the video: headers often promise a few more than there are."""
    for index in wanted:
        try:
            frame = video.read(index)
        except FormatError:
            if video.source.kind != "file" or not video.n_frames <= index < promised:
                raise
            return
        yield index, frame


def _up_to_damage(frames: Iterable[tuple[int, np.ndarray]], damage: list[str], refuse: bool) -> Iterator[tuple[int, np.ndarray]]:
    """The same frames; where one can't be read they end, and ``damage`` says why. ``refuse``: raised instead where it is the first."""
    try:
        for each in frames:
            yield each
            refuse = False
    except FormatError as error:
        if refuse:
            raise
        damage.append(str(error))


def _merged(work: Work, damage: list[str], reporter: Reporter) -> Iterator[LabeledFrame]:
    """The frames of all segments in order, also of one that was cut short; of a damaged video, those before the damage."""
    damaged = set[int]()
    for segment in work.segments:
        found = work.read(segment)
        if found is None or segment.video in damaged:
            continue
        yield from found.frames(segment.video)
        if found.damage:
            damaged.add(segment.video)
            damage.append(found.damage)
            continue
        n_frames, promised = found.length.tolist()
        if found.complete and work.job.wanted[segment.video][-1] == segment.frames[-1] >= n_frames:
            name = work.job.videos[segment.video].name
            reporter.warn(f"{name} holds {n_frames:,} frames, not the {promised:,} that its header promises; all are done.")


def _draw(work: Work, run: list[Segment], drawn: OverlayWriter, stopped: threading.Event) -> None:
    """Draw segments that were predicted earlier, or elsewhere."""
    for number, group in itertools.groupby(run, lambda segment: segment.video):
        with open_video(work.job.videos[number]) as video:
            for found in filter(None, map(work.read, group)):
                for labelled, (_, frame) in zip(found.frames(number), video.stream(found.numbers.tolist()), strict=True):
                    if stopped.is_set():
                        return
                    poses = np.array([animal.points for animal in labelled.predicted])
                    drawn.write(frame, poses, point_scores=np.array([animal.point_scores for animal in labelled.predicted]))


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


def _write(job: Job, skeleton: Skeleton, frames: Iterable[LabeledFrame], provenance: dict[str, Any]) -> list[str]:
    """What was left out, a sentence each."""
    if job.kind == MACHINELABELS:
        return write_machinelabels(job.config, skeleton, job.videos, frames)
    write_predictions(job.output, skeleton, job.videos, frames, provenance, job.inputs)
    return []


def _counted(frames: Iterable[LabeledFrame], contents: Contents) -> Iterator[LabeledFrame]:
    for frame in frames:
        contents.add(frame)
        yield frame


@contextlib.contextmanager
def _folder_for(output: Path) -> Iterator[None]:
    """Make the folder that files are written to, and remove it again if anything is raised, Ctrl-C included."""
    if output.exists() or not is_folder(output):
        yield
        return
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    _make_folder(output, "-o")
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
    """Before anything is predicted: an overlay must not replace what is read, and its folder must exist."""
    read = [p for job in jobs for p in (*job.inputs, *(q for video in job.videos for q in video.paths))]
    if overlay.resolve() in {p.resolve() for p in read}:
        raise FormatError(f"--overlay {overlay}: it is one of the inputs and would be overwritten; give the overlay another name.")
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
        "command": " ".join(sys.argv),
        "settings": to_dict(checkpoint.config)["predict"],
        "source_files": [str(p.resolve()) for p in job.inputs],
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
    }

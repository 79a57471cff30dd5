"""A model on a device: frames -> animals, streamed, so that decoding and the network overlap and memory stays flat; also on a worker."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import math
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters import FormatError, VideoSource
from converters.video import Video, open_video
from smp_plugin import __version__, cluster
from smp_plugin.checkpoint import Checkpoint, load_model
from smp_plugin.config import set_value
from smp_plugin.devices import choose_device, out_of_memory, say_device
from smp_plugin.inference import FramePoses, for_prediction, infer
from smp_plugin.memory import keep_freed
from smp_plugin.pipeline import abreast, ahead
from smp_plugin.progress import Reporter
from smp_plugin.records import digest, stamp
from smp_plugin.runtimes import Runtime, check_runtime
from smp_plugin.segments import Found, Segment

KEPT = 0.98  # share of AP that --fast keeps
MOST_LANES = 4  # batches that a CPU works on at once; each takes memory
CUDA_LANES = 2  # while the host waits for one batch's animals, the GPU has the next one to do
BATCHES = (4, 8, 16, 32, 64)  # that a GPU tries
MOST_PIXELS = 2**27  # in the network at once, 16 frames of 4K: a video of a few kilobytes may claim any size


class Predictor:
    """A loaded model on a device: frames -> animals in frame pixels.

    Args:
        checkpoint: from ``load_model``.
        device: where the network runs.
        reporter: is told if its memory is too small for the batches wanted, and what a runtime other than PyTorch is worth.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, reporter: Reporter | None = None) -> None:
        self.checkpoint, self.device, self.config = checkpoint, device, checkpoint.config
        self.reporter, runtime = reporter or Reporter(quiet=True), self.config.predict.runtime
        check_runtime(runtime, device)
        exact = None if runtime == "pytorch" else for_prediction(copy.deepcopy(checkpoint.model), device, "fp32")
        self.model = for_prediction(checkpoint.model, device, self.config.train.precision)
        if device.type == "cpu":
            keep_freed()
        self.batch = self.config.predict.batch or (16 if device.type == "cuda" else 4)
        self._measure = device.type == "cuda" and not self.config.predict.batch and runtime == "pytorch"  # others are made for one size
        threads = torch.get_num_threads()
        on_cpu = max(n for n in range(1, MOST_LANES + 1) if threads % n == 0)
        self.lanes = {"cpu": on_cpu, "cuda": CUDA_LANES}.get(device.type, 1)
        if exact is not None:
            self.model.answers = Runtime(runtime, self.model, exact, self.lanes, self.reporter)  # type: ignore[method-assign]
        self._warn: Callable[[str], None] | None = self.reporter.warn  # once

    def __call__(self, images: torch.Tensor) -> list[FramePoses]:
        """Predict frames of one size, (N, 3, H, W) uint8 from ``images``.

        Where the device's memory is too small, batches are halved from then on. FormatError where it is too small for one frame.
        """
        found: list[FramePoses] = []
        while len(found) < len(images):
            some = images[len(found) : len(found) + self.batch]
            poses = self.attempt(some)
            if poses is None:
                self._halve(some)
            else:
                found += poses
        return found

    def attempt(self, images: torch.Tensor) -> list[FramePoses] | None:
        """All of them in one batch. None where memory is too small; on return all that was computed has been given back."""
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

    def measure_batch(self, frame: np.ndarray) -> None:
        """Take the smallest of `BATCHES` that predicts frames like this one (H, W, 3) within 5 % as fast as any; what a GPU is best at
        depends on the GPU.
        """
        rates: dict[int, float] = {}
        for batch in BATCHES:
            if batch * frame[..., 0].size * self._enlarged > MOST_PIXELS:
                break
            images, before = self.images([frame] * batch), max(rates.values(), default=0.0)
            rates[batch] = batch / min([self._seconds(images) for _ in range(3)][1:])  # the first one is slow
            if rates[batch] <= 1.05 * before:
                break
        if rates:
            self.batch = min(batch for batch, rate in rates.items() if rate * 1.05 >= max(rates.values()))
            tried = ", ".join(f"{rate:.0f} frames/s by {batch}" for batch, rate in rates.items())
            self.reporter.say(f"batch: {self.batch} frames of {frame.shape[1]} x {frame.shape[0]} pixels, as measured ({tried})")

    def _seconds(self, images: torch.Tensor) -> float:
        started = time.perf_counter()
        return math.inf if self.attempt(images) is None else time.perf_counter() - started

    def images(self, frames: list[np.ndarray]) -> torch.Tensor:
        """Frames (H, W, 3) uint8 of one size -> (N, 3, H, W), on a GPU already if it has room beside the batches in hand.

        A copy from pinned memory holds nothing up. torch keeps such memory, and gives it out again once what was copied from it has
        arrived: as many buffers as are on their way are used in turn.
        """
        shape = (len(frames), *frames[0].shape)
        if self.device.type == "cuda":
            try:
                pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
                np.stack(frames, out=pinned.numpy())
                return pinned.permute(0, 3, 1, 2).to(self.device, non_blocking=True)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)

    def stream(self, frames: Iterable[tuple[int, np.ndarray]]) -> Generator[tuple[int, np.ndarray, FramePoses], None, None]:
        """(number, frame) pairs -> (number, frame, animals) in the same order. A thread decodes and sends ahead."""

        def found(item: tuple[list[tuple[int, np.ndarray]], torch.Tensor], alone: bool) -> list[tuple[int, np.ndarray, FramePoses]] | None:
            batch, images = item
            poses = self(images) if alone else self.attempt(images)
            if poses is None:
                return None
            return [(number, frame, of_frame) for (number, frame), of_frame in zip(batch, poses, strict=True)]

        def share(item: tuple[object, torch.Tensor]) -> int:
            return math.ceil(self.lanes * item[1][:, 0].numel() * self._enlarged / MOST_PIXELS)

        with (  # closed at once: the thread reads a video that may be, too
            contextlib.closing(ahead(self._batches(frames), 2)) as batches,
            contextlib.closing(abreast(found, batches, self.lanes, share)) as done,
        ):
            for batch in done:
                yield from batch

    @property
    def _enlarged(self) -> float:
        """Pixels that the network sees of each pixel of a frame, at least 1."""
        return max(1.0, self.config.data.input_scale * self.config.predict.shrink) ** 2

    def _batches(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[list[tuple[int, np.ndarray]], torch.Tensor]]:
        batch: list[tuple[int, np.ndarray]] = []
        for number, frame in frames:
            height, width = frame.shape[:2]
            most = int(MOST_PIXELS / (height * width * self._enlarged))
            if not most:
                read = f"{width} x {height} pixels, which the model reads at {math.sqrt(self._enlarged):g} times their size"
                raise FormatError(f"Frame {number} has {read}; {MOST_PIXELS:,} pixels are the most, so make the video smaller.")
            if self._measure:
                self._measure = False
                self.measure_batch(frame)
            if batch and (len(batch) >= min(self.batch, most) or batch[0][1].shape != frame.shape):
                yield batch, self.images([frame for _, frame in batch])
                batch = []
            batch.append((number, frame))
        if batch:
            yield batch, self.images([frame for _, frame in batch])


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
        """Load the model. What it says waits in its reporter. Raises FormatError where it, or this package, is another one here."""
        if __version__ != self.version:
            raise FormatError(f"{platform.node()} has smp-plugin {__version__}, the caller {self.version}; install the same version.")
        checkpoint = load(self.model, json.loads(self.overrides))
        if digest(self.model) != self.digest:
            raise FormatError(f"--model {self.model}: on {platform.node()} this is another file; give a path that all machines share.")
        device, why = choose_device(cluster.own_device or self.device)
        reporter = Reporter()
        reporter.mute = True
        if cluster.own_device is None:  # else the caller chose it
            say_device(reporter, why)
        return Predictor(checkpoint, device, reporter)


def load(path: Path, overrides: Mapping[str, object]) -> Checkpoint:
    """A model, with some of its settings changed."""
    checkpoint = load_model(path)
    for key, value in overrides.items():
        set_value(checkpoint.config, key, value, "--" + key.partition(".")[2].replace("_", "-"))
    return checkpoint


def smallest(checkpoint: Checkpoint, path: Path, reporter: Reporter) -> float:
    """The least share of the frames' size that keeps `KEPT` of the AP on validation frames. Raises FormatError where that is not known."""
    try:
        measured = {float(share): float(ap) for share, ap in dict(checkpoint.facts["shrunk"]).items()}  # type: ignore[call-overload]
        full = measured[1.0]
    except (KeyError, TypeError, ValueError):
        raise FormatError(
            f"--fast: what smaller frames cost was never measured for {path} (smp-train does it on validation frames); leave out --fast, "
            "or train with validation frames and train.keep=best."
        ) from None
    share = min((s for s, ap in measured.items() if 0.1 <= s <= 1 and full > 0 and ap >= KEPT * full), default=1.0)
    shown = ", ".join(f"{ap:.3f} at {s:g}" for s, ap in sorted(measured.items(), reverse=True))
    less = f"frames are read at {share:g} of their size, {1 / share**2:.2g} times fewer pixels" if share < 1 else "frames are read in full"
    reporter.say(f"--fast: {less}; AP on validation frames (s2 = 0.1): {shown}")
    return share


def predict_segment(recipe: Recipe, source: VideoSource, segment: Segment) -> tuple[bytes, list[list[str]]]:
    """What a worker does: predict frames of a video, which ``recipe`` and ``source`` name by paths.

    Returns:
        A safetensors file, as `Found` says, and what the caller is to be told: sentences and warnings, new since the segment before.

    Raises:
        FormatError: the model or the video can't be read, or is another one here.
    """
    with _ONE_AT_A_TIME:  # Dask's workers may have several threads
        predictor = _predictor(recipe)
        video, promised = _video(source, *(part for path in source.paths for part in stamp(path)))
        ((_, found),) = in_segments(predictor, video, promised, [segment], lambda *_: None, threading.Event())
        worker = "" if cluster.own_device else f"{platform.node()}: "
        return found, [[worker + text for text in texts] for texts in predictor.reporter.take()]


_ONE_AT_A_TIME = threading.Lock()
_predictor = functools.lru_cache(maxsize=1)(Recipe.predictor)


@functools.lru_cache(maxsize=4)  # open videos know where their frames are, which takes a reading of the file
def _video(source: VideoSource, *stamps: int) -> tuple[Video, int]:
    video = open_video(source)
    return video, video.n_frames


def in_segments(
    predictor: Predictor,
    video: Video,
    promised: int,
    run: list[Segment],
    seen: Callable[[int, np.ndarray, FramePoses], None],
    stopped: threading.Event,
) -> Generator[tuple[Segment, bytes], None, None]:
    """Predict segments that follow each other in one go; each as `Found` packs it, the last one cut short if ``stopped``."""
    wanted = itertools.chain.from_iterable(segment.frames for segment in run)
    damage: list[str] = []
    frames = video.stream(start=run[0].frames[0]) if run[-1].to_end else _to_the_end(video, wanted, promised)

    def animals() -> Generator[tuple[int, FramePoses], None, None]:
        with contextlib.closing(predictor.stream(_up_to_damage(frames, damage, refuse=run[0].first))) as stream:
            for index, frame, found in stream:
                seen(index, frame, found)
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

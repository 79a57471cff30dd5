"""What computes the network's answers: PyTorch as it is, PyTorch's compiler, or, in prediction, ONNX Runtime.

The last two may be faster; which is depends on the machine. So each shows that it agrees with PyTorch and that it is faster, else PyTorch
goes on: in prediction on the first batch of every shape of images, in training before the first step.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.labels import FormatError
from smp_plugin.config import TrainConfig
from smp_plugin.devices import autocast
from smp_plugin.model import PoseModel
from smp_plugin.progress import Reporter

# What may differ from PyTorch's answers in single precision, or as much as PyTorch's own in bf16 do:
MOST_DRIFT = 0.1  # input pixels, of poses
MOST_DOUBT = 0.01  # of probabilities
MOST_ASTRAY = 0.01  # of gradients, as a share of their length; in mixed precision, twice as much as PyTorch's own
LONG_MINUTES, LONG_STEPS = 20, 2000  # of training
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Answers = tuple[Tensor, Tensor, Tensor, Tensor]
Run = Callable[[Tensor], Answers]


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raise FormatError where ``onnx`` is asked for and can't be had."""
    if runtime != "onnx":
        return
    if device.type != "cpu":
        raise FormatError(f"--runtime onnx: it is for the CPU, and the device is {device}; take --runtime compile, or --device cpu.")
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        raise FormatError(f"--runtime onnx: {', '.join(absent)} cannot be found; install the extra: pip install 'smp-plugin[onnx]'.")


class Runtime:
    """Stands in for ``PoseModel.answers``.

    Args:
        name: "compile" or "onnx".
        model: ready for prediction.
        exact: the same in single precision, likewise ready.
        lanes: batches that are computed at once, by threads that call this.
        reporter: is told once what was found for the first shape of images.
    """

    def __init__(self, name: str, model: PoseModel, exact: PoseModel, lanes: int, reporter: Reporter) -> None:
        self.name, self._own, self._exact, self._lanes, self._reporter = name, model.answers, exact, lanes, reporter
        self._turn = threading.Lock()
        self._chosen: dict[tuple[object, ...], tuple[int, Run | None]] = {}

    def __call__(self, images: Tensor) -> Answers:
        """Images (N, 3, H, W) -> A, B, C, D of `PoseOutputs`. Fewer images than in the largest batch of their shape are filled up."""
        key = images.dtype, images.shape[2:], torch.get_num_threads()
        with self._turn:  # lanes meet the first batch together
            if len(images) > self._chosen.get(key, (0, None))[0]:
                self._chosen[key] = len(images), self._try(images)
        size, run = self._chosen[key]
        if run is None:
            return self._own(images)
        heatmaps, presence, quality, vectors = run(F.pad(images, (0, 0) * 3 + (0, size - len(images))))
        n = len(images)
        return heatmaps[:n], presence[:n], quality[:n], vectors[:n]

    def _try(self, images: Tensor) -> Run | None:
        """The other runtime for images like these, if it does as well as PyTorch, and faster."""
        say = self._reporter.warn if not self._chosen else lambda _: None
        try:
            run = self._compiled(images) if self.name == "compile" else self._exported(images)
            found = run(images)
        except Exception as error:  # compilers and exporters have errors of any kind, and PyTorch needs neither
            say(f"--runtime {self.name}: it fails here ({_reason(error)}); PyTorch goes on.")
            return None
        with torch.autocast(images.device.type, enabled=False):
            exact = self._exact.answers(images)
        (drift, doubt), own = self._differences(found, exact), self._differences(self._own(images), exact)
        if not (drift <= max(MOST_DRIFT, own[0]) and doubt <= max(MOST_DOUBT, own[1])):
            far = f"its poses are up to {drift:.2g} pixels and its probabilities {doubt:.2g} from PyTorch's here"
            say(f"--runtime {self.name}: {far}; PyTorch goes on.")
            return None
        gain = _seconds(self._own, images, self._lanes) / _seconds(run, images, self._lanes)
        figures = f"--runtime {self.name}: {gain:.2f} times as fast as PyTorch here"
        if gain <= 1:
            say(f"{figures}; PyTorch goes on.")
            return None
        if not self._chosen:
            self._reporter.say(f"{figures}, its poses at most {drift:.1g} pixels from PyTorch's")
        return run

    def _differences(self, found: Answers, exact: Answers) -> tuple[float, float]:
        """The most that poses differ, input pixels, and probabilities do, at any location, likely or not."""
        drift = (self._exact.outputs(*found).poses - self._exact.outputs(*exact).poses).abs().max()
        doubts = [(a.sigmoid() - b.sigmoid()).abs().max() for a, b in zip(found[:3], exact[:3], strict=True)]
        return float(drift), float(torch.stack(doubts).max())

    def _compiled(self, images: Tensor) -> Run:
        return torch.compile(self._own, dynamic=False)

    def _exported(self, images: Tensor) -> Run:
        """An ONNX graph in memory, for images of this shape; a session of its own for this number of threads."""
        import onnxruntime

        with torch.inference_mode(False), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            example = torch.zeros(images.shape, dtype=images.dtype)
            with contextlib.redirect_stdout(io.StringIO()):  # the exporter tells its steps
                program: Any = torch.onnx.export(_Answers(self._exact).eval(), (example,), dynamo=True)
        graph = io.BytesIO()
        program.save(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(graph.getvalue(), options, providers=["CPUExecutionProvider"])
        (name,) = (given.name for given in session.get_inputs())

        def run(images: Tensor) -> Answers:
            heatmaps, presence, quality, vectors = map(torch.from_numpy, session.run(None, {name: images.numpy()}))
            return heatmaps, presence, quality, vectors

        return run


class _Answers(nn.Module):
    """What exporters take is a module."""

    def __init__(self, model: PoseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Answers:
        return self.model.answers(images)


def compiling_pays(settings: TrainConfig, step: int, seconds: float, device: torch.device) -> bool:
    """Whether ``train.compile`` asks for it: `auto` where what is left of the run is long beside a minute or two of compiling."""
    long = settings.minutes - seconds / 60 >= LONG_MINUTES if settings.minutes else settings.steps - step >= LONG_STEPS
    return settings.compile == "yes" or (settings.compile == "auto" and device.type == "cuda" and long)


def for_training(
    model: PoseModel,
    teacher: PoseModel,
    images: Tensor,
    labelled: int,
    of_teacher: Sequence[int],
    settings: TrainConfig,
    reporter: Reporter,
) -> dict[PoseModel, Run]:
    """``answers`` of a network and of its teacher, compiled if the gradients are PyTorch's and come sooner; else nothing.

    Args:
        model, teacher: alike, on the device of ``images``.
        images: (N, 3, H, W) like the largest batch of a step.
        labelled: how many images the batches of the first steps have.
        of_teacher: how many the teacher's have.
        settings: precision; whether anybody asked for it.
        reporter: is told what was found.
    """
    own, device = model.answers, images.device

    def gradient(run: Run, images: Tensor, precision: str = settings.precision) -> Tensor:
        return gradient_of(run, model, images, precision)

    reporter.say("train.compile: the network is compiled, which takes a minute or two (train.compile=no leaves it)")
    try:
        run: Run = torch.compile(own, dynamic=False)
        seen: Run = torch.compile(teacher.answers, dynamic=False)
        found = gradient(run, images[:labelled])
        exact = gradient(own, images[:labelled], "fp32")
        far, usual = (float((g - exact).norm() / exact.norm()) for g in (found, gradient(own, images[:labelled])))
        plain, compiled = (_best(lambda run=run: gradient(run, images), device) for run in (own, run))  # type: ignore[misc]
        for count in of_teacher:  # now: what fails in the midst of a run ends it
            with torch.no_grad(), autocast(device, settings.precision):
                seen(images[:count])
    except Exception as error:
        tell = reporter.warn if settings.compile == "yes" else reporter.say
        tell(f"train.compile: it fails here ({_reason(error)}); PyTorch goes on as it is.")
        return {}
    finally:
        if device.type == "cuda":  # comparisons tell how much a run took at most
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    if not far <= max(MOST_ASTRAY, 2 * usual):
        reporter.warn(f"train.compile: its gradients differ by {far:.2g} of their length; PyTorch goes on as it is.")
        return {}
    goes_on = "" if compiled < plain else "; PyTorch goes on as it is"
    reporter.say(f"train.compile: the network learns {plain / compiled:.2f} times as fast compiled here{goes_on}")
    return {model: run, teacher: seen} if compiled < plain else {}


def gradient_of(run: Run, model: PoseModel, images: Tensor, precision: str) -> Tensor:
    """(P,) the gradient of all weights by something that depends on every answer that ``run`` gives about ``images``."""
    with autocast(images.device, precision):
        answers = run(images)
    # Every answer counts, however large it is; the same ones each time.
    random = torch.Generator(images.device).manual_seed(0)
    towards = [torch.randn(a.shape, generator=random, device=a.device) / math.sqrt(a.numel()) for a in answers]
    loss = torch.stack([(a * t).sum() for a, t in zip(answers, towards, strict=True)]).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Not backward(): several processes would wait for each other's gradients.
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None])


def _reason(error: Exception) -> str:
    """What it says first: PyTorch's compiler goes on with how to have more of it printed."""
    said = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {textwrap.shorten(said, 200, placeholder=' ...')}"


def _seconds(run: Run, images: Tensor, lanes: int) -> float:
    """With all lanes at work: what is faster alone may be slower where memory is shared."""
    threads, device = torch.get_num_threads(), images.device.type
    mixed, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def lane(_: int) -> None:  # threads begin without what this one has been told
        torch.set_num_threads(threads)
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=mixed):
            run(images)

    with ThreadPoolExecutor(lanes) as pool:
        return _best(lambda: list(pool.map(lane, range(lanes))), images.device)


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds, the best of three."""
    best = float("inf")
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best

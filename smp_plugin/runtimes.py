"""What computes the network's answers in prediction: PyTorch as it is, PyTorch's compiler, or ONNX Runtime.

The last two may be faster; which is depends on the machine. So each shows on the first batch of every shape of images that it agrees with
PyTorch and that it is faster, else PyTorch goes on.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.labels import FormatError
from smp_plugin.model import PoseModel
from smp_plugin.progress import Reporter

# What may differ from PyTorch's answers in single precision, or as much as PyTorch's own in bf16 do:
MOST_DRIFT = 0.1  # input pixels, of poses
MOST_DOUBT = 0.01  # of probabilities
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
        self._strides = exact.strides
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
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            say(f"--runtime {self.name}: it fails here ({reason}); PyTorch goes on.")
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
        heatmaps, *_, vectors = found
        cells = [heatmaps[0, 0].numel() * self._exact.heatmap_stride**2 // stride**2 for stride in self._strides]
        strides = torch.tensor(self._strides, device=vectors.device).repeat_interleave(torch.tensor(cells, device=vectors.device))
        drift = ((vectors - exact[3]).abs().amax(dim=(0, 2, 3)) * strides).max()
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


def _seconds(run: Run, images: Tensor, lanes: int) -> float:
    """The best of three, with all lanes at work: what is faster alone may be slower where memory is shared."""
    threads, best, device = torch.get_num_threads(), float("inf"), images.device.type
    mixed, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def lane(_: int) -> None:  # threads begin without what this one has been told
        torch.set_num_threads(threads)
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=mixed):
            run(images)

    with ThreadPoolExecutor(lanes) as pool:
        for _ in range(4):  # the first one warms up
            started = time.perf_counter()
            list(pool.map(lane, range(lanes)))
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    return best

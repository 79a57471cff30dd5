"""Prediction on an NVIDIA GPU, without one: by tensors that have a device, a shape and a type, and no values.

What mixes devices or types fails here as it does there. What a kernel computes, and whether there is one, only a GPU can say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from smp_plugin import decode, inference, waiting
from smp_plugin.config import Config
from smp_plugin.decode import Detections
from smp_plugin.inference import for_prediction
from smp_plugin.model import PoseModel

pytestmark = pytest.mark.usefixtures("thin_backbone")

KEYPOINTS = 5
ONE_TYPE = {"convolution", "native_group_norm", "grid_sampler_2d", "mm", "bmm", "addmm"}  # whose CUDA kernels take numbers of one type only


class Kernels(TorchDispatchMode):
    """Refuses what CUDA kernels refuse and tensors without values let pass; keeps the types of numbers that each kernel was given."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = {t.dtype for t in args if isinstance(t, Tensor) and t.is_floating_point()}
        self.types.setdefault(name, set()).update(given)
        assert name not in ONE_TYPE or len(given) == 1, f"{name} of {given}"
        return func(*args, **(kwargs or {}))


class Gpu:
    """Holds tensors on "cuda", without values; within ``with``, operations on them are watched."""

    def __init__(self, move_model: Callable[..., None]) -> None:
        self.fake, self.kernels, self.move_model = FakeTensorMode(), Kernels(), move_model

    def move(self, tensor: Tensor) -> Tensor:
        with self.fake:
            return self.fake.from_tensor(tensor).to("cuda")

    def take(self, model: nn.Module) -> None:
        self.move_model(model, self.move)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with self.fake, self.kernels:
            yield


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """As `devices.autocast`; ``torch.autocast`` refuses without a GPU."""
    assert device.type == "cuda"
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", precision == "bf16")
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, move_model: Callable[..., None]) -> Gpu:
    for module in (waiting, decode):
        monkeypatch.setattr(module, "may_look", lambda _: False)  # there is nothing to see
    monkeypatch.setattr(inference, "autocast", autocast)
    return Gpu(move_model)


def make_model(config: Config, norm: str, precision: str, ready: bool) -> PoseModel:
    """As a trained model is predicted with (``ready``), or as it is while it is trained, with weights in single precision."""
    config.model.norm = norm  # type: ignore[assignment]
    model = PoseModel(config.model, KEYPOINTS).eval().to(memory_format=torch.channels_last)
    return for_prediction(model, torch.device("cpu"), precision) if ready else model


def predict(gpu: Gpu, model: PoseModel, config: Config, scale: float, precision: str) -> Detections:
    frames = gpu.move(torch.zeros(2, 3, 90, 120, dtype=torch.uint8))
    with gpu.watched(), torch.no_grad():  # not in inference mode, which hides the kernels
        return inference.detect(model, frames, scale, config.predict, 28.0, precision)


@pytest.mark.parametrize(
    ("scale", "settings"), [(0.6, {}), (1.0, {"model__heatmap_stride": 8, "model__kpalign": False, "predict__max_animals": 3})]
)
@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_prediction_mixes_neither_devices_nor_types(
    make_config: Callable[..., Config], gpu: Gpu, norm: str, precision: str, ready: bool, scale: float, settings: dict[str, Any]
) -> None:
    config = make_config(**settings)
    model = make_model(config, norm, precision, ready)
    gpu.take(model)
    found = predict(gpu, model, config, scale, precision)
    animals = found.scores.shape[1]
    assert animals == config.predict.max_animals or animals > 3
    assert found.poses.shape == (2, animals, KEYPOINTS, 2) and found.point_scores.shape == (2, animals, KEYPOINTS)
    assert all(t.device.type == "cuda" and t.dtype == torch.float32 for t in vars(found).values())
    for kernel in ("convolution", "native_group_norm"):  # autocast alone would compute norms in single precision
        assert gpu.kernels.types[kernel] == {torch.bfloat16 if precision == "bf16" else torch.float32}


def left_behind(model: PoseModel) -> None:
    model.heatmap.logits.weight = nn.Parameter(torch.zeros_like(model.heatmap.logits.weight, device="cpu"))


def conv_in_half(model: PoseModel) -> None:
    part = model.presence.logits
    part._parameters.update({name: nn.Parameter(p.bfloat16()) for name, p in part._parameters.items() if p is not None})


@pytest.mark.parametrize(("spoil", "words"), [(left_behind, "on the same device"), (conv_in_half, "should be the same|convolution of")])
def test_what_mixes_them_is_noticed(make_config: Callable[..., Config], gpu: Gpu, spoil: Callable[[PoseModel], None], words: str) -> None:
    config = make_config()
    model = make_model(config, "group", "fp32", ready=True)
    gpu.take(model)
    with gpu.fake:
        spoil(model)
    with pytest.raises((RuntimeError, AssertionError), match=words):
        predict(gpu, model, config, 1.0, "fp32")


def test_weights_made_ready_for_bf16_need_autocast(make_config: Callable[..., Config], gpu: Gpu) -> None:
    config = make_config()
    model = make_model(config, "group", "bf16", ready=True)
    gpu.take(model)
    with pytest.raises(AssertionError, match="convolution of"):
        predict(gpu, model, config, 1.0, "fp32")

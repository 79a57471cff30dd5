"""A model made ready for prediction says what it said before."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smp_plugin.config import Config
from smp_plugin.devices import autocast
from smp_plugin.inference import for_prediction, infer
from smp_plugin.model import PoseModel

CPU = torch.device("cpu")


@pytest.mark.parametrize(("norm", "precision", "tolerance"), [("group", "bf16", 0.0), ("group", "fp32", 0.0), ("frozen", "fp32", 1e-4)])
def test_ready_for_prediction_the_network_is_the_same(norm: str, precision: str, tolerance: float):
    torch.manual_seed(0)
    config = Config()
    config.model.norm = norm  # type: ignore[assignment]
    model = PoseModel(config.model, 3).eval().to(memory_format=torch.channels_last)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)  # as of a trained network
    ready = for_prediction(copy.deepcopy(model), CPU, precision)
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode(), autocast(CPU, precision):
        before, after = model(images), ready(images)
    for name in ("heatmaps", "presence", "quality", "vectors"):
        one, other = getattr(before, name), getattr(after, name)
        assert (one - other).abs().max() <= tolerance * one.abs().max(), name


class SinglePrecision(TorchDispatchMode):
    """Refuses what Apple's GPUs lack."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, f"{func} gives double precision"
        return result


def test_frames_are_predicted_without_double_precision_on_the_device():
    config = Config()
    config.model.norm, config.predict.max_animals = "group", 2
    model = PoseModel(config.model, 3).eval()
    torch.nn.init.zeros_(model.presence.logits.bias)  # type: ignore[arg-type]  # animals everywhere
    with SinglePrecision():
        (found,) = infer(model, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 0.7, config.predict, 20.0, "fp32")
    assert len(found.poses) == 2 and found.poses.dtype == float
    with pytest.raises(AssertionError, match="double precision"), SinglePrecision():
        torch.zeros(1).double()

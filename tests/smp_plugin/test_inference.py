"""A model made ready for prediction says what it said before."""

import copy

import pytest
import torch

from smp_plugin.config import Config
from smp_plugin.inference import autocast, for_prediction
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

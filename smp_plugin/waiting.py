"""Where the host may look at values, and what stands in for looking where it may not.

A GPU works through a queue that the host fills. To look at a value, let it decide a shape or copy from ordinary memory is to wait until the
queue has run empty; a training step never does, so that the next step is queued while this one is computed (`smp_plugin.finite` looks
every ten steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def may_look(tensor: Tensor) -> bool:
    """May the host look at values of ``tensor``? On a CPU that costs nothing, and what inference mode makes goes to the host anyway."""
    return tensor.device.type == "cpu" or torch.is_inference_mode_enabled()


def places(counts: Tensor, most: int) -> int:
    """Places per image for its ``counts`` (N,) things: as many as the fullest image needs, at least 1; ``most`` where nobody may look."""
    return max(1, int(counts.max())) if may_look(counts) else most


def numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """(len(values),) of the type and on the device of ``like``, filled there: ``torch.tensor`` would copy from the host, and wait."""
    return torch.stack([like.new_full((), value) for value in values])

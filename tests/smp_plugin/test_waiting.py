"""A training step on a GPU never waits for it: shown with tensors that have a device and no values, and what stands in gives the same."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from smp_plugin import decode, waiting
from smp_plugin.budget import Budget
from smp_plugin.config import Config
from smp_plugin.datasets import Batch
from smp_plugin.training import PoseTraining
from smp_plugin.waiting import may_look, numbers, places

pytestmark = pytest.mark.usefixtures("thin_backbone")

WAITS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "allclose", "unique_dim", "_unique2"),
    *("unique_consecutive", "bincount", "histc", "repeat_interleave", "linalg_svd", "_linalg_svd", "linalg_eigh", "multinomial"),
}  # what a GPU's result decides a shape or a Python value of
COPIES = {"_to_copy", "copy_", "_copy_from"}
NAN = math.nan
KEYPOINTS = 5


class NoWaiting(TorchDispatchMode):
    """Refuses every operation for which the host waits for a device, forwards, backwards and in optimisers, and double precision, which
    Apple's GPUs lack; counts all others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        self.seen.add(name)
        assert name not in WAITS, f"{name} waits"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            assert not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]), f"{name} with a mask waits"
        result = func(*args, **kwargs)
        if name in COPIES:
            ends = {t.device.type for t in (*args, result) if isinstance(t, Tensor)}
            assert len(ends) == 1, f"a copy between {' and '.join(sorted(ends))} waits"
        assert getattr(result, "dtype", None) != torch.float64, f"{name} gives double precision"
        return result


def make_module(config: Config, fraction: float = 1.0, partial: bool = False) -> PoseTraining:
    """The step as it is at a share of the run."""
    torch.manual_seed(0)
    config.model.norm = "group" if config.model.norm == "auto" else config.model.norm
    config.loss.keypoint_anchors |= partial
    budget = Budget(100, 0.0)
    module = PoseTraining(config, range(KEYPOINTS), 28.0, partial, budget, None)
    budget.progress = lambda step: fraction  # type: ignore[method-assign]
    return module


def make_batch(unlabelled: int) -> Batch:
    """Three crops with two, one (half labelled) and no animal; the second also holds one that does not count."""
    generator = torch.Generator().manual_seed(1)
    keypoints = torch.full((3, 2, KEYPOINTS, 2), NAN)
    places = 14 + 36 * torch.rand(3, 2, 1, 2, generator=generator)
    found = places + 9 * torch.randn(3, 2, KEYPOINTS, 2, generator=generator)
    keypoints[0], keypoints[1, 0, :2], keypoints[1, 1] = found[0], found[1, 0, :2], found[1, 1]
    images, others = (torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=generator) for n in (3, unlabelled))
    return Batch(
        images,
        keypoints,
        torch.tensor([[1.0, 1], [1, 0], [0, 0]]),
        torch.tensor([1.0, 0.3, 0.3]),
        torch.tensor([False, True, True]),
        torch.ones(3, KEYPOINTS, dtype=torch.bool),
        others,
        others.flip(0),
    )


@pytest.fixture
def on_device(move_model: Callable[..., None]) -> Callable[..., Batch]:
    """Puts a module on another device, in place, and returns the batch there."""

    def put(module: nn.Module, batch: Batch, move: Callable[[Tensor], Tensor]) -> Batch:
        move_model(module, move)
        return Batch(**{name: move(value) for name, value in vars(batch).items()})

    return put


@pytest.fixture
def gpu(on_device: Callable[..., Batch]) -> Iterator[Callable[[nn.Module, Batch], Batch]]:
    """Tensors on "cuda", without values: all shapes, types and devices are those on a GPU, and no GPU is needed. Nothing may wait."""
    mode = FakeTensorMode()

    def move(tensor: Tensor) -> Tensor:
        with mode:
            return mode.from_tensor(tensor).to("cuda")

    with contextlib.ExitStack() as stack:

        def start(module: nn.Module, batch: Batch) -> Batch:
            moved = on_device(module, batch, move)
            stack.enter_context(mode)
            stack.enter_context(NoWaiting())
            return moved

        yield start


# share of the run, unlabelled crops, partial labels, the terms that are expected beside the supervised ones
PHASES = {
    "supervised": (0.0, 0, False, set()),
    "labelled fusion": (0.2, 0, False, {"fusion_labeled"}),
    "unlabelled": (1.0, 2, False, {"fusion_labeled", "fusion_unlabeled", "agreement"}),
    "partial": (1.0, 2, True, {"fusion_labeled", "fusion_unlabeled", "agreement"}),
}
VARIANTS: list[dict[str, Any]] = [
    {"loss__fusion": "quality", "loss__quality": "centerness"},
    {"loss__fusion": "release", "loss__heatmap_target": "cell", "model__heatmap_stride": 8},
    {"loss__fusion_gradient": "vectors", "loss__fusion_blur": False, "model__kpalign": False, "model__norm": "frozen"},
]
CASES: list[tuple[str, dict[str, Any]]] = [(phase, {}) for phase in PHASES] + [("partial", variant) for variant in VARIANTS]


@contextlib.contextmanager
def mixed_precision() -> Iterator[None]:
    """bf16 where it pays, as on a GPU; ``torch.autocast`` refuses without one."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize(("phase", "settings"), CASES)
def test_the_terms_of_the_loss_are_had_without_waiting(
    make_config: Callable[..., Config], gpu: Callable[..., Batch], phase: str, settings: dict[str, Any]
) -> None:
    fraction, unlabelled, partial, terms = PHASES[phase]
    module = make_module(make_config(**settings), fraction, partial)
    batch = gpu(module, make_batch(unlabelled))
    with mixed_precision():
        total = module.training_step(batch, 0)
    assert total.device.type == "cuda" and total.requires_grad and {t.device.type for t in module.latest.values()} == {"cuda"}
    assert {name.removeprefix("loss_") for name in module.latest} - {"loss", "heatmap", "box", "vector", "quality"} == terms


@pytest.mark.parametrize(("phase", "settings"), CASES)
def test_gradients_are_had_without_waiting(
    make_config: Callable[..., Config],
    on_device: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    settings: dict[str, Any],
) -> None:
    # On "meta", since going backwards on "cuda" needs a driver, with or without values; mixed precision is not known there.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    fraction, unlabelled, partial, _ = PHASES[phase]
    module = make_module(make_config(**settings), fraction, partial)
    batch = on_device(module, make_batch(unlabelled), lambda tensor: tensor.to("meta"))
    with NoWaiting() as watch:
        module.training_step(batch, 0).backward()
    assert "convolution_backward" in watch.seen
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in module.model.parameters())


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_an_optimiser_step_is_taken_without_waiting(make_config: Callable[..., Config], gpu: Callable[..., Batch], optimizer: str) -> None:
    module = make_module(make_config(train__optimizer=optimizer, model__channels=32))
    gpu(module, make_batch(0))
    stepper = module.configure_optimizers()
    for _ in range(2):  # the first makes the state
        for parameter in module.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        module.on_before_optimizer_step(stepper)
        stepper.step()
        module.on_train_batch_end()
    assert module.gradient_norm.device.type == "cuda" and len(stepper.state) == len(list(module.model.parameters()))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: int(x.argmax()),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: x.new_tensor(0.0),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x.double(),
    ],
)
def test_what_waits_is_noticed(gpu: Callable[..., Batch], wait: Callable[[Tensor], object]) -> None:
    module = nn.Module()
    module.register_buffer("x", torch.zeros(3))
    gpu(module, make_batch(0))
    with pytest.raises(AssertionError, match="waits|double"):
        wait(module.x)  # type: ignore[arg-type]


def test_the_host_looks_on_a_cpu_and_where_results_go_to_it_anyway() -> None:
    away, counts = torch.zeros(2, device="meta"), torch.tensor([0, 3])
    assert may_look(counts) and not may_look(away)
    with torch.inference_mode():
        assert may_look(away)
    assert places(counts, 100) == 3 and places(counts - 3, 100) == 1 and places(away, 100) == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_are_those_of_a_tensor_made_of_them(dtype: torch.dtype) -> None:
    made = numbers((123.675, -2, 0), torch.empty(4, 1, dtype=dtype))
    assert made.dtype == dtype and torch.equal(made, torch.tensor((123.675, -2, 0), dtype=dtype))


@pytest.mark.parametrize(("phase", "settings"), CASES)
def test_a_step_is_the_same_where_the_host_may_not_look(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, phase: str, settings: dict[str, Any]
) -> None:
    fraction, unlabelled, partial, _ = PHASES[phase]
    results = []
    for looking in (True, False):
        module = make_module(make_config(loss__candidate_threshold=0.5, predict__nms=1e-9, **settings), fraction, partial)
        for model in (module.model, module.teacher):  # as if much were found
            nn.init.zeros_(model.presence.logits.bias)  # type: ignore[arg-type]
            nn.init.zeros_(model.heatmap.logits.bias)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            if not looking:
                patch.setattr(waiting, "may_look", lambda _: False)
                patch.setattr(decode, "may_look", lambda _: False)
            module.training_step(make_batch(unlabelled), 0).backward()
        gradients = {name: p.grad for name, p in module.model.named_parameters()}
        results.append({**module.latest, "confidence": module.confidence, **gradients})
    assert all(value is not None and value.isfinite().all() for value in results[0].values())
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)

"""Runtimes other than PyTorch: the same poses, or PyTorch goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import FormatError, read_project
from converters.video import open_video
from smp_plugin import runtimes, training
from smp_plugin.checkpoint import load_model
from smp_plugin.config import Config, TrainConfig
from smp_plugin.inference import FramePoses
from smp_plugin.prediction import predict
from smp_plugin.predictor import Predictor, load
from smp_plugin.runtimes import check_runtime, compiling_pays, for_training
from smp_plugin.training import train

pytestmark = pytest.mark.usefixtures("thin_backbone")


@pytest.fixture
def frames(blobs: Any) -> list[tuple[int, np.ndarray]]:
    labels = read_project(blobs.project)
    with open_video(labels.videos[0]) as video:
        return list(video.stream(range(6)))  # a whole batch and a part of one


@pytest.fixture
def found(trained: Path, frames: list[tuple[int, np.ndarray]], listener: Any) -> Callable[..., list[FramePoses]]:
    def make(runtime: str) -> list[FramePoses]:
        predictor = Predictor(load(trained, {"predict.runtime": runtime}), torch.device("cpu"), listener)
        return [poses for _, _, poses in predictor.stream(iter(frames))]

    return make


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured second is."""
    seconds = iter([2.0, 1.0] * 10)
    monkeypatch.setattr(runtimes, "_seconds", lambda *_: next(seconds))


def noting(batches: list[int]) -> Callable[..., Any]:
    """A compiler that leaves all as it is, and notes how many images are computed at once."""

    def compiler(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        def compiled(images: torch.Tensor) -> Any:
            batches.append(len(images))
            return answers(images)

        return compiled

    return compiler


def same(ours: list[FramePoses], theirs: list[FramePoses], most: float) -> bool:
    assert sum(len(poses.poses) for poses in theirs) > 5
    return all(len(a.poses) == len(b.poses) and np.abs(a.poses - b.poses).max(initial=0) <= most for a, b in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("faster")
def test_onnx_finds_what_pytorch_finds(found: Callable[..., list[FramePoses]], listener: Any, monkeypatch: pytest.MonkeyPatch):
    pytorch = found("pytorch")
    monkeypatch.setattr("smp_plugin.model.PoseModel.forward", _with_onnx_only(monkeypatch))
    assert same(found("onnx"), pytorch, 0.1)
    assert any("2.00 times as fast as PyTorch here" in sentence for sentence in listener.sentences) and not listener.alarms


def _with_onnx_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The model's own way: it is fine to compare with, and to fall back to, but every batch has to come from the session."""
    from smp_plugin.model import PoseModel

    forward = PoseModel.forward

    def checked(model: PoseModel, images: torch.Tensor) -> Any:
        outputs = forward(model, images)
        stand_in = model.__dict__["answers"]
        assert all(run is not None for _, run in stand_in._chosen.values())
        return outputs

    return checked


@pytest.mark.usefixtures("faster")
def test_a_compiled_network_that_is_as_good_is_taken(found: Callable[..., list[FramePoses]], listener: Any, monkeypatch: Any):
    batches: list[int] = []
    monkeypatch.setattr(torch, "compile", noting(batches))
    assert same(found("compile"), found("pytorch"), 0)
    assert len(set(batches)) == 1  # a part of a batch is filled up: another size would be compiled anew
    assert any("times as fast" in sentence for sentence in listener.sentences)


def test_in_mixed_precision_every_lane_is(trained: Path, frames: list[tuple[int, np.ndarray]], listener: Any, monkeypatch: Any):
    monkeypatch.setattr(torch, "compile", lambda answers, dynamic: answers)
    settings = {"predict.runtime": "compile", "train.precision": "bf16"}
    predictor = Predictor(load(trained, settings), torch.device("cpu"), listener)
    assert len(list(predictor.stream(iter(frames)))) == len(frames)
    assert any("times as fast as PyTorch here" in text for text in [*listener.sentences, *listener.alarms])


def test_a_small_batch_does_not_decide_for_larger_ones(
    trained: Path, frames: list[tuple[int, np.ndarray]], listener: Any, monkeypatch: Any
):
    batches: list[int] = []
    monkeypatch.setattr(torch, "compile", noting(batches))
    monkeypatch.setattr(runtimes, "_seconds", lambda run, *_: 2.0 if hasattr(run, "__self__") else 1.0)
    predictor = Predictor(load(trained, {"predict.runtime": "compile"}), torch.device("cpu"), listener)
    images = predictor.images([frame for _, frame in frames[:4]])
    for count in (1, 4, 2):
        assert len(predictor(images[:count])) == count
    assert batches == [1, 1, 4, 4, 4]  # each shown first; two are filled up to four


def off_by_a_pixel(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    def compiled(images: torch.Tensor) -> Any:
        heatmaps, presence, quality, vectors = answers(images)
        return heatmaps, presence, quality, vectors + 1 / 8

    return compiled


def blind(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    def compiled(images: torch.Tensor) -> Any:
        heatmaps, *others = answers(images)
        return heatmaps - 3, *others

    return compiled


def broken(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    raise RuntimeError("no compiler\nanywhere\n\nSet this and that for more")


@pytest.mark.parametrize(
    ("compiler", "seconds", "sentence"),
    [
        (off_by_a_pixel, 1.0, "its poses are up to 2 pixels"),
        (blind, 1.0, "from PyTorch's here; PyTorch goes on"),
        (broken, 1.0, "it fails here (RuntimeError: no compiler anywhere); PyTorch goes on"),
        (lambda answers, dynamic: answers, 3.0, "0.67 times as fast as PyTorch here; PyTorch goes on"),
    ],
)
def test_one_that_is_not_is_left(
    compiler: Any, seconds: float, sentence: str, found: Callable[..., list[FramePoses]], listener: Any, monkeypatch: pytest.MonkeyPatch
):
    times = iter([2.0, seconds] * 10)
    monkeypatch.setattr(runtimes, "_seconds", lambda *_: next(times))
    monkeypatch.setattr(torch, "compile", compiler)
    assert same(found("compile"), found("pytorch"), 0)
    assert len(listener.alarms) == 1 and sentence in listener.alarms[0]


def test_onnx_without_its_packages_or_on_a_gpu_is_refused_at_once(
    trained: Path, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(FormatError, match="--runtime onnx: it is for the CPU"):
        check_runtime("onnx", torch.device("cuda"))
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    video = shutil.copy(blobs.video, tmp_path)
    with pytest.raises(FormatError, match="smp-plugin\\[onnx\\]"):
        predict([Path(video)], tmp_path / "out.slp", model=trained, device="cpu", config_overrides={"predict.runtime": "onnx"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [Path(video).name]


def stretched(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    """The same answers, and gradients of the vectors that are twice as long."""

    def compiled(images: torch.Tensor) -> Any:
        *others, vectors = answers(images)
        return *others, 2 * vectors - vectors.detach()

    return compiled


@pytest.fixture
def learnt(make_config: Callable[..., Config], blobs: Any, tmp_path: Path, listener: Any) -> Callable[[str], dict[str, torch.Tensor]]:
    """Weights after two steps, one of them with unlabelled frames."""

    def make(compiling: str) -> dict[str, torch.Tensor]:
        config = make_config(train__unlabeled_fusion_start=0.5, train__compile=compiling)
        run = train([blobs.project], config=config, out=tmp_path / compiling, reporter=listener)
        return load_model(run).model.state_dict()

    return make


def test_a_compiled_step_is_the_same_step(learnt: Callable[[str], dict[str, torch.Tensor]], listener: Any, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def compiler(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        def compiled(images: torch.Tensor) -> Any:
            seen.append((len(images), torch.is_grad_enabled()))
            return answers(images)

        return compiled

    seconds = iter([2.0, 1.0])
    monkeypatch.setattr(runtimes, "_best", lambda *_: next(seconds))
    monkeypatch.setattr(torch, "compile", compiler)
    compiled = learnt("yes")
    assert seen[-3:] == [(2, True), (3, True), (1, False)]  # labelled; with an unlabelled one, which the teacher sees first
    assert any("the network learns 2.00 times as fast compiled here" in sentence for sentence in listener.sentences)
    for name, weights in learnt("no").items():
        assert torch.equal(weights, compiled[name])


def test_nothing_is_compiled_in_the_midst_of_a_run(
    make_config: Callable[..., Config], blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was made for mixed precision before the first step is what the steps use, in all phases."""
    compiler, graphs, before = torch.compile, [], []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def noted(*arguments: Any) -> Any:
        seconds = iter([2.0, 1.0])
        monkeypatch.setattr(runtimes, "_best", lambda call, _: (call(), next(seconds))[1])
        made = for_training(*arguments)
        before.append(len(graphs))
        return made

    monkeypatch.setattr(torch, "compile", lambda answers, dynamic: compiler(answers, backend=backend, dynamic=dynamic))
    monkeypatch.setattr(training, "for_training", noted)
    config = make_config(train__unlabeled_fusion_start=0.5, train__compile="yes", train__precision="bf16")
    train([blobs.project], config=config, out=tmp_path / "run")
    assert before == [len(graphs)] and graphs


def test_a_teacher_that_cannot_be_compiled_is_known_before_the_first_step(
    learnt: Callable[..., Any], listener: Any, monkeypatch: pytest.MonkeyPatch
):
    def compiler(answers: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        def compiled(images: torch.Tensor) -> Any:
            if not torch.is_grad_enabled():
                raise RuntimeError("no kernel")
            return answers(images)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    compiled = learnt("yes")
    assert any("it fails here (RuntimeError: no kernel)" in warning for warning in listener.alarms)
    for name, weights in learnt("no").items():
        assert torch.equal(weights, compiled[name])


@pytest.mark.parametrize(
    ("compiler", "seconds", "sentence"),
    [
        (stretched, 1.0, "its gradients differ by"),
        (broken, 1.0, "it fails here (RuntimeError: no compiler anywhere); PyTorch goes on"),
        (lambda answers, dynamic: answers, 3.0, "0.67 times as fast compiled here; PyTorch goes on"),
    ],
)
def test_a_compiled_step_that_is_worse_is_left(
    compiler: Any, seconds: float, sentence: str, learnt: Callable[..., Any], listener: Any, monkeypatch: pytest.MonkeyPatch
):
    times = iter([2.0, seconds])
    monkeypatch.setattr(runtimes, "_best", lambda *_: next(times))
    monkeypatch.setattr(torch, "compile", compiler)
    compiled = learnt("yes")
    assert any(sentence in said for said in [*listener.alarms, *listener.sentences])
    for name, weights in learnt("no").items():
        assert torch.equal(weights, compiled[name])


@pytest.mark.parametrize(
    ("settings", "device", "pays"),
    [
        ({"steps": 3000}, "cuda", True),
        ({"steps": 2100}, "cuda", False),  # few are left
        ({"steps": 3000}, "cpu", False),
        ({"minutes": 25.0}, "cuda", True),
        ({"minutes": 21.0}, "cuda", False),
        ({"steps": 300}, "cuda", False),
        ({"steps": 3000, "minutes": 5.0}, "cuda", False),
        ({"steps": 3000, "compile": "no"}, "cuda", False),
        ({"steps": 3, "compile": "yes"}, "cpu", True),
    ],
)
def test_compiling_is_tried_where_it_can_pay(settings: dict[str, Any], device: str, pays: bool):
    assert compiling_pays(TrainConfig(**settings), step=200, seconds=120, device=torch.device(device)) == pays

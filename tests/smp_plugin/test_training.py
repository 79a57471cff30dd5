"""Whole runs on blobs that are learnt within seconds: what they leave behind, how they stop, and how they go on."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.models import get_model

from converters import FormatError
from smp_plugin import backbone, budget, run_folder, stopping, training
from smp_plugin.budget import Budget
from smp_plugin.checkpoint import load_model, save_model
from smp_plugin.cli.train import main
from smp_plugin.config import Config, from_dict, read_config, to_dict
from smp_plugin.datasets import TrainingSteps
from smp_plugin.heads import LAST_LAYERS
from smp_plugin.inference import infer
from smp_plugin.run_folder import RunFolder, append_row
from smp_plugin.training import PoseTraining, suit_weights, train

pytestmark = pytest.mark.usefixtures("thin_backbone")

RUN_FILES = {"model.pt", "last.ckpt", "config.yaml", "metrics.csv", "curves.png", "val_predictions.png", "report.html", "log.txt"}
TINY = [
    *("data.crop=64", "data.animal_size=28", "data.max_scale=1", "model.channels=16", "model.tower_depth=1", "model.heatmap_channels=16"),
    *("train.batch=2", "train.unlabeled_batch=1", "train.unlabeled_first_step=0"),
]


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run).model.state_dict()


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, tensors within dictionaries and lists too."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def state(run: Path) -> tuple[Any, Any]:
    """Weights and the optimiser's state."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["optimizer_states"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: signal.Signals) -> None:
    """These signals within this step, counted from the call."""
    real, steps = training.PoseTraining.training_step, []

    def training_step(self: Any, batch: Any, index: int) -> torch.Tensor:
        steps.append(index)
        loss = real(self, batch, index)
        if len(steps) == step:
            for number in numbers:
                signal.raise_signal(number)
        return loss

    monkeypatch.setattr(training.PoseTraining, "training_step", training_step)


# --- what a run leaves behind, and that it learns ---


def test_the_run_folder(trained: Path):
    assert {path.name for path in trained.iterdir()} == RUN_FILES
    report = (trained / "report.html").read_text()
    assert report.count("data:image/png;base64") == 2
    for text in ("input scale: 1", "labels: taken as complete", "validation: 3 of 12", "Labelled frames, animals", "head, middle, tail"):
        assert text in report, text
    for fact in (r"\d+\.\d frames/s of 3 validation frames, one by one", r"\d\.\d\d GB of the process<", r"CPU, \d+ processor core"):
        assert re.search(fact, report), fact
    assert yaml.safe_load((trained / "config.yaml").read_text())["data"]["labels"] == "complete"  # what auto stood for
    assert "validation: 3 of 12" in (trained / "log.txt").read_text()


def test_three_phases(trained: Path):
    rows = rows_of(trained)
    assert [int(row["step"]) for row in rows] == [14, 28, 42]
    assert [row["phase"] for row in rows] == ["supervised", "labelled fusion", "unlabelled"]
    assert not rows[0]["loss_fusion_labeled"] and not rows[0]["loss_fusion_unlabeled"]
    assert float(rows[1]["loss_fusion_labeled"]) > 0 and not rows[1]["loss_fusion_unlabeled"]
    assert float(rows[2]["loss_fusion_unlabeled"]) > 0 and float(rows[2]["loss_agreement"]) >= 0


def test_it_learns(trained: Path, blobs: Any):
    rows = rows_of(trained)
    for term in ("loss_heatmap", "loss_box", "loss_vector"):
        assert float(rows[-1][term]) < 0.5 * float(rows[0][term]), term
    assert max(float(row["val_ap_s2_0.1"]) for row in rows) > 0.9
    model = load_model(trained)
    model.config.predict.min_score = 0.02
    for image, truth in zip(frames_of(blobs.video), blobs.truth, strict=True):
        (found,) = infer(model.model, image, model.config.data.input_scale, model.config.predict, model.typical_length, "fp32")
        assert len(found.poses) >= len(truth)
        best = found.poses[: len(truth)]
        errors = np.linalg.norm(best[:, None] - truth[None], axis=-1).mean(axis=-1)
        assert errors.min(axis=0).max() < 2.5 and len(set(errors.argmin(axis=0))) == len(truth)  # each animal has a pose of its own


def frames_of(video: Path) -> list[torch.Tensor]:
    from converters.video import open_video, video_source

    with open_video(video_source(video)) as opened:
        return [torch.from_numpy(frame).permute(2, 0, 1)[None] for _, frame in opened.stream()]


AUGMENT = {f"augment__{name}": value for name, value in vars(Config().augment).items()}
PHASES = {"train__labeled_fusion_start": 0.3, "train__unlabeled_fusion_start": 0.5}


def test_the_same_seed_is_the_same_model(blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    """To the last bit, the optimiser's state included, with everything that is random switched on; also where a process loads."""
    config = make_config(train__steps=4, **AUGMENT, **PHASES)
    before = to_dict(config)
    first, again = (state(train([blobs.project], config=config, out=tmp_path / name)) for name in ("first", "again"))
    config.train.workers = 1
    helped = state(train([blobs.project], config=config, out=tmp_path / "helped"))
    config.train.workers, config.train.seed = 0, 1
    other = state(train([blobs.project], config=config, out=tmp_path / "other"))
    assert same(first, again) and same(first, helped) and not same(first[0], other[0])
    config.train.seed = 0
    assert to_dict(config) == before  # the caller's settings stay


@pytest.mark.parametrize("budget", [{"train__steps": 6}, {"train__minutes": 5.0}])
@pytest.mark.parametrize(("first", "phases"), [(0, ["", "", "u", "u", "u", "u"]), (4, ["", "", "", "", "u", "u"]), (300, [""] * 6)])
def test_a_short_run_does_not_learn_from_unlabelled_frames_before_their_first_step(
    budget: dict[str, Any], first: int, phases: list[str], blobs: Any, make_config: Callable[..., Config], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, listener: Any,
):  # fmt: skip
    monkeypatch.setattr("smp_plugin.budget.Budget.progress", lambda self, step: min(1.0, step / 6))  # a clock that is never late
    config = make_config(**budget, train__val_every=1, train__unlabeled_fusion_start=0.33, train__unlabeled_first_step=first)
    rows = rows_of(train([blobs.project], config=config, out=tmp_path / "run", reporter=listener))
    late = [""] if "train__minutes" in budget else []  # where a clock decides, the batch at hand has been made
    assert ["u" if row["loss_agreement"] else "" for row in rows] == [*late, *phases][:6]
    told = [text for text in listener.sentences if text.startswith("unlabelled frames: none was learnt from in 6 steps")]
    assert len(told) == (first == 300)


# --- pretrained weights ---


def test_pretrained_weights_are_frozen_in_norm_and_learn_slowly(
    blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any
):
    torch.save(backbone.get_model("resnet18", weights=None).state_dict(), tmp_path / "weights.pt")
    config = make_config(train__steps=1, model__weights=str(tmp_path / "weights.pt"))
    run = train([blobs.project], config=config, out=tmp_path / "run", reporter=listener)
    assert any("weights.pt; the backbone learns at 0.1 of the learning rate" in text for text in listener.sentences)
    made = read_config(run / "config.yaml")
    assert (made.model.norm, made.train.backbone_lr) == ("frozen", 0.1)
    assert {group["factor"] for group in state(run)[1][0]["param_groups"]} == {0.1, 1.0}
    config.train.steps = 2
    train(config=config, out=run, resume=True)  # settings in which it is left to the run
    assert [row["step"] for row in rows_of(run)] == ["1", "2"] and read_config(run / "config.yaml").train.backbone_lr == 0.1


@pytest.mark.parametrize(
    ("asked", "pretrained", "norm", "factor", "alarm"),
    [
        (("auto", 0.0), True, "frozen", 0.1, ""),
        (("auto", 0.0), False, "group", 1.0, ""),
        (("auto", 0.3), True, "frozen", 0.3, ""),
        (("frozen", 0.0), False, "group", 1.0, "model.norm is frozen, but there are no pretrained weights"),
        (("group", 0.0), True, "group", 0.1, "model.norm is group: the batch statistics among the pretrained weights are not used"),
    ],
)
def test_norm_and_learning_rate_suit_the_weights(
    asked: tuple[Any, float], pretrained: bool, norm: str, factor: float, alarm: str, listener: Any
):
    config = Config()
    config.model.norm, config.train.backbone_lr = asked
    suit_weights(config, pretrained, listener)
    assert (config.model.norm, config.train.backbone_lr) == (norm, factor)
    assert [text.startswith(alarm) for text in listener.alarms] == [True] * bool(alarm)


@pytest.mark.parametrize("pretrained", [True, False])
def test_what_a_run_chose_for_its_weights_is_chosen_anew_for_others(pretrained: bool, listener: Any):
    """A run without a network, repeated where weights can be had, and the other way round."""
    config = Config()
    suit_weights(config, pretrained, listener)
    again = from_dict(to_dict(config))
    suit_weights(again, not pretrained, listener)
    assert (again.model.norm, again.train.backbone_lr) == (("group", 1.0) if pretrained else ("frozen", 0.1)) and not listener.alarms


# --- data of all kinds ---


@pytest.mark.parametrize(
    "project",
    [
        pytest.param({"keypoints": ["head"]}, id="one keypoint"),
        pytest.param({"counts": [1, 0, 2, 0] * 3, "labelled": range(6), "negative": [1, 3]}, id="frames without animals"),
        pytest.param({"labelled": [3]}, id="one labelled frame"),
        pytest.param({"sizes": [(48, 40)], "counts": [1] * 6, "labelled": range(3)}, id="smaller than the crop"),
        pytest.param({"sizes": [(96, 96), (130, 70), (51, 49)], "images": True, "counts": [1] * 12}, id="sizes that differ"),
        pytest.param({"images": True, "counts": [1] * 4, "labelled": range(4)}, id="no unlabelled frame"),
        pytest.param({"embed": True, "labelled": [2, 7]}, id="a package"),
        pytest.param({"hide": lambda i, p: np.where(np.arange(3)[:, None] == i % 3, p, np.nan)}, id="one point an animal"),
    ],
)
def test_trains_on(project: dict[str, Any], make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    """Through all three phases, with everything that augments switched on."""
    config = make_config(train__steps=3, train__val_every=3, **PHASES, **AUGMENT)
    run = train([make_blobs(**project).project], config=config, out=tmp_path / "run")
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert all(np.isfinite(float(row["loss"])) for row in rows_of(run))
    assert all(torch.isfinite(value).all() for value in weights_of(run).values())


def test_of_several_projects_each_has_its_own_keypoints(
    make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, real = [], training.supervised

    def supervised(outputs: Any, instances: Any, *rest: Any) -> Any:
        seen.append(instances.own.tolist())
        return real(outputs, instances, *rest)

    monkeypatch.setattr(training, "supervised", supervised)
    projects = [make_blobs("small", keypoints=["head"]).project, make_blobs("large", keypoints=["tail", "fin"], seed=1).project]
    train(projects, config=make_config(train__steps=1), out=tmp_path / "run")
    assert seen == [[[True, False, False], [False, True, True]]]


@pytest.mark.parametrize(("counts", "kept"), [([0, 0], 2), ([2, 2, 2, 2, 1], 2), ([2] * 5, 1)])
def test_few_validation_animals_choose_nothing(
    counts: list[int], kept: int, make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first model is made the better one."""
    labelled = range(len(counts))
    val = make_blobs("val", counts=counts, labelled=labelled, negative=[i for i in labelled if not counts[i]])
    monkeypatch.setattr(RunFolder, "validate", lambda _, module: (1.0 / module.step, {}))
    run = train([make_blobs().project], config=make_config(train__val_every=1), val=val.project, out=tmp_path / "run")
    assert load_model(run).facts["step"] == kept


def test_unlabelled_video_that_ends_early(make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    extra = make_blobs("extra", counts=[1] * 60)
    content = extra.video.rename(tmp_path / "whole.mkv").read_bytes()  # not read as what its name says, but by its content
    (tmp_path / "cut.mp4").write_bytes(content)
    config = make_config(train__unlabeled_fusion_start=0.0)
    from converters.video import video_source
    from smp_plugin.frame_reader import FrameReader

    reader = FrameReader([video_source(tmp_path / "cut.mp4")], 1.0)
    reader.video(0).n_frames = 90  # what the header promises
    assert len(reader.get_many(0, [3, 58, 70, 80])) == 2
    train([make_blobs().project], config=config, out=tmp_path / "run", unlabeled=[tmp_path / "cut.mp4"])


def test_what_a_loader_process_can_not_read(make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    broken = make_blobs("broken", images=True)
    (broken.video / "img005.png").write_bytes(b"no image")
    config = make_config(train__workers=1, train__steps=12, data__val_fraction=0.0)
    with pytest.raises(FormatError) as caught:
        train([broken.project], config=config, out=tmp_path / "broken_run")
    assert "img005.png" in str(caught.value) and "Traceback" not in str(caught.value)


def test_loader_processes_stay(blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the last round of steps is a shorter one; a new process would decode every frame anew."""
    get, log = TrainingSteps.__getitem__, tmp_path / "log.txt"

    def logged(self: TrainingSteps, step: int) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {step}\n")
        return get(self, step)

    monkeypatch.setattr(TrainingSteps, "__getitem__", logged)
    config = make_config(train__workers=1, train__steps=5, train__val_every=2)
    run = train([blobs.project], config=config, out=tmp_path / "run")
    pids, steps = zip(*map(str.split, log.read_text().splitlines()), strict=True)
    assert len(set(pids)) == 1 and list(steps) == list("01234") and str(os.getpid()) not in pids
    assert [row["step"] for row in rows_of(run)] == ["2", "4", "5"]


# --- stopping and going on ---


def test_resuming_changes_nothing(blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings: dict[str, Any] = {
        "train__steps": 9,
        "train__val_every": 3,
        "train__labeled_fusion_start": 0.1,
        "train__unlabeled_fusion_start": 0.2,
    }
    config = make_config(data__val_fraction=0.2, augment__paste=0.5, **settings)
    whole = train([blobs.project], config=config, out=tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    ctrl_c = signal.SIGINT
    stops: list[tuple[int, list[signal.Signals], int, list[int]]] = [
        (5, [ctrl_c], 5, [3]),  # the step is finished, and nothing is lost
        (1, [ctrl_c], 6, [3, 6]),  # so is a round
        (2, [ctrl_c, ctrl_c], 6, [3, 6]),  # pressed twice: at once
        (1, [ctrl_c], 7, [3, 6]),
    ]
    for resume, (within, signals, reached, rows) in enumerate(stops):
        with monkeypatch.context() as patch:
            interrupt_at(patch, within, *signals)
            patch.setattr(stopping, "AGAIN", 0.0)
            with pytest.raises(KeyboardInterrupt):
                train(None if resume else [blobs.project], config=None if resume else config, out=tmp_path / "parts", resume=resume > 0)
        assert signal.getsignal(signal.SIGINT) is before
        assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["step"] == reached
        assert [int(row["step"]) for row in rows_of(tmp_path / "parts")] == rows
    assert (tmp_path / "parts" / "report.html").exists()
    parts = train(out=tmp_path / "parts", resume=True)  # the run knows what it learns from
    assert same(state(whole), state(parts)) and same(weights_of(whole), weights_of(parts))
    times = {"seconds": ""}
    assert [row | times for row in rows_of(whole)] == [row | times for row in rows_of(parts)]
    assert load_model(whole).facts["step"] == load_model(parts).facts["step"]
    again = train([blobs.project], out=tmp_path / "parts", resume=True)  # nothing is left to do
    assert same(state(whole), state(again)) and len(rows_of(again)) == 3


def test_stopped_twice_while_it_validates_it_goes_on_from_before(
    blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Or the last model would never be validated."""
    validate, calls = RunFolder.validate, []

    def interrupted(self: RunFolder, module: Any) -> Any:
        calls.append(module.step)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return validate(self, module)

    monkeypatch.setattr(stopping, "AGAIN", 0.0)
    monkeypatch.setattr(RunFolder, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train([blobs.project], config=make_config(train__steps=4, data__val_fraction=0.2), out=tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 2
    train(out=tmp_path / "run", resume=True)
    assert calls == [2, 4, 4] and [row["step"] for row in rows_of(tmp_path / "run")] == ["2", "4"]


def test_stopped_before_the_first_step_a_resumed_run_keeps_its_checkpoint(
    blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = train([blobs.project], config=make_config(), out=tmp_path / "run")
    before = (run / "last.ckpt").read_bytes()

    def interrupted(_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(stopping, "AGAIN", 0.0)
    monkeypatch.setattr(training.PoseTraining, "configure_optimizers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config=make_config(train__steps=4), out=run, resume=True)
    assert (run / "last.ckpt").read_bytes() == before


def test_models_are_chosen_once_there_are_animals_to_choose_by(
    make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
):
    """Before, the number of the step stands in for the figure, which is never as large."""
    project, few = make_blobs().project, make_blobs("val", counts=[2] * 5, labelled=range(4)).project
    monkeypatch.setattr(RunFolder, "validate", lambda _, module: (0.1 * module.step, {}))
    run = train([project], config=make_config(), val=few, out=tmp_path / "run", reporter=listener)
    assert load_model(run).facts["step"] == 2
    assert "8 animals in 4 validation frames are few to choose a model by, so the last one is kept" in " ".join(listener.sentences)
    make_blobs("val", counts=[2] * 5, labelled=range(5))  # more is labelled there now
    train(config=make_config(train__steps=4), out=run, resume=True)
    assert load_model(run).facts["step"] == 4


def test_resuming_with_fewer_steps_than_are_done(blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any):
    run = train([blobs.project], config=make_config(train__steps=4), out=tmp_path / "run")
    before = state(run), rows_of(run)
    (run / "report.html").unlink()
    train(config=make_config(train__steps=2), out=run, resume=True, reporter=listener)
    assert same(before, (state(run), rows_of(run))) and (run / "report.html").exists()
    assert "nothing is left to train: 4 of 2 steps are done" in listener.sentences


def test_figures_go_by_no_score_cut(trained: Path, tmp_path: Path):
    """Which is chosen at the end of a run, and is there when it is resumed."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    kept = load_model(run)
    kept.config.predict.min_score = 1.0
    save_model(run / "model.pt", kept)
    train(out=run, resume=True)
    lines = (run / "log.txt").read_text().splitlines()
    before, after = (line.partition("AP on ")[2] for line in lines if "AP on " in line)
    assert before == after and float(re.findall(r": (\d\.\d+) ", after)[0]) > 0.2


def test_what_stands_beside_a_project_may_move(
    blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text('{"originals": {}, "unposed": {}}')
    run = train([blobs.project], config=make_config(data__supplement="a.json"), out=tmp_path / "run")
    assert read_config(run / "config.yaml").data.supplement == str(tmp_path / "a.json")
    moved = Path("a.json").rename(tmp_path / "b.json")
    train(config=make_config(train__steps=4, data__supplement=str(moved)), out=run, resume=True)
    assert load_model(run).facts["step"] == 4


def test_a_resumed_run_takes_the_rates_that_are_asked_for(blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    """Also where they were equal before, and its optimiser's state holds those."""

    def groups() -> set[tuple[float, float]]:
        (saved,) = torch.load(run / "last.ckpt", weights_only=True)["optimizer_states"]
        return {(group["factor"], group["weight_decay"]) for group in saved["param_groups"]}

    run = train([blobs.project], config=make_config(train__weight_decay=0.0), out=tmp_path / "run")
    assert groups() == {(1.0, 0.0)}
    config = read_config(run / "config.yaml")
    config.train.steps, config.train.weight_decay, config.train.backbone_lr = 4, 0.5, 0.25
    train(config=config, out=run, resume=True)
    assert groups() == {(factor, decay) for factor in (1.0, 0.25) for decay in (0.0, 0.5)}


@pytest.mark.parametrize(("clip", "kept"), [(0.0, 1.0), (0.5, 0.5), (20.0, 1.0)])
def test_gradients_are_clipped_unless_that_is_switched_off(make_config: Callable[..., Config], clip: float, kept: float):
    module = training.PoseTraining(make_config(train__clip=clip), range(3), 28.0, False, Budget(10, 0.0), None)
    first = next(module.model.parameters())
    first.grad = torch.full_like(first, first.numel() ** -0.5)
    module.on_before_optimizer_step(module.configure_optimizers())
    assert (module.gradient_norm.item(), first.grad.norm().item()) == pytest.approx((1, kept), rel=1e-3)


def of_a_run(make_config: Callable[..., Config], steps: int, done: int, **settings: Any) -> PoseTraining:
    """A run of so many steps after the first ``done``."""
    module = PoseTraining(make_config(model__norm="group", **settings), [0, 1], 28.0, False, Budget(steps, 0.0), None)
    module.first_step = done
    return module


def test_the_learning_rate_rises_and_falls(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch):
    group = {"factor": 0.5, "lr": 0.0}
    monkeypatch.setattr(PoseTraining, "optimizers", lambda self: SimpleNamespace(param_groups=[group]))

    def rate(done: int) -> float:
        options = {"train__lr": 0.01, "train__warmup": 0.1, "train__final_lr": 0.2, "train__steps": 1000}
        of_a_run(make_config, 1000, done, **options).on_train_batch_start()
        return group["lr"] / (0.5 * 0.01)

    assert rate(0) == pytest.approx(0.01) and rate(49) == pytest.approx(0.5, abs=0.01)  # warms up
    assert rate(500) == pytest.approx(0.6) and rate(999) == pytest.approx(0.2, abs=1e-3)  # half of the cosine, and its end


def test_the_teacher_is_a_moving_average(make_config: Callable[..., Config]):
    for done, decay in ((0, 0.1), (90, 0.91), (10**6, 0.998)):  # soon forgets what it began with
        module = of_a_run(make_config, 10**7, done, train__ema=0.998)
        with torch.no_grad():
            for weights in module.model.parameters():
                weights.add_(1.0)
        before = [weights.clone() for weights in module.teacher.parameters()]
        module.on_train_batch_end()
        for old, new in zip(before, module.teacher.parameters(), strict=True):
            torch.testing.assert_close(new - old, torch.full_like(old, 1 - decay), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [600, 3000])
def test_unlabelled_frames_begin_with_little_weight(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, steps: int):
    """Also where their first step comes later than their share of a short run."""
    monkeypatch.setattr(PoseTraining, "see", lambda self, *_: None)
    monkeypatch.setattr(PoseTraining, "fusion", lambda self, *_: torch.ones(()))
    begin, done = max(300, steps // 3), [0.0, 0.01, 0.05, 0.2]
    module = of_a_run(make_config, steps, begin, loss__beta=1.0, loss__agreement=0.0, train__ramp=0.1, train__unlabeled_fusion_start=1 / 3)
    weights = []
    for share in done:
        module.first_step = begin + round(share * steps)
        weights.append(float(module.unlabelled_terms(SimpleNamespace(weak=None), None)["fusion_unlabeled"]))  # type: ignore[arg-type]
    assert weights == pytest.approx([0.1, 0.2, 0.6, 1.0], abs=0.02)
    module.budget.steps *= 3  # gone on with for longer: what had begun goes on
    assert float(module.unlabelled_terms(SimpleNamespace(weak=None), None)["fusion_unlabeled"]) >= 0.1  # type: ignore[arg-type]


def test_frames_held_out_stay_so_when_labels_are_added(make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any):
    project = make_blobs("before").project
    run = train([project], config=make_config(data__val_fraction=0.25), out=tmp_path / "run")
    held = torch.load(run / "last.ckpt", weights_only=True)["held_out"]
    (tmp_path / "before.mp4").rename(tmp_path / "before.bak")
    more = make_blobs("before", labelled=range(16)).project
    config = read_config(run / "config.yaml")
    config.train.steps, config.train.seed = 3, 5
    train([more], config=config, out=run, resume=True, reporter=listener)
    assert torch.load(run / "last.ckpt", weights_only=True)["held_out"] == held and len(held) == 3
    assert "validation: 3 of 16 labelled frames, those that were held out before" in listener.sentences


def test_a_resumed_run_is_not_validated_on_other_frames(make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    """Its best model is one by those of before, and what was held out would be trained on."""
    project, other = make_blobs().project, make_blobs("other").project
    run = train([project], config=make_config(data__val_fraction=0.25), out=tmp_path / "run")
    for sources in ({"val": other}, {"projects": [other]}):
        with pytest.raises(FormatError, match=r"other\.slp: the run to --resume validated on other frames; name the project"):
            train(out=run, resume=True, **sources)
    train([project, other], out=run, resume=True)


def test_terminated_before_the_first_checkpoint(blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    interrupt_at(monkeypatch, 3, signal.SIGTERM)
    run = tmp_path / "run"
    sets = [argument for text in [*TINY, "train.val_every=50"] for argument in ("--set", text)]
    arguments = ["--slp", str(blobs.project), "-o", str(run), "--steps", "50", "--weights", "none", "--device", "cpu", "--quiet", *sets]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main([*arguments, "--val", str(blobs.project)]) == 143
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert capsys.readouterr().err.strip().splitlines()[-1] == "smp-train: terminated; everything finished so far is kept."
    assert load_model(run).facts["step"] == torch.load(run / "last.ckpt", weights_only=True)["step"] == 3
    (run / "last.ckpt").unlink()  # as if killed
    append_row(run / "metrics.csv", {"step": 1})  # as if killed between this and its checkpoint
    assert main(["-o", str(run), "--steps", "2", "--quiet", "--resume"]) == 0  # the run knows what it learns from, and with what
    log = (run / "log.txt").read_text()
    assert "stopped before its first checkpoint: from the beginning" in log and log.count("validation: 12 frames of") == 2
    assert [row["step"] for row in rows_of(run)] == ["2"] and load_model(run).facts["step"] == 2
    assert {path.name for path in run.iterdir()} == RUN_FILES


def test_terminated_again_and_again(blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within a round, and in its last step, where Lightning would leave as if all were well."""
    run = tmp_path / "run"
    sets = [argument for text in [*TINY, "train.val_every=6"] for argument in ("--set", text)]
    start = ["--slp", str(blobs.project), "--weights", "none", "--device", "cpu", *sets]
    for first, within, reached in ((start, 4, 4), (["--resume"], 2, 6), (["--resume"], 1, 7)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, within, signal.SIGTERM)
            assert main([*first, "-o", str(run), "--steps", "12", "--quiet"]) == 143
        assert torch.load(run / "last.ckpt", weights_only=True)["step"] == reached


def test_minutes_are_a_budget(blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def monotonic() -> float:
        now[0] += 0.01
        return now[0]

    class Clock:
        def __getattr__(self, name: str) -> Any:
            return monotonic if name == "monotonic" else getattr(__import__("time"), name)

    for module in (budget, run_folder):  # what validation takes is taken off by the same clock
        monkeypatch.setattr(module, "time", Clock())
    config = make_config(train__minutes=0.01, train__steps=2, train__val_every=15, train__unlabeled_fusion_start=0.5)
    run = train([blobs.project], config=config, out=tmp_path / "run")
    rows = rows_of(run)
    assert 2 < int(rows[-1]["step"]) < 60 and float(rows[-1]["seconds"]) >= 0.6
    assert rows[-1]["phase"] == "unlabelled" and float(rows[-1]["loss_fusion_unlabeled"]) > 0
    train([blobs.project], out=run, resume=True)  # the time is spent
    assert rows_of(run) == rows


def test_a_run_is_not_written_over(blobs: Any, make_config: Callable[..., Config], tmp_path: Path, trained: Path):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    with pytest.raises(FormatError, match="already holds a run; choose another, or add --resume"):
        train([blobs.project], config=make_config(), out=trained)
    assert before == {path: path.stat().st_mtime_ns for path in trained.iterdir()}


def test_resuming_what_can_not_be(blobs: Any, make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path):
    with pytest.raises(FormatError, match=r"nothing holds no run to go on with"):
        train([blobs.project], out=tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()
    run = train([blobs.project], config=make_config(train__steps=1), out=tmp_path / "run")
    other = make_blobs(keypoints=("head", "middle"))
    with pytest.raises(FormatError, match="trained on the keypoints head, middle, tail"):
        train([other.project], out=run, resume=True)
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:5000])
    with pytest.raises(FormatError, match=r"last\.ckpt is damaged"):
        train([blobs.project], out=run, resume=True)


def test_rows_of_a_longer_run_are_dropped(tmp_path: Path):
    for step in (2, 4, 6, 4):
        append_row(tmp_path / "metrics.csv", {"step": step, "loss": step})
    assert [row["step"] for row in rows_of(tmp_path)] == ["2", "4"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_model_can_be_read_by_whom_the_umask_lets(trained: Path):
    umask = os.umask(0)
    os.umask(umask)
    assert (trained / "model.pt").stat().st_mode & 0o777 == 0o666 & ~umask


# --- several processes ---


def test_last_layers_learn_by_adamw_however_many_keypoints_there_are(make_config: Callable[..., Config]):
    config = make_config(model__channels=32, model__heatmap_channels=32, train__optimizer="muon")
    module = training.PoseTraining(config, range(70), 28.0, False, Budget(10, 1.0), None)
    by_muon = {id(p) for group in module.configure_optimizers().param_groups if group["kernels"] for p in group["params"]}
    names = {name for name, p in module.model.named_parameters() if id(p) in by_muon}
    assert {n for n in names if not n.startswith("backbone.")} and {n for n in names if n.startswith("backbone.")}
    assert not {n for n in names if n.split(".")[-2] in LAST_LAYERS}
    assert {n.split(".")[-2] for n, p in module.model.named_parameters() if len(p) in (70, 140)} >= {"logits", "locator", "predictor"}


def test_processes_go_by_the_first_ones_clock():
    """And, between two looks at it, by its pace, to which the time that it validates does not belong."""

    class Clock(Budget):
        elapsed = 0.0

    first, other = Clock(10, 1.0), Clock(10, 1.0)

    def agree(step: int, paused: bool) -> None:
        first.agree(step, lambda mine: mine, paused)
        sent = first.agreed
        assert sent is not None
        other.agree(step, lambda _: sent, paused)

    other.elapsed = 25.0
    agree(0, paused=True)
    for step in range(1, 31):
        first.elapsed, other.elapsed = 0.5 * step, 25 + 0.7 * step
        if step % 10 == 0:
            agree(step, paused=False)
        assert first.progress(step) == other.progress(step)
    assert first.progress(30) == pytest.approx(15 / 60) and first.progress(34) == other.progress(34) == pytest.approx(17 / 60)
    first.elapsed += 20
    agree(30, paused=True)
    assert first.progress(34) == other.progress(34) == pytest.approx(37 / 60)


def in_processes(*command: str, folder: Path, environment: dict[str, str], nodes: int = 1) -> str:
    """What a program said that starts processes of its own, or that is started once on each of so many machines: this one."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    if nodes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment | ({"NODE_RANK": str(node)} if nodes > 1 else {}),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for node in range(nodes)
    ]
    said = [process.communicate()[1] for process in started]
    assert not any(process.returncode for process in started), said
    return "".join(said)


NOTING = """
import os, sys
from smp_plugin import training
from smp_plugin.budget import Budget
from smp_plugin.cli.train import main

rank, steps = int(os.environ.get("LOCAL_RANK", 0)), 0
after = training.PoseTraining.on_train_batch_end

def noted(self, *arguments):
    global steps
    steps += 1
    after(self, *arguments)
    rate, weights = self.trainer.optimizers[0].param_groups[0]["lr"], sum(float(p.double().sum()) for p in self.model.parameters())
    with open(f"steps{rank}.txt", "a") as file:
        print(self.step, rate, weights, self.phase, file=file)

# However busy the machine: .3 seconds for a step by the first one's clock; the second one's is a second ahead, and faster.
Budget.elapsed = property(lambda self: rank + steps * (0.3 + 0.1 * rank))
training.PoseTraining.on_train_batch_end = noted
sys.exit(main())
"""


def test_two_processes_take_the_same_steps_whatever_their_clocks_say(blobs: Any, tmp_path: Path, environment: dict[str, str]):
    sets = [argument for text in [*TINY, "train.val_every=7"] for argument in ("--set", text)]
    (tmp_path / "noting.py").write_text(NOTING)
    arguments = ["--slp", str(blobs.project), "--minutes", "0.06", "--weights", "none", "--device", "cpu", "--devices", "2", *sets]
    in_processes("noting.py", *arguments, folder=tmp_path, environment=environment)
    first, second = ((tmp_path / f"steps{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second and len(first) == 12


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes(nodes: int, blobs: Any, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """Two processes, of one machine or of two, step along the mean of their gradients.

    Their losses are not those of one process with the batch of both, though the crops are the same: each term is a mean over the animals or
    points of a batch (losses.py), and a mean over all is not the mean over two shards with different numbers of them. So one process is
    made to take the mean of two shards' losses, and the first one's losses must be the same, also in steps after the first update and with
    unlabelled frames.
    """
    sets = [argument for text in [*TINY, "train.val_every=2", "train.unlabeled_fusion_start=0.5"] for argument in ("--set", text)]
    arguments = ["--slp", str(blobs.project), "--steps", "4", "--weights", "none", "--device", "cpu", *sets]
    arguments += ["--devices", str(2 // nodes), "--num-nodes", str(nodes)]
    said = in_processes("-m", "smp_plugin.cli.train", *arguments, folder=tmp_path, environment=environment, nodes=nodes)
    (run,) = (tmp_path / "runs").iterdir()  # the second process made no folder of its own
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert [row["step"] for row in rows_of(run)] == ["2", "4"]
    assert (run / "log.txt").read_text().count("report: ") == said.count("report: ") == 1

    class Shards(TrainingSteps):
        def __init__(self, *arguments: Any) -> None:
            first, second = ([*arguments[:6], rank, 2, *arguments[8:]] for rank in (0, 1))
            super().__init__(*first)
            self.second = TrainingSteps(*second)
            self.second.first_unlabeled_step = self.first_unlabeled_step

        def __getitem__(self, step: int) -> Any:
            return [super().__getitem__(step), self.second[step]]

    def step_on_both(module: training.PoseTraining, shards: Any, _: int) -> torch.Tensor:
        before = module.confidence.clone()
        first = step_on_one(module, shards[0], 0)
        terms = {name: list(values) for name, values in module.terms.items()}
        after = module.confidence.clone()
        module.confidence.copy_(before)  # each process goes on from the first one's
        mean = (first + step_on_one(module, shards[1], 0)) / 2
        module.confidence.copy_(after)
        module.terms.clear()
        module.terms.update(terms)
        return mean

    step_on_one = training.PoseTraining.training_step
    monkeypatch.setattr("smp_plugin.backbone.get_model", get_model)  # the whole ResNet-18, as in those processes
    monkeypatch.setattr(training, "TrainingSteps", Shards)
    monkeypatch.setattr(training.PoseTraining, "training_step", step_on_both)
    config = read_config(run / "config.yaml")
    config.train.devices = config.train.num_nodes = 1
    alone = rows_of(train([blobs.project], config=config, out=tmp_path / "alone"))
    for together, by_itself in zip(rows_of(run), alone, strict=True):
        losses = {name for name, value in together.items() if name.startswith("loss") and value}
        assert losses >= {"loss", "loss_heatmap"}
        assert {n: float(together[n]) for n in losses} == pytest.approx({n: float(by_itself[n]) for n in losses}, rel=1e-3)
    assert float(alone[1]["loss_agreement"]) > 0 and float(alone[1]["loss_fusion_unlabeled"]) > 0

"""Training by DeepLabCut itself, for a budget: the part of `smp_plugin.baselines.deeplabcut` that knows its training code.

Traps of DeepLabCut 3.0.2 that this goes around:

* there is no switch for weights: where the pretrained ones cannot be had, training ends before it begins, unless it is given a snapshot;
* training counts epochs, and the learning rate follows them: here both follow the share of the budget that is used up;
* snapshots are chosen by accuracy on the frames left out: nothing is measured here, and the end of training is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.labels import FormatError
from smp_plugin.baselines import Job, peer_settings

_NEVER = 10**9  # epochs
_DETECTOR_SHARE = 0.5  # of a top-down method's minutes
_SHUFFLE = 1


@dataclass
class Budget:
    """Ends the training of one network, and makes its learning rate reach its end with it.

    DeepLabCut's schedules have milestones at epochs of a training of ``epochs``. They are passed at the same shares of this one.

    Attributes:
        seconds: of training; 0: ``steps`` decide.
        steps: of the optimiser; 0 and no seconds: DeepLabCut's own number of epochs.
        epochs: DeepLabCut's own number.
        points: how many snapshots are wanted over the training, the last one included.
        folder: for the earlier ones.
        taken: steps so far.
        spent: seconds so far, without what snapshots cost.
        snapshot: of the end.
        earlier: snapshots from before it, with the seconds and steps they were taken at.
    """

    seconds: float
    steps: int
    epochs: int
    points: int
    folder: Path
    taken: int = 0
    spent: float = 0.0
    snapshot: Path | None = None
    earlier: list[tuple[Path, float, int]] = field(default_factory=list)

    @property
    def limited(self) -> bool:
        """Whether it is not DeepLabCut that decides on the end."""
        return bool(self.seconds or self.steps)

    @property
    def share(self) -> float:
        """How much of a limited training is over, 0 to 1 or a little more."""
        return self.spent / self.seconds if self.seconds else self.taken / self.steps

    def attach(self, runner: Any) -> None:
        """Make one of DeepLabCut's training runners obey."""
        own_step, own_fit, scheduler = runner.step, runner.fit, runner.scheduler
        passed, since = 0, 0.0
        if self.limited:
            runner.scheduler = None  # its fit would step it with the epochs

        def step(batch: dict[str, Any], mode: str = "train") -> Any:
            nonlocal passed, since
            losses = own_step(batch, mode)
            self.taken += 1
            self.spent += time.perf_counter() - since
            while self.limited and scheduler is not None and passed < int(self.share * self.epochs):
                scheduler.step()
                passed += 1
            if self.limited and self.share >= 1:
                raise _Over
            self._keep(runner)
            since = time.perf_counter()
            return losses

        def fit(train_loader: Any, valid_loader: Any, epochs: int, display_iters: int) -> None:
            nonlocal since
            if len(train_loader) == 0:
                raise FormatError("DeepLabCut found no animal to learn from; label more frames.")
            since = time.perf_counter()
            with suppress(_Over):
                own_fit(train_loader, valid_loader, _NEVER if self.limited else epochs, display_iters)
            manager = runner.snapshot_manager
            manager.update(runner.current_epoch, runner.state_dict(), last=True)
            self.snapshot = manager.snapshot_path(runner.current_epoch)

        runner.step, runner.fit = step, fit

    def _keep(self, runner: Any) -> None:
        """A snapshot, when it is time for one; when that is, is unknown where DeepLabCut decides on the end."""
        if not self.limited or self.points < 2 or self.share < (len(self.earlier) + 1) / self.points:
            return
        import torch

        path = self.folder / f"unfinished-{len(self.earlier)}.pt"
        state = runner.state_dict()
        torch.save({"model": state["model"], "metadata": state["metadata"]}, path)
        self.earlier.append((path, self.spent, self.taken))


class _Over(Exception):
    """The budget is used up."""


@dataclass
class Training:
    """What training left behind: DeepLabCut's settings, the networks' budgets with their snapshots, and sentences for the report."""

    config: Any
    pose: Budget
    detector: Budget | None
    notes: list[str]


def train(job: Job, project: Path, images: frozenset[tuple[str, str]]) -> Training:
    """Train the network of ``job.method``.

    Args:
        job: whose budget, seed and device are used.
        project: a DeepLabCut project's ``config.yaml``.
        images: those to learn from, as (folder, file) in ``labeled-data``.
    """
    import deeplabcut
    from deeplabcut.pose_estimation_pytorch.data import DLCLoader

    _split(project, images, job.method.removeprefix("dlc-"))
    loader = DLCLoader(config=project, shuffle=_SHUFFLE, trainset_index=0)
    config, folder = loader.model_cfg, loader.model_folder
    detector = config.get("detector")
    updates: dict[str, Any] = {"train_settings.seed": job.seed, **_undisturbed("runner")}
    weights, notes, random = _initial_weights(config, folder, job.seed)
    seconds, boxes = job.minutes * 60, None
    if detector is not None:
        updates |= _undisturbed("detector.runner")
        if "detector_path" in random and (batch := _batch(detector["train_settings"]["batch_size"], len(images))):
            # For the sake of pretrained weights, statistics of batches are frozen; random ones would never get any.
            updates |= {"detector.model.freeze_bn_stats": False, "detector.train_settings.batch_size": batch}
            notes.append("The detector's batch statistics are learned, which DeepLabCut's settings for pretrained weights forbid.")
        boxes = Budget(seconds * _DETECTOR_SHARE, job.steps, detector["train_settings"]["epochs"], 0, folder)
        seconds *= 1 - _DETECTOR_SHARE
    updates |= peer_settings(job.settings, "dlc.")
    pose = Budget(seconds, job.steps, config["train_settings"]["epochs"], job.curve, folder)
    with _budgeted(pose, boxes):
        deeplabcut.train_network(str(project), shuffle=_SHUFFLE, device=device(job), pytorch_cfg_updates=updates, **weights)
    trained = DLCLoader(config=project, shuffle=_SHUFFLE, trainset_index=0).model_cfg
    return Training(trained, pose, boxes, [*notes, *_said(job, pose, boxes)])


def device(job: Job) -> str | None:
    """As DeepLabCut calls it; None is its own choice."""
    return None if job.device == "auto" else job.device


def _undisturbed(runner: str) -> dict[str, int]:
    """Settings with which nothing is measured or saved while training."""
    return {f"{runner}.eval_interval": _NEVER, f"{runner}.snapshots.save_epochs": _NEVER}


def _said(job: Job, pose: Budget, detector: Budget | None) -> list[str]:
    """What was settled for DeepLabCut, for the report."""
    notes = ["The network of the end of training is used; nothing was measured on the frames to predict before."]
    if pose.limited:
        notes.append(f"The learning rate falls at the same shares of the training as in DeepLabCut's own, of {pose.epochs} epochs.")
    if detector is not None:
        split = f"; the detector had {_DETECTOR_SHARE:.0%} of the time" if job.minutes else ""
        notes.append(f"Animals are found by a detector (ssdlite, {detector.taken} steps) and then posed ({pose.taken} steps){split}.")
    return notes


def _split(project: Path, images: frozenset[tuple[str, str]], net: str) -> None:
    """Have DeepLabCut make its training set, with exactly these images in it."""
    import deeplabcut
    import yaml
    from deeplabcut.generate_training_dataset.trainingsetmanipulation import merge_annotateddatasets
    from deeplabcut.utils import auxiliaryfunctions

    settings = yaml.safe_load(project.read_text(encoding="ascii"))
    project.write_text(yaml.safe_dump(settings | {"TrainingFraction": [0.5]}, sort_keys=False), encoding="ascii")
    scratch = project.parent / "merged"
    scratch.mkdir(exist_ok=True)
    rows = [tuple(row[-2:]) for row in merge_annotateddatasets(auxiliaryfunctions.read_config(str(project)), scratch).index]
    if found := images.difference(rows):
        raise RuntimeError(f"DeepLabCut misses {len(found)} of {len(images)} frames to learn from")
    parts = [[number for number, row in enumerate(rows) if (row in images) is wanted] for wanted in (True, False)]
    size = max(len(part) for part in parts)
    padded = [[*part, *[-1] * (size - len(part))] for part in parts]  # DeepLabCut's way of keeping to the fraction in its settings
    deeplabcut.create_training_dataset(
        str(project),
        Shuffles=[_SHUFFLE],
        trainIndices=[padded[0]],
        testIndices=[padded[1]],
        net_type=net,
        detector_type="ssdlite",  # its default, and the one that can be built without a download
        userfeedback=False,
    )


def _initial_weights(config: Any, folder: Path, seed: int) -> tuple[dict[str, str], list[str], set[str]]:
    """Snapshots to begin with: the pretrained weights that DeepLabCut would fetch, random ones where it cannot.

    Returns:
        Arguments of DeepLabCut's training, a sentence on each, and the names of those that are random.
    """
    import torch
    from deeplabcut.pose_estimation_pytorch.models import DETECTORS, PoseModel

    torch.manual_seed(seed)
    builders: dict[str, Callable[[bool], Any]] = {
        "snapshot_path": lambda pretrained: PoseModel.build(config["model"], pretrained_backbone=pretrained)
    }
    if config.get("detector") is not None:
        builders["detector_path"] = lambda pretrained: DETECTORS.build(config["detector"]["model"], pretrained=pretrained)
    paths, notes, random = {}, [], set()
    for name, build in builders.items():
        part, path = "detector" if name == "detector_path" else "backbone", folder / f"initial-{name}.pt"
        try:
            model = build(True)
            notes.append(f"The {part} starts from the pretrained weights that DeepLabCut fetches.")
        except Exception as error:  # each source of weights fails in its own way
            model = build(False)
            random.add(name)
            notes.append(f"The {part} starts from random weights, since the pretrained ones could not be fetched ({type(error).__name__}).")
        torch.save({"model": model.state_dict(), "metadata": {"epoch": 0}}, path)
        paths[name] = str(path)
    return paths, notes, random


def _batch(wanted: int, images: int) -> int:
    """The largest batch up to ``wanted`` that leaves no single image over, of which statistics cannot be had; 0 where there is none."""
    return next((size for size in range(min(wanted, images), 1, -1) if images % size != 1), 0)


@contextmanager
def _budgeted(pose: Budget, detector: Budget | None) -> Iterator[None]:
    """Every runner that DeepLabCut builds within obeys the budget of its network."""
    from deeplabcut.pose_estimation_pytorch.apis import training

    own = training.build_training_runner

    def build(*args: Any, **kwargs: Any) -> Any:
        runner = own(*args, **kwargs)
        (detector if detector is not None and kwargs["task"].name == "DETECT" else pose).attach(runner)
        return runner

    training.build_training_runner = build
    try:
        yield
    finally:
        training.build_training_runner = own

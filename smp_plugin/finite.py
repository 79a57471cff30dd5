"""A loss or a gradient that is no finite number: where it comes from is said and kept, and no checkpoint is made of it.

A gradient that is not finite counts as zero (`PoseTraining.on_before_optimizer_step`), so the weights stay good. A loss that is not finite
ends the run, and so do ten such gradients in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from torch import Tensor

from converters.files import written_whole
from converters.labels import FormatError
from smp_plugin.datasets import Batch, TrainingSteps
from smp_plugin.progress import Reporter

if TYPE_CHECKING:
    from smp_plugin.training import PoseTraining

EVERY = 10  # steps between two looks, each of which waits for the GPU
MOST = 10  # gradients in a row
FILE = "not_finite.npz"


@dataclass
class Step:
    """What was computed from which batch in step ``number``, counted from 0."""

    number: int
    batch: Batch
    terms: dict[str, Tensor]
    gradient_norm: Tensor


class FiniteGuard(L.Callback):
    """Looks at the last steps every ``EVERY`` steps and before a checkpoint is written; ends the run with a FormatError."""

    def __init__(self, out: Path, steps: TrainingSteps, reporter: Reporter) -> None:
        self.out, self.steps, self.reporter = out, steps, reporter
        self.recent: list[Step] = []
        self.in_a_row = 0

    def on_train_batch_end(self, trainer: L.Trainer, module: PoseTraining, outputs: object, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        self.recent.append(Step(module.step - 1, batch, module.latest, module.gradient_norm))
        if len(self.recent) == EVERY:
            self.look(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: PoseTraining) -> None:  # type: ignore[override]
        self.look(trainer, module)

    def on_exception(self, trainer: L.Trainer, module: PoseTraining, exception: BaseException) -> None:  # type: ignore[override]
        if module.between_steps:  # a checkpoint is written next
            self.look(trainer, module)

    def look(self, trainer: L.Trainer, module: PoseTraining) -> None:
        """Judge the steps since the last look."""
        recent, self.recent = self.recent, []
        if not recent:
            return
        values = torch.stack([torch.stack((step.terms["loss"].float(), step.gradient_norm.float())) for step in recent])
        for step, (loss, gradient) in zip(recent, values.isfinite().tolist(), strict=True):
            self.in_a_row = 0 if gradient else self.in_a_row + 1
            if not loss:
                self.stop(trainer, module, step, "the loss is not a finite number")
            if self.in_a_row == MOST:
                self.stop(trainer, module, step, f"the gradient was not finite {MOST} times in a row")
            if not gradient:
                harm = f"no harm while it is rare; {MOST} in a row end the run"
                self.reporter.warn(f"step {step.number + 1}: the gradient is not finite and counts as zero, {harm}")

    def stop(self, trainer: L.Trainer, module: PoseTraining, step: Step, what: str) -> None:
        """Keep the batch, and raise FormatError saying which terms and frames it was."""
        labelled, unlabelled = self.steps.crops_of(step.number, len(step.batch.strong))
        videos, others = self.steps.reader.videos, self.steps.unlabeled.reader.videos
        names = [f"{videos[f.video].title(f.index)} of {source.path}" for source, f in labelled]
        names += [f"{others[video].title(index)} (without labels)" for video, index in unlabelled]
        _save(self.out / FILE, step, names)
        terms = [f"{name.removeprefix('loss_')} {float(v)}" for name, v in step.terms.items() if name != "loss" and not v.isfinite()]
        if terms:
            what += f" ({', '.join(terms)})"
        bad = culprits(trainer, module, step.batch)
        if bad and bad != list(range(len(labelled))):
            cause = f"it comes from {' and '.join(names[i] for i in bad)}: look at the picture and its labels, and correct or remove them"
        else:
            whence = "every crop gives it" if bad else "no crop alone gives it"
            cause = f"{whence}: try a lower learning rate, --set train.lr={module.config.train.lr / 4:g}"
        last = self.out / "last.ckpt"
        go_on = f"--resume continues from {last}" if last.exists() else "no checkpoint was reached"
        raise FormatError(f"step {step.number + 1}: {what}; {cause}. The batch is kept in {self.out / FILE}; {go_on}.")


def culprits(trainer: L.Trainer, module: PoseTraining, batch: Batch) -> list[int]:
    """Labelled crops that alone give a loss that is not finite; where there are none, such crops without labels, numbered after these."""

    def fails(labelled: slice, unlabelled: slice) -> bool:
        part = {name: getattr(batch, name)[labelled] for name in ("images", "keypoints", "weights", "background", "partial", "own")}
        alone = Batch(**part, weak=batch.weak[unlabelled], strong=batch.strong[unlabelled])
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            return not torch.stack(list(module.loss_terms(alone).values())).isfinite().all()

    count = len(batch.images)
    found = [i for i in range(count) if fails(slice(i, i + 1), slice(0))]
    return found or [count + i for i in range(len(batch.strong)) if fails(slice(1), slice(i, i + 1))]


def _save(path: Path, step: Step, names: list[str]) -> None:
    """The batch as plain arrays: ``numpy.load(path)`` needs no pickle."""
    arrays = {name: value.detach().cpu().numpy() for name, value in vars(step.batch).items()}
    values = {name: float(value) for name, value in step.terms.items()} | {"gradient_norm": float(step.gradient_norm)}
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, frames=np.array(names), terms=np.array(list(values)), values=np.array(list(values.values())))

"""``train``: projects -> a run folder. The step and the loop read top to bottom; Lightning brings devices, processes and precision."""

from __future__ import annotations

import copy
import csv
import datetime
import logging
import math
import os
import pickle
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from converters.labels import FormatError, LabeledFrame
from smp_plugin import __version__
from smp_plugin.backbone import find_weights
from smp_plugin.checkpoint import Checkpoint, load_model, save_model
from smp_plugin.config import Config, read_config, write_config
from smp_plugin.consistency import (
    agreement,
    background_of,
    fusion_loss,
    label_confidence,
    merge_instances,
    pseudo_instances,
    relative_scores,
    select,
)
from smp_plugin.datasets import Batch, FrameReader, StepRange, TrainingSteps
from smp_plugin.inference import FramePoses, choose_device, has_bf16, infer
from smp_plugin.losses import supervised
from smp_plugin.metrics import MATCH_OKS, MEDIUM_S2, PAPER_S2, SLEAP_S2, animal_areas, evaluate_poses, match, oks
from smp_plugin.model import PoseModel, PoseOutputs
from smp_plugin.preparation import Material, prepare
from smp_plugin.progress import Reporter, Task
from smp_plugin.report import GalleryItem, write_curves, write_gallery, write_report
from smp_plugin.targets import Instances

COLUMNS = (
    "step", "epoch", "seconds", "lr", "phase", "loss", "loss_heatmap", "loss_box", "loss_vector", "loss_quality", "loss_fusion_labeled",
    "loss_fusion_unlabeled", "loss_agreement", "val_ap", "val_ap_s2_0.1", "val_ap_s2_0.0025", "val_pixel_error",
)  # fmt: skip


class Budget:
    """How far the run is, 0 to 1: by steps, or by wall-clock where ``minutes`` are given (time before a resume counts)."""

    def __init__(self, steps: int, minutes: float) -> None:
        self.steps, self.seconds = steps, 60 * minutes
        self.started, self.spent = time.monotonic(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self.spent + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """Share of the run that is over before ``step``."""
        return min(1.0, self.elapsed / self.seconds if self.seconds else step / self.steps)


class PoseTraining(L.LightningModule):
    """The step: supervised terms, then + L_fl, then + L_fu, with a moving average of the weights as teacher and as the model kept."""

    confidence: Tensor

    def __init__(
        self, config: Config, keypoints: int, typical: float, partial: bool, budget: Budget, weights: dict[str, Tensor] | None
    ) -> None:
        super().__init__()
        self.config, self.typical, self.partial, self.budget = config, typical, partial, budget
        self.model = PoseModel(config.model, keypoints)
        if weights is not None:
            self.model.backbone.load_torchvision(weights)
        self.model.to(memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.register_buffer("confidence", torch.tensor(0.3))  # score of a typical labelled animal, moving average
        self.terms: dict[str, list[Tensor]] = defaultdict(list)  # since the last row of metrics.csv
        self.first_step = 0  # this and the next are set where a run is resumed
        self.optimizer_state: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """Steps taken since the run began, before it was resumed included."""
        return self.first_step + self.global_step

    def ramp(self, start: float) -> float:
        """Weight, 0 to 1, of a term that begins at share ``start`` of the run."""
        progress = self.budget.progress(self.step)
        return 0.0 if progress < start else min(1.0, 0.1 + (progress - start) / max(self.config.train.ramp, 1e-6))

    @property
    def phase(self) -> str:
        """Name of the current phase, for people."""
        train, loss, progress = self.config.train, self.config.loss, self.budget.progress(self.step)
        if progress >= train.unlabeled_fusion_start and (loss.beta > 0 or loss.agreement > 0):
            return "unlabelled"
        return "labelled fusion" if progress >= train.labeled_fusion_start and loss.alpha > 0 else "supervised"

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss, labelled = self.config.loss, len(batch.images)
        outputs = self.model(torch.cat((batch.images, batch.strong)))
        on_labelled = outputs.images(slice(0, labelled))
        labels = Instances(batch.keypoints, batch.weights, batch.background[:, None, None])
        terms = supervised(on_labelled, self.completed(labels, batch), loss, self.typical)
        confidence = label_confidence(on_labelled, labels)
        self.confidence.lerp_(torch.where(confidence.isfinite(), confidence, self.confidence), 0.05)
        if weight := loss.alpha * self.ramp(self.config.train.labeled_fusion_start):
            terms["fusion_labeled"] = weight * self.fusion(on_labelled, on_labelled)
        if len(batch.strong):
            terms |= self.unlabelled_terms(batch, outputs.images(slice(labelled, None)))
        total = torch.stack(list(terms.values())).sum()
        for name, value in (("loss", total), *((f"loss_{k}", v) for k, v in terms.items())):
            self.terms[name].append(value.detach())
        return total

    def completed(self, labels: Instances, batch: Batch) -> Instances:
        """The labels; where they are partial, later in the run, completed by what the teacher is sure of."""
        if self.partial and self.config.loss.fill and self.ramp(self.config.train.unlabeled_fusion_start):
            with torch.no_grad():
                seen = self.teacher(batch.images)
                found = pseudo_instances(seen, self.config.loss, self.config.predict, self.typical, self.confidence)
                return merge_instances(labels, found, background_of(seen, batch.background, self.config.loss), self.typical)
        return labels

    def unlabelled_terms(self, batch: Batch, student: PoseOutputs) -> dict[str, Tensor]:
        """L_fu, and agreement with the teacher."""
        loss, ramp = self.config.loss, self.ramp(self.config.train.unlabeled_fusion_start)
        with torch.no_grad():
            teacher = self.teacher(batch.weak)
        terms = {"fusion_unlabeled": loss.beta * ramp * self.fusion(teacher, student)} if loss.beta else {}
        if loss.agreement:
            terms["agreement"] = loss.agreement * ramp * agreement(student, teacher, self.confidence, loss)
        return terms

    def fusion(self, chooser: PoseOutputs, outputs: PoseOutputs) -> Tensor:
        """L_f on ``outputs`` with the candidates that ``chooser`` finds."""
        indices, scores = select(chooser, self.config.loss, self.typical, self.config.predict.nms)
        return fusion_loss(outputs, indices, relative_scores(scores, self.confidence), self.config.loss)

    def on_train_batch_start(self, *_: object) -> None:
        train, progress = self.config.train, self.budget.progress(self.step)
        warm = min(1.0, (progress + 1 / max(train.steps, 1)) / max(train.warmup, 1e-9))
        rate = train.lr * warm * (train.final_lr + (1 - train.final_lr) * (1 + math.cos(math.pi * progress)) / 2)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = rate * group["factor"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning's own clipping refuses fused optimisers for the sake of fp16 scaling, which bf16 does not have.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)

    @torch.no_grad()
    def on_train_batch_end(self, *_: object) -> None:
        step = self.step
        decay = min(self.config.train.ema, (1 + step) / (10 + step))
        for kept, new in zip(self.teacher.state_dict().values(), self.model.state_dict().values(), strict=True):
            kept.lerp_(new, 1 - decay) if kept.is_floating_point() else kept.copy_(new)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        train = self.config.train
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            decay = train.weight_decay if parameter.ndim > 1 else 0.0  # not on biases and normalisation
            groups[(train.backbone_lr if name.startswith("backbone.") else 1.0, decay)].append(parameter)
        options = [{"params": p, "factor": factor, "weight_decay": decay} for (factor, decay), p in groups.items()]
        if train.optimizer == "sgd":
            return torch.optim.SGD(options, lr=train.lr, momentum=0.9)
        return torch.optim.AdamW(options, lr=train.lr, fused=self.device.type != "mps")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"step": self.step, "seconds": self.budget.elapsed}

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Stand where the run was saved. Not left to Lightning, whose counters of epochs make the first one after a resume shorter."""
        self.load_state_dict(checkpoint["state_dict"])
        self.first_step, self.optimizer_state = checkpoint["step"], checkpoint["optimizer_states"][0]
        self.budget.spent = checkpoint["seconds"]

    def on_train_start(self) -> None:
        if self.optimizer_state is not None:
            self.optimizers().optimizer.load_state_dict(self.optimizer_state)  # type: ignore[union-attr]
            self.optimizer_state = None


class RunFolder(L.Callback):
    """Keeps the run folder: validation, ``metrics.csv``, ``model.pt`` (best), ``last.ckpt``, and when to stop."""

    def __init__(self, out: Path, config: Config, material: Material, steps: TrainingSteps, task: Task, facts: dict[str, object]) -> None:
        self.out, self.config, self.material, self.steps, self.task, self.facts = out, config, material, steps, task, facts
        self.best, self.best_step, self.interrupted = -math.inf, 0, False
        self.reader = FrameReader(material.videos, 1.0)
        self.val_frames = spread(material.val_frames, config.train.val_frames)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = float(state["best"]), int(state["best_step"])

    def on_train_batch_start(self, trainer: L.Trainer, module: PoseTraining, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        wanted = self.config.loss.beta > 0 or self.config.loss.agreement > 0
        if wanted and module.budget.seconds and module.phase == "unlabelled":
            self.steps.first_unlabeled_step.clamp_(max=module.step)

    def on_train_batch_end(self, trainer: L.Trainer, module: PoseTraining, *_: object) -> None:  # type: ignore[override]
        progress = module.budget.progress(module.step)
        self.task.update(module.budget.elapsed if module.budget.seconds else module.step, step=module.step, phase=module.phase)
        over = progress >= 1
        if trainer.world_size > 1 and module.budget.seconds:  # clocks differ a little, and all must stop at the same step
            over = trainer.strategy.reduce_boolean_decision(over, all=False)
        if over:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: PoseTraining) -> None:  # type: ignore[override]
        row: dict[str, object] = {k: f"{torch.stack(v).mean().item():.5g}" for k, v in module.terms.items()}
        row |= {
            "step": module.step,
            "epoch": (module.step - 1) // self.config.train.val_every,
            "seconds": f"{module.budget.elapsed:.1f}",
            "phase": module.phase,
        }
        row["lr"] = f"{trainer.optimizers[0].param_groups[-1]['lr']:.3g}"
        module.terms.clear()
        if trainer.is_global_zero:
            score = float(module.step)  # without validation frames the latest model is the one to keep
            if self.val_frames:
                score, figures = self.validate(module)
                row |= figures
            if score >= self.best:
                self.best, self.best_step = score, module.step
                self.save(module)
            append_row(self.out / "metrics.csv", row)
        partial = self.out / ".last.ckpt.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.out / "last.ckpt")

    def validate(self, module: PoseTraining) -> tuple[float, dict[str, object]]:
        """The figure models are chosen by (the mean of AP at s2 = 1, .1 and .0025), and the columns of metrics.csv."""
        found = predict_frames(module.teacher, self.val_frames, self.reader, self.config, module.typical)
        result = evaluate_poses(truth_of(self.val_frames), [(f.poses, f.scores) for f in found], self.material.skeleton.keypoints)
        ap = {s2: result.ap[s2].ap for s2 in (PAPER_S2, MEDIUM_S2, SLEAP_S2)}
        figures = {
            "val_ap": ap[PAPER_S2],
            "val_ap_s2_0.1": ap[MEDIUM_S2],
            "val_ap_s2_0.0025": ap[SLEAP_S2],
            "val_pixel_error": result.pixel_error[50],
        }
        self.task.update(module.budget.elapsed if module.budget.seconds else module.step, step=module.step, AP=f"{ap[PAPER_S2]:.3f}")
        return float(np.nanmean(list(ap.values()))), {k: f"{v:.4f}" for k, v in figures.items()}

    def save(self, module: PoseTraining) -> None:
        """The moving average of the weights as model.pt."""
        facts = self.facts | {"step": self.best_step, "minutes": round(module.budget.elapsed / 60, 2)}
        save_model(self.out / "model.pt", Checkpoint(module.teacher, self.config, self.material.skeleton, module.typical, facts))

    def on_exception(self, trainer: L.Trainer, module: PoseTraining, exception: BaseException) -> None:  # type: ignore[override]
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if self.interrupted and trainer.is_global_zero and not (self.out / "model.pt").exists():
            self.best_step = module.step
            self.save(module)


def spread(frames: list[LabeledFrame], most: int) -> list[LabeledFrame]:
    """At most so many frames, evenly spread."""
    return frames if len(frames) <= most else [frames[i] for i in np.linspace(0, len(frames) - 1, most).round().astype(int)]


def truth_of(frames: list[LabeledFrame]) -> list[np.ndarray]:
    """Per frame the labelled animals, (n, K, 2) frame pixels."""
    return [np.stack([i.points for i in f.instances]) if f.instances else np.zeros((0, 1, 2)) for f in frames]


def predict_frames(model: PoseModel, frames: list[LabeledFrame], reader: FrameReader, config: Config, typical: float) -> list[FramePoses]:
    """Predictions for labelled frames, one by one: frames of a project may differ in size."""
    return [
        infer(model, reader.get(f.video, f.index)[0][None], config.data.input_scale, config.predict, typical, config.train.precision)[0]
        for f in frames
    ]


def append_row(path: Path, row: dict[str, object]) -> None:
    """Add a line to metrics.csv; lines of a longer run that was cut off are dropped first, so that steps rise."""
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if int(r["step"]) < int(str(row["step"]))]
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, row])
    os.replace(partial, path)


def train(
    projects: list[Path],
    *,
    config: Config | None = None,
    out: Path | None = None,
    val: Path | None = None,
    video_root: Path | None = None,
    unlabeled: list[Path] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Train on labelled frames of ``projects`` and on unlabelled frames of their videos.

    Args:
        projects: SLEAP projects with the same keypoints.
        config: settings; default the ``small`` preset.
        out: the run folder; default a dated folder under ``runs/``.
        val: a project whose labelled frames choose the best model; default a share of the labelled frames.
        video_root: where videos that are not found are looked for next.
        unlabeled: videos to take unlabelled frames from; default those of the projects.
        resume: continue the run in ``out`` from its last checkpoint, with its settings.

    Returns:
        The run folder, with ``model.pt``, ``last.ckpt``, ``config.yaml``, ``metrics.csv``, pictures, ``report.html`` and ``log.txt``.

    Raises:
        FormatError: bad input; the message says what and what to do.
        KeyboardInterrupt: after everything finished so far was saved.
    """
    reporter = reporter or Reporter(quiet=True)
    config = copy.deepcopy(config or Config())
    out = out or Path("runs") / datetime.datetime.now().strftime("%y%m%d_%H%M%S")
    reporter.mute = not is_first_process(config)
    saved = None
    if resume:
        saved = read_checkpoint(out)
        reporter.say(f"resuming {out} at step {saved['step']}, with its settings ({out / 'config.yaml'})")
        config = read_config(out / "config.yaml")
    elif (out / "model.pt").exists() or (out / "last.ckpt").exists():
        remedy = ", or add --resume to continue it" if (out / "last.ckpt").exists() else ""
        raise FormatError(f"-o {out}: the folder already holds a run; choose another{remedy}.")
    device, why = choose_device(config.train.device)
    material = prepare(projects, config, val, video_root, unlabeled or [], reporter)
    if resume:
        kept = load_model(out)
        if kept.skeleton.keypoints != material.skeleton.keypoints:
            raise FormatError(
                f"--resume: {out} was trained on the keypoints {', '.join(kept.skeleton.keypoints)}, but those of {projects[0]} are "
                f"{', '.join(material.skeleton.keypoints)}; name the project that the run began with."
            )
        weights, sentence = None, str(kept.facts.get("weights", ""))
    else:
        weights, sentence = find_weights(config.model.weights, config.model.backbone)
    if config.model.norm == "auto":
        config.model.norm = "frozen" if weights is not None else "group"
    if not reporter.mute:
        open_folder(out)
        reporter.log_to(out / "log.txt")
        if not resume:
            write_config(config, out / "config.yaml")
    if not resume:
        (reporter.warn if sentence.startswith("NO") else reporter.say)(sentence)
    reporter.say(f"{why}; {'bf16' if config.train.precision != 'fp32' and has_bf16(device) else 'fp32'}")

    torch.manual_seed(config.train.seed)
    budget = Budget(config.train.steps, config.train.minutes)
    facts: dict[str, object] = {
        "projects": [str(p) for p in projects],
        "weights": sentence,
        "labelled_frames": len(material.frames),
        "version": __version__,
    }
    module = PoseTraining(config, len(material.skeleton), material.typical_length, material.partial, budget, weights)
    interrupted = fit(module, material, config, device, out, facts, saved, reporter)
    if not reporter.mute:
        finish(out, config, material, device, reporter)
    if interrupted:
        raise KeyboardInterrupt
    return out


def is_first_process(config: Config) -> bool:
    """Is this the process that writes and speaks? Lightning, torchrun and SLURM number the others in these variables."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return config.train.devices * config.train.num_nodes == 1 or all(os.environ.get(name, "0") == "0" for name in names)


def read_checkpoint(out: Path) -> dict[str, Any]:
    """``last.ckpt`` of a run folder. Raises FormatError where the run can't be resumed."""
    path = out / "last.ckpt"
    if not path.exists():
        raise FormatError(f"--resume: {out} holds no last.ckpt; give the folder of a run that reached its first checkpoint, or start anew.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise FormatError(f"--resume: {path} is damaged; train anew in another folder (model.pt beside it still predicts).") from error


def open_folder(out: Path) -> None:
    """Make the run folder, or raise FormatError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.txt").open("a", encoding="utf-8").close()
    except OSError as error:
        raise FormatError(f"-o {out}: it can't be written to ({error.strerror}); choose a folder that you may write to.") from error


def fit(
    module: PoseTraining,
    material: Material,
    config: Config,
    device: torch.device,
    out: Path,
    facts: dict[str, object],
    saved: dict[str, Any] | None,
    reporter: Reporter,
) -> bool:
    """Run Lightning's loop until the budget is spent. Returns whether it was interrupted by the user."""
    settings, budget = config.train, module.budget
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    total, unit = (budget.seconds, "s") if budget.seconds else (float(settings.steps), "steps")
    with reporter.task("training", total, unit) as task:
        trainer = L.Trainer(
            accelerator=device.type if device.type != "cuda" else "gpu",
            devices=[device.index] if device.index is not None else settings.devices,
            num_nodes=settings.num_nodes,
            strategy="ddp" if settings.devices * settings.num_nodes > 1 else "auto",
            precision="bf16-mixed" if settings.precision == "bf16" or (settings.precision == "auto" and has_bf16(device)) else "32-true",
            max_steps=-1 if budget.seconds else settings.steps - (saved["step"] if saved else 0),
            max_epochs=-1,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
        steps = TrainingSteps(
            material.frames, material.videos, material.skeleton, config, material.partial, material.unlabeled_videos, material.pool,
            trainer.global_rank, trainer.world_size,
        )  # fmt: skip
        if not budget.seconds and (config.loss.beta > 0 or config.loss.agreement > 0):
            steps.first_unlabeled_step.fill_(math.ceil(settings.unlabeled_fusion_start * settings.steps))
        keeper = RunFolder(out, config, material, steps, task, facts)
        trainer.callbacks.append(keeper)  # type: ignore[attr-defined]
        module.train_dataloader = loader(steps, config, device, lambda: module.step)  # type: ignore[method-assign]
        if saved is not None:
            module.resume(saved)
            keeper.load_state_dict(saved["callbacks"][keeper.state_key])
        if module.step and budget.progress(module.step) >= 1:
            return False
        budget.started = time.monotonic()
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module)
        except SystemExit:  # how Lightning leaves after Ctrl-C, once on_exception has run
            if not keeper.interrupted:
                raise
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C switched off
        except FormatError as error:
            if "Traceback" not in str(error):
                raise
            raise FormatError(str(error).rsplit("FormatError: ", 1)[-1].strip()) from None  # raised in a loader process
    return keeper.interrupted


def loader(steps: TrainingSteps, config: Config, device: torch.device, position: Callable[[], int]) -> Callable[[], DataLoader[Batch]]:
    """Makes the loader of the next ``val_every`` steps, from wherever the run stands."""
    workers = config.train.workers if config.train.workers >= 0 else 4 if device.type == "cuda" else 0

    def make() -> DataLoader[Batch]:
        left = config.train.val_every if config.train.minutes else min(config.train.val_every, config.train.steps - position())
        return DataLoader(steps, batch_size=None, sampler=StepRange(position, left), num_workers=workers, pin_memory=device.type == "cuda")

    return make


def choose_min_score(truth: list[np.ndarray], found: list[FramePoses], partial: bool) -> float:
    """The lowest score within .01 of the best F1; where labels are partial, the score that 9 of 10 found labelled animals have.

    ``truth``: (n, K, 2) per frame. An animal is found by a pose of OKS (s2 = .1) .3 or more.
    """
    scores, right = [], []
    for labelled, frame, area in zip(truth, found, animal_areas(truth), strict=True):
        hits = {column for _, column in match(oks(labelled, frame.poses, area, MEDIUM_S2), MATCH_OKS)}
        scores += frame.scores.tolist()
        right += [i in hits for i in range(len(frame.scores))]
    order = np.argsort(scores)[::-1]
    ranked, hits_so_far = np.array(scores)[order], np.cumsum(np.array(right)[order])
    if not len(ranked) or not hits_so_far[-1]:
        return 0.1
    if partial:
        return round(float(ranked[np.searchsorted(hits_so_far, 0.9 * hits_so_far[-1])]), 3)
    f1 = 2 * hits_so_far / (np.arange(1, len(ranked) + 1) + sum(len(t) for t in truth))
    return round(float(ranked[np.flatnonzero(f1 >= f1.max() - 0.01)[-1]]), 3)


def finish(out: Path, config: Config, material: Material, device: torch.device, reporter: Reporter) -> None:
    """The score from which the best model's animals are kept, pictures, and the report."""
    choices, warnings = reporter.take()
    if not (out / "model.pt").exists():
        return
    kept = load_model(out / "model.pt")
    kept.model.to(device)
    frames = spread(material.val_frames or material.frames, config.train.val_frames)
    reader = FrameReader(material.videos, 1.0)
    found = predict_frames(kept.model, frames, reader, kept.config, kept.typical_length)
    truth = truth_of(frames)
    if kept.config.predict.min_score == 0:
        # Training frames flatter: unseen animals score lower than those learnt by heart.
        kept.config.predict.min_score = round(choose_min_score(truth, found, material.partial) * (1.0 if material.val_frames else 0.5), 3)
        save_model(out / "model.pt", kept)
        reporter.say(f"--min-score: {kept.config.predict.min_score:g} by default, where the fewest animals are missed or invented")
    result = evaluate_poses(truth, [(f.poses, f.scores) for f in found], material.skeleton.keypoints)
    items = [
        GalleryItem(
            reader.get(f.video, f.index)[0].permute(1, 2, 0).numpy(), t, p.poses[p.scores >= kept.config.predict.min_score],
            evaluate_poses([t], [(p.poses, p.scores)], material.skeleton.keypoints).ap[MEDIUM_S2].ap,
            f"{material.videos[f.video].name} frame {f.index}",
        )
        for f, t, p in zip(frames, truth, found, strict=True)
    ]  # fmt: skip
    if (out / "metrics.csv").exists():
        write_curves(out / "metrics.csv", out / "curves.png")
    write_gallery(out / "val_predictions.png", items, material.skeleton)
    data = {
        "Projects": ", ".join(map(str, kept.facts["projects"])),  # type: ignore[call-overload]
        "Keypoints": ", ".join(material.skeleton.keypoints),
        "Labelled frames, animals": f"{len(material.frames)}, {sum(len(f.instances) for f in material.frames)}",
        "Validation frames": len(material.val_frames),
        "Unlabelled frames": f"{len(material.pool):,}",
        "Model kept": f"of step {kept.facts['step']}, after {kept.facts['minutes']} min of training",
    }
    write_report(out, title=out.name, data=data, choices=choices, evaluation=result, warnings=warnings)
    what = "validation" if material.val_frames else "training (no validation frames)"
    reporter.say(
        f"AP on {len(frames)} {what} frames: {result.ap[PAPER_S2].ap:.3f} (s2 = 1), "
        f"{result.ap[MEDIUM_S2].ap:.3f} (.1), {result.ap[SLEAP_S2].ap:.3f} (.0025)"
    )
    reporter.say(f"model: {out / 'model.pt'}; report: {out / 'report.html'}")

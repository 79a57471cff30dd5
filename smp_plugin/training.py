"""``train``: projects -> a run folder. The step and the loop read top to bottom; Lightning brings devices, processes and precision."""

from __future__ import annotations

import copy
import logging
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from converters.labels import FormatError
from smp_plugin import __version__
from smp_plugin.backbone import find_weights
from smp_plugin.budget import Budget
from smp_plugin.checkpoint import load_model, written_by
from smp_plugin.config import Config, TrainConfig, choose, read_config, was_chosen, write_config
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
from smp_plugin.datasets import NEVER, Batch, StepRange, TrainingSteps
from smp_plugin.devices import choose_device, in_bf16, out_of_memory, refuse_processes, say_device
from smp_plugin.diagnosis import certain, few_to_validate
from smp_plugin.finite import EVERY, FiniteGuard
from smp_plugin.losses import supervised
from smp_plugin.model import LEVEL_STRIDES, PoseModel, PoseOutputs
from smp_plugin.optimizer import go_on_with, make_optimizer
from smp_plugin.preparation import Material, frame_sizes, name_sources, prepare
from smp_plugin.progress import Reporter
from smp_plugin.run_folder import RunFolder, WholeCheckpoints, dated_folder, finish, open_folder, read_checkpoint, refuse_others_files
from smp_plugin.runtimes import Run, compiling_pays, for_training, gradient_of
from smp_plugin.stopping import stoppable, without_ctrl_c
from smp_plugin.targets import Instances
from smp_plugin.turning import WAYS, turn, turn_back


class PoseTraining(L.LightningModule):
    """The step: supervised terms, then + L_fl, then + L_fu, with a moving average of the weights as teacher and as the model kept."""

    confidence: Tensor
    mirrored: Tensor

    def __init__(
        self,
        config: Config,
        mirrored: Sequence[int],
        typical: float,
        partial: bool,
        budget: Budget,
        weights: dict[str, Tensor] | None,
        unlabelled: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("mirrored", torch.tensor(mirrored), persistent=False)  # the keypoints that keypoints become in a mirror
        augment = config.augment
        self.ways = [w for w in range(WAYS) if (augment.flip or w < 4) and (augment.rotation >= 180 or w % 4 == 0)]
        self.config, self.typical, self.partial, self.unlabelled, self.budget = config, typical, partial, unlabelled, budget
        self.model = PoseModel(config.model, len(mirrored))
        exact = config.data.crop % self.model.strides[-1] == 0  # else grids do not turn onto themselves
        self.ways = self.ways if augment.turn and exact else [0]
        if weights is not None:
            self.model.backbone.load_torchvision(weights)
        self.model.to(memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.compiled: dict[PoseModel, Run] = {}  # what computes their answers faster
        self.register_buffer("confidence", torch.tensor(0.3))  # score of a typical labelled animal, moving average
        self.terms: dict[str, list[Tensor]] = defaultdict(list)  # since the last row of metrics.csv
        self.latest: dict[str, Tensor] = {}  # of the last step
        self.gradient_norm = torch.zeros(())  # of the last step, before clipping
        self.reporter = Reporter(quiet=True)  # of what compiling is worth
        self.unlabelled_since: float | None = None  # share of the run after which unlabelled frames came
        self.first_step = 0  # this and the next are set where a run is resumed
        self.optimizer_state: dict[str, Any] | None = None
        self.stopped = threading.Event()  # Ctrl-C was pressed
        self.between_steps = False  # set where it ends the run: everything is as the last step left it

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
        if progress >= train.unlabeled_fusion_start and self.step >= train.unlabeled_first_step and self.unlabelled and loss.unlabelled:
            return "unlabelled"
        if progress >= train.unlabeled_fusion_start and self.partial and loss.fill:
            return "gaps filled"
        return "labelled fusion" if progress >= train.labeled_fusion_start and loss.alpha > 0 else "supervised"

    def training_step(self, batch: Batch, _: int) -> Tensor:
        terms = self.loss_terms(batch)
        total = torch.stack(list(terms.values())).sum()
        self.latest = {"loss": total.detach()} | {f"loss_{name}": value.detach() for name, value in terms.items()}
        for name, value in self.latest.items():
            self.terms[name].append(value)
        return total

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the loss, each a scalar."""
        loss, labelled = self.config.loss, len(batch.images)
        way = self.ways[self.step % len(self.ways)]
        outputs = self.see(self.model, torch.cat((batch.images, turn(batch.strong, way))))
        on_labelled = outputs.images(slice(0, labelled))
        labels = Instances(batch.keypoints, batch.weights, batch.background[:, None, None], batch.own)
        terms = supervised(on_labelled, self.completed(labels, batch), loss, self.typical)
        confidence = label_confidence(on_labelled, labels)
        self.confidence.lerp_(torch.where(confidence.isfinite(), confidence, self.confidence), 0.05)
        if weight := loss.alpha * self.ramp(self.config.train.labeled_fusion_start):
            terms["fusion_labeled"] = weight * self.fusion(on_labelled, on_labelled)
        if len(batch.strong):
            terms |= self.unlabelled_terms(batch, turn_back(outputs.images(slice(labelled, None)), way, self.mirrored))
        return terms

    def see(self, network: PoseModel, images: Tensor) -> PoseOutputs:
        """What student or teacher says about images."""
        compiled = self.compiled.get(network)
        return network.outputs(*compiled(images)) if compiled else network(images)

    def completed(self, labels: Instances, batch: Batch) -> Instances:
        """The labels; where they are partial, later in the run, completed by what the teacher is sure of."""
        if self.partial and self.config.loss.fill and self.ramp(self.config.train.unlabeled_fusion_start):
            with torch.no_grad():
                seen = self.see(self.teacher, batch.images)
                found = pseudo_instances(seen, self.config.loss, self.config.predict, self.typical, self.confidence)
                background = background_of(seen, batch.background, self.config.loss)
                return merge_instances(labels, found.of_images(batch.partial), background, self.typical)
        return labels

    def unlabelled_terms(self, batch: Batch, student: PoseOutputs) -> dict[str, Tensor]:
        """L_fu, and agreement with the teacher."""
        loss, progress = self.config.loss, self.budget.progress(self.step)
        if self.unlabelled_since is None:  # in short runs later than `train.unlabeled_fusion_start`
            self.unlabelled_since = progress
        ramp = self.ramp(min(self.unlabelled_since, progress))  # of a run that was given more time
        with torch.no_grad():
            teacher = self.see(self.teacher, batch.weak)
        terms = {"fusion_unlabeled": loss.beta * ramp * self.fusion(teacher, student)} if loss.beta else {}
        if loss.agreement:
            terms["agreement"] = loss.agreement * ramp * agreement(student, teacher, self.confidence, loss)
        return terms

    def fusion(self, chooser: PoseOutputs, outputs: PoseOutputs) -> Tensor:
        """L_f on ``outputs`` with the candidates that ``chooser`` finds."""
        indices, scores = select(chooser, self.config.loss, self.typical, self.config.predict.nms)
        return fusion_loss(outputs, indices, relative_scores(scores, self.confidence), self.config.loss)

    def agree_on_time(self, paused: bool) -> None:
        """Where several processes train by the clock."""
        if self.budget.seconds and self.trainer.world_size > 1:
            self.budget.agree(self.step, self.trainer.strategy.broadcast, paused)

    def on_train_epoch_start(self) -> None:
        self.agree_on_time(paused=True)  # the first process validates

    def on_train_batch_start(self, *_: object) -> None:
        if self.global_step < EVERY or self.step % EVERY == 0:  # the first steps are slower, and nothing is known of the pace
            self.agree_on_time(paused=False)
        train, progress = self.config.train, self.budget.progress(self.step)
        warm = min(1.0, (progress + 1 / max(train.steps, 1)) / max(train.warmup, 1e-9))
        rate = train.lr * warm * (train.final_lr + (1 - train.final_lr) * (1 + math.cos(math.pi * progress)) / 2)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = rate * group["factor"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning's own clipping refuses fused optimisers for the sake of fp16 scaling, which bf16 does not have.
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip or math.inf)
        for parameter in self.model.parameters():  # where it is not finite it counts as zero; to ask first would be to wait for the GPU
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)

    @torch.no_grad()
    def on_train_batch_end(self, *_: object) -> None:
        step = self.step
        decay = min(self.config.train.ema, (1 + step) / (10 + step))
        kept, new = (list(network.state_dict().values()) for network in (self.teacher, self.model))  # floating-point, every one
        get_ema_multi_avg_fn(decay)(kept, new, step)  # in a few launches, where one by one they would be hundreds
        # Callbacks come before this. After the last step of a round, validation and a whole checkpoint follow anyway.
        if self.stopped.is_set() and self.step % self.config.train.val_every and self.budget.progress(self.step) < 1:
            self.between_steps = True
            raise KeyboardInterrupt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config.train, fused=self.device.type != "mps")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= written_by() | {"step": self.step, "seconds": self.budget.elapsed}
        checkpoint["terms"] = {name: torch.stack(values) for name, values in self.terms.items()}
        checkpoint["unlabelled_since"] = self.unlabelled_since

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Stand where the run was saved. Not left to Lightning, whose counters of epochs make the first one after a resume shorter."""
        self.load_state_dict(checkpoint["state_dict"])
        self.first_step, self.optimizer_state = checkpoint["step"], checkpoint["optimizer_states"][0]
        self.budget.spent, self.unlabelled_since = checkpoint["seconds"], checkpoint["unlabelled_since"]
        self.terms.update({name: list(values) for name, values in checkpoint["terms"].items()})

    def on_train_start(self) -> None:
        self.terms.update({name: [value.to(self.device) for value in values] for name, values in self.terms.items()})
        if self.optimizer_state is not None:
            optimizer: torch.optim.Optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
            try:
                go_on_with(optimizer, self.optimizer_state)
            except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise unfit(error) from error
            self.optimizer_state = None
        if self.device.type == "cuda":
            self.try_largest_batch()
        if compiling_pays(self.config.train, self.step, self.budget.elapsed, self.device):
            self.compile_network()

    def largest_batch(self) -> tuple[Tensor, int]:
        """Noise like the images (N, 3, H, W) of the run's largest steps, and how many of them are unlabelled."""
        settings, side = self.config.train, self.config.data.crop
        unlabelled = settings.unlabeled_batch if self.unlabelled and self.config.loss.unlabelled else 0
        size = settings.batch + unlabelled, 3, side, side
        return torch.randint(256, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(self.device), unlabelled

    def try_largest_batch(self) -> None:
        """See now whether memory is enough once unlabelled frames count, a third into the run."""
        gradient_of(self.model.answers, self.model, self.largest_batch()[0], self.config.train.precision)

    def compile_network(self) -> None:
        """Let PyTorch's compiler compute student and teacher, if that proves as exact and faster."""
        settings, (images, unlabelled) = self.config.train, self.largest_batch()
        of_teacher = ([unlabelled] if unlabelled else []) + ([settings.batch] if self.partial else [])
        self.compiled = for_training(self.model, self.teacher, images, settings.batch, of_teacher, settings, self.reporter)


def train(
    projects: list[Path] | None = None,
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
        projects: labelled projects of any format, whose keypoints are united by name; default those that ``config`` (or the run to
            resume) names.
        config: settings; default the ``small`` preset.
        out: the run folder; default a dated folder under ``runs/``.
        val: a project whose labelled frames choose the best model; default a share of the labelled frames.
        video_root: where videos that are not found are looked for next.
        unlabeled: videos to take unlabelled frames from, beside those of the projects.
        resume: continue the run in ``out`` from its last checkpoint, or from the beginning where it was stopped before the first;
            ``config`` may change all but its ``model`` and, of its ``data``, all but the files that may have moved.

    Returns:
        The run folder, with ``model.pt``, ``last.ckpt``, ``config.yaml``, ``metrics.csv``, pictures, ``report.html`` and ``log.txt``.

    Raises:
        FormatError: bad input; the message says what and what to do.
        KeyboardInterrupt: after every finished step was saved; where several processes train, or Ctrl-C was pressed twice, those up to
            the last validation.
    """
    reporter = reporter or Reporter(quiet=True)
    dated, out = out is None, out or dated_folder()
    config, saved = _begin(out, config, resume)
    name_sources(config, projects, val, video_root, unlabeled, keep=resume)
    reporter.mute = not is_first_process(config)
    if saved:
        reporter.say(f"resuming {out} at step {saved['step']}, with its settings ({out / 'config.yaml'})")
    elif resume:
        reporter.say(f"{out} was stopped before its first checkpoint: from the beginning, with its settings ({out / 'config.yaml'})")
    device, why = choose_device(config.train.device)
    refuse_processes(device, config.train.devices, config.train.num_nodes)
    material = prepare(config, reporter, saved["held_out"] if saved else None)
    where = frame_sizes(material.labels), config.data.input_scale, config.data.crop, LEVEL_STRIDES[0]
    for finding in certain(material.training, material.validation, *where):
        reporter.warn(finding.sentence)
    if config.train.keep == "best" and (few := few_to_validate(material.validation)):
        reporter.say(few.sentence)
    weights, sentence = _initial_weights(out, config, material, saved is not None, reporter)
    if not reporter.mute:
        out = open_folder(out, new=dated)
        reporter.log_to(out / "log.txt")
        if resume and not saved:
            (out / "metrics.csv").unlink(missing_ok=True)
        write_config(config, out / "config.yaml")
    if not saved:
        learning = f"; the backbone learns at {config.train.backbone_lr:g} of the learning rate (train.backbone_lr)"
        (reporter.warn if sentence.startswith("NO") else reporter.say)(sentence + learning)
    say_device(reporter, f"{why}; {'bf16' if in_bf16(device, config.train.precision) else 'fp32'}")

    torch.manual_seed(config.train.seed)
    budget = Budget(config.train.steps, config.train.minutes)
    facts: dict[str, object] = {
        "projects": list(config.data.projects),
        "weights": sentence,
        "labelled_frames": len(material.frames),
        "unlabelled_frames": len(material.pool),
        "version": __version__,
    }
    unlabelled = len(material.pool) > 0 and config.train.unlabeled_batch > 0
    module = PoseTraining(config, material.skeleton.mirrored, material.typical_length, material.partial, budget, weights, unlabelled)
    interrupted = fit(module, material, device, out, facts, saved, reporter)
    if unlabelled and config.loss.unlabelled and module.step <= config.train.unlabeled_first_step and not interrupted:
        first = config.train.unlabeled_first_step
        reporter.say(
            f"unlabelled frames: none was learnt from in {module.step} steps; they count from step {first} (train.unlabeled_first_step)"
        )
    if not reporter.mute:
        finish(out, config, material, device, reporter)
    if interrupted:
        raise KeyboardInterrupt
    return out


def _begin(out: Path, config: Config | None, resume: bool) -> tuple[Config, dict[str, Any] | None]:
    """The run's settings, of its own to be completed, and the checkpoint that it goes on from, if there is one."""
    if resume:  # the network and its data stay as they were; a longer budget or another device may be asked for
        saved, stored = read_checkpoint(out), read_config(out / "config.yaml")
        if config:  # labels and images may have moved
            moved = {name: value for name in ("images", "aliases", "supplement") if (value := getattr(config.data, name))}
            stored = replace(config, data=replace(stored.data, **moved), model=stored.model)
        return copy.deepcopy(stored), saved
    if (out / "model.pt").exists() or (out / "last.ckpt").exists():
        remedy = ", or add --resume to continue it" if (out / "config.yaml").exists() else ""
        raise FormatError(f"-o {out}: the folder already holds a run; choose another{remedy}.")
    refuse_others_files(out)
    return copy.deepcopy(config or Config()), None


def _initial_weights(
    out: Path, config: Config, material: Material, resumed: bool, reporter: Reporter
) -> tuple[dict[str, Tensor] | None, str]:
    """Those that the backbone begins with, None where there are none or a checkpoint has better ones, and a sentence about them.

    What depends on them is chosen in ``config``. Raises FormatError where the run in ``out`` has other keypoints.
    """
    if not resumed:
        weights, sentence = find_weights(config.model.weights, config.model.backbone)
        suit_weights(config, weights is not None, reporter)
        return weights, sentence
    kept = load_model(out)
    if kept.skeleton.keypoints != material.skeleton.keypoints:
        raise FormatError(
            f"--resume: {out} was trained on the keypoints {', '.join(kept.skeleton.keypoints)}, but those of "
            f"{config.data.projects[0]} are {', '.join(material.skeleton.keypoints)}; name the project that the run began with."
        )
    config.train.backbone_lr = config.train.backbone_lr or kept.config.train.backbone_lr
    return None, str(kept.facts.get("weights", ""))


def suit_weights(config: Config, pretrained: bool, reporter: Reporter) -> None:
    """Choose what depends on whether the backbone has pretrained weights; a choice of another run may have been made without, or with."""
    if config.model.norm == "auto" or was_chosen(config, "model.norm"):
        choose(config, "model.norm", "frozen" if pretrained else "group")
    elif config.model.norm == "frozen" and not pretrained:
        choose(config, "model.norm", "group")
        reporter.warn("model.norm is frozen, but there are no pretrained weights, whose statistics it would keep: group norm is taken")
    elif config.model.norm == "group" and pretrained:
        reporter.warn(
            "model.norm is group: the batch statistics among the pretrained weights are not used; --set model.norm=auto uses them"
        )
    if config.train.backbone_lr == 0 or was_chosen(config, "train.backbone_lr"):
        choose(config, "train.backbone_lr", 0.1 if pretrained else 1.0)


def unfit(error: Exception) -> FormatError:
    """What to say of a checkpoint whose contents are of another network or optimiser."""
    reason = " ".join(str(error).split())[:80]
    remedy = "set back what was changed, such as train.optimizer or the version of smp-plugin, or train anew in another folder"
    return FormatError(f"--resume: the run's last.ckpt does not fit its config.yaml ({reason}); {remedy}.")


def is_first_process(config: Config) -> bool:
    """Is this the process that writes and speaks? Lightning, torchrun and SLURM number the others in these variables."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return config.train.devices * config.train.num_nodes == 1 or all(os.environ.get(name, "0") == "0" for name in names)


def fit(
    module: PoseTraining,
    material: Material,
    device: torch.device,
    out: Path,
    facts: dict[str, object],
    saved: dict[str, Any] | None,
    reporter: Reporter,
) -> bool:
    """Run Lightning's loop until the budget is spent. Returns whether it was interrupted by the user."""
    config, settings, budget = module.config, module.config.train, module.budget
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # what Muon multiplies bears TF32, as convolutions in single precision do by default
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    total, unit = (budget.seconds, "s") if budget.seconds else (float(settings.steps), "steps")
    with reporter.task("training", total, unit) as task:
        trainer = _trainer(settings, device, out, saved["step"] if saved else 0)
        steps = TrainingSteps(
            material.sources, material.videos, material.skeleton, config, material.unlabeled_videos, material.pool,
            trainer.global_rank, trainer.world_size, max(1, loader_processes(settings, device)), material.typical_length,
        )  # fmt: skip
        if not budget.seconds and config.loss.unlabelled:
            steps.first_unlabeled_step.fill_(
                max(settings.unlabeled_first_step, math.ceil(settings.unlabeled_fusion_start * settings.steps))
            )
        keeper = RunFolder(out, config, material, steps, task, facts)
        module.reporter = reporter
        guard = FiniteGuard(out, steps, reporter)
        trainer.callbacks += [guard, keeper]  # type: ignore[attr-defined]  # what is not finite is noticed before it is kept
        batches = loader(steps, config, device, lambda: module.step)
        module.train_dataloader = lambda: batches  # type: ignore[method-assign]
        if saved is not None:
            try:
                module.resume(saved)
                keeper.load_state_dict(saved["callbacks"][keeper.state_key])
            except (RuntimeError, LookupError, TypeError, ValueError) as error:
                raise unfit(error) from error
        if module.step and budget.progress(module.step) >= 1:
            done, wanted = (budget.spent / 60, settings.minutes) if budget.seconds else (module.step, settings.steps)
            reporter.say(f"nothing is left to train: {done:g} of {wanted:g} {'minutes' if budget.seconds else 'steps'} are done")
            return False
        budget.start()
        try:
            # Several processes are hardly ever asked within the same step, and would wait for each other.
            with _in_words(config, device), stoppable(at_once=trainer.world_size > 1) as module.stopped:
                trainer.fit(module)
        except SystemExit:  # how Lightning leaves after Ctrl-C, once on_exception has run
            if not keeper.interrupted:
                raise
    return keeper.interrupted or module.stopped.is_set()


def _trainer(settings: TrainConfig, device: torch.device, out: Path, done: int) -> L.Trainer:
    """Lightning's, for the steps after the first ``done``, with nothing of its own that is shown, logged or kept."""
    return L.Trainer(
        accelerator=device.type if device.type != "cuda" else "gpu",
        devices=[device.index] if device.index is not None else settings.devices,
        num_nodes=settings.num_nodes,
        strategy="ddp" if settings.devices * settings.num_nodes > 1 else "auto",
        precision="bf16-mixed" if in_bf16(device, settings.precision) else "32-true",
        max_steps=-1 if settings.minutes else max(0, settings.steps - done),
        max_epochs=-1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        plugins=[WholeCheckpoints()],
    )


@contextmanager
def _in_words(config: Config, device: torch.device) -> Iterator[None]:
    """Says what a step asks for where memory is not enough, and only the sentence of what a loader process has raised."""
    train = config.train
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):  # how torch begins where the system ended one
            raise FormatError(
                f"A process that makes training crops was ended by the system ({str(error).splitlines()[0]}): memory is short, or a "
                f"container shares too little of it (docker run --shm-size=8g does); lower train.workers "
                f"({loader_processes(train, device)}) with --set. What was finished so far is kept."
            ) from error
        if not out_of_memory(error):
            raise
        sizes = f"train.batch ({train.batch}), train.unlabeled_batch ({train.unlabeled_batch}) or data.crop ({config.data.crop})"
        remedy = f"lower {sizes} with --set, or choose another --device; what was finished so far is kept"
        raise FormatError(f"{device}: its memory is not enough for a training step of these sizes; {remedy}.") from error
    except FormatError as error:
        if "Traceback" not in str(error):
            raise
        raise FormatError(str(error).rsplit("FormatError: ", 1)[-1].strip()) from None


def loader(steps: TrainingSteps, config: Config, device: torch.device, position: Callable[[], int]) -> DataLoader[Batch]:
    """Gives the steps up to the next multiple of ``val_every``, from wherever the run stands, each time it is gone through.

    Its processes stay for the whole run, and with them the frames that they have decoded: a GPU would wait for them after every validation.
    """
    settings, workers = config.train, loader_processes(config.train, device)
    steps_in_turn = StepRange(position, settings.val_every, NEVER if settings.minutes else settings.steps)
    return DataLoader(
        steps, batch_size=None, sampler=steps_in_turn, num_workers=workers, pin_memory=device.type == "cuda",
        persistent_workers=workers > 0, worker_init_fn=without_ctrl_c,
    )  # fmt: skip


def loader_processes(settings: TrainConfig, device: torch.device) -> int:
    """How many processes make crops: beside a GPU, half of the processors share them out."""
    if settings.workers >= 0 or device.type != "cuda":
        return max(0, settings.workers)
    if "SLURM_CPUS_PER_TASK" in os.environ:
        usable = int(os.environ["SLURM_CPUS_PER_TASK"])
    else:
        all_of_them = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        usable = all_of_them // settings.devices
    return min(8, max(2, usable // 2))

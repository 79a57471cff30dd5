"""The run folder: checkpoints, ``metrics.csv``, validation while training, and at the end pictures and the report."""

from __future__ import annotations

import csv
import datetime
import itertools
import math
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from converters.files import refuse_links, remove_leftovers, written_whole
from converters.labels import FormatError, LabeledFrame
from smp_plugin.checkpoint import Checkpoint, check_version, load_model, save_model
from smp_plugin.config import MIN_SCORE, Config, read_config
from smp_plugin.datasets import Batch, TrainingSteps
from smp_plugin.diagnosis import few_to_validate
from smp_plugin.frame_reader import FrameReader
from smp_plugin.inference import FramePoses, infer
from smp_plugin.machine import machine, memory_in_words
from smp_plugin.metrics import Evaluation, evaluate_poses
from smp_plugin.model import PoseModel
from smp_plugin.preparation import Material, frame_names
from smp_plugin.progress import Reporter, Task
from smp_plugin.report import GalleryItem, write_curves, write_gallery, write_report
from smp_plugin.similarity import MATCH_OKS, MEDIUM_S2, PAPER_S2, SLEAP_S2, animal_areas, found_by, oks, on_boxes
from smp_plugin.unpickling import load_plain

if TYPE_CHECKING:
    from smp_plugin.training import PoseTraining

REPLACED = ("config.yaml", "metrics.csv", "report.html", "curves.png", "val_predictions.png")  # log.txt is added to
SHRINKS = (1.0, 0.75, 0.5)
LOW = 0.02  # a score that hardly any animal has
COLUMNS = (
    "step", "epoch", "seconds", "lr", "phase", "loss", "loss_heatmap", "loss_box", "loss_vector", "loss_quality", "loss_fusion_labeled",
    "loss_fusion_unlabeled", "loss_agreement", "val_ap", "val_ap_s2_0.1", "val_ap_s2_0.0025", "val_pixel_error",
)  # fmt: skip


def dated_folder() -> Path:
    """Where a run is kept that was given no name."""
    return Path("runs") / datetime.datetime.now().strftime("%y%m%d_%H%M%S")


def open_folder(out: Path, new: bool = False) -> Path:
    """Make the run folder, or raise FormatError. Where it has to be ``new``, -2, -3 ... is added to a name that is taken."""
    name = out.name
    try:
        for number in itertools.count(2):
            try:
                out.mkdir(parents=True, exist_ok=not new)
                break
            except FileExistsError:
                if not new:
                    raise
                out = out.with_name(f"{name}-{number}")
        refuse_links(out.iterdir())
        (out / "log.txt").open("a", encoding="utf-8").close()
    except OSError as error:
        raise FormatError(f"-o {out}: it can't be written to ({error.strerror}); choose a folder that you may write to.") from error
    for name in ("model.pt", "last.ckpt"):  # large, and nobody knows whether they will be written again
        remove_leftovers(out / name)
    return out


def refuse_others_files(out: Path) -> None:
    """FormatError where a new run in ``out`` would replace what is no run's, such as the ``config.yaml`` of a DeepLabCut project."""
    settings = out / "config.yaml"
    try:
        ours = settings.exists() and bool(read_config(settings).data.projects)  # which a run's settings always name
    except FormatError:
        ours = False
    if not ours and (others := [path for name in REPLACED if (path := out / name).exists()]):
        raise FormatError(f"-o {out}: the {others[0].name} in it is not of a run and would be replaced; name another folder.")


def read_checkpoint(out: Path) -> dict[str, Any] | None:
    """``last.ckpt`` of a run folder, None where the run was stopped before it. Raises FormatError where the run can't be resumed."""
    path = out / "last.ckpt"
    if not path.exists():
        if (out / "config.yaml").exists():
            return None
        raise FormatError(f"--resume: {out} holds no run to go on with; give the folder of one, or start it without --resume.")
    remedy = "train anew in another folder (model.pt beside it still predicts)"
    try:
        saved = dict(load_plain(path))
    except (ValueError, TypeError) as error:
        raise FormatError(f"--resume: {path} is damaged; {remedy}.") from error
    check_version(f"--resume: {path}", saved)
    if absent := {"state_dict", "optimizer_states", "callbacks", "step", "seconds", "terms", "unlabelled_since", "held_out"} - {*saved}:
        raise FormatError(f"--resume: {path} is damaged (it has no {', '.join(sorted(absent))}); {remedy}.")
    try:
        saved["held_out"] = {(str(folder), str(file), str(group), int(number)) for folder, file, group, number in saved["held_out"]}
    except (TypeError, ValueError) as error:
        raise FormatError(f"--resume: {path} is damaged (it does not say which frames were held out); {remedy}.") from error
    return saved


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way takes a detour through the system's folder for temporary files, where a killed process leaves its checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: object = None) -> None:  # type: ignore[override]
        with written_whole(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # behind which torch hides what the disk said, and Ctrl-C
                raise error.__context__ if isinstance(error.__context__, (OSError, KeyboardInterrupt)) else error from None


class RunFolder(L.Callback):
    """Keeps the run folder: validation, ``metrics.csv``, ``model.pt`` (best), ``last.ckpt``, and when to stop."""

    def __init__(self, out: Path, config: Config, material: Material, steps: TrainingSteps, task: Task, facts: dict[str, object]) -> None:
        self.sigterm = signal.getsignal(signal.SIGTERM)  # before Lightning
        self.out, self.config, self.material, self.steps, self.task, self.facts = out, config, material, steps, task, facts
        self.best, self.best_step, self.interrupted = -math.inf, 0, False
        self.reader = FrameReader(material.videos, 1.0, config.data.cache_gb * 1e9)
        self.val_frames = spread(material.val_frames, config.train.val_frames)
        few = few_to_validate(material.validation)
        self.chooses = bool(self.val_frames) and not few and config.train.keep == "best"  # else the latest model is the one to keep

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "chooses": self.chooses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        alike = state["chooses"] == self.chooses  # else one is a figure of merit, and the other counts steps
        self.best, self.best_step = float(state["best"]) if alike else -math.inf, int(state["best_step"])

    def on_save_checkpoint(self, trainer: L.Trainer, module: PoseTraining, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        checkpoint["held_out"] = [list(name) for name in frame_names(self.material.val_frames, self.material.videos)]

    def on_train_start(self, trainer: L.Trainer, module: PoseTraining) -> None:  # type: ignore[override]
        # Lightning's answer to SIGTERM is to leave after some step, as if all were well.
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread() and self.sigterm is not None:
            signal.signal(signal.SIGTERM, self.sigterm)

    def on_train_batch_start(self, trainer: L.Trainer, module: PoseTraining, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        if module.budget.seconds and module.phase == "unlabelled":
            self.steps.first_unlabeled_step.clamp_(max=module.step)

    def on_train_batch_end(self, trainer: L.Trainer, module: PoseTraining, *_: object) -> None:  # type: ignore[override]
        self.task.update(module.budget.elapsed if module.budget.seconds else module.step, step=module.step, phase=module.phase)
        if module.budget.progress(module.step) >= 1:  # in several processes at the same step: they agree on the time
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
            score = float(module.step)
            if self.val_frames:
                started = time.monotonic()
                chosen_by, figures = self.validate(module)
                row |= figures
                if self.chooses:
                    score = chosen_by
                else:
                    module.budget.started += time.monotonic() - started
            if not score < self.best:
                self.best, self.best_step = score, module.step
                self.save(module)
            append_row(self.out / "metrics.csv", row)
        trainer.save_checkpoint(self.out / "last.ckpt")
        if module.stopped.is_set():
            raise KeyboardInterrupt

    def validate(self, module: PoseTraining) -> tuple[float, dict[str, object]]:
        """The figure models are chosen by (the mean of `judged_ap` at s2 = 1, .1 and .0025), and the columns of metrics.csv."""
        found = predict_frames(module.teacher, self.val_frames, self.reader, _uncut(self.config), module.typical)
        poses, names = [(f.poses, f.scores) for f in found], self.material.skeleton.keypoints
        result = evaluate_poses(truth_of(self.val_frames), poses, names, partial=self.material.val_partial)
        ap = judged_ap(result)
        figures = {
            "val_ap": ap[PAPER_S2],
            "val_ap_s2_0.1": ap[MEDIUM_S2],
            "val_ap_s2_0.0025": ap[SLEAP_S2],
            "val_pixel_error": result.pixel_error[50],
        }
        self.task.update(module.budget.elapsed if module.budget.seconds else module.step, step=module.step, AP=f"{ap[PAPER_S2]:.3f}")
        return float(np.mean(list(ap.values()))), {k: f"{v:.4f}" for k, v in figures.items()}

    def save(self, module: PoseTraining) -> None:
        """The moving average of the weights as model.pt."""
        (self.out / "report.html").unlink(missing_ok=True)  # from before the run was resumed: it says that model.pt is a finished one
        facts = self.facts | {"step": self.best_step, "minutes": round(module.budget.elapsed / 60, 2)}
        save_model(self.out / "model.pt", Checkpoint(module.teacher, self.config, self.material.skeleton, module.typical, facts))

    def on_exception(self, trainer: L.Trainer, module: PoseTraining, exception: BaseException) -> None:  # type: ignore[override]
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        if not self.interrupted or not trainer.is_global_zero or not module.step:
            return
        if not (self.out / "model.pt").exists() or (module.between_steps and not self.chooses):
            self.best_step = module.step
            self.best = -math.inf if self.chooses else float(module.step)
            self.save(module)
        if module.between_steps:
            trainer.save_checkpoint(self.out / "last.ckpt")


def spread(frames: list[LabeledFrame], most: int) -> list[LabeledFrame]:
    """At most so many frames, evenly spread."""
    return frames if len(frames) <= most else [frames[i] for i in np.linspace(0, len(frames) - 1, most).round().astype(int)]


def truth_of(frames: list[LabeledFrame]) -> list[np.ndarray]:
    """Per frame the labelled animals, (n, K, 2) frame pixels."""
    return [np.stack([i.points for i in f.instances]) if f.instances else np.zeros((0, 1, 2)) for f in frames]


def predict_frames(model: PoseModel, frames: list[LabeledFrame], reader: FrameReader, config: Config, typical: float) -> list[FramePoses]:
    """Predictions for labelled frames that can be judged by the labels, one by one: frames of a project may differ in size."""
    scale, precision = config.data.input_scale, config.train.precision
    found = [infer(model, reader.get(f.video, f.index)[0][None], scale, config.predict, typical, precision)[0] for f in frames]
    left_out = on_boxes(truth_of(frames), [p.poses for p in found], [f.unposed for f in frames])
    return [FramePoses(p.poses[~out], p.scores[~out], p.point_scores[~out]) for p, out in zip(found, left_out, strict=True)]


def _uncut(config: Config) -> Config:
    """For figures that weigh scores by themselves: the same with animals of every score, also where a cut was chosen or asked for."""
    return replace(config, predict=replace(config.predict, min_score=0.0))


def append_row(path: Path, row: dict[str, object]) -> None:
    """Add a line to metrics.csv; lines of a longer run that was cut off are dropped first, so that steps rise."""
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if int(r["step"]) < int(str(row["step"]))]
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, row])


def choose_min_score(truth: list[np.ndarray], found: list[FramePoses], partial: bool) -> float:
    """The score from which animals are kept: the middle (geometric mean) of those that serve well, .1 where none does.

    On frames that were learnt by heart many serve, and on others animals score lower: there the lowest of them is still what many
    inventions reach, and half of it, the rule before, what four times as many do (``benchmarks/results/cuts.json``).
    """
    good = good_cuts(truth, found, partial)
    return max(0.001, round(math.sqrt(good[0] * good[1]), 3)) if good else MIN_SCORE


def good_cuts(truth: list[np.ndarray], found: list[FramePoses], partial: bool) -> tuple[float, float] | None:
    """The lowest and the highest score that serve well as cut: within .01 of the best F1, the harmonic mean of precision and recall; where
    labels are partial, within 1 % of the best geometric mean of both. From there to the best none costs more than three times as much: the
    middle is to serve, too. None where no animal is found.

    Where animals have no label precision is not known, but it is recall, times how many animals there are, over the number of detections
    kept; so recall squared over that number is largest where the geometric mean is (Lee and Liu, ICML 2003).
    The lowest is where the next detection would be kept as well: a few animals that all stand out say little about how low others score.

    ``truth``: (n, K, 2) per frame; ``found``: best first. An animal is found by a pose of OKS (s2 = .1) .3 or more.
    """
    scores, right = [], []
    for labelled, frame, area in zip(truth, found, animal_areas(truth), strict=True):
        hits = found_by(oks(labelled, frame.poses, area, MEDIUM_S2), MATCH_OKS)
        scores += frame.scores.tolist()
        right += [i in hits for i in range(len(frame.scores))]
    order = np.argsort(scores)[::-1]
    ranked, hits_so_far = np.array(scores)[order], np.cumsum(np.array(right)[order])
    if not len(ranked) or not hits_so_far[-1]:
        return None
    kept = np.arange(1, len(ranked) + 1)
    if partial:
        merit = hits_so_far / np.sqrt(kept)
        merit = merit / merit.max()
    else:
        merit = 2 * hits_so_far / (kept + sum(len(t) for t in truth))  # F1
    cost = merit.max() - merit
    best, bad = cost.argmin(), np.flatnonzero(cost > 0.03)
    first, behind = bad[bad < best].max(initial=-1) + 1, bad[bad > best].min(initial=len(ranked))
    good = first + np.flatnonzero(cost[first:behind] <= 0.01)
    below = np.append(ranked, min(ranked[-1], LOW))
    return float(below[good[-1] + 1]), float(ranked[good[0]])


def watched(kept: Checkpoint, material: Material, reader: FrameReader) -> tuple[list[np.ndarray], list[FramePoses]]:
    """Training frames, labels and predictions: what may choose where validation frames may not, or not alone."""
    frames = spread(material.frames, kept.config.train.val_frames)
    return truth_of(frames), predict_frames(kept.model, frames, reader, _uncut(kept.config), kept.typical_length)


def judged_ap(result: Evaluation) -> dict[float, float]:
    """AP by s2; where labels are partial, without the predictions that may be of animals without a label."""
    return {s2: figures.ap for s2, figures in (result.partial.ap if result.partial else result.ap).items()}


def shrunk(kept: Checkpoint, frames: list[LabeledFrame], reader: FrameReader, partial: bool = False) -> dict[str, float]:
    """AP (s2 = .1) of the animals kept where frames are read at a share of their size, by that share: ``smp-predict --fast`` chooses."""
    figures = {}
    for share in SHRINKS:
        config = replace(kept.config, predict=replace(kept.config.predict, shrink=share))
        found = predict_frames(kept.model, frames, reader, config, kept.typical_length)
        poses = [(f.poses, f.scores) for f in found]
        figures[str(share)] = judged_ap(evaluate_poses(truth_of(frames), poses, kept.skeleton.keypoints, partial=partial))[MEDIUM_S2]
    return figures


def with_counts(result: Evaluation, counted: Evaluation) -> Evaluation:
    """``result`` with the counts of ``counted``: AP weighs scores by itself, but what a person will see missed depends on the cut."""
    counts = ("missed", "invented", "doubled", "predictions", "swapped_pairs", "symmetric_pairs")
    merged = replace(result, **{name: getattr(counted, name) for name in counts})
    if result.partial and counted.partial:
        merged = replace(merged, partial=replace(counted.partial, ap=result.partial.ap, deeplabcut=result.partial.deeplabcut))
    return merged


def finish(out: Path, config: Config, material: Material, device: torch.device, reporter: Reporter) -> None:
    """The score from which the best model's animals are kept, pictures, and the report."""
    choices, warnings = reporter.take()
    if not (out / "model.pt").exists():
        return
    kept = load_model(out / "model.pt")
    kept.model.to(device)
    may_choose = material.val_frames and config.train.keep == "best"
    frames = spread(material.val_frames or material.frames, config.train.val_frames)
    reader = FrameReader(material.videos, 1.0, config.data.cache_gb * 1e9)
    predict_frames(kept.model, frames[:1], FrameReader(material.videos, 1.0), kept.config, kept.typical_length)  # warms up, not timed
    started = time.perf_counter()
    found = predict_frames(kept.model, frames, reader, _uncut(kept.config), kept.typical_length)
    rate = len(frames) / (time.perf_counter() - started)
    truth = truth_of(frames)
    if kept.config.predict.min_score == 0:
        partial = material.val_partial if may_choose else material.partial
        labelled, predicted = (truth, found) if may_choose or not material.val_frames else ([], [])
        if material.val_frames and (partial or not may_choose):  # validation frames with partial labels hold too few
            more = watched(kept, material, reader)
            labelled, predicted = labelled + more[0], predicted + more[1]
        kept.config.predict.min_score = choose_min_score(labelled, predicted, partial)
        reason = "most labelled animals are kept, and least else" if partial else "the fewest animals are missed or invented"
        reporter.say(f"--min-score: {kept.config.predict.min_score:g} by default, where {reason}")
        save_model(out / "model.pt", kept)
    if may_choose and "shrunk" not in kept.facts:
        kept.facts["shrunk"] = shrunk(kept, frames, reader, material.val_partial)
        save_model(out / "model.pt", kept)
    rules: dict[str, Any] = {"symmetries": material.skeleton.symmetries, "partial": material.val_partial}
    result = evaluate_poses(truth, [(f.poses, f.scores) for f in found], material.skeleton.keypoints, **rules)
    kept_only = [f.poses[f.scores >= kept.config.predict.min_score] for f in found]
    counted = evaluate_poses(truth, [(p, np.ones(len(p))) for p in kept_only], material.skeleton.keypoints, **rules)
    result = with_counts(result, counted)
    items = [
        GalleryItem(
            reader.get(f.video, f.index)[0].permute(1, 2, 0).numpy(), t, drawn,
            evaluate_poses([t], [(p.poses, p.scores)], material.skeleton.keypoints).ap[MEDIUM_S2].ap,
            material.videos[f.video].title(f.index),
        )
        for f, t, p, drawn in zip(frames, truth, found, kept_only, strict=True)
    ]  # fmt: skip
    if (out / "metrics.csv").exists():
        write_curves(out / "metrics.csv", out / "curves.png")
    write_gallery(out / "val_predictions.png", items, material.skeleton)
    what = "validation frames" if material.val_frames else "training frames"
    data = {
        "Projects": ", ".join(map(str, kept.facts["projects"])),  # type: ignore[call-overload]
        "Keypoints": ", ".join(material.skeleton.keypoints),
        "Labelled frames, animals": f"{len(material.frames)}, {sum(len(f.instances) for f in material.frames)}",
        "Validation frames": len(material.val_frames),
        "Unlabelled frames": f"{len(material.pool):,}",
        "Model kept": f"of step {kept.facts['step']}, after {kept.facts['minutes']} min of training",
        "Machine": machine(),
        "Prediction": f"{rate:.1f} frames/s of {len(frames)} {what}, one by one and reading included (smp-predict takes several at once)",
        "Memory at its peak, training included": memory_in_words(),
    }
    judged = what if material.val_frames else f"{what} (there are no validation frames, so these figures flatter)"
    write_report(out, title=out.name, data=data, choices=choices, evaluation=result, warnings=warnings, on=judged)
    ap = judged_ap(result)
    rule = " by the rule for partial labels" if material.val_partial else ""
    reporter.say(f"AP{rule} on {len(frames)} {judged}: {ap[PAPER_S2]:.3f} (s2 = 1), {ap[MEDIUM_S2]:.3f} (.1), {ap[SLEAP_S2]:.3f} (.0025)")
    reporter.say(f"model: {out / 'model.pt'}; report: {out / 'report.html'}")

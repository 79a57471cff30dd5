"""SLEAP's bottom-up and top-down models, trained and run by sleap-nn itself with the settings of SLEAP's own training profiles.

The profiles are those of the SLEAP GUI 1.6 (``baseline_medium_rf.bottomup``, ``baseline.centroid``, ``baseline_medium_rf.topdown``). What
differs, each in SLEAP's favour or because a budget is asked for: every labelled frame is trained on (the profile holds a tenth out), the
run ends with the budget and its last weights are kept, validation takes no time of it, and on a CPU, where a budget is a few hundred steps,
large frames are halved for the bottom-up model, and the learning rate is that of sleap-nn's ``train()``, ten times the profiles'. Top-down
models have the profiles' scales: centroids from halved frames, poses from crops at full size. sleap-nn works in single precision.
``job.settings`` that begin with ``sleap.`` overrule any of it.

Traps: sleap-nn has no wall-clock cap; its steps an epoch have a minimum of their own; checkpoints exist for whole epochs only; the profiles
open ports for the GUI. Frames that a prediction file lacks are not counted by its own evaluator, so every frame is written here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters import FormatError, Labels, read_project, write_project
from converters.video import open_video
from smp_plugin.baselines import CurvePoint, Job, Outcome, Unavailable, curve_point, peer_settings

EPOCH = 200  # steps, as in the profiles; after each the learning rate may fall
CENTROID_SHARE = 1 / 3  # of a wall-clock budget: a centroid step costs less, and centroids are found long before poses are exact
LARGE_FRAME = 640 * 640  # px; larger frames are halved on a CPU, where a step on them takes many seconds
GEOMETRY = {"rotation_min": -180.0, "rotation_max": 180.0, "scale_min": 0.9, "scale_max": 1.1, "affine_p": 1.0}
# Peaks of less are left out for AP, of centroids or of all points, and of the points of a crop. sleap-nn's own threshold, .2 for both,
# takes points away from animals that were found, by which AP counts them as wrong; young networks are unsure of all of them.
UNSURE = (0.05, 0.0)
Head = dict[str, Any]


def run(job: Job) -> Outcome:
    """Train and predict.

    Raises:
        Unavailable: sleap-nn is not installed.
    """
    try:
        import sleap_nn
    except ImportError as error:
        raise Unavailable(f"{job.method} needs sleap-nn, which is not installed: pip install 'smp-plugin[sleap]'") from error
    from smp_plugin.devices import choose_device

    _hush()
    job = replace(job, device=str(choose_device(job.device)[0]))  # once, for training and prediction
    job = replace(job, train=_as_slp(job.train, job.folder), val=_as_slp(job.val, job.folder))
    shutil.rmtree(_models(job), ignore_errors=True)  # of a run that was interrupted
    on_cpu = job.device == "cpu"
    scale = _scale(read_project(job.train), on_cpu) if job.method == "sleap-bottomup" else 1.0
    parts = list(_networks(job, scale))
    steps, seconds = 0, 0.0
    snapshots: list[list[_Snapshot]] = []
    for name, backbone, head, part_scale, share in parts:
        clock = _train(job, name, _settings(job, name, backbone, head, part_scale, 1e-3 if on_cpu else 1e-4), share)
        steps, seconds = steps + clock.step, seconds + clock.elapsed
        snapshots.append(clock.snapshots)
    models = [_models(job) / name for name, *_ in parts]
    predict_seconds, frames = _predict(job, models, job.predictions)
    _predict(job, models, job.everything, UNSURE[: len(models)])
    curve = _curve(job, [name for name, *_ in parts], snapshots)
    if job.curve:
        curve.append(curve_point(job, job.everything, seconds, steps))
    shutil.rmtree(_models(job) / "snapshots", ignore_errors=True)
    notes = [
        f"settings of SLEAP's own profile ({', '.join(name for name, *_ in parts)}), all labelled frames trained on, last weights kept",
        "validation takes no time of the budget; single precision, sleap-nn has no other",
    ]
    if scale != 1:
        notes.append("large frames halved, as a CPU needs several seconds a step at full size")
    if on_cpu:
        notes.append("learning rate .001 (sleap-nn's train()), as few steps fit a budget on a CPU; the profiles' is .0001")
    if len(parts) == 2:
        notes.append("the centroid network has a third of the time, the network of the pose the rest" if job.minutes else "")
    return Outcome(f"sleap-nn {sleap_nn.__version__}", steps, seconds, predict_seconds, frames, [n for n in notes if n], curve)


def _as_slp(path: Path, folder: Path) -> Path:
    """The same labels as a SLEAP project, the only format that sleap-nn reads; in ``folder``, unless they are one."""
    if path.suffix == ".slp":
        return path
    converted = folder / f"{path.stem}.slp"
    write_project(converted, read_project(path))
    return converted


def _models(job: Job) -> Path:
    return job.folder / "models"


def _hush() -> None:
    """sleap-nn prints the whole configuration, the network and a line for each refresh of a progress bar."""
    logging.disable(logging.INFO)
    with contextlib.suppress(ImportError):
        from loguru import logger

        logger.remove()


def _scale(learnt: Labels, on_cpu: bool) -> float:
    """Factor on the input of the bottom-up network, whose profile asks for full size. FormatError where there is nothing for it to join."""
    if not learnt.skeleton.edges:
        raise FormatError("sleap-bottomup joins keypoints along the skeleton's edges, and it has none; draw some, or leave the method out.")
    if not on_cpu:
        return 1.0
    largest = 0
    for number in {frame.video for frame in learnt.labelled_frames}:
        indices = [frame.index for frame in learnt.labelled_frames if frame.video == number]
        with open_video(learnt.videos[number]) as video:
            for index in indices[:1] if learnt.videos[number].kind == "file" else indices:  # photographs may differ in size
                height, width = video.read(index).shape[:2]
                largest = max(largest, height * width)
    return 0.5 if largest > LARGE_FRAME else 1.0


def _networks(job: Job, scale: float) -> Iterator[tuple[str, dict[str, Any], Head, float, float]]:
    """Name, UNet, heads, input scale and share of the time of each network of the method."""
    if job.method == "sleap-bottomup":
        head: Head = {
            "bottomup": {
                "confmaps": {"part_names": None, "sigma": 2.5, "output_stride": 4, "loss_weight": 1.0},
                "pafs": {"edges": None, "sigma": 75.0, "output_stride": 8, "loss_weight": 1.0},
            }
        }
        yield "bottomup", _unet(16, 32, 4), head, scale, 1.0
        return
    centroid: Head = {"centroid": {"confmaps": {"anchor_part": None, "sigma": 2.5, "output_stride": 2}}}
    pose: Head = {"centered_instance": {"confmaps": {"part_names": None, "anchor_part": None, "sigma": 2.5, "output_stride": 4}}}
    yield "centroid", _unet(16, 16, 2), centroid, 0.5, CENTROID_SHARE
    yield "centered_instance", _unet(24, 16, 4), pose, 1.0, 1 - CENTROID_SHARE


def _unet(filters: int, max_stride: int, output_stride: int) -> dict[str, Any]:
    return {"unet": {"filters": filters, "filters_rate": 2.0, "max_stride": max_stride, "output_stride": output_stride, "kernel_size": 3}}


def _settings(job: Job, name: str, backbone: dict[str, Any], head: Head, scale: float, rate: float) -> dict[str, Any]:
    """One network's configuration, as a profile of the GUI says it, but for the learning rate."""
    epochs = max(1, -(-job.steps // EPOCH)) if not job.minutes else 10**6
    kind, _, number = job.device.partition(":")
    return {
        "data_config": {
            "train_labels_path": [str(job.train)],
            "use_same_data_for_val": True,
            "user_instances_only": True,
            "data_pipeline_fw": "torch_dataset_cache_img_memory",
            "preprocessing": {"scale": scale, "crop_size": None, "min_crop_size": 100},
            "use_augmentations_train": True,
            "augmentation_config": {"geometric": GEOMETRY},
        },
        "model_config": {"backbone_config": backbone, "head_configs": head},
        "trainer_config": {
            "train_data_loader": {"batch_size": 4, "shuffle": True, "num_workers": 0},
            "val_data_loader": {"batch_size": 4, "shuffle": False, "num_workers": 0},
            "trainer_accelerator": {"cuda": "gpu"}.get(kind, kind),
            "trainer_devices": 1,
            "trainer_device_indices": [int(number or 0)] if kind == "cuda" else None,  # else sleap-nn takes the emptiest GPU
            "min_train_steps_per_epoch": EPOCH,
            "train_steps_per_epoch": EPOCH,
            "max_epochs": epochs,
            "early_stopping": {"stop_training_on_plateau": False},  # which sleap-nn does after ten epochs unless told otherwise
            "seed": job.seed,
            "enable_progress_bar": False,
            "visualize_preds_during_training": False,
            "save_ckpt": True,
            "ckpt_dir": str(_models(job)),
            "run_name": name,
            "optimizer_name": "Adam",
            "optimizer": {"lr": rate, "amsgrad": False},
            "lr_scheduler": {"reduce_lr_on_plateau": {
                "threshold": 1e-6, "threshold_mode": "abs", "cooldown": 3, "patience": 5, "factor": 0.5, "min_lr": 1e-8,
            }},
            "zmq": {"controller_port": None, "publish_port": None},
        },
    }  # fmt: skip


class _Snapshot:
    """Weights of an unfinished network, and when they stood so."""

    def __init__(self, path: Path, seconds: float, step: int) -> None:
        self.path, self.seconds, self.step = path, seconds, step


class _Clock:
    """Ends a run with its budget and keeps weights on the way; the rest of Lightning's callback protocol is inherited when it is used."""

    def __init__(self, job: Job, name: str, share: float) -> None:
        self.seconds, self.steps = 60 * job.minutes * share, 0 if job.minutes else job.steps
        self.marks = [(i + 1) / job.curve for i in range(job.curve - 1)] if job.curve else []
        self.folder = _models(job) / "snapshots" / name
        self.snapshots: list[_Snapshot] = []
        self.started = self.elapsed = self.aside = self.paused = 0.0
        self.step = 0

    def begin(self) -> None:
        self.started = time.monotonic()

    def pause(self) -> None:
        """Validation takes no time of the budget, here as in our own runs."""
        self.paused = time.monotonic()

    def go_on(self) -> None:
        if self.started:  # not in the trial run of a validation, before training
            self.aside += time.monotonic() - self.paused

    def tick(self, step: int, save: Callable[[Path], None]) -> bool:
        """Is the budget spent? Saving a snapshot takes no time of it."""
        now = time.monotonic()
        self.step, self.elapsed = step, now - self.started - self.aside
        progress = self.elapsed / self.seconds if self.seconds else step / self.steps
        if self.marks and progress >= self.marks[0]:
            while self.marks and progress >= self.marks[0]:
                self.marks.pop(0)
            path = self.folder / f"{step}.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path)
            self.snapshots.append(_Snapshot(path, self.elapsed, step))
            self.aside += time.monotonic() - now
        return progress >= 1


def _train(job: Job, name: str, settings: dict[str, Any], share: float) -> _Clock:
    """sleap-nn's own trainer with one more callback. What it trains ends as ``best.ckpt``, where its predictor looks."""
    import lightning
    from omegaconf import OmegaConf
    from sleap_nn.training import model_trainer

    clock = _Clock(job, name, share)

    class Callback(lightning.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            clock.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if clock.tick(trainer.global_step, lambda path: trainer.save_checkpoint(path, weights_only=True)):
                raise _Spent

        def on_validation_start(self, *_: Any) -> None:
            clock.pause()

        def on_validation_end(self, *_: Any) -> None:
            clock.go_on()

    made = lightning.Trainer

    def with_clock(*args: Any, callbacks: list[Any] | None = None, **options: Any) -> Any:
        return made(*args, callbacks=[*(callbacks or []), Callback()], **options)

    vars(lightning)["Trainer"] = with_clock  # the one place where sleap-nn takes no callbacks of ours
    try:
        configuration = OmegaConf.create(settings)
        for key, value in peer_settings(job.settings, "sleap.").items():
            OmegaConf.update(configuration, key, value)
        trainer = model_trainer.ModelTrainer.get_model_trainer_from_config(configuration)
        with contextlib.suppress(_Spent), open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            trainer.train()
    finally:
        vars(lightning)["Trainer"] = made
    trainer.trainer.save_checkpoint(_models(job) / name / "best.ckpt", weights_only=True)
    return clock


class _Spent(Exception):
    """The budget is spent. Lightning's own flag would train on to the end of the epoch."""


def _predict(job: Job, models: list[Path], output: Path, thresholds: tuple[float, ...] = ()) -> tuple[float, int]:
    """Seconds and frames; model loading and the first batch are not timed. ``thresholds``: of each network's peaks; (): sleap-nn's own."""
    import sleap_io
    from sleap_nn.inference import Predictor

    cut = {"peak_threshold": list(thresholds) if len(thresholds) > 1 else thresholds[0]} if thresholds else {}
    predictor = Predictor.from_model_paths([str(m) for m in models], device=job.device, batch_size=4, **cut)
    wanted = sleap_io.load_slp(str(job.val))
    places = [(frame.video, frame.frame_idx) for frame in wanted.labeled_frames]
    bare = sleap_io.Labels(
        [sleap_io.LabeledFrame(video=v, frame_idx=i) for v, i in places], videos=wanted.videos, skeletons=wanted.skeletons
    )
    predictor.predict(sleap_io.Labels(bare.labeled_frames[:4], videos=bare.videos, skeletons=bare.skeletons))
    started = time.monotonic()
    found = predictor.predict(bare)
    found.save(str(output), verbose=False)
    return time.monotonic() - started, len(places)


def _curve(job: Job, names: list[str], snapshots: list[list[_Snapshot]]) -> list[CurvePoint]:
    """AP of the snapshots; of a top-down method the pairs taken at the same share of each network's time."""
    points = []
    for number, stage in enumerate(zip(*snapshots, strict=False)):
        folders = []
        for name, snapshot in zip(names, stage, strict=True):
            folder = _models(job) / "snapshots" / f"{number}_{name}"
            folder.mkdir(parents=True)
            shutil.copy(_models(job) / name / "training_config.yaml", folder)
            os.replace(snapshot.path, folder / "best.ckpt")
            folders.append(folder)
        output = _models(job) / "snapshots" / f"{number}.slp"
        _predict(job, folders, output, UNSURE[: len(folders)])
        points.append(curve_point(job, output, sum(s.seconds for s in stage), sum(s.step for s in stage)))
    return points

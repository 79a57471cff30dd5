"""SemiMultiPose and its ablations, with the settings of a preset."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import replace
from pathlib import Path

from converters import LabeledFrame, Labels, PredictedInstance, VideoSource, read_project, write_predictions, write_project
from converters.video import open_video
from smp_plugin import __version__
from smp_plugin.baselines import CurvePoint, Job, Outcome, own_settings
from smp_plugin.checkpoint import Checkpoint, load_model
from smp_plugin.config import preset, set_value
from smp_plugin.devices import choose_device, in_bf16
from smp_plugin.predictor import Predictor
from smp_plugin.progress import Reporter
from smp_plugin.training import train

SETTINGS: dict[str, dict[str, object]] = {
    "directpose": {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.agreement": 0.0, "loss.fill": False},  # L_a + L_b + L_d
    "smp-labeled": {"loss.beta": 0.0, "loss.agreement": 0.0, "loss.fill": False},  # + L_fl
    "smp": {},  # + L_fu, agreement with the teacher and, where labels are partial, gaps filled by it
}
NO_POOL = "No unlabelled frames were there to learn from (all are labelled, or their video is missing): the figures say nothing of them."
TOO_SHORT = (
    "No unlabelled frame was learnt from, as they count from step {} (train.unlabeled_first_step), which was not reached: the figures say "
    "nothing of them."
)


def run(job: Job) -> Outcome:
    """Train and predict; a run that was interrupted goes on from its last checkpoint, or begins anew where it has none."""
    device, _ = choose_device(job.device)
    config, chosen = preset(job.preset, cuda=device.type == "cuda")
    between = math.ceil(job.steps / max(job.curve, 1)) if not job.minutes else 500 if device.type == "cuda" else 100
    settings: dict[str, object] = {
        "train.val_every": between,
        "train.val_frames": max(config.train.val_frames, len(read_project(job.val).labelled_frames)),  # all, as for peers
        **own_settings(job.settings),
        # What makes the method, and the comparison a fair one, is not for the user to set.
        "data.val_fraction": 0.0, "train.seed": job.seed, "train.device": job.device, "train.keep": "last", **SETTINGS[job.method],
        "train.minutes": job.minutes, "train.steps": job.steps or config.train.steps,  # by minutes it is the preset's, for the warm-up
        **({"data.supplement": str(job.supplement)} if job.supplement else {}),
    }  # fmt: skip
    for key, value in settings.items():
        set_value(config, key, value)
    out = job.folder / "run"
    train([job.train], config=config, out=out, val=job.val, resume=(out / "config.yaml").exists(), reporter=Reporter())
    checkpoint = load_model(out)
    made = checkpoint.config
    precision = "mixed bf16" if in_bf16(device, made.train.precision) else "single precision"
    curve = _curve(out / "metrics.csv")
    steps, trained = curve[-1].step, curve[-1].seconds
    pool = checkpoint.facts["unlabelled_frames"]
    warnings = [NO_POOL] if job.method == "smp" and not pool else []
    unlabelled = [f"{pool:,} unlabelled frames"] if job.method == "smp" and pool else []
    if unlabelled and steps <= made.train.unlabeled_first_step:
        warnings.append(TOO_SHORT.format(made.train.unlabeled_first_step))
    scaled = f"frames scaled by {made.data.input_scale:g}, as suits the animals' size; {precision}"
    notes = [chosen, str(checkpoint.facts["weights"]), *unlabelled, scaled]
    seconds, frames, cut = _predict(job, checkpoint, out)
    return Outcome(f"smp-plugin {__version__}", steps, trained, seconds, frames, notes, curve, min_score=cut, warnings=warnings)


def _predict(job: Job, checkpoint: Checkpoint, run_folder: Path) -> tuple[float, int, float]:
    """Seconds, frames, and the score from which animals would be kept. The first batch, which warms up, is not timed."""
    cut, checkpoint.config.predict.min_score = checkpoint.config.predict.min_score, 0.0
    predictor, labels = Predictor(checkpoint, choose_device(job.device)[0]), read_project(job.val)
    frames = labels.labelled_frames
    with open_video(labels.videos[frames[0].video]) as video:
        predictor(predictor.images([video.read(frames[0].index)]))
    started = time.monotonic()
    predicted = []
    for number, source in enumerate(labels.videos):
        wanted = sorted(f.index for f in frames if f.video == number)
        if not wanted:
            continue
        with open_video(source) as video:
            for index, _, found in predictor.stream(video.read_many(wanted)):
                animals = [
                    PredictedInstance(p, score=s, point_scores=q)
                    for p, s, q in zip(found.poses, found.scores, found.point_scores, strict=True)
                ]
                predicted.append(LabeledFrame(number, index, predicted=animals))
    if job.predictions.suffix == ".json":  # which then lists the images that were predicted, and no others
        images = VideoSource(tuple(labels.videos[frame.video].paths[frame.index] for frame in predicted))
        listed = [replace(frame, video=0, index=index) for index, frame in enumerate(predicted)]
        write_project(job.predictions, Labels(checkpoint.skeleton, [images], listed), predicted=True)
    else:
        write_predictions(job.predictions, checkpoint.skeleton, labels.videos, predicted, {"model": str(run_folder)})
    return time.monotonic() - started, len(frames), cut


def _curve(metrics: Path) -> list[CurvePoint]:
    """From the run's own record of its validation frames."""
    columns = {"1": "val_ap", "0.1": "val_ap_s2_0.1", "0.0025": "val_ap_s2_0.0025"}
    with metrics.open(newline="", encoding="utf-8") as file:
        return [
            CurvePoint(float(row["seconds"]), int(row["step"]), row["phase"], {s2: float(row[name]) for s2, name in columns.items()})
            for row in csv.DictReader(file)
        ]

"""What SLEAP and DeepLabCut say themselves of the same poses, by their own code, where they are installed.

They are imported only when asked for: that takes seconds. Their figures are given as they are, and why they differ from ours is said here.

*sleap-nn* (``sleap_nn.evaluation.Evaluator``, stddev .025). Only predictions that are matched enter precision, so what is invented or
doubled is free, unless its score is higher and it takes an animal, at any OKS above 0, from the right prediction; frames marked as empty
and labelled frames that are absent from the predictions are not counted (frames present without a prediction are).

*DeepLabCut* (``deeplabcut.core.metrics.compute_metrics``, sigma .1): ``average_precision.deeplabcut_ap`` says the same without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.labels import PredictedInstance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PACKAGES = {"sleap-nn": ("sleap_nn", "sleap"), "deeplabcut": ("deeplabcut", "dlc")}  # name -> module, our extra


@dataclass(frozen=True)
class PeerFrame:
    """One labelled frame. ``predicted`` is None where the predictions lack the frame."""

    truth: Array  # (n, K, 2) frame pixels, NaN where not labelled; n = 0 where it is known that there are none
    predicted: list[PredictedInstance] | None  # in the same K keypoints


def installed() -> list[str]:
    """Which of the peers are there, by name; nothing is imported."""
    return [name for name, (module, _) in PACKAGES.items() if importlib.util.find_spec(module) is not None]


def remedy(name: str) -> str:
    """How to get a peer that is not there."""
    return f"{name} is not installed (pip install 'smp-plugin[{PACKAGES[name][1]}]')"


def peer_figures(name: str, frames: Sequence[PeerFrame]) -> tuple[str, dict[str, float]]:
    """A peer's name with its version, and its figures: shares in [0, 1], NaN where it has none."""
    measure = {"sleap-nn": _sleap, "deeplabcut": _deeplabcut}[name]
    with contextlib.redirect_stdout(sys.stderr):  # they greet; stdout may be JSON
        return f"{name} {version(name)}", measure(frames)


def _sleap(frames: Sequence[PeerFrame]) -> dict[str, float]:
    import sleap_io as sio
    from sleap_nn.evaluation import Evaluator

    if not any(not np.isnan(frame.truth).all() and frame.predicted is not None for frame in frames):
        return {"mAP": math.nan, "mAR": math.nan, "mOKS": math.nan, "PCK@5": math.nan}  # its Evaluator can't be made
    keypoints = next(frame.truth.shape[1] for frame in frames)
    skeleton, video = sio.Skeleton([f"k{n}" for n in range(keypoints)]), sio.Video(filename="frames.mp4", open_backend=False)
    sides: list[list[Any]] = [[], []]
    for index, frame in enumerate(frames):
        animals = [sio.Instance.from_numpy(points, skeleton=skeleton) for points in frame.truth if not np.isnan(points).all()]
        sides[0].append(sio.LabeledFrame(video=video, frame_idx=index, instances=animals))
        if frame.predicted is not None:
            found = [sio.PredictedInstance.from_numpy(p.points, skeleton=skeleton, score=p.score) for p in frame.predicted]
            sides[1].append(sio.LabeledFrame(video=video, frame_idx=index, instances=found))
    truth, guess = (sio.Labels(labeled_frames=side, videos=[video], skeletons=[skeleton]) for side in sides)
    result = Evaluator(truth, guess).evaluate()
    voc, pck = result["voc_metrics"], result["pck_metrics"]
    figures = {"mAP": voc["oks_voc.mAP"], "mAR": voc["oks_voc.mAR"], "mOKS": result["mOKS"]["mOKS"], "PCK@5": pck["PCK@5"]}
    return {key: float(value) for key, value in figures.items()}


def _deeplabcut(frames: Sequence[PeerFrame]) -> dict[str, float]:
    from deeplabcut.core.metrics import compute_metrics

    if not any((~np.isnan(frame.truth[..., 0])).sum(axis=1).max(initial=0) > 1 for frame in frames):
        return {"mAP": math.nan, "mAR": math.nan, "rmse": math.nan}  # it would divide by zero
    truth, guess = {}, {}
    for index, frame in enumerate(frames):
        seen = ~np.isnan(frame.truth[..., :1])
        truth[str(index)] = np.concatenate([frame.truth, np.where(seen, 2.0, 0.0)], axis=-1)
        found = frame.predicted or []
        tables = [np.concatenate([p.points, np.where(p.labelled, p.point_scores, np.nan)[:, None]], axis=1) for p in found]
        guess[str(index)] = np.stack(tables) if tables else np.empty((0, frame.truth.shape[1], 3))
    result = compute_metrics(truth, guess, compute_detection_rmse=False)
    return {"mAP": result["mAP"] / 100, "mAR": result["mAR"] / 100, "rmse": float(result["rmse"])}

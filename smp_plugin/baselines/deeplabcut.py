"""DeepLabCut's networks (``dlc-*``), trained and run by DeepLabCut 3 itself, with the settings that it recommends for each.

What is settled here, and nothing else: which frames are learned from, when training ends, that its end is kept (neither the best snapshot
on some frames nor any other choice), and how poses come back. Frames reach DeepLabCut as a multi-animal project; of the frames to predict
it gets the images and the number of animals, never a position. Such a project has no unique bodyparts, which top-down nets refuse.

Traps of DeepLabCut 3.0.2 that this goes around; those of its training are in `smp_plugin.baselines.deeplabcut_training`:

* inference in two threads may lose the last images, and rarely others: it is repeated in one thread where some are missing;
* filterpy 2 breaks its trackers without a word.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converters.deeplabcut_tables import read_table
from converters.deeplabcut_writing import video_names
from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.project import read_project, write_predictions, write_project
from smp_plugin.baselines import DLC, CurvePoint, Job, Outcome, Unavailable, curve_point
from smp_plugin.baselines.deeplabcut_training import Training, device, train

_INSTALL = "pip install 'smp-plugin[dlc]'"
_BATCH = 8  # images, or animals of a top-down method: batch_size of DeepLabCut's own projects. Its detector takes one image


def check_available() -> str:
    """DeepLabCut's version.

    Raises:
        Unavailable: it is not installed, is too old, or filterpy is one that breaks it.
    """
    if importlib.util.find_spec("deeplabcut") is None:
        raise Unavailable(f"DeepLabCut is not installed; {_INSTALL}")
    version = importlib.metadata.version("deeplabcut")
    if _numbers(version) < (3, 0, 2):
        raise Unavailable(f"DeepLabCut {version} is too old, 3.0.2 or later is needed; {_INSTALL}")
    filterpy = importlib.metadata.version("filterpy")
    if _numbers(filterpy) >= (2,):
        raise Unavailable(f"filterpy {filterpy} breaks DeepLabCut without a word, one before 2 is needed; {_INSTALL}")
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def run(job: Job) -> Outcome:
    """Train one of DeepLabCut's networks on ``job.train`` and predict the labelled frames of ``job.val`` with it.

    Raises:
        Unavailable: DeepLabCut is not there, or one that does not work.
        FormatError: the projects cannot be read, do not fit each other, or hold no animal to learn from.
    """
    if job.method not in DLC:
        raise FormatError(f"{job.method} is no method of DeepLabCut's; known are {', '.join(DLC)}.")
    version = check_available()
    os.environ.setdefault("MPLBACKEND", "Agg")  # DeepLabCut imports a plotting library that would look for a display
    project = convert(job)
    training = train(job, project.config, project.train)
    outcome = _predict(job, project, training, f"deeplabcut {version}")
    shutil.rmtree(project.config.parent, ignore_errors=True)  # copies of images, and networks of a hundred megabytes each
    return outcome


# --- our labels to a project of DeepLabCut's ---


@dataclass(frozen=True)
class Project:
    """A DeepLabCut project made of a job's two files.

    Attributes:
        config: its ``config.yaml``.
        train: names of the images to learn from, as (folder, file) in ``labeled-data``.
        val: what is to be predicted, with the image of each frame.
        videos: what the frames of ``val`` count.
        skeleton: what the network's outputs are.
        animals: the most that DeepLabCut is to find in an image.
    """

    config: Path
    train: frozenset[tuple[str, str]]
    val: list[tuple[LabeledFrame, Path]]
    videos: list[VideoSource]
    skeleton: Skeleton
    animals: int


def convert(job: Job) -> Project:
    """Write a job's frames as a multi-animal project below its folder. Nothing of it needs DeepLabCut.

    Raises:
        FormatError: the projects cannot be read, their keypoints differ, or there is nothing to learn from or to predict.
    """
    learned, asked = read_project(job.train, predicted=False), read_project(job.val, predicted=False)
    skeleton, ours, theirs = learned.skeleton, learned.labelled_frames, asked.labelled_frames
    if set(skeleton.keypoints) != set(asked.skeleton.keypoints):
        raise FormatError(f"{job.val} has other keypoints than {job.train}; compare methods on projects with the same skeleton.")
    if not any(_labelled(frame) for frame in ours):
        raise FormatError(f"{job.train} has no labelled animal to learn from; label some frames.")
    if not theirs:
        raise FormatError(f"{job.val} has no labelled frames to predict; name a project with labels.")
    shift, nowhere = len(learned.videos), np.full((len(skeleton), 2), np.nan)
    frames = [LabeledFrame(frame.video, frame.index, _numbered(_labelled(frame))) for frame in ours]
    # How many animals there are is told, as users of DeepLabCut have to; where they are is not.
    frames += [LabeledFrame(shift + frame.video, frame.index, _numbered([nowhere for _ in _labelled(frame)])) for frame in theirs]
    folder = job.folder.absolute() / "comparison-smp-2024-01-01"  # a name that says task, scorer and date
    shutil.rmtree(folder, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    videos = [*learned.videos, *asked.videos]
    write_project(folder, Labels(skeleton, videos, frames))
    images = [_images(folder, name) for name in video_names(videos)]
    following = [iter(names) for names in images[shift:]]
    ordered = sorted(theirs, key=lambda frame: (frame.video, frame.index))  # as the tables' rows are
    val = [(frame, folder.joinpath("labeled-data", *next(following[frame.video]))) for frame in ordered]
    known = frozenset(image for names in images[:shift] for image in names)
    return Project(folder / "config.yaml", known, val, asked.videos, skeleton, max(len(frame.instances) for frame in frames))


def _labelled(frame: LabeledFrame) -> list[np.ndarray]:
    return [animal.points for animal in frame.instances if animal.labelled.any()]


def _numbered(animals: Sequence[np.ndarray]) -> list[Instance]:
    """Animals as DeepLabCut's individuals. Identities are not compared, so each frame is numbered anew."""
    return [Instance(points, f"animal{number}") for number, points in enumerate(animals, 1)]


def _images(folder: Path, name: str) -> list[tuple[str, str]]:
    """The images of a folder of ``labeled-data``, in the order of its table; none where the video has no labels."""
    table = folder / "labeled-data" / name / "CollectedData_smp.h5"
    rows = read_table(table).rows if table.is_file() else []
    return [(name, Path(str(row)).name) for row in rows]


# --- prediction ---


def _predict(job: Job, project: Project, training: Training, version: str) -> Outcome:
    """Predict the frames with the network of the end, and with earlier ones for the curve."""
    pose, before = training.pose, training.detector
    assert pose.snapshot is not None
    images = [str(path) for _, path in project.val]
    network = _Network(job, project, training, pose.snapshot)
    network(images[:1])  # warm
    started = time.perf_counter()
    write(job, project, job.predictions, network(images))
    seconds = time.perf_counter() - started
    curve: list[CurvePoint] = []
    spent, taken = (before.spent, before.taken) if before is not None else (0.0, 0)
    for path, after, steps in pose.earlier:
        unfinished = job.folder / "unfinished.slp"
        write(job, project, unfinished, _Network(job, project, training, path)(images))
        curve.append(curve_point(job, unfinished, spent + after, taken + steps, "pose"))
        unfinished.unlink()
    if job.curve:
        curve.append(curve_point(job, job.predictions, spent + pose.spent, taken + pose.taken, "pose"))
    told = f"DeepLabCut was told that an image holds up to {project.animals} animals, the most that are labelled in one."
    return Outcome(version, taken + pose.taken, spent + pose.spent, seconds, len(images), [told, *training.notes], curve)


class _Network:
    """DeepLabCut's inference: images to arrays of (animals, keypoints, 3), x, y and likelihood, negative where there is nothing."""

    def __init__(self, job: Job, project: Project, training: Training, snapshot: Path) -> None:
        from deeplabcut.pose_estimation_pytorch.apis.utils import get_detector_inference_runner, get_pose_inference_runner

        common: dict[str, Any] = {"model_config": training.config, "device": device(job), "max_individuals": project.animals}
        detector = training.detector
        alike = detector is not None or len({_size(path) for _, path in project.val}) == 1  # crops of animals are
        self.pose = get_pose_inference_runner(snapshot_path=snapshot, batch_size=_BATCH if alike else 1, **common)
        self.detector = get_detector_inference_runner(snapshot_path=detector.snapshot, **common) if detector is not None else None

    def __call__(self, images: list[str]) -> list[np.ndarray]:
        inputs: list[Any] = images
        if self.detector is not None:
            inputs = list(zip(images, _all(self.detector, images), strict=True))
        return [found["bodyparts"] for found in _all(self.pose, inputs)]


def _size(image: Path) -> tuple[int, int]:
    with Image.open(image) as opened:
        return opened.size


def _all(runner: Any, inputs: list[Any]) -> list[dict[str, np.ndarray]]:
    """What a runner finds for every input. Its two threads may lose some: the last images, where no animal is in them."""
    try:
        found = runner.inference(copy.deepcopy(inputs))  # it writes into what it is given
    except IndexError:
        found = []
    if len(found) < len(inputs):
        # What the threads left behind would be taken for the next images'.
        runner._batch_list, runner._contexts, runner._image_batch_sizes, runner._predictions, runner._model_kwargs = [], [], [], [], {}
        runner.inference_cfg.multithreading.enabled = False
        found = runner.inference(inputs)
    return found


def write(job: Job, project: Project, path: Path, poses: Sequence[np.ndarray]) -> None:
    """Write poses of the frames to predict as a SLEAP file that names videos and frames as ``job.val`` does."""
    frames = [LabeledFrame(f.video, f.index, predicted=instances(found)) for (f, _), found in zip(project.val, poses, strict=True)]
    write_predictions(path, project.skeleton, project.videos, frames, {"method": job.method}, [job.train, job.val])


def instances(poses: np.ndarray) -> list[PredictedInstance]:
    """DeepLabCut's animals of one image, in its order.

    Args:
        poses: (animals, keypoints, 3 or more) frame pixels and likelihood; a negative likelihood or NaN is no point.

    Returns:
        Animals with the mean of their points' likelihoods as score, by which DeepLabCut ranks them in its own evaluation.
    """
    found = []
    for pose in np.asarray(poses, np.float64)[..., :3]:
        there = np.isfinite(pose).all(axis=1) & (pose[:, 2] >= 0)
        if there.any():
            points, scores = np.where(there[:, None], pose[:, :2], np.nan), np.where(there, pose[:, 2], 0.0)
            found.append(PredictedInstance(points, score=float(pose[there, 2].mean()), point_scores=scores))
    return found

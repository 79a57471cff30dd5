"""Labelled and unlabelled training crops.

Step i of seed s is the same crops whoever of equally many loader processes makes it: a run continues exactly by starting at i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from converters.labels import Instance, LabeledFrame, Skeleton, VideoSource
from smp_plugin import transforms
from smp_plugin.config import Config
from smp_plugin.frame_reader import FrameReader
from smp_plugin.unlabeled import UnlabeledFrames, UnlabeledPool

NEVER = 2**31 - 1


@dataclass
class Batch:
    """One step: labelled crops, and unlabelled ones seen by the teacher (weak) and by the student (strong).

    Attributes:
        images: (N, 3, S, S) uint8.
        keypoints: (N, M, K, 2) float32, pixels of the crop, NaN where not labelled and in padding.
        weights: (N, M) float32: 1, or 0 for an animal cut off by the crop, or predicted by a model and not corrected.
        background: (N,) float32: how sure it is that there is no animal away from the labels.
        partial: (N,) bool: are animals, or keypoints of animals, without a label to be expected?
        own: (N, K) bool: which keypoints the crop's project has.
        weak, strong: (U, 3, S, S) uint8, the same crops; U may be 0.
    """

    images: Tensor
    keypoints: Tensor
    weights: Tensor
    background: Tensor
    partial: Tensor
    own: Tensor
    weak: Tensor
    strong: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        no_wait = device.type == "cuda"  # MPS would read memory that may have been freed by then (github.com/pytorch/pytorch/issues/189690)
        return Batch(**{k: v.to(device, non_blocking=no_wait) for k, v in vars(self).items()})

    def pin_memory(self) -> Batch:
        """The same in pinned memory; called by the data loader."""
        return Batch(**{k: v.pin_memory() for k, v in vars(self).items()})


@dataclass
class LabelSource:
    """The labels of one project. ``partial``: animals without a label are not background.

    ``keypoints``: which of the skeleton's it has, indices; every keypoint where projects do not differ. ``path``: for messages.
    """

    frames: list[LabeledFrame]
    keypoints: list[int]
    partial: bool
    path: Path | None = None


class TrainingSteps(Dataset[Batch]):
    """Map-style data set whose item i is the whole batch of step i.

    Args:
        sources: labelled frames, with points in frame pixels; every project gets the same share of crops.
        videos: of the labelled frames.
        skeleton: their skeleton.
        unlabeled_videos, pool: where unlabelled frames come from.
        rank: number of this process among ``world`` ones, each of which makes its own crops.
        lanes: how many loader processes take the steps in turn, as `UnlabeledFrames` has it.
        typical: length of the median complete animal, input pixels; None: as wanted.
    """

    def __init__(
        self,
        sources: list[LabelSource],
        videos: list[VideoSource],
        skeleton: Skeleton,
        config: Config,
        unlabeled_videos: list[VideoSource],
        pool: UnlabeledPool,
        rank: int = 0,
        world: int = 1,
        lanes: int = 1,
        typical: float | None = None,
    ) -> None:
        self.sources, self.skeleton, self.config = sources, skeleton, config
        self.typical = config.data.animal_size if typical is None else typical
        self.rank, self.world = rank, world
        self.reader = FrameReader(videos, config.data.input_scale, config.data.cache_gb * 1e9)
        self.unlabeled = UnlabeledFrames(FrameReader(unlabeled_videos, config.data.input_scale), pool, config.train, rank, lanes)
        # Shared with loader processes: the step from which unlabelled crops are made.
        self.first_unlabeled_step = torch.tensor([NEVER]).share_memory_()
        self.complete = [[(f, i) for f in s.frames for i in f.instances if i.labelled[s.keypoints].all()] for s in sources]
        self.donors = [donor for of_source in self.complete for donor in of_source]

    def __len__(self) -> int:
        return NEVER

    def __getitem__(self, step: int) -> Batch:
        config, train, size = self.config, self.config.train, self.config.data.crop
        samples = [self._labelled_crop((step * self.world + self.rank) * train.batch + i) for i in range(train.batch)]
        animals = max(1, max(len(s[1]) for s in samples))
        keypoints = np.full((len(samples), animals, len(self.skeleton), 2), np.nan, dtype=np.float32)
        weights = np.zeros((len(samples), animals), dtype=np.float32)
        own = torch.zeros(len(samples), len(self.skeleton), dtype=torch.bool)
        for i, (_, points, counts, _, had) in enumerate(samples):
            keypoints[i, : len(points)], weights[i, : len(counts)], own[i, had] = points, counts, True
        views = []
        if step >= int(self.first_unlabeled_step) and len(self.unlabeled.pool):
            views = [self._unlabeled_crop(step, i) for i in range(train.unlabeled_batch)]
        empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
        return Batch(
            images=torch.stack([s[0] for s in samples]),
            keypoints=torch.from_numpy(keypoints),
            weights=torch.from_numpy(weights),
            background=torch.tensor([config.loss.partial_negative if s[3] else 1.0 for s in samples]),
            partial=torch.tensor([s[3] for s in samples]),
            own=own,
            weak=torch.stack([v[0] for v in views]) if views else empty,
            strong=torch.stack([v[1] for v in views]) if views else empty,
        )

    def _drawn(self, number: int) -> tuple[np.random.Generator, LabelSource, LabeledFrame, Instance | None]:
        """For a labelled crop: what is random about it, the project, the frame, and the animal to be laid on, if any."""
        config = self.config
        turn, which = divmod(number, len(self.sources))
        source = self.sources[which]
        epoch, place = divmod(turn, len(source.frames))
        order = np.random.default_rng((config.train.seed, 1, epoch * len(self.sources) + which)).permutation(len(source.frames))
        frame = source.frames[order[place]]
        rng = np.random.default_rng((config.train.seed, 2, number))
        focus: Instance | None = None
        if source.partial and self.complete[which] and rng.random() < config.augment.focus:
            # Where most animals have one keypoint, few crops would show a whole pose other than a pasted one, which its edge gives away.
            frame, focus = self.complete[which][rng.integers(len(self.complete[which]))]
        return rng, source, frame, focus

    def _labelled_crop(self, number: int) -> tuple[Tensor, np.ndarray, np.ndarray, bool, list[int]]:
        """Crop, keypoints (M, K, 2) and weights (M,) of its animals, whether its labels are partial, and its project's keypoints."""
        config, size = self.config, self.config.data.crop
        rng, source, frame, focus = self._drawn(number)
        image, to_input = self.reader.get(frame.video, frame.index)
        points = [transforms.apply_matrix(to_input, i.points) for i in frame.instances]
        unsure = []
        if config.data.predicted == "ignore" and not frame.negative:  # a person said that it is empty
            near = 0.25 * self.typical / config.data.input_scale
            unsure = [transforms.apply_matrix(to_input, p) for p in uncorrected(frame, near)]
        if points and (focus or rng.random() < 0.8):
            middle = transforms.apply_matrix(to_input, focus.points) if focus else points[rng.integers(len(points))]
            centre = np.nanmean(middle, axis=0) + rng.uniform(-size / 4, size / 4, 2)
        else:
            centre = rng.uniform(0, 1, 2) * (image.shape[2], image.shape[1])
        matrix = transforms.random_matrix(rng, centre, size, config.augment)
        crop = transforms.warp(image, matrix, size, size)
        keypoints = np.array([self._moved(p, matrix) for p in unsure + points]).reshape(-1, len(self.skeleton), 2)
        boxes = stand_ins(frame.unposed, matrix @ to_input, len(self.skeleton), size, self.typical)
        keypoints = np.concatenate((boxes, keypoints))
        partial = source.partial and not frame.negative
        if self.donors and rng.random() < (1.0 if partial and config.augment.paste else config.augment.paste):
            for _ in range(rng.integers(1, config.augment.paste_max + 1)):
                crop, keypoints = self._paste(rng, crop, keypoints, partial)
        crop = transforms.jitter(rng, transforms.to_bytes(crop), config.augment)
        weights = np.ones(len(keypoints))
        weights[: len(boxes) + len(unsure)] = 0
        keypoints, weights = clip_animals(keypoints, weights, size)
        return crop, keypoints, weights, partial, source.keypoints

    def _moved(self, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        moved = transforms.apply_matrix(matrix, points)
        return moved[self.skeleton.mirrored] if transforms.is_mirrored(matrix) else moved

    def _paste(self, rng: np.random.Generator, crop: Tensor, keypoints: np.ndarray, move: bool) -> tuple[Tensor, np.ndarray]:
        """Lay one complete animal on the crop, turned and scaled at random, with a soft edge; keypoints it hides become unlabelled.

        The paper's pup trick (section 4.1) made general. Gives up where it would hide too much of a labelled animal. One that
        sticks out is moved onto the crop (``move``), or left out.
        """
        size, augment = self.config.data.crop, self.config.augment
        frame, donor = self.donors[rng.integers(len(self.donors))]
        image, to_input = self.reader.get(frame.video, frame.index)
        source = transforms.apply_matrix(to_input, donor.points)
        matrix = transforms.random_matrix(rng, np.nanmean(source, axis=0), size, augment)
        middles = np.array([np.nanmean(p, axis=0) for p in keypoints if np.isfinite(p).all(axis=1).any()]).reshape(-1, 2)
        middles = middles[((middles >= 0) & (middles <= size - 1)).all(axis=1)]  # the frame has more animals than the crop shows
        if len(middles) and rng.random() < 0.5:  # beside another animal, where confusion is likely
            target = middles[rng.integers(len(middles))] + rng.normal(0, 0.6 * self.config.data.animal_size, 2)
        else:
            target = rng.uniform(0, size, 2)
        matrix[:2, 2] += target - (size - 1) / 2
        points = self._moved(source, matrix)
        low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)  # of the keypoints that its project has
        length = max(float((high - low).max()), 0.5 * self.config.data.animal_size if donor.labelled.sum() == 1 else 4.0)
        radius = 0.22 * length
        low, high = low - 1.5 * radius, high + 1.5 * radius
        inward = np.clip(0, np.ceil(-low), np.floor(size - 2 - high))
        if (high - low > size - 4).any() or (inward.any() and not move):
            return crop, keypoints
        matrix[:2, 2] += inward
        points, low, high = points + inward, low + inward, high + inward
        (x0, y0), (x1, y1) = np.floor(low).astype(int).tolist(), np.ceil(high).astype(int).tolist()
        shift = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]])
        mask = transforms.animal_mask(points - (x0, y0), self.skeleton.edges, radius, y1 - y0, x1 - x0)
        hidden = _covered(mask, keypoints - (x0, y0))
        known = np.isfinite(keypoints).all(axis=2)
        if (hidden.sum(axis=1) > augment.paste_overlap * known.sum(axis=1)).any():
            return crop, keypoints
        patch = transforms.warp(image, shift @ matrix, y1 - y0, x1 - x0)
        crop[:, y0:y1, x0:x1] += mask * (patch - crop[:, y0:y1, x0:x1])
        keypoints = np.where(hidden[..., None], np.nan, keypoints)
        return crop, np.concatenate((keypoints, points[None]))

    def crops_of(self, step: int, unlabeled: int) -> tuple[list[tuple[LabelSource, LabeledFrame]], list[tuple[int, int]]]:
        """What a step's crops show: project and frame of the labelled ones, (video, index) of the first ``unlabeled`` others."""
        train, number = self.config.train, step * self.world + self.rank
        labelled = [self._drawn(number * train.batch + i)[1:3] for i in range(train.batch)]
        rngs = [np.random.default_rng((train.seed, 3, number * train.unlabeled_batch + i)) for i in range(unlabeled)]
        frames = self.unlabeled.of_step(step) if unlabeled else []
        return labelled, [frames[rng.integers(len(frames))].name for rng in rngs]

    def _unlabeled_crop(self, step: int, i: int) -> tuple[Tensor, Tensor]:
        """The teacher's and the student's view of one crop: the same place, other colours."""
        config, size = self.config, self.config.data.crop
        number = (step * self.world + self.rank) * config.train.unlabeled_batch + i
        rng = np.random.default_rng((config.train.seed, 3, number))
        frames = self.unlabeled.of_step(step)
        drawn = frames[rng.integers(len(frames))]
        height, width = drawn.image.shape[1:]
        # Crops lie within the frame where it is large enough: border shows nothing.
        margin = np.minimum((width / 2, height / 2), size / 3)
        centre = rng.uniform(margin, np.array((width, height)) - margin)
        if len(drawn.places) and rng.random() < config.augment.moving:
            beside = drawn.places[rng.integers(len(drawn.places))] + rng.uniform(-size / 4, size / 4, 2)
            centre = np.clip(beside, margin, np.array((width, height)) - margin)
        crop = transforms.to_bytes(transforms.warp(drawn.image, transforms.random_matrix(rng, centre, size, config.augment), size, size))
        return transforms.jitter(rng, crop, config.augment, 0.3), transforms.disturb(rng, crop, config.augment)


def _covered(mask: Tensor, points: np.ndarray) -> np.ndarray:
    """(M, K) bool: is the point under the mask?"""
    height, width = mask.shape
    inside = np.isfinite(points).all(axis=2)
    cells = np.where(inside[..., None], points, -1).round().astype(int)
    inside &= (cells >= 0).all(axis=2) & (cells[..., 0] < width) & (cells[..., 1] < height)
    cells = np.where(inside[..., None], cells, 0)
    return inside & (mask.numpy()[cells[..., 1], cells[..., 0]] > 0.5)


def clip_animals(keypoints: np.ndarray, weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of animals (M, K, 2) with weights (M,), those that reach into the crop.

    An animal whose middle lies outside is cut off: it counts nothing, and nothing around it is background. One whose middle is inside
    keeps its keypoints beyond the border, which the vectors can still learn.
    """
    known = np.isfinite(keypoints).all(axis=2)
    inside = known & (keypoints >= 0).all(axis=2) & (keypoints <= size - 1).all(axis=2)
    keep = inside.any(axis=1)
    keypoints, weights = keypoints[keep], weights[keep]
    if not len(keypoints):
        return keypoints, weights
    middle = (np.nanmin(keypoints, axis=1) + np.nanmax(keypoints, axis=1)) / 2
    return keypoints, weights * ((middle >= 0) & (middle <= size - 1)).all(axis=1)


def stand_ins(boxes: list[np.ndarray], matrix: np.ndarray, count: int, size: int, typical: float) -> np.ndarray:
    """Animals (M, ``count``, 2) in place of those in ``boxes`` (4,), moved by ``matrix``, that reach into the crop.

    Two of their keypoints are opposite corners of what is seen of the box. Of a skeleton of one there are as many animals as cover it,
    each of them a square of ``typical`` input pixels.
    """
    made = []
    for box in boxes:
        corners = transforms.apply_matrix(matrix, box[[[0, 1], [2, 1], [2, 3], [0, 3]]])
        low, high = corners.min(axis=0), corners.max(axis=0)
        if (high >= 0).all() and (low <= size - 1).all():
            low, high = np.clip((low, high), 0, size - 1)
            if count > 1:
                made.append(np.full((1, count, 2), np.nan))
                made[-1][0, :2] = low, high
            else:
                parts = np.maximum(1, np.ceil((high - low) / typical)).astype(int)
                at = [low[axis] + (np.arange(n) + 0.5) * (high - low)[axis] / n for axis, n in enumerate(parts)]
                made.append(np.stack(np.meshgrid(*at), axis=-1).reshape(-1, 1, 2))
    return np.concatenate([np.empty((0, count, 2)), *made])


def uncorrected(frame: LabeledFrame, near: float) -> list[np.ndarray]:
    """Poses (K, 2) that a model predicted in a labelled frame where no person labelled an animal: nobody knows whether one is there.

    A prediction lies on a labelled animal when, over the keypoints that both have, they are less than ``near`` frame pixels apart.
    """
    poses = [p.points for p in frame.predicted if p.labelled.any()]

    def gap(pose: np.ndarray, labelled: np.ndarray) -> float:
        distances = np.linalg.norm(pose - labelled, axis=1)
        return float(np.nanmean(distances)) if np.isfinite(distances).any() else np.inf

    return [pose for pose in poses if not any(gap(pose, i.points) < near for i in frame.instances)]


class StepRange(torch.utils.data.Sampler[int]):
    """From wherever the run stands, the steps up to the next multiple of ``every``; none from ``end`` on."""

    def __init__(self, start: Callable[[], int], every: int, end: int = NEVER) -> None:
        self.start, self.every, self.end = start, every, end

    def __iter__(self):  # type: ignore[no-untyped-def]
        first = self.start()
        return iter(range(first, min(first + self.every - first % self.every, self.end)))

    def __len__(self) -> int:
        return self.every  # at most: Lightning asks once, and a run that was stopped between two multiples begins with fewer

"""Frames without labels: which there are, and those that a loader process has decoded."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import get_worker_info

from converters.labels import FormatError
from smp_plugin.config import TrainConfig
from smp_plugin.frame_reader import FrameReader
from smp_plugin.moving import moving

BLOCK_STEPS = 50  # steps of a loader process that share one set of decoded unlabelled frames
BLOCK_FRAMES = 12  # frames in it per unlabelled crop of a step: reading runs forward through them once
FEW = 0.05  # share of a video's frames without labels below which they are listed: drawing until one of them comes would take long
TOGETHER = 6  # of them from one video, where there are several
BLOCK_BYTES = 0.25e9  # of such a set at most, of which a process may hold two; frames of 4K would take gigabytes


class UnlabeledPool:
    """Which frames have no labels: counts per video, and lists only where these are short, so that hours of video cost nothing.

    Args:
        frames: how many each video has, or the numbers of those that there are.
        labelled: the numbers of those with labels.
        ranges: of frames to be drawn, both ends included; None: all.
    """

    def __init__(self, frames: Sequence[int | Sequence[int]], labelled: list[set[int]], ranges: list[tuple[int, int]] | None) -> None:
        self.labelled = labelled
        ends = [there if isinstance(there, int) else max(there, default=-1) + 1 for there in frames]
        self.spans = [[(a, min(b, end - 1)) for a, b in _disjoint(ranges or [(0, end - 1)]) if a < end] for end in ends]
        self.counts = np.array([sum(b - a + 1 for a, b in spans) for spans in self.spans], dtype=float)
        self.few: dict[int, list[int]] = {}
        for video, (there, spans) in enumerate(zip(frames, self.spans, strict=True)):
            least = FEW * self.counts[video]
            self.counts[video] -= sum(any(a <= i <= b for a, b in spans) for i in labelled[video])
            if self.counts[video] < least or not isinstance(there, int):  # where most have labels, to look at each takes no longer
                numbers = itertools.chain.from_iterable(range(a, b + 1) for a, b in spans) if isinstance(there, int) else there
                free = (i for i in numbers if i not in labelled[video])
                self.few[video] = [i for i in free if any(a <= i <= b for a, b in spans)]
                self.counts[video] = len(self.few[video])

    def __len__(self) -> int:
        return int(self.counts.sum())

    def draw(self, rng: np.random.Generator, count: int) -> dict[int, list[int]]:
        """``count`` random frames, with replacement where there are fewer: video -> ascending indices.

        Of few videos, several of each: the more of a video's frames are seen together, the better can be told what moves in it.
        """
        drawn: dict[int, set[int]] = {}
        missing = count
        share = self.counts / self.counts.clip(1, TOGETHER)  # short videos give fewer at a time, and are drawn more often
        while missing > 0:
            video = int(rng.choice(len(self.counts), p=share / share.sum()))
            together: set[int] = set()
            while len(together) < min(TOGETHER, missing, self.counts[video]):
                together.add(self._of_video(rng, video))
            missing -= len(together)
            drawn[video] = drawn.get(video, set()) | together
        return {video: sorted(indices) for video, indices in sorted(drawn.items())}

    def _of_video(self, rng: np.random.Generator, video: int) -> int:
        if video in self.few:
            return self.few[video][rng.integers(len(self.few[video]))]
        spans = self.spans[video]
        lengths = np.array([b - a + 1 for a, b in spans])
        while True:
            start, end = spans[rng.choice(len(spans), p=lengths / lengths.sum())]
            index = int(rng.integers(start, end + 1))
            if index not in self.labelled[video]:
                return index


def _disjoint(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same frames in rising ranges that do not overlap: a frame named twice is still one frame."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


class Unlabeled(NamedTuple):
    """A frame without labels: its ``name`` (video, index), its image at the input scale, and ``places`` (n, 2) where something moved."""

    name: tuple[int, int]
    image: Tensor
    places: np.ndarray


class UnlabeledFrames:
    """Frames for the unlabelled crops, in blocks that many steps share: reading runs forward through the frames of a block once.

    While a loader process makes crops of one block, a thread of it reads the next: a GPU would wait for it, seconds where frames are large.

    Args:
        reader: of the videos that ``pool`` numbers.
        rank: number of this training process.
        lanes: how many loader processes of it take the steps in turn. Each decodes for its own steps alone, so that what a step shows
            depends on their number.
    """

    def __init__(self, reader: FrameReader, pool: UnlabeledPool, train: TrainConfig, rank: int, lanes: int) -> None:
        self.reader, self.pool, self.train, self.rank, self.lanes = reader, pool, train, rank, lanes
        self.number = (-1, -1)
        self.block: list[Unlabeled] = []
        self._next: tuple[tuple[int, int], Future[list[Unlabeled]]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_next": None}  # threads do not travel to other processes

    def block_of(self, step: int) -> tuple[int, int]:
        """A step's block, and its lane: `StepRange` begins anew every ``val_every`` steps, and with it the loader's processes take turns
        from the first one on.
        """
        rounds, place = divmod(step, self.train.val_every)
        turn, lane = divmod(place, self.lanes)
        return (rounds * -(-self.train.val_every // self.lanes) + turn) // BLOCK_STEPS, lane

    def of_step(self, step: int) -> list[Unlabeled]:
        """The frames of a step's block. Raises FormatError where none of them can be read."""
        number = self.block_of(step)
        if self.number != number:
            self.number, self.block = (-1, -1), []  # its memory is needed for the next one
            self.block = self._awaited(number)
            self.number = number
            if get_worker_info() is not None:  # what is forked must not have threads, and a CPU that trains has nothing to gain
                self._read_ahead(number[0] + 1, number[1])
        return self.block

    def _awaited(self, number: tuple[int, int]) -> list[Unlabeled]:
        ahead, self._next = self._next, None
        if ahead is not None:
            ahead[1].exception()  # waits, whichever it is: one thread reads at a time
            if ahead[0] == number:
                return ahead[1].result()
        return self._read(*number)

    def _read_ahead(self, block: int, lane: int) -> None:
        read: Future[list[Unlabeled]] = Future()

        def work() -> None:
            try:
                read.set_result(self._read(block, lane))
            except BaseException as error:  # raised where the block is wanted
                read.set_exception(error)

        self._next = (block, lane), read
        threading.Thread(target=work, daemon=True).start()  # the end of a run does not wait for it

    def _read(self, block: int, lane: int) -> list[Unlabeled]:
        rng = np.random.default_rng((self.train.seed, 4, block, self.rank * self.lanes + lane))
        count = BLOCK_FRAMES * self.train.unlabeled_batch
        drawn = self.pool.draw(rng, count)
        room = BLOCK_BYTES / max(self.reader.frame_bytes(video) for video in drawn)
        if room < count:
            drawn = self.pool.draw(rng, max(int(room), self.train.unlabeled_batch))
        frames = []
        for video, indices in drawn.items():
            images = self.reader.get_many(video, indices)
            found = zip(indices, images, moving(images), strict=False)  # the rest can't be read
            frames += [Unlabeled((video, index), image, places) for index, image, places in found]
        if not frames:
            names = ", ".join(self.reader.videos[video].name for video in drawn)
            raise FormatError(f"{names}: no unlabelled frame can be read; convert the video to MP4, or name another with --unlabeled.")
        return frames

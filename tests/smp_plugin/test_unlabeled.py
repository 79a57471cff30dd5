"""Frames without labels: none that has some, each as likely as any other, and the next ones read before they are asked for."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.labels import FormatError, VideoSource
from smp_plugin import unlabeled
from smp_plugin.config import TrainConfig
from smp_plugin.datasets import StepRange
from smp_plugin.frame_reader import FrameReader
from smp_plugin.unlabeled import Unlabeled, UnlabeledFrames, UnlabeledPool

FRAMES, LABELLED = 40, 6  # of the numbered video


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_the_pool_never_gives_a_labelled_frame_and_counts_right(data: st.DataObject) -> None:
    numbers = st.sets(st.integers(0, 30)).map(sorted)  # of the images in a package
    frames = data.draw(st.lists(st.one_of(st.integers(1, 30), numbers), min_size=1, max_size=4))
    labelled = [data.draw(st.sets(st.integers(0, 32))) for _ in frames]
    span = st.tuples(st.integers(0, 35), st.integers(0, 8)).map(lambda s: (s[0], s[0] + s[1]))
    ranges = data.draw(st.one_of(st.none(), st.lists(span, min_size=1, max_size=3)))
    allowed = [
        {
            i
            for i in (range(there) if isinstance(there, int) else there)
            if i not in known and (ranges is None or any(a <= i <= b for a, b in ranges))
        }
        for there, known in zip(frames, labelled, strict=True)
    ]
    pool = UnlabeledPool(frames, labelled, ranges)
    assert len(pool) == sum(map(len, allowed))
    if len(pool):
        drawn = pool.draw(np.random.default_rng(data.draw(st.integers(0, 99))), 20)
        assert drawn and list(drawn) == sorted(drawn)
        for number, indices in drawn.items():
            assert set(indices) <= allowed[number] and indices == sorted(set(indices))


@pytest.mark.parametrize(
    ("frames", "labelled"),
    [(20_000, set(range(20_000)) - {7, 8, 9, 19_999}), ([7, 8, 9, 55, 19_999], {55})],  # a video proofread; a package with suggestions
)
def test_few_frames_without_labels_are_found_at_once(frames: Any, labelled: set[int]) -> None:
    class Counting(np.random.Generator):
        calls = 0

        def integers(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return super().integers(*args, **options)

    rng, pool = Counting(np.random.PCG64(0)), UnlabeledPool([frames], [labelled], [(5, 30_000)])
    seen = [index for _ in range(50) for index in pool.draw(rng, 2)[0]]
    assert len(pool) == 4 and set(seen) == {7, 8, 9, 19_999} and rng.calls < 200


def test_every_unlabelled_frame_is_as_likely_as_any_other() -> None:
    pool = UnlabeledPool([100, 10], [set(range(60)), {3}], [(50, 79), (0, 9)])
    rng = np.random.default_rng(0)
    counts: dict[tuple[int, int], int] = {}
    for _ in range(4000):
        for number, indices in pool.draw(rng, 1).items():
            for index in indices:
                counts[number, index] = counts.get((number, index), 0) + 1
    assert len(counts) == len(pool) == 20 + 9
    assert min(counts.values()) > 80 and max(counts.values()) < 210


def test_frames_of_short_videos_are_as_likely_and_come_together() -> None:
    pool = UnlabeledPool([40, *[1] * 20, 8], [set()] * 22, None)
    rng, counts = np.random.default_rng(0), np.zeros((22, 40))
    for _ in range(1500):
        for number, indices in pool.draw(rng, 12).items():
            counts[number, indices] += 1
    expected = counts.sum() / 68
    seen = counts[counts > 0]
    assert len(seen) == 68 and seen.min() > 0.7 * expected and seen.max() < 1.35 * expected
    several = UnlabeledPool([8] * 10, [set()] * 10, None)
    assert all(len(indices) >= 6 for _ in range(50) for indices in several.draw(rng, 36).values())


# --- blocks -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_frames(video_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., UnlabeledFrames]:
    monkeypatch.setattr(unlabeled, "BLOCK_STEPS", 5)

    monkeypatch.setattr(unlabeled, "get_worker_info", lambda: "in a loader process")

    def make(rank: int = 0, lanes: int = 1, every: int = 20) -> UnlabeledFrames:
        train = TrainConfig(unlabeled_batch=1, val_every=every)
        pool = UnlabeledPool([FRAMES], [set(range(LABELLED))], None)
        return UnlabeledFrames(FrameReader([VideoSource((video_file,))], 1.0), pool, train, rank, lanes)

    return make


def names(frames: list[Unlabeled]) -> list[tuple[int, int]]:
    return [frame.name for frame in frames]


def test_a_block_holds_the_frames_that_it_names(
    make_frames: Callable[..., UnlabeledFrames], number_of: Callable[[np.ndarray], int]
) -> None:
    frames = make_frames()
    for step in (0, 5, 6, 23, 4):
        block = frames.of_step(step)
        assert unlabeled.TOGETHER <= len(block) <= unlabeled.BLOCK_FRAMES
        assert [number_of(frame.image.permute(1, 2, 0).numpy()) for frame in block] == [index for _, index in names(block)]
        assert min(index for _, index in names(block)) >= LABELLED


def test_a_block_is_the_same_read_ahead_or_not_and_another_for_each_process(make_frames: Callable[..., UnlabeledFrames]) -> None:
    """A run that is resumed in the middle sees what it would have seen."""
    frames, seen = make_frames(), []
    for step in range(0, 40, 5):
        seen.append(names(frames.of_step(step)))
        fresh = pickle.loads(pickle.dumps(make_frames()))  # as a loader process gets it
        assert names(fresh.of_step(step + 3)) == seen[-1]
        assert names(make_frames(rank=1).of_step(step)) != seen[-1]
    assert len({tuple(block) for block in seen}) == len(seen)
    assert names(pickle.loads(pickle.dumps(frames)).of_step(0)) == seen[0]


def test_the_next_block_is_read_while_crops_are_made_of_this_one(
    make_frames: Callable[..., UnlabeledFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, threading.Thread]] = []
    finished = threading.Semaphore(0)
    whole = FrameReader.get_many

    def get_many(self: FrameReader, video: int, indices: list[int]) -> list[torch.Tensor]:
        found = whole(self, video, indices)
        read.append((video, threading.current_thread()))
        finished.release()
        return found

    monkeypatch.setattr(FrameReader, "get_many", get_many)
    frames = make_frames()
    for block in range(3):
        frames.of_step(5 * block)
        for _ in range(2 if block == 0 else 1):
            assert finished.acquire(timeout=60)
        for step in range(5 * block, 5 * block + 5):
            frames.of_step(step)
        assert len(read) == block + 2
    assert [thread is threading.main_thread() for _, thread in read] == [True, False, False, False]
    monkeypatch.setattr(unlabeled, "get_worker_info", lambda: None)  # a process that may be forked, or that has a CPU to train on
    alone = make_frames()
    alone.of_step(0)
    assert alone._next is None


def test_what_can_not_be_read_is_said_when_it_is_needed(
    make_frames: Callable[..., UnlabeledFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_frames()
    frames.of_step(0)
    frames.of_step(5)
    assert frames._next is not None
    frames._next[1].result()
    monkeypatch.setattr(FrameReader, "get_many", lambda *_: [])
    for step in (10, 14):
        frames.of_step(step)
    for step in (15, 15, 20):
        with pytest.raises(FormatError, match=r"clip\.mp4: no unlabelled frame can be read"):
            frames.of_step(step)


@pytest.mark.parametrize(("lanes", "every"), [(1, 20), (2, 20), (4, 30), (3, 200)])
@pytest.mark.parametrize("first", [0, 7])
def test_a_loader_process_decodes_for_its_own_steps_alone(
    make_frames: Callable[..., UnlabeledFrames], lanes: int, every: int, first: int
) -> None:
    """Processes take the steps of a round in turn; each has as many blocks as its own steps ask for, one after the other, and none is
    another's.
    """
    frames = make_frames(lanes=lanes, every=every)
    blocks: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    start, end = first, 4 * every
    while start < end:
        for place, step in enumerate(StepRange(lambda: start, every)):  # noqa: B023
            blocks[place % lanes].append(frames.block_of(step))
        start += every - start % every
    for process, own in enumerate(blocks):
        pairs = list(zip(own, own[1:], strict=False))
        changes = sum(a != b for a, b in pairs)
        assert changes <= len(own) / 5 + (4 if every % lanes else 0) + 1
        assert all(own.count(block) <= 5 for block in own)
        assert first or all(b in (a, (a[0] + 1, a[1])) for a, b in pairs)
        assert not any(set(own) & set(other) for other in blocks[process + 1 :]) or first


def test_frames_in_memory_are_bounded(make_frames: Callable[..., UnlabeledFrames], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for as many as a step has crops."""
    frame, held = 3 * 48 * 64, {}
    for room in (3.5, 0.1, 100.0):
        monkeypatch.setattr(unlabeled, "BLOCK_BYTES", room * frame)
        held[room] = len(make_frames().of_step(0))
    assert held[0.1] == 1 and held[3.5] <= 3 < unlabeled.TOGETHER <= held[100.0]

"""Work that overlaps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from converters import FormatError
from smp_plugin.pipeline import abreast, ahead, behind


def test_ahead_keeps_order_and_bounds():
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    for i in ahead(items(), 4):
        assert len(made) <= i + 7  # never more than the queue and what is in hand
    assert made == list(range(50))


def test_ahead_raises_in_its_place():
    def items() -> Iterator[int]:
        yield 1
        raise FormatError("broken")

    seen = []
    with pytest.raises(FormatError, match="broken"):
        for item in ahead(items(), 4):
            seen.append(item)
    assert seen == [1]


def test_ahead_ends_when_left():
    endless = ahead(iter(int, 1), 4)
    assert next(endless) == 0
    endless.close()


def test_behind_keeps_order_and_bounds():
    made, worked = list[int](), list[int]()

    def items() -> Iterator[int]:
        for i in range(20):
            assert len(worked) >= i - 2  # one is worked on, and one has just been made
            made.append(i)
            yield i

    def work(i: int, _: threading.Event) -> None:
        assert len(made) <= i + 3
        worked.append(square(i, True))

    behind(work, items())
    assert worked == [i * i for i in range(20)]


def test_behind_raises_the_first_error_when_all_is_at_rest():
    ended = threading.Event()

    def items(broken: bool) -> Iterator[int]:
        yield 1
        if broken:
            raise FormatError("broken item")

    def work(_: int, __: threading.Event) -> None:
        time.sleep(0.05)
        ended.set()

    def failing(_: int, __: threading.Event) -> None:
        raise FormatError("broken work")

    with pytest.raises(FormatError, match="broken item"):
        behind(work, items(broken=True))
    assert ended.is_set()
    for broken in (True, False):
        with pytest.raises(FormatError, match="broken work"):
            behind(failing, items(broken))


def test_behind_gives_up_at_ctrl_c():
    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    gave_up: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        behind(lambda _, given_up: gave_up.append(given_up.wait(20)), items())
    assert gave_up == [True]


def square(i: int, alone: bool) -> int:
    time.sleep(0.02 * (i % 2 == 0))
    return i * i


@pytest.mark.parametrize("lanes", (1, 2, 3))
@pytest.mark.parametrize("count", (0, 1, 2, 30))
def test_abreast_keeps_order_and_bounds(count: int, lanes: int):
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(count):
            made.append(i)
            yield i

    for i, result in enumerate(abreast(square, items(), lanes)):
        assert result == i * i and len(made) <= i + lanes + 1  # those in the lanes and one that waits
    assert made == list(range(count))


def test_lanes_work_at_the_same_time():
    both = threading.Barrier(2, timeout=30)  # broken, which raises, if one never comes while the other waits
    assert len(list(abreast(lambda *_: both.wait(), range(4), 2))) == 4


@pytest.mark.parametrize("share", (1, 2, 4))
def test_lanes_share_the_threads_of_torch_and_leave_them_as_they_were(share: int):
    before, lock = torch.get_num_threads(), threading.Lock()
    busy, most = 0, 0

    def work(_: int, alone: bool) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.01)
        assert alone == (share == 4)
        with lock:
            busy -= 1
        return torch.get_num_threads()

    try:
        torch.set_num_threads(4)
        assert set(abreast(work, range(12), 4, lambda _: share)) == {share}
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 4 and later == [4] and most <= 4 // share
    finally:
        torch.set_num_threads(before)


def test_what_needs_to_be_alone_is_worked_on_again():
    running, lock = 0, threading.Lock()

    def work(i: int, alone: bool) -> int | None:
        nonlocal running
        with lock:
            running += 1
            others = running - 1
        time.sleep(0.005)
        with lock:
            running -= 1
        assert not (alone and others)
        return i if alone or i % 3 else None

    assert list(abreast(work, range(20), 3)) == list(range(20))


def test_what_comes_after_it_is_alone_at_once():
    tries: list[tuple[int, bool]] = []

    def work(i: int, alone: bool) -> int | None:
        tries.append((i, alone))
        return i if alone else None

    assert list(abreast(work, range(20), 2)) == list(range(20))
    assert sum(not alone for _, alone in tries) <= 2 and sum(alone for _, alone in tries) == 20


@pytest.mark.parametrize("lanes", (1, 3))
@pytest.mark.parametrize("count", (0, 1, 5))
def test_abreast_raises_in_its_place(count: int, lanes: int):
    def items() -> Iterator[int]:
        yield from range(count)
        raise FormatError("broken")

    seen = []
    with pytest.raises(FormatError, match="broken"):
        for i in abreast(lambda i, _: i, items(), lanes):
            seen.append(i)
    assert seen == list(range(count))

    seen.clear()
    with pytest.raises(ZeroDivisionError):
        for i in abreast(lambda i, _: 1 / (count - i), range(9), lanes):
            seen.append(i)
    assert len(seen) == count


@pytest.mark.parametrize("lanes", (1, 2))
def test_abreast_ends_when_left(lanes: int):
    endless = abreast(square, iter(int, 1), lanes)
    assert next(endless) == 0
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]

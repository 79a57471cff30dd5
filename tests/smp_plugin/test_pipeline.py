"""Work that overlaps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from converters import FormatError
from smp_plugin.pipeline import abreast, ahead


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


def slow_where_even(i: int) -> int:
    time.sleep(0.02 * (i % 2 == 0))
    return i * i


def test_abreast_keeps_order_and_bounds():
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(30):
            made.append(i)
            yield i

    for i, square in abreast(slow_where_even, items(), 3):
        assert square == i * i and len(made) <= i + 4  # those in the lanes and one that waits
    assert made == list(range(30))


def test_lanes_work_at_the_same_time():
    both = threading.Barrier(2, timeout=30)  # broken, which raises, if one never comes while the other waits
    assert [i for i, _ in abreast(lambda _: both.wait(), range(4), 2)] == list(range(4))


@pytest.mark.parametrize("lanes", (1, 2, 3))
def test_lanes_share_the_threads_of_torch_and_leave_them_as_they_were(lanes: int):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert {threads for _, threads in abreast(lambda _: torch.get_num_threads(), range(9), lanes)} == {{1: 4, 2: 2, 3: 2}[lanes]}
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 4 and later == [4]
    finally:
        torch.set_num_threads(before)


def test_abreast_raises_in_its_place():
    def items() -> Iterator[int]:
        yield from range(5)
        raise FormatError("broken")

    seen = []
    with pytest.raises(FormatError, match="broken"):
        for i, _ in abreast(slow_where_even, items(), 3):
            seen.append(i)
    assert seen == list(range(5))

    seen.clear()
    with pytest.raises(ZeroDivisionError):
        for i, _ in abreast(lambda i: 1 / (3 - i), range(9), 2):
            seen.append(i)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("lanes", (1, 2))
def test_abreast_ends_when_left(lanes: int):
    endless = abreast(slow_where_even, iter(int, 1), lanes)
    assert next(endless) == (0, 0)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]

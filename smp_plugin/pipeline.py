"""Work that overlaps: items made ahead in a thread, and several items worked on at once, always in order and never many of them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


def ahead(items: Iterable[Any], depth: int) -> Generator[Any, None, None]:
    """The same items, made in a thread up to ``depth`` ahead. An error there is raised here, in its place."""
    line: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                line.put(entry, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            more, item = line.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        stop.set()
        thread.join()


def abreast(work: Callable[[Any], Any], items: Iterable[Any], lanes: int) -> Generator[tuple[Any, Any], None, None]:
    """(item, ``work(item)``) in the order of the items, ``lanes`` of them at a time, which share torch's CPU threads between them.

    Torch's threads wait for each other after every operation, and a small image keeps few of them busy: an image for each thread does not.
    An error, of ``work`` or of ``items``, is raised in its place. A single lane is the thread that calls.
    """
    if lanes == 1:
        yield from ((item, work(item)) for item in items)
        return
    threads = torch.get_num_threads()
    source: Iterator[Any] | None = iter(items)
    problem: Exception | None = None
    line: deque[tuple[Any, Future[Any]]] = deque()
    try:
        with ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, (-(-threads // lanes),)) as pool:
            try:
                while True:
                    while source is not None and len(line) <= lanes:  # one waits, so that no lane does
                        try:
                            item = next(source)
                            line.append((item, pool.submit(work, item)))
                        except StopIteration:
                            source = None
                        except Exception as error:
                            source, problem = None, error
                    if not line:
                        break
                    item, future = line.popleft()
                    yield item, future.result()
            finally:
                for _, future in line:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # lanes have set it for threads that begin later, too
    if problem is not None:
        raise problem

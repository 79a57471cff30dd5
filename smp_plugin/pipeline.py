"""Work that overlaps: items made ahead in a thread, worked on behind, or several at once; always in order and never many of them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
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


def behind(work: Callable[[Any, threading.Event], None], items: Iterable[Any]) -> None:
    """Do ``work`` with each item in a thread, in order, while the next item is made; none waits but the one just made.

    An error of ``work`` is raised when the next item is there, one of ``items`` when nothing is worked on any more.

    Args:
        work: called with an item and an event, which a KeyboardInterrupt sets: nobody wants to wait for the rest.
        items: what it is done with.
    """
    given_up = threading.Event()
    done: Future[None] = Future()
    done.set_result(None)
    with ThreadPoolExecutor(1, "behind") as pool:
        try:
            try:
                for item in items:
                    done.result()
                    done = pool.submit(work, item, given_up)
            except Exception:
                done.result()  # its error came first
                raise
            done.result()
        except KeyboardInterrupt:
            given_up.set()
            raise


def abreast(
    work: Callable[[Any, bool], Any], items: Iterable[Any], lanes: int, share: Callable[[Any], int] = lambda _: 1
) -> Generator[Any, None, None]:
    """What ``work`` makes of each item, in the order of the items; up to ``lanes`` items at a time share torch's CPU threads.

    Torch's threads wait for each other after every operation; threads with images of their own do not, nor does what follows the network.
    An error, of ``work`` or of ``items``, is raised in its place. A single lane is the thread that calls. An item's result does not depend
    on what else is worked on: it has the same number of threads.

    Args:
        work: called with an item and whether nothing else is worked on meanwhile. If something is, it may return None to ask to be called
            again when it is alone; from then on every item is.
        items: are made one ahead.
        lanes: how many.
        share: how many lanes an item takes.
    """
    if lanes == 1:
        for item in items:
            result = work(item, True)
            del item  # large, and the next one may be made before this loop is asked for it
            yield result
        return
    threads = torch.get_num_threads()
    source, free, turn = iter(items), threading.Semaphore(lanes), threading.Lock()

    def attempt(item: Any, taken: int) -> Any:
        with turn:  # one collects its lanes at a time, or two could wait for each other's
            for _ in range(taken):
                free.acquire()
        try:
            torch.set_num_threads(max(1, threads * taken // lanes))
            return work(item, taken == lanes)
        finally:
            free.release(taken)

    crowded = threading.Event()

    def lane(item: Any) -> Any:
        if not crowded.is_set():
            result = attempt(item, min(lanes, share(item)))
            if result is not None:
                return result
            crowded.set()  # as a rule what comes next has no more room beside others, and would be done twice
        return attempt(item, lanes)

    line: deque[Future[Any]] = deque()
    more = True
    try:
        with ThreadPoolExecutor(lanes, "lane") as pool:
            try:
                while True:
                    while more and len(line) <= lanes:  # one waits, so that no lane does
                        try:
                            line.append(pool.submit(lane, next(source)))
                        except StopIteration:
                            more = False
                        except Exception as error:
                            more = False
                            line.append(Future())
                            line[-1].set_exception(error)
                    if not line:
                        break
                    yield line.popleft().result()
            finally:
                for future in line:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # lanes have set it for threads that begin later, too

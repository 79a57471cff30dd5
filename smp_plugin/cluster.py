"""Where segments are predicted: by a process for each GPU of this machine, or by the workers of a Dask cluster.

Both are executors of `concurrent.futures`. Dask is imported where it is used; it is the extra ``cluster``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import queue
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from tempfile import TemporaryDirectory
from typing import TypeVar

from converters.labels import FormatError
from smp_plugin.progress import Reporter

Key = TypeVar("Key")
Result = TypeVar("Result")

own_device: str | None = None  # of a process that was started for one
_PATIENCE = 10.0  # seconds in which a scheduler answers
_RETRIES = 3  # of a segment that failed on a worker; a worker that is lost counts for Dask's own "allowed-failures"


def check_installed(flag: str) -> None:
    """Raise a FormatError where Dask is missing, which ``flag`` needs."""
    if importlib.util.find_spec("distributed") is None:
        raise FormatError(f"{flag} needs Dask, which is not installed; pip install 'smp-plugin[cluster]'.")


@contextlib.contextmanager
def executor(scheduler: str | None, local_workers: int, devices: list[str], reporter: Reporter) -> Iterator[Executor | None]:
    """Who predicts: the workers of a scheduler, so many local ones, a process for each of several devices, or, None, this process."""
    with contextlib.ExitStack() as stack:
        if local_workers:
            scheduler = stack.enter_context(local_cluster(local_workers))
        if scheduler is not None:
            yield stack.enter_context(workers_of(scheduler, reporter))
        elif len(devices) > 1:
            reporter.say(f"predicting on {', '.join(devices)}, a process each")
            yield stack.enter_context(processes(devices))
        else:
            yield None


@contextlib.contextmanager
def processes(devices: list[str]) -> Iterator[Executor]:
    """A process of its own for each device."""
    context = multiprocessing.get_context("spawn")  # a forked process can't use CUDA
    free, up = context.Queue(), context.Event()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _take_device, (free, up))
    try:
        yield pool
    except BrokenExecutor as error:
        if not up.is_set():
            raise FormatError(
                f"the processes that predict on {', '.join(devices)} were lost as they started; a script needs `if __name__ == "
                '"__main__":` around the call of predict, or memory is short.'
            ) from error
        raise FormatError(
            f"a process that predicted on one of {', '.join(devices)} was lost (out of memory?); the same command with --resume goes on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _take_device(free: Queue[str], up: Event) -> None:
    global own_device
    up.set()
    own_device = free.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """Dask's scheduler and workers, single-threaded processes on this machine that only this machine can reach: the scheduler's address."""
    import logging

    from distributed import LocalCluster

    with (
        TemporaryDirectory(prefix="smp-predict-") as scratch,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=None, host="127.0.0.1", dashboard_address=None,
            local_directory=scratch, silence_logs=logging.CRITICAL,
        ) as cluster,
    ):  # fmt: skip
        yield cluster.scheduler_address


@contextlib.contextmanager
def workers_of(scheduler: str, reporter: Reporter) -> Iterator[Executor]:
    """The workers that a Dask scheduler knows. They need this package, and the same paths to model and videos."""
    from distributed import Client, KilledWorker

    try:
        client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise FormatError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); start one with `dask scheduler`."
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            reporter.warn(f"{scheduler} has no workers yet; start some with `dask worker {scheduler} --nthreads 1`")
        executor = client.get_executor(pure=False, retries=_RETRIES)
        try:
            yield executor
        except KilledWorker as error:
            raise FormatError(
                f"{scheduler}: several workers were lost at the same frames (out of memory?); --resume with --batch 1 takes less."
            ) from error
        except CancelledError as error:
            raise FormatError(f"{scheduler}: the connection was lost; the same command with --resume goes on.") from error
        finally:
            executor.shutdown(wait=False)


def finished(futures: dict[Future[Result], Key], stopped: threading.Event) -> Iterator[tuple[Key, Result]]:
    """What belongs to each future, and its result, in whatever order they are done, until ``stopped``. ``futures`` is emptied."""
    done: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    while futures and not stopped.is_set():
        try:
            future = done.get(timeout=0.2)
        except queue.Empty:
            continue
        yield futures.pop(future), future.result()

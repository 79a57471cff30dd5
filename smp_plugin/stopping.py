"""Ctrl-C as a wish: work ends where it can be gone on with."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

AGAIN = 1.0  # seconds after which a signal is a second wish; many programs hand one on that its group has already got


def without_ctrl_c(_: int) -> None:
    """What a data loader's process begins with: Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job; the first
    one decides. Here, since on Windows such a process reads the module that this is in.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stoppable(at_once: bool = False) -> Iterator[threading.Event]:
    """Ctrl-C asks to stop at the next good moment, by setting the event; pressed again, or with ``at_once``, it stops at once.

    SIGTERM does the same, as `smp_plugin.cli` hands it on. Afterwards Ctrl-C does what it did before, whatever others (Lightning) made of
    it; where it was switched off, it stays so.
    """
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield stopped
        return
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and before is signal.SIG_IGN:
            return
        if not stopped.is_set():
            first = time.monotonic()
            stopped.set()
        elif time.monotonic() - first >= AGAIN:
            (before if callable(before) else signal.default_int_handler)(number, frame)

    if not at_once:
        signal.signal(signal.SIGINT, ask)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)

"""Ctrl-C as a wish: work ends where it can be gone on with."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stoppable(at_once: bool = False) -> Iterator[threading.Event]:
    """Ctrl-C asks to stop at the next good moment, by setting the event; pressed again, or with ``at_once``, it stops at once.

    Afterwards Ctrl-C does what it did before, whatever others (Lightning) made of it.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    if not at_once:
        signal.signal(signal.SIGINT, ask)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)

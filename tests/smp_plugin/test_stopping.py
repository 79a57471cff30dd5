"""Ctrl-C as a wish, pressed once and twice, and where it is switched off."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from smp_plugin import stopping
from smp_plugin.stopping import stoppable


def test_once_is_a_wish_and_twice_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable() as stopped:
        assert not stopped.is_set()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same one, handed on by another program
        assert stopped.is_set()
        now[0] += 2.0
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it goes on")
    assert signal.getsignal(signal.SIGINT) is before


def test_at_once_nothing_is_asked() -> None:
    with pytest.raises(KeyboardInterrupt), stoppable(at_once=True):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it goes on")


def test_where_ctrl_c_is_switched_off_it_stays_so_but_others_may_ask() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable() as stopped:
        signal.raise_signal(signal.SIGINT)
        assert not stopped.is_set()
        handler: Any = signal.getsignal(signal.SIGINT)
        handler(signal.SIGTERM, None)  # as the command line does with SIGTERM
        assert stopped.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_a_thread_nothing_is_changed() -> None:
    handlers = []

    def work() -> None:
        with stoppable() as stopped:
            handlers.append((signal.getsignal(signal.SIGINT), stopped.is_set()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [(signal.default_int_handler, False)]

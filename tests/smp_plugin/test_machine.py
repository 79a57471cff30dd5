"""What a process works on and how much memory it took, as systems and GPUs say it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from smp_plugin import machine as tested
from smp_plugin.machine import machine, memory_in_words, peak_memory, process_memory


@pytest.mark.parametrize(("held", "name", "peak"), [([0, 5 * 10**9], "H200, ", 5 * 10**9), ([0, 0], "CPU, ", None)])
def test_gpus_are_named_that_were_used(held: list[int], name: str, peak: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_name=["A100", "H200"].__getitem__,
        max_memory_reserved=held.__getitem__,
    )
    mps = SimpleNamespace(is_available=lambda: False)
    torch = SimpleNamespace(cuda=cuda, backends=SimpleNamespace(mps=mps), get_num_threads=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert re.fullmatch(name + r"\d+ processor cores?, 1 thread", machine())
    assert peak_memory() == (peak or process_memory())
    assert re.fullmatch(r"\d+\.\d\d GB of the process" + (", 5.00 GB of H200" if peak else ""), memory_in_words())


def test_memory_is_in_bytes_and_that_at_the_peak() -> None:
    filled = np.ones(2**23)
    size, before = filled.nbytes, process_memory()
    del filled
    assert size < before < process_memory() + size / 2 < 10**12  # the system counts roughly


@pytest.mark.parametrize(("system", "bytes_held"), [("linux", 3 * 2**30), ("darwin", 3 * 2**20), ("win32", 0)])
def test_systems_without_proc_say_it_another_way_or_not_at_all(system: str, bytes_held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> str:
        raise FileNotFoundError

    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=3 * 2**20))
    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(tested.sys, "platform", system)
    monkeypatch.setitem(sys.modules, "resource", usage if bytes_held else None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert process_memory() == peak_memory() == bytes_held
    assert ("GB of the process" if bytes_held else "not known, as this system does not say") in memory_in_words()

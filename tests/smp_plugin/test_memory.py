"""What freed memory costs when it is wanted again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from smp_plugin.memory import keep_freed

def network():
    for _ in range(20):
        blocks = [torch.zeros(20, 2**20, dtype=torch.uint8) for _ in range(4)]

def lanes():
    threads = [threading.Thread(target=network) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

if "keep" in sys.argv:
    assert keep_freed()
lanes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
lanes()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told to keep memory")
def test_memory_that_is_used_over_and_over_stays_with_the_process():
    assert faults("keep") < faults() / 5

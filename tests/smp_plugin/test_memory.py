"""What freed memory costs when it is wanted again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from smp_plugin.memory import keep_freed

def network():
    for _ in range(5):
        blocks = [b"1" * (20 * 2**20) for _ in range(4)]
        del blocks

if "keep" in sys.argv:
    assert keep_freed()
network()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
network()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    own = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # another allocator, or one that was told otherwise
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    command = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told to keep memory")
def test_memory_that_is_used_over_and_over_stays_with_the_process():
    usual = faults()
    if usual < 10_000:
        pytest.skip(f"this system counts only {usual} page faults")
    assert faults("keep") < usual / 5

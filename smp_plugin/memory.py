"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes
import sys

# From malloc.h of the GNU C library; mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8


def keep_freed() -> bool:
    """Freed memory, up to 1 GiB of it, stays with the process for what it needs next. Returns whether the C library took it.

    A network on a CPU frees and takes the same blocks over and over. The GNU C library hands large ones back to the system, which clears
    them page by page when they are wanted again: thousands of page faults in a batch of four frames of 384x384. It helps less the more
    threads of the process have taken memory before. Other C libraries (macOS, Windows) are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    # One arena: those of threads are small, and shrink whatever the thresholds are. 32 MiB is the largest threshold that it takes.
    return all(mallopt(key, value) for key, value in ((ARENA_MAX, 1), (MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**30)))

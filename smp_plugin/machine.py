"""What this process works on, and how much memory it took at most."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def gpus() -> list[tuple[str, int]]:
    """Of each NVIDIA GPU that this process used, and it may have used any: its name, and the bytes that were reserved on it at most."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    all_of_them = range(torch.cuda.device_count())
    return [(torch.cuda.get_device_name(i), int(held)) for i in all_of_them if (held := torch.cuda.max_memory_reserved(i))]


def machine() -> str:
    """What this process worked on: the GPU, where it used one, processor cores that it may use, and PyTorch's threads."""
    torch = sys.modules.get("torch")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [name for name, _ in gpus()]
    if torch is not None and torch.backends.mps.is_available() and torch.mps.driver_allocated_memory():
        parts.append("Apple GPU")
    parts.append(f"{'' if parts else 'CPU, '}{cores} processor {'core' if cores == 1 else 'cores'}")
    if torch is not None:
        parts.append(f"{torch.get_num_threads()} {'thread' if torch.get_num_threads() == 1 else 'threads'}")
    return ", ".join(parts)


def process_memory() -> int:
    """Bytes that this process held at most; 0 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):  # getrusage's figure, on Linux, begins at the parent's
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory() -> int:
    """Bytes: of the GPU where this process used one, else of the process; 0 where the system does not say."""
    return max((held for _, held in gpus()), default=0) or process_memory()


def memory_in_words() -> str:
    """Of the process and of each GPU that it used: ``0.62 GB of the process, 12.31 GB of NVIDIA H200``, GB of 10^9 bytes."""
    held = process_memory()
    own = f"{held / 1e9:.2f} GB of the process" if held else "of the process not known, as this system does not say"
    return ", ".join([own, *(f"{reserved / 1e9:.2f} GB of {name}" for name, reserved in gpus())])

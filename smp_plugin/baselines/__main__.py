"""``python -m smp_plugin.baselines FOLDER``: do the job that FOLDER's ``job.json`` describes, and write ``outcome.json`` beside it.

Exit code 3: the method is not available here, and ``unavailable.txt`` says why; 2: bad input, and ``refused.txt`` says what is wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from converters.labels import FormatError
from smp_plugin.baselines import DLC, SLEAP, Job, Outcome, Unavailable

REFUSED, UNAVAILABLE = 2, 3


def obey(parent: int) -> None:
    """Ctrl-C reaches this process through its parent, and ends it where the parent no longer lives: another may soon work in the folder."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a parent in the background has switched off

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def main(folder: Path) -> int:
    """Returns the exit code."""
    job = Job.read(folder)
    camp = "sleap" if job.method in SLEAP else "deeplabcut" if job.method in DLC else "own"
    try:
        outcome: Outcome = importlib.import_module(f"smp_plugin.baselines.{camp}").run(job)
    except Unavailable as error:
        (folder / "unavailable.txt").write_text(str(error), encoding="utf-8")
        return UNAVAILABLE
    except FormatError as error:
        (folder / "refused.txt").write_text(str(error), encoding="utf-8")
        return REFUSED
    outcome.peak_memory, outcome.machine = peak_memory(), machine()
    outcome.write(folder)
    return 0


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


def peak_memory() -> int:
    """Bytes: of the GPU where this process used one, else of the process; 0 where the system does not say."""
    if used := gpus():
        return max(held for _, held in used)
    with contextlib.suppress(OSError, StopIteration):  # getrusage's figure, on Linux, begins at the parent's
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    obey(os.getppid())
    sys.exit(main(Path(sys.argv[1])))

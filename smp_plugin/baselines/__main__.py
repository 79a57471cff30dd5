"""``python -m smp_plugin.baselines FOLDER``: do the job that FOLDER's ``job.json`` describes, and write ``outcome.json`` beside it.

Exit code 3: the method is not available here, and ``unavailable.txt`` says why; 2: bad input, and ``refused.txt`` says what is wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import json
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
    outcome.peak_memory = peak_memory()
    partial = folder / ".outcome.json.partial"
    partial.write_text(json.dumps(outcome.to_dict(), indent=1), encoding="utf-8")
    os.replace(partial, folder / "outcome.json")
    return 0


def peak_memory() -> int:
    """Bytes: of the GPU where this process used one, else of the process; 0 where the system does not say."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        reserved = max(map(torch.cuda.max_memory_reserved, range(torch.cuda.device_count())), default=0)  # it may have used any of them
        if reserved:
            return int(reserved)
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

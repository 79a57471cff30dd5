"""``python -m smp_plugin.baselines FOLDER``: do the job that FOLDER's ``job.json`` describes, and write ``outcome.json`` beside it.

Exit code 3: the method is not available here, and ``unavailable.txt`` says why; 2: bad input, and ``refused.txt`` says what is wrong.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from converters.labels import FormatError
from smp_plugin.baselines import DLC, SLEAP, Job, Outcome, Unavailable
from smp_plugin.machine import machine, peak_memory

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


if __name__ == "__main__":
    obey(os.getppid())
    sys.exit(main(Path(sys.argv[1])))

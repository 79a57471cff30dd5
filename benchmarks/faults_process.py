"""A command of `faults` as a process that gets a signal: forked from this one, in which all is imported, or a fresh one."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 900.0  # seconds until a process that does not end is a failure
LOOK = 0.004  # seconds between two looks at a process
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When the signal comes: after so much work (what else the machine does should not matter), or just before the n-th time that a file
    is opened to write, moved or removed."""

    cpu_seconds: float = math.inf
    operation: int = 0


@dataclass(frozen=True)
class Ended:
    """``code``: as a shell says it, 128 + signal where a signal ended it. ``facts``: what a forked process that ended by itself counted."""

    code: int
    text: str
    cpu_seconds: float
    hit: bool  # did the signal come before the end?
    facts: dict[str, Any]


def run(name: str, words: list[str], folder: Path, sent: int = 0, moment: Moment = Moment(), fresh: bool = False) -> Ended:  # noqa: B008
    """``smp-NAME`` in ``folder``, with its temporary files in ``folder/tmp``."""
    said, facts = folder.with_name(f"{folder.name}.said"), folder.with_name(f"{folder.name}.facts")
    facts.unlink(missing_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    started = time.monotonic()
    with said.open("wb") as log:
        pid = (_fresh if fresh else _forked)(name, words, folder, log, sent, moment)
    ended, hit = 0, False
    while not ended:
        time.sleep(LOOK)
        if sent and not hit and cpu_seconds(pid) >= moment.cpu_seconds:
            hit = True
            os.kill(pid, sent)
        if time.monotonic() - started > LONGEST:
            raise SystemExit(f"smp-{name} has not ended after {LONGEST:g} s:\n{said.read_text(errors='replace')}")
        ended, status, used = os.wait4(pid, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    told = json.loads(facts.read_text()) if facts.exists() else {}
    hit = hit or bool(moment.operation and sent and told.get("operations", moment.operation) >= moment.operation)
    return Ended(128 - code if code < 0 else code, said.read_text(errors="replace"), used.ru_utime + used.ru_stime, hit, told)


def cpu_seconds(pid: int) -> float:
    """Work of a process so far, -1 where it has ended and only waits to be looked at."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return -1 if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fresh(name: str, words: list[str], folder: Path, log: Any, sent: int, moment: Moment) -> int:
    """As the console script starts it."""
    script = f"import sys; sys.argv[0] = 'smp-{name}'; from smp_plugin.cli.{name} import main; sys.exit(main())"
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", script, *words], cwd=folder, stdout=log, stderr=log, env=environment).pid


def _forked(name: str, words: list[str], folder: Path, log: Any, sent: int, moment: Moment) -> int:
    both = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, both)  # until the command begins
    if pid := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        return pid
    code = 1
    try:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.chdir(folder)
        tempfile.tempdir = str(folder / "tmp")
        sys.argv = [f"smp-{name}", *words]
        count = _count(folder, sent, moment.operation)
        main = importlib.import_module(f"smp_plugin.cli.{name}").main
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        code = main()
        sys.stdout.flush()
        told = {"operations": count[0], "modules": sorted(sys.modules)}
        folder.with_name(f"{folder.name}.facts").write_text(json.dumps(told))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError


def _count(folder: Path, sent: int, operation: int) -> list[int]:
    """Counts what this process writes in ``folder`` from now on, and sends it the signal before the ``operation``-th time."""
    count, inside = [0], f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (opened or event in ("os.rename", "os.remove")) and os.path.abspath(str(arguments[0])).startswith(inside):
            count[0] += 1
            if count[0] == operation:
                os.kill(os.getpid(), sent)

    sys.addaudithook(hook)
    return count


def import_all(modules: list[str]) -> None:
    """What a command imported, so that the processes forked next find it."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)

"""What a person, a log file or SLEAP's GUI is told while long work runs.

Three faces: a progress bar on a terminal, a plain line every 20 s elsewhere, and JSON lines on stdout in the form SLEAP's GUI reads,
``{"n_processed": 8, "n_total": 16, "rate": 1.8, "eta": 4.6}``. The log file gets every sentence with its time, whatever else is quiet; what
was said before the log file was known is written to it when it is. Needs no torch, and rich only where something is drawn.
"""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from converters.labels import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_EVERY = 20.0  # seconds between plain progress lines
LOG_EVERY = 60.0  # seconds between progress lines in the log
JSON_EVERY = 0.25  # seconds between JSON progress lines
RATE_WINDOW = 30.0  # seconds over which the rate is measured


class Reporter:
    """Where sentences, warnings and progress go.

    Args:
        quiet: nothing but warnings is shown. The log is not affected.
        json: JSON lines on stdout instead of text on stderr.
    """

    def __init__(self, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json
        self.log: Path | None = None
        self.mute = False  # of the processes of a distributed run, one speaks
        self._unlogged: list[str] = []
        self._said: list[str] = []
        self._warned: list[str] = []
        self._console: Console | None = None
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """A sentence: what was chosen, and why."""
        text = printable(text)
        self._said.append(text)
        self._write_log(text)
        if not self.quiet:
            self._show({"message": text}, text, "")

    def warn(self, text: str) -> None:
        """Something the person should look at; shown even when quiet."""
        text = printable(text)
        self._warned.append(text)
        self._write_log(f"Warning: {text}")
        self._show({"message": text, "warning": True}, f"Warning: {text}", "yellow")

    def take(self) -> tuple[list[str], list[str]]:
        """Sentences and warnings since the last call, for a report."""
        taken, self._said, self._warned = (self._said, self._warned), [], []
        return taken

    def log_to(self, path: Path) -> None:
        """Append to this file from now on, beginning with what was said so far."""
        if self.mute:
            return
        self.log = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(self._unlogged)
        self._unlogged = []

    @contextmanager
    def task(self, what: str, total: float, unit: str) -> Iterator[Task]:
        """Long work: ``what`` is done ("predicting"), of how many ``unit`` ("frames"). One task at a time draws the bar; one inside it
        prints lines.
        """
        task = Task(self, what, total, unit)
        with task:
            yield task

    def _write_log(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n"
        if self.log is None:
            self._unlogged.append(line)
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(line)

    def _show(self, record: dict[str, Any], text: str, style: str) -> None:
        if self.mute:
            return
        if self.json:
            _print_line(jsonlib.dumps(record), sys.stdout)
        elif self.terminal:
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            _print_line(text, sys.stderr)

    @property
    def terminal(self) -> bool:
        """Does a person watch a terminal that can redraw a line?"""
        return sys.stderr.isatty() and self.console.is_terminal and not self.console.is_dumb_terminal

    @property
    def console(self) -> Console:
        """The console on stderr that bars and sentences share, so that neither tears the other."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True)
        return self._console


class Task:
    """Progress of one piece of work; made by ``Reporter.task``."""

    def __init__(self, reporter: Reporter, what: str, total: float, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.info: dict[str, Any] = {}
        self._reporter = reporter
        self._start = time.monotonic()
        self._history: deque[tuple[float, float]] = deque([(self._start, 0.0)])
        self._next = {"line": self._start, "log": self._start, "json": self._start}
        self._owns_bar = not (reporter.quiet or reporter.mute or reporter.json or reporter._bar is not None) and reporter.terminal
        self._bar_task: Any = None

    def update(self, done: float, **info: Any) -> None:
        """``done`` of ``total`` so far (not since the last call); ``info`` is shown beside it, numbers with three digits."""
        now = time.monotonic()
        self.done = done
        self.info.update(info)
        self._history.append((now, done))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW:
            self._history.popleft()
        self._publish(now)

    @property
    def rate(self) -> float:
        """Units per second, lately."""
        (then, before), (now, done) = self._history[0], self._history[-1]
        return (done - before) / (now - then) if now > then else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds left, None while nobody knows."""
        return None if self.rate <= 0 else max(0.0, (self.total - self.done) / self.rate)

    @property
    def line(self) -> str:
        """``predicting: 120/3000 frames, 11.8/s, 4 min 4 s left, loss 0.31``."""
        parts = [f"{_number(self.done)}/{_number(self.total)} {self.unit}"]
        if self.rate > 0:
            parts.append(f"{self.rate:.3g}/s")
        if self.eta is not None and self.done < self.total:
            parts.append(f"{duration(self.eta)} left")
        return f"{self.what}: " + ", ".join(parts + self._shown_info)

    @property
    def _shown_info(self) -> list[str]:
        return [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in self.info.items()]

    def _publish(self, now: float, last: bool = False) -> None:
        reporter = self._reporter
        if last or now >= self._next["log"]:
            self._next["log"] = now + LOG_EVERY
            reporter._write_log(self.line)
        if reporter.quiet or reporter.mute:
            return
        if reporter.json:
            if last or now >= self._next["json"]:
                self._next["json"] = now + JSON_EVERY
                _print_line(jsonlib.dumps(self._record()), sys.stdout)
        elif self._owns_bar and reporter._bar is not None:
            reporter._bar.update(
                self._bar_task, completed=self.done, info="  ".join(self._shown_info), rate=f"{self.rate:.3g}/s", left=self._left()
            )
        elif last or now >= self._next["line"]:
            self._next["line"] = now + LINE_EVERY
            reporter._show({}, self.line, "")

    def _left(self) -> str:
        return "" if self.eta is None else f"{duration(self.eta)} left"

    def _record(self) -> dict[str, Any]:
        """One line of SLEAP's GUI protocol."""
        eta = None if self.eta is None else round(self.eta, 1)
        return {"n_processed": _plain(self.done), "n_total": _plain(self.total), "rate": round(self.rate, 2), "eta": eta}

    def __enter__(self) -> Task:
        if self._owns_bar:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

            self._reporter._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}  {task.fields[left]}", style="cyan", markup=False),
                TextColumn("{task.fields[info]}", style="dim", markup=False),
                console=self._reporter.console,
                transient=True,
            )
            self._bar_task = self._reporter._bar.add_task(self.what, total=self.total, info="", rate="", left="")
            self._reporter._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._owns_bar and self._reporter._bar is not None:
            self._reporter._bar.stop()
            self._reporter._bar = None
            self._owns_bar = False  # so that the last line stays where the bar was
        self._publish(time.monotonic(), last=True)


def duration(seconds: float) -> str:
    """``4 min 4 s``, ``2 h 5 min``, ``12 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _print_line(text: str, file: TextIO) -> None:
    """In one piece: while one thread predicts, another may write files, and both speak."""
    print(f"{text}\n", end="", file=file, flush=True)


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else round(float(value), 3)


def _number(value: float) -> str:
    return f"{_plain(value)}"

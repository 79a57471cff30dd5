"""What is shown, logged and sent to SLEAP's GUI."""

import io
import json
import sys
from pathlib import Path

import pytest

from smp_plugin import progress
from smp_plugin.progress import Reporter, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def _work(reporter: Reporter, clock: Clock, seconds: int = 50) -> None:
    with reporter.task("predicting", seconds * 10, "frames") as task:
        for second in range(1, seconds + 1):
            clock.now += 1
            task.update(second * 10, loss=0.12345)


def test_plain_lines_every_20_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]):
    reporter = Reporter()
    reporter.say("preset small: there is no CUDA device")
    _work(reporter, clock)
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == ""
    assert lines[0] == "preset small: there is no CUDA device"
    assert lines[1] == "predicting: 10/500 frames, 10/s, 49 s left, loss 0.123"
    assert [line.split("/")[0] for line in lines[1:]] == [f"predicting: {n}" for n in (10, 210, 410, 500)]
    assert "left" not in lines[-1]


def test_json_lines_are_sleaps_protocol(clock: Clock, capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(json=True)
    reporter.say("hello")
    with reporter.task("predicting", 16, "frames") as task:
        for n in range(1, 17):
            clock.now += 0.1
            task.update(n)
    shown = capsys.readouterr()
    records = [json.loads(line) for line in shown.out.splitlines()]
    assert shown.err == ""
    assert records[0] == {"message": "hello"}
    assert all(set(r) == {"n_processed", "n_total", "rate", "eta"} for r in records[1:])
    assert 4 <= len(records[1:]) <= 8  # 1.6 s at 4 Hz, and the last
    assert records[-1] == {"n_processed": 16, "n_total": 16, "rate": 10.0, "eta": 0.0}


def test_quiet_shows_only_warnings(clock: Clock, capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(quiet=True)
    reporter.say("chosen")
    reporter.warn("look")
    _work(reporter, clock)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "Warning: look\n"


def test_log_gets_everything_with_its_time(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(quiet=True)
    reporter.say("before")
    reporter.log_to(tmp_path / "run" / "log.txt")
    reporter.warn("after")
    _work(reporter, clock)
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines[:2]] == ["before", "Warning: after"]
    assert lines[0][:2] == "20" and lines[0][10] == " "
    assert lines[2].endswith("10/500 frames, 10/s, 49 s left, loss 0.123") and "500/500" in lines[-1]


def test_log_is_appended_to(tmp_path: Path):
    for text in ("first", "second"):
        reporter = Reporter(quiet=True)
        reporter.log_to(tmp_path / "log.txt")
        reporter.say(text)
    assert [line.split("  ")[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]


def test_error_inside_a_task_is_not_swallowed(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(KeyError), Reporter().task("work", 2, "steps") as task:
        task.update(1)
        raise KeyError


def test_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    reporter = Reporter()
    with reporter.task("training", 10, "steps") as task:
        task.update(5, loss=0.5)
        reporter.say("[a sentence] in between")
    shown = terminal.getvalue()
    assert "training" in shown and "━" in shown and "[a sentence] in between" in shown and "training: 5/10 steps" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7500, "2 h 5 min")])
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text

"""A few of the damaged files of ``benchmarks/fuzz_formats.py``, so that it runs when it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_formats.py"


@pytest.mark.skipif(sys.platform != "linux", reason="the script watches processes through /proc")
def test_damaged_files_of_every_format(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPT), "--cases", "12", "--output", str(out)]  # it forks, so it runs in a process without threads
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], env={"PYTHONPATH": str(SCRIPT.parents[1])})
    assert done.returncode == 0, done.stdout + done.stderr
    formats = json.loads(out.read_text())["formats"]
    assert len(formats) == 10
    assert all(row["cases"] == 12 and row["refused"] and row["converted"] for row in formats.values())

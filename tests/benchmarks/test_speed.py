"""The comparison of speed, without its measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import speed  # type: ignore[import-not-found]  # noqa: E402


def made_up(method: str, number: int, rate: float, **more: float) -> dict[str, Any]:
    figures = {"frames_per_second": rate, "startup_seconds": 2.0 + number, "peak_memory_gb": 1.5, "animals_found": 2.0, **more}
    return {"method": method, "video": "pair24", "animals": 2, "round": number, **figures}


def test_rows_are_medians_and_ratios_are_taken_within_a_round():
    runs = [
        *(made_up("smp-small", number, rate, write_ms=number, gflop=3.0) for number, rate in enumerate((10.0, 30.0, 80.0))),
        *(made_up("sleap-bottomup", number, rate) for number, rate in enumerate((10.0, 10.0, 20.0))),
        made_up("sleap-topdown", 1, 5.0),
    ]
    ours, bottomup, topdown = speed.summarised(runs, {"float32": 100.0, "bfloat16": 300.0})
    assert (ours["method"], ours["video"], ours["rounds"], ours["animals_found"]) == ("smp-small", "pair24", 3, 2.0)
    assert (ours["frames_per_second"], ours["startup_seconds"], ours["write_ms"]) == (30.0, 3.0, 1.0)
    assert (ours["times_sleap-bottomup"], ours["times_sleap-bottomup_range"]) == (3.0, [1.0, 4.0])
    assert (ours["times_sleap-topdown"], ours["times_sleap-topdown_range"]) == (6.0, [6.0, 6.0])  # but here only the second round counts
    assert ours["floor_ms"] == pytest.approx(10.0) and "times_dlc-dekr_w18" not in ours
    assert bottomup["frames_per_second"] == 10.0 and topdown["rounds"] == 1
    assert not any(key.startswith(("times", "write")) for row in (bottomup, topdown) for key in row)


def test_json_is_all_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def models(*_: Any) -> dict[str, list[str]]:
        print("a peer's training speaks")
        return {"smp-small": ["a"], "sleap-bottomup": ["b"]}

    def measured(method: str, _: Any, video: dict[str, Any], *__: Any, **___: Any) -> dict[str, float]:
        return {key: made_up(method, 0, 8.0)[key] for key in ("frames_per_second", "startup_seconds", "peak_memory_gb", "animals_found")}

    monkeypatch.setattr(speed, "models", models)
    monkeypatch.setattr(speed, "videos", lambda _: [{"name": name, "animals": 2} for name in ("pair24", "crowd2x2-2")])
    monkeypatch.setattr(speed, "measured", measured)
    monkeypatch.setattr(speed, "matrix_rate", lambda _: {"float32": 100.0})
    monkeypatch.setattr(speed, "trained", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["speed.py", "data", "--models", str(tmp_path), "--rounds", "1", "--json"])
    speed.main()
    out, err = capsys.readouterr()
    rows = json.loads(out)["rows"]
    assert [(row["method"], row["video"]) for row in rows] == [
        ("smp-small", "pair24"),
        ("sleap-bottomup", "pair24"),
        ("smp-small", "crowd2x2-2"),
    ]
    assert all(row["frames_per_second"] == 8.0 and row["animals_found"] == 2.0 for row in rows)
    assert err == "a peer's training speaks\n"

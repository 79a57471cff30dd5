"""``results.csv``, means and paired differences."""

import json
import math
from pathlib import Path

import pytest

from converters.labels import FormatError
from smp_plugin.baselines import CurvePoint, Outcome
from smp_plugin.comparison_results import (
    COLUMNS,
    FIGURES,
    append_result,
    cell_folder,
    paired_differences,
    read_outcome,
    read_results,
    summarise,
)


def _row(method: str, fraction: str, seed: int, ap: float, **values: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS, 1.0)
    labels = {"all": 105}.get(fraction, 0) or int(fraction)
    return row | {"method": method, "labels": labels, "fraction": fraction, "seed": seed, "ap_s2_1": ap, "version": "x 1.0"} | values


def test_rows_come_back_in_the_order_of_methods_labels_and_seeds(tmp_path: Path):
    folder = tmp_path / "new"
    assert read_results(folder) == []
    rows = [
        _row("sleap-bottomup", "5", 0, 0.5),
        _row("smp", "all", 0, 0.75),
        _row("smp", "25", 1, 0.25),
        _row("smp", "25", 0, 1 / 3, missed=12, version='a, "b"\n<c>', peak_memory_gb=math.nan, doubled=None),
        _row("another", "5", 0, 0.5),
    ]
    for row in rows:
        append_result(folder, row)
    cells = read_results(folder)
    assert [cell.key for cell in cells] == [
        ("smp", "25", 0), ("smp", "25", 1), ("smp", "all", 0), ("sleap-bottomup", "5", 0), ("another", "5", 0)
    ]  # fmt: skip
    first = cells[0]
    assert first.labels == 25 and first.version == 'a, "b"\n<c>' and first.figures["missed"] == 12
    assert first.figures["ap_s2_1"] == pytest.approx(1 / 3, abs=1e-9)
    assert math.isnan(first.figures["peak_memory_gb"]) and math.isnan(first.figures["doubled"])
    assert "nan" not in (folder / "results.csv").read_text() and ",12," in (folder / "results.csv").read_text()
    assert [path.name for path in folder.iterdir()] == ["results.csv"]


def test_a_cell_measured_again_replaces_its_line(tmp_path: Path):
    append_result(tmp_path, _row("smp", "5", 0, 0.5))
    append_result(tmp_path, _row("smp", "5", 1, 0.6))
    append_result(tmp_path, _row("smp", "5", 0, 0.7))
    assert {cell.seed: cell.figures["ap_s2_1"] for cell in read_results(tmp_path)} == {0: 0.7, 1: 0.6}


@pytest.mark.parametrize("left", [3, 20, 34])
def test_a_line_cut_off_is_no_finished_cell(tmp_path: Path, left: int):
    append_result(tmp_path, _row("smp", "5", 0, 0.5))
    path = tmp_path / "results.csv"
    whole = path.read_text()
    append_result(tmp_path, _row("smp", "5", 1, 0.6))
    line = path.read_text()[len(whole) :]
    assert len(line) > left
    path.write_text(whole + line[:left])
    assert [cell.seed for cell in read_results(tmp_path)] == [0]
    append_result(tmp_path, _row("smp", "5", 2, 0.6))
    assert [cell.seed for cell in read_results(tmp_path)] == [0, 2]


def test_an_interrupted_writer_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append_result(tmp_path, _row("smp", "5", 0, 0.5))
    before = (tmp_path / "results.csv").read_text()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append_result(tmp_path, _row("smp", "5", 1, 0.5))
    monkeypatch.undo()
    assert (tmp_path / "results.csv").read_text() == before
    append_result(tmp_path, _row("smp", "5", 1, 0.5))
    assert len(read_results(tmp_path)) == 2


def test_what_is_no_table_of_results_is_refused(tmp_path: Path):
    (tmp_path / "results.csv").write_text("")
    assert read_results(tmp_path) == []
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match=r"results\.csv has no column method"):
        read_results(tmp_path)
    (tmp_path / "results.csv").unlink()
    with pytest.raises(ValueError, match="colour"):
        append_result(tmp_path, _row("smp", "5", 0, 0.5, colour=3))
    with pytest.raises(ValueError, match="without a method"):
        append_result(tmp_path, _row("smp", "5", 0, 0.5) | {"seed": "first"})
    assert not (tmp_path / "results.csv").exists()


def test_means_errors_and_paired_differences(tmp_path: Path):
    for seed, (ours, theirs) in enumerate([(0.5, 0.4), (0.7, 0.5), (0.9, 0.9)]):
        append_result(tmp_path, _row("smp", "5", seed, ours))
        append_result(tmp_path, _row("directpose", "5", seed, theirs))
    append_result(tmp_path, _row("smp", "25", 0, 0.8))
    append_result(tmp_path, _row("directpose", "25", 0, 0.9))
    for seed, theirs in enumerate((0.75, 0.83)):
        append_result(tmp_path, _row("smp", "all", seed, 0.8))
        append_result(tmp_path, _row("directpose", "all", seed, theirs))
    append_result(tmp_path, _row("directpose", "25", 9, 0.1))  # without a partner: no part of a difference
    cells = read_results(tmp_path)
    summaries = {(s.method, s.fraction): s for s in summarise(cells)}
    five = summaries["smp", "5"]
    assert (five.runs, five.labels) == (3, 5) and set(five.mean) == set(FIGURES)
    assert five.mean["ap_s2_1"] == pytest.approx(0.7) and five.error["ap_s2_1"] == pytest.approx(0.2 / math.sqrt(3))
    assert summaries["smp", "25"].runs == 1 and math.isnan(summaries["smp", "25"].error["ap_s2_1"])

    differences = {d.fraction: d for d in paired_differences(cells, "smp")}
    assert [(f, d.pairs) for f, d in differences.items()] == [("5", 3), ("25", 1), ("all", 2)]
    five_less = differences["5"]
    assert five_less.mean["ap_s2_1"] == pytest.approx(-0.1)
    assert five_less.error["ap_s2_1"] == pytest.approx(0.1 / math.sqrt(3))
    assert five_less.lead("ap_s2_1") == pytest.approx(-0.1)
    assert math.isnan(differences["25"].lead("ap_s2_1"))  # one pair
    assert differences["all"].mean["ap_s2_1"] == pytest.approx(-0.01)
    assert differences["all"].lead("ap_s2_1") == 0.0  # less than its error of .04
    assert paired_differences(cells, "sleap-topdown") == []


def test_an_outcome_that_can_not_be_read_is_none(tmp_path: Path):
    append_result(tmp_path, _row("smp", "5", 0, 0.5))
    cell = read_results(tmp_path)[0]
    assert read_outcome(tmp_path, cell) is None
    folder = cell_folder(tmp_path, "smp", "5", 0)
    assert folder == tmp_path / "cells" / "smp_5_0"
    folder.mkdir(parents=True)
    outcome = Outcome("smp-plugin 0.1", 10, 60.0, 1.0, 30, ["a note"], [CurvePoint(1.0, 5, "labelled", {"1": 0.5})])
    (folder / "outcome.json").write_text(json.dumps(outcome.to_dict()))
    assert read_outcome(tmp_path, cell) == outcome
    for damaged in ("", "[]", "{}", '{"curve": 3}', json.dumps(outcome.to_dict())[:-20]):
        (folder / "outcome.json").write_text(damaged)
        assert read_outcome(tmp_path, cell) is None

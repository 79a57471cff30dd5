"""Comparisons: what is compared with what, interrupted and gone on with; and one real run in a process of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import FormatError, LabeledFrame, PredictedInstance, read_project, write_project
from smp_plugin import comparison
from smp_plugin.baselines import Job, Outcome
from smp_plugin.cli.compare import main
from smp_plugin.comparison import compare, count_of, drawn

TINY = {
    "data.crop": "64", "data.animal_size": "28", "model.channels": "16", "model.tower_depth": "1", "model.heatmap_channels": "16",
    "model.weights": "none", "train.batch": "2", "train.unlabeled_batch": "1", "train.precision": "fp32",
}  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Runs that predict the labels themselves, moved by ``error`` px, and one animal far off whose score is ``far``; methods in ``broken``
    fail, DeepLabCut's are not available.
    """

    def make(error: float = 0.0, broken: tuple[str, ...] = (), far: float = 0.1) -> list[Job]:
        done: list[Job] = []

        def run(job: Job, tick: Callable[[float], None]) -> comparison._Problem | None:
            job.write()
            if job.method.startswith("dlc-"):
                return comparison._Problem("DeepLabCut is not here.", True)
            if job.method in broken:
                return comparison._Problem(f"{job.method} failed.", False)
            labels = read_project(job.val)
            frames = [
                LabeledFrame(f.video, f.index, predicted=[PredictedInstance(i.points + error, score=0.9) for i in f.instances])
                for f in labels.labelled_frames
            ]
            off = PredictedInstance(np.full((len(labels.skeleton), 2), 500.0) + np.arange(2), score=far)
            frames[0] = replace(frames[0], predicted=[*frames[0].predicted, off])
            write_project(job.predictions, replace(labels, frames=frames))
            outcome = Outcome("pretended 1", 7, 120.0, 2.0, len(frames), peak_memory=3 * 10**9, min_score=0.5)
            (job.folder / "outcome.json").write_text(json.dumps(outcome.to_dict()))
            done.append(job)
            return None

        monkeypatch.setattr(comparison, "_run", run)
        return done

    return make


def test_every_method_gets_the_same_labels_and_is_measured_on_the_same_frames(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    done = pretend()
    page = compare(blobs.project, val=0.25, out=tmp_path, methods=("smp", "directpose"), steps=3, seeds=(0, 1), fractions=("4", "all"))
    assert page == tmp_path / "report.html" and page.stat().st_size > 1000
    assert len(done) == 8 and len(rows_of(tmp_path)) == 8
    val = read_project(done[0].val).labelled_frames
    assert len(val) == 3
    for job in done:
        learnt = read_project(job.train).labelled_frames
        assert len(learnt) == (4 if "_4_" in job.folder.name else 9)
        assert not {f.index for f in learnt} & {f.index for f in val}
    by_cell = {(j.folder.name.split("_", 1)[1], j.method): j.train for j in done}
    assert all(by_cell[cell, "smp"] == by_cell[cell, "directpose"] for cell, method in by_cell)
    first, second = (({f.index for f in read_project(by_cell[f"4_{seed}", "smp"]).labelled_frames}) for seed in (0, 1))
    assert first != second


def test_figures_are_those_of_the_predictions(blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    pretend(error=1.0)
    compare(blobs.project, val=0.25, out=tmp_path, methods=("smp",), steps=3)
    (row,) = rows_of(tmp_path)
    assert float(row["pixel_error_median"]) == pytest.approx(np.sqrt(2), abs=1e-3)
    assert float(row["ap_s2_0.0025"]) < float(row["ap_s2_0.1"]) <= float(row["ap_s2_1"]) == pytest.approx(1.0)
    assert (row["missed"], row["invented"], row["labels"]) == ("0", "0", "9")  # what is below the cut is not counted as invented
    assert float(row["frames_per_second"]) == pytest.approx(1.5) and float(row["peak_memory_gb"]) == pytest.approx(3.0)


def test_where_labels_are_partial_what_has_no_label_is_not_judged(
    make_blobs: Callable[..., Any], blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    first = np.array([True, False, False])[:, None]
    half = make_blobs(counts=(2,) * 12, hide=lambda i, p: np.where(first, p, np.nan) if p[0, 0] < 48 else None if i % 2 else p)
    pretend(far=0.95)
    page = compare(half.project, val=0.5, out=tmp_path / "partial", methods=("smp",), steps=3)
    compare(blobs.project, out=tmp_path / "complete", methods=("smp",), steps=3)
    (partial,), (complete,) = rows_of(tmp_path / "partial"), rows_of(tmp_path / "complete")
    assert (partial["invented"], complete["invented"]) == ("0", "1")
    assert float(complete["ap_s2_1"]) < 0.95 < float(partial["ap_s2_1"])
    assert "predictions where nothing is labelled are not judged" in page.read_text()


def test_finished_runs_are_not_repeated_and_failed_ones_are(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], listener: Any
) -> None:
    done = pretend(broken=("directpose",))
    compare(blobs.project, out=tmp_path, methods=("smp", "directpose"), steps=3, reporter=listener)
    assert [j.method for j in done] == ["smp"] and any("directpose failed" in a for a in listener.alarms)
    again = pretend()
    compare(blobs.project, out=tmp_path, methods=("smp", "directpose"), steps=3)
    assert [j.method for j in again] == ["directpose"]


def test_what_is_not_installed_is_said_once_and_skipped(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], listener: Any
) -> None:
    pretend()
    methods = ("smp", "dlc-dekr_w18", "dlc-rtmpose_s")
    page = compare(blobs.project, out=tmp_path, methods=methods, steps=3, seeds=(0, 1), reporter=listener)
    assert listener.alarms.count("DeepLabCut is not here.") == 1
    assert "DeepLabCut is not here." in page.read_text() and len(rows_of(tmp_path)) == 2
    with pytest.raises(FormatError, match=r"No method could be run: DeepLabCut is not here\.$"):
        compare(blobs.project, out=tmp_path / "b", methods=methods[1:], steps=3)


def test_a_folder_holds_one_comparison(blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    pretend()
    compare(blobs.project, out=tmp_path, methods=("smp",), steps=3)
    with pytest.raises(FormatError, match=r"another budget \(3 steps, now 2 minutes\); choose another folder"):
        compare(blobs.project, out=tmp_path, methods=("smp",), minutes=2)


@pytest.mark.parametrize("changed", ("learnt from", "measured on"))
def test_labels_that_have_changed_are_another_comparison(
    changed: str, make_blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    learnt, measured = (make_blobs(name, counts=[1] * 4, labelled=range(3)).project for name in ("learnt", "measured"))
    pretend()
    compare(learnt, val=measured, out=tmp_path / "out", methods=("smp",), steps=3)
    path = learnt if changed == "learnt from" else measured
    labels = read_project(path)
    labels.frames[0].instances[0].points[0] += 1
    path.unlink()
    write_project(path, labels)
    with pytest.raises(FormatError, match=r"another set of labels \(3 frames \w+ and 3 frames \w+, now 3"):
        compare(learnt, val=measured, out=tmp_path / "out", methods=("smp",), steps=3)


@pytest.mark.parametrize(("text", "count"), [("all", 40), ("5", 5), ("25%", 10), (" 1 ", 1)])
def test_numbers_of_labels(text: str, count: int) -> None:
    assert count_of(text, 40) == count


@pytest.mark.parametrize("text", ["0", "41", "half", "-3", "1e99%", "nan%", "0.5%", ""])
def test_senseless_numbers_of_labels(text: str) -> None:
    with pytest.raises(FormatError, match="--labels-fraction"):
        count_of(text, 40)


def test_smaller_draws_are_part_of_larger_ones(blobs: Any) -> None:
    labels = read_project(blobs.project)
    small, large = ({f.index for f in drawn(labels, n, 3).labelled_frames} for n in (3, 8))
    assert len(small) == 3 and small < large
    assert small != {f.index for f in drawn(labels, 3, 4).labelled_frames}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "3"], "Name one labelled project"),
        (["--slp", "{project}"], "Give --minutes or --steps"),
        (["--slp", "{project}", "--steps", "3", "--methods", "smp,magic"], "there is no such method"),
        (["--slp", "{project}", "--steps", "3", "--labels-fraction", "500"], "there are 9 to learn from"),
        (["--slp", "{project}", "--steps", "3", "--val", "0.01"], "leaves none to measure"),
        (["--slp", "{project}", "--steps", "3", "--set", "loss.alpha"], "write it as section.name=value"),
        (["--slp", "{project}", "--steps", "3", "--set", "loss.alfa=1"], "there is no setting 'loss.alfa'"),
        (["--slp", "absent.slp", "--steps", "3"], "absent.slp: no such file"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(project=blobs.project) for a in arguments]
    assert main([*filled, "-o", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert sentence in " ".join(message.split()) and "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_a_real_run_in_a_process_of_its_own(blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = blobs.project.read_bytes()
    sets = [text for key, value in TINY.items() for text in ("--set", f"{key}={value}")]
    arguments = ["--slp", str(blobs.project), "--methods", "smp", "--steps", "2", "-o", str(tmp_path), "--device", "cpu", *sets]
    assert main(arguments) == 0, capsys.readouterr().err
    (row,) = rows_of(tmp_path)
    assert row["steps"] == "2" and row["version"].startswith("smp-plugin") and float(row["peak_memory_gb"]) > 0.05
    cell = tmp_path / "cells" / "smp_all_0"
    outcome = Outcome.from_dict(json.loads((cell / "outcome.json").read_text()))
    assert [p.step for p in outcome.curve] == [1, 2] and outcome.frames == 3
    log = (cell / "log.txt").stat().st_size
    assert main(arguments) == 0 and (cell / "log.txt").stat().st_size == log
    assert blobs.project.read_bytes() == before

"""Comparisons: what is compared with what, interrupted and gone on with; and one real run in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, read_project, write_project
from converters.supplement import supplemented, write_supplement
from smp_plugin import comparison
from smp_plugin.baselines import Job, Outcome, curve_point, own
from smp_plugin.cli.compare import main
from smp_plugin.comparison import compare, count_of, drawn
from smp_plugin.config import Config
from smp_plugin.metrics import UNKNOWN_SIZE
from smp_plugin.page import escape
from smp_plugin.preparation import Material, name_sources, prepare


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Runs that predict the labels themselves, moved by ``error`` px, and one animal far off whose score is ``far``; what is in ``broken``,
    methods or cells' folders, fails, predictions of ``unreadable`` cells are damaged, and DeepLabCut is not available.
    """

    def make(error: float = 0.0, broken: tuple[str, ...] = (), far: float = 0.1, unreadable: tuple[str, ...] = ()) -> list[Job]:
        done: list[Job] = []

        def run(job: Job, tick: Callable[[float], None]) -> comparison._Problem | None:
            job.write()
            if job.method.startswith("dlc-"):
                return comparison._Problem("DeepLabCut is not here.", True)
            if {job.method, job.folder.name} & {*broken}:
                return comparison._Problem(f"{job.method} failed.", False)
            labels = read_project(job.val)
            frames = [
                LabeledFrame(f.video, f.index, predicted=[PredictedInstance(i.points + error, score=0.9) for i in f.instances])
                for f in labels.labelled_frames
            ]
            off = PredictedInstance(np.full((len(labels.skeleton), 2), 500.0) + np.arange(2), score=far)
            frames[0] = replace(frames[0], predicted=[*frames[0].predicted, off])
            write_project(job.predictions, replace(labels, frames=frames), predicted=True)
            outcome = Outcome("pretended 1", 7, 120.0, 2.0, len(frames), peak_memory=3 * 10**9, min_score=0.5)
            (job.folder / "outcome.json").write_text(json.dumps(outcome.to_dict()))
            if job.folder.name in unreadable:
                job.predictions.write_bytes(b"damaged")
            done.append(job)
            return None

        monkeypatch.setattr(comparison, "_run", run)
        monkeypatch.setattr(comparison, "installed", lambda: ["sleap-nn", "deeplabcut"])
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


def test_ap_is_of_everything_found_and_counts_of_what_is_shown(blobs: Any, tmp_path: Path) -> None:
    job = Job("sleap-topdown", blobs.project, blobs.project, tmp_path)
    labels = read_project(blobs.project)
    empty = [LabeledFrame(f.video, f.index, predicted=[]) for f in labels.labelled_frames]
    sure = [
        LabeledFrame(f.video, f.index, predicted=[PredictedInstance(i.points, score=0.1) for i in f.instances])
        for f in labels.labelled_frames
    ]
    write_project(job.predictions, replace(labels, frames=empty))
    (tmp_path / "outcome.json").write_text(json.dumps(Outcome("pretended 1", 1, 1.0, 1.0, len(empty)).to_dict()))
    animals = sum(len(f.instances) for f in labels.labelled_frames)
    assert (comparison._row(job, 1, "all")["ap_s2_1"], comparison._row(job, 1, "all")["missed"]) == (0.0, animals)
    write_project(job.everything, replace(labels, frames=sure))
    row = comparison._row(job, 1, "all")
    assert row["ap_s2_1"] == pytest.approx(1.0) and row["missed"] == animals


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


def test_one_rule_holds_for_figures_and_curves_of_all_methods(blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    done, methods = pretend(far=0.95), ("smp", "sleap-bottomup")
    page = compare(blobs.project, out=tmp_path, methods=methods, steps=3, settings={"data.labels": "partial"})  # they do not look like it
    assert [row["invented"] for row in rows_of(tmp_path)] == ["0", "0"] and len(done) == 2
    assert [curve_point(job, job.predictions, 1.0, 1).ap["1"] for job in done] == [float(row["ap_s2_1"]) for row in rows_of(tmp_path)]
    assert "predictions where nothing is labelled are not judged" in page.read_text()


def test_what_is_finished_is_shown_also_after_ctrl_c(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    run = comparison._run

    def interrupted(job: Job, tick: Callable[[float], None]) -> comparison._Problem | None:
        if job.seed == 5:
            raise KeyboardInterrupt
        return run(job, tick)

    monkeypatch.setattr(comparison, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(blobs.project, out=tmp_path, methods=("smp",), steps=3, seeds=(5,))
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(KeyboardInterrupt):
        compare(blobs.project, out=tmp_path, methods=("smp",), steps=3, seeds=(3, 5))
    assert "The comparison was interrupted" in (tmp_path / "report.html").read_text()
    page = compare(blobs.project, out=tmp_path, methods=("smp",), steps=3, seeds=(4,)).read_text()
    assert re.search(r"Seeds</td><td[^>]*>3, 4<", page) and "interrupted" not in page


def test_finished_runs_are_not_repeated_and_failed_ones_are(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], listener: Any
) -> None:
    done = pretend(broken=("directpose",))
    compare(blobs.project, out=tmp_path, methods=("smp", "directpose"), steps=3, reporter=listener)
    assert [j.method for j in done] == ["smp"] and any("directpose failed" in a for a in listener.alarms)
    again = pretend()
    compare(blobs.project, out=tmp_path, methods=("smp", "directpose"), steps=3)
    assert [j.method for j in again] == ["directpose"]


def test_a_failed_run_is_skipped_and_only_a_method_that_fails_twice_in_a_row_is_left_out(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], listener: Any
) -> None:
    pretend(broken=("smp_4_0", "directpose"))
    methods = ("smp", "directpose")
    page = compare(blobs.project, out=tmp_path, methods=methods, steps=3, seeds=range(4), fractions=("4",), reporter=listener)
    assert [(row["method"], row["seed"]) for row in rows_of(tmp_path)] == [("smp", "1"), ("smp", "2"), ("smp", "3")]
    assert listener.alarms == [
        "directpose with 4 labelled frames and seed 0 is left out: directpose failed.",
        "smp with 4 labelled frames and seed 0 is left out: smp failed.",
        "directpose with 4 labelled frames and seed 1 is left out: directpose failed.",
        "directpose failed 2 times in a row, so that its other runs are left out.",
    ]
    assert all(sentence in page.read_text() for sentence in listener.alarms)


def test_failures_with_a_success_between_them_are_not_in_a_row(blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    pretend(broken=("smp_4_0", "smp_4_2"))
    compare(blobs.project, out=tmp_path, methods=("smp",), steps=3, seeds=range(4), fractions=("4",))
    assert [row["seed"] for row in rows_of(tmp_path)] == ["1", "3"]


def test_predictions_that_can_not_be_read_are_a_problem_of_their_run(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], listener: Any
) -> None:
    pretend(unreadable=("directpose_all_0",))
    page = compare(blobs.project, out=tmp_path, methods=("directpose", "smp"), steps=3, reporter=listener)
    assert [row["method"] for row in rows_of(tmp_path)] == ["smp"]
    assert any("directpose with 9 labelled frames and seed 0 is left out: its predictions can't be" in a for a in listener.alarms)
    assert "can&#x27;t be measured" in page.read_text() or "can't be measured" in page.read_text()
    again = pretend()
    compare(blobs.project, out=tmp_path, methods=("directpose", "smp"), steps=3)
    assert [job.method for job in again] == ["directpose"] and len(rows_of(tmp_path)) == 2


def test_a_run_that_finished_while_nobody_waited_is_taken_if_it_is_the_same(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    pretend()
    arguments: dict[str, Any] = {"out": tmp_path, "methods": ("smp",), "steps": 3, "device": "cpu"}
    compare(blobs.project, **arguments)
    (tmp_path / "results.csv").unlink()
    again = pretend()
    compare(blobs.project, **arguments)
    assert not again and len(rows_of(tmp_path)) == 1
    (tmp_path / "results.csv").unlink()
    compare(blobs.project, **arguments, curve=3)
    assert len(again) == 1


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


def test_what_is_not_installed_is_said_before_anything_is_trained(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    def run(job: Job, tick: Callable[[float], None]) -> comparison._Problem | None:
        said.append([*listener.alarms])
        return carry_out(job, tick)

    pretend()
    said, carry_out = list[list[str]](), comparison._run
    monkeypatch.setattr(comparison, "_run", run)
    monkeypatch.setattr(comparison, "installed", lambda: ["deeplabcut"])
    methods = ("smp", "sleap-bottomup", "sleap-topdown")
    page = compare(blobs.project, out=tmp_path, methods=methods, steps=3, reporter=listener)
    sentence = "sleap-bottomup, sleap-topdown: sleap-nn is not installed (pip install 'smp-plugin[sleap]'); left out."
    assert said == [[sentence]] == [listener.alarms], "once, before the first run, and the others are not tried"
    assert "sleap-nn is not installed" in page.read_text() and len(rows_of(tmp_path)) == 1
    with pytest.raises(FormatError, match="No method could be run: sleap-topdown: sleap-nn is not installed"):
        compare(blobs.project, out=tmp_path / "b", methods=methods[2:], steps=3)


def test_a_folder_holds_one_comparison(blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    pretend()
    compare(blobs.project, out=tmp_path, methods=("smp",), steps=3)
    with pytest.raises(FormatError, match=r"another budget \(3 steps, now 2 minutes\); choose another folder"):
        compare(blobs.project, out=tmp_path, methods=("smp",), minutes=2)


def test_a_training_gets_20_minutes_by_default_and_what_is_left_is_said_in_advance(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = pretend(broken=("smp_all_1",))
    monkeypatch.setattr(comparison, "installed", lambda: ["deeplabcut"])
    arguments = ["--slp", str(blobs.project), "--methods", "directpose,smp,sleap-topdown", "--seeds", "2", "-o", str(tmp_path)]
    said = []
    for _ in range(2):
        assert main(arguments) == 0
        said.append(" ".join(capsys.readouterr().err.split()))
    assert {(job.minutes, job.steps) for job in done} == {(20.0, 0)} and "20 minutes each" in said[0]
    assert "4 trainings of 20 minutes: about 1 h 20 min at least" in said[0], "without the method that is not installed"
    assert "1 training of 20 minutes: about 20 min 0 s at least" in said[1]
    compare(blobs.project, out=tmp_path / "python", methods=("smp",))
    assert done[-1].minutes == 20
    compare(blobs.project, out=tmp_path / "steps", methods=("smp",), steps=3)
    assert (done[-1].minutes, done[-1].steps) == (0, 3)


def test_devices_are_not_mixed(blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    pretend()
    arguments: dict[str, Any] = {"out": tmp_path, "methods": ("smp",), "steps": 3}
    compare(blobs.project, **arguments, device="cuda:1")
    compare(blobs.project, **arguments, device="cuda")
    with pytest.raises(FormatError, match=r"another --device \(cuda, now cpu\); choose another folder"):
        compare(blobs.project, **arguments, device="cpu")


def test_frames_that_are_learnt_from_and_measured_on_are_counted(
    blobs: Any, make_blobs: Callable[..., Any], tmp_path: Path, pretend: Callable[..., list[Job]], listener: Any
) -> None:
    pretend()
    sentence = "12 of the 12 frames measured are also among those learnt from"
    page = compare(blobs.project, val=blobs.project, out=tmp_path / "same", methods=("smp",), steps=3, reporter=listener)
    assert len(listener.alarms) == 1 and listener.alarms[0].startswith(sentence) and sentence in page.read_text()
    other = make_blobs("other").project  # another video, as long
    compare(blobs.project, val=other, out=tmp_path / "other", methods=("smp",), steps=3, reporter=listener)
    assert len(listener.alarms) == 1


def test_parts_without_an_animal_are_noticed_before_any_training(
    make_blobs: Callable[..., Any], tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    done = pretend()
    chosen = set(np.random.default_rng(0).permutation(8)[:2].tolist())
    out = tmp_path / "out"
    for name, empty in (("measure on", chosen), ("learn from", set(range(8)) - chosen)):
        made = make_blobs(name[:5], counts=[0 if i in empty else 1 for i in range(8)], labelled=range(8), negative=empty)
        with pytest.raises(
            FormatError, match=rf"--val 0.25: no animal is labelled in the {len(empty)} frames that are left to {name}; name a"
        ):
            compare(made.project, out=out, methods=("smp",), steps=3)
    empty = set(np.random.default_rng((1, 1)).permutation(4)[:2].tolist())
    learnt = make_blobs("few", counts=[0 if i in empty else 1 for i in range(4)], labelled=range(4), negative=empty).project
    val = make_blobs("val", counts=[1] * 2, labelled=range(2)).project
    with pytest.raises(
        FormatError, match="--labels-fraction 2: no animal is labelled in the frames that seed 1 draws; ask for more than 2"
    ):
        compare(learnt, val=val, out=out, methods=("smp",), steps=3, seeds=(0, 1), fractions=("all", "2"))
    assert not done and not out.exists()


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


def test_our_methods_have_the_unlabelled_frames_that_training_directly_has(
    blobs: Any, tmp_path: Path, pretend: Callable[..., list[Job]], monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    done = pretend()
    write_project(tmp_path / "dlc", read_project(blobs.project))  # images of the 12 labelled frames, of a video of 20
    compare(tmp_path / "dlc", out=tmp_path / "out", methods=("smp",), steps=3)

    def train(projects: list[Path], *, config: Config, val: Path, **_: Any) -> None:
        name_sources(config, projects, val, None, None, False)
        seen.append(prepare(config, listener))
        raise KeyboardInterrupt

    seen: list[Material] = []
    monkeypatch.setattr(own, "train", train)
    with pytest.raises(KeyboardInterrupt):
        own.run(done[0])
    direct = Config()
    name_sources(direct, [tmp_path / "dlc"], None, None, None, False)
    assert len(seen[0].pool) == len(prepare(direct, listener).pool) == 8  # none of the frames measured, as an image or in the video
    assert len(seen[0].val_frames) == 3 and blobs.video.resolve() in {v.paths[0].resolve() for v in seen[0].unlabeled_videos}


def test_a_project_for_one_animal_stays_one(make_blobs: Callable[..., Any], tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    done = pretend()
    write_project(tmp_path / "dlc", read_project(make_blobs(counts=(1,) * 8, labelled=range(8)).project))
    page = compare(tmp_path / "dlc", out=tmp_path / "a", methods=("smp",), steps=3)
    other = compare(tmp_path / "dlc", out=tmp_path / "b", methods=("smp",), steps=3, settings={"predict.max_animals": "3"})
    assert [job.settings["predict.max_animals"] for job in done] == ["1", "3"]
    assert "Animals in a frame" in page.read_text() and "Animals in a frame" not in other.read_text()


def test_validation_frames_with_other_keypoints_are_refused_before_any_training(make_blobs: Any, blobs: Any, tmp_path: Path) -> None:
    other = make_blobs("other", keypoints=("head", "rump")).project
    with pytest.raises(FormatError, match=r"--val .*other\.slp: its keypoints rump are not among .*blobs\.slp \(head, middle, tail\)"):
        compare(blobs.project, val=other, out=tmp_path / "out", methods=("smp",), steps=3)
    assert not (tmp_path / "out").exists()


def test_warnings_of_the_evaluation_stay_with_the_runs_and_are_shown(
    make_blobs: Callable[..., Any], tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    project = make_blobs(keypoints=("middle",)).project
    for runs in (2, 0):  # begun, and gone on with
        done = pretend()
        text = compare(project, out=tmp_path / "out", methods=("directpose", "smp"), steps=3).read_text()
        assert text.count(f'<p class="warning">{escape(UNKNOWN_SIZE)}</p>') == 1 and len(done) == runs


def test_files_of_a_comparison_follow_videos_that_have_moved(
    make_blobs: Callable[..., Any], tmp_path: Path, pretend: Callable[..., list[Job]]
) -> None:
    pretend(broken=("directpose",))
    made, moved = make_blobs(), tmp_path / "elsewhere"
    arguments: dict[str, Any] = {"out": tmp_path / "out", "methods": ("directpose", "smp"), "steps": 3}
    compare(made.project, **arguments)
    moved.mkdir()
    made.video.rename(moved / made.video.name)
    done = pretend()
    compare(made.project, **arguments, video_root=moved)
    for file in (done[0].train, done[0].val):
        assert read_project(file).videos[0].paths == (moved.resolve() / made.video.name,)
    written = done[0].train.stat().st_mtime_ns
    compare(made.project, **arguments, video_root=moved)
    assert done[0].train.stat().st_mtime_ns == written


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
        (["--slp", "{project}", "--steps", "3", "--minutes", "2"], "Give --minutes or --steps, not both"),
        (["--slp", "{project}", "--steps", "3", "--methods", "smp,magic"], "there is no such method"),
        (["--slp", "{project}", "--steps", "3", "--methods", ""], "--methods names none; choose from directpose"),
        (["--slp", "{project}", "--steps", "3", "--labels-fraction", " ,"], "--labels-fraction names none; write"),
        (["--slp", "{project}", "--steps", "3", "--labels-fraction", "500"], "there are 9 to learn from"),
        (["--slp", "{project}", "--steps", "3", "--val", "0.01"], "leaves none to measure"),
        (["--slp", "{project}", "--steps", "3", "--set", "loss.alpha"], "write it as section.name=value"),
        (["--slp", "{project}", "--steps", "3", "--set", "loss.alfa=1"], "there is no setting 'loss.alfa'"),
        (["--slp", "{project}", "--steps", "3", "--set", "train.seed=1"], "train.seed would have no effect in a comparison: --seeds says"),
        (["--slp", "{project}", "--steps", "3", "--set", "train.keep=best"], "every method keeps its last model"),
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


def test_a_real_run_in_a_process_of_its_own(blobs: Any, tmp_path: Path, tiny: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = blobs.project.read_bytes()
    sets = [text for key, value in tiny.items() for text in ("--set", f"{key}={value}")]
    arguments = ["--slp", str(blobs.project), "--methods", "smp", "--steps", "2", "-o", str(tmp_path), "--device", "cpu", *sets]
    assert main(arguments) == 0, capsys.readouterr().err
    (row,) = rows_of(tmp_path)
    assert row["steps"] == "2" and row["version"].startswith("smp-plugin") and float(row["peak_memory_gb"]) > 0.05
    cell = tmp_path / "cells" / "smp_all_0"
    outcome = Outcome.from_dict(json.loads((cell / "outcome.json").read_text()))
    assert [p.step for p in outcome.curve] == [1, 2] and outcome.frames == 3
    assert (
        re.fullmatch(r"CPU, \d+ processor cores?, \d+ threads?", outcome.machine)
        and outcome.machine in (tmp_path / "report.html").read_text()
    )
    log = (cell / "log.txt").stat().st_size
    assert main(arguments) == 0 and (cell / "log.txt").stat().st_size == log
    assert blobs.project.read_bytes() == before


posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """What is run in place of a method, with ``folder`` and, when it is ready, a file ``ready`` there."""

    def make(code: str) -> Job:
        script = tmp_path / "python"
        lines = [f"#!{sys.executable}", "import os, pathlib, signal, sys, time", "folder = pathlib.Path(sys.argv[-1])", code]
        script.write_text("\n".join(lines))
        script.chmod(0o755)
        monkeypatch.setattr(comparison.sys, "executable", str(script))
        return Job("smp", tmp_path / "t.slp", tmp_path / "v.slp", tmp_path / "cell")

    return make


@posix
@pytest.mark.parametrize("saves", [True, False])
def test_an_interrupted_comparison_interrupts_its_run_once_and_waits_for_it(
    saves: bool, child: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
def stop(*_):
    with (folder / "signals").open("a") as file: file.write("x")
    if SAVES:
        time.sleep(1)
        (folder / "saved").touch()
        sys.exit(1)
signal.signal(signal.SIGINT, stop)
(folder / "ready").write_text(f"{os.getpid()} {os.getpgid(0)}")
for _ in range(600): time.sleep(0.1)
"""
    job = child(code.replace("SAVES", str(saves)))
    monkeypatch.setattr(comparison, "SAVING", 30.0 if saves else 0.5)

    def tick(_: float) -> None:
        if (job.folder / "ready").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison._run(job, tick)
    number, group = map(int, (job.folder / "ready").read_text().split())
    assert group == number != os.getpgid(0)  # Ctrl-C of a terminal reaches it only through this process
    assert (job.folder / "signals").read_text() == "x" and (job.folder / "saved").exists() == saves
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@posix
def test_a_run_does_not_outlive_the_comparison() -> None:
    code = "import time; from smp_plugin.baselines.__main__ import obey; obey(-1); time.sleep(60)"
    started = time.monotonic()
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731  # as in a script's background
    done = subprocess.run([sys.executable, "-c", code], env=comparison._environment(), capture_output=True, preexec_fn=ignoring)
    assert b"KeyboardInterrupt" in done.stderr and time.monotonic() - started < 50


@posix
def test_what_an_earlier_run_left_is_not_taken_for_the_new_one(child: Callable[[str], Job]) -> None:
    job = child("sys.exit(len(list(folder.glob('*.slp'))) + (folder / 'outcome.json').exists())")
    job.write()
    for path in (job.predictions, job.everything, job.folder / "outcome.json"):
        path.touch()
    assert comparison._run(job, lambda _: None) is None


@pytest.fixture
def coco(make_blobs: Callable[..., Any], tmp_path: Path) -> Path:
    """COCO labels of 14 images in two folders, the last two without labels: some animals partly labelled or not, hidden keypoints, an image
    marked as empty, a model's animal, a crowd, and a symmetry.
    """
    made = make_blobs(counts=(2,) * 14, labelled=range(12), negative=(5,), images=True, hide=lambda i, p: None if i == 5 else p)
    write_project(tmp_path / "labels.json", read_project(made.project))
    content = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "more").mkdir()
    for image in content["images"][::2]:
        name = Path(image["file_name"]).name
        (tmp_path / image["file_name"]).rename(tmp_path / "more" / name)
        image["file_name"] = f"more/{name}"
    first, second, third = content["annotations"][:3]
    first["keypoints"][2], first["keypoints"][3:6] = 1, [0, 0, 0]
    crowd = {"id": 97, "image_id": second["image_id"], "category_id": 1, "iscrowd": 1, "bbox": [70, 70, 20, 20]}
    guess = {**third, "id": 98, "score": 0.75, "track": "bob", "keypoints": [30, 30, 0.25, 0, 0, 0, 40, 60, 1]}
    content["annotations"] += [crowd, guess]
    content["categories"][0]["symmetries"] = [[1, 3]]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return tmp_path / "labels.json"


def contents(labels: Labels) -> list[Any]:
    """All that training may see of labels."""
    frames = [
        (
            f.index, f.negative, [i.points.tolist() for i in f.instances], [box.tolist() for box in f.unposed],
            [(p.points.tolist(), p.point_scores.tolist(), p.score, p.track) for p in f.predicted],
        )
        for f in labels.frames
    ]  # fmt: skip
    return [labels.skeleton, [(v.paths, v.original) for v in labels.videos], repr(frames)]


def test_coco_labels_stay_coco_and_lose_nothing(coco: Path, tmp_path: Path, pretend: Callable[..., list[Job]]) -> None:
    done, source = pretend(), read_project(coco)
    compare(coco, val=coco, out=tmp_path / "out", methods=("smp", "sleap-topdown"), steps=3)
    smp, topdown = done
    assert (smp.train.name, smp.val.name, smp.predictions.name) == ("train_12_0.json", "val.json", "predictions.json")
    assert any(f.unposed for f in source.frames) and any(f.predicted for f in source.frames) and any(f.negative for f in source.frames)
    assert contents(supplemented(read_project(smp.train), str(smp.supplement))) == contents(source)
    assert contents(smp.truth()) == contents(replace(source, frames=[replace(f, predicted=[]) for f in source.frames]))
    assert topdown.predictions.name == "predictions.slp" and len(rows_of(tmp_path / "out")) == 2
    assert len({row["ap_s2_0.1"] for row in rows_of(tmp_path / "out")}) == 1
    assert not any("are not in" in each for each in Outcome.read(smp.folder).warnings), "an image without a predicted animal is not lacking"
    compare(coco, val=coco, out=tmp_path / "out", methods=("smp", "sleap-topdown"), steps=3)
    assert len(done) == 2


def test_our_methods_are_compared_on_coco_without_sleap_io(
    coco: Path, tmp_path: Path, tiny: dict[str, str], monkeypatch: pytest.MonkeyPatch, listener: Any
) -> None:
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sleap_io.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))  # of the runs
    monkeypatch.setitem(sys.modules, "sleap_io", None)
    with pytest.raises(FormatError, match="sleap-io"):
        write_project(tmp_path / "labels.slp", read_project(coco))
    page = compare(coco, out=tmp_path / "out", methods=("smp",), steps=2, device="cpu", settings=tiny, reporter=listener)
    (row,) = rows_of(tmp_path / "out")
    assert (row["steps"], row["labels"]) == ("2", "9") and not [*(tmp_path / "out").rglob("*.slp")]
    text = page.read_text()
    assert "Labels</b>" in text and "No predictions could be read" not in text


def test_what_lies_on_a_held_out_box_without_keypoints_is_not_judged(tmp_path: Path, make_images: Callable[..., list[Path]]):
    """Although SLEAP's format, in which held-out frames are kept, has no such boxes."""
    images, nose = VideoSource(tuple(make_images(tmp_path / "images", 1))), np.array([[20.0, 20], [40, 30]])
    skeleton, box = Skeleton(("nose", "tail")), np.array([80.0, 80, 130, 130])
    held_out = Labels(skeleton, [images], [LabeledFrame(0, 0, [Instance(nose)], unposed=[box])])
    write_project(tmp_path / "val.slp", held_out)
    assert write_supplement(tmp_path / "supplement.json", held_out)
    found = [PredictedInstance(nose, score=0.5), PredictedInstance(nose + 70, score=0.9)]
    write_project(tmp_path / "found.slp", Labels(skeleton, [images], [LabeledFrame(0, 0, predicted=found)]))
    job = Job("smp", tmp_path / "train.slp", tmp_path / "val.slp", tmp_path, rule="complete", supplement=tmp_path / "supplement.json")
    assert curve_point(job, tmp_path / "found.slp", 1.0, 1).ap["1"] == 1
    assert curve_point(replace(job, supplement=None), tmp_path / "found.slp", 1.0, 1).ap["1"] < 0.6

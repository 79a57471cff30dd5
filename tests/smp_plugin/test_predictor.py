"""Prediction from inputs to files, with a model that has learnt its blobs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sleap_io as sio
import torch

from converters import FormatError, Labels, read_project, write_project
from converters.deeplabcut_predictions import SCORER
from converters.video import open_video, video_source
from smp_plugin import jobs, prediction, segments, stopping
from smp_plugin.checkpoint import load_model, save_model
from smp_plugin.cli.predict import main
from smp_plugin.drawing import PALETTE
from smp_plugin.evaluation import evaluate
from smp_plugin.inference import FramePoses
from smp_plugin.prediction import predict
from smp_plugin.predictor import Predictor

pytestmark = pytest.mark.usefixtures("thin_backbone")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Callable[..., Labels]:
    """Predict to a file, and read it."""

    def make(*inputs: Path, name: str = "out.slp", **options: Any) -> Labels:
        (path,) = predict(list(inputs), tmp_path / name, model=trained, device="cpu", **options)
        return read_project(path)

    return make


def numbers(labels: Labels, video: int = 0) -> list[int]:
    return [f.index for f in labels.frames if f.video == video]


def leftovers(folder: Path) -> list[str]:
    """Without what finished outputs were made from."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".made_from.json"))


class Stub(Predictor):
    """Finds in every frame one animal at (brightness of the frame, batch size); calls ``event`` before every batch, one after the other."""

    calls = 0
    parallel = 1
    event: Callable[[int], None] = staticmethod(lambda _: None)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batch, self.lanes = self.config.predict.batch or 4, self.parallel

    def attempt(self, images: torch.Tensor) -> list[FramePoses] | None:
        type(self).calls += 1
        type(self).event(type(self).calls)
        pose = np.zeros((1, 3, 2))
        return [FramePoses(pose + f.mean(), np.array([0.5]), np.full((1, 3), 0.5)) for f in images.numpy()]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    """In place of the network, one that a test can make do things."""

    class Mine(Stub):
        calls = 0

    monkeypatch.setattr(prediction, "Predictor", Mine)
    return Mine


# --- which frames ---


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (None, range(12, 20)),
        ("unlabeled", range(12, 20)),
        ("labeled", range(12)),
        ("all", range(20)),
        ("3-5,19,4", [3, 4, 5, 19]),
    ],
)
def test_frames_of_a_project(frames: str | None, expected: Any, run: Callable[..., Labels], blobs: Any, stub: type[Stub]):
    before = blobs.project.read_bytes()
    assert numbers(run(blobs.project, frames=frames)) == list(expected)
    assert blobs.project.read_bytes() == before


def test_frames_of_a_video(run: Callable[..., Labels], blobs: Any, stub: type[Stub]):
    assert numbers(run(blobs.video)) == list(range(20)) == numbers(run(blobs.video, frames="all"))
    assert numbers(run(blobs.video, frames="18-19,0")) == [0, 18, 19]
    with pytest.raises(FormatError, match=r"blobs\.mp4 has 20 frames \(0-19\); frame 20 does not exist"):
        run(blobs.video, frames="20")
    with pytest.raises(FormatError, match=r"--frames labeled: .*blobs\.mp4 is no project"):
        run(blobs.video, frames="labeled")


def test_no_frames_is_bad_input(run: Callable[..., Labels], make_blobs: Any, stub: type[Stub], tmp_path: Path):
    project = make_blobs(counts=[1] * 3, labelled=range(3)).project
    with pytest.raises(FormatError, match="no frames are asked for with --frames unlabeled; try --frames all"):
        run(project)
    assert not (tmp_path / "out.slp").exists()


@pytest.mark.parametrize("promised", [15, 33])
def test_headers_may_promise_anything(
    promised: int, run: Callable[..., Labels], blobs: Any, stub: type[Stub], monkeypatch: pytest.MonkeyPatch, listener: Any
):
    def opened(source: Any) -> Any:
        video = open_video(source)
        video.n_frames = promised
        return video

    for module in (prediction, jobs):
        monkeypatch.setattr(module, "open_video", opened)
    assert numbers(run(blobs.video)) == list(range(20))
    found = run(blobs.project, reporter=listener)
    if promised > 20:
        assert numbers(found) == list(range(12, 20))
        assert "holds 20 frames, not the 33 that its header promises" in listener.alarms[0]


# --- inputs and outputs ---


def test_several_videos_in_one_file(run: Callable[..., Labels], blobs: Any, make_blobs: Any, stub: type[Stub]):
    other = make_blobs("other", counts=[1] * 3, labelled=[0], sizes=[(64, 48)])
    labels = run(blobs.video, other.video)
    assert [v.paths[0] for v in labels.videos] == [blobs.video, other.video]
    assert numbers(labels) == list(range(20)) and numbers(labels, 1) == [0, 1, 2]


def test_one_file_per_input_in_a_folder(trained: Path, blobs: Any, make_blobs: Any, stub: type[Stub], tmp_path: Path):
    package = make_blobs("p", embed=True, labelled=[1, 2])
    (tmp_path / "twin").mkdir()
    twin = Path(shutil.copy(blobs.video, tmp_path / "twin" / "blobs.mov"))
    inputs = [blobs.video, twin, package.project]
    written = predict(inputs, tmp_path / "new" / "folder", model=trained, frames="1-2", device="cpu")
    assert leftovers(tmp_path / "new" / "folder") == ["blobs.predictions.slp", "blobs_.predictions.slp", "p.predictions.slp"]
    assert [read_project(path).videos[0].paths[0] for path in written] == inputs


def test_an_image_folder(run: Callable[..., Labels], make_blobs: Any, stub: type[Stub]):
    images = make_blobs("pictures", images=True, counts=[1] * 4, labelled=[0], sizes=[(96, 96), (64, 48)])
    labels = run(images.video)
    assert numbers(labels) == [0, 1, 2, 3] and len(labels.videos[0].paths) == 4
    assert numbers(run(images.video / "img002.png")) == [0]


def test_a_package_keeps_its_frame_numbers(run: Callable[..., Labels], make_blobs: Any, stub: type[Stub], listener: Any):
    package = make_blobs(embed=True, labelled=[2, 7])
    labels = run(package.project, frames="labeled", reporter=listener)
    assert not listener.alarms
    assert numbers(labels) == [2, 7] and labels.videos[0].kind == "embedded" and labels.videos[0].original is not None
    with open_video(package_source := labels.videos[0]) as video:
        assert video.read(7).shape == (96, 96, 3) and package_source.paths == (package.project,)


def test_inputs_are_not_written_over(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    project = Path(shutil.copy(blobs.project, tmp_path / "project.slp"))
    video = Path(shutil.copy(blobs.video, tmp_path / "clip.mp4"))
    before = project.read_bytes(), video.read_bytes()
    with pytest.raises(FormatError, match=r"project\.slp is one of the inputs and would be overwritten"):
        predict([project], project, model=trained, device="cpu")
    with pytest.raises(FormatError, match=r"clip\.mp4: it is one of the inputs and would be overwritten"):
        predict([video], tmp_path / "out.slp", model=trained, overlay=video, device="cpu")
    with pytest.raises(FormatError, match=r"out\.txt: predictions are written to a file that ends in \.slp"):
        predict([video], tmp_path / "out.txt", model=trained, device="cpu")
    assert (project.read_bytes(), video.read_bytes()) == before
    assert leftovers(tmp_path) == ["clip.mp4", "project.slp"]


def test_an_overlay_replaces_nothing_but_an_overlay(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    raw, text, drawn = Path(shutil.copy(blobs.video, tmp_path / "raw.mp4")), tmp_path / "text.mp4", tmp_path / "drawn.mp4"
    text.write_text("no video")
    before = raw.read_bytes()
    for overlay in (raw, text):
        with pytest.raises(FormatError, match=rf"{overlay.name}: what is there is no overlay by smp-predict .*; name another .mp4"):
            predict([blobs.video], tmp_path / "out.slp", model=trained, overlay=overlay, device="cpu")
    assert raw.read_bytes() == before and leftovers(tmp_path) == ["raw.mp4", "text.mp4"]
    for _ in range(2):
        predict([blobs.video], tmp_path / "out.slp", model=trained, overlay=drawn, device="cpu", frames="0-3")


@pytest.mark.parametrize("name", ["out.json", "out.analysis.h5", "out.h5", "out.csv"])
def test_the_name_says_the_format(name: str, trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path, listener: Any):
    (path,) = predict([blobs.video], tmp_path / name, model=trained, device="cpu", frames="4-6,9", reporter=listener)
    assert leftovers(tmp_path) == [name]
    if name == "out.json":
        assert [result["image_id"] for result in json.loads(path.read_text())] == [4, 5, 6, 9]
    else:
        assert [frame.index for frame in read_project(path).frames if frame.predicted] == [4, 5, 6, 9]
    assert len(listener.alarms) <= 2 and all(alarm.startswith(f"{path}: ") for alarm in listener.alarms)


def test_results_have_the_ids_of_the_labels(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    project = read_project(blobs.project)
    project.frames = project.frames[:2]
    write_project(tmp_path / "labels.json", project)
    predict([tmp_path / "labels.json"], tmp_path / "out.json", model=trained, device="cpu", frames="labeled")
    assert [result["image_id"] for result in json.loads((tmp_path / "out.json").read_text())] == [0, 1]
    assert evaluate(tmp_path / "labels.json", tmp_path / "out.json").predictions == 2


def test_a_folder_of_deeplabcut_files(trained: Path, blobs: Any, make_blobs: Any, stub: type[Stub], tmp_path: Path):
    other = make_blobs("other", counts=[1] * 3, labelled=[0])
    predict([blobs.video, other.video], tmp_path / "out", suffix="h5", model=trained, device="cpu", frames="0-2")
    names = ("{}_el.csv", "{}_el.h5", "{}_meta.pickle")
    assert leftovers(tmp_path / "out") == sorted(n.format(f"{video}{SCORER}") for video in ("blobs", "other") for n in names)
    assert len(read_project(tmp_path / "out" / f"blobs{SCORER}_el.h5").frames) == 20
    one: dict[str, object] = {"predict.max_animals": 1, "predict.track": True}  # as a model of a single-animal project has it
    predict([other.video], tmp_path / "one", suffix="h5", model=trained, device="cpu", config_overrides=one)
    assert leftovers(tmp_path / "one") == sorted(n.format(f"other{SCORER}").replace("_el", "") for n in names)
    assert pd.read_hdf(tmp_path / "one" / f"other{SCORER}.h5").columns.nlevels == 3


def test_a_folder_for_the_output_is_made_and_taken_back(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    predict([blobs.video], tmp_path / "new" / "deep" / "out.slp", model=trained, device="cpu", frames="0")
    assert leftovers(tmp_path / "new" / "deep") == ["out.slp"]
    with pytest.raises(FormatError):
        predict([blobs.video], tmp_path / "other" / "deep" / "out.pkg.slp", model=trained, device="cpu", frames="0")
    assert not (tmp_path / "other").exists()


def test_predictions_for_a_person_to_correct(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path, listener: Any):
    project = read_project(blobs.project)
    project.frames = project.frames[:2]
    write_project(tmp_path / "dlc", project)
    folder = tmp_path / "dlc" / "labeled-data" / "blobs"
    shutil.copy(folder / "img01.png", folder / "img15.png")  # extracted, not labelled yet
    labels = {path: path.read_bytes() for path in folder.glob("CollectedData*")}
    predict([tmp_path / "dlc" / "config.yaml"], folder.parent, model=trained, device="cpu", reporter=listener)
    assert {"machinelabels-iter0.h5", "machinelabels.csv"} <= set(leftovers(folder))
    found = read_project(tmp_path / "dlc").frames
    assert [(f.index, len(f.instances) > 0, len(f.predicted)) for f in found] == [(0, True, 0), (1, True, 0), (2, False, 1)]
    assert {path: path.read_bytes() for path in folder.glob("CollectedData*")} == labels
    assert any("machinelabels" in sentence and "deeplabcut.refine_labels" in sentence for sentence in listener.sentences)


def test_nothing_found_is_nothing_to_correct(
    trained: Path, blobs: Any, monkeypatch: pytest.MonkeyPatch, stub: type[Stub], tmp_path: Path, listener: Any
):
    nothing = FramePoses(np.empty((0, 3, 2)), np.empty(0), np.empty((0, 3)))
    monkeypatch.setattr(stub, "attempt", lambda self, images: [nothing] * len(images))
    write_project(tmp_path / "dlc", read_project(blobs.project))
    folder = tmp_path / "dlc" / "labeled-data"
    assert predict([blobs.video], folder, model=trained, device="cpu", frames="15-17", reporter=listener) == []
    assert any("no animal was found" in alarm and "--min-score" in alarm for alarm in listener.alarms)
    assert not [s for s in listener.sentences if "written:" in s or "refine_labels" in s] and not list(folder.glob("*/machinelabels*"))


def test_what_a_person_is_to_correct_is_whole_or_waits(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    write_project(tmp_path / "dlc", read_project(blobs.project))
    folder = tmp_path / "dlc" / "labeled-data"
    wanted: dict[str, Any] = {"model": trained, "device": "cpu", "frames": "9-17", "config_overrides": {"predict.batch": 2}}
    stub.event = staticmethod(interrupted(1))
    with pytest.raises(KeyboardInterrupt):
        predict([blobs.video], folder, **wanted)
    assert not list(folder.glob("*/machinelabels*")), "half of it would never be replaced"
    stub.event = staticmethod(lambda calls: None)
    predict([blobs.video], folder, resume=True, **wanted)
    assert len([f for f in read_project(tmp_path / "dlc").frames if f.predicted]) > 2


def test_what_cannot_be_written_is_known_before(trained: Path, blobs: Any, make_blobs: Any, stub: type[Stub], tmp_path: Path):
    other = make_blobs("other", counts=[1] * 3, labelled=[0])
    before = leftovers(tmp_path)
    for output, suffix, words in [
        ("out.h5", None, "out.h5 would hold 2 videos"),
        ("out.analysis.h5", None, "can hold one video, and there are 2"),
        ("other.slp/out", "json", "the folder can't be made"),
    ]:
        with pytest.raises(FormatError, match=words):
            predict([blobs.video, other.video], tmp_path / output, suffix=suffix, model=trained, device="cpu")
    (tmp_path / "two").mkdir()
    twin = Path(shutil.copy(blobs.video, tmp_path / "two"))
    with pytest.raises(FormatError, match="two videos are called blobs"):
        predict([blobs.video, twin], tmp_path / "new", suffix="h5", model=trained, device="cpu")
    assert stub.calls == 0 and leftovers(tmp_path) == sorted([*before, "two"])


def test_other_keypoints_are_refused(run: Callable[..., Labels], make_blobs: Any):
    with pytest.raises(FormatError, match=r"its keypoints are head, tail, those of the model head, middle, tail; .*--model"):
        run(make_blobs(keypoints=("head", "tail")).project)


def test_the_newest_finished_run_is_used(
    trained: Path, blobs: Any, stub: type[Stub], listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="no finished run under runs/; train one with smp-train, or name a model with --model"):
        predict([blobs.video], tmp_path / "out.slp", device="cpu")
    cell = tmp_path / "runs" / "compare" / "cells" / "directpose_all_0"
    shutil.copytree(trained, cell / "run")
    (cell / "job.json").write_text("{}")
    with pytest.raises(FormatError, match="no finished run under runs/ but those of a comparison; train one with smp-train, or name"):
        predict([blobs.video], tmp_path / "out.slp", device="cpu")
    for age, name in enumerate(("unfinished", "new", "old")):
        shutil.copytree(trained, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "model.pt", (10**9 - age, 10**9 - age))
    (tmp_path / "runs" / "unfinished" / "report.html").unlink()
    predict([blobs.video], tmp_path / "out.slp", device="cpu", frames="0", reporter=listener)
    assert listener.sentences[0] == f"model: {Path('runs/new')} (head, middle, tail), the newest finished run"


def test_a_model_without_its_own_cut_gets_one(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path, listener: Any):
    """As a killed run leaves it."""
    kept, cuts = load_model(trained), list[float]()
    kept.config.predict.min_score = 0.0
    save_model(tmp_path / "model.pt", kept)
    options: dict[str, Any] = {"model": tmp_path / "model.pt", "device": "cpu", "frames": "0", "reporter": listener}
    asked: list[dict[str, object]] = [{}, {"predict.min_score": 0.0}]
    for overrides in asked:
        (path,) = predict([blobs.video], tmp_path / "out.slp", **options, config_overrides=overrides)
        cuts.append(sio.load_slp(str(path)).provenance["settings"]["min_score"])
    assert cuts == [0.1, 0.0]
    assert ["its training has not ended" in alarm and "0.1 is taken (--min-score)" in alarm for alarm in listener.alarms] == [True]


# --- what is predicted ---


@pytest.fixture(scope="module")
def found(trained: Path, blobs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All frames of the blobs, with an overlay beside them."""
    folder = tmp_path_factory.mktemp("found")
    overlay = folder / "deep" / "found.mp4"
    low: dict[str, object] = {"predict.min_score": 0.02}
    (path,) = predict([blobs.video], folder / "found.slp", model=trained, device="cpu", overlay=overlay, config_overrides=low)
    return path


def test_animals_are_found(found: Path, blobs: Any):
    for frame in read_project(found).frames:
        truth = blobs.truth[frame.index]
        poses = np.stack([i.points for i in frame.predicted[: len(truth)]])
        errors = np.linalg.norm(poses[:, None] - truth[None], axis=-1).mean(axis=-1)
        assert errors.min(axis=0).max() < 2.5
        scores = [i.score for i in frame.predicted]
        assert scores == sorted(scores, reverse=True) and all(0 <= s <= 1 for s in scores)
        assert all(((i.point_scores >= 0) & (i.point_scores <= 1)).all() for i in frame.predicted)


def test_sleap_io_reads_it(found: Path, blobs: Any, trained: Path):
    labels = sio.load_slp(str(found))
    assert len(labels) == 20 and [lf.frame_idx for lf in labels] == list(range(20)) and labels.tracks == []
    assert [(e.source.name, e.destination.name) for e in labels.skeleton.edges] == [("head", "middle"), ("middle", "tail")]
    assert len(labels.skeletons) == len(labels.videos) == 1
    assert labels.video.filename == str(blobs.video) and labels.video.exists() and labels.video.shape == (20, 96, 96, 3)
    assert labels[0].image.shape == (96, 96, 3)
    assert all(isinstance(i, sio.PredictedInstance) and i.skeleton is labels.skeleton for lf in labels for i in lf)
    provenance = labels.provenance
    assert provenance["model"] == str(trained) and provenance["producer"].startswith("smp-plugin ")
    assert provenance["source_files"] == [str(blobs.video)] and provenance["settings"]["nms"] > 0
    assert {"command", "started"} <= set(provenance)


def test_the_overlay(found: Path, blobs: Any):
    with open_video(video_source(found.parent / "deep" / "found.mp4")) as drawn, open_video(video_source(blobs.video)) as video:
        assert (drawn.n_frames, drawn.height, drawn.width, drawn.fps) == (20, 96, 96, 25.0)
        assert np.abs(drawn.read(0).astype(int) - video.read(0)).max() > 60
    assert leftovers(found.parent / "deep") == ["found.mp4"]


def test_the_batch_changes_nothing(found: Path, blobs: Any, run: Callable[..., Labels]):
    wanted = read_project(found).frames
    for batch in (1, 3):
        frames = run(blobs.video, config_overrides={"predict.batch": batch, "predict.min_score": 0.02}).frames
        for a, b in zip(wanted, frames, strict=True):
            assert a.index == b.index and len(a.predicted) == len(b.predicted)
            for i, j in zip(a.predicted, b.predicted, strict=True):
                assert np.allclose(i.points, j.points, atol=0.01) and i.score == pytest.approx(j.score, abs=1e-3)


def test_fewer_animals(blobs: Any, run: Callable[..., Labels]):
    everything = run(blobs.video, config_overrides={"predict.min_score": 0.01}).frames
    one = run(blobs.video, config_overrides={"predict.min_score": 0.01, "predict.max_animals": 1}).frames
    assert max(len(f.predicted) for f in everything) >= 2
    for a, b in zip(everything, one, strict=True):
        assert [i.score for i in b.predicted] == [i.score for i in a.predicted[:1]]
    score = float(np.median([f.predicted[0].score for f in everything]))
    sure = run(blobs.video, config_overrides={"predict.min_score": score}).frames
    assert 0 < sum(len(f.predicted) for f in sure) < sum(len(f.predicted) for f in everything)
    assert all(i.score >= score - 1e-6 for f in sure for i in f.predicted)
    assert len(sure) == 20  # frames without animals are there


def test_animals_are_followed(trained: Path, make_blobs: Any, tmp_path: Path):
    """Of two blobs, one is always on the left and one on the right."""
    blobs = make_blobs("pair", counts=[2] * 10, labelled=[0])
    settings: dict[str, object] = {"predict.min_score": 0.02, "predict.max_animals": 2, "predict.track": True}
    (path,) = predict([blobs.video], tmp_path / "out.slp", model=trained, device="cpu", config_overrides=settings)
    sides: dict[str | None, set[bool]] = {}
    for frame in read_project(path).frames:
        for animal in frame.predicted:
            sides.setdefault(animal.track, set()).add(bool(animal.points[:, 0].mean() > 48))
    assert sides.keys() == {"animal1", "animal2"} and sorted(map(list, sides.values())) == [[False], [True]]
    assert {track.name for track in sio.load_slp(str(path)).tracks} == {"animal1", "animal2"}


def test_followed_animals_keep_their_colour(trained: Path, blobs: Any, stub: type[Stub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    here, there = np.full((1, 3, 2), 20.0), np.full((1, 3, 2), 400.0)

    def attempt(self: Any, images: torch.Tensor) -> list[FramePoses]:
        stub.calls += 1
        order = (here, there) if stub.calls % 2 else (there, here)
        return [FramePoses(np.concatenate(order), np.array([0.5, 0.4]), np.full((2, 3), 0.5))]

    drawn: list[Any] = []
    monkeypatch.setattr(stub, "attempt", attempt)
    monkeypatch.setattr(prediction.OverlayWriter, "write", lambda self, image, poses, colours, scores: drawn.append((poses, colours)))
    settings: dict[str, object] = {"predict.track": True, "predict.batch": 1}
    out = tmp_path / "out.slp"
    predict([blobs.video], out, model=trained, device="cpu", config_overrides=settings, overlay=tmp_path / "o.mp4", frames="0-3")
    assert [colours[int(poses[0, 0, 0] > 30)] for poses, colours in drawn] == [PALETTE[0]] * 4
    tracks = [[animal.track for animal in frame.predicted] for frame in read_project(out).frames]
    assert tracks == [["animal1", "animal2"], ["animal2", "animal1"]] * 2


@pytest.mark.parametrize("empty", [{0}, {1, 2}, {3}, {0, 1, 2, 3}])
def test_animals_are_followed_past_frames_without_any(
    empty: set[int], trained: Path, blobs: Any, stub: type[Stub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def attempt(self: Any, images: torch.Tensor) -> list[FramePoses]:
        stub.calls += 1
        count = 0 if stub.calls - 1 in empty else 1
        return [FramePoses(np.full((count, 3, 2), 20.0), np.full(count, 0.5), np.full((count, 3), 0.5))]

    monkeypatch.setattr(stub, "attempt", attempt)
    settings: dict[str, object] = {"predict.track": True, "predict.batch": 1}
    out, overlay = tmp_path / "out.slp", tmp_path / "o.mp4"
    predict([blobs.video], out, model=trained, device="cpu", config_overrides=settings, overlay=overlay, frames="0-3")
    tracks = {frame.index: [animal.track for animal in frame.predicted] for frame in read_project(out).frames}
    assert tracks == {number: [] if number in empty else ["animal1"] for number in range(4)}


def test_frames_for_a_person_are_not_followed(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    write_project(tmp_path / "dlc", read_project(blobs.project))
    with pytest.raises(FormatError, match="too few to follow animals"):
        predict(
            [blobs.video],
            tmp_path / "dlc" / "labeled-data",
            model=trained,
            device="cpu",
            frames="15",
            config_overrides={"predict.track": True},
        )


# --- stopping and failing ---


def interrupted(call: int, number: signal.Signals = signal.SIGINT) -> Callable[[int], None]:
    return lambda calls: signal.raise_signal(number) if calls == call else None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_keeps_what_is_finished(
    number: signal.Signals, code: int, trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stub.event = staticmethod(interrupted(4, number))
    before = signal.getsignal(signal.SIGINT)
    text = f"{blobs.video} {blobs.video} -o {tmp_path}/out.slp --model {trained} --batch 2 --overlay {tmp_path}/o.mp4 --device cpu"
    assert main(text.split()) == code
    assert "everything finished so far is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert leftovers(tmp_path) == [".out.slp.segments", "o.mp4", "out.slp"]
    count = len(read_project(tmp_path / "out.slp").frames)
    assert 6 < count <= 8 and stub.calls == 4
    with open_video(video_source(tmp_path / "o.mp4")) as video:
        assert len(list(video.stream())) == count


def test_interrupted_it_keeps_finished_files(trained: Path, blobs: Any, make_blobs: Any, stub: type[Stub], tmp_path: Path):
    videos = [make_blobs(name, counts=[1] * 4, labelled=[0]).video for name in ("a", "b", "c")]
    stub.event = staticmethod(interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        predict(videos, tmp_path / "out", model=trained, device="cpu")
    assert leftovers(tmp_path / "out") == [".b.predictions.slp.segments", "a.predictions.slp", "b.predictions.slp"]
    assert numbers(read_project(tmp_path / "out" / "a.predictions.slp")) == [0, 1, 2, 3]
    with pytest.raises(FormatError, match="it would lack what was finished earlier .1 of 3 inputs.;"):
        predict(videos, tmp_path / "out", model=trained, device="cpu", resume=True, overlay=tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("resume", (False, True))
def test_what_an_interrupted_run_wrote_over_a_finished_output_was_not_changed_by_a_person(
    resume: bool, trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path
):
    options: dict[str, Any] = {"model": trained, "device": "cpu", "config_overrides": {"predict.batch": 2}}
    predict([blobs.video], tmp_path / "out.slp", **options)
    whole = numbers(read_project(tmp_path / "out.slp"))
    stub.event = staticmethod(interrupted(stub.calls + 2))
    with pytest.raises(KeyboardInterrupt):
        predict([blobs.video], tmp_path / "out.slp", **options)
    assert 0 < len(numbers(read_project(tmp_path / "out.slp"))) < len(whole)
    predict([blobs.video], tmp_path / "out.slp", **options, resume=resume)
    assert numbers(read_project(tmp_path / "out.slp")) == whole


@pytest.mark.parametrize("lanes", (1, 2))
def test_interrupted_twice_it_stops_at_once(
    lanes: int, trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def event(calls: int) -> None:
        for _ in range(2 if calls == 1 else 0):
            os.kill(os.getpid(), signal.SIGINT)  # as from a terminal, which wakes the thread that waits
            time.sleep(0.1)  # Python counts signals that come at once as one

    stub.event, stub.parallel = staticmethod(event), lanes
    monkeypatch.setattr(stopping, "AGAIN", 0.0)
    with pytest.raises(KeyboardInterrupt):
        predict([blobs.video], tmp_path / "out.slp", model=trained, device="cpu", overlay=tmp_path / "o.mp4")
    assert leftovers(tmp_path) in ([], ["o.mp4"])


@pytest.fixture
def while_writing(make_blobs: Any, stub: type[Stub], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Path], threading.Event]]:
    """Two videos, and an event: the first one is written only once the second is being predicted.

    ``event`` is called with the number of the second one's batch, from 1; ``writing`` is called after its first one, with the frames.
    """

    def make(event: Callable[[int], None], writing: Callable[[Any], Any]) -> tuple[list[Path], threading.Event]:
        second, real = threading.Event(), prediction._unless

        def of_batch(calls: int) -> None:
            if calls > 1:  # of each video there are four frames, a batch, in the first, and 40 in the second
                second.set()
                event(calls - 1)

        def unless(given_up: threading.Event, frames: Any) -> Any:
            second.wait(20)
            return real(given_up, writing(frames))

        stub.event = staticmethod(of_batch)
        monkeypatch.setattr(prediction, "_unless", unless)
        return [make_blobs(name, counts=[1] * n, labelled=[0]).video for name, n in (("a", 4), ("b", 40))], second

    return make


def test_a_file_is_written_while_the_next_video_is_predicted(trained: Path, while_writing: Any, tmp_path: Path):
    began, written = threading.Event(), list[bool]()

    def writing(frames: Any) -> Any:
        written.append(second.is_set())
        began.set()
        return frames

    videos, second = while_writing(lambda batch: began.wait(20), writing)
    outputs = predict(videos, tmp_path / "out", model=trained, device="cpu")
    assert written == [True, True]
    assert [len(numbers(read_project(path))) for path in outputs] == [4, 40]


def test_an_error_of_writing_ends_what_is_predicted_meanwhile(trained: Path, stub: type[Stub], while_writing: Any, tmp_path: Path):
    failed = threading.Event()

    def writing(frames: Any) -> Any:
        if failed.is_set():
            return frames
        failed.set()
        raise FormatError("the disk is full")

    def event(batch: int) -> None:
        assert failed.wait(20)
        time.sleep(0.1)  # until it is known

    videos, _ = while_writing(event, writing)
    with pytest.raises(FormatError, match="the disk is full"):
        predict(videos, tmp_path / "out", model=trained, device="cpu")
    assert stub.calls < 6, "the second video has ten batches"
    assert ".a.predictions.slp.segments" in leftovers(tmp_path / "out") and "a.predictions.slp" not in leftovers(tmp_path / "out")
    outputs = predict(videos, tmp_path / "out", model=trained, device="cpu", resume=True)
    assert [len(numbers(read_project(path))) for path in outputs] == [4, 40]


def test_interrupted_twice_it_does_not_wait_for_what_is_being_written(
    trained: Path, while_writing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    began = threading.Event()

    def writing(frames: Any) -> Any:
        for frame in itertools.cycle(frames):
            yield frame
            began.set()
            time.sleep(0.01)

    def event(batch: int) -> None:
        began.wait(20)
        for _ in range(2 if batch == 1 else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    monkeypatch.setattr(stopping, "AGAIN", 0.0)
    videos, _ = while_writing(event, writing)
    with pytest.raises(KeyboardInterrupt):
        predict(videos, tmp_path / "out", model=trained, device="cpu")
    assert leftovers(tmp_path / "out") == [".a.predictions.slp.segments"]


def test_interrupted_before_anything_is_predicted(trained: Path, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "check", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict([blobs.video], tmp_path / "new" / "folder", model=trained, device="cpu")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("lanes", (1, 3))
@pytest.mark.parametrize("segment", [1024, 3, 4])  # with 3 the damage is the first of a segment
def test_damage_midway_keeps_what_came_before(
    trained: Path, make_blobs: Any, stub: type[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int, lanes: int
):
    stub.parallel = lanes
    monkeypatch.setattr(segments, "LENGTH", segment)
    images = make_blobs("pictures", images=True, counts=[1] * 12, labelled=[0])
    (images.video / "img009.png").write_bytes(b"no image")
    before = leftovers(tmp_path)
    with pytest.raises(FormatError, match=r"img009\.png is not an image that can be read.* What comes before it was predicted and written"):
        predict([images.video], tmp_path / "out.slp", model=trained, device="cpu", overlay=tmp_path / "o.mp4")
    assert numbers(read_project(tmp_path / "out.slp", require_videos=False)) == list(range(9))
    assert leftovers(tmp_path) == sorted([*before, "o.mp4", "out.slp"])


def test_damage_is_said_again_of_a_file_that_is_skipped(
    trained: Path, make_blobs: Any, stub: type[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = make_blobs("pictures", images=True, counts=[1] * 12, labelled=[0])
    whole = make_blobs("whole", counts=[1] * 3, labelled=[0])
    (images.video / "img009.png").write_bytes(b"no image")
    command = f"{images.video} {whole.video} -o {tmp_path}/out --model {trained} --device cpu --resume".split()
    for calls in (4, 4):
        assert main(command) == 2 and stub.calls == calls
        assert "img009.png is not an image that can be read" in (said := " ".join(capsys.readouterr().err.split()))
    assert said.count("finished earlier, skipped") == 2


def test_a_bug_midway_leaves_nothing(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    def event(calls: int) -> None:
        if calls == 2:
            raise ZeroDivisionError

    stub.event = staticmethod(event)
    with pytest.raises(ZeroDivisionError):
        predict([blobs.video], tmp_path / "out.slp", model=trained, device="cpu", overlay=tmp_path / "o.mp4")
    assert leftovers(tmp_path) == []


def test_another_thread_may_predict(trained: Path, blobs: Any, stub: type[Stub], tmp_path: Path):
    thread = threading.Thread(target=predict, args=([blobs.video], tmp_path / "out.slp"), kwargs={"model": trained, "device": "cpu"})
    thread.start()
    thread.join()
    assert len(read_project(tmp_path / "out.slp").frames) == 20


# --- batches ---


def test_batches_at_once_change_nothing(trained: Path, blobs: Any):
    with open_video(video_source(blobs.video)) as video:
        frames = list(video.stream())
    found = []
    for lanes in (1, 3):
        made = Predictor(load_model(trained), torch.device("cpu"))
        made.lanes = lanes
        found.append(list(made.stream(frames)))
    alone, together = found
    assert [n for n, _, _ in alone] == [n for n, _, _ in together] == list(range(20)) and sum(len(p.scores) for _, _, p in alone) > 10
    for (_, _, a), (_, _, b) in zip(alone, together, strict=True):
        np.testing.assert_allclose(a.poses, b.poses, atol=0.05)
        np.testing.assert_allclose(a.scores, b.scores, atol=0.01)


def test_frames_of_one_size_share_a_batch(trained: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []

    def call(self: Predictor, images: torch.Tensor) -> list[FramePoses]:
        sizes.append(len(images))
        return [FramePoses(np.zeros((0, 3, 2)), np.zeros(0), np.zeros((0, 3))) for _ in images]

    monkeypatch.setattr(Predictor, "attempt", call)
    made = Predictor(load_model(trained), torch.device("cpu"))
    frames = [np.zeros((32, 32 if i < 5 else 64, 3), np.uint8) for i in range(8)]
    assert [n for n, _, _ in made.stream(enumerate(frames))] == list(range(8)) and sorted(sizes) == [1, 3, 4]


@pytest.mark.parametrize(
    ("launch", "frame", "room", "size", "batch"),
    [
        (0.010, 0.0001, 1000, 48, 64),  # a large card, which waits for the host
        (0.010, 0.0001, 20, 48, 16),  # one with little memory
        (0.010, 0.0001, 3, 48, 4),  # with too little, which is found out later, too
        (0.0, 0.01, 1000, 48, 4),  # a small one, which a few frames fill
        (0.010, 0.003, 1000, 48, 32),  # to 64 it gains 4 %
        (0.010, 0.0001, 1000, 96, 16),  # more would be larger than any batch may be
    ],
)
def test_the_batch_is_what_the_gpu_is_best_at(
    launch: float, frame: float, room: int, size: int, batch: int, trained: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
):
    now, sizes = [0.0], []

    def attempt(self: Predictor, images: torch.Tensor) -> list[FramePoses] | None:
        sizes.append(len(images))
        now[0] += launch + frame * len(images) + 60.0 * (len(sizes) == 1)  # it begins slowly
        if len(images) > room and len(images) > 1:
            return None
        return [FramePoses(np.zeros((0, 3, 2)), np.zeros(0), np.zeros((0, 3))) for _ in images]

    monkeypatch.setattr(Predictor, "attempt", attempt)
    monkeypatch.setattr("smp_plugin.predictor.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("smp_plugin.predictor.MOST_PIXELS", 70 * 48 * 48)
    made = Predictor(load_model(trained), torch.device("cpu"), listener)
    assert not made._measure  # on a CPU it takes longer than it brings
    made._measure = True
    picture = np.zeros((size, size, 3), np.uint8)
    assert len(list(made.stream((i, picture) for i in range(70)))) == 70
    assert made.batch == (batch if batch <= room else 2)
    assert any(f"batch: {batch} frames of {size} x {size} pixels" in text for text in listener.sentences)

"""DeepLabCut as a method to compare with: what surrounds its networks is tested always, a tiny run where DeepLabCut is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from converters import Instance, LabeledFrame, Labels, Skeleton, VideoSource
from converters.deeplabcut import read_dlc
from converters.labels import FormatError
from converters.project import read_project, write_project
from smp_plugin.baselines import Job, Outcome, Unavailable, deeplabcut, deeplabcut_training
from smp_plugin.baselines.deeplabcut_training import Budget
from smp_plugin.evaluation import evaluate


@pytest.fixture
def job(tmp_path: Path, write: Callable[..., Any]) -> Job:
    """Six frames to learn from, the last one empty, and four to predict, one of them empty, of two videos of the same name."""
    train = write(tmp_path / "a", labelled=range(6), negative=(5,), hide=lambda i, points: None if i == 5 else points)
    val = write(tmp_path / "b", labelled=(12, 9, 14, 11), negative=(14,), hide=lambda i, points: None if i == 14 else points, seed=1)
    made = Job("dlc-dekr_w18", train.project, val.project, tmp_path / "job", steps=1, device="cpu", curve=0)
    made.write()
    return made


def test_a_project_has_the_frames_to_learn_from_and_no_position_of_the_others(job: Job) -> None:
    project = deeplabcut.convert(job)
    settings = yaml.safe_load(project.config.read_text(encoding="ascii"))
    assert settings["multianimalproject"] and settings["individuals"] == ["animal1", "animal2"] and project.animals == 2
    assert sorted(project.train) == [("blobs", f"img{i:02}.png") for i in range(6)]
    truth = {frame.index: frame.instances for frame in read_project(job.train).labelled_frames}
    written = {(f.video, f.index): f.instances for f in read_dlc(project.config).frames}
    folders = [source.paths[0].parent.name for source in read_dlc(project.config).videos]
    positions = [animal.points for place, animals in written.items() if folders[place[0]] == "blobs" for animal in animals]
    assert np.allclose(positions, [animal.points for index in sorted(truth) for animal in truth[index]])
    others = [animals for place, animals in written.items() if folders[place[0]] == "blobs_2"]
    assert not any(animal.labelled.any() for animals in others for animal in animals)


def test_each_frame_to_predict_has_its_own_image(job: Job) -> None:
    from PIL import Image

    from converters.video import open_video

    project = deeplabcut.convert(job)
    assert [frame.index for frame, _ in project.val] == [9, 11, 12, 14]
    with open_video(project.videos[0]) as video:
        for frame, path in project.val:
            assert path.name == f"img{frame.index:02}.png" and path.parent.name == "blobs_2"
            assert np.array_equal(np.asarray(Image.open(path)), video.read(frame.index))


def test_one_animal_and_a_track_for_each_still_make_a_project_for_several(tmp_path: Path, write: Callable[..., Any]) -> None:
    made = write(tmp_path / "a", counts=(1,) * 6, labelled=range(3), images=True)
    labels = read_project(made.project)
    for number, frame in enumerate(labels.frames):
        frame.instances[0] = Instance(frame.instances[0].points, f"track{number}")
    write_project(tmp_path / "a" / "tracked.slp", labels)
    project = deeplabcut.convert(Job("dlc-dekr_w18", tmp_path / "a" / "tracked.slp", made.project, tmp_path / "job"))
    settings = yaml.safe_load(project.config.read_text(encoding="ascii"))
    assert settings["multianimalproject"] and settings["individuals"] == ["animal1"]
    assert len(project.train) == 3 and len({path for _, path in project.val}) == 3


def test_unlabelled_frames_and_those_with_predictions_alone_are_not_learned_from(job: Job) -> None:
    labels = read_project(job.train)
    labels.frames += [LabeledFrame(0, 15), LabeledFrame(0, 16, [Instance(np.full((3, 2), np.nan))])]
    write_project(job.folder / "more.slp", labels)
    assert len(deeplabcut.convert(Job(job.method, job.folder / "more.slp", job.val, job.folder)).train) == 6


def test_what_cannot_be_compared_is_one_sentence(job: Job, tmp_path: Path, write: Callable[..., Any]) -> None:
    other = write(tmp_path / "c", keypoints=("head", "hoof")).project
    with pytest.raises(FormatError, match="other keypoints"):
        deeplabcut.convert(Job(job.method, job.train, other, job.folder))
    bare = tmp_path / "bare.slp"
    write_project(bare, Labels(Skeleton(("head", "middle", "tail")), [VideoSource((job.train.parent / "blobs.mp4",))]))
    with pytest.raises(FormatError, match="no labelled animal"):
        deeplabcut.convert(Job(job.method, bare, job.val, job.folder))
    with pytest.raises(FormatError, match="no labelled frames to predict"):
        deeplabcut.convert(Job(job.method, job.train, bare, job.folder))
    with pytest.raises(FormatError, match="no method of DeepLabCut"):
        deeplabcut.run(Job("dlc-nothing", job.train, job.val, job.folder))


@pytest.mark.parametrize(
    ("installed", "filterpy", "says"),
    [(None, "1.4.5", "not installed"), ("3.0.1", "1.4.5", "3.0.1 is too old"), ("3.0.2", "2.0.0", "filterpy 2.0.0 breaks")],
)
def test_what_is_missing_is_said_with_its_remedy(
    job: Job, monkeypatch: pytest.MonkeyPatch, installed: str | None, filterpy: str, says: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed if name == "deeplabcut" else filterpy)
    with pytest.raises(Unavailable, match=says) as caught:
        deeplabcut.run(job)
    assert str(caught.value).endswith("pip install 'smp-plugin[dlc]'")
    assert not list(job.folder.glob("comparison*"))


def test_poses_of_deeplabcut_become_animals() -> None:
    whole, partly = np.array([[10.0, 20, 0.5], [30, 40, 0.7]]), np.array([[1.0, 2, 0.25], [3, 4, -1]])
    nothing, damaged = np.full((2, 3), -1.0), np.full((2, 3), np.nan)
    found = deeplabcut.instances(np.stack([whole, nothing, partly, damaged]))
    assert [animal.score for animal in found] == pytest.approx([0.6, 0.25])
    assert np.array_equal(found[0].points, whole[:, :2]) and found[0].point_scores.tolist() == [0.5, 0.7]
    assert np.isnan(found[1].points[1]).all() and found[1].point_scores.tolist() == [0.25, 0]
    assert deeplabcut.instances(np.zeros((0, 2, 3))) == []


def test_perfect_poses_are_measured_as_perfect(job: Job) -> None:
    project = deeplabcut.convert(job)
    poses = [
        np.stack([*(np.column_stack([a.points, np.ones(3)]) for a in frame.instances), np.full((3, 3), -1.0)]) for frame, _ in project.val
    ]
    deeplabcut.write(job, project, job.predictions, poses)
    assert len(read_project(job.predictions).frames) == 4
    found = evaluate(job.val, job.predictions)
    assert all(figures.ap == pytest.approx(1, abs=1e-3) for figures in found.ap.values())


class Runner:
    """As DeepLabCut's training runner looks from outside."""

    def __init__(self) -> None:
        self.epochs, self.current_epoch, self.steps = 0, 0, 0
        self.scheduler: Any = SimpleNamespace(step=self._count)
        self.snapshot_manager = SimpleNamespace(update=self._save, snapshot_path=lambda epoch: Path(f"snapshot-{epoch}.pt"))
        self.saved: list[tuple[int, int, bool]] = []

    def _count(self) -> None:
        self.epochs += 1

    def _save(self, epoch: int, state: dict, last: bool) -> None:
        self.saved.append((epoch, state["metadata"]["steps"], last))

    def state_dict(self) -> dict:
        return {"model": {}, "metadata": {"steps": self.steps}}

    def step(self, batch: Any, mode: str = "train") -> dict:
        self.steps += 1
        return {}

    def fit(self, train_loader: list, valid_loader: list, epochs: int, display_iters: int) -> None:
        for self.current_epoch in range(1, epochs + 1):
            for batch in train_loader:
                self.step(batch, "train")
            if self.scheduler:
                self.scheduler.step()


def test_steps_end_training_where_they_are_used_up(tmp_path: Path) -> None:
    runner, budget = Runner(), Budget(0, 8, epochs=200, points=4, folder=tmp_path)
    budget.attach(runner)
    runner.fit([1, 2, 3], [], 200, 1)
    assert budget.taken == runner.steps == 8 and runner.saved == [(3, 8, True)] and budget.snapshot == Path("snapshot-3.pt")
    assert runner.epochs == 200  # the learning rate has come to its end
    assert [steps for _, _, steps in budget.earlier] == [2, 4, 6] and all(path.is_file() for path, _, _ in budget.earlier)


def test_time_ends_training_and_snapshots_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(self: Runner, batch: Any, mode: str = "train") -> dict:
        now[0] += 10
        return {}

    def expensive(self: Budget, runner: Any) -> None:
        now[0] += 1000

    monkeypatch.setattr(deeplabcut_training.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Runner, "step", slow)
    monkeypatch.setattr(Budget, "_keep", expensive)
    runner, budget = Runner(), Budget(35, 0, epochs=100, points=0, folder=tmp_path)
    budget.attach(runner)
    runner.fit([1, 2, 3], [], 100, 1)
    assert budget.taken == 4 and budget.spent == 40 and runner.epochs == int(40 / 35 * 100)


def test_without_a_budget_deeplabcut_decides(tmp_path: Path) -> None:
    runner, budget = Runner(), Budget(0, 0, epochs=5, points=3, folder=tmp_path)
    budget.attach(runner)
    runner.fit([1, 2], [], 5, 1)
    assert budget.taken == 10 and runner.epochs == 5 and budget.earlier == []
    with pytest.raises(FormatError, match="no animal"):
        runner.fit([], [], 5, 1)


def test_no_batch_of_one_is_left_over() -> None:
    for images in range(2, 40):
        size = deeplabcut_training._batch(16, images)
        assert 2 <= size <= 16 and images % size != 1
    assert deeplabcut_training._batch(16, 1) == 0


@pytest.mark.parametrize(
    ("sizes", "detector", "batch"), [([(96, 96)], False, 8), ([(96, 96), (128, 96)], False, 1), ([(96, 96), (128, 96)], True, 8)]
)
def test_images_of_one_size_and_crops_are_predicted_together(
    sizes: list[tuple[int, int]], detector: bool, batch: int, tmp_path: Path, write: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    val = write(tmp_path / "b", labelled=(3, 4), images=True, sizes=sizes)
    job = Job("dlc-dekr_w18", val.project, val.project, tmp_path / "job", device="cpu")
    asked: list[tuple[str, int | None]] = []
    maker = SimpleNamespace(
        get_pose_inference_runner=lambda **options: asked.append(("pose", options.get("batch_size"))),
        get_detector_inference_runner=lambda **options: asked.append(("detector", options.get("batch_size"))),
    )
    monkeypatch.setitem(sys.modules, "deeplabcut.pose_estimation_pytorch.apis.utils", maker)
    boxes = Budget(0, 1, 1, 0, tmp_path) if detector else None
    training = deeplabcut_training.Training(None, Budget(0, 1, 1, 0, tmp_path), boxes, [])
    deeplabcut._Network(job, deeplabcut.convert(job), training, tmp_path / "snapshot.pt")
    assert asked == [("pose", batch), *([("detector", None)] if detector else [])]


def test_images_that_two_threads_lose_are_found_by_one() -> None:
    class Losing:
        def __init__(self) -> None:
            self.inference_cfg = SimpleNamespace(multithreading=SimpleNamespace(enabled=True))

        def inference(self, inputs: list) -> list:
            return inputs[:-1] if self.inference_cfg.multithreading.enabled else inputs

    assert deeplabcut._all(Losing(), [1, 2, 3]) == [1, 2, 3]


@pytest.mark.skipif(importlib.util.find_spec("deeplabcut") is None, reason="deeplabcut is not installed (pip install 'smp-plugin[dlc]')")
def test_deeplabcut_trains_and_predicts(tmp_path: Path, write: Callable[..., Any]) -> None:
    train = write(tmp_path / "a", labelled=(0, 1), images=True)
    val = write(tmp_path / "b", labelled=(3, 4), seed=1)
    job = Job("dlc-dekr_w18", train.project, val.project, tmp_path / "job", steps=1, device="cpu", curve=1)
    job.write()
    code = "import sys, json, pathlib; from smp_plugin.baselines import Job; from smp_plugin.baselines.deeplabcut import run; "
    code += "f = pathlib.Path(sys.argv[1]); (f / 'outcome.json').write_text(json.dumps(run(Job.read(f)).to_dict()))"
    # Offline, so that no download is waited for; read by DeepLabCut's libraries when they are imported, hence a process of its own.
    subprocess.run([sys.executable, "-c", code, str(job.folder)], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    outcome = Outcome.from_dict(json.loads((job.folder / "outcome.json").read_text()))
    assert outcome.steps == 1 and outcome.frames == 2 and outcome.version.startswith("deeplabcut 3")
    assert outcome.train_seconds > 0 and outcome.predict_seconds > 0 and len(outcome.curve) == 1
    assert len(read_project(job.predictions).frames) == 2
    assert set(evaluate(job.val, job.predictions).ap) == {1, 0.1, 0.0025}
    assert sorted(path.name for path in job.folder.iterdir()) == ["job.json", "outcome.json", "predictions.slp"]

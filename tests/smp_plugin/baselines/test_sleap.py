"""SLEAP's models through sleap-nn: settings and budget here, real runs where sleap-nn is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from converters import FormatError, VideoSource, read_project, write_project
from smp_plugin.baselines import Job, Unavailable, peer_settings, sleap
from smp_plugin.baselines.sleap import CENTROID_SHARE, _as_slp, _Clock, _networks, _scale, _settings, run
from smp_plugin.evaluation import evaluate

HERE = importlib.util.find_spec("sleap_nn") is not None
needs_sleap = pytest.mark.skipif(not HERE, reason="sleap-nn is not installed (pip install smp-plugin[sleap])")


def job_of(folder: Path, project: Path, method: str, **values: Any) -> Job:
    job = Job(method, project, project, folder / method, device="cpu", **values)
    job.folder.mkdir()
    return job


def test_a_budget_of_minutes_is_shared_by_the_two_networks(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "p.slp", "sleap-topdown", minutes=6.0)
    shares = [share for *_, share in _networks(job, 1.0)]
    assert [_Clock(job, "n", share).seconds for share in shares] == pytest.approx([360 * CENTROID_SHARE, 360 * (1 - CENTROID_SHARE)])


def test_settings_are_those_of_the_profiles_and_open_no_port(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "p.slp", "sleap-bottomup", steps=450)
    ((name, backbone, head, scale, _),) = _networks(job, 0.5)
    made = _settings(job, name, backbone, head, scale, 1e-4)
    trainer = made["trainer_config"]
    assert trainer["optimizer"]["lr"] == 1e-4 and trainer["train_data_loader"]["batch_size"] == 4 and trainer["max_epochs"] == 3
    assert trainer["zmq"] == {"controller_port": None, "publish_port": None}
    assert (
        made["data_config"]["preprocessing"]["scale"] == 0.5
        and made["data_config"]["augmentation_config"]["geometric"]["rotation_max"] == 180
    )


def test_settings_of_peers_are_yaml_with_numbers_as_people_write_them() -> None:
    given = {"sleap.lr": "1e-4", "sleap.size": "8", "sleap.name": "adam", "sleap.text": "'1e-4'", "sleap.flat": "[1, x]", "dlc.lr": "2e-3"}
    assert peer_settings(given, "sleap.") == {"lr": 1e-4, "size": 8, "name": "adam", "text": "1e-4", "flat": [1, "x"]}
    assert peer_settings(given, "dlc.") == {"lr": 2e-3}


def test_labels_of_another_format_become_a_sleap_project_of_the_runs_own(make_blobs: Callable[..., Any], tmp_path: Path) -> None:
    made = make_blobs(counts=(1,) * 3, labelled=range(2), images=True)
    assert _as_slp(made.project, tmp_path / "run") == made.project
    write_project(tmp_path / "train_2_0.json", read_project(made.project))
    (tmp_path / "run").mkdir()
    found, expected = (read_project(path) for path in (_as_slp(tmp_path / "train_2_0.json", tmp_path / "run"), made.project))
    assert found.path == tmp_path / "run" / "train_2_0.slp" and found.videos == expected.videos
    assert [f.instances[0].points.tolist() for f in found.frames] == [f.instances[0].points.tolist() for f in expected.frames]


@needs_sleap
def test_only_the_budget_ends_a_run(tmp_path: Path) -> None:
    from omegaconf import OmegaConf
    from sleap_nn.config.training_job_config import verify_training_cfg

    job = job_of(tmp_path, tmp_path / "p.slp", "sleap-bottomup", minutes=20.0)
    ((name, backbone, head, scale, _),) = _networks(job, 1.0)
    made = verify_training_cfg(OmegaConf.create(_settings(job, name, backbone, head, scale, 1e-3))).trainer_config
    assert not made.early_stopping.stop_training_on_plateau and made.max_epochs == 10**6


@pytest.mark.parametrize(
    ("device", "accelerator", "indices"), [("cuda:1", "gpu", [1]), ("cuda", "gpu", [0]), ("mps", "mps", None), ("cpu", "cpu", None)]
)
def test_training_uses_the_device_asked_for(device: str, accelerator: str, indices: list[int] | None, tmp_path: Path) -> None:
    job = replace(job_of(tmp_path, tmp_path / "p.slp", "sleap-bottomup", steps=4), device=device)
    ((name, backbone, head, scale, _),) = _networks(job, 0.5)
    trainer = _settings(job, name, backbone, head, scale, 1e-4)["trainer_config"]
    assert (trainer["trainer_accelerator"], trainer["trainer_device_indices"]) == (accelerator, indices)


def test_one_device_is_chosen_for_training_and_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def train(job: Job, *_: Any) -> Any:
        used.append(job.device)
        return SimpleNamespace(step=1, elapsed=1.0, snapshots=[])

    def predict(job: Job, *_: Any) -> tuple[float, int]:
        used.append(job.device)
        return 1.0, 1

    monkeypatch.setitem(sys.modules, "sleap_nn", SimpleNamespace(__version__="0"))
    monkeypatch.setattr("smp_plugin.devices.choose_device", lambda name: (torch.device("mps"), "as on a Mac"))
    for name, value in (("_hush", lambda: None), ("_train", train), ("_predict", predict)):
        monkeypatch.setattr(sleap, name, value)
    monkeypatch.setattr(sleap, "curve_point", lambda job, path, seconds, step: (path.name, seconds, step))
    outcome = run(replace(job_of(tmp_path, tmp_path / "p.slp", "sleap-topdown", steps=1), device="auto"))
    assert used == ["mps"] * 4  # two networks, predictions as shown and for AP
    assert outcome.curve == [("everything.slp", 2.0, 2)]  # the final model's point


def test_the_clock_ends_a_run_and_keeps_weights_on_the_way(tmp_path: Path) -> None:
    clock = _Clock(job_of(tmp_path, tmp_path / "p.slp", "sleap-bottomup", steps=10, curve=5), "bottomup", 1.0)
    clock.begin()
    saved: list[Path] = []
    ended = [clock.tick(step, saved.append) for step in range(1, 11)]
    assert ended == [False] * 9 + [True]
    assert [s.step for s in clock.snapshots] == [2, 4, 6, 8] and len(saved) == 4


def test_validation_takes_no_time_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("smp_plugin.baselines.sleap.time.monotonic", lambda: now)
    clock = _Clock(job_of(tmp_path, tmp_path / "p.slp", "sleap-bottomup", minutes=1.0), "bottomup", 1.0)
    clock.pause()  # a trial of the validation, before training
    now += 50
    clock.go_on()
    clock.begin()
    now += 50
    clock.pause()
    now += 1000
    clock.go_on()
    assert not clock.tick(1, lambda path: None) and clock.elapsed == 50
    now += 10
    assert clock.tick(2, lambda path: None) and clock.elapsed == 60


@pytest.mark.skipif(HERE, reason="sleap-nn is installed")
def test_without_sleap_nn_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"sleap-topdown needs sleap-nn.*pip install 'smp-plugin\[sleap\]'"):
        run(job_of(tmp_path, tmp_path / "p.slp", "sleap-topdown", steps=1))


@needs_sleap
def test_bottom_up_needs_edges(tmp_path: Path, make_blobs: Callable[..., Any]) -> None:
    labels = read_project(make_blobs().project)
    write_project(tmp_path / "loose.slp", replace(labels, skeleton=replace(labels.skeleton, edges=())))
    with pytest.raises(FormatError, match="joins keypoints along the skeleton's edges, and it has none"):
        run(job_of(tmp_path, tmp_path / "loose.slp", "sleap-bottomup", steps=1))


def test_frames_are_halved_by_the_largest_that_is_learnt_from(
    tmp_path: Path, make_blobs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = read_project(make_blobs().project)  # 96 x 96 pixels
    small = VideoSource((tmp_path / "no such video.mp4",))  # without labels: not looked at
    learnt = replace(labels, videos=[small, *labels.videos], frames=[replace(f, video=f.video + 1) for f in labels.frames])
    for limit, scale in ((96 * 96, 1.0), (96 * 96 - 1, 0.5)):
        monkeypatch.setattr(sleap, "LARGE_FRAME", limit)
        assert _scale(learnt, on_cpu=True) == scale and _scale(learnt, on_cpu=False) == 1.0
    monkeypatch.setattr(sleap, "LARGE_FRAME", 96 * 96)
    photographs = make_blobs("photographs", images=True, sizes=[(150, 96), (96, 96)])  # the last one that is labelled is small
    assert _scale(read_project(photographs.project), on_cpu=True) == 0.5


@needs_sleap
@pytest.mark.parametrize("method", ["sleap-bottomup", "sleap-topdown"])
def test_a_real_run(method: str, tmp_path: Path, make_blobs: Callable[..., Any]) -> None:
    project = make_blobs().project
    job = job_of(tmp_path, project, method, steps=3, curve=2)
    (job.folder / "models" / "snapshots" / "0_bottomup").mkdir(parents=True)  # what an interrupted run left
    outcome = run(job)
    assert outcome.version.startswith("sleap-nn") and outcome.frames == 12
    assert outcome.steps == (3 if method == "sleap-bottomup" else 6) and len(outcome.curve) == 2
    every, shown = (sum(len(f.predicted) for f in read_project(p, require_videos=False).frames) for p in (job.everything, job.predictions))
    assert every >= shown
    found = read_project(job.predictions, require_videos=False)
    assert sorted(f.index for f in found.frames) == sorted(f.index for f in read_project(project).labelled_frames)
    assert evaluate(project, job.predictions).frames == 12

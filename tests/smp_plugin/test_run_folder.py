"""Files that are there whole or as they were; the score from which animals are kept: most right and fewest wrong, also where many
animals have no label."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from converters import FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource
from smp_plugin import run_folder
from smp_plugin.checkpoint import Checkpoint, save_model
from smp_plugin.config import Config, ModelConfig, write_config
from smp_plugin.drawing import OverlayWriter
from smp_plugin.inference import FramePoses
from smp_plugin.metrics import evaluate_poses
from smp_plugin.model import PoseModel
from smp_plugin.page import write_page
from smp_plugin.report import write_curves, write_gallery
from smp_plugin.run_folder import RunFolder, WholeCheckpoints, append_row, choose_min_score, open_folder, predict_frames, with_counts

SHAPE = np.array([[0.0, 0.0], [20.0, 0.0], [40.0, 10.0]])


def frame_of(rng: np.random.Generator, animals: int, junk: int) -> tuple[np.ndarray, FramePoses]:
    """All animals of a frame, found 1 px off with scores around .6, and inventions around .2."""
    truth = np.array([SHAPE + (100 * i, 0) for i in range(animals)]).reshape(-1, 3, 2)
    poses = np.concatenate((truth + 1, [SHAPE + (100 * i, 500) for i in range(junk)]))
    scores = np.concatenate((rng.normal(0.6, 0.05, animals), rng.normal(0.2, 0.05, junk)))
    order = np.argsort(scores)[::-1]
    return truth, FramePoses(poses[order], scores[order], np.ones((len(scores), 3)))


def test_animals_are_kept_and_inventions_are_not():
    rng = np.random.default_rng(0)
    truth, found = zip(*(frame_of(rng, 5, 8) for _ in range(20)), strict=True)
    assert 0.26 < choose_min_score(list(truth), list(found), partial=False) < 0.56


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_with_partial_labels_it_does_not_matter_how_many_animals_have_one(share: float):
    rng = np.random.default_rng(1)
    truth, found = zip(*(frame_of(rng, 6, 8) for _ in range(40)), strict=True)
    labelled = [np.where(rng.random((len(t), 1, 1)) < share, t, np.nan) for t in truth]
    labelled = [t[np.isfinite(t).all(axis=(1, 2))] for t in labelled]
    assert 0.26 < choose_min_score(labelled, list(found), partial=True) < 0.56


def test_models_are_chosen_by_all_three_tolerances(monkeypatch: pytest.MonkeyPatch):
    """By the first alone, a model that finds animals and knows nothing of their keypoints would do."""
    monkeypatch.setattr(run_folder, "predict_frames", lambda *_: [])
    monkeypatch.setattr(run_folder, "evaluate_poses", lambda *_, **__: SimpleNamespace(pixel_error={50: 2.5}))
    monkeypatch.setattr(run_folder, "judged_ap", lambda _: {1.0: 0.9, 0.1: 0.5, 0.0025: 0.1})
    keeper: Any = SimpleNamespace(
        val_frames=[],
        reader=None,
        config=Config(),
        material=SimpleNamespace(skeleton=Skeleton(("a",)), val_partial=False),
        task=SimpleNamespace(update=lambda *_, **__: None),
    )
    module: Any = SimpleNamespace(teacher=None, typical=20.0, budget=SimpleNamespace(seconds=0.0), step=7)
    chosen_by, figures = RunFolder.validate(keeper, module)
    assert chosen_by == pytest.approx(0.5)
    assert list(figures.values()) == ["0.9000", "0.5000", "0.1000", "2.5000"]


def test_a_double_that_is_nearer_to_the_label_does_not_speak_for_low_scores():
    truth = [np.array([SHAPE + (100 * i, 0) for i in range(4)])] * 10
    poses, scores = np.concatenate((truth[0] + 2, truth[0])), np.repeat([0.6, 0.1], 4)
    found = [FramePoses(poses, scores, np.ones((8, 3)))] * 10
    assert choose_min_score(truth, found, partial=False) > 0.2 and choose_min_score(truth, found, partial=True) > 0.2


def test_with_partial_labels_thousands_of_weak_inventions_do_not_hide_dozens_of_surer_ones():
    rng, truth = np.random.default_rng(2), list[np.ndarray]()
    found = list[FramePoses]()
    for _ in range(40):
        animals, frame = frame_of(rng, 6, 300)
        frame.scores[6:] = np.sort(np.concatenate((rng.normal(0.3, 0.03, 2), rng.uniform(0.01, 0.1, 298))))[::-1]
        truth, found = [*truth, animals[rng.random(6) < 0.3]], [*found, frame]
    assert choose_min_score(truth, found, partial=True) > 0.38


def test_where_animals_without_a_label_score_low_they_are_kept():
    """Animals score .3 to .9 and inventions up to .6. Three in ten animals have a label: the others are no inventions."""
    rng, labels, found = np.random.default_rng(0), list[np.ndarray](), list[FramePoses]()
    for _ in range(150):
        animals, frame = frame_of(rng, 4, 4)
        scores = np.concatenate((rng.uniform(0.3, 0.9, 4), rng.uniform(0.05, 0.6, 4)))
        order = np.argsort(-scores)
        poses = np.concatenate((animals + 1, animals + (0, 500)))
        found.append(FramePoses(poses[order], scores[order], np.ones((8, 3))))
        labels.append(animals[rng.random(4) < 0.3])
    assert choose_min_score(labels, found, partial=True) < 0.35 and choose_min_score(labels, found, partial=False) > 0.5


def test_with_partial_labels_the_geometric_mean_decides():
    """Hits of all kept so far: 10 of 10, 20 of 30 and 32 of 90. Hits over the root of these are 3.2, 3.7 and 3.4."""
    hits = np.concatenate([np.arange(n) >= n - right for n, right in ((10, 10), (20, 10), (60, 12))])
    scores = np.concatenate((np.linspace(0.9, 0.8, 10), np.linspace(0.6, 0.5, 20), np.linspace(0.3, 0.2, 60)))
    places = np.array([SHAPE + (100 * i, 0) for i in range(90)])
    cut = choose_min_score([places[hits]], [FramePoses(places, scores, np.ones((90, 3)))], partial=True)
    assert 0.3 < cut < 0.6


def test_the_cut_does_not_lie_where_no_cut_serves_well():
    """The surest ten are as good as all that is found, but for what lies between: F1 is .83, .83 and .74."""
    scores = np.array([*np.linspace(0.9, 0.8, 10), 0.5, 0.4, 0.3, 0.1, 0.08])
    animals = np.array([SHAPE + (100 * i, 0) for i in range(15)])
    truth = np.concatenate((animals[:10], animals[13:], animals[:2] + (0, 900)))
    assert 0.5 < choose_min_score([truth], [FramePoses(animals, scores, np.ones((15, 3)))], partial=False) < 0.9


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("junk", [[], [0.03]])
def test_a_few_animals_that_stand_out_leave_room_for_others_that_score_lower(junk: list[float], partial: bool):
    scores = np.array([0.92, 0.9, 0.84, *junk])
    poses = np.array([SHAPE + (100 * i, 0) for i in range(len(scores))])
    found = FramePoses(poses, scores, np.ones((len(scores), 3)))
    assert 0.05 < choose_min_score([poses[:3]], [found], partial) < 0.3


def test_nothing_found_keeps_what_may_come():
    truth = [SHAPE[None]]
    nothing = FramePoses(np.empty((0, 3, 2)), np.empty(0), np.empty((0, 3)))
    assert choose_min_score(truth, [nothing], partial=False) == choose_min_score(truth, [nothing], partial=True) == 0.1


def test_the_report_has_ap_of_all_predictions_and_counts_of_those_kept():
    truth, poses = [SHAPE[None]], np.stack([SHAPE, SHAPE + 1, SHAPE + 500])
    both = [(poses, np.array([0.5, 0.4, 0.9]))], [(poses[:1], np.array([0.5]))]
    result, counted = (evaluate_poses(truth, p, "abc", symmetries=((1, 2),), partial=True) for p in both)
    shown = with_counts(result, counted)
    assert (shown.ap, shown.deeplabcut) == (result.ap, result.deeplabcut) and result.ap != counted.ap
    assert (shown.predictions, shown.invented, shown.doubled, shown.missed) == (1, 0, 0, 0) and (result.invented, result.doubled) == (1, 1)
    assert shown.partial and result.partial and (shown.partial.ignored, result.partial.ignored) == (0, 1)
    assert shown.partial.ap == result.partial.ap and (shown.partial.doubled, result.partial.doubled) == (0, 1)


def test_a_model_that_finds_animals_without_a_label_is_not_taken_for_a_worse_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = FramePoses(np.stack([SHAPE + (200, 0), SHAPE]), np.array([0.9, 0.5]), np.ones((2, 3)))
    monkeypatch.setattr(run_folder, "predict_frames", lambda *_: [found])
    chosen_by = {}
    for partial in (True, False):
        frames, skeleton = [LabeledFrame(0, 0, [Instance(SHAPE)])], Skeleton(("a", "b", "c"))
        videos = [VideoSource((tmp_path / "clip.mp4",))]
        validation = Labels(skeleton, videos, frames)
        material: Any = SimpleNamespace(videos=videos, val_frames=frames, skeleton=skeleton, val_partial=partial, validation=validation)
        task: Any = SimpleNamespace(update=lambda *_, **__: None)
        module: Any = SimpleNamespace(teacher=None, typical=40.0, step=1, budget=SimpleNamespace(seconds=0.0))
        chosen_by[partial], figures = RunFolder(tmp_path, Config(), material, None, task, {}).validate(module)  # type: ignore[arg-type]
        assert figures["val_ap"] == ("1.0000" if partial else "0.5000")
    assert chosen_by[True] == pytest.approx(1) and chosen_by[False] == pytest.approx(0.5)


def test_what_a_model_finds_on_a_box_without_keypoints_is_not_judged(monkeypatch: pytest.MonkeyPatch):
    found = FramePoses(np.stack([SHAPE + (200, 0), SHAPE]), np.array([0.9, 0.5]), np.array([[0.9] * 3, [0.5] * 3]))
    monkeypatch.setattr(run_folder, "infer", lambda *_: [found])
    reader: Any = SimpleNamespace(get=lambda *_: (np.zeros((3, 8, 8)), None))
    box = np.array([200.0, -5, 300, 30])
    frames = [LabeledFrame(0, 0, [Instance(SHAPE)], unposed=boxes) for boxes in ([], [box], [box - (200, 0, 200, 0)])]
    judged = predict_frames(None, frames, reader, Config(), 40.0)  # type: ignore[arg-type]
    assert [p.scores.tolist() for p in judged] == [[0.9, 0.5], [0.5], [0.9, 0.5]]  # the last box is around the labelled animal
    assert all(np.array_equal(p.point_scores[:, 0], p.scores) and len(p.poses) == len(p.scores) for p in judged)


# --- files ---


def test_a_model_that_is_still_learning_has_no_report(tmp_path: Path):
    """By which smp-predict tells runs that have ended."""
    config = Config(model=ModelConfig(channels=16, tower_depth=1, heatmap_channels=16, norm="frozen"))
    material: Any = SimpleNamespace(videos=[], val_frames=[], skeleton=SKELETON, validation=Labels(SKELETON, [], []))
    module: Any = SimpleNamespace(teacher=PoseModel(config.model, 3), typical=10.0, budget=SimpleNamespace(elapsed=60.0))
    (tmp_path / "report.html").touch()
    RunFolder(tmp_path, config, material, None, None, {}).save(module)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt"}


SKELETON = Skeleton(("nose", "middle", "tail"), ((0, 1), (1, 2)))


def write_model(path: Path) -> None:
    config = Config(model=ModelConfig(channels=16, tower_depth=1, heatmap_channels=16, norm="frozen"))
    save_model(path, Checkpoint(PoseModel(config.model, 3), config, SKELETON, 10.0, {}))


def write_overlay(path: Path) -> None:
    with OverlayWriter(path, SKELETON) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8), SHAPE[None])


def write_figure(path: Path) -> None:
    append_row(path.with_name("table.csv"), {"step": 1, "loss": 1})
    write_curves(path.with_name("table.csv"), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("metrics.csv", lambda path: append_row(path, {"step": 2})),
        ("model.pt", write_model),
        ("last.ckpt", lambda path: WholeCheckpoints().save_checkpoint({"step": 2}, path)),
        ("config.yaml", lambda path: write_config(Config(), path)),
        ("report.html", lambda path: write_page(path, "", [])),
        ("curves.png", write_figure),
        ("val_predictions.png", lambda path: write_gallery(path, [], SKELETON)),
        ("overlay.mp4", write_overlay),
    ],
)
def test_stopped_before_a_file_is_whole_it_is_as_before(
    name: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, replace = tmp_path / name, os.replace

    def stop(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    path.write_text("step\n1\n")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write(path)
    assert path.read_text() == "step\n1\n"
    write(path)
    assert path.stat().st_size > 9
    assert {p.name for p in tmp_path.iterdir()} <= {name, "table.csv"}


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt"])
def test_a_full_disk_is_one_sentence(name: str, tmp_path: Path):
    """Also where torch and safetensors write, in ways of their own."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(FormatError, match=f"{name} cannot be written .*see whether the disk is full"):
            if name == "model.pt":
                write_model(tmp_path / name)
            else:
                WholeCheckpoints().save_checkpoint({"weights": torch.zeros(1_000_000)}, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", range(1, 7))  # torch hides what is raised in some of them
def test_ctrl_c_while_a_checkpoint_is_written(write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class File(io.FileIO):
        count = 0

        def write(self, data: Any) -> int:
            self.count += 1
            if self.count == write:
                raise KeyboardInterrupt
            return super().write(data) or 0

    monkeypatch.setattr(Path, "open", lambda path, mode: File(path, mode))
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint({"a": torch.zeros(1000, 100), "b": torch.zeros(100_000)}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_rid_of_what_a_killed_run_left(tmp_path: Path):
    for name in (".model.0123abcd.pt", ".last.0123abcd.ckpt", "model.pt"):
        (tmp_path / name).touch()
    open_folder(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "log.txt"}

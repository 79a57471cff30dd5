"""``smp-train --check``: what it says, what it writes, and that nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smp_plugin
from smp_plugin.cli.train import main
from smp_plugin.config import Config


def test_a_sound_project(blobs: Any, make_config: Any, listener: Any, tmp_path: Path):
    found = smp_plugin.check([blobs.project], config=make_config(data__val_fraction=0.0), out=tmp_path / "run", reporter=listener)
    assert found == [] == listener.alarms
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"check.html", "log.txt"}
    said = [text for text in listener.sentences if ": " in text]
    for fact in (
        "frames: 12, 96 x 96 pixels",
        "animals a frame: 1 to 2, 1.5 on average",
        "keypoints an animal: 3.0 of 3; 100% have all of them",
        "labelled share of keypoints: head 100%, middle 100%, tail 100%",
        "longer side of an animal's box: 27 pixels (most 25 to 28), 29% of the frame",
        "unlabelled frames: 8 in 1 video",
    ):
        assert fact in said
    assert listener.sentences[-1].startswith("nothing to look at; pictures: ")
    page = (tmp_path / "run" / "check.html").read_text()
    assert "Nothing found that looks wrong" in page and page.count("data:image/jpeg;base64") == 6  # some of the frames


def test_two_starts_within_a_second_have_a_folder_each(blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smp_plugin.checking.dated_folder", lambda: Path("runs") / "261122_223000")
    for _ in range(3):
        smp_plugin.check([blobs.project])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["261122_223000", "261122_223000-2", "261122_223000-3"]


def test_what_is_wrong_is_shown(make_blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def hide(frame: int, points: np.ndarray) -> np.ndarray:
        return points * 0 + 30 if frame == 3 else points

    project, run = make_blobs(counts=[1] * 12, hide=hide).project, tmp_path / "run"
    assert main(["--slp", str(project), "--check", "-o", str(run), "--val", "0.2", "--device", "cpu"]) == 0
    shown = capsys.readouterr().err
    sentence = "1 animal with all points at one place: blobs.mp4, frame 3; place the points anew, or delete the animal."
    assert f"Warning: {sentence}" in shown and shown.strip().endswith(f"2 to look at; pictures: {run / 'check.html'}")
    page = (run / "check.html").read_text()
    assert sentence in page and page.index(sentence) < page.index("data:image") < page.index("Some labelled frames")
    assert "2 animals in 2 validation frames are few" in page
    assert not (run / "model.pt").exists() and not (run / "config.yaml").exists()


def test_a_label_outside_of_its_image(make_blobs: Any, listener: Any, tmp_path: Path):
    """Images of different sizes, each judged by its own."""

    def hide(frame: int, points: np.ndarray) -> np.ndarray:
        return points + (60, 0) if frame == 1 else points

    project = make_blobs(counts=[1] * 6, labelled=range(6), images=True, sizes=[(150, 96), (96, 96)], hide=hide).project
    (found,) = smp_plugin.check([project], out=tmp_path / "run")
    assert found.startswith("3 points lie outside of the picture (head, middle, tail): blobs/img001.png;")


def test_an_unlabelled_video_that_is_stuck(blobs: Any, make_clip: Any, tmp_path: Path):
    stuck = make_clip(tmp_path / "stuck.mp4", [np.full((96, 96, 3), 70, dtype=np.uint8)] * 30)
    config = Config()
    config.data.val_fraction = 0.0
    (found,) = smp_plugin.check([blobs.project], config=config, unlabeled=[stuck, blobs.video], out=tmp_path / "run")
    assert found.startswith(f"{stuck}: frames from beginning to end show the same picture")


def test_ordinary_training_warns_of_what_is_certain(
    make_blobs: Any, make_config: Any, listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And of nothing that has to be judged by pictures."""
    from smp_plugin import training

    class Prepared(Exception):
        pass

    def stop(*_: object) -> None:
        raise Prepared

    monkeypatch.setattr(training, "find_weights", stop)
    project = make_blobs(counts=[1] * 14, hide=lambda i, points: points + (60 if i == 5 else 0, 0)).project
    with pytest.raises(Prepared):
        training.train([project], config=make_config(data__val_fraction=0.2), out=tmp_path / "run", reporter=listener)
    (alarm,) = listener.alarms
    assert "outside of the picture" in alarm and "blobs.mp4, frame 5" in alarm

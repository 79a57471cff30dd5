"""Refusals that no other test meets: what a person reads when something cannot be used, and that nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from converters import FormatError, read_project, write_project
from converters.mixing import read_aliases
from smp_plugin import comparison, segments
from smp_plugin.baselines import Job
from smp_plugin.cli import _common
from smp_plugin.cli.train import main as train
from smp_plugin.comparison import compare
from smp_plugin.config import read_config
from smp_plugin.prediction import predict
from smp_plugin.preparation import prepare
from smp_plugin.progress import Reporter
from smp_plugin.training import train as learn

pytestmark = pytest.mark.usefixtures("thin_backbone")


def test_a_comparison_needs_one_budget_and_labels(blobs: Any, make_blobs: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="Give --minutes or --steps, not both"):
        compare(blobs.project, out=tmp_path / "out", minutes=1, steps=3)
    bare = make_blobs("bare", counts=[0] * 4, labelled=range(4)).project
    with pytest.raises(FormatError, match=r"bare\.slp: no animal is labelled in it; label some frames"):
        compare(bare, out=tmp_path / "out", steps=3)
    with pytest.raises(FormatError, match=r"--val .*bare\.slp: no animal is labelled in it, so nothing can be measured"):
        compare(blobs.project, val=bare, out=tmp_path / "out", steps=3)
    assert not (tmp_path / "out").exists()


def test_settings_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"train: \xff\xfe\x00")
    with pytest.raises(FormatError, match=r"config\.yaml: not a readable YAML file"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(FormatError, match="not a readable YAML file"):
        read_config(tmp_path)


def test_a_checkpoint_that_lacks_something(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    saved = torch.load(run / "last.ckpt", weights_only=True)
    del saved["optimizer_states"], saved["step"]
    torch.save(saved, run / "last.ckpt")
    assert train(f"--resume -o {run} --steps 50".split()) == 2
    assert "last.ckpt is damaged (it has no optimizer_states, step); train anew in another folder" in capsys.readouterr().err


def test_a_run_replaces_no_files_of_others(blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_project(tmp_path / "dlc", read_project(blobs.project))
    config = tmp_path / "dlc" / "config.yaml"
    before = config.read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("of something else")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "config.yaml").write_text("train: {steps: 5}  # for --config")
    for folder, name in (("dlc", "config.yaml"), ("mine", "report.html"), ("few", "config.yaml")):
        assert train(f"--dlc {config} -o {tmp_path / folder} --steps 1".split()) == 2
        assert f"{folder}: the {name} in it is not of a run and would be replaced; name another folder" in capsys.readouterr().err
    assert config.read_bytes() == before and sorted(path.name for path in (tmp_path / "few").iterdir()) == ["config.yaml"]


def test_no_project_is_named(make_config: Callable[..., Any]) -> None:
    with pytest.raises(FormatError, match="No labelled project is named; add --slp PROJECT, --dlc CONFIG or --coco LABELS"):
        prepare(make_config(), Reporter(quiet=True))


def test_no_unlabelled_frame_can_be_read(blobs: Any, make_config: Callable[..., Any], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (64, 64)).save(images / "0.png")
    for number in (1, 2):
        (images / f"{number}.png").write_bytes(b"no image")
    config = make_config(train__unlabeled_fusion_start=0.0, train__labeled_fusion_start=0.0, data__unlabeled_frames="1-2")
    with pytest.raises(FormatError, match="no unlabelled frame can be read; convert the video to MP4, or name another"):
        learn([blobs.project], config=config, out=tmp_path / "run", unlabeled=[images])


def test_segments_that_cannot_be_kept(trained: Path, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(segments.Path, "mkdir", refused)
    with pytest.raises(FormatError, match=r"\.out\.slp\.segments can't be written \(Permission denied\); choose another folder for -o"):
        predict([blobs.video], tmp_path / "out.slp", model=trained, device="cpu")
    assert not list(tmp_path.iterdir())


def test_an_overlay_where_nothing_may_be_written(trained: Path, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path / "closed")
    with pytest.raises(FormatError, match=r"--overlay .*o\.mp4: the folder can't be written to; choose one"):
        predict([blobs.video], tmp_path / "out.slp", model=trained, device="cpu", overlay=tmp_path / "closed" / "o.mp4")
    assert not (tmp_path / "out.slp").exists()


def test_a_bug_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import rich_click as click

    @click.command("smp-test")
    def command() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "smp-test-error.txt").mkdir()
    assert _common.run(command, []) == 1
    shown = capsys.readouterr().err
    assert "this is a bug: ZeroDivisionError: oh. Please report it with this command: smp-test" in shown and "Traceback" not in shown


@pytest.mark.parametrize("text", ["20%", "0,2", "validation.slp"])
def test_neither_a_share_nor_a_file(text: str) -> None:
    with pytest.raises(FormatError, match=rf"--val {text}: no such file, and no share of the labelled frames; write a share as 0\.2"):
        _common.validation(text)


def test_validation_frames_without_labels(blobs: Any, make_blobs: Callable[..., Any], tmp_path: Path) -> None:
    bare = make_blobs("bare", counts=[0] * 4, labelled=range(4)).project
    with pytest.raises(FormatError, match=r"--val .*bare\.slp: no frame is labelled in it; name a project with labelled frames, or leave"):
        learn([blobs.project], val=bare, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_a_folder_of_videos(blobs: Any) -> None:
    with pytest.raises(FormatError, match=r"The folder given for the videos, .*\.mp4, is a file; check --video-root, which takes a folder"):
        read_project(blobs.project, blobs.video)


def test_a_method_that_refuses_its_input(tmp_path: Path) -> None:
    """In a process of its own, as all are; the sentence comes back without a traceback."""
    (tmp_path / "empty.slp").touch()
    job = Job("smp", tmp_path / "empty.slp", tmp_path / "empty.slp", tmp_path / "cell", steps=1, device="cpu")
    problem = comparison._run(job, lambda _: None)
    assert problem is not None and not problem.unavailable
    assert "empty.slp is an empty file; copy or save the project again" in problem.sentence


def test_a_table_of_aliases_with_semicolons(tmp_path: Path) -> None:
    (tmp_path / "aliases.csv").write_text("nose;snout\ntail;tail base\n")
    with pytest.raises(FormatError, match=r"aliases\.csv: no line has two names; write all names of a keypoint in one line, separated by"):
        read_aliases(tmp_path / "aliases.csv")

"""Files from strangers: whatever is in them, nothing runs, nothing outside is read or written, and memory is not taken beyond their size.

Native projects have traps of their own, which `tests/converters` and `benchmarks/fuzz_formats.py` set: pickled tables and their
companions, HDF5 files that claim more than they hold, links to other files. Names on pages: `test_report` and `test_comparison_report`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from converters import FormatError
from converters.video import open_video, video_source
from smp_plugin import comparison, predictor
from smp_plugin.checkpoint import load_model
from smp_plugin.cli import convert, predict, train
from smp_plugin.comparison_results import COLUMNS, read_results
from smp_plugin.config import Config, read_config, set_value
from smp_plugin.inference import FramePoses
from smp_plugin.model import PoseModel
from smp_plugin.predictor import Predictor
from smp_plugin.progress import Reporter
from smp_plugin.unpickling import load_plain

pytestmark = pytest.mark.usefixtures("thin_backbone")


class Trap:
    """Unpickled, it runs ``touch FILE`` in a shell."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Long:
    """Unpickled, it would take as much memory as it names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 20,)


def refused(command: Any, arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    capsys.readouterr()
    assert command.main([*arguments.split(), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# --- checkpoints ---


def test_checkpoints_run_nothing(trained: Path, blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, ran = tmp_path / "run", tmp_path / "ran"
    run.mkdir()
    shutil.copy(trained / "config.yaml", run)
    for legacy in (False, True):
        for name in ("model.pt", "last.ckpt", "weights.pth"):
            torch.save({"state_dict": Trap(ran)}, run / name, _use_new_zipfile_serialization=not legacy)
        assert "model.pt: the file is damaged" in refused(predict, f"{blobs.video} --model {run} -o {tmp_path}/o.slp --device cpu", capsys)
        assert "last.ckpt is damaged" in refused(train, f"--resume -o {run}", capsys)
        shown = refused(train, f"--slp {blobs.project} --weights {run}/weights.pth -o {tmp_path}/new --device cpu", capsys)
        assert "not a safe file of ResNet weights" in shown
    assert not ran.exists()
    torch.load(run / "model.pt", weights_only=False)  # it is a trap
    assert ran.exists()


def test_checkpoints_take_no_more_memory_than_they_are_long(tmp_path: Path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    assert load_plain(path)["a"].shape == (1000,)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="compressed"):
        load_plain(tmp_path / "bomb.pt")
    for new in (False, True):
        torch.save(Long(), path, _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="bytearray"):
            load_plain(path)


@pytest.mark.parametrize("content", [b"\x80\x02h\x05.", b"\x80\x02.", b"\x80\x02]r\xff\xff\xff\x7f.", b"\x80\x02K\x01."])
def test_what_no_checkpoint_is(content: bytes, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(trained / "config.yaml", tmp_path)
    with zipfile.ZipFile(tmp_path / "last.ckpt", "w") as archive:
        for name, data in (("a/data.pkl", content), ("a/version", b"3\n"), ("a/byteorder", b"little")):
            archive.writestr(name, data)
    sentence = refused(train, f"--resume -o {tmp_path}", capsys)
    assert "last.ckpt is damaged" in sentence or "last.ckpt: the file does not say which version" in sentence


def test_a_checkpoint_of_another_network(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = shutil.copytree(trained, tmp_path / "run")
    saved = torch.load(run / "last.ckpt", weights_only=True)
    name = next(iter(saved["state_dict"]))
    saved["state_dict"][name] = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save(saved, run / "last.ckpt")
    assert "last.ckpt does not fit its config.yaml" in refused(train, f"--resume -o {run} --steps 50", capsys)


def test_a_checkpoint_of_another_optimiser(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = shutil.copytree(trained, tmp_path / "run")
    saved = torch.load(run / "last.ckpt", weights_only=True)
    saved["optimizer_states"][0]["param_groups"].pop()
    torch.save(saved, run / "last.ckpt")
    assert "last.ckpt does not fit its config.yaml" in refused(train, f"--resume -o {run} --steps 50", capsys)


def test_weights_of_another_network(blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    shown = refused(train, f"--slp {blobs.project} --weights {tmp_path}/weights.pt -o {tmp_path}/run --device cpu", capsys)
    assert "--weights" in shown and "set model.backbone to theirs" in shown


def edited(trained: Path, path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """The model with another header."""
    with safe_open(trained / "model.pt", framework="pt") as file:
        header, tensors = json.loads(file.metadata()["smp_plugin"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    edit(header)
    save_file(tensors, path, metadata={"smp_plugin": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda header: header["config"]["model"].update(channels=1024), "does not fit together"),
        (lambda header: header["config"]["model"].update(tower_depth=10**6), "tower_depth is 1000000; it must be at most 64"),
        (lambda header: header["config"]["predict"].update(batch=10**9), "predict.batch is 1000000000; it must be at most"),
        (lambda header: header["config"]["data"].update(input_scale=1e6), "input_scale is 1000000.0; it must be at most 64"),
        (lambda header: header["config"]["train"].update(lr="[" * 9), "train.lr: not a readable YAML"),
        (lambda header: header.update(typical_length=float("nan")), "typical_length is nan"),
    ],
)
def test_settings_in_a_model(edit: Any, words: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def small(self: PoseModel, *arguments: Any) -> None:
        made(self, *arguments)
        real = [p.numel() for p in self.parameters() if not p.is_meta]
        assert sum(real) < 3e7, "memory was taken before the settings were found to be wrong"

    made = PoseModel.__init__
    monkeypatch.setattr(PoseModel, "__init__", small)
    with pytest.raises(FormatError, match=r"m\.pt") as caught:
        load_model(edited(trained, tmp_path / "m.pt", edit))
    assert words in str(caught.value)


# --- settings ---


LAUGHS = "train: {steps: [&a [x, x, x, x], &b [*a, *a, *a, *a], &c [*b, *b, *b, *b]]}"
MERGES = "a: &a {x: 1}\nb: &b {<<: [*a, *a, *a, *a]}\nc: {<<: [*b, *b, *b, *b]}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {steps: !!python/object/apply:os.system ['touch ran']}", "could not determine a constructor"),
        (LAUGHS, "it has an alias"),
        (MERGES, "it has an alias"),
        ("[" * 1200, "recursion"),
        (f"train: {{steps: {'9' * 5000}}}", "digits"),
        ("train: {steps: 2001-13-45}", "month"),
        ("train: {batch: 1000000}", "train.batch is 1000000; it must be at most 4,096"),
        ("train: {seed: 99999999999999999999}", "it must be at most 1,000,000,000"),
    ],
)
def test_settings_of_strangers(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"^config\.yaml: ") as caught:
        read_config(Path("config.yaml"))
    assert words in str(caught.value) and not Path("ran").exists()


@pytest.mark.parametrize("value", ["[", "!!python/name:os.system", "2001-13-45", "9" * 5000])
def test_values_on_the_command_line(value: str):
    with pytest.raises(FormatError, match=r"--set: train\.lr: not a readable YAML"):
        set_value(Config(), "train.lr", value)


# --- pictures and videos ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile 'clip.ts'\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nclip.ts\n#EXT-X-ENDLIST\n"),
    ],
)
def test_lists_of_files_are_no_videos(name: str, text: str, tmp_path: Path, make_video: Callable[..., Path]):
    make_video(tmp_path / "clip.ts")
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=rf"{name} is a list of other files"):
        open_video(video_source(tmp_path / name))


def test_postscript_in_an_image_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png", format="EPS")
    with pytest.raises(FormatError, match=r"image\.png is not an image that can be read"):
        open_video(video_source(tmp_path / "image.png"))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp", ".webp"])
def test_images_that_open_into_too_much(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (64, 64)).save(tmp_path / f"image{suffix}")
    open_video(video_source(tmp_path / f"image{suffix}"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # in place of an image of 179 million pixels
    with pytest.raises(FormatError, match=r"image\..* exceeds limit of 2000 pixels"):
        open_video(video_source(tmp_path / f"image{suffix}"))


def test_the_network_sees_few_pixels_at_once(trained: Path, monkeypatch: pytest.MonkeyPatch):
    made, lock = Predictor(load_model(trained), torch.device("cpu")), threading.Lock()
    busy, most = 0, 0

    def attempt(images: torch.Tensor) -> list[FramePoses]:
        nonlocal busy, most
        pixels = 4 * images[:, 0].numel()
        with lock:
            busy += pixels
            most = max(most, busy)
        time.sleep(0.01)
        with lock:
            busy -= pixels
        return [FramePoses(np.zeros((0, 3, 2)), np.zeros(0), np.zeros((0, 3))) for _ in images]

    made.config.data.input_scale, made.batch, made.lanes = 2.0, 2, 4
    monkeypatch.setattr(made, "attempt", attempt)
    monkeypatch.setattr(predictor, "MOST_PIXELS", 4 * 3 * 64 * 64)
    sides = [16] * 8 + [64] * 6 + [32] * 9
    assert len(list(made.stream((n, np.zeros((side, side, 3), np.uint8)) for n, side in enumerate(sides)))) == len(sides)
    assert most <= predictor.MOST_PIXELS


def test_frames_in_memory_are_bounded_by_their_pixels(trained: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    made = Predictor(load_model(trained), torch.device("cpu"))
    made.config.data.input_scale, made.batch = 1.0, 64
    monkeypatch.setattr(made, "images", lambda frames: sizes.append(len(frames)))
    monkeypatch.setattr(predictor, "MOST_PIXELS", 3 * 64 * 64 + 1)
    list(made._batches((n, np.zeros((64, 64, 3), np.uint8)) for n in range(7)))
    assert sizes == [3, 3, 1]
    with pytest.raises(FormatError, match=r"Frame 5 has 200 x 100 pixels, which the model reads at 1 times"):
        list(made._batches([(5, np.zeros((100, 200, 3), np.uint8))]))
    made.config.data.input_scale = 2.0
    with pytest.raises(FormatError, match=r"Frame 0 has 64 x 64 pixels, which the model reads at 2 times"):
        list(made._batches([(0, np.zeros((64, 64, 3), np.uint8))]))


# --- folders of strangers ---


@pytest.mark.parametrize("name", ["log.txt", "report.html", ".model.pt.partial"])
def test_a_run_folder_leads_nowhere_else(name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, outside = shutil.copytree(trained, tmp_path / "run"), tmp_path / "profile"
    outside.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    assert f"{name} is a link" in refused(train, f"--resume -o {run} --steps 50", capsys)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("method", ["smp/../../../secret", "..\\secret"])
def test_results_lead_nowhere_else(method: str, tmp_path: Path):
    row = dict.fromkeys(COLUMNS, "1") | {"method": method, "fraction": "all"}
    (tmp_path / "results.csv").write_text(",".join(COLUMNS) + "\n" + ",".join(row[name] for name in COLUMNS) + "\n")
    assert read_results(tmp_path) == []


@pytest.mark.parametrize("text", ["[1]", "5", "[" * 100_000, '{"project": '])
def test_claims_of_strangers(text: str, tmp_path: Path, blobs: Any):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(FormatError, match="can't be used|holds a comparison with another"):
        comparison.compare(blobs.project, out=tmp_path, steps=1, methods=["smp"])


def test_a_comparison_imports_nothing_from_where_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    Path("json.py").write_text("open('ran', 'w')")
    command = [sys.executable, "-m", "smp_plugin.baselines", "nothing"]
    found = subprocess.run(command, env=comparison._environment(), capture_output=True, text=True)
    assert not Path("ran").exists() and "job.json" in found.stderr


# --- names ---


def test_names_do_not_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reporter = Reporter()
    reporter.log_to(tmp_path / "log.txt")
    reporter.say("video \x1b]0;owned\x07\x9b2J[bold]x[/bold].mp4\r\nnext")
    reporter.warn("\x1b[2J")
    shown, logged = capsys.readouterr().err, (tmp_path / "log.txt").read_text()
    for text in (shown, logged):
        assert "video ?]0;owned??2J[bold]x[/bold].mp4 next\n" in text and "\x1b" not in text


def test_names_of_files_do_not_speak_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "a\x1b[2J.slp"
    source.write_text("no project")
    assert convert.main([str(source), str(tmp_path / "b.json")]) == 2
    assert "\x1b[2J" not in capsys.readouterr().err

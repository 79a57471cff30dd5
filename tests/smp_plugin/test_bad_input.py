"""What people get wrong: every command answers with one sentence that names the file and the remedy, exits with 2, and leaves nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sleap_io as sio

from smp_plugin.cli import evaluate, predict, train

pytestmark = pytest.mark.usefixtures("thin_backbone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Any], trained: Path) -> Path:
    """Good and bad files."""
    folder = tmp_path_factory.mktemp("place")
    write(folder, "good", counts=[1] * 4, labelled=range(2))
    write(folder, "other", counts=[1] * 4, labelled=range(2), keypoints=("head", "neck"))
    write(folder, "unlabelled", counts=[1] * 4, labelled=[])
    write(folder, "lost", counts=[1] * 4, labelled=range(2)).video.unlink()
    labels = sio.load_slp(str(write(folder, "long", counts=[1] * 9, labelled=[8]).project), open_videos=False)
    labels.replace_filenames(new_filenames=[str(folder / "good.mp4")])
    sio.save_slp(labels, str(folder / "long.slp"), embed=False, verbose=False)
    (folder / "text.slp").write_text("no project")
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.slp").touch()
    (folder / "cut.slp").write_bytes((folder / "good.slp").read_bytes()[:3000])
    shutil.copy(trained / "model.pt", folder / "model.pt")
    (folder / "cut.pt").write_bytes((trained / "model.pt").read_bytes()[:100_000])
    (folder / "text.pt").write_text("no model")
    (folder / "images").mkdir()
    (folder / "results.json").write_text("[]")
    (folder / "other.json").write_text('{"images": [], "annotations": [], "categories": []}')
    (folder / "broken.yaml").write_text("train: [")
    (folder / "wrong.yaml").write_text("train: {steps: many}")
    return folder


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, from which commands are called."""
    monkeypatch.chdir(folder)
    return folder


def everything(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of all files."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


TRAIN = "--slp good.slp --weights none --steps 1 --device cpu"
PREDICT = "good.mp4 --model model.pt -o out.slp --device cpu"


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (train, "--slp nothing.slp", ["nothing.slp", "no such file"]),
        (train, "--slp text.slp", ["text.slp", "no SLEAP project", "name a .slp"]),
        (train, "--slp good.mp4", ["good.mp4", ".slp"]),
        (train, "--slp images", ["images is a folder", "name the project file"]),
        (train, "--slp empty.slp", ["empty.slp is an empty file", "save the project again"]),
        (train, "--slp cut.slp", ["cut.slp", "damaged", "save it again"]),
        (train, "--slp unlabelled.slp", ["unlabelled.slp", "no animal is labelled", "label some frames"]),
        (train, "--slp lost.slp", ["lost.slp", "lost.mp4", "not found", "--video-root"]),
        (train, "--slp long.slp", ["long.slp", "frame 8", "good.mp4 has 4 frames", "--video-root"]),
        (train, "--slp long.slp --check", ["long.slp", "frame 8", "--video-root"]),
        (train, "--slp good.slp --check -o text.slp", ["text.slp", "choose"]),
        (train, "--slp good.slp --dlc other.slp", ["--dlc other.slp is a SLEAP file", "--slp"]),
        (train, f"{TRAIN} --aliases broken.csv", ["broken.csv", "no such file"]),
        (train, f"{TRAIN} --val other.slp", ["other.slp", "neck", "same keypoints"]),
        (train, f"{TRAIN} --val text.slp", ["text.slp", "no SLEAP project"]),
        (train, f"{TRAIN} --val long.slp", ["long.slp", "frame 8"]),
        (train, f"{TRAIN} --video-root nowhere", ["nowhere", "--video-root"]),
        (train, f"{TRAIN} --unlabeled text.mp4", ["text.mp4", "not a video"]),
        (train, f"{TRAIN} --unlabeled images", ["images", "without images"]),
        (train, f"{TRAIN} --unlabeled-frames 3-1", ["--unlabeled-frames", "0-999,1500"]),
        (train, f"{TRAIN} --set train.batchs=3", ["train.batchs", "Did you mean train.batch"]),
        (train, f"{TRAIN} --set train.lr=fast", ["train.lr", "'fast'", "a number"]),
        (train, f"{TRAIN} --set train.batch=0", ["train.batch"]),
        (train, f"{TRAIN} --set data.crop=-5", ["data.crop"]),
        (train, f"{TRAIN} --set train.val_every=0", ["train.val_every"]),
        (train, f"{TRAIN} --set model.backbone=vgg", ["model.backbone", "resnet18"]),
        (train, f"{TRAIN} --set train.lr", ["section.name=value"]),
        (train, f"{TRAIN} --config broken.yaml", ["broken.yaml", "YAML"]),
        (train, f"{TRAIN} --config wrong.yaml", ["wrong.yaml", "train.steps", "'many'"]),
        (train, f"{TRAIN} --weights nothing.pt", ["nothing.pt"]),
        (train, f"{TRAIN} --weights text.pt", ["text.pt"]),
        (train, "--slp good.slp --device gpu", ["gpu", "cuda"]),
        (train, "--slp good.slp --device cuda:77", ["--device cuda:77", "--device auto"]),
        (train, f"{TRAIN} -o text.slp/run", ["text.slp/run", "can't be written", "choose"]),
        (train, f"{TRAIN} -o text.slp", ["text.slp", "choose"]),
        (train, f"{TRAIN} -o images --resume", ["images", "no run to go on with"]),
        (train, f"{TRAIN} -o nowhere --resume", ["nowhere"]),
        (predict, "nothing.mp4", ["nothing.mp4", "no such file"]),
        (predict, "text.mp4 --model model.pt", ["text.mp4", "not a video"]),
        (predict, "text.slp --model model.pt", ["text.slp", "no SLEAP project"]),
        (predict, "images --model model.pt -o out.slp", ["images", "without images"]),
        (predict, "lost.slp --model model.pt", ["lost.slp", "lost.mp4", "--video-root"]),
        (predict, "other.slp --model model.pt", ["other.slp", "head, neck", "--model"]),
        (predict, "long.slp --model model.pt --frames labeled", ["good.mp4 has 4 frames", "frame 8"]),
        (predict, "good.mp4", ["no finished run under runs", "--model"]),
        (predict, "good.mp4 --model nothing.pt", ["nothing.pt", "no such file"]),
        (predict, "good.mp4 --model cut.pt", ["cut.pt", "damaged"]),
        (predict, "good.mp4 --model text.pt", ["text.pt", "damaged"]),
        (predict, "good.mp4 --model images", ["images", "no such model"]),
        (predict, f"{PREDICT} --frames 4-5", ["good.mp4 has 4 frames (0-3)", "frame 5"]),
        (predict, f"{PREDICT} --frames some", ["--frames", "'some'", "unlabeled"]),
        (predict, f"{PREDICT} --frames labeled", ["good.mp4", "is no project", "--frames all"]),
        (predict, f"{PREDICT} --device cuda:77", ["--device cuda:77", "--device auto"]),
        (predict, f"{PREDICT} --min-score 7", ["--min-score", "7"]),
        (predict, f"{PREDICT} --overlay pictures.avi", ["pictures.avi", ".mp4"]),
        (predict, f"{PREDICT} --overlay text.slp/o.mp4", ["--overlay", "text.slp", "choose"]),
        (predict, f"{PREDICT} --overlay good.mp4", ["--overlay good.mp4", "another name"]),
        (predict, "good.mp4 --model model.pt -o text.slp/out.slp", ["text.slp/out.slp", "choose"]),
        (predict, "good.mp4 --model model.pt -o text.slp/folder", ["text.slp/folder", "choose"]),
        (predict, "good.mp4 --model model.pt -o out.txt", ["out.txt", ".slp"]),
        (predict, "good.slp --model model.pt -o good.slp", ["good.slp is one of the inputs", "another name"]),
        (predict, "good.mp4 other.mp4 --model model.pt", ["-o"]),
        (predict, "good.mp4 other.mp4 --model model.pt -o out.h5", ["out.h5 would hold 2 videos", "name a folder"]),
        (predict, "good.mp4 other.mp4 --model model.pt -o out.analysis.h5", ["out.analysis.h5", "one video"]),
        (predict, "good.mp4 --model model.pt -o out.pkg.slp", ["out.pkg.slp", "ends in .slp alone"]),
        (predict, "good.mp4 --model model.pt -o config.yaml", ["config.yaml", "holds labels", ".h5"]),
        (predict, "good.mp4 --model model.pt -o labeled-data", ["labeled-data", "no DeepLabCut project"]),
        (predict, "good.mp4 good.mp4 --model model.pt -o new --format csv", ["-o new", "called good", "two folders"]),
        (predict, f"{PREDICT} --format json", ["--format json", "out.slp", "name a folder"]),
        (predict, f"{PREDICT} --format mp4", ["--format", "analysis.h5"]),
        (predict, "results.json --model model.pt", ["results.json is a list, as COCO results are", "labels file"]),
        (predict, "other.json --model model.pt", ["other.json", "no category with keypoints"]),
        (evaluate, "good.slp nothing.slp", ["nothing.slp", "no such file"]),
        (evaluate, "text.slp good.slp", ["text.slp", "no SLEAP project"]),
        (evaluate, "unlabelled.slp good.slp", ["unlabelled.slp"]),
        (evaluate, "good.slp results.json", ["results.json holds COCO results", "good.slp holds no COCO labels", ".slp file"]),
    ],
)
def test_one_sentence_and_2(command: Any, arguments: str, words: list[str], place: Path, capsys: pytest.CaptureFixture[str]):
    before = everything(place)
    quiet = [] if command is evaluate else ["--quiet"]
    assert command.main([*arguments.split(), *quiet]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert shown.out == "" and line.startswith(f"{command.command.name}: ") and "Traceback" not in line and "rror(" not in line
    assert line.endswith((".", "?", ".)")) and all(word in line for word in words), line
    assert everything(place) == before


def test_from_the_shell(place: Path, environment: dict[str, str]):
    before = everything(place)
    command = [sys.executable, "-m", "smp_plugin.cli.train", "--slp", "long.slp", "--quiet"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("smp-train: ") and "long.slp: frame 8" in line
    assert everything(place) == before

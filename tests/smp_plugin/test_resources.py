"""Machines with too little memory, a full disk or a graphics card that torch can't use, and videos that are damaged midway."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from converters import FormatError, LabeledFrame, PredictedInstance, hdf5, read_project, write_predictions
from converters.video import open_video, video_source
from smp_plugin import devices, training
from smp_plugin.budget import Budget
from smp_plugin.checkpoint import Checkpoint
from smp_plugin.cli.predict import main
from smp_plugin.devices import choose_device, every_device, has_bf16, say_device
from smp_plugin.model import PoseModel
from smp_plugin.predictor import Predictor
from smp_plugin.training import train

pytestmark = pytest.mark.usefixtures("thin_backbone")


# --- memory ---


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds at most two images; how many each attempt had."""
    asked: list[int] = []
    forward = PoseModel.forward

    def limited(self: PoseModel, images: torch.Tensor) -> Any:
        asked.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, images)

    monkeypatch.setattr(PoseModel, "forward", limited)
    return asked


@pytest.fixture
def untrained(make_config: Callable[..., Any]) -> Checkpoint:
    from converters.labels import Skeleton

    config = make_config(model__norm="group", data__input_scale=1.0, predict__batch=8)
    return Checkpoint(PoseModel(config.model, 3).eval(), config, Skeleton(("a", "b", "c")), 28.0, {})


@pytest.mark.parametrize("lanes", (1, 3))  # as on a GPU, and as on a CPU
def test_batches_become_smaller_where_memory_is_too_small(untrained: Checkpoint, narrow: list[int], listener: Any, lanes: int):
    made = Predictor(untrained, torch.device("cpu"), listener)
    made.lanes = lanes
    frames = [(n, np.zeros((64, 64, 3), np.uint8)) for n in range(13)]
    assert [number for number, _, _ in made.stream(frames)] == list(range(13))
    if lanes == 1:
        assert narrow[:4] == [8, 4, 2, 2] and set(narrow[2:]) <= {1, 2} and sum(narrow[2:]) == 13
    assert made.batch == 2
    (alarm,) = listener.alarms
    assert re.fullmatch(r"cpu: its memory is not enough for --batch [85]; smaller batches are tried\.", alarm)


@pytest.mark.parametrize(
    "word",
    [
        "CUDA out of memory.",
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
        "other",
    ],
)
def test_too_little_memory_for_one_frame(word: str, untrained: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError(word)

    monkeypatch.setattr(PoseModel, "forward", fail)
    made = Predictor(untrained, torch.device("cpu"))
    frames = [(0, np.zeros((32, 48, 3), np.uint8))]
    with pytest.raises(RuntimeError if word == "other" else FormatError) as caught:
        list(made.stream(frames))
    expected = "cpu: its memory is not enough for a frame of 48 x 32 pixels; choose another --device, or make the video smaller."
    assert str(caught.value) == (word if word == "other" else expected)


def test_training_says_what_to_lower(narrow: list[int], blobs: Any, make_config: Callable[..., Any], tmp_path: Path):
    config = make_config(train__batch=3)
    with pytest.raises(FormatError, match=r"cpu: its memory is not enough .* lower train\.batch \(3\), train\.unlabeled_batch \(1\)"):
        train([blobs.project], config=config, out=tmp_path / "run")
    assert narrow == [3] and (tmp_path / "run" / "config.yaml").exists()


def test_a_gpu_is_asked_for_its_most_before_the_first_step(
    narrow: list[int], make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """For the batches with unlabelled images, too, which come a third into the run."""
    answers = PoseModel.answers

    def limited(self: PoseModel, images: torch.Tensor) -> Any:
        narrow.append(len(images))
        return answers(self, images)

    monkeypatch.setattr(PoseModel, "answers", limited)
    monkeypatch.setattr(training.PoseTraining, "device", property(lambda self: Card()))
    config = make_config(model__norm="group", train__batch=2, train__unlabeled_batch=1, train__compile="no")
    for unlabelled, asked in ((True, 3), (False, 2)):
        module = training.PoseTraining(config, [0, 1], 28.0, False, Budget(10, 0.0), None, unlabelled)
        module.on_train_start()
        assert narrow == [asked] and all(p.grad is None for p in module.parameters())
        narrow.clear()


class Card(str):
    """The processor, called a graphics card."""

    type = "cuda"

    def __new__(cls) -> Card:
        return super().__new__(cls, "cpu")


@pytest.mark.parametrize("words", ["is killed by signal: Bus error. It is possible that", "(s) 12, 13 exited unexpectedly"])
def test_a_loader_process_that_the_system_ended(words: str, blobs: Any, make_config: Callable[..., Any], tmp_path: Path, monkeypatch: Any):
    def killed(*_: Any) -> None:
        raise RuntimeError(f"DataLoader worker (pid 12) {words}")

    monkeypatch.setattr(training.PoseTraining, "training_step", killed)
    with pytest.raises(FormatError, match=r"ended by the system .* --shm-size=8g .* lower train\.workers \(0\)"):
        train([blobs.project], config=make_config(), out=tmp_path / "run")


def test_an_untrained_model_on_a_large_frame(untrained: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    untrained.config.predict.min_score, untrained.config.predict.batch = 0.0, 1
    assert untrained.model.presence.logits.bias is not None
    torch.nn.init.constant_(untrained.model.presence.logits.bias, 5.0)  # an animal everywhere
    (found,) = (poses for _, _, poses in Predictor(untrained, torch.device("cpu")).stream([(0, np.zeros((512, 512, 3), np.uint8))]))
    assert 0 < len(found.scores) <= 150


# --- graphics cards ---


def test_a_card_that_torch_cannot_use_is_said_aloud(monkeypatch: pytest.MonkeyPatch, listener: Any):
    def no_kernel(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", no_kernel)
    device, why = choose_device("auto")
    say_device(listener, why)
    assert device.type == "cpu" and listener.alarms == [why] and "no kernel image is available for execution on the device)" in why
    with pytest.raises(FormatError, match="--device cuda: torch .* can't use it .*no kernel image"):
        choose_device("cuda")


def test_an_apple_gpu_without_what_the_network_needs(monkeypatch: pytest.MonkeyPatch):
    """As before torch 2.13, where it samples maps neither up to their borders nor with a gradient."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_nvidia_is_there", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device, **rest: zeros(*size, **rest))
    assert choose_device("auto") == (torch.device("mps"), "device: Apple GPU (MPS)")

    def lacking(*_: Any, padding_mode: str, **__: Any) -> None:
        assert padding_mode == "border"
        raise RuntimeError("MPS: Unsupported Border padding mode")

    monkeypatch.setattr(torch.nn.functional, "grid_sample", lacking)
    device, why = choose_device("auto")
    assert device.type == "cpu" and "can't use the Apple GPU (MPS: Unsupported Border padding mode)" in why
    with pytest.raises(FormatError, match="--device mps: torch .* can't use it .*Border"):
        choose_device("mps")


@pytest.mark.parametrize(("hidden", "seen"), [(None, True), ("", False), ("-1", False)])
def test_a_card_without_a_driver_for_torch(hidden: str | None, seen: bool, monkeypatch: pytest.MonkeyPatch, listener: Any):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    device, why = choose_device("auto")
    say_device(listener, why)
    assert device.type == "cpu" and bool(listener.alarms) == seen and why.startswith("NO USE OF THE NVIDIA GPU") == seen


def test_a_card_that_others_use_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", full)
    device, why = choose_device("auto")
    assert device.type == "cpu" and why.endswith("wait until others have left it")


@pytest.mark.parametrize(
    ("broken", "used", "first"),
    [
        ({}, ["cuda:0", "cuda:1", "cuda:2"], "cuda"),
        ({1}, ["cuda:0", "cuda:2"], "cuda"),
        ({1, 2}, ["cuda:0"], "cuda"),
        ({0, 1}, ["cuda:2"], "cuda:2"),
        ({0, 1, 2}, ["auto"], "cpu"),
    ],
)
def test_cards_that_do_not_work_are_left_out(broken: set[int], used: list[str], first: str, monkeypatch: pytest.MonkeyPatch):
    def fail(device: torch.device) -> None:
        if device.index in broken:
            raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=0: "a card")
    monkeypatch.setattr(devices, "_try", fail)
    assert every_device("auto") == used and every_device("cuda:1") == ["cuda:1"]
    device, why = choose_device("auto")
    assert str(device) == first and ("since cuda:0 can't be used (CUDA error" in why) == (first == "cuda:2")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_of_several_training_processes_each_tries_its_own_card(name: str, monkeypatch: pytest.MonkeyPatch):
    current = [0]

    def others_card(device: torch.device) -> None:
        if 0 in (device.index, *current):
            raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: current.__setitem__(0, index))
    monkeypatch.setattr(devices, "_try", others_card)
    assert choose_device(name)[0] == torch.device("cuda") and current == [1]
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    current[0] = 0
    with pytest.raises(FormatError, match="busy"):  # not on the processor, where the others would wait for it
        choose_device(name)


def test_windows_trains_in_one_process(make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "os", SimpleNamespace(name="nt"))
    with pytest.raises(FormatError, match="--devices 2, --num-nodes 1: on Windows, training takes one process"):
        devices.refuse_processes(torch.device("cpu"), 2, 1)
    devices.refuse_processes(torch.device("cpu"), 1, 1)


@pytest.mark.parametrize(
    ("device", "devices", "machines", "words"),
    [
        ("cuda", 2, 1, "--devices 2: torch sees 1 GPU here"),
        ("cuda:1", 2, 1, "--device cuda:1 is one GPU, but --devices 2"),
        ("mps", 1, 2, "an Apple GPU trains in one process"),
        *(((name, count, 1, "nowhere.slp")) for name, count in (("cuda", 1), ("cuda:1", 1), ("mps", 1), ("cpu", 2))),
    ],
)
def test_processes_without_a_card_are_refused_before_anything_is_read(
    device: str, devices: int, machines: int, words: str, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(training, "choose_device", lambda name: (torch.device(name), ""))
    config = make_config(train__device=device, train__devices=devices, train__num_nodes=machines)
    with pytest.raises(FormatError, match=words):
        train([Path("nowhere.slp")], config=config)


def test_a_card_is_asked_about_itself(monkeypatch: pytest.MonkeyPatch):
    """torch tells whether the current card has bfloat16; a machine may have an old and a new one."""
    current = [0]

    @contextlib.contextmanager
    def switch(device: torch.device) -> Iterator[None]:
        before, current[0] = current[0], current[0] if device.index is None else device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", switch)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[0] == 0)
    assert [has_bf16(torch.device(name)) for name in ("cuda", "cuda:0", "cuda:1")] == [True, True, False]


@pytest.mark.parametrize("word", ["CUDA out of memory.", "other"])
def test_frames_wait_on_the_host_where_a_card_is_full(word: str, untrained: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """A thread sends them ahead, while the network may have all of the card's memory."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(word)

    made = Predictor(untrained, torch.device("cpu"))
    made.device = torch.device("cuda")
    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(RuntimeError, match="other") if word == "other" else contextlib.nullcontext():
        images = made.images([np.zeros((32, 48, 3), np.uint8)] * 2)
        assert images.device.type == "cpu" and images.shape == (2, 3, 32, 48)


def test_frames_are_copied_once_on_their_way_to_a_card(untrained: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """Into pinned memory, which torch gives out and takes back."""
    frames, pinned = [np.full((4, 6, 3), i, np.uint8) for i in range(3)], []

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory and dtype == torch.uint8
        pinned.append(torch.zeros(shape, dtype=dtype))
        return pinned[-1]

    def to(self: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        assert device.type == "cuda" and non_blocking and self.data_ptr() == pinned[-1].data_ptr()
        return self

    made = Predictor(untrained, torch.device("cpu"))
    made.device = torch.device("cuda")
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "to", to)
    images = made.images(frames)
    assert images.shape == (3, 3, 4, 6) and [int(image.unique()) for image in images] == [0, 1, 2]


@pytest.mark.parametrize(
    ("device", "runtime", "asked", "batch", "measured"),
    [
        ("cuda", "pytorch", 0, 16, True),
        ("cuda", "compile", 0, 16, False),
        ("cuda", "pytorch", 3, 3, False),
        ("cpu", "pytorch", 0, 4, False),
    ],
)
def test_only_a_card_that_pytorch_uses_as_it_is_tries_batches(
    device: str, runtime: Any, asked: int, batch: int, measured: bool, untrained: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    """What is compiled is made for one size; and nobody who asks for a size gets another."""
    for name in ("for_prediction", "check_runtime", "Runtime"):
        monkeypatch.setattr(f"smp_plugin.predictor.{name}", lambda model, *_: model)
    monkeypatch.setattr(untrained.config.predict, "runtime", runtime)
    monkeypatch.setattr(untrained.config.predict, "batch", asked)
    made = Predictor(untrained, torch.device(device))
    assert (made.batch, made._measure) == (batch, measured)


# --- disks ---


def test_a_full_disk(trained: Path, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    real = os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    arguments = [str(blobs.video), "-o", str(tmp_path / "out.slp"), "--model", str(trained), "--device", "cpu", "--quiet"]
    assert main(arguments) == 0
    before = (tmp_path / "out.slp").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    assert main(arguments) == 2
    monkeypatch.setattr(os, "fsync", real)
    (line,) = capsys.readouterr().err.splitlines()
    assert ".out.slp.segments" in line and "cannot be written" in line and "No space left on device" in line
    assert {path.name for path in tmp_path.iterdir()} == {"out.slp", ".out.slp.made_from.json"}
    assert (tmp_path / "out.slp").read_bytes() == before


@pytest.mark.parametrize("name", ["out.slp", "out.analysis.h5", "out.h5"])
def test_a_disk_that_becomes_full_while_hdf5_is_written(
    name: str, untrained: Checkpoint, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """HDF5 must not be the one who finds out: it would leave a damaged file and no word."""
    space = iter([2**30, 2**20, 2**20])
    monkeypatch.setattr(hdf5.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(space) if name == "out.slp" else 2**20))
    (tmp_path / name).write_text("of before")
    animals = [PredictedInstance(np.ones((3, 2)), None, 0.5)]
    with pytest.raises(FormatError, match=rf"{name} cannot be written \(.*No space left on device"):
        frames = [LabeledFrame(0, number, [], animals) for number in range(20)]
        write_predictions(tmp_path / name, untrained.skeleton, [video_source(blobs.video)], frames, {})
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "of before"


# --- videos ---


def damaged(path: Path, frames: int = 30) -> Path:
    """A video of PNG images, one of which is damaged somewhere in the middle."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "rgb24"
        for _ in range(frames):
            noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content)) if content[i : i + 4] == b"IHDR"]
    middle = places[frames // 2]
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    return path


def test_what_comes_before_the_damage_is_kept(trained: Path, blobs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = damaged(tmp_path / "bad.mov")
    output, overlay = tmp_path / "out.slp", tmp_path / "overlay.mp4"
    arguments = [str(bad), str(blobs.video), "-o", str(output), "--overlay", str(overlay), "--model", str(trained), "--device", "cpu"]
    assert main([*arguments, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.mov is damaged at or after frame 15" in line and "What comes before it was predicted and written" in line
    found = read_project(output, require_videos=False)
    assert [f.index for f in found.frames if f.video == 0] == list(range(15))
    assert [f.index for f in found.frames if f.video == 1] == list(range(20))
    with open_video(video_source(overlay)) as video:
        assert len(list(video.stream())) == 35


def test_where_nothing_comes_before_the_damage_nothing_is_written(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad, output = damaged(tmp_path / "bad.mov"), tmp_path / "out.slp"
    output.write_text("of before")
    assert main([str(bad), "-o", str(output), "--frames", "15-20", "--model", str(trained), "--device", "cpu", "--quiet"]) == 2
    assert "bad.mov is damaged" in capsys.readouterr().err
    assert output.read_text() == "of before" and sorted(path.name for path in tmp_path.iterdir()) == ["bad.mov", "out.slp"]


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("käfig [1] %d \u202e.mkv", "ffv1", "gray16le", (63, 47)),
        ("transparent.mov", "qtrle", "argb", (64, 48)),
        ("odd.mkv", "ffv1", "bgr0", (33, 31)),
        ("smaller than a cell.mkv", "ffv1", "bgr0", (18, 5)),
    ],
)
def test_one_frame_of_any_kind(name: str, codec: str, pixels: str, size: tuple[int, int], untrained: Checkpoint, tmp_path: Path):
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 200, np.uint8), format="rgb24").reformat(format=pixels)
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with open_video(video_source(tmp_path / name)) as video:
        ((index, image, _),) = Predictor(untrained, torch.device("cpu")).stream(video.stream())
    assert index == 0 and image.shape == (size[1], size[0], 3) and abs(float(image.mean()) - 200) < 4

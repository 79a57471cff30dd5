"""Outputs of an imagined network, and small projects that a network can learn within seconds."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import sleap_io as sio
import torch
from PIL import Image

import smp_plugin
from smp_plugin.config import Config
from smp_plugin.model import LEVEL_STRIDES, PoseOutputs
from smp_plugin.progress import Reporter


def blank_outputs(
    images: int = 1,
    keypoints: int = 2,
    height: int = 96,
    width: int = 160,
    heatmap_stride: int = 4,
    seed: int | None = None,
    dtype: torch.dtype = torch.float64,
    level_strides: tuple[int, ...] = LEVEL_STRIDES,
) -> PoseOutputs:
    """Outputs that see nothing (logits -9, vectors 0), or random ones with a ``seed``. Leaves with gradient; centres are written out."""
    centres, strides = [], []
    for stride in level_strides:
        for row in range(height // stride):
            for column in range(width // stride):
                centres.append((column * stride + (stride - 1) / 2, row * stride + (stride - 1) / 2))
                strides.append(float(stride))
    count = len(centres)
    generator = torch.Generator().manual_seed(seed or 0)

    def leaf(shape: tuple[int, ...], value: float) -> torch.Tensor:
        tensor = torch.full(shape, value, dtype=dtype) if seed is None else torch.randn(shape, generator=generator, dtype=dtype)
        return tensor.requires_grad_()

    return PoseOutputs(
        heatmaps=leaf((images, keypoints, height // heatmap_stride, width // heatmap_stride), -9.0),
        presence=leaf((images, count), -9.0),
        quality=leaf((images, count), -9.0),
        vectors=leaf((images, count, keypoints, 2), 0.0),
        locations=torch.tensor(centres, dtype=dtype),
        strides=torch.tensor(strides, dtype=dtype),
        heatmap_stride=heatmap_stride,
        level_strides=level_strides,
    )


@pytest.fixture(scope="session")
def make_outputs() -> Callable[..., PoseOutputs]:
    return blank_outputs


def _move_model(model: torch.nn.Module, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(move(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = move(buffer)


@pytest.fixture(scope="session")
def move_model() -> Callable[..., None]:
    """Puts a model on another device, in place, also as tensors without values, which ``Module.to`` refuses."""
    return _move_model


@dataclass
class Blobs:
    """A project of bright blobs, its video (or images), and where the animals are in every frame: (n, K, 2) frame pixels."""

    project: Path
    video: Path
    truth: list[np.ndarray]


COLOURS = ((235, 30, 30), (30, 235, 30), (40, 40, 245))


def blob_image(rng: np.random.Generator, animals: int, keypoints: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) of dark noise with 0 to 2 upright animals of bright blobs, 28 pixels long, and their points (n, K, 2)."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    image = rng.normal(30, 4, (height, width, 3))
    poses = []
    for share in [0.5] if animals == 1 else [0.25, 0.75][:animals]:
        centre = np.array((width * share, height / 2)) + rng.uniform(-0.06, 0.06, 2) * (width, 3 * height)
        tilt = rng.uniform(-0.5, 0.5)
        along = np.linspace(-14, 14, keypoints)[:, None] if keypoints > 1 else np.zeros((1, 1))
        points = centre + along * (np.sin(tilt), np.cos(tilt))
        for (x, y), colour in zip(points, COLOURS, strict=False):
            blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 50)[..., None]
            image = image * (1 - blob) + blob * np.array(colour)
        poses.append(points)
    return image.clip(0, 255).astype(np.uint8), np.array(poses).reshape(-1, keypoints, 2)


def write_clip(path: Path, images: list[np.ndarray]) -> Path:
    """Nearly lossless H.264 at 25 frames per second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "6", "g": "10"})
        stream.height, stream.width = images[0].shape[:2]
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_blobs(
    folder: Path,
    name: str = "blobs",
    counts: Sequence[int] = (1, 2) * 10,
    labelled: Iterable[int] = range(12),
    keypoints: Sequence[str] = ("head", "middle", "tail"),
    sizes: Sequence[tuple[int, int]] = ((96, 96),),
    images: bool = False,
    embed: bool = False,
    negative: Iterable[int] = (),
    hide: Callable[[int, np.ndarray], np.ndarray | None] = lambda _, points: points,
    seed: int = 0,
) -> Blobs:
    """A project with ``counts[i]`` animals in frame i, labels in the frames ``labelled``, and a video, or a folder of images.

    ``sizes``: (width, height), taken in turn. ``hide(frame, points)`` may change an animal's labels or, giving None, leave it unlabelled.
    ``negative``: frames marked as empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    made = [blob_image(rng, count, len(keypoints), sizes[i % len(sizes)]) for i, count in enumerate(counts)]
    if images:
        video = folder / name
        video.mkdir()
        paths = [str(video / f"img{i:03}.png") for i in range(len(made))]
        for path, (image, _) in zip(paths, made, strict=True):
            Image.fromarray(image).save(path)
        native = sio.Video(filename=paths, open_backend=False)
        native.backend_metadata = {"type": "ImageVideo", "filename": paths[0], "filenames": paths}
    else:
        video = write_clip(folder / f"{name}.mp4", [image for image, _ in made])
        native = sio.Video.from_filename(str(video)) if embed else sio.Video(filename=str(video), open_backend=False)
        if not embed:
            native.backend_metadata = {"type": "MediaVideo", "filename": str(video)}
    skeleton = sio.Skeleton(list(keypoints), edges=[(i, i + 1) for i in range(len(keypoints) - 1)], name="blob")
    frames = []
    for i in labelled:
        seen = [p for points in made[i][1] if (p := hide(i, points)) is not None]
        instances = [sio.Instance.from_numpy(p, skeleton=skeleton) for p in seen]
        frames.append(sio.LabeledFrame(video=native, frame_idx=i, instances=instances, is_negative=i in negative))
    project = folder / f"{name}.pkg.slp" if embed else folder / f"{name}.slp"
    labels = sio.Labels(frames, videos=[native], skeletons=[skeleton])
    sio.save_slp(labels, str(project), embed="user" if embed else False, verbose=False)
    return Blobs(project, video, [points for _, points in made])


def small_config(**settings: Any) -> Config:
    """A network and crops as small as they may be, without augmentation; settings are named ``section__name``."""
    config = Config()
    small = {
        "data__crop": 64, "data__animal_size": 28.0, "data__max_scale": 1.0, "model__channels": 16, "model__tower_depth": 1,
        "model__heatmap_channels": 16,
        "model__weights": "none", "augment__rotation": 0.0, "augment__scale": (1.0, 1.0), "augment__flip": False,
        "augment__brightness": 0.0, "augment__contrast": 0.0, "augment__paste": 0.0, "augment__erase": 0, "train__batch": 2,
        "train__unlabeled_batch": 1, "train__unlabeled_first_step": 0, "train__steps": 2, "train__val_every": 2, "train__lr": 3e-3,
        "train__ema": 0.9, "train__clip": 20.0,
        "train__precision": "fp32", "train__device": "cpu", "train__workers": 0,
    }  # fmt: skip
    for key, value in (small | settings).items():
        section, name = key.split("__")
        assert hasattr(getattr(config, section), name)
        setattr(getattr(config, section), name, value)
    return config


class Listener(Reporter):
    """Keeps every sentence and warning."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.sentences: list[str] = []
        self.alarms: list[str] = []

    def say(self, text: str) -> None:
        self.sentences.append(text)
        super().say(text)

    def warn(self, text: str) -> None:
        self.alarms.append(text)
        super().warn(text)


@contextlib.contextmanager
def thin_resnet() -> Iterator[None]:
    """Half of ResNet-18, so that a checkpoint is written in half the time."""
    from torchvision.models import get_model

    def thin(name: str, **options: Any) -> torch.nn.Module:
        network = get_model(name, **options)
        network.layer3, network.layer4 = network.layer3[:1], network.layer4[:1]
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smp_plugin.backbone.get_model", thin)
        yield


@pytest.fixture(scope="module")
def thin_backbone() -> Iterator[None]:
    with thin_resnet():
        yield


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    return small_config


@pytest.fixture(scope="session")
def tiny() -> dict[str, str]:
    """The same network and crops on the command line, with augmentation."""
    return {
        "data.crop": "64", "data.animal_size": "28", "model.channels": "16", "model.tower_depth": "1", "model.heatmap_channels": "16",
        "model.weights": "none", "train.batch": "2", "train.unlabeled_batch": "1", "train.precision": "fp32",
        "train.unlabeled_first_step": "0",
    }  # fmt: skip


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that works in another folder and finds this package all the same."""
    return {**os.environ, "PYTHONPATH": str(Path(smp_plugin.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """As in a terminal: a shell starts jobs in the background with it switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    return write_clip


@pytest.fixture(scope="session")
def write() -> Callable[..., Blobs]:
    """``write_blobs``, which takes the folder first."""
    return write_blobs


@pytest.fixture
def make_blobs(tmp_path: Path) -> Callable[..., Blobs]:
    """``write_blobs`` in the test's own folder."""
    return functools.partial(write_blobs, tmp_path)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Blobs:
    """20 frames, of which 12 are labelled. Not to be changed."""
    return write_blobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="session")
def trained(blobs: Blobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model that has learnt the blobs, through all three phases, in 42 steps. Not to be changed.

    For modules that use ``thin_backbone``.
    """
    from smp_plugin.training import train

    config = small_config(
        data__crop=96, train__batch=4, train__steps=42, train__val_every=14, train__labeled_fusion_start=0.4,
        train__unlabeled_fusion_start=0.8, data__val_fraction=0.25, train__seed=1,
    )  # fmt: skip
    with thin_resnet():
        return train([blobs.project], config=config, out=tmp_path_factory.mktemp("runs") / "blobs")

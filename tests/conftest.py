"""Small native projects, and videos whose every frame tells its own number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import sleap_io as sio
from PIL import Image

WIDTH, HEIGHT = 64, 48


def numbered_frame(number: int) -> np.ndarray:
    """uint8 (48, 64, 3): the upper half spells ``number`` in 8 bright or dark columns, the lower half is coloured (red over blue)."""
    frame = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for bit in range(8):
        frame[: HEIGHT // 2, bit * 8 : bit * 8 + 8] = 230 if number >> bit & 1 else 20
    frame[HEIGHT // 2 :] = (200, 100, 30)
    return frame


def number_in(frame: np.ndarray) -> int:
    """The number that `numbered_frame` wrote, however lossy the way."""
    bits = [frame[: HEIGHT // 2, bit * 8 : bit * 8 + 8].mean() > 125 for bit in range(8)]
    return sum(1 << bit for bit, on in enumerate(bits) if on)


def encode(
    path: Path,
    n_frames: int = 40,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Write a video of numbered frames at 25 per second; by default H.264 with B-frames and a key frame every 12."""
    options = {"bf": "3", "g": "12", "b_strategy": "0"} if options is None and codec == "libx264" else options or {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        for number, time in zip(range(n_frames), times or range(n_frames), strict=False):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, or a skip that says why."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data is not here (../shared/data beside the repository)")
    return folder


@pytest.fixture(scope="session")
def numbered() -> Callable[[int], np.ndarray]:
    return numbered_frame


@pytest.fixture(scope="session")
def number_of() -> Callable[[np.ndarray], int]:
    return number_in


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return encode


@pytest.fixture(scope="session")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 numbered frames of 64x48, H.264 with B-frames."""
    return encode(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture(scope="session")
def make_images() -> Callable[..., list[Path]]:
    def make(folder: Path, n_images: int = 12, suffix: str = ".png") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"img{number}{suffix}" for number in range(n_images)]
        for number, path in enumerate(paths):
            Image.fromarray(numbered_frame(number)).save(path)
        return paths

    return make


@pytest.fixture
def make_project(tmp_path: Path, video_file: Path) -> Callable[..., Path]:
    """``make_project(name, video=..., frames=..., embed=...)`` writes a SLEAP project with sleap-io.

    ``video``: a video's path, a list of images, or None for a copy of the numbered video beside the project; ``written`` replaces what the
    project calls it. ``frames``: {number: list of (K, 2) arrays}; by default two animals of three keypoints in frames 3 and 20.
    ``edit(labels, skeleton)`` may change the sleap-io labels before they are saved.
    """

    def make(
        name: str = "project.slp",
        video: Path | list[Path] | None = None,
        written: str | list[str] | None = None,
        frames: dict[int, list[Any]] | None = None,
        keypoints: tuple[str, ...] = ("nose", "left ear", "right ear"),
        embed: str | bool = False,
        edit: Callable[[sio.Labels, sio.Skeleton], None] | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if video is None:
            video = path.parent / "clip.mp4"
            video.write_bytes(video_file.read_bytes())
        filename = [str(image) for image in video] if isinstance(video, list) else str(video)
        native = sio.Video.from_filename(filename) if embed else sio.Video(filename=written or filename, open_backend=False)
        if not embed:
            native.backend_metadata = {"filename": written or filename, "type": "MediaVideo"}
            if isinstance(filename, list):
                named = written or filename
                native.backend_metadata = {"type": "ImageVideo", "filename": named[0], "filenames": named}
        edges = [(a, a + 1) for a in range(len(keypoints) - 1)]
        skeleton = sio.Skeleton(list(keypoints), edges=edges, symmetries=[(1, 2)] if len(keypoints) > 2 else [], name="animal")
        if frames is None:
            some = np.arange(6, dtype=float).reshape(3, 2) * 5.25
            frames = {3: [some, some + 10], 20: [some + 1]}
        labelled = [
            sio.LabeledFrame(video=native, frame_idx=number, instances=[sio.Instance.from_numpy(a, skeleton=skeleton) for a in animals])
            for number, animals in frames.items()
        ]
        labels = sio.Labels(labelled, videos=[native], skeletons=[skeleton])
        if edit is not None:
            edit(labels, skeleton)
        sio.save_slp(labels, str(path), embed=embed, verbose=False)
        return path

    return make

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import sleap_io as sio
from PIL import Image

from converters.labels import FormatError, VideoSource
from converters.video import Video, open_video, table_length, video_source

ORDER = [0, 39, 12, 11, 13, 1, 38, 25, 24, 23, 36, 35, 5, 5, 6, 0]


def opened(path: Path) -> Video:
    return open_video(video_source(path))


# --- video files ---


def test_fixture_has_b_frames(video_file: Path) -> None:
    with av.open(str(video_file)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert times != sorted(times)


def test_size_and_speed(video_file: Path) -> None:
    with opened(video_file) as video:
        assert (video.n_frames, video.height, video.width, video.fps) == (40, 48, 64, 25.0)
        assert video.frame_numbers == range(40)
        frame = video.read(3)
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(frame[36:, 10:50].mean((0, 1)) - (200, 100, 30)).max() < 12, "red, green, blue"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", None),
        ("open_gop.mp4", {"x264-params": "open-gop=1:bframes=3:keyint=8:b-adapt=0:scenecut=0"}),
        ("dense.mp4", {"x264-params": "open-gop=1:bframes=2:keyint=2:min-keyint=1:b-adapt=0"}),
        ("one_key_frame.mp4", {"g": "250", "bf": "3"}),
        ("no_count.mkv", None),
        ("no_b.mp4", {"bf": "0", "g": "10"}),
        ("fragments.ts", None),
        ("no_times.h264", None),
        ("old.avi", None),
    ],
)
def test_a_frames_number_is_its_place_in_a_decode_from_the_start(
    tmp_path: Path, make_video: Callable[..., Path], number_of: Callable, name: str, options: dict | None
) -> None:
    with opened(make_video(tmp_path / name, options=options)) as video:
        assert [(index, number_of(frame)) for index, frame in video.stream()] == [(i, i) for i in range(40)]
        assert [(index, number_of(frame)) for index, frame in video.stream(start=33)] == [(i, i) for i in range(33, 40)]
        assert video.n_frames == 40
        for index in ORDER:
            assert number_of(video.read(index)) == index
    with opened(tmp_path / name) as video:  # jumps before anything was counted
        assert number_of(video.read(38)) == 38
        assert number_of(video.read(2)) == 2


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("m.avi", "mjpeg", "yuvj420p"), ("x.avi", "mpeg4", "yuv420p"), ("v.webm", "libvpx", "yuv420p")]
)
def test_other_codecs(tmp_path: Path, make_video: Callable[..., Path], number_of: Callable, name: str, codec: str, pix_fmt: str) -> None:
    with opened(make_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt)) as video:
        assert [number_of(video.read(index)) for index in ORDER] == ORDER
        assert len(list(video.stream())) == 40


def test_uneven_times(tmp_path: Path, make_video: Callable[..., Path], number_of: Callable) -> None:
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, 40)).tolist()
    with opened(make_video(tmp_path / "uneven.mp4", times=times)) as video:
        assert [number_of(video.read(index)) for index in ORDER] == ORDER


def test_jumps_find_key_frames(tmp_path: Path, make_video: Callable[..., Path], number_of: Callable) -> None:
    with opened(make_video(tmp_path / "long.mp4", n_frames=200)) as video:
        assert number_of(video.read(180)) == 180
        decoded = []
        rest = video._decoded  # type: ignore[attr-defined]
        video._decoded = (decoded.append(frame) or frame for frame in rest)  # type: ignore[attr-defined, func-returns-value]
        assert number_of(video.read(190)) == 190
        assert 0 < len(decoded) <= 24, "a short way forward is decoded, not sought"
        assert video._jumped and video._trusted  # type: ignore[attr-defined]
        assert [index for index, _ in video.read_many([199, 3, 3, 60])] == [3, 60, 199]


def test_misleading_time_stamps_are_noticed(video_file: Path, number_of: Callable) -> None:
    with opened(video_file) as video:
        video.read(39)
        video.read(0)
        video._times = video._times + 7  # type: ignore[attr-defined]
        assert [number_of(video.read(index)) for index in ORDER] == ORDER


@pytest.mark.parametrize("claimed", [10, 90])
def test_headers_may_lie(video_file: Path, number_of: Callable, claimed: int) -> None:
    with opened(video_file) as video:
        video.n_frames = claimed
        assert len(list(video.stream())) == 40
        assert video.n_frames == 40
    with opened(video_file) as video:
        video.n_frames = claimed
        assert number_of(video.read(30)) == 30
        with pytest.raises(FormatError, match=r"40 frames \(0-39\); frame 60"):
            video.read(60)


@pytest.mark.parametrize("index", [40, 1500, -1])
def test_no_such_frame(video_file: Path, index: int) -> None:
    with opened(video_file) as video, pytest.raises(FormatError, match=rf"has 40 frames \(0-39\); frame {index} was asked for\."):
        video.read(index)


def test_cut_off_recording(tmp_path: Path, make_video: Callable[..., Path], number_of: Callable) -> None:
    whole = make_video(tmp_path / "whole.mkv", n_frames=200).read_bytes()
    path = tmp_path / "cut.mkv"
    for share in np.linspace(0.3, 0.9, 13):  # where a cut falls among the frames depends on the encoder's build
        path.write_bytes(whole[: int(share * len(whole))])
        with opened(path) as video:
            numbers = [number_of(frame) for _, frame in video.stream()]
            assert 20 < len(numbers) < 200 and numbers[0] == 0 and video.n_frames == len(numbers)
            steps = np.diff(numbers)
            assert (steps[:-4] == 1).all() and (steps > 0).all() and steps.sum() - len(steps) <= 3, "the cut takes up to three B-frames"
            with pytest.raises(FormatError, match="frame 199"):
                video.read(199)
    mp4 = make_video(tmp_path / "cut.mp4")
    mp4.write_bytes(mp4.read_bytes()[:-300])
    with pytest.raises(FormatError, match="recording was cut off"):
        opened(mp4)


def test_damage_inside_is_a_sentence_or_a_picture(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "damaged.mp4", codec="mpeg4")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 600
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    with opened(path) as video:
        for index in range(40):
            try:
                assert video.read(index).shape == (48, 64, 3)
            except FormatError as error:
                assert str(path) in str(error)


def test_decoder_errors_become_a_sentence(video_file: Path, number_of: Callable) -> None:
    def broken():
        yield from ()
        raise av.error.InvalidDataError(1, "Invalid data found")

    with opened(video_file) as video:
        video._opened()
        video._decoded = broken()  # type: ignore[attr-defined]
        with pytest.raises(FormatError, match="clip.mp4 is damaged at or after frame 0 .*convert"):
            video.read(5)
        assert number_of(video.read(5)) == 5, "the next read starts anew"


def test_turned_video(tmp_path: Path, video_file: Path, number_of: Callable) -> None:
    """A display matrix for a quarter turn clockwise, as phones write it, patched into the track header."""
    content = bytearray(video_file.read_bytes())
    header = content.index(b"tkhd")
    matrix = header + 4 + 40  # version 0: 40 bytes precede the matrix
    assert struct.unpack(">i", content[matrix : matrix + 4]) == (0x10000,)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    with opened(turned) as video, opened(video_file) as upright:
        assert (video.height, video.width) == (64, 48)
        assert np.array_equal(video.read(7), np.rot90(upright.read(7), -1))


@pytest.mark.parametrize("content", [b"", b"hello\n" * 50, b"\x00" * 2000])
@pytest.mark.parametrize("name", ["a.mp4", "a.txt"])
def test_not_a_video(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a video|no frames|no pictures") as caught:
        opened(path)
    assert str(path) in str(caught.value)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(FormatError, match="no pictures"):
        opened(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist.*--video-root"):
        open_video(VideoSource((tmp_path / "gone.mp4",)))


def test_memory_does_not_grow_with_length(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "long.mp4", n_frames=250)
    with opened(path) as video:
        tracemalloc.start()
        for _ in video.stream():
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * 64 * 48 * 3


def _number_in_worker(video: Video, index: int, queue: multiprocessing.Queue) -> None:
    if index == 21:
        video.close()
    queue.put(video.read(index).tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("elsewhere", [20, 21])
def test_forked_workers_open_their_own(video_file: Path, elsewhere: int) -> None:
    context = multiprocessing.get_context("fork")
    with opened(video_file) as video:
        expected = {index: video.read(index).tobytes() for index in (elsewhere, 30)}
        video.read(10)
        queue = context.Queue()
        worker = context.Process(target=_number_in_worker, args=(video, elsewhere, queue))
        worker.start()
        here = video.read(30).tobytes()
        there = queue.get(timeout=20)
        worker.join()
        assert (there, here) == (expected[elsewhere], expected[30])


def test_pickled_videos_open_again(video_file: Path, number_of: Callable) -> None:
    with opened(video_file) as video, pickle.loads(pickle.dumps(video)) as copy:
        assert number_of(copy.read(33)) == 33
    assert number_of(video.read(4)) == 4, "a closed video opens again"
    video.close()


# --- images ---


def test_folder_in_natural_order(tmp_path: Path, make_images: Callable[..., list[Path]], number_of: Callable) -> None:
    make_images(tmp_path / "seq", 12)
    (tmp_path / "seq" / "notes.txt").write_text("x")
    (tmp_path / "seq" / "._img3.png").write_bytes(b"x")
    with opened(tmp_path / "seq") as video:
        assert (video.n_frames, video.height, video.width, video.fps) == (12, 48, 64, None)
        assert [number_of(frame) for _, frame in video.stream()] == list(range(12))
        assert [index for index, _ in video.read_many([7, 2])] == [2, 7]
        with pytest.raises(FormatError, match=r"has 12 frames \(0-11\); frame 12"):
            video.read(12)


def test_sizes_may_differ(tmp_path: Path) -> None:
    for number, size in enumerate([(20, 10), (8, 6)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    video = opened(tmp_path)
    assert (video.height, video.width) == (10, 20)
    assert video.read(1).shape == (6, 8, 3)


GREY16 = np.array([[0, 256], [32768, 65535]], dtype=np.uint16)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.fromarray(np.array([[0, 9], [128, 255]], dtype=np.uint8)), ".png", [[0, 0, 0], [9, 9, 9], [128] * 3, [255] * 3]),
        (Image.fromarray(GREY16), ".png", [[0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (Image.fromarray(GREY16), ".tif", [[0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), ".png", [[10, 20, 30]] * 4),
        (Image.new("LA", (2, 2), (40, 7)), ".png", [[40] * 3] * 4),
        (Image.new("RGB", (2, 2), (10, 20, 30)).quantize(4), ".png", [[10, 20, 30]] * 4),
        (Image.new("1", (2, 2), 1), ".png", [[255] * 3] * 4),
        (Image.new("RGB", (2, 2), (10, 20, 30)), ".bmp", [[10, 20, 30]] * 4),
    ],
)
def test_kinds_of_pixels(tmp_path: Path, image: Image.Image, suffix: str, expected: list) -> None:
    path = tmp_path / f"image{suffix}"
    image.save(path)
    frame = opened(path).read(0)
    assert frame.dtype == np.uint8 and frame.shape == (2, 2, 3)
    assert frame.reshape(4, 3).tolist() == expected


def test_bad_images(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    images = make_images(tmp_path / "seq", 3)
    images[1].write_bytes(images[1].read_bytes()[:100])
    images[2].unlink()
    video = open_video(VideoSource(tuple(images)))
    with pytest.raises(FormatError, match="img1.png is not an image that can be read, or is damaged"):
        video.read(1)
    with pytest.raises(FormatError, match=r"img2.png \(frame 2\) does not exist"):
        video.read(2)
    stack = tmp_path / "stack.tif"
    Image.new("L", (4, 4)).save(stack, save_all=True, append_images=[Image.new("L", (4, 4))])
    with pytest.raises(FormatError, match="TIFF stack of 2 pages"):
        opened(stack)
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    with pytest.raises(FormatError, match="floating-point"):
        opened(tmp_path / "float.tif")


def test_video_source_refuses(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "project.slp").write_bytes(b"x")
    for path, message in [
        (tmp_path / "empty", "without images"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "project.slp", "a project"),
    ]:
        with pytest.raises(FormatError, match=message):
            video_source(path)


# --- embedded images ---


def package(make_project: Callable[..., Path], video_file: Path, **arguments) -> VideoSource:
    path = make_project("p.pkg.slp", video=arguments.pop("video", video_file), embed="user", **arguments)
    return VideoSource((path,), embedded="video0")


def test_embedded_frames_keep_their_numbers_and_colours(make_project: Callable[..., Path], video_file: Path, number_of: Callable) -> None:
    frames = {20: [np.ones((3, 2))], 3: [np.ones((3, 2))]}
    with open_video(package(make_project, video_file, frames=frames)) as video, opened(video_file) as original:
        assert list(video.frame_numbers) == [3, 20] and video.n_frames == 2
        assert (video.height, video.width, video.fps) == (48, 64, 25.0)
        for index, frame in video.stream():
            assert number_of(frame) == index
            assert np.abs(frame.astype(int) - original.read(index)).max() <= 3
        with pytest.raises(FormatError, match="holds 2 of the video's frames, numbered 3-20; frame 4"):
            video.read(4)


@pytest.mark.parametrize(
    ("order", "format_id", "means"), [("RGB", 1.4, "RGB"), ("BGR", 1.4, "BGR"), (None, 1.3, "BGR"), (None, 1.4, "RGB")]
)
def test_order_of_colours(make_project: Callable[..., Path], video_file: Path, order: str | None, format_id: float, means: str) -> None:
    source = package(make_project, video_file)
    with open_video(source) as video:
        plain = video.read(3)
    with h5py.File(source.paths[0], "r+") as file:
        attributes = file["video0/video"].attrs
        written = attributes.pop("channel_order")  # which depends on what sleap-io finds installed
        if order:
            attributes["channel_order"] = order
        file["metadata"].attrs["format_id"] = format_id
    with open_video(source) as video:
        frame = video.read(3)
    assert np.array_equal(frame, plain if means == written else plain[..., ::-1])
    theirs = sio.load_slp(str(source.paths[0])).videos[0][3]
    assert np.array_equal(frame, theirs)


def test_embedded_without_frames_or_attributes(make_project: Callable[..., Path], video_file: Path) -> None:
    source = package(make_project, video_file)
    with h5py.File(source.paths[0], "r+") as file:
        for name in ("height", "width"):
            file["video0/video"].attrs[name] = 0
    with open_video(source) as video:
        assert (video.height, video.width) == (48, 64)
    with h5py.File(source.paths[0], "r+") as file:
        attributes = dict(file["video0/video"].attrs)
        del file["video0/video"], file["video0/frame_numbers"]
        file["video0"].create_dataset("video", shape=(0,), dtype="int8").attrs.update(attributes)
        file["video0"]["frame_numbers"] = np.empty(0)
    with open_video(source) as video:
        assert video.n_frames == 0 and list(video.stream()) == []
        with pytest.raises(FormatError, match="holds 0 of"):
            video.read(0)


def test_raw_and_variable_length_storage(make_project: Callable[..., Path], video_file: Path) -> None:
    source = package(make_project, video_file)
    with open_video(source) as video:
        encoded = video.read(3)
    with h5py.File(source.paths[0], "r+") as file:
        stored = file["video0/video"]
        rows, attributes = stored[:], dict(stored.attrs)
        del file["video0/video"]
        flexible = file["video0"].create_dataset("video", (len(rows),), dtype=h5py.vlen_dtype(np.int8))
        for place, row in enumerate(rows):
            flexible[place] = row
        flexible.attrs.update(attributes)
    with open_video(source) as video:
        assert np.array_equal(video.read(3), encoded)
    with h5py.File(source.paths[0], "r+") as file:
        del file["video0/video"]
        raw = file["video0"].create_dataset("video", data=np.stack([encoded, encoded]))
        raw.attrs["format"] = "hdf5"
    with open_video(source) as video:
        assert np.array_equal(video.read(20), encoded)


def test_damaged_packages(make_project: Callable[..., Path], video_file: Path) -> None:
    source = package(make_project, video_file)
    with h5py.File(source.paths[0], "r+") as file:
        file["video0/video"][1] = 1
    with open_video(source) as video, pytest.raises(FormatError, match="frame 20 is not an image"):
        video.read(20)
    with pytest.raises(FormatError, match="is damaged: its images cannot be listed"):
        open_video(VideoSource(source.paths, embedded="video7"))
    with pytest.raises(FormatError, match="not a SLEAP package"):
        open_video(VideoSource((video_file,), embedded="video0"))
    with pytest.raises(FormatError, match="does not exist"):
        open_video(VideoSource((video_file.with_name("gone.pkg.slp"),), embedded="video0"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", np.zeros(3), "is no text"),
        ("format", "hdf5", "they hold no pixels"),
        ("video", None, "is a group"),
        ("video", np.zeros((1, 80), np.int8), "not numbered as frames are"),
        ("frame_numbers", [3, -1], "not numbered as frames are"),
        ("frame_numbers", [3, 1 << 48], "not numbered as frames are"),
        ("frame_numbers", [3.0, 20.0], "not numbered as frames are"),
        ("frame_numbers", 3, ""),
    ],
)
def test_packages_whose_images_cannot_be_listed(
    make_project: Callable[..., Path], video_file: Path, name: str, value: object, message: str
) -> None:
    source = package(make_project, video_file)
    with h5py.File(source.paths[0], "r+") as file:
        group, attributes = file["video0"], dict(file["video0/video"].attrs)
        if name == "format":
            group["video"].attrs[name] = value
        else:
            del group[name]
            made = group.create_group(name) if value is None else group.create_dataset(name, data=value)
            made.attrs.update(attributes)
    with pytest.raises(
        FormatError, match=rf"p.pkg.slp \(video0\) is damaged: its images cannot be listed \(.*{message}.*\); export the package"
    ):
        open_video(source)


def test_the_numbers_of_a_package_make_no_endless_table(make_project: Callable[..., Path], tmp_path: Path, video_file: Path) -> None:
    source = package(make_project, video_file)
    assert table_length(tmp_path / "t.csv", source, 3, 2) == 21
    taken = VideoSource(source.paths, embedded="video0", original=VideoSource((video_file,)))
    assert table_length(tmp_path / "t.csv", taken, 3, 2) == 40, "as long as the video that the images were taken from"
    with h5py.File(source.paths[0], "r+") as file:
        file["video0/frame_numbers"][1] = 10**7
    with pytest.raises(FormatError, match="t.csv has a place for every frame, and an animal or an image is in frame 10000000"):
        table_length(tmp_path / "t.csv", source, 3, 2)


def test_black_images_are_not_taken_for_damage(
    make_project: Callable[..., Path], video_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converters.hdf5._SMALL", 1 << 16)
    source, black = package(make_project, video_file), np.zeros((40, 200, 200, 3), np.uint8)
    with h5py.File(source.paths[0], "r+") as file:
        del file["video0/video"]
        file["video0"].create_dataset("video", data=black, chunks=(1, 200, 200, 1), compression="gzip").attrs["format"] = "hdf5"
    with open_video(source) as video:
        assert np.array_equal(video.read(20), black[0])


def test_importing_converters_loads_no_format_library() -> None:
    code = "import sys, converters; print(sorted({'sleap_io', 'h5py', 'av', 'pandas', 'PIL', 'torch', 'smp_plugin'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_real_videos_by_number(shared_data: Path) -> None:
    with opened(shared_data / "mice" / "video.mp4") as video:
        frames = dict(video.stream())
        assert len(frames) == video.n_frames == 97
        for index in (96, 0, 50, 49, 51, 13):
            assert np.array_equal(video.read(index), frames[index])

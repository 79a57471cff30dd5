"""Frames by number and as a stream, from video files, image sequences and the images inside a ``.pkg.slp``.

Traps, by kind:

* video files: presentation order differs from storage order (B-frames), headers give a wrong number of frames or none, time stamps may be
  missing, and a phone's video is turned by a flag. A frame's number is always its place in a decode from the start; a jump uses the time
  stamps of all packets, and decodes from the start wherever these do not prove right. Jumping costs 50 times as much as reading on: ask for
  frames in ascending order.
* images: 16-bit, grey, palette and alpha, and sizes that differ within a sequence. EXIF orientation is left alone, as in SLEAP.
* embedded: frames keep the number they had in the original video, only some exist, and older packages store blue, green, red.
"""

from __future__ import annotations

import io
import itertools
import os
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import natural_order
from converters.hdf5 import check_hdf5
from converters.labels import IMAGE_SUFFIXES, MOST_FRAMES, FormatError, VideoSource

# A gap of this many frames is decoded through before the packets of the file are looked through for a nearer key frame.
_NEAR = 32
_PLAYLISTS = ("hls", "concat", "dash", "imf")  # FFmpeg would read whatever files these name
_PICTURES = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # no EPS, of which Ghostscript runs the programs
_INHERITED: list[dict[str, Any]] = []


class Video(ABC):
    """One video. Opened in each process where it is first read, so it may be handed to (forked or spawned) data loading workers; not for
    two threads at once.

    Attributes:
        source, name: what was opened, and what messages call it.
        n_frames: number of frames; a video file's header is believed until reading shows otherwise.
        height, width: pixels, of the first frame.
        fps: frames per second, None where unknown.
    """

    def __init__(self, source: VideoSource) -> None:
        """Only subclasses call this; use `open_video`."""
        self.source = source
        self.name = source.name
        self.n_frames = 0
        self.height = 0
        self.width = 0
        self.fps: float | None = None
        self._handle: Any = None
        self._pid = 0

    @property
    def frame_numbers(self) -> Sequence[int]:
        """The numbers of the frames that can be read, ascending."""
        return range(self.n_frames)

    def read(self, index: int) -> np.ndarray:
        """The frame with number ``index``, uint8 (H, W, 3), red green blue. FormatError if there is no such frame or it is damaged."""
        self._check(index)
        return self._read(index)

    def read_many(self, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, frame) for each distinct number, ascending, whatever the order of ``indices``; frames as from `read`."""
        ascending = indices if isinstance(indices, range) and indices.step > 0 else sorted(set(indices))
        for index in ascending:
            yield index, self.read(index)

    def stream(self, indices: Iterable[int] | None = None, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, frame) for ``indices``, or for every frame from ``start`` to the video's real end; one in memory at a time."""
        return self.read_many(self.frame_numbers[bisect_left(self.frame_numbers, start) :] if indices is None else indices)

    def close(self) -> None:
        """Give back file handles. Reading again opens them again."""
        self._disown()
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _opened(self) -> Any:
        self._disown()
        if self._handle is None:
            self._handle = self._open()
        return self._handle

    def _disown(self) -> None:
        # A handle inherited through fork shares its position in the file with the parent process, so each process opens its own. The
        # inherited one is kept: freeing a decoder waits for its threads, which fork does not copy.
        if self._pid != os.getpid():
            if self._handle is not None:
                _INHERITED.append(dict(self.__dict__))
            self._handle, self._pid = None, os.getpid()

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_frames:
            self._no_such_frame(index)

    def _no_such_frame(self, index: int) -> None:
        raise FormatError(f"{self.name} has {self.n_frames} frames (0-{self.n_frames - 1}); frame {index} was asked for.")

    @abstractmethod
    def _open(self) -> Any: ...

    @abstractmethod
    def _read(self, index: int) -> np.ndarray: ...

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_video, (self.source,)


def open_video(source: VideoSource) -> Video:
    """Open a video. FormatError, with what is wrong and what to do, if it is missing or is not what its name says."""
    if not source.paths:
        raise FormatError("An image sequence has no images; name at least one.")
    if source.kind == "embedded":
        return _EmbeddedVideo(source)
    return _ImageVideo(source) if source.kind == "images" else _FileVideo(source)


def video_source(path: Path) -> VideoSource:
    """The video that a user names: a video file, one image, or a folder of images (in natural order: frame2 before frame10).

    Raises:
        FormatError: nothing is there, the folder holds no images, or the file is a project.
    """
    path = Path(path).absolute()
    if path.is_dir():
        images = [entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")]
        if not images:
            raise FormatError(
                f"{path} is a folder without images ({' '.join(sorted(IMAGE_SUFFIXES))}); name a video or a folder of images."
            )
        return VideoSource(tuple(sorted(images, key=natural_order)))
    if not path.is_file():
        raise FormatError(f"{path} does not exist; name a video file, an image or a folder of images.")
    if path.suffix.lower() in (".slp", ".json", ".yaml", ".csv"):
        raise FormatError(f"{path} is not a video (a project?); name a video file, an image or a folder of images.")
    return VideoSource((path,))


def table_length(path: Path, source: VideoSource, last: int, seen: int) -> int:
    """Number of rows of a table that has a place for every frame: to the end of the video, or to the last animal or image.

    Args:
        path: what is being written.
        source: its video.
        last: the last frame with an animal.
        seen: number of frames that were given.

    Raises:
        FormatError: the table would be enormous because of one wrong frame number.
    """
    length, numbered = _lengths(source)
    end = max(last + 1, numbered)
    if end > max(1_000_000, 2 * length, 100 * seen):
        raise FormatError(
            f"{path} has a place for every frame, and an animal or an image is in frame {end - 1} of {source.name}, where no video is seen "
            "to reach; correct its number, or write a .slp."
        )
    return max(end, length)


def _lengths(source: VideoSource) -> tuple[int, int]:
    """How many frames a video has, 0 where it cannot be opened, and how many the numbers of a package's images say."""
    length = numbered = 0
    with suppress(FormatError), open_video(source) as video:
        numbered = max(video.frame_numbers[-1:], default=-1) + 1
        length = numbered if source.embedded is None else 0  # nothing but the video itself says whether a package's numbers are right
    return (length if source.original is None else _lengths(source.original)[0]), numbered


class _FileVideo(Video):
    """A video file, decoded forward from where the last read ended."""

    def __init__(self, source: VideoSource) -> None:
        self._decoded: Iterator[Any] = iter(())
        self._number = 0  # of the frame that the decoder gives next
        self._jumped = False  # numbers come from time stamps, not from counting
        super().__init__(source)
        self._counted = False  # n_frames comes from the file itself and not from its header
        self._times: np.ndarray | None = None  # time stamp of each frame, once a jump needed them; 8 bytes a frame
        self._key_frames = np.empty(0, dtype=np.int64)
        self._trusted = True  # time stamps identify frames
        stream = self._opened().streams.video[0]
        first = self._next_frame()
        if first is None:
            raise FormatError(f"{self.name} holds no frames; record or export it again.")
        self.height, self.width = _rgb(first).shape[:2]
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self.n_frames = stream.frames
        self.close()  # before a fork: see _opened
        if self.n_frames <= 0:
            self._look_through()

    def close(self) -> None:
        super().close()
        self._decoded = iter(())  # the decoder's threads end with it

    def stream(self, indices: Iterable[int] | None = None, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        if indices is not None:
            yield from self.read_many(indices)
            return
        for index in itertools.count(start):  # to the real end, whatever the header says
            frame = self._frame_at(index)
            if frame is None:
                return
            yield index, _rgb(frame)

    def _open(self) -> Any:
        container = _container(self.source.paths[0])
        container.streams.video[0].thread_type = "AUTO"
        self._decoded, self._number, self._jumped = container.decode(video=0), 0, False
        return container

    def _check(self, index: int) -> None:
        if index >= self.n_frames and not self._counted:
            self._look_through()  # before a frame is refused, the header is
        super()._check(index)

    def _read(self, index: int) -> np.ndarray:
        frame = self._frame_at(index)
        if frame is None:
            self._no_such_frame(index)
        return _rgb(frame)

    def _frame_at(self, index: int) -> Any:
        """The decoded frame, or None where the video ends before it."""
        self._opened()
        if index < self._number or index - self._number > _NEAR:
            self._jump(index)
        while (frame := self._next_frame()) is not None:
            number = self._number_of(frame)
            if number is None or not self._number <= number <= index:  # time stamps mislead; count from the start instead
                self._distrust()
                continue
            self._number = number + 1
            if number == index:
                return frame
        if not self._jumped:
            self.n_frames, self._counted = self._number, True
        elif self._trusted and index < self.n_frames:
            self._distrust()
            return self._frame_at(index)
        return None

    def _next_frame(self) -> Any:
        import av

        try:
            return next(self._decoded, None)
        except (av.error.FFmpegError, OSError) as error:
            self.close()
            damage = f"{self.name} is damaged at or after frame {self._number} ({error.strerror})"
            raise FormatError(f"{damage}; repair it, for example by converting it to MP4.") from error

    def _number_of(self, frame: Any) -> int | None:
        if not self._jumped:
            return self._number
        assert self._times is not None
        number = int(np.searchsorted(self._times, frame.pts)) if frame.pts is not None else len(self._times)
        return number if number < len(self._times) and self._times[number] == frame.pts else None

    def _distrust(self) -> None:
        self._trusted = False
        self._restart()

    def _restart(self) -> None:
        self.close()
        self._opened()

    def _jump(self, index: int) -> None:
        """Bring the decoder to the last key frame at or before ``index``, unless it is already nearer."""
        import av

        if self._trusted and self._times is None:
            self._look_through()
        position = int(np.searchsorted(self._key_frames, index, side="right")) - 1 if self._trusted else -1
        if self._number <= index and (position < 0 or self._key_frames[position] <= self._number):
            return
        # Containers look key frames up by storage time, so a jump may land late where key frames are dense: then an earlier one is tried.
        for key in self._key_frames[: position + 1][::-1][:8]:
            assert self._times is not None
            container = self._opened()
            try:
                container.seek(int(self._times[key]), stream=container.streams.video[0], backward=True)
                decoded = container.decode(video=0)
                first = next(decoded, None)
            except (av.error.FFmpegError, OSError):
                break
            if first is not None and first.pts is not None and first.pts <= self._times[key]:
                self._decoded, self._jumped = itertools.chain([first], decoded), True
                self._number = int(np.searchsorted(self._times, first.pts))
                return
        self._restart()

    def _look_through(self) -> None:
        """Count the frames and note their time stamps, from the packets, without decoding them."""
        import av

        times, keys = array("q"), array("q")
        with _container(self.source.paths[0]) as container:
            whole = container.streams.video[0].codec_context.name != "vp8"  # VP8 has packets that show no frame
            packets = 0
            try:
                for packet in container.demux(video=0):
                    if packet.size == 0 or packet.is_discard:  # the flush at the end, and what an edit list cuts away
                        continue
                    packets += 1
                    if packet.pts is None:
                        whole = False
                        continue
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
            except (av.error.FFmpegError, OSError):
                whole = False  # what follows the damage is not reached, neither here nor by the decoder
        ordered = np.sort(np.frombuffer(times, dtype=np.int64)) if times else np.empty(0, dtype=np.int64)
        self._trusted = bool(whole and len(ordered) and (np.diff(ordered) > 0).all() and self._begins_with(ordered[:_NEAR]))
        if self._trusted:
            self._times = ordered
            self._key_frames = np.searchsorted(ordered, np.sort(np.frombuffer(keys, dtype=np.int64))) if keys else self._key_frames
        self.n_frames, self._counted = packets, True

    def _begins_with(self, times: np.ndarray) -> bool:
        """Whether the first decoded frames carry these time stamps; H.264 in AVI, for one, has stamps in the order of storage."""
        import av

        with _container(self.source.paths[0]) as container:
            try:
                return [frame.pts for frame in itertools.islice(container.decode(video=0), len(times))] == times.tolist()
            except (av.error.FFmpegError, OSError):
                return False


def _container(path: Path) -> Any:
    """The open PyAV container of a file with at least one video stream, or a FormatError."""
    import av

    if not path.is_file():
        raise FormatError(f"The video {path} does not exist; check the path, or name the folder it lies in with --video-root.")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        what = f"{path} is not a video that can be read, or its recording was cut off ({error.strerror})"
        raise FormatError(f"{what}; if a player shows it, convert it to MP4.") from error
    if container.format.name in _PLAYLISTS:
        container.close()
        raise FormatError(f"{path} is a list of other files ({container.format.name}) and no video; name the video itself.")
    if not container.streams.video:
        container.close()
        raise FormatError(f"{path} holds no pictures, only sound or text; name a video file.")
    return container


def _rgb(frame: Any) -> np.ndarray:
    """A decoded PyAV frame as uint8 (H, W, 3), turned as its flag says: so does OpenCV, and with it SLEAP's and DeepLabCut's labels."""
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


class _ImageVideo(Video):
    """One image per frame; nothing is kept open."""

    def __init__(self, source: VideoSource) -> None:
        super().__init__(source)
        self.n_frames = len(source.paths)
        self.height, self.width = self._read(0).shape[:2]

    def _open(self) -> Any:
        return None

    def _read(self, index: int) -> np.ndarray:
        path = self.source.paths[index]
        if not path.is_file():
            raise FormatError(f"The image {path} (frame {index}) does not exist; check the path, or name its folder with --video-root.")
        return _decode_image(path, str(path))


def _decode_image(file: Path | io.BytesIO, name: str) -> np.ndarray:
    """Read one image as uint8 (H, W, 3), red green blue. Of 16 bits the upper 8 are kept, as OpenCV does; transparency is dropped."""
    from PIL import Image

    try:
        with Image.open(file, formats=_PICTURES) as image:
            if image.format == "TIFF" and (pages := getattr(image, "n_frames", 1)) > 1:
                raise FormatError(f"{name} is a TIFF stack of {pages} pages; save it as a video, or as one image per frame.")
            if image.mode.startswith("F"):
                raise FormatError(f"{name} holds floating-point pixels; save it with 8 or 16 bits.")
            if image.mode.startswith("I"):
                grey = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except FormatError:
        raise
    except Exception as error:  # pillow's readers raise what they like on damaged files
        raise FormatError(f"{name} is not an image that can be read, or is damaged ({error}); save it again as PNG.") from error


def at_once(dataset: Any) -> int:
    """Bytes of a package's dataset that are in memory together: images are read one by one, but all are numbered."""
    if not dataset.shape or not dataset.name.endswith("/video"):
        return dataset.nbytes
    return max(dataset.nbytes // max(1, len(dataset)), 8 * len(dataset))


class _EmbeddedVideo(Video):
    """The images inside a ``.pkg.slp``: ``videoN/video`` holds encoded images (or raw pixels), ``videoN/frame_numbers`` their numbers."""

    def __init__(self, source: VideoSource) -> None:
        super().__init__(source)
        self.name = f"{source.paths[0]} ({source.embedded})"
        try:
            self._read_header()
        except Exception as error:  # h5py raises what it meets
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{self.name} is damaged: its images cannot be listed ({error}); export the package again.") from error
        if self._rows and not (self.height and self.width):
            self.height, self.width = self.read(self.frame_numbers[0]).shape[:2]

    def _read_header(self) -> None:
        file = self._opened()
        images = self._images()
        group = images.parent
        numbers = group["frame_numbers"][:] if "frame_numbers" in group else np.arange(len(images))
        fit = numbers.dtype.kind in "iu" and len(numbers) <= len(images) and ((numbers >= 0) & (numbers < MOST_FRAMES)).all()
        if len(numbers) and not fit:
            raise ValueError("they are not numbered as frames are")
        self._rows = {int(number): row for row, number in sorted(enumerate(numbers), key=lambda pair: int(pair[1]))}
        self.n_frames = len(self._rows)
        self.height, self.width = int(images.attrs.get("height", 0)), int(images.attrs.get("width", 0))
        self._format = _text(images.attrs.get("format", "hdf5"))
        if self._format == "hdf5" and not (images.ndim in (3, 4) and images.dtype.kind in "iu"):
            raise ValueError("they hold no pixels")
        # SLEAP wrote these images with OpenCV up to format 1.3, without a note of the order of colours.
        old = "metadata" not in file or file["metadata"].attrs.get("format_id", 0) < 1.4
        self._blue_first = _text(images.attrs.get("channel_order", "BGR" if old else "RGB")) == "BGR" and self._format != "hdf5"
        fps = images.attrs.get("fps", group.attrs.get("fps"))
        self.fps = float(fps) if fps is not None else None

    @property
    def frame_numbers(self) -> Sequence[int]:
        return list(self._rows)

    def _open(self) -> Any:
        import h5py

        path = self.source.paths[0]
        if not path.is_file():
            raise FormatError(f"The package {path} does not exist; check the path, or name the folder it lies in with --video-root.")
        try:
            file = h5py.File(path, "r")
            check_hdf5(file, at_once)
            return file
        except (OSError, ValueError, RuntimeError) as error:
            raise FormatError(f"{path} is not a SLEAP package, or is damaged ({error}); export it again.") from error

    def _images(self) -> Any:
        found = self._opened()[f"{self.source.embedded}/video"]
        if not hasattr(found, "dtype"):
            raise ValueError(f"{found.name} is a group")
        return found

    def _check(self, index: int) -> None:
        if index not in self._rows:
            span = f", numbered {min(self._rows)}-{max(self._rows)}" if self._rows else ""
            raise FormatError(
                f"{self.name} holds {self.n_frames} of the video's frames{span}; frame {index}, which was asked for, is not among them."
            )

    def _read(self, index: int) -> np.ndarray:
        try:
            stored = self._images()[self._rows[index]]
        except Exception as error:  # h5py raises what it meets
            raise FormatError(f"{self.name} is damaged at frame {index}; export the package again.") from error
        if self._format != "hdf5":
            image = _decode_image(io.BytesIO(np.asarray(stored).tobytes()), f"{self.name}, frame {index}")
            return np.ascontiguousarray(image[:, :, ::-1]) if self._blue_first else image
        image = np.asarray(stored, dtype=np.uint8).reshape(*stored.shape[:2], -1)
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]


def _text(value: object) -> str:
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"{value} is no text")
    return value.decode() if isinstance(value, bytes) else value

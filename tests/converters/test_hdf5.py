"""HDF5 files that would take far more memory than they look, and sane ones that look so."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from converters import FormatError, LabeledFrame, PredictedInstance, Skeleton, VideoSource, read_project
from converters.hdf5 import check_hdf5, written_pieces
from converters.sleap_analysis import write_analysis

LENGTH = 12345  # of a text; no other number in these files
POINTS = np.array([[1.5, 2.0], [np.nan, np.nan], [7.25, 2.0]])


def in_a_dataset(file: h5py.File) -> None:
    file["group/texts"] = "x" * LENGTH


def in_pieces(file: h5py.File) -> None:
    file.create_dataset("group/texts", data=["a", "x" * LENGTH, "b"], dtype=h5py.string_dtype(), chunks=(2,))


def in_an_attribute(file: h5py.File) -> None:
    file.create_group("group").attrs["text"] = "x" * LENGTH


def in_a_long_header(file: h5py.File) -> None:
    for number in range(5):  # each is longer than what is left of the header, which goes on elsewhere
        file.require_group("group").attrs[f"number{number}"] = np.zeros(200)
    file["group"].attrs["text"] = "x" * LENGTH


def as_numbers(file: h5py.File) -> None:
    made = file.create_dataset("numbers", (2,), dtype=h5py.vlen_dtype("f8"))
    made[1] = np.arange(LENGTH)


WAYS = [in_a_dataset, in_pieces, in_an_attribute, in_a_long_header, as_numbers]


@pytest.mark.parametrize("version", ["earliest", "v108", "latest"])
@pytest.mark.parametrize("write", WAYS)
def test_lengths_are_found(tmp_path: Path, write: Callable[[h5py.File], None], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr("converters.hdf5._Bytes.check_texts", lambda self, name, stored, width: found.extend(stored["length"].tolist()))
    with h5py.File(tmp_path / "p.h5", "w", libver=(version, "latest")) as file:
        write(file)
        file.flush()
        check_hdf5(file)
    assert LENGTH in found


@pytest.mark.parametrize("write", WAYS)
def test_texts_longer_than_their_file(tmp_path: Path, write: Callable[[h5py.File], None]) -> None:
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        write(file)
    with h5py.File(path) as file:
        check_hdf5(file)
    whole = path.read_bytes()
    assert whole.count(struct.pack("<I", LENGTH)) >= 1
    path.write_bytes(whole.replace(struct.pack("<I", LENGTH), b"\xff" * 4))
    with h5py.File(path) as file, pytest.raises(ValueError, match="claims to hold texts of .* bytes, more than the file"):
        check_hdf5(file)


def test_compressed_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        node = file.create_dataset("texts", data=["a", "x" * LENGTH], dtype=h5py.string_dtype(), chunks=(2,), compression="gzip")
        file.flush()
        check_hdf5(file)
        _, packed = node.id.read_direct_chunk((0,))
        stored = zlib.decompress(packed).replace(struct.pack("<I", LENGTH), b"\xff" * 4)
        node.id.write_direct_chunk((0,), zlib.compress(stored))
        with pytest.raises(ValueError, match="/texts claims to hold texts"):
            check_hdf5(file)


def test_a_text_of_a_project_longer_than_its_file(make_project: Callable[..., Path]) -> None:
    path = make_project()
    with h5py.File(path) as file:
        (text,) = file["videos_json"][()]
    whole, length = path.read_bytes(), struct.pack("<I", len(text))
    path.write_bytes(whole.replace(length, struct.pack("<I", len(text) ^ 1 << 31)))  # one bit, which is 2 GB
    with pytest.raises(FormatError, match="/videos_json claims to hold texts") as caught:
        read_project(path)
    assert str(path) in str(caught.value)


def test_a_heap_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        file.attrs["text"] = "words"
    whole = bytearray(path.read_bytes())
    heap = whole.index(b"GCOL")
    free = heap + 16 + 16 + 8  # after its head, that of the one text, and the text
    assert struct.unpack_from("<H6xQ", whole, free) == (0, 4096 - 40)
    whole[free + 8 : free + 16] = bytes(8)
    path.write_bytes(whole)
    with h5py.File(path) as file, pytest.raises(ValueError, match="holds texts in a damaged heap"):
        check_hdf5(file)


def test_a_piece_that_names_a_size_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        node = file.create_dataset("numbers", data=np.random.default_rng(0).random(1000), chunks=(1000,), compression="gzip")
        size = node.id.get_chunk_info(0).size
    whole = path.read_bytes()
    path.write_bytes(whole.replace(struct.pack("<II", size, 0), struct.pack("<II", 1 << 31, 0)))
    with h5py.File(path) as file, pytest.raises(ValueError, match="/numbers goes on beyond the end of the file"):
        check_hdf5(file)


def test_what_nobody_wrote_and_what_opens_into_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.hdf5._SMALL", 10_000)
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file.create_dataset("zeros", data=np.zeros(200_000), compression="gzip", chunks=(100_000,))
        with pytest.raises(ValueError, match="/zeros claims to hold 1600000 bytes, far more than the .* that are stored"):
            check_hdf5(file)
        del file["zeros"]
        file.create_dataset("numbers", data=np.random.default_rng(0).random(200_000), compression="gzip")
        check_hdf5(file)
        file.create_dataset("never", (200_000,), dtype="f8")
        with pytest.raises(ValueError, match="/never claims to hold 1600000 bytes, far more than the 0 that are stored"):
            check_hdf5(file)
        check_hdf5(file, lambda dataset: 8)


@pytest.mark.parametrize("chunks", [(2, 3), None])
def test_pieces_are_what_was_written(tmp_path: Path, chunks: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.hdf5._SMALL", 8 * 5 * 24)  # three rows at once, where there are no chunks
    with h5py.File(tmp_path / "p.h5", "w") as file:
        node = file.create_dataset("numbers", (7, 5), chunks=chunks, dtype="f8", maxshape=(None, None) if chunks else None)
        node[6, 4] = 1
        found = np.zeros(node.shape)
        for piece in written_pieces(node):
            found[piece] += 1
        assert found.max() == 1 and found.sum() == (2 if chunks else 35) and found[6, 4] == 1
        assert list(written_pieces(file.create_dataset("empty", (0, 5), dtype="f8"))) == []


def sparse(path: Path, n_frames: int) -> list[LabeledFrame]:
    animals = [PredictedInstance(POINTS + shift, name, 0.5, np.array([0.5, 0, 1])) for shift, name in enumerate(["a", "b"])]
    frames = [LabeledFrame(0, 3, [], animals), LabeledFrame(0, n_frames - 1, [], animals[1:])]
    write_analysis(path, Skeleton(("nose", "left ear", "right ear")), [VideoSource((path.parent / "clip.mp4",))], frames, {})
    return frames


def written_at_once(path: Path, chunks: Any) -> None:
    """As SLEAP writes arrays: all NaN are there, compressed."""
    with h5py.File(path, "r+") as file:
        for name in ("tracks", "track_occupancy", "point_scores", "instance_scores", "tracking_scores"):
            data, attributes = file[name][()], dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=data, chunks=chunks, compression="gzip" if chunks else None).attrs.update(attributes)


@pytest.mark.parametrize("layout", ["as written here", "as written by SLEAP", "without pieces"])
def test_long_recordings_with_few_animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr("converters.hdf5._SMALL", 1 << 18)
    path, n_frames = tmp_path / "clip.analysis.h5", 90_000
    expected = sparse(path, n_frames)
    if layout != "as written here":
        written_at_once(path, True if layout == "as written by SLEAP" else None)
    dense = n_frames * 2 * 3 * 2 * 8
    tracemalloc.start()
    labels = read_project(path, require_videos=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < dense / 2
    assert [frame.index for frame in labels.frames] == [3, n_frames - 1]
    for frame, other in zip(labels.frames, expected, strict=True):
        for animal, same in zip(frame.predicted, other.predicted, strict=True):
            np.testing.assert_array_equal(animal.points, same.points)
            np.testing.assert_array_equal(animal.point_scores, same.point_scores)
            assert (animal.track, animal.score) == (same.track, same.score)

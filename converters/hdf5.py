"""What reading an HDF5 file would cost, told before anything of it is read; and whether there is room for writing one.

Traps of the format, by which a small file takes a computer's memory before its library complains:

* pieces ("chunks") that were never written cost a file nothing, and gzip makes a gigabyte of zeros a megabyte;
* a text is stored as its length and its place: the library takes what the length says, up to 4 GB, and fills it with zeros, before it looks
  at the place. The same holds for a text in an attribute, whose length no function of the library tells: object headers are read here;
* texts lie in heaps, one after the other: where one of them has no size, the library looks for the next for ever;
* a compressed piece names its own size, which is taken before the file turns out to be shorter;
* links and datasets may be kept in other files, or in a device.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_SMALL = 1 << 26  # bytes that are read without a question
_SPARE = 1 << 25  # bytes on the disk, more than HDF5 and our writers hold back at a time
# Only analysis files are compressed by the programs that write them, and those are read in pieces. Projects and tables are not; people may
# compress these afterwards, but not to less than a 200th. What a file holds is therefore at most this many times what it stores.
_EXPANSION = 200
_HEAP_OBJECT = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])  # a text as a dataset or an attribute keeps it
_CONTINUED, _ATTRIBUTE, _TEXTS = 0x10, 0x0C, 9  # numbers of the format: two messages in object headers, and a class of types


def check_space(path: Path) -> None:
    """OSError where the disk of a file that is being written is nearly full. Asked before each part is written: where HDF5 itself finds no
    room, it keeps that to itself when the file is closed, and ends the process later.
    """
    if shutil.disk_usage(path.parent).free < _SPARE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_hdf5(file: Any, at_once: Callable[[Any], int] | None = None) -> None:
    """ValueError if reading an open HDF5 file could take far more memory than its size, or would read other files.

    Args:
        file: the open `h5py.File`.
        at_once: how many bytes of a dataset the reader will hold at once; all, unless told. A piece is always read as a whole.
    """
    import h5py

    seen, waiting = {h5py.h5o.get_info(file.id).addr}, [file]
    with open(file.filename, "rb") as raw:
        content = _Bytes(raw, file.userblock_size)
        while waiting:  # by hand: an exception within h5py's visit() leaves its lock taken
            group = waiting.pop()
            for key in group:
                link, name = group.get(key, getlink=True), f"{group.name.rstrip('/')}/{key}"
                if isinstance(link, h5py.ExternalLink):
                    raise ValueError(f"{name} is a link to another file, {link.filename}")
                if not isinstance(link, h5py.HardLink):
                    continue  # what it names is in this file, and reached by its own way
                node = group[key]
                place = h5py.h5o.get_info(node.id).addr
                if place in seen:
                    continue
                seen.add(place)
                if isinstance(node, h5py.Group):
                    waiting.append(node)
                elif isinstance(node, h5py.Dataset):
                    _check_dataset(node, name, content, node.nbytes if at_once is None else at_once(node))
        for place in seen:
            _check_attributes(content, place)


class _Bytes:
    """A file's bytes, counted from where its content begins; and the texts in it that were looked at."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.length = os.fstat(file.fileno()).st_size
        self._file, self._start = file, start
        self._heaps: set[int] = set()

    def read(self, place: int, size: int) -> bytes:
        """At most ``size`` bytes from ``place``, fewer at the end."""
        self._file.seek(min(self._start + place, self.length))
        return self._file.read(max(0, min(size, self.length)))

    def check_texts(self, name: str, stored: np.ndarray, width: int) -> None:
        """ValueError if texts of characters of this width are longer than the file, in which they lie one by one, or in a damaged heap."""
        stored = stored[stored["address"] != 0]
        total = width * int(stored["length"].sum(dtype=np.uint64))
        if total > self.length:
            raise ValueError(f"{name} claims to hold texts of {total} bytes, more than the file")
        for place in {*stored["address"].tolist()} - self._heaps:
            self._heaps.add(place)
            self._check_heap(name, place)

    def _check_heap(self, name: str, place: int) -> None:
        """HDF5 File Format Specification 3.0, III.E; what is no heap is left to the library."""
        head = self.read(place, 16)
        if len(head) < 16 or head[:4] != b"GCOL":
            return
        content, at = self.read(place, int.from_bytes(head[8:], "little")), 16
        while at + 16 <= len(content):
            number, size = struct.unpack_from("<H6xQ", content, at)
            step = 16 + -(-size // 8) * 8 if number else size  # what is free counts its own head
            if step < 16:
                raise ValueError(f"{name} holds texts in a damaged heap")
            at += step


def written_pieces(dataset: Any) -> Iterator[tuple[slice, ...]]:
    """Where in a dataset something was written, piece by piece; all other values are what the writer began with, nothing."""
    if not dataset.size:
        return
    if dataset.chunks is None:
        whole, longest = [slice(0, size) for size in dataset.shape], int(np.argmax(dataset.shape))
        count = dataset.shape[longest]
        step = max(1, _SMALL // 8 * count // dataset.nbytes)
        for start in range(0, count, step):
            yield *whole[:longest], slice(start, min(start + step, count)), *whole[longest + 1 :]
        return
    for piece in _chunks(dataset):
        axes = zip(piece.chunk_offset, dataset.chunks, dataset.shape, strict=True)
        yield tuple(slice(start, min(start + size, end)) for start, size, end in axes)


def _chunks(dataset: Any) -> list[Any]:
    found: list[Any] = []
    if dataset.size:  # the library reads the index of an empty one, too, and fails where there is none
        dataset.id.chunk_iter(found.append)
    return found


def _check_dataset(node: Any, name: str, content: _Bytes, held: int) -> None:
    """ValueError if a dataset's stored values do not lie in the file, or stand for far more of them."""
    import h5py

    length = content.length
    if node.external or node.is_virtual:
        raise ValueError(f"{name} is kept in another file")
    if node.chunks is not None:
        ends = [(piece.byte_offset + piece.size, piece.size) for piece in _chunks(node)]
        stored = sum(size for _, size in ends)
        if any(end > length for end, _ in ends) or stored > length:
            raise ValueError(f"{name} goes on beyond the end of the file")
        held = max(held, math.prod(node.chunks) * node.dtype.itemsize)
    else:
        stored, start = node.id.get_storage_size(), node.id.get_offset()
        if stored > length or (start or 0) + stored > length:
            raise ValueError(f"{name} goes on beyond the end of the file")
    if held > max(_SMALL, _EXPANSION * stored):
        raise ValueError(f"{name} claims to hold {held} bytes, far more than the {stored} that are stored")
    of = h5py.check_vlen_dtype(node.dtype)  # str or bytes, or of what numbers there are lists
    if of is not None and node.size:
        content.check_texts(name, _heap_objects(node, content), of.itemsize if isinstance(of, np.dtype) else 1)


def _heap_objects(node: Any, content: _Bytes) -> np.ndarray:
    """How a dataset keeps its texts: lengths and places, which the library itself does not give."""
    import h5py

    if node.chunks is None:
        start, size = node.id.get_offset(), node.id.get_storage_size()
        if start is None:  # within the object header, 64 kB at most, or never written
            return np.empty(0, _HEAP_OBJECT)
        stored = content.read(start - node.file.userblock_size, size)  # it says where in the file, others where after its first block
        return np.frombuffer(stored[: len(stored) // 16 * 16], _HEAP_OBJECT)
    settings, theirs = h5py.h5p.create(h5py.h5p.DATASET_CREATE), node.id.get_create_plist()
    settings.set_chunk(node.chunks)
    for number in range(theirs.get_nfilters()):
        settings.set_filter(*theirs.get_filter(number)[:3])
    opaque = h5py.h5t.py_create(np.dtype(f"V{_HEAP_OBJECT.itemsize}"))
    with h5py.File("texts", "w", driver="core", backing_store=False) as copy:  # in memory: the same bytes, but no texts to the library
        twin = h5py.h5d.create(copy.id, b"texts", opaque, h5py.h5s.create_simple(node.shape), settings)
        for piece in _chunks(node):
            mask, packed = node.id.read_direct_chunk(piece.chunk_offset)
            twin.write_direct_chunk(piece.chunk_offset, packed, mask)
        return np.asarray(h5py.Dataset(twin)[()]).ravel().view(_HEAP_OBJECT)


# --- object headers ---


def _check_attributes(content: _Bytes, place: int) -> None:
    """ValueError if a text in an attribute of the object at this place is longer than the file."""
    for kind, message in _messages(content.read, place):
        if kind == _ATTRIBUTE:
            content.check_texts("an attribute", *_attribute_texts(message))


def _messages(read: Callable[[int, int], bytes], place: int) -> Iterator[tuple[int, bytes]]:
    """The messages of the object header at ``place``: number of their kind, content. HDF5 File Format Specification 3.0, IV.A."""
    start = read(place, 64)
    if start[:4] == b"OHDR":
        flags = start[5]
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        waiting = [(place + at + width, int.from_bytes(start[at : at + width], "little"))]
        head, signature = struct.Struct("<BHB" + "xx" * bool(flags & 4)), 4
    else:
        waiting = [(place + 16, int.from_bytes(start[8:12], "little"))]
        head, signature = struct.Struct("<HHB3x"), 0
    seen = set()
    while waiting:
        block = waiting.pop()
        if block in seen:
            continue
        seen.add(block)
        content, at = read(*block), 0
        while at + head.size <= len(content):
            kind, size, _ = head.unpack_from(content, at)
            message = content[at + head.size : at + head.size + size]
            if kind == _CONTINUED and len(message) >= 16:
                there, length = struct.unpack_from("<QQ", message)
                if there < 1 << 62:
                    waiting.append((there + signature, length - 2 * signature))
            yield kind, message
            at += head.size + size


def _attribute_texts(message: bytes) -> tuple[np.ndarray, int]:
    """The lengths and places of the texts that an attribute's message (the same specification, IV.A.2.m) holds, and a character's width."""
    if len(message) < 9 or message[0] not in (1, 2, 3):
        return np.empty(0, _HEAP_OBJECT), 1
    sizes = list(struct.unpack_from("<3H", message, 2))  # of its name, its type, its shape
    if message[0] == 1:  # padded, in this version
        sizes = [-(-size // 8) * 8 for size in sizes]
    at = 8 + (message[0] == 3) + sizes[0]
    if at + 16 > len(message) or message[at] & 15 != _TEXTS:
        return np.empty(0, _HEAP_OBJECT), 1
    values, (width,) = message[at + sizes[1] + sizes[2] :], struct.unpack_from("<I", message, at + 12)
    return np.frombuffer(values[: len(values) // 16 * 16], _HEAP_OBJECT), width

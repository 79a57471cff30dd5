"""What `fuzz_formats` does to HDF5 files: bytes, attributes, values, types, shapes and links are replaced by others, some of them traps."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_damage import Evil, Rng, harm_bytes, harm_json, odd_text, odd_value, pick

_ZEROS = zlib.compress(bytes(1 << 26), 9)  # made once, for it takes as long as ten cases


def damage_h5(rng: Rng, path: Path) -> str:
    """Damage an HDF5 file; returns what was done."""
    if rng.random() < 0.3:
        path.write_bytes(harm_bytes(rng, path.read_bytes()))
        return "bytes"
    done = []
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 3))):
            nodes: list[str] = []
            file.visit(nodes.append)
            if not nodes:
                break
            holders = [name for name in ("/", *nodes) if len(file[name].attrs)]
            if holders and rng.random() < 0.3:
                done.append(_harm_attribute(rng, file[pick(rng, holders)]))
            else:
                done.append(_harm_node(rng, file, pick(rng, nodes)))
    return " + ".join(done)


def _harm_attribute(rng: Rng, node: Any) -> str:
    name = pick(rng, node.attrs)
    value = node.attrs[name]
    kind = pick(rng, ["remove", "odd", "value", "value", "pickle", "empty", "array", "rename"])
    if kind == "rename":
        node.attrs[pick(rng, ["x", "shape", "dims", "pandas_type"])] = value
    del node.attrs[name]
    if kind == "odd":
        _store(lambda odd: node.attrs.create(name, odd), odd_value(rng))
    elif kind == "value":
        _store(lambda odd: node.attrs.create(name, odd), _harm_text_or_numbers(rng, value))
    elif kind == "pickle":
        node.attrs.create(name, np.void(pickle.dumps(Evil(), protocol=0)))
        node.attrs.create(name, np.bytes_(pickle.dumps(pick(rng, [Evil(), [("a", Evil())], ["x"] * 9]), protocol=0)))
    elif kind == "empty":
        node.attrs.create(name, h5py.Empty(pick(rng, ["f8", "S5"])))
    elif kind == "array":
        node.attrs.create(name, np.zeros(pick(rng, [(0,), (3, 3), (1,)]), pick(rng, ["f8", "S3", "u1", "?"])))
    return f"attribute {kind}"


@dataclass(frozen=True)
class _Node:
    """What a place in a file held, and another place there."""

    name: str
    other: str
    data: Any  # None for a group
    dtype: np.dtype
    shape: tuple[int, ...]
    attributes: dict[str, Any]


def _harm_node(rng: Rng, file: Any, name: str) -> str:
    """Put something else in the place of a group or a dataset."""
    node = file[name]
    of_data = isinstance(node, h5py.Dataset)
    kind = pick(rng, [*_LINKS, *(["value"] * 8 + ["type", "shape"] + list(_DATA) + list(_CLAIMS) if of_data else [])])
    if of_data and (node.nbytes > 1 << 27 or node.external):
        return "nothing"  # it is a claim already, or cannot be read
    if kind == "value":
        return _harm_values(rng, file, name)
    other = pick(rng, [key for key in file if key != name.split("/")[0]] or [name])
    described = (node[()], node.dtype, node.shape) if of_data else (None, np.dtype("f8"), ())
    was = _Node(name, other, *described, dict(node.attrs))
    del node
    if kind == "swap" and other != name:
        file.move(name, "/~")
        file.move(other, name)
        file.move("/~", other)
        return kind
    if kind in ("swap", "hard link") and other == name:
        return "nothing"
    del file[name]
    (_LINKS | _DATA | _CLAIMS)[kind](rng, file, was)
    if kind not in _LINKS and name in file:
        file[name].attrs.update(was.attributes)
    return kind


def _soft_link(rng: Rng, file: Any, was: _Node) -> None:
    file[was.name] = h5py.SoftLink(pick(rng, [f"/{was.other}", f"/{was.name}", "/nowhere", "/"]))


def _hard_link(rng: Rng, file: Any, was: _Node) -> None:
    file[was.name] = file[was.other]


def _cycle(rng: Rng, file: Any, was: _Node) -> None:
    file[was.name] = file["/"]


def _external_link(rng: Rng, file: Any, was: _Node) -> None:
    target = pick(rng, [Path(file.filename).name, "../outside/other.h5", "/dev/zero", "/etc/passwd", "pipe.png"])
    file[was.name] = h5py.ExternalLink(target, pick(rng, ["/", f"/{was.name}", "big"]))


def _group(rng: Rng, file: Any, was: _Node) -> None:
    file.create_group(was.name)


def _nothing(rng: Rng, file: Any, was: _Node) -> None:
    pass


def _other_type(rng: Rng, file: Any, was: _Node) -> None:
    texts, lists, rows = h5py.string_dtype(), h5py.vlen_dtype("u1"), [("a", "f8"), ("frame_id", "S2")]
    wanted = np.dtype(pick(rng, ["f8", "i8", "u1", "S4", "?", "f2", "c16", "V3", texts, lists, rows]))
    if wanted.kind == "O":
        file.create_dataset(was.name, shape=was.shape, dtype=wanted)
    else:
        file.create_dataset(was.name, data=np.zeros(was.shape, wanted))


def _other_shape(rng: Rng, file: Any, was: _Node) -> None:
    shape = was.shape
    shapes = [(), (0,), (1,), (*shape, 1), (*shape, 0), shape[1:], shape[::-1]]
    shapes += [tuple(n + 1 for n in shape), tuple(2 * n for n in shape), tuple(max(0, n - 1) for n in shape)]
    chosen = pick(rng, shapes)
    if was.dtype.hasobject:
        file.create_dataset(was.name, shape=chosen, dtype=was.dtype)
    else:
        file.create_dataset(was.name, data=np.resize(np.asarray(was.data), chosen))


def _odd(rng: Rng, file: Any, was: _Node) -> None:
    _store(lambda odd: file.create_dataset(was.name, data=odd), odd_value(rng))


def _empty(rng: Rng, file: Any, was: _Node) -> None:
    file.create_dataset(was.name, data=h5py.Empty(pick(rng, ["f8", "S5"])))


def _references(rng: Rng, file: Any, was: _Node) -> None:
    file.create_dataset(was.name, data=np.array([file.ref] * 3, dtype=h5py.ref_dtype))


def _huge(rng: Rng, file: Any, was: _Node) -> None:
    """A claim that costs the file nothing."""
    length = pick(rng, [1 << 28, 1 << 29, 1 << 40, (1 << 62) // max(1, was.dtype.itemsize)])
    axes = (length, *was.shape[1:]) if rng.random() < 0.5 else (length,)
    try:
        file.create_dataset(was.name, shape=axes, dtype=was.dtype, chunks=(1 << 12,) + tuple(max(1, n) for n in axes[1:]))
    except ValueError:
        file.create_dataset(was.name, shape=(length,), dtype="u1", chunks=(1 << 20,))


def _bomb(rng: Rng, file: Any, was: _Node) -> None:
    """A megabyte that opens into a gigabyte."""
    made = file.create_dataset(was.name, shape=(1 << 30,), dtype="u1", chunks=(1 << 26,), compression="gzip")
    for start in range(0, 1 << 30, 1 << 26):
        made.id.write_direct_chunk((start,), _ZEROS)


def _external_data(rng: Rng, file: Any, was: _Node) -> None:
    file.create_dataset(was.name, shape=(64,), dtype="u1", external=[(pick(rng, ["/etc/passwd", "/dev/zero", "nowhere"]), 0, 64)])


def _virtual(rng: Rng, file: Any, was: _Node) -> None:
    layout = h5py.VirtualLayout(shape=(1 << 28,), dtype="f8")
    layout[:16] = h5py.VirtualSource("../outside/other.h5", "big", shape=(16,))
    file.create_virtual_dataset(was.name, layout)


_Harm = Callable[[Rng, Any, _Node], None]
_LINKS: dict[str, _Harm] = {"remove": _nothing, "soft link": _soft_link, "hard link": _hard_link, "cycle": _cycle}
_LINKS |= {"external link": _external_link, "group": _group, "swap": _nothing}
_DATA: dict[str, _Harm] = {"type": _other_type, "shape": _other_shape, "odd": _odd, "empty": _empty, "references": _references}
_CLAIMS: dict[str, _Harm] = {"huge": _huge, "bomb": _bomb, "external data": _external_data, "virtual": _virtual}


def _harm_values(rng: Rng, file: Any, name: str) -> str:
    """Change some of a dataset's values, in place where its type allows."""
    node = file[name]
    data = node[()]
    if not isinstance(data, np.ndarray):
        attributes = dict(node.attrs)
        del node, file[name]
        _store(lambda value: file.create_dataset(name, data=value), _harm_text_or_numbers(rng, data))
        if name in file:
            file[name].attrs.update(attributes)
        return "value"
    if data.size == 0:
        return "nothing"
    field = pick(rng, data.dtype.names) if data.dtype.names else ...
    for _ in range(int(rng.integers(1, 4))):
        at = tuple(int(rng.integers(n)) for n in data.shape)
        value = data[at] if field is ... else data[at][field]
        changed = _harm_text_or_numbers(rng, value)
        try:
            if field is ...:
                data[at] = changed
            else:
                data[field][at] = changed
            node[...] = data
        except (TypeError, ValueError, OverflowError, UnicodeEncodeError, OSError):
            continue
    return f"value of {name.rpartition('/')[2]}"


def _harm_text_or_numbers(rng: Rng, value: Any) -> Any:
    if isinstance(value, (bytes, str)):
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        try:
            changed = json.dumps(harm_json(rng, json.loads(text)))
        except ValueError:
            changed = pick(rng, [odd_text(rng), text[: len(text) // 2], text + "x"])
        return changed.encode(errors="surrogatepass")
    kind = np.asarray(value).dtype
    if kind.kind in "iu":
        most = np.iinfo(kind)
        odd: Any = pick(rng, [most.min, most.max, 0, 1, 2, 5, 10**5, 10**7, 10**9, 10**12, -1, -2])
        return kind.type(min(max(odd, most.min), most.max)) if np.ndim(value) == 0 else np.full(np.shape(value), 1, kind)
    if kind.kind == "f":
        return pick(rng, [np.nan, np.inf, -np.inf, 1e308, -1.0, 0.0, 1e-320, 3e38])
    return odd_value(rng)


def _store(put: Callable[[Any], Any], value: Any) -> None:
    """What HDF5 cannot hold is left out."""
    with suppress(TypeError, ValueError, OverflowError, UnicodeEncodeError, OSError, KeyError):
        put(value)

"""What `fuzz_formats` does to files: each function damages one kind, as its random numbers say, and returns in a word what it did."""

from __future__ import annotations

import copy
import csv
import json
import os
import pickle
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

Rng = np.random.Generator

CANARY = "canary"  # what hostile content tries to make, in the case's folder


class _Evil:
    """Unpickling it makes the folder ``CANARY``, in the current one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def pick(rng: Rng, choices: Any) -> Any:
    """One of these."""
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


# fmt: off
_ODD_TEXTS = (
    "", " ", "\0", "a\nb", "nose", "\ud800", "é\u202e𝔘", "x" * 300, "n" * 100_000, ".", "..", "/", "../../outside/secret.png",
    "/etc/passwd", "C:\\videos\\clip.mp4", "\\\\server\\share\\clip.mp4", "/dev/zero", "clip/img0001.png", "link.png", "pipe.png",
    "zero.png", "loop/loop/loop/x.png", "null", "nan", "1e999", "-1", "9" * 5000, "٣", "²", "video0/video", "video99999999999/video",
    "!!python/object/apply:os.mkdir [canary]", "%s%n{0}{x.__class__}", "$(mkdir canary)", "'; import os",
)
# fmt: on


def odd_text(rng: Rng) -> str:
    """A text that should not be there."""
    return pick(rng, _ODD_TEXTS)


def odd_value(rng: Rng) -> Any:
    """A JSON value that should not be there."""
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    values: list[Any] = [
        None,
        True,
        False,
        0,
        -1,
        1,
        1e308,
        -1e308,
        2**31,
        2**63,
        -(2**70),
        10**400,
        float("nan"),
        float("inf"),
        0.5,
        [],
        {},
        [[]],
    ]
    values += [[1, 2], [0, 0], [None], {"a": 1}, {"py/object": "os.mkdir", "py/id": 99}, deep, [[1, 1], [1, 2]], "text", 10**7, 10**9 + 1]
    return pick(rng, values) if rng.random() < 0.7 else odd_text(rng)


def harm_json(rng: Rng, data: Any) -> Any:
    """The same with one to three of its values replaced, removed, doubled, wrapped or swapped."""
    data = copy.deepcopy(data)
    for _ in range(int(rng.integers(1, 4))):
        places = [(data, key) for key in _keys(data)]
        for holder, key in places:  # grows while it is walked
            places += [(holder[key], inner) for inner in _keys(holder[key])]
        if not places:
            return odd_value(rng)
        holder, key = pick(rng, places)
        kind = pick(rng, ["replace", "replace", "remove", "double", "wrap", "swap", "rename", "number"])
        if kind == "remove":
            del holder[key]
        elif kind == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif kind == "swap":
            other, there = pick(rng, places)
            if there in _keys(other):
                holder[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(holder[key])
        elif kind == "rename" and isinstance(holder, dict):
            holder[odd_text(rng)] = holder.pop(key)
        elif kind == "number" and isinstance(holder[key], (int, float)):
            holder[key] = pick(
                rng, [-1, 0, 1, 2, 3, 10**9 - 1, 10**9, 10**12, 2**63, 1.5, -0.0, float("nan"), float("inf"), str(holder[key])]
            )
        else:
            holder[key] = odd_value(rng)
    return data


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def harm_bytes(rng: Rng, data: bytes) -> bytes:
    """The same, cut, with bytes flipped, put in, taken out or overwritten."""
    kind = pick(rng, ["cut", "flip", "flip", "flip", "insert", "overwrite", "remove", "repeat", "zero"])
    at = int(rng.integers(len(data) + 1))
    length = int(rng.integers(1, pick(rng, [3, 20, 600])))
    if kind == "cut":
        return data[:at] or b"\0"
    if kind == "flip":
        changed = bytearray(data)
        for place in rng.integers(len(data), size=int(rng.integers(1, 30))).tolist():
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == "insert":
        return data[:at] + rng.bytes(length) + data[at:]
    if kind == "remove":
        return data[:at] + data[at + length :]
    if kind == "repeat":
        return data[:at] + data[at : at + length] * int(rng.integers(2, 50)) + data[at:]
    put = bytes(length) if kind == "zero" else pick(rng, [rng.bytes(length), b"\xff" * length])
    return data[:at] + put + data[at + length :]


def harm_text(rng: Rng, text: str) -> str:
    """The same with one to three of its words or lines replaced."""
    for _ in range(int(rng.integers(1, 4))):
        separator = pick(rng, [r"(\n)", r"([\s,:\[\]{}\"]+)"])
        words = re.split(separator, text)
        words[int(rng.integers(len(words)))] = pick(rng, ["", "\n", ",", odd_text(rng), words[int(rng.integers(len(words)))]])
        text = "".join(words)
    return text


def damage_json(rng: Rng, path: Path) -> str:
    """Damage a json file; returns what was done."""
    kind = pick(rng, ["bytes", "words", "values", "values", "values", "values", "nesting", "digits"])
    text = path.read_text()
    if kind == "bytes":
        path.write_bytes(harm_bytes(rng, path.read_bytes()))
    elif kind == "words":
        path.write_text(harm_text(rng, text), errors="surrogatepass")
    elif kind == "values":
        path.write_text(json.dumps(harm_json(rng, json.loads(text))))
    elif kind == "nesting":
        depth, (opened, closed) = pick(rng, [500, 50_000, 2_000_000]), pick(rng, ["[]", ('{"a":', "}")])
        inner = opened * depth + "1" + closed * depth
        path.write_text(pick(rng, [inner, re.sub(r"\[\]|\d+", lambda _: inner, text, count=1)]))
    else:
        path.write_text(re.sub(r"\d+", "7" * pick(rng, [30, 4000, 200_000]), text, count=int(rng.integers(1, 5))))
    return kind


_YAML_TRAPS = (
    "bodyparts: !!python/object/apply:os.mkdir [canary]\n",
    "bodyparts: !!python/name:os.system\nskeleton: []\n",
    "bodyparts: !!python/object/new:os.mkdir {args: [canary]}\n",
    "a: &a [x, x]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "bodyparts: *i\n",
    "bodyparts: &a [*a]\n",
    "bodyparts: &a {<<: *a}\n",
    "bodyparts: [nose]\nvideo_sets: &a {? *a : b}\n",
    "? [nose, {a: b}]\n: 1\nbodyparts: [nose]\n",
    "bodyparts: [nose]\nskeleton: &s [[nose, nose], *s]\n",
    "bodyparts: " + "[" * 5000 + "\n",
    "bodyparts: " + "[" * 3000 + "]" * 3000 + "\n",
    "- bodyparts\n- nose\n",
    "bodyparts: {nose: 1}\n",
    "--- {bodyparts: [nose]}\n--- {bodyparts: [ear]}\n",
    "bodyparts: |\n  nose\n",
    "%YAML 9.9\n---\nbodyparts: [nose]\n",
    "!!binary bodyparts: [nose]\n",
    "bodyparts: !!set {nose}\n",
    "bodyparts: !!timestamp 2001-99-99\n",
)


def damage_yaml(rng: Rng, path: Path) -> str:
    """Damage a config.yaml; returns what was done."""
    kind = pick(rng, ["bytes", "words", "words", "values", "values", "values", "trap", "links"])
    text = path.read_text()
    if kind == "bytes":
        path.write_bytes(harm_bytes(rng, path.read_bytes()))
    elif kind == "words":
        path.write_text(harm_text(rng, text), errors="surrogatepass")
    elif kind == "values":
        settings = harm_json(rng, yaml.safe_load(text))
        path.write_text(yaml.safe_dump(settings) if rng.random() < 0.5 else json.dumps(settings))
    elif kind == "trap":
        path.write_text(pick(rng, [text, ""]) + pick(rng, _YAML_TRAPS))
    else:
        damage_folder(rng, path.parent)
    return kind


def damage_folder(rng: Rng, project: Path) -> None:
    """Put links, folders and pipes where a DeepLabCut project has files."""
    found = [file for file in (project / "labeled-data").rglob("*") if file.is_file()]
    file = pick(rng, found)
    if rng.random() < 0.8:
        file.unlink()
    else:
        file = file.with_name(pick(rng, ["img9999.png", "CollectedData_other.csv", "CollectedData_other.h5", "machinelabels-iter7.h5"]))
    kind = pick(rng, ["link to itself", "to a device", "to nothing", "to outside", "folder", "pipe", "text link", "to a loop"])
    targets = {"link to itself": file.name, "to a device": "/dev/zero", "to nothing": "nothing.png", "to outside": "/etc/passwd"}
    if kind in targets:
        file.symlink_to(targets[kind])
    elif kind == "to a loop":
        file.symlink_to("..")
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_text(pick(rng, ["/dev/zero.png", "../../../../outside/secret.png", "\0.png", "x" * 900 + ".png", file.name]))


def damage_csv(rng: Rng, path: Path) -> str:
    """Damage a table; returns what was done."""
    kind = pick(rng, ["bytes", "words", "cells", "cells", "cells", "lines", "quotes"])
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    if kind == "bytes":
        path.write_bytes(harm_bytes(rng, path.read_bytes()))
    elif kind == "words":
        path.write_text(harm_text(rng, path.read_text()), errors="surrogatepass")
    elif kind == "quotes":
        path.write_text(path.read_text().replace(",", pick(rng, [',"', '"', ";", "\t", ',"' + "x" * 200_000]), int(rng.integers(1, 4))))
    else:
        for _ in range(int(rng.integers(1, 5))):
            row = pick(rng, lines)
            place = int(rng.integers(len(row))) if row else 0
            if kind == "lines":
                lines.insert(int(rng.integers(len(lines))), pick(rng, [row, [], row[:place], row * 2, [""] * len(row)]))
            elif row:
                row[place] = pick(
                    rng, [odd_text(rng), "inf", "nan", "1e308", "99999999999", "x", "likelihood", "single", "7", "1_0", "0x1"]
                )
        with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            csv.writer(file).writerows(lines)
    return kind


def damage_pickle(rng: Rng, path: Path) -> str:
    """Damage what lies beside predictions; returns what was done."""
    kind = pick(rng, ["bytes", "bytes", "evil", "values", "memo", "length", "nesting", "link"])
    if kind == "bytes":
        path.write_bytes(harm_bytes(rng, path.read_bytes()))
    elif kind == "evil":
        path.write_bytes(
            pickle.dumps(pick(rng, [_Evil(), {"data": _Evil()}, {"data": {"cropping": True, "cropping_parameters": _Evil()}}]))
        )
    elif kind == "values":
        data = {"cropping": True, "cropping_parameters": [10, 20, 30, 40], "Scorer": "s"}
        path.write_bytes(pickle.dumps(harm_json(rng, {"data": data})))
    elif kind == "memo":
        path.write_bytes(b"\x80\x04]r" + (400_000_000).to_bytes(4, "little") + b".")
    elif kind == "length":
        path.write_bytes(b"\x80\x04" + pick(rng, [b"\x95", b"\x8e", b"\x8d"]) + (3 << 30).to_bytes(8, "little") + b"abc.")
    elif kind == "nesting":
        path.write_bytes(b"\x80\x04" + b"(" * 300_000 + b"t" * 300_000 + b".")
    else:
        path.unlink()
        path.symlink_to(pick(rng, ["/dev/zero", path.name, "/etc/passwd"]))
    return kind


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
        node.attrs.create(name, np.void(pickle.dumps(_Evil(), protocol=0)))
        node.attrs.create(name, np.bytes_(pickle.dumps(pick(rng, [_Evil(), [("a", _Evil())], ["x"] * 9]), protocol=0)))
    elif kind == "empty":
        node.attrs.create(name, h5py.Empty(pick(rng, ["f8", "S5"])))
    elif kind == "array":
        node.attrs.create(name, np.zeros(pick(rng, [(0,), (3, 3), (1,)]), pick(rng, ["f8", "S3", "u1", "?"])))
    return f"attribute {kind}"


def _harm_node(rng: Rng, file: Any, name: str) -> str:
    node = file[name]
    kinds = ["remove", "soft link", "hard link", "cycle", "external link", "group", "swap"]
    if isinstance(node, h5py.Dataset):
        kinds += ["value"] * 8 + [
            "type",
            "type",
            "shape",
            "shape",
            "odd",
            "huge",
            "bomb",
            "external data",
            "virtual",
            "empty",
            "references",
        ]
    kind = pick(rng, kinds)
    if isinstance(node, h5py.Dataset) and node.nbytes > 1 << 27:
        return "nothing"  # it is a claim already
    if kind == "value":
        return _harm_values(rng, file, name)
    data = node[()] if isinstance(node, h5py.Dataset) else None
    attributes = dict(node.attrs)
    dtype, shape = (node.dtype, node.shape) if isinstance(node, h5py.Dataset) else (np.dtype("f8"), ())
    other = pick(rng, [key for key in file if key != name.split("/")[0]] or [name])
    del node
    if kind == "swap":
        file.move(name, f"{name}~") if other not in file or other == name else (
            file.move(name, "/~"),
            file.move(other, name),
            file.move("/~", other),
        )
        return kind
    if kind == "hard link" and other == name:
        return "nothing"
    del file[name]
    if kind == "soft link":
        file[name] = h5py.SoftLink(pick(rng, [f"/{other}", f"/{name}", "/nowhere", "/"]))
    elif kind == "hard link":
        file[name] = file[other]
    elif kind == "cycle":
        file[name] = file["/"]
    elif kind == "external link":
        target = pick(rng, [Path(file.filename).name, "../outside/other.h5", "/dev/zero", "/etc/passwd", "pipe.png"])
        file[name] = h5py.ExternalLink(target, pick(rng, ["/", f"/{name}", "big"]))
    elif kind == "group":
        file.create_group(name)
    elif kind == "type":
        kinds_of_data = [
            "f8",
            "i8",
            "u1",
            "S4",
            "?",
            "f2",
            "c16",
            "V3",
            h5py.string_dtype(),
            h5py.vlen_dtype("u1"),
            [("a", "f8"), ("frame_id", "S2")],
        ]
        wanted = np.dtype(pick(rng, kinds_of_data))
        made = np.zeros(shape, wanted) if wanted.kind != "O" else np.full(shape, b"x" if wanted == h5py.string_dtype() else None)
        file.create_dataset(name, shape=shape, dtype=wanted) if wanted.kind == "O" else file.create_dataset(name, data=made)
    elif kind == "shape":
        shapes = [
            (),
            (0,),
            (1,),
            (*shape, 1),
            (*shape, 0),
            shape[1:],
            shape[::-1],
            tuple(n + 1 for n in shape),
            tuple(2 * n for n in shape),
        ]
        shapes += [tuple(max(0, n - 1) for n in shape)]
        chosen = pick(rng, shapes)
        plain = not dtype.hasobject
        file.create_dataset(name, data=np.resize(np.asarray(data), chosen)) if plain else file.create_dataset(
            name, shape=chosen, dtype=dtype
        )
    elif kind == "odd":
        _store(lambda odd: file.create_dataset(name, data=odd), odd_value(rng))
    elif kind == "huge":  # claims that cost the file nothing
        length = pick(rng, [1 << 28, 1 << 29, 1 << 40, (1 << 62) // max(1, dtype.itemsize)])
        axes = (length, *shape[1:]) if rng.random() < 0.5 else (length,)
        try:
            file.create_dataset(name, shape=axes, dtype=dtype, chunks=(1 << 12,) + tuple(max(1, n) for n in axes[1:]))
        except ValueError:
            file.create_dataset(name, shape=(length,), dtype="u1", chunks=(1 << 20,))
    elif kind == "bomb":  # a megabyte that opens into a gigabyte
        made = file.create_dataset(name, shape=(1 << 30,), dtype="u1", chunks=(1 << 26,), compression="gzip")
        piece = zlib.compress(bytes(1 << 26), 9)
        for start in range(0, 1 << 30, 1 << 26):
            made.id.write_direct_chunk((start,), piece)
    elif kind == "external data":
        file.create_dataset(name, shape=(64,), dtype="u1", external=[(pick(rng, ["/etc/passwd", "/dev/zero", "nowhere"]), 0, 64)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape=(1 << 28,), dtype="f8")
        layout[:16] = h5py.VirtualSource("../outside/other.h5", "big", shape=(16,))
        file.create_virtual_dataset(name, layout)
    elif kind == "empty":
        file.create_dataset(name, data=h5py.Empty(pick(rng, ["f8", "S5"])))
    elif kind == "references":
        file.create_dataset(name, data=np.array([file.ref] * 3, dtype=h5py.ref_dtype))
    if kind in ("type", "shape", "odd", "huge", "bomb", "empty") and name in file:
        file[name].attrs.update(attributes)
    return kind


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


DAMAGE = {".json": damage_json, ".yaml": damage_yaml, ".csv": damage_csv, ".pickle": damage_pickle, ".h5": damage_h5, ".slp": damage_h5}

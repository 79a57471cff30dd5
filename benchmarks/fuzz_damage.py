"""What `fuzz_formats` does to text files and pickles: each function damages one kind, as its random numbers say, and says in a word how.

The values, texts and bytes that `fuzz_damage_hdf5` puts into files come from here, too.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Rng = np.random.Generator

CANARY = "canary"  # what hostile content tries to make, in the case's folder


class Evil:
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
        path.write_bytes(pickle.dumps(pick(rng, [Evil(), {"data": Evil()}, {"data": {"cropping": True, "cropping_parameters": Evil()}}])))
    elif kind == "values":
        data = {"cropping": True, "cropping_parameters": [10, 20, 30, 40], "Scorer": "s"}
        path.write_bytes(pickle.dumps(harm_json(rng, {"data": data})))
    elif kind == "memo":
        path.write_bytes(b"\x80\x04]r" + (400_000_000).to_bytes(4, "little") + b".")
    elif kind == "length":
        path.write_bytes(b"\x80\x04" + pick(rng, [b"\x95", b"\x8e", b"\x8d"]) + (3 << 30).to_bytes(8, "little") + b"abc.")
    elif kind == "nesting":
        depth = pick(rng, [1000, 1000, 100_000])
        path.write_bytes(b"\x80\x04" + b"(" * depth + b"t" * depth + b".")
    else:
        path.unlink()
        path.symlink_to(pick(rng, ["/dev/zero", path.name, "/etc/passwd"]))
    return kind

"""Damaged and hostile files of every native format: each must be read, or refused in one sentence that names the file.

    python benchmarks/fuzz_formats.py                        # 2,000 cases a format; exit code 1 if one fails
    python benchmarks/fuzz_formats.py --formats coco --case 17 --keep kept    # one case again, with its files

Small projects are made, and in each case one file of one of them is changed: cut, flipped, with values, keys, types, shapes and links
replaced by others, some of them traps. The project is then read, and converted to some other format where it still can be. A case fails if

* anything is raised but a `FormatError` of one line that names the file, or the labels are not what the internal format promises;
* it takes longer than ``--timeout`` seconds or more than ``--memory`` MB above what the process had before, or the process dies;
* anything outside the output folder is written, a pickle imports something, a program or a connection is started;
* an output is there after a refusal, or cannot be read after none.

Each case runs in a process of its own. Case and seed together give the same damage again; the result file lists every failure.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import pickle
import platform
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from converters import (
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    convert,
    read_project,
    write_predictions,
    write_project,
)

Rng = np.random.Generator

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (1, 2)), ((1, 2),), "mouse")
TARGETS = ("out.slp", "out.pkg.slp", "out.json", "out.analysis.h5", "out.h5", "out.csv", "out-dlc")
CANARY = "canary"  # what hostile content tries to make, in the case's folder
ADDRESS_SPACE = 12 << 30  # a claim of more than this fails at once, as on a small machine; less is watched as it is used


# --- whole projects ---


@dataclass(frozen=True)
class Seed:
    """A project in a folder of its own; ``victim`` is the file to damage, by the function of its kind."""

    folder: Path
    project: str
    victim: str
    annotations: str | None = None


def make_seeds(root: Path) -> dict[str, list[Seed]]:
    """By format, small projects to damage."""
    import pandas as pd
    from PIL import Image

    def images(folder: Path) -> VideoSource:
        folder.mkdir(parents=True)
        paths = tuple(folder / f"img{number:04d}.png" for number in range(4))
        for number, path in enumerate(paths):
            Image.fromarray(np.full((12, 16, 3), 40 * number, np.uint8)).save(path)
        return VideoSource(paths)

    points = np.array([[1.5, 2.0], [8.0, np.nan], [12.0, 10.25]])
    person = [Instance(points, "one"), Instance(points[::-1] + 1, None)]
    model = [PredictedInstance(points, "one", 0.75, np.array([0.5, 0, 1])), PredictedInstance(points - 1, None, 0.5)]
    labelled = [LabeledFrame(0, 0, person), LabeledFrame(0, 2, person[:1])]
    mixed = [LabeledFrame(0, 0, person, model), LabeledFrame(0, 1, [], model), LabeledFrame(0, 3, negative=True)]
    predicted = [LabeledFrame(0, 0, [], model), LabeledFrame(0, 2, [], model[:1])]
    seeds: dict[str, list[Seed]] = {}

    def add(name: str, write: Callable[[Path, VideoSource], Any], project: str, victim: str = "", annotations: str | None = None) -> None:
        folder = root / f"{name}{len(seeds.get(name, []))}"
        write(folder, images(folder / "clip"))
        victims = sorted(folder.glob(victim or project))
        seeds.setdefault(name, []).append(Seed(folder, project, str(victims[0].relative_to(folder)), annotations))

    def project(name: str, frames: list[LabeledFrame]) -> Callable[[Path, VideoSource], Any]:
        return lambda folder, video: write_project(folder / name, Labels(SKELETON, [video], frames))

    def predictions(name: str, video: bool = True) -> Callable[[Path, VideoSource], Any]:
        return lambda folder, v: write_predictions(
            folder / name, SKELETON, [v if video else VideoSource((folder / "clip.mp4",))], predicted, {"by": "fuzz"}
        )

    def table(folder: Path, _: VideoSource) -> None:
        names = [("DLC_net", "one", k, c) for k in SKELETON.keypoints for c in ("x", "y", "likelihood")]
        columns = pd.MultiIndex.from_tuples(names, names=["scorer", "individuals", "bodyparts", "coords"])
        frame = pd.DataFrame(np.arange(27.0).reshape(3, 9), columns=columns)
        frame.to_hdf(folder / "clipDLC_net_el.h5", key="tracks", format="table")

    def dlc(drop: str) -> Callable[[Path, VideoSource], Any]:
        def write(folder: Path, video: VideoSource) -> None:
            write_project(folder / "dlc", Labels(SKELETON, [video], labelled))
            for file in (folder / "dlc").rglob(drop):
                file.unlink()

        return write

    def results(folder: Path, video: VideoSource) -> None:
        write_project(folder / "truth.json", Labels(SKELETON, [video], labelled))
        write_predictions(folder / "results.json", SKELETON, [video], predicted, {}, [folder / "truth.json"])

    add("slp", project("project.slp", mixed), "project.slp")
    add("slp", predictions("project.slp", video=False), "project.slp")
    add("pkg.slp", project("project.pkg.slp", mixed), "project.pkg.slp")
    add("analysis.h5", predictions("clip.analysis.h5"), "clip.analysis.h5")
    add("analysis.h5", project("clip.analysis.h5", mixed), "clip.analysis.h5")
    add("coco", project("labels.json", mixed), "labels.json")
    add("coco results", results, "results.json", annotations="truth.json")
    add("coco results", results, "results.json", "truth.json", annotations="truth.json")
    add("dlc config", dlc(".none"), "dlc/config.yaml")
    add("dlc h5", dlc("*.csv"), "dlc/config.yaml", "dlc/labeled-data/*/*.h5")
    add("dlc csv", dlc("*.h5"), "dlc/config.yaml", "dlc/labeled-data/*/*.csv")
    stem = "clipDLC_net_el"
    add("dlc predictions h5", predictions(f"{stem}.h5"), f"{stem}.h5")
    add("dlc predictions h5", table, f"{stem}.h5")
    add("dlc predictions h5", predictions(f"{stem}.h5", video=False), f"{stem}.h5", "*_meta.pickle")
    add("dlc predictions csv", predictions(f"{stem}.csv"), f"{stem}.csv")
    add("dlc predictions csv", predictions(f"{stem}.csv", video=False), f"{stem}.csv", "*_meta.pickle")
    return seeds


# --- damage ---


class _Evil:
    """Unpickling it makes the folder ``CANARY``, in the current one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def pick(rng: Rng, choices: Any) -> Any:
    """One of these."""
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


def odd_text(rng: Rng) -> str:
    """A text that should not be there."""
    return pick(
        rng,
        [
            "",
            " ",
            "\0",
            "a\nb",
            "nose",
            "\ud800",
            "é\u202e𝔘",
            "x" * 300,
            "n" * 100_000,
            ".",
            "..",
            "/",
            "../../outside/secret.png",
            "/etc/passwd",
            "C:\\videos\\clip.mp4",
            "\\\\server\\share\\clip.mp4",
            "/dev/zero",
            "clip/img0001.png",
            "link.png",
            "pipe.png",
            "zero.png",
            "loop/loop/loop/x.png",
            "null",
            "nan",
            "1e999",
            "-1",
            "9" * 5000,
            "٣",
            "²",
            "video0/video",
            "video99999999999/video",
            "!!python/object/apply:os.mkdir [canary]",
            "%s%n{0}{x.__class__}",
            "$(mkdir canary)",
            "'; import os",
        ],
    )


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


# --- one case ---


def prepare(seeds: list[Seed], rng: Rng, folder: Path) -> tuple[Seed, str]:
    """A damaged copy of one of the projects, and things for its links to point at; says what was done."""
    seed = pick(rng, seeds)
    shutil.copytree(seed.folder, folder / "in", copy_function=os.link)
    (folder / "out").mkdir()
    (folder / "outside").mkdir()
    os.link(seed.folder / "clip" / "img0000.png", folder / "outside" / "secret.png")
    with h5py.File(folder / "outside" / "other.h5", "w") as file:
        file.create_dataset("big", shape=(1 << 29,), dtype="f8", chunks=(1 << 20,))
    (folder / "in" / "link.png").symlink_to("../outside/secret.png")
    (folder / "in" / "zero.png").symlink_to("/dev/zero")
    (folder / "in" / "loop").symlink_to(".")
    os.mkfifo(folder / "in" / "pipe.png")
    victim = folder / "in" / seed.victim
    content = victim.read_bytes()
    victim.unlink()  # it was a link to the whole project
    victim.write_bytes(content)
    return seed, f"{victim.name}: {DAMAGE[victim.suffix](rng, victim)}"


def attempt(seed: Seed, target: str, folder: Path) -> str:
    """Read, and convert where that is possible. Returns "read", "refused" or what is wrong."""
    source, out = folder / "in" / seed.project, folder / "out" / target
    options: dict[str, Any] = {} if seed.annotations is None else {"annotations": folder / "in" / seed.annotations}
    outcome = "converted"
    try:
        problems = check(read_project(source, require_videos=False, **options))
        if problems:
            return problems
    except FormatError as error:
        outcome = "refused"
        if told := badly_told(error, folder):
            return told
    try:
        convert(source, out, **options)
    except FormatError as error:
        if told := badly_told(error, folder):
            return told
        if left := [file.name for file in (folder / "out").iterdir()]:
            return f"left {', '.join(left)} after a refusal ({error})"
        return "refused" if outcome == "refused" else "read, not converted"
    if outcome == "refused":
        return "read_project refuses what convert takes"
    if target == "out.json" and isinstance(json.loads(out.read_text()), list):
        return outcome
    if problems := check(read_project(out, require_videos=False)):
        return f"written: {problems}"
    return outcome


def badly_told(error: FormatError, folder: Path) -> str:
    """What is wrong with a message, if anything."""
    message = str(error)
    if len(message.splitlines()) != 1 or re.search(r"[\0-\x1f\ud800-\udfff]", message) or len(message) > 2000:
        return f"a message of {len(message)} characters and {len(message.splitlines())} lines: {message[:300]!r}"
    return "" if str(folder) in message or folder.name in message else f"a message that names no file: {message}"


def check(labels: Labels) -> str:
    """What is wrong with labels, if anything."""
    names = [*labels.skeleton.keypoints, *(i.track for f in labels.frames for i in (*f.instances, *f.predicted) if i.track is not None)]
    if not all(isinstance(name, str) for name in names):
        return f"names that are no texts: {names}"
    if not all(isinstance(path, Path) and path.is_absolute() for video in labels.videos for path in video.paths):
        return "a video without an absolute path"
    if len({(frame.video, frame.index) for frame in labels.frames}) < len(labels.frames):
        return "two entries for one frame"
    for frame in labels.frames:
        if not all(type(number) is int for number in (frame.video, frame.index)) or not 0 <= frame.video < len(labels.videos):
            return f"a frame numbered {frame.video!r}, {frame.index!r}"
        for instance in (*frame.instances, *frame.predicted):
            if instance.points.shape != (len(labels.skeleton), 2) or np.isinf(instance.points).any():
                return f"points {instance.points}"
            if isinstance(instance, PredictedInstance) and not (np.isfinite(instance.score) and np.isfinite(instance.point_scores).all()):
                return f"a score {instance.score}, points' {instance.point_scores}"
    return ""


def watch(folder: Path, seen: list[str]) -> None:
    """Note whatever this process does outside the output folder. It cannot be taken back."""
    inside = (str(folder / "out"), "/dev/null")
    places = {
        "os.remove": (0,),
        "os.rename": (0, 1),
        "os.mkdir": (0,),
        "os.rmdir": (0,),
        "os.link": (1,),
        "os.symlink": (1,),
        "os.truncate": (0,),
    }
    places |= {"os.chmod": (0,), "os.chown": (0,), "shutil.move": (0, 1), "shutil.rmtree": (0,), "os.utime": (0,)}
    started = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class", "ctypes.dlopen")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        written: list[Any] = []
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            written = [arguments[0]]
        elif event in places:
            written = [_place(arguments, place) for place in places[event]]
        elif event.startswith(started):
            seen.append(f"{event}{arguments}")
        for path in written:
            if not isinstance(path, int) and not os.path.abspath(os.fsdecode(path)).startswith(inside):
                seen.append(f"{event} {path}")

    sys.addaudithook(note)


def _place(arguments: tuple[Any, ...], place: int) -> Any:
    """A path that an audited call was given; those that removing a whole folder uses are relative to an open one."""
    path, last = arguments[place], arguments[-1]
    return (
        os.path.join(os.readlink(f"/proc/self/fd/{last}"), os.fsdecode(path))
        if isinstance(last, int) and 0 < last < 1000 and len(arguments) == 2
        else path
    )


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies in a case's folder, but for the output."""
    found = {}
    for place, folders, files in os.walk(folder):
        if Path(place) == folder and "out" in folders:
            folders.remove("out")
        for name in (*folders, *files):
            state = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = state.st_size if name in files else 0, state.st_mtime_ns if name in files else 0
    return found


def child(seeds: list[Seed], rng: Rng, folder: Path, pipe: int, timeout: float) -> None:
    """Run one case; what comes of it is written to ``pipe``."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    seen: list[str] = []
    try:
        seed, done = prepare(seeds, rng, folder)
    except Exception:
        os.write(pipe, json.dumps([traceback.format_exc()[-1500:]]).encode() + b"\n")
        raise
    target = pick(rng, TARGETS)
    os.write(pipe, json.dumps([done, target]).encode() + b"\n")
    os.chdir(folder)
    before = listed(folder)
    watch(folder, seen)
    signal.setitimer(signal.ITIMER_PROF, timeout)  # ends the process, also inside a library
    try:
        outcome = attempt(seed, target, folder)
    except BaseException as error:
        last = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)][-5:]
        outcome = f"{type(error).__name__} at {' '.join(last)}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    if changed := [path for path, state in {**before, **listed(folder)}.items() if before.get(path) != state or not os.path.lexists(path)]:
        outcome = f"changed {changed[0]} ({outcome})"
    if seen:
        outcome = f"did {seen[0]} ({outcome})"
    os.write(pipe, outcome.encode(errors="replace")[:600])


def run_case(seeds: list[Seed], name: str, number: int, folder: Path, arguments: argparse.Namespace) -> tuple[str, str, float]:
    """What was done to the project, what came of it, and the megabytes that it took."""
    rng = np.random.default_rng([arguments.seed, zlib.crc32(name.encode()), number])
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork, beside threads that sleep
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(receive)
            child(seeds, rng, folder, send, arguments.timeout)
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    at_first, most, told, too_large, late = _resident(pid), 0.0, b"", False, False
    deadline = time.monotonic() + 12 * arguments.timeout  # the child's own clock counts the time that it works, not that it waits
    while True:
        ready, _, _ = select.select([receive], [], [], 0.02)
        if ready:
            piece = os.read(receive, 65536)
            told += piece
            if not piece:
                break
        most = max(most, _resident(pid) - at_first)
        if most > arguments.memory or time.monotonic() > deadline:
            too_large, late = most > arguments.memory, most <= arguments.memory
            os.kill(pid, signal.SIGKILL)
            break
    os.close(receive)
    _, status = os.waitpid(pid, 0)
    first, _, outcome = told.decode(errors="replace").partition("\n")
    done = " -> ".join(json.loads(first)) if first else "damage"
    if too_large:
        outcome = f"took more than {arguments.memory} MB"
    elif late:
        outcome = f"waited for more than {12 * arguments.timeout} s"
    elif os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status)).name
        outcome = f"took more than {arguments.timeout} s" if ended == "SIGPROF" else f"ended by {ended}"
    elif not first or status:
        outcome = "the fuzzer itself failed while it did its damage"
    return done, outcome, most


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except (OSError, IndexError):
        return 0.0


# --- all cases ---


FINE = ("converted", "refused", "read, not converted")


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the cases; by format how many were read and refused, and every failure."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        root = Path(place).resolve()
        all_seeds = make_seeds(root / "seeds")
        for name in arguments.formats or all_seeds:
            seeds = all_seeds[name]
            for number, seed in enumerate(seeds):  # whole projects must convert; this also imports all that the cases need
                for target in TARGETS:
                    folder = root / f"whole{number}{target}"
                    (folder / "out").mkdir(parents=True)
                    shutil.copytree(seed.folder, folder / "in")
                    if (outcome := attempt(seed, target, folder)) not in FINE[::2]:
                        raise RuntimeError(f"{name}: a whole project is {outcome} on the way to {target}")
                    shutil.rmtree(folder)
            counts: Counter[str] = Counter()
            failures = []
            started, most = time.perf_counter(), 0.0
            for number in [arguments.case] if arguments.case is not None else range(arguments.start, arguments.start + arguments.cases):
                folder = root / f"case{number}"
                folder.mkdir()
                done, outcome, memory = run_case(seeds, name, number, folder, arguments)
                most = max(most, memory)
                counts[outcome if outcome in FINE else "failed"] += 1
                if outcome not in FINE:
                    failures.append({"case": number, "damage": done, "outcome": outcome.replace(str(folder), "CASE")})
                    print(f"{name}, case {number}: {done}: {failures[-1]['outcome']}", flush=True)
                if arguments.keep and (outcome not in FINE or arguments.case is not None):
                    kept = arguments.keep / f"{name.replace(' ', '-')}-{number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.move(folder, kept)
                shutil.rmtree(folder, ignore_errors=True)
            rows[name] = {**{kind: counts[kind] for kind in (*FINE, "failed")}, "cases": counts.total()}
            rows[name] |= {"largest_mb": round(most), "seconds": round(time.perf_counter() - started), "failures": failures}
            print(line(name, rows[name]), flush=True)
    return rows


def line(name: str, row: dict[str, Any]) -> str:
    """A format's line of the table."""
    return f"{name:20}" + "".join(f"{row[key]:>{width}}" for key, width in COLUMNS.items())


def joined(before: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A format's earlier cases and these."""
    return {key: max(value, before[key]) if key == "largest_mb" else before[key] + value for key, value in row.items()}


COLUMNS = {"cases": 7, "converted": 11, "read, not converted": 21, "refused": 9, "failed": 8, "largest_mb": 12, "seconds": 9}


def machine() -> dict[str, object]:
    """Where and with what the figures were made."""
    packages = ("numpy", "h5py", "sleap-io", "pandas", "PyYAML")
    return {"platform": platform.platform(), "python": platform.python_version(), "versions": {p: version(p) for p in packages}}


def main() -> int:
    """Run, print a table, write the result; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", metavar="NAME", help="only these, such as: slp coco 'dlc h5'")
    parser.add_argument("--cases", type=int, default=2000, help="for each format (2000)")
    parser.add_argument("--start", type=int, default=0, help="number of the first case (0); later ones are added to the output")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds of work for a case (10); of waiting, twelve times as long")
    parser.add_argument("--memory", type=int, default=700, help="MB for a case (700)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of failed cases there")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "fuzz_formats.json")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    rows = fuzz(arguments)
    if arguments.case is None:
        kept = {"command": "python benchmarks/fuzz_formats.py", "seed": arguments.seed, "machine": machine(), "formats": {}}
        if arguments.output.exists() and (arguments.formats or arguments.start):
            kept["formats"] = json.loads(arguments.output.read_text())["formats"]
        for name, row in rows.items():
            before = kept["formats"].get(name) if arguments.start else None
            kept["formats"][name] = joined(before, row) if before else row
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(kept, indent=1) + "\n")
    print("\n" + " " * 20 + "".join(f"{key.replace('_', ' '):>{width}}" for key, width in COLUMNS.items()))
    for name, row in rows.items():
        print(line(name, row))
    return int(any(row["failed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())

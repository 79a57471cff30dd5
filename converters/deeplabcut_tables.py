"""The tables of DeepLabCut (``.h5`` and ``.csv``): rows of frames, columns of (scorer, individual, bodypart, coordinate).

Traps of the format:

* pandas keeps what is not a number or a text as a pickle, which runs code when it is read: tables are read with h5py, object columns are
  refused, and the one pickled thing that is needed (the columns in pandas' "table" layout) is read without unpickling it;
* what pandas 3 writes in its "table" layout, pandas 2 (and with it DeepLabCut) cannot read: the "fixed" layout is written, in pieces, so
  that memory does not grow with the length of the video;
* DeepLabCut reads without a key, so a file holds one table; a second one may come from napari;
* a row is one text (``labeled-data/video/img.png``, older), three texts, or a number; a Windows user's has backslashes;
* columns have 3 levels for one animal and 4 for several; keypoints that exist once in a picture belong to the individual ``single``.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.hdf5 import check_hdf5, check_space
from converters.labels import IMAGE_SUFFIXES, FormatError, Instance, PredictedInstance
from converters.pickled import plain

UNIQUE = "single"  # the individual of keypoints that exist once in a picture
KEY = "df_with_missing"
_LEVELS = ("scorer", "individuals", "bodyparts", "coords")
_COORDS = ("x", "y", "likelihood")


@dataclass(frozen=True)
class Column:
    """What one column holds; ``individual`` is None where the table has no such level."""

    scorer: str
    individual: str | None
    bodypart: str
    coord: str


@dataclass(eq=False)
class Table:
    """``values``: (rows, columns) float64. ``rows``: frame numbers, or the images' paths with slashes. ``attributes``: ours, if any."""

    columns: list[Column]
    rows: list[int | str]
    values: np.ndarray
    attributes: dict[str, str]

    def animals(self, keypoints: Sequence[str]) -> dict[str | None, np.ndarray]:
        """By individual: (rows, keypoints, 3) x, y, likelihood; NaN where the table says nothing."""
        places = {name: place for place, name in enumerate(keypoints)}
        found: dict[str | None, np.ndarray] = {}
        for number, column in enumerate(self.columns):
            if column.bodypart in places and column.coord in _COORDS:
                if column.individual not in found:
                    found[column.individual] = np.full((len(self.rows), len(keypoints), 3), np.nan)
                found[column.individual][:, places[column.bodypart], _COORDS.index(column.coord)] = self.values[:, number]
        return found

    def of_scorer(self, scorer: str) -> Table:
        """The columns of one scorer."""
        kept = [number for number, column in enumerate(self.columns) if column.scorer == scorer]
        return Table([self.columns[number] for number in kept], self.rows, self.values[:, kept], self.attributes)


def read_table(path: Path) -> Table:
    """Read a ``.h5`` or ``.csv`` table; nothing in it is executed. FormatError if it is damaged or none of DeepLabCut's."""
    if not path.is_file():
        raise FormatError(f"{path} is no file, or a link to nothing; copy it from where the project was made.")
    try:
        table = _read_csv(path) if path.suffix.lower() == ".csv" else _read_h5(path)
    except FormatError:
        raise
    except Exception as error:  # h5py and csv raise what they meet: OSError, KeyError, ValueError, csv.Error, MemoryError
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise FormatError(f"{path} is no table of DeepLabCut's, or is damaged ({cause}); save it again from DeepLabCut.") from error
    if not any(column.coord == "x" for column in table.columns):
        raise FormatError(f"{path} is no table of DeepLabCut's: no column is called x; name labels or predictions of DeepLabCut.")
    return table


# --- reading HDF5 ---


def _read_h5(path: Path) -> Table:
    import h5py

    with h5py.File(path, "r") as file:
        check_hdf5(file)
        groups = {
            name: group for name, group in file.items() if isinstance(group, h5py.Group) and _text(group.attrs.get("pandas_type", "")) != ""
        }
        if not groups:
            raise ValueError("it holds no table of pandas")
        group = groups.get(KEY) or groups.get("tracks") or next(iter(groups.values()))
        read = _read_appendable if _text(group.attrs["pandas_type"]) == "frame_table" else _read_fixed
        columns, names, rows, values = read(group)
        attributes = {name[4:]: node[()].tobytes().decode() for name, node in group.items() if name.startswith("smp_")}
    if len(values) != len(rows) or values.shape[1] != len(columns):
        raise ValueError(f"{values.shape} values for {len(rows)} rows and {len(columns)} columns")
    return Table([_column(column, names) for column in columns], [_row(row) for row in rows], values, attributes)


def _read_fixed(group: Any) -> tuple[list[tuple], list[str], list[tuple], np.ndarray]:
    columns, names = _axis(group, "axis0")
    rows, _ = _axis(group, "axis1")
    places = {column: place for place, column in enumerate(columns)}
    blocks = []
    for block in range(int(group.attrs["nblocks"])):
        items, _ = _axis(group, f"block{block}_items")
        stored = group[f"block{block}_values"]
        if "shape" not in stored.attrs:  # pandas marks what is empty so, and stores something else
            _check_numbers(stored, (len(rows), len(items)))
            blocks.append(([places[item] for item in items], stored))
    if rows and sum(len(numbers) for numbers, _ in blocks) != len(columns):  # before a table is made that nothing in the file fills
        raise ValueError(f"its blocks do not hold the {len(columns)} columns that it names")
    values = np.full((len(rows), len(columns)), np.nan)
    for numbers, stored in blocks:
        values[:, numbers] = stored[()]
    return columns, names, rows, values


def _read_appendable(group: Any) -> tuple[list[tuple], list[str], list[tuple], np.ndarray]:
    stored = group["table"]
    if stored.dtype.names is None or stored.dtype["index"].kind not in "SUiu":
        raise ValueError("its rows are not named by texts or numbers")
    blocks = [name for name in stored.dtype.names if name.startswith("values_block_")]
    for name in blocks:
        if stored.dtype[name].base.kind not in "fiu":
            raise ValueError(f"{name} holds other things than numbers")
    content = stored[()]
    columns = [tuple(map(str, column)) for name in blocks for column in plain(bytes(stored.attrs[f"{name}_kind"]))]
    rows = [(value,) for value in _plain(content["index"])]
    values = [np.asarray(content[name], dtype=np.float64).reshape(len(rows), -1) for name in blocks]
    return columns, [], rows, np.concatenate(values, axis=1)


def _axis(group: Any, axis: str) -> tuple[list[tuple], list[str]]:
    """The labels along an axis, a tuple each, and the names of its levels."""
    if _text(group.attrs[f"{axis}_variety"]) != "multi":
        return [(value,) for value in _level(group[axis])], []
    levels, codes, names = [], [], []
    for number in range(int(group.attrs[f"{axis}_nlevels"])):
        node = group[f"{axis}_level{number}"]
        levels.append(_level(node))
        codes.append(np.asarray(group[f"{axis}_label{number}"][()], dtype=np.int64))
        names.append(_text(node.attrs.get("name", "")))
    return [
        tuple(level[code] if code >= 0 else "" for level, code in zip(levels, row, strict=True)) for row in zip(*codes, strict=True)
    ], names


def _level(node: Any) -> list[str | int]:
    if "shape" in node.attrs:
        return []
    if node.dtype.kind not in "SUiu":
        raise ValueError(f"{node.name} holds other things than texts and numbers")
    return _plain(node[()])


def _plain(values: np.ndarray) -> list[str | int]:
    return [int(value) if isinstance(value, np.integer) else _text(value) for value in values.ravel()]


def _check_numbers(stored: Any, shape: tuple[int, int]) -> None:
    if stored.dtype.kind not in "fiu":
        raise ValueError(f"{stored.name} holds other things than numbers")
    if stored.shape != shape:
        raise ValueError(f"{stored.name} has shape {stored.shape}, its rows and columns {shape}")


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # np.bytes_ too
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    return value if isinstance(value, str) else ""


# --- reading CSV ---


def _read_csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file)
        header: dict[str, list[str]] = {}
        first: list[str] = []
        for first in lines:
            if not first or first[0] not in _LEVELS or len(header) == len(_LEVELS):
                break
            header[first[0]] = first[1:]
            first = []
        if not {"scorer", "bodyparts", "coords"} <= set(header):
            raise ValueError(f"its first lines are not {', '.join(_LEVELS)}")
        coords = header["coords"]
        unnamed = next((number for number, cell in enumerate(coords) if cell), len(coords))  # index cells after the first
        names = list(header)
        columns = list(zip(*(header[name][unnamed:] for name in names), strict=True))
        rows, values = [], []
        for cells in itertools.chain([first], lines):
            index, numbers = cells[: unnamed + 1], cells[unnamed + 1 :]
            if not cells or _names_the_index(index, numbers):
                continue
            if len(numbers) != len(columns):
                raise ValueError(f"line {lines.line_num} has {len(numbers)} values for {len(columns)} columns")
            rows.append(_row(tuple(index)))
            values.append([float(cell) if cell.strip() else math.nan for cell in numbers])
    return Table([_column(column, names) for column in columns], rows, np.array(values).reshape(len(rows), len(columns)), {})


def _names_the_index(index: list[str], numbers: list[str]) -> bool:
    """Whether this is the line in which pandas writes what the index is called."""
    last = index[-1].strip()
    return not any(numbers) and not last.isdecimal() and Path(last).suffix.lower() not in IMAGE_SUFFIXES


def _column(labels: tuple, names: Sequence[str]) -> Column:
    if not set(names) >= {"scorer", "bodyparts", "coords"}:
        names = _LEVELS if len(labels) == 4 else [name for name in _LEVELS if name != "individuals"]
    if len(labels) != len(names):
        raise ValueError(f"its columns have {len(labels)} levels; 3 or 4 are needed")
    level = dict(zip(names, map(str, labels), strict=True))
    return Column(level["scorer"], level.get("individuals"), level["bodyparts"], level["coords"])


def _row(labels: tuple) -> int | str:
    if len(labels) == 1 and (isinstance(labels[0], int) or labels[0].strip().isdecimal()):
        return int(labels[0])
    return "/".join(str(label) for label in labels).replace("\\", "/")


# --- writing ---


def columns_of(scorer: str, individuals: Sequence[str] | None, keypoints: Sequence[str], coords: Sequence[str]) -> list[Column]:
    """Columns in DeepLabCut's order; ``individuals`` is None for projects of one animal."""
    return [Column(scorer, i, k, c) for i in (individuals if individuals is not None else [None]) for k in keypoints for c in coords]


def write_h5(
    path: Path, columns: list[Column], rows: Sequence[tuple[str, ...]] | range, pieces: Iterable[np.ndarray], attributes: dict[str, str]
) -> None:
    """Write the "fixed" layout of pandas, which pandas 2 and 3 read.

    Args:
        path: replaced where it exists.
        columns: of one kind, with an individual or without.
        rows: three texts for each image, or frame numbers from 0.
        pieces: arrays of the table's next rows; together as many as ``rows``.
        attributes: kept beside the table, where pandas does not look.
    """
    import h5py

    names, labels = _labels(columns)
    with h5py.File(path, "w") as file:
        _describe(file, CLASS="GROUP", PYTABLES_FORMAT_VERSION="2.1", VERSION="1.0")
        group = file.create_group(KEY)
        _describe(group, CLASS="GROUP", VERSION="1.0", pandas_type="frame", pandas_version="0.15.2", encoding="UTF-8", errors="strict")
        group.attrs.update({"ndim": np.int64(2), "nblocks": np.int64(1)})
        for name, text in attributes.items():
            _write_array(group, f"smp_{name}", np.frombuffer(text.encode(), dtype=np.uint8))
        for axis in ("axis0", "block0_items"):
            _write_multi(group, axis, labels, names)
        if isinstance(rows, range):
            _describe(group, axis1_variety="regular")
            _describe(_write_array(group, "axis1", np.arange(rows.start, rows.stop)), kind="integer")
        else:
            _write_multi(group, "axis1", rows, [None] * 3)
        values = _write_array(group, "block0_values", shape=(len(rows), len(columns)))
        start = 0
        for piece in pieces:
            check_space(path)
            values[start : start + len(piece)] = piece
            start += len(piece)


def _labels(columns: list[Column]) -> tuple[list[str], list[tuple[str, ...]]]:
    if columns[0].individual is None:
        return [name for name in _LEVELS if name != "individuals"], [(c.scorer, c.bodypart, c.coord) for c in columns]
    return list(_LEVELS), [(c.scorer, str(c.individual), c.bodypart, c.coord) for c in columns]


def _write_multi(group: Any, axis: str, labels: Sequence[tuple[str, ...]], names: Sequence[str | None]) -> None:
    _describe(group, **{f"{axis}_variety": "multi"})
    group.attrs[f"{axis}_nlevels"] = np.int64(len(names))
    for number, name in enumerate(names):
        texts = [label[number] for label in labels]
        level = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        node = _write_array(group, f"{axis}_level{number}", np.array([text.encode() for text in level], dtype=np.bytes_))
        _describe(node, kind="string")
        if name is not None:
            _describe(node, name=name)
        else:
            node.attrs["name"] = np.bytes_("N.")  # None, pickled: pandas asks for it
        _write_array(group, f"{axis}_label{number}", np.array([level[text] for text in texts], dtype=np.int32))


def _write_array(group: Any, name: str, data: np.ndarray | None = None, shape: tuple[int, ...] | None = None) -> Any:
    node = group.create_dataset(name, data=data, shape=shape, dtype=np.float64 if data is None else None)
    _describe(node, CLASS="ARRAY", VERSION="2.4", FLAVOR="numpy")
    node.attrs["transposed"] = np.uint8(1)
    return node


def _describe(node: Any, **texts: str) -> None:
    """Set attributes as PyTables does, which takes ASCII strings for bytes."""
    import h5py

    for name, text in texts.items():
        node.attrs.create(name, np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))


def write_csv(path: Path, columns: list[Column], rows: Sequence[tuple[str, ...]] | range, pieces: Iterable[np.ndarray]) -> None:
    """Write the table as pandas' ``to_csv`` does; arguments as for `write_h5`."""
    names, labels = _labels(columns)
    blank = [""] * (0 if isinstance(rows, range) else 2)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        for number, name in enumerate(names):
            lines.writerow([name, *blank, *(label[number] for label in labels)])
        index = iter(rows)
        for piece in pieces:
            for values in piece.tolist():
                label = next(index)
                lines.writerow([*(label if isinstance(label, tuple) else [label]), *("" if math.isnan(v) else v for v in values)])


# --- animals as columns ---


def predicted_instance(values: np.ndarray, track: str | None) -> PredictedInstance | None:
    """An animal from its (keypoints, 3) x, y, likelihood, or None where no keypoint has a position. Its score is the mean likelihood."""
    points, scores = values[:, :2], values[:, 2]
    found = np.isfinite(points).all(axis=1)
    if not found.any():
        return None
    scores = np.where(found, np.nan_to_num(scores), 0.0) if np.isfinite(scores).any() else found.astype(float)
    return PredictedInstance(points, track, score=float(scores[found].mean()), point_scores=scores)


def number_animals(instances: Sequence[Instance], tracks: dict[str, int]) -> list[int]:
    """A number for each of a frame's animals: its track's, 0 and up; -1, -2... without one, or where the track is there twice.

    New tracks are added to ``tracks``.
    """
    numbers: list[int] = []
    others = 0
    for instance in instances:
        number = tracks.setdefault(instance.track, len(tracks)) if instance.track is not None else -1
        if number < 0 or number in numbers:
            others += 1
            number = -others
        numbers.append(number)
    return numbers


def individual_names(tracks: Iterable[str], others: int) -> list[str]:
    """What DeepLabCut calls the animals: the tracks, then ``others`` without one. All differ, and none is ``single``."""
    names: list[str] = []
    for track in tracks:
        name = track or "animal"
        while name == UNIQUE or name in names:
            name += "_"
        names.append(name)
    free = (name for number in itertools.count(1) if (name := f"animal{number}") not in names)
    return names + list(itertools.islice(free, others))

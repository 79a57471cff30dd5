"""What a comparison leaves on the disk, ``results.csv`` and a folder per cell, and what its figures say together: means, standard errors,
paired differences, and these in words.

A *cell* is one training: one method, one share of the labels, one seed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from converters.files import written_whole
from converters.labels import FormatError, Labels
from smp_plugin.baselines import METHODS, Outcome, read_predictions

COLUMNS = (
    "method", "labels", "fraction", "seed", "steps", "train_minutes", "ap_s2_1", "ap_s2_0.1", "ap_s2_0.0025", "ar_s2_1",
    "pixel_error_median", "missed", "invented", "doubled", "frames_per_second", "peak_memory_gb", "version",
)  # fmt: skip
FIGURES = COLUMNS[4:-1]  # the numbers of which means are taken
HEADLINE = "ap_s2_0.1"  # by which methods are ranked: animals found and positions both count in it
ALIKE = 0.0005  # AP that differs by less looks the same as it is written


@dataclass(frozen=True)
class Cell:
    """One line of ``results.csv``.

    Attributes:
        method: one of ``baselines.METHODS``, or another name.
        labels: labelled frames learnt from.
        fraction: the same as the user asked for it: "5", "25", "all".
        seed: of everything random.
        figures: column -> value, for each of ``FIGURES``; NaN where nothing is known. ``pixel_error_median`` is in frame pixels,
            ``peak_memory_gb`` in 10^9 bytes; AP and AR are in [0, 1].
        version: of the method's package.
    """

    method: str
    labels: int
    fraction: str
    seed: int
    figures: dict[str, float]
    version: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """Method, fraction, seed: what no two cells share."""
        return self.method, self.fraction, self.seed

    def folder(self, comparison: Path) -> Path:
        """Where the cell's files lie inside of a comparison's folder."""
        return cell_folder(comparison, self.method, self.fraction, self.seed)


@dataclass(frozen=True)
class Summary:
    """The cells of one method and fraction together. ``mean`` and ``error`` (of the mean): figure -> value, NaN where nothing is known; the
    error is NaN with one run.
    """

    method: str
    fraction: str
    labels: int
    runs: int
    mean: dict[str, float]
    error: dict[str, float]


@dataclass(frozen=True)
class Difference:
    """A method minus the reference, over the ``pairs`` of cells that share fraction and seed. ``mean`` and ``error``: figure -> value."""

    method: str
    reference: str
    fraction: str
    pairs: int
    mean: dict[str, float]
    error: dict[str, float]

    def lead(self, figure: str) -> float:
        """The mean difference; 0 where it is smaller than its standard error; NaN where that is unknown (one pair)."""
        mean, error = self.mean[figure], self.error[figure]
        if math.isnan(mean) or math.isnan(error):
            return math.nan
        return mean if abs(mean) >= error else 0.0


def cell_folder(comparison: Path, method: str, fraction: str, seed: int) -> Path:
    """``cells/<method>_<fraction>_<seed>``."""
    return comparison / "cells" / f"{method}_{fraction}_{seed}"


def read_results(folder: Path) -> list[Cell]:
    """The finished cells in ``folder/results.csv``: by method (in the order of ``baselines.METHODS``), number of labels, seed.

    A line that was cut off, or whose method, labels or seed can't be read, is left out: that cell is not finished. Of two lines of the same
    cell the later one counts. An empty list where there is no such file.

    Raises:
        FormatError: the file is there and is no table of results.
    """
    path = folder / "results.csv"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    reader = csv.DictReader(io.StringIO(text.replace("\0", "")), restval=None)
    if not text.strip():
        return []
    if absent := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise FormatError(f"{path} has no column {absent[0]} and is not what smp-compare wrote; remove it, or give another folder.")
    cells: dict[tuple[str, str, int], Cell] = {}
    for row in reader:
        if cell := _cell(row):
            cells[cell.key] = cell
    return sorted(cells.values(), key=lambda cell: (*_method_order(cell.method), cell.labels, cell.fraction, cell.seed))


def append_result(folder: Path, row: Mapping[str, object]) -> None:
    """Add a finished cell to ``folder/results.csv``, whole or not at all; an earlier line of the same cell is replaced.

    Args:
        folder: of the comparison; it is made.
        row: a value for each of ``COLUMNS``; None and NaN are written as nothing.

    Raises:
        ValueError: a column is missing or unknown, or method, labels or seed make no sense.
    """
    if set(row) != set(COLUMNS):
        raise ValueError(f"A row of results needs {', '.join(COLUMNS)}; these differ: {', '.join(sorted(set(row) ^ set(COLUMNS)))}.")
    cell = _cell({name: _text(value) for name, value in row.items()})
    if cell is None:
        raise ValueError(f"A row of results without a method, labels or seed: {dict(row)}.")
    folder.mkdir(parents=True, exist_ok=True)
    kept = [other for other in read_results(folder) if other.key != cell.key]
    with written_whole(folder / "results.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(each) for each in [*kept, cell])


def shown(found: Labels, min_score: float) -> Labels:
    """The predictions that a person would be shown: not those that are kept for AP alone, which weighs them by their low scores."""
    frames = [replace(frame, predicted=[p for p in frame.predicted if p.score >= min_score]) for frame in found.frames]
    return replace(found, frames=frames)


def predictions_of(folder: Path, cell: Cell) -> Labels:
    """What a cell predicted. FormatError where that can't be read."""
    place = cell.folder(folder)
    results = place / "predictions.json"
    return read_predictions(results if results.exists() else place / "predictions.slp")


def read_outcome(folder: Path, cell: Cell) -> Outcome | None:
    """``outcome.json`` of a cell; None where it is not there or is damaged: the figures stand without it."""
    try:
        return Outcome.read(cell.folder(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def said_by(folder: Path, cells: Sequence[Cell], of: Callable[[Outcome], Iterable[str]]) -> list[str]:
    """Different texts that ``of`` takes from the outcomes of the cells, each after the names of its methods where it is not of all."""
    methods: dict[str, dict[str, None]] = {}
    for cell in cells:
        for text in filter(None, of(outcome) if (outcome := read_outcome(folder, cell)) else []):
            methods.setdefault(text, {})[cell.method] = None
    every = {cell.method for cell in cells}
    return [text if set(own) == every else f"{', '.join(own)}: {text}" for text, own in methods.items()]


def summarise(cells: Iterable[Cell]) -> list[Summary]:
    """Mean and standard error of every figure, per method and fraction, in the order of the cells."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.fraction), []).append(cell)
    found = []
    for (method, fraction), group in groups.items():
        pairs = {name: mean_and_error([cell.figures[name] for cell in group]) for name in FIGURES}
        labels = round(float(np.mean([cell.labels for cell in group])))
        found.append(Summary(method, fraction, labels, len(group), *_split(pairs)))
    return found


def paired_differences(cells: Sequence[Cell], reference: str) -> list[Difference]:
    """Every other method minus the reference, per fraction. Both of a pair had the same labels and seed, so what is hard about these labels
    drops out.
    """
    theirs = {(cell.fraction, cell.seed): cell for cell in cells if cell.method == reference}
    pairs: dict[tuple[str, str], list[tuple[Cell, Cell]]] = {}
    for cell in cells:
        if cell.method != reference and (cell.fraction, cell.seed) in theirs:
            pairs.setdefault((cell.method, cell.fraction), []).append((cell, theirs[cell.fraction, cell.seed]))
    found = []
    for (method, fraction), chosen in pairs.items():
        values = {name: mean_and_error([a.figures[name] - b.figures[name] for a, b in chosen]) for name in FIGURES}
        found.append(Difference(method, reference, fraction, len(chosen), *_split(values)))
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error (sample standard deviation / sqrt(n)); NaN values are left out, and with one the error is NaN."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return float(np.mean(known)), error


def in_words(cells: Sequence[Cell]) -> list[str]:
    """For a person, by number of labels: which method is best and by how much, or that none is."""
    if not cells:
        return ["No training is finished yet."]
    groups: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.labels):
        groups.setdefault(cell.fraction, []).append(cell)
    return [_verdict(group) for group in groups.values()]


def _verdict(group: Sequence[Cell]) -> str:
    """Of cells with the same number of labels."""
    ranked = _ranked(group, HEADLINE)
    labels = round(sum(cell.labels for cell in group) / len(group))
    with_labels = f"With {labels} labelled {'frame' if labels == 1 else 'frames'}"
    if not ranked:
        return f"{with_labels}, accuracy could not be measured."
    text = f"{with_labels}, {_best(group, ranked)}"
    loose = _ranked(group, "ap_s2_1")
    usual = next((s.mean["ap_s2_1"] for s in loose if s.method == ranked[0].method), -math.inf)
    if loose and loose[0].mean["ap_s2_1"] >= max(usual + ALIKE, ALIKE):
        text += f" If only finding the animals matters (s2 = 1), {loose[0].method} has the highest AP, {_with_error(loose[0], 'ap_s2_1')}."
    return text


def _best(group: Sequence[Cell], ranked: Sequence[Summary]) -> str:
    """The rest of the sentence: what the first of ``ranked`` is ahead of."""
    best = ranked[0]
    level = f"AP {_with_error(best, HEADLINE)} at s2 = 0.1"
    if best.mean[HEADLINE] < ALIKE:
        return f"no method found animals well enough: {level}."
    if len(ranked) == 1:
        return f"{best.method} reaches {level} ({_runs(best.runs)}); there is no other method to compare it with."
    same = [summary.method for summary in ranked if best.mean[HEADLINE] - summary.mean[HEADLINE] < ALIKE]
    if len(same) > 1:
        return f"{_listed(same)} do not differ: {level}."
    behind = {d.method: d for d in paired_differences(group, best.method)}
    second = ranked[1]
    if second.method not in behind:
        return f"{best.method} has the highest mean, {level}, but shares no labels and seed with {second.method}."
    if math.isnan(behind[second.method].lead(HEADLINE)):
        ahead = -behind[second.method].mean[HEADLINE]
        than = f"{abs(ahead):.3f} {'more' if ahead >= 0 else 'LESS'} than {second.method} in the one run that they share"
        return f"{best.method} has the highest mean, {level}, and {than}, so that this may be chance."
    return _compared(best, second, level, behind)


def _compared(best: Summary, second: Summary, level: str, behind: Mapping[str, Difference]) -> str:
    """The rest of the sentence, where there are several runs."""
    equal = [method for method, d in behind.items() if d.lead(HEADLINE) >= 0]  # 0: within the error; above 0: better where both have runs
    difference = behind[second.method]
    by = f"{-difference.mean[HEADLINE]:.3f} ± {difference.error[HEADLINE]:.3f}"
    if equal:
        lead = f"its lead over {_listed(equal)} is within its standard error"
        return f"no method is clearly best: {best.method} has the highest mean, {level}, but {lead}."
    ahead = f"{by} ahead of {second.method} ({_runs(difference.pairs)} paired)"
    needed = float(stdtrit(difference.pairs - 1, 0.975))  # Student's t
    if -difference.mean[HEADLINE] < needed * difference.error[HEADLINE]:
        why = f"less than the {needed:.1f} standard errors that so many pairs need, so that it may still be chance"
        return f"{best.method} has the highest mean, {level}, {ahead}: {why}."
    return f"{best.method} is best: {level}, {ahead}."


def _ranked(group: Sequence[Cell], figure: str) -> list[Summary]:
    return sorted((s for s in summarise(group) if not math.isnan(s.mean[figure])), key=lambda s: -s.mean[figure])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _runs(count: int) -> str:
    return f"{count} {'run' if count == 1 else 'runs'}"


def _with_error(summary: Summary, figure: str) -> str:
    error = summary.error[figure]
    return f"{summary.mean[figure]:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def _split(pairs: Mapping[str, tuple[float, float]]) -> tuple[dict[str, float], dict[str, float]]:
    return {name: mean for name, (mean, _) in pairs.items()}, {name: error for name, (_, error) in pairs.items()}


def _method_order(method: str) -> tuple[int, str]:
    return (METHODS.index(method), "") if method in METHODS else (len(METHODS), method)


def _cell(row: Mapping[str, str | None]) -> Cell | None:
    """None where the line is not complete."""
    texts = {name: row[name] for name in COLUMNS}
    if any(text is None for text in texts.values()):
        return None
    known = {name: text or "" for name, text in texts.items()}
    try:
        labels, seed = int(known["labels"]), int(known["seed"])
    except ValueError:
        return None
    if not known["method"] or not known["fraction"] or {"/", "\\"} & {*known["method"], *known["fraction"]}:  # no name of a folder
        return None
    figures = {name: _number(known[name]) for name in FIGURES}
    return Cell(known["method"], labels, known["fraction"], seed, figures, known["version"])


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _text(value: object) -> str:
    return "" if value is None or isinstance(value, float) and not math.isfinite(value) else str(value)


def _row(cell: Cell) -> dict[str, str]:
    """A cell as it stands in the file; whole numbers without a decimal point."""
    numbers = {name: f"{value:.10g}" if math.isfinite(value) else "" for name, value in cell.figures.items()}
    head = {"method": cell.method, "labels": str(cell.labels), "fraction": cell.fraction, "seed": str(cell.seed)}
    return head | numbers | {"version": cell.version}

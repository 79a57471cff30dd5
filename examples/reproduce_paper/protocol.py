"""Table 1 of the paper (SemiMultiPose, arXiv 2204.07072): what it reports, which trainings repeat it, and the table of both.

A *row* is a number of labelled frames: "all", or "25" and "5" with several random subsets each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetch import Prepared  # type: ignore[import-not-found]  # beside this script, not in a package

from converters import FormatError, read_project, write_project
from smp_plugin.comparison import drawn
from smp_plugin.comparison_results import Cell, mean_and_error, read_results
from smp_plugin.evaluation import evaluate

METHODS = {
    "sleap-bottomup": "SLEAP bottom-up",
    "sleap-topdown": "SLEAP top-down",
    "directpose": "DirectPose",
    "smp-labeled": "SemiMultiPose-labeled",
    "smp": "SemiMultiPose",
}  # of smp-compare: as the paper calls them, in its order


@dataclass(frozen=True)
class Table:
    """What the paper says about one data set.

    Attributes:
        s2: tolerance of its AP (OKS = mean of exp(-d^2 / (2 area s2))).
        figures: row -> AP of each of ``METHODS``, in their order.
        frames: row -> labelled frames, where the paper says so.
        steps: of training.
        starts: share of the run after which the fusion terms on labelled and on unlabelled frames count.
    """

    s2: float
    figures: dict[str, tuple[float, ...]]
    frames: dict[str, int]
    steps: int
    starts: tuple[float, float]


PAPER = {
    "honeybee": Table(
        1.0,
        {"all": (0.811, 0.793, 0.846, 0.847, 0.853), "25": (0.779, 0.724, 0.819, 0.824, 0.837), "5": (0.662, 0.690, 0.734, 0.743, 0.776)},
        {"all": 135, "25": 25, "5": 5},
        15_000,
        (2 / 15, 5 / 15),
    ),
    "pups": Table(1.0, {"all": (0.692, 0.620, 0.715, 0.733, 0.754)}, {}, 40_000, (8 / 40, 15 / 40)),
    "flies": Table(0.025, {"all": (0.810, 0.734, 0.794, 0.801, 0.815)}, {}, 15_000, (2 / 15, 5 / 15)),
}


@dataclass(frozen=True)
class Run:
    """One call of ``compare``: ``number`` counts the row's subsets, or, where there is only one set, its seeds."""

    row: str
    number: int
    project: Path
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its comparison goes."""
        return out / "runs" / f"{self.row}_{self.number}"


def runs_of(dataset: str, data: Prepared, folder: Path, rows: Sequence[str] = (), subsets: int = 5, seeds: int = 1) -> list[Run]:
    """All trainings of a data set, the fewest labels first; ``rows`` () is all of the paper's.

    Subset i of a row is the data's own where there is one, else drawn with seed i and written into ``folder``: a smaller one is then part
    of the larger one with the same i. Frames that are not in it are unlabelled frames of the same project.

    Raises:
        FormatError: the paper has no such row, or there are not so many labelled frames or subsets.
    """
    paper = PAPER[dataset]
    if unknown := [row for row in rows if row not in paper.figures]:
        raise FormatError(f"--rows {unknown[0]}: the paper's rows of {dataset} are {', '.join(paper.figures)}.")
    runs: list[Run] = []
    for row in reversed(paper.figures):
        if rows and row not in rows:
            continue
        if row == "all":
            runs += [Run(row, seed, data.train, seed) for seed in range(seeds)]
            continue
        fixed = data.subsets.get(int(row), [])
        if fixed and len(fixed) < subsets:
            raise FormatError(f"There are {len(fixed)} subsets of {row} labelled frames beside {data.train}; give --subsets {len(fixed)}.")
        for number in range(subsets):
            project = fixed[number] if fixed else draw(data.train, int(row), number, folder)
            runs.append(Run(row, number, project, 0))
    return runs


def draw(train: Path, count: int, number: int, folder: Path) -> Path:
    """Random subset ``number`` of ``count`` labelled frames as ``folder/train{count}_{number}.slp``; an existing file is kept."""
    path = folder / f"train{count}_{number}.slp"
    if not path.exists():
        labels = read_project(train)
        if count > len(labels.labelled_frames):
            raise FormatError(f"{train} has {len(labels.labelled_frames)} labelled frames, fewer than the {count} of a row.")
        folder.mkdir(parents=True, exist_ok=True)
        write_project(path, drawn(labels, count, number))
    return path


def collect(dataset: str, out: Path) -> list[dict[str, Any]]:
    """A line of figures for each training in ``out`` that is finished, of whichever call; ``ap_paper`` is AP at the paper's tolerance."""
    found = {
        (row, number): Run(row, number, out, 0).folder(out) for row in reversed(PAPER[dataset].figures) for number in _numbers(out, row)
    }
    lines = []
    for (row, number), folder in found.items():
        for cell in read_results(folder):
            figures = {"ap_paper": _paper_ap(folder, cell, PAPER[dataset].s2), **cell.figures}
            plain = {name: None if math.isnan(value) else round(value, 4) for name, value in figures.items()}
            head = {"row": row, "subset": number, "labels": cell.labels, "method": cell.method, "seed": cell.seed}
            lines.append({**head, **plain, "version": cell.version})
    return lines


def _numbers(out: Path, row: str) -> list[int]:
    numbers = (folder.name.removeprefix(f"{row}_") for folder in (out / "runs").glob(f"{row}_*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def _paper_ap(folder: Path, cell: Cell, s2: float) -> float:
    """From the table where it has this tolerance, else from the poses."""
    known = cell.figures.get(f"ap_s2_{s2:g}")
    if known is not None:
        return known
    kept = cell.folder(folder)
    everything = kept / "everything.slp"  # as the table's other figures: without the thresholds for what a person is shown
    found = evaluate(folder / "data" / "val.slp", everything if everything.exists() else kept / "predictions.slp", s2=(s2,))
    return (found.partial or found).ap[s2].ap


FIGURES = ("ap_paper", "ap_s2_0.1", "ap_s2_0.0025", "pixel_error_median")


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """row -> method -> number of trainings, and of each of ``FIGURES`` [mean, standard error], None where unknown."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row, method in dict.fromkeys((line["row"], line["method"]) for line in lines):
        chosen = [line for line in lines if (line["row"], line["method"]) == (row, method)]
        entry: dict[str, Any] = {"trainings": len(chosen), "labels": chosen[0]["labels"]}
        entry |= {name: _pair([line[name] for line in chosen]) for name in FIGURES}
        table.setdefault(row, {})[method] = entry
    return table


def gains(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """row -> mean and standard error of SemiMultiPose minus DirectPose over the trainings that both have: what is hard about a subset
    drops out.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in dict.fromkeys(line["row"] for line in lines):
        of = {m: {line["subset"]: line for line in lines if (line["row"], line["method"]) == (row, m)} for m in ("smp", "directpose")}
        both = sorted(of["smp"].keys() & of["directpose"].keys())
        if both:
            values = {name: _pair([_minus(of["smp"][i][name], of["directpose"][i][name]) for i in both]) for name in FIGURES[:3]}
            found[row] = {"pairs": len(both), **values}
    return found


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _pair(values: Sequence[float | None]) -> list[float | None]:
    both = mean_and_error([math.nan if value is None else value for value in values])
    return [None if math.isnan(value) else round(value, 4) for value in both]


def markdown(dataset: str, result: Mapping[str, Any]) -> str:
    """The result as a page: the table beside the paper's figures, and how it was made."""
    paper, summary = PAPER[dataset], result["summary"]
    header = ["labelled frames", "figure", *METHODS.values()]
    rows = []
    for row, published in paper.figures.items():
        ours = summary.get(row, {})
        labels = next((str(entry["labels"]) for entry in ours.values()), row)
        names = {"ap_paper": f"AP, s2 = {paper.s2:g}", "ap_s2_0.1": "AP, s2 = 0.1", "ap_s2_0.0025": "AP, s2 = 0.0025"}
        for figure, name in names.items() if ours else ():
            rows.append([labels, f"here: {name}", *(_text(ours.get(method), figure) for method in METHODS)])
        rows.append([str(paper.frames.get(row, "all")), f"*paper: AP, s2 = {paper.s2:g}*", *(f"*{value:.3f}*" for value in published)])
    lines = [f"# Table 1 of the paper on {dataset}", "", *_aligned(header, rows), ""]
    lines += [
        f"Mean +- standard error over random subsets (seeds where all labels are used); {result['budget']} each, preset {result['preset']}."
    ]
    for row, gain in result["gains"].items():
        mean, error = gain["ap_paper"]
        text = "" if error is None else f" +- {error:.3f}"
        lines.append(f"SemiMultiPose minus DirectPose, row {row}: {mean:+.3f}{text} ({gain['pairs']} paired, s2 = {paper.s2:g}).")
    lines += ["", "The paper's figures are for reference; what differs:", "", *(f"- {note}" for note in result["notes"]), ""]
    lines += [f"`{result['command']}`", "", f"{result['machine']['device']}; {result['machine']['platform']}", ""]
    return "\n".join(lines)


def _text(entry: Mapping[str, Any] | None, figure: str) -> str:
    if entry is None or entry[figure][0] is None:
        return "-"
    mean, error = entry[figure]
    return f"{mean:.3f}" + (f" ({entry['trainings']} run)" if error is None else f" +- {error:.3f} ({entry['trainings']})")


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in (header, *rows)]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]

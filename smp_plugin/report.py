"""Pictures and one page that say how a run went: curves, a gallery of validation frames, ``report.html``.

The page holds everything it shows (pictures as base64), so it can be mailed; every name in it is escaped. Drawing poses and videos is
``drawing``'s.
"""

from __future__ import annotations

import base64
import csv
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from converters.labels import Skeleton
from smp_plugin.drawing import PALETTE, OverlayWriter, animal_colours, draw_poses
from smp_plugin.metrics import ERROR_PERCENTILES, MEDIUM_S2, PAPER_S2, SLEAP_S2, Evaluation, KeypointAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    Array = NDArray[np.float64]

__all__ = [
    "KEYPOINT_COLUMNS",
    "GalleryItem",
    "OverlayWriter",
    "draw_poses",
    "evaluation_rows",
    "keypoint_rows",
    "write_curves",
    "write_evaluation",
    "write_gallery",
    "write_report",
]

LOSS_NAMES = {
    "loss": "total",
    "loss_heatmap": "heatmap",
    "loss_box": "box",
    "loss_vector": "keypoint vectors",
    "loss_quality": "score",
    "loss_fusion_labeled": "fusion, labelled",
    "loss_fusion_unlabeled": "fusion, unlabelled",
    "loss_agreement": "agreement with teacher",
}
AP_NAMES = {"val_ap": "s2 = 1 (paper)", "val_ap_s2_0.1": "s2 = 0.1", "val_ap_s2_0.0025": "s2 = 0.0025 (SLEAP)"}
PANEL = 620  # width of one picture of the gallery, pixels
PAPER, INK, FAINT = (250, 250, 248), (38, 38, 44), (120, 120, 128)


# --- curves -------------------------------------------------------------------------------------------------------------------------------


def write_curves(metrics_csv: Path, png: Path) -> None:
    """Losses and validation figures over optimiser steps, with a line where a training phase begins. Empty cells and absent columns are
    left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with metrics_csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality = figure.subplots(1, 2)
    colours = [tuple(c / 275 for c in colour) for colour in PALETTE]  # a little darker: these stand on white
    for n, (column, label) in enumerate(LOSS_NAMES.items()):
        steps, values = _series(rows, column)
        keep = values > 0
        if not keep.any():
            continue
        colour, width = ("#26262c", 2.0) if column == "loss" else (colours[(n - 1) % len(colours)], 1.3)
        losses.plot(steps[keep], values[keep], color=colour, alpha=0.18, linewidth=0.8)
        losses.plot(steps[keep], _smooth(values[keep]), color=colour, linewidth=width, label=label)
    for n, (column, label) in enumerate(AP_NAMES.items()):
        steps, values = _series(rows, column)
        if len(steps):
            quality.plot(steps, values, color=colours[n], linewidth=1.8, marker="o", markersize=3.5, label=label)
            quality.annotate(
                f"{values[-1]:.2f}", (steps[-1], values[-1]), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
            )
    losses.set(title="Losses", xlabel="step", yscale="log" if losses.lines else "linear")
    quality.set(title="Average precision on validation frames", xlabel="step", ylim=(0, 1.02))
    for axes in (losses, quality):
        _finish(axes, _phases(rows))
    figure.savefig(png, dpi=130)


def write_evaluation(evaluation: Evaluation, png: Path) -> None:
    """The share of labelled points found within a distance, and every keypoint's error: median, 50 to 75 %, and up to 95 %."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curve, keypoints = evaluation.pck_curve, evaluation.keypoints
    figure = Figure(figsize=(11, max(4.6, 1.4 + 0.22 * len(keypoints))), layout="constrained")
    FigureCanvasAgg(figure)
    found, errors = figure.subplots(1, 2)
    percent = 100 * np.array(curve.fraction)
    label = f"of its own length (20 % of the median: {curve.pixels[-1]:.1f} px)" if math.isfinite(curve.pixels[-1]) else "of its own length"
    found.plot(percent, curve.within_fraction, color="#26262c", linewidth=2.0, label=label)
    found.plot(percent, curve.within_pixels, color="#3a76c4", linewidth=1.3, label="of the median length: the same in pixels for all")
    found.set(title="Labelled points found", xlabel="within ... % of the animal's length", xlim=(0, percent[-1]), ylim=(0, 1.02))
    for row, k in enumerate(keypoints.values()):
        if k.n:
            errors.plot([k.pixel_error[50], k.pixel_error[95]], [row, row], color="#3a76c4", linewidth=1.3)
            errors.plot([k.pixel_error[50], k.pixel_error[75]], [row, row], color="#3a76c4", linewidth=4.5)
            errors.plot(k.pixel_error[50], row, color="#26262c", marker="o", markersize=5)
    errors.set_yticks(range(len(keypoints)), [name.replace("$", r"\$") for name in keypoints])  # a name is no formula
    errors.set(title="Error by keypoint", xlabel="pixels: median (dot), to 75 % (thick), to 95 %", ylim=(len(keypoints) - 0.5, -0.5))
    errors.set_xlim(left=0)
    for axes in (found, errors):
        _finish(axes, [])
    figure.savefig(png, dpi=130)


def _series(rows: Sequence[Mapping[str, str]], column: str) -> tuple[Array, Array]:
    """Steps and values of the rows in which the column has a finite number."""
    pairs = [(_float(row.get("step")), _float(row.get(column))) for row in rows]
    kept = [(step, value) for step, value in pairs if math.isfinite(step) and math.isfinite(value)]
    table = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _smooth(values: Array) -> Array:
    """Running geometric mean over a thirtieth of the run: the axis is logarithmic."""
    half = max(1, len(values) // 60)
    logs = np.log(np.maximum(values, 1e-12))
    return np.exp(np.array([logs[max(0, i - half) : i + half + 1].mean() for i in range(len(logs))]))


def _phases(rows: Sequence[Mapping[str, str]]) -> list[tuple[float, str]]:
    """Step and name of every phase after the first."""
    found: list[tuple[float, str]] = []
    before = None
    for row in rows:
        phase = row.get("phase") or before
        if phase != before and before is not None:
            found.append((_float(row.get("step")), str(phase)))
        before = phase
    return found


def _finish(axes: Axes, phases: list[tuple[float, str]]) -> None:
    for step, name in phases:
        axes.axvline(step, color="#8a8a92", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        label = f"phase {name}" if name.isdigit() else name
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -4), "textcoords": "offset points", "va": "top"}
        axes.annotate(label, (step, 1), fontsize=7.5, color="#6a6a72", **place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.title.set_fontsize(11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4)


# --- gallery ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GalleryItem:
    """One validation frame.

    Attributes:
        image: (H, W, 3) uint8.
        truth: (n, K, 2) frame pixels, NaN where not labelled.
        predicted: (m, K, 2) frame pixels, NaN where missing.
        score: the greater the better: decides the order.
        title: what is written above it.
        point_scores: (m, K) in [0, 1], of the predictions.
    """

    image: Frame
    truth: Array
    predicted: Array
    score: float
    title: str = ""
    point_scores: Array | None = None


def write_gallery(png: Path, items: Sequence[GalleryItem], skeleton: Skeleton, rows: int = 8) -> None:
    """The worst validation frames first: labels to the left, predictions to the right, cut to where the animals are.

    A prediction has the colour of the labelled animal it belongs to.
    """
    worst = sorted(items, key=lambda item: (not math.isnan(item.score), item.score))[:rows]
    pairs = [_gallery_pair(item, skeleton) for item in worst]
    gap, line = 14, 26
    height = line + gap + sum(left.height + line + gap for left, _ in pairs)
    page = Image.new("RGB", (2 * PANEL + 3 * gap, height), PAPER)
    pen = ImageDraw.Draw(page)
    bold, plain = ImageFont.load_default(17), ImageFont.load_default(14)
    pen.text((gap, 10), "Labels" if pairs else "No validation frames", INK, bold)
    pen.text((PANEL + 2 * gap, 10), "Predictions" if pairs else "", INK, bold)
    top = line + gap
    for item, (left, right) in zip(worst, pairs, strict=True):
        pen.text((gap, top), _shortened(item.title, plain, PANEL), FAINT, plain)
        pen.text((PANEL + 2 * gap, top), f"{len(item.truth)} labelled, {len(item.predicted)} predicted", FAINT, plain)
        page.paste(left, (gap, top + line - 4))
        page.paste(right, (PANEL + 2 * gap, top + line - 4))
        top += left.height + line + gap
    page.save(png, optimize=True)


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The end of the text that fits: of a path, the end says more."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


def _gallery_pair(item: GalleryItem, skeleton: Skeleton) -> tuple[Image.Image, Image.Image]:
    from smp_plugin.metrics import animal_areas, match, oks

    colours = animal_colours(len(item.truth))
    predicted_colours = animal_colours(len(item.predicted), start=len(item.truth))
    if len(item.truth) and len(item.predicted):
        similarity = oks(item.truth, item.predicted, animal_areas([item.truth])[0], MEDIUM_S2)
        for row, column in match(similarity, 0.05):
            predicted_colours[column] = colours[row]
    x0, y0, x1, y1 = _window(item)
    factor = PANEL / (x1 - x0)
    size = (PANEL, max(1, round((y1 - y0) * factor)))
    small = np.array(
        Image.fromarray(item.image[y0:y1, x0:x1]).resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX)
    )
    panels = [
        draw_poses(small, skeleton, (np.asarray(poses).reshape(-1, len(skeleton), 2) - (x0, y0) + 0.5) * factor - 0.5, chosen, scores)
        for poses, chosen, scores in ((item.truth, colours, None), (item.predicted, predicted_colours, item.point_scores))
    ]
    return Image.fromarray(panels[0]), Image.fromarray(panels[1])


def _window(item: GalleryItem) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part that holds all animals with a margin; at least a third of the frame wide, not taller than 1.2
    widths.
    """
    height, width = item.image.shape[:2]
    points = np.concatenate([np.asarray(item.truth).reshape(-1, 2), np.asarray(item.predicted).reshape(-1, 2)])
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return 0, 0, width, height
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.12 * float(max(high - low)) + 10
    wanted = np.maximum(high - low + 2 * margin, width / 3)
    wanted = np.minimum([max(wanted[0], wanted[1] / 1.2), max(wanted[1], wanted[0] * 0.45)], [width, height])
    start = np.clip((low + high - wanted) / 2, 0, np.array([width, height]) - wanted)
    (x0, y0), (x1, y1) = np.floor(start).astype(int), np.ceil(start + wanted).astype(int)
    return int(x0), int(y0), int(min(x1, width)), int(min(y1, height))


# --- tables and the page ------------------------------------------------------------------------------------------------------------------


S2_NAMES = {PAPER_S2: " (the paper's)", SLEAP_S2: " (SLEAP's tolerance, strict)"}
KEYPOINT_COLUMNS = ("keypoint", "points", *(f"error, {p} %" for p in ERROR_PERCENTILES), "within 10 % of length")


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What and how much, for a person: the same in the terminal and on the page."""
    errors = evaluation.pixel_error
    rows = [("Labels", evaluation.labels)] if evaluation.labels else []
    rows += _ap_rows(evaluation.ap, evaluation.deeplabcut, "")
    if evaluation.partial is not None:
        rows += _ap_rows(evaluation.partial.ap, evaluation.partial.deeplabcut, ", partial rule")
    rows += [(f"By {name} itself", ", ".join(f"{k} {v:.3f}" for k, v in figures.items())) for name, figures in evaluation.peers.items()]
    rows += [
        ("Points found within 5 / 10 / 20 % of the animal's length", " / ".join(f"{100 * v:.1f} %" for v in evaluation.pck.values())),
        ("Pixel error, median (90 %, 99 %)", f"{errors[50]:.2f} ({errors[90]:.2f}, {errors[99]:.2f})"),
        ("Labelled frames, animals", f"{evaluation.frames}, {evaluation.animals}"),
        ("Predicted animals", str(evaluation.predictions)),
        ("Missed, invented, doubled", f"{evaluation.missed}, {evaluation.invented}, {evaluation.doubled}"),
    ]
    if evaluation.partial is not None:
        figures = evaluation.partial
        rows.append(("Invented, doubled, left out, partial rule", f"{figures.invented}, {figures.doubled}, {figures.ignored}"))
    if evaluation.swapped_pairs is not None:
        rows.append(("Left and right exchanged", f"{evaluation.swapped_pairs} of {evaluation.symmetric_pairs} pairs"))
    rows.append(("Median length of an animal", f"{evaluation.animal_length:.1f} px"))
    return [(name, _dashed(value)) for name, value in rows]


def _ap_rows(ap: Mapping[float, KeypointAP], deeplabcut: KeypointAP, rule: str) -> list[tuple[str, str]]:
    rows = [(f"AP, s2 = {s2:g}{S2_NAMES.get(s2, '')}{rule}", _ap(figures)) for s2, figures in ap.items()]
    return [*rows, (f"AP, DeepLabCut's definition{rule}", _ap(deeplabcut))]


def _ap(figures: KeypointAP) -> str:
    return f"{figures.ap:.3f}  (.50: {figures.ap50:.3f}, .75: {figures.ap75:.3f}, AR {figures.ar:.3f})"


def _dashed(text: str) -> str:
    return re.sub(r"\bnan\b", "-", text)


def keypoint_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """The cells of ``KEYPOINT_COLUMNS``: keypoint, points compared, percentiles of the pixel error, share within 10 % of the length."""
    return [
        (name, str(k.n), *(_dashed(f"{error:.2f}") for error in k.pixel_error.values()), _dashed(f"{100 * k.pck[0.1]:.1f} %"))
        for name, k in evaluation.keypoints.items()
    ]


CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #26262c; background: #fafaf8; max-width: 1280px;
  margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem } .faint { color: #78787f }
table { border-collapse: collapse } th { font-weight: 600 } td { overflow-wrap: anywhere } td.number { font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid #e4e4de; vertical-align: top }
img { max-width: 100%; border-radius: 4px } ul { padding-left: 1.2rem }
pre { overflow-x: auto; background: #f0f0ea; padding: 1rem; border-radius: 4px }
.warning { background: #fff3cf; padding: .5rem .8rem; border-radius: 4px }
"""


def write_report(
    run_folder: Path,
    *,
    title: str = "",
    data: Mapping[str, object] | None = None,
    choices: Sequence[str] = (),
    evaluation: Evaluation | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """``report.html`` of a run, from what its folder holds (``curves.png``, ``val_predictions.png``, ``config.yaml``) and what is given.

    Args:
        run_folder: where the page is written.
        title: of the page; default: the folder's name.
        data: facts about the data, name -> value.
        choices: sentences on what was chosen automatically and why.
        evaluation: on the validation frames, of the model that was kept.
        warnings: what the person should look at; the evaluation's own are added.
    """
    parts = [f"<h1>{html.escape(title or run_folder.name)}</h1>", '<p class="faint">Multi-animal pose estimation: training report</p>']
    for warning in [*warnings, *(evaluation.warnings if evaluation else [])]:
        parts.append(f'<p class="warning">{html.escape(warning)}</p>')
    if evaluation is not None:
        parts.append("<h2>On validation frames</h2>" + _table([], evaluation_rows(evaluation)))
        parts.append("<h2>By keypoint</h2>")
        parts.append(_table(KEYPOINT_COLUMNS, keypoint_rows(evaluation)))
    parts.append(_picture(run_folder / "curves.png", "Training"))
    parts.append(_picture(run_folder / "val_predictions.png", "Validation frames, worst first"))
    if data:
        parts.append("<h2>Data</h2>" + _table([], [(name, str(value)) for name, value in data.items()]))
    if choices:
        parts.append("<h2>Chosen automatically</h2><ul>" + "".join(f"<li>{html.escape(choice)}</li>" for choice in choices) + "</ul>")
    settings = run_folder / "config.yaml"
    if settings.is_file():
        text = html.escape(settings.read_text(encoding="utf-8"))
        parts.append(f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{text}</pre></details>")
    page = run_folder / "report.html"
    page.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title or run_folder.name)}</title>'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n",
        encoding="utf-8",
    )
    return page


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join(
        "<tr>" + "".join(f"<td{' class=number' if n else ''}>{html.escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>{top}{body}</table>"


def _picture(path: Path, heading: str) -> str:
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{html.escape(heading)}</h2><img alt="{html.escape(heading)}" src="data:image/png;base64,{content}">'

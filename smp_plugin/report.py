"""Pictures and one page that say how a run went: curves, a gallery of validation frames, ``report.html``.

Drawing poses and videos is ``drawing``'s.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from converters.files import written_whole
from converters.labels import Skeleton
from smp_plugin.average_precision import KeypointAP
from smp_plugin.drawing import PALETTE, Verdict, draw_errors, draw_poses, judge
from smp_plugin.metrics import ERROR_PERCENTILES, Evaluation
from smp_plugin.page import bullets, escape, picture, table, write_page
from smp_plugin.similarity import PAPER_S2, SLEAP_S2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    Array = NDArray[np.float64]

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
MARKS = "red: off its label, or missed (dashed); yellow: invented; violet: twice"
PAPER, INK, FAINT = (250, 250, 248), (38, 38, 44), (120, 120, 128)


# --- curves -------------------------------------------------------------------------------------------------------------------------------


def write_curves(metrics_csv: Path, png: Path) -> None:
    """Losses and validation figures over optimiser steps, with a line where a training phase begins. Empty cells and absent columns are
    left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

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
        dots: dict[str, Any] = {"marker": "o", "markersize": 4} if keep.sum() < 4 else {}  # a line needs two points to be seen
        losses.plot(steps[keep], _smooth(values[keep]), color=colour, linewidth=width, label=label, **dots)
    for n, (column, label) in enumerate(AP_NAMES.items()):
        steps, values = _series(rows, column)
        if len(steps):
            quality.plot(steps, values, color=colours[n], linewidth=1.8, marker="o", markersize=3.5, label=label)
            quality.annotate(
                f"{values[-1]:.2f}", (steps[-1], values[-1]), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
            )
    losses.set(title="Losses", xlabel="step", yscale="log" if losses.lines else "linear")
    if losses.lines:
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_locator(NullLocator())
    quality.set(title="Average precision on validation frames", xlabel="step", ylim=(0, 1.02))
    for axes in (losses, quality):
        _finish(axes, _phases(rows))
        _minutes(axes, *_series(rows, "seconds"))
    with written_whole(png) as temporary:
        figure.savefig(temporary, dpi=130)


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
    with written_whole(png) as temporary:
        figure.savefig(temporary, dpi=130)


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


def _minutes(axes: Axes, steps: Array, seconds: Array) -> None:
    """A second scale above: how long the training took to get to a step."""
    from matplotlib.ticker import MaxNLocator

    if not len(steps) or seconds.max() <= 0:
        return
    axes.set_xlim(0, 1.06 * steps.max())  # room for the numbers at the ends of the curves
    order = np.argsort(seconds, kind="stable")
    minutes, places = np.r_[0, seconds[order] / 60], np.r_[0, steps[order]]
    ticks = [tick for tick in MaxNLocator(6).tick_values(0, minutes[-1]) if tick <= minutes[-1]]
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.interp(ticks, minutes, places), [f"{tick:g}" for tick in ticks])
    above.tick_params(labelsize=8, colors="#6a6a72", length=2)
    above.spines["top"].set_visible(False)
    above.set_xlabel("minutes of training", fontsize=8, color="#6a6a72")


def _finish(axes: Axes, phases: list[tuple[float, str]]) -> None:
    for step, name in phases:
        axes.axvline(step, color="#8a8a92", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (3, -4), "textcoords": "offset points", "va": "top"}
        axes.annotate(name, (step, 1), fontsize=7.5, color="#6a6a72", **place)
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
    """

    image: Frame
    truth: Array
    predicted: Array
    score: float
    title: str = ""


def write_gallery(png: Path, items: Sequence[GalleryItem], skeleton: Skeleton, rows: int = 8) -> None:
    """The worst validation frames first: labels to the left, predictions to the right, cut to where the animals are.

    Errors are marked as ``draw_errors`` says.
    """
    worst = sorted(items, key=lambda item: (not math.isnan(item.score), item.score))[:rows]
    pairs = [_gallery_pair(item, skeleton) for item in worst]
    gap, line = 14, 26
    height = line + gap + sum(left.height + line + gap for left, _, _ in pairs)
    page = Image.new("RGB", (2 * PANEL + 3 * gap, height), PAPER)
    pen = ImageDraw.Draw(page)
    bold, plain = ImageFont.load_default(17), ImageFont.load_default(14)
    pen.text((gap, 10), "Labels" if pairs else "No validation frames", INK, bold)
    if pairs:
        pen.text((PANEL + 2 * gap, 10), "Predictions", INK, bold)
        pen.text((PANEL + 2 * gap + bold.getlength("Predictions") + 12, 13), _shortened(MARKS, plain, PANEL - 120), FAINT, plain)
    top = line + gap
    for item, (left, right, verdict) in zip(worst, pairs, strict=True):
        pen.text((gap, top), _shortened(item.title, plain, PANEL), FAINT, plain)
        pen.text((PANEL + 2 * gap, top), f"{len(item.truth)} labelled, {len(item.predicted)} predicted: {verdict}", FAINT, plain)
        page.paste(left, (gap, top + line - 4))
        page.paste(right, (PANEL + 2 * gap, top + line - 4))
        top += left.height + line + gap
    with written_whole(png) as temporary:
        page.save(temporary, optimize=True)


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The end of the text that fits: of a path, the end says more."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


class Crop:
    """The part of a frame that holds animals, at the size of a panel of the gallery.

    Args:
        image: (H, W, 3) uint8, the whole frame.
        points: (n, 2) frame pixels, which have to be inside.
        width: of the panel, pixels.
        least: share of the frame's width that is shown at least.
    """

    def __init__(self, image: Frame, points: Array, width: int = PANEL, least: float = 1 / 3) -> None:
        x0, y0, x1, y1 = _window(image.shape[1], image.shape[0], points, least)
        self.corner, self.factor = np.array([x0, y0]), width / (x1 - x0)
        size = (width, max(1, round((y1 - y0) * self.factor)))
        way = Image.Resampling.BICUBIC if self.factor > 1 else Image.Resampling.BOX
        self.image = np.array(Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1])).resize(size, way))

    def placed(self, poses: Array, keypoints: int) -> Array:
        """Poses in frame pixels -> (n, K, 2) in pixels of the panel."""
        found: Array = (np.asarray(poses, dtype=np.float64).reshape(-1, keypoints, 2) - self.corner + 0.5) * self.factor - 0.5
        return found


def _gallery_pair(item: GalleryItem, skeleton: Skeleton) -> tuple[Image.Image, Image.Image, Verdict]:
    crop = Crop(item.image, np.concatenate([np.asarray(item.truth).reshape(-1, 2), np.asarray(item.predicted).reshape(-1, 2)]))
    truth, poses = crop.placed(item.truth, len(skeleton)), crop.placed(item.predicted, len(skeleton))
    verdict = judge(truth, poses)
    left, right = draw_poses(crop.image, skeleton, truth), draw_errors(crop.image, skeleton, truth, poses, verdict)
    return Image.fromarray(left), Image.fromarray(right), verdict


def _window(width: int, height: int, points: Array, least: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part that holds all points with a margin; at least ``least`` of the frame wide, not taller than 1.2
    widths.
    """
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return 0, 0, width, height
    low, high = np.clip(points.min(axis=0), 0, (width, height)), np.clip(points.max(axis=0), 0, (width, height))
    margin = 0.12 * float(max(high - low)) + 10
    wanted = np.maximum(high - low + 2 * margin, least * width)
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


def write_report(
    run_folder: Path,
    *,
    title: str = "",
    data: Mapping[str, object] | None = None,
    choices: Sequence[str] = (),
    evaluation: Evaluation | None = None,
    warnings: Sequence[str] = (),
    on: str = "validation frames",
) -> Path:
    """``report.html`` of a run, from what its folder holds (``curves.png``, ``val_predictions.png``, ``config.yaml``) and what is given.

    Args:
        run_folder: where the page is written.
        title: of the page; default: the folder's name.
        data: facts about the data, name -> value.
        choices: sentences on what was chosen automatically and why.
        evaluation: of the model that was kept.
        warnings: what the person should look at; the evaluation's own are added.
        on: the frames of ``evaluation`` and of ``val_predictions.png``, for headings.
    """
    title = title or run_folder.name
    parts = [f"<h1>{escape(title)}</h1>", '<p class="faint">Multi-animal pose estimation: training report</p>']
    if evaluation is not None:
        parts.append(f'<p class="lead">{escape(_in_words(evaluation))}</p>')
    for warning in [*warnings, *(evaluation.warnings if evaluation else [])]:
        parts.append(f'<p class="warning">{escape(warning)}</p>')
    if evaluation is not None:
        parts.append(f"<h2>On {on}</h2>" + table([], evaluation_rows(evaluation)))
        parts.append("<h2>By keypoint</h2>")
        parts.append(table(KEYPOINT_COLUMNS, keypoint_rows(evaluation)))
    for name, heading in (("curves.png", "Training"), ("val_predictions.png", f"{on[0].upper()}{on[1:]}, worst first")):
        if (run_folder / name).is_file():
            parts.append(f"<h2>{heading}</h2><div class=wide>{picture((run_folder / name).read_bytes(), heading)}</div>")
    if data:
        parts.append("<h2>Data</h2>" + table([], [(name, str(value)) for name, value in data.items()]))
    if choices:
        parts.append("<h2>Chosen automatically</h2>" + bullets(choices))
    settings = run_folder / "config.yaml"
    if settings.is_file():
        text = escape(settings.read_text(encoding="utf-8"))
        parts.append(f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{text}</pre></details>")
    page = run_folder / "report.html"
    write_page(page, title, parts)
    return page


def _in_words(found: Evaluation) -> str:
    """What a person wants to know first."""
    if not found.animals:
        return "No labelled animals to compare the predictions with."
    spare = [(found.invented, "where no animal is labelled"), (found.doubled, "of an animal that has one already")]
    wrong = ", ".join(f"{count} {what}" for count, what in spare if count)
    text = f"{found.animals - found.missed} of {found.animals} labelled animals were found."
    if wrong:
        text += f" Predictions too many: {wrong}."
    if not math.isnan(found.pixel_error[50]):
        length = f"an animal is {found.animal_length:.0f} pixels long"
        text += f" Half of the points found lie within {found.pixel_error[50]:.1f} pixels of the label; {length}."
    return text

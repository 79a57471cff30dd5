"""Charts of a comparison, and validation frames with every method's poses and errors on them. Pictures are PNG or JPEG, in memory.

A method has the same colour, mark and line everywhere; ours is thick and blue. Colours are told apart by colour-blind people, and marks and
lines tell the camps apart without colours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from converters.labels import FormatError, Labels, Skeleton, stacked
from converters.video import open_video
from smp_plugin.average_precision import keypoint_ap
from smp_plugin.baselines import DLC, OWN, SLEAP, CurvePoint
from smp_plugin.comparison_results import Summary
from smp_plugin.drawing import Verdict, draw_errors, draw_poses, judge, line_width
from smp_plugin.pairing import frame_pairs
from smp_plugin.report import Crop
from smp_plugin.similarity import MEDIUM_S2, animal_areas, on_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Frame = NDArray[np.uint8]

PANEL = 560  # width of one picture of a frame, pixels: twice what it has on the page, so that it may be enlarged
THIN = 2.4  # width of the thinnest line in it, pixels
FIGURE = (4.9, 3.3)  # inches, of a chart; at 170 dots per inch
CURVE_S2 = "0.1"  # which AP is drawn over time, a key of ``CurvePoint.ap``
COLOURS = ("#7db8dc", "#2f9fd8", "#00519e", "#e69f00", "#c4570a", "#9a7fd1", "#c667a5", "#6b6b72")  # in the order of baselines.METHODS
OTHERS = ("#3f8f5f", "#8a6d3b", "#b03060", "#4f4f57")  # of methods this module knows nothing of


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    dash: str
    width: float
    layer: int


def look(method: str, methods: Sequence[str], ours: str) -> Look:
    """``methods``: all that are compared; ``ours``: the one that is emphasised."""
    known = (*OWN, *SLEAP, *DLC)
    strangers = [name for name in methods if name not in known]
    colour = COLOURS[known.index(method)] if method in known else OTHERS[strangers.index(method) % len(OTHERS)]
    marker, dash = ("s", "--") if method in SLEAP else ("^", ":") if method in DLC else ("o", "-")
    return Look(colour, marker, dash, 3.0 if method == ours else 1.7, 5 if method == ours else 3)


# --- charts -------------------------------------------------------------------------------------------------------------------------------


def _figure(title: str, height: float = FIGURE[1], strips: int = 0) -> tuple[Figure, list[Axes]]:
    """A chart and, where strips are wanted, a second one below it with the same x axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(FIGURE[0], height + 0.24 * strips), layout="constrained")
    FigureCanvasAgg(figure)
    found: list[Axes] = list(
        figure.subplots(1 + (strips > 0), sharex=True, squeeze=False, height_ratios=[height, 0.24 * strips][: 1 + (strips > 0)])[:, 0]
    )
    found[0].set_title(title, fontsize=10.5, loc="left")
    found[0].spines[["top", "right"]].set_visible(False)
    found[0].grid(alpha=0.22)
    found[0].tick_params(labelsize=8.5)
    return figure, found


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=170)
    return file.getvalue()


def over_labels(summaries: Sequence[Summary], figure: str, title: str, looks: Mapping[str, Look]) -> bytes | None:
    """A figure against the number of labels, with standard errors; None where nothing is known. A number of labels that stands alone is no
    axis: then the methods stand below each other.
    """
    known = [s for s in summaries if not math.isnan(s.mean[figure])]
    counts = sorted({s.labels for s in known})
    if len(counts) < 2:
        values = {s.method: (s.mean[figure], s.error[figure]) for s in known}
        return by_method(values, title, looks, bars=False)
    picture, [axes] = _figure(title)
    methods = [method for method in looks if any(s.method == method for s in known)]
    for n, method in enumerate(methods):
        style, line = looks[method], sorted((s for s in known if s.method == method), key=lambda s: s.labels)
        aside = (counts[-1] / counts[0]) ** (0.012 * (n - (len(methods) - 1) / 2))  # so that error bars do not cover each other
        axes.errorbar(
            [s.labels * aside for s in line],
            [s.mean[figure] for s in line],
            yerr=[np.nan_to_num(s.error[figure]) for s in line],
            color=style.colour, marker=style.marker, linestyle=style.dash, linewidth=style.width, zorder=style.layer,
            markersize=5 + style.width / 2, elinewidth=1.1, capsize=2.5,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labelled frames", fontsize=9)
    _between_0_and_1(axes)
    return _png(picture)


def _between_0_and_1(axes: Axes) -> None:
    """No axis for AP beyond what AP can be."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))


def by_method(values: Mapping[str, tuple[float, float]], title: str, looks: Mapping[str, Look], bars: bool = True) -> bytes | None:
    """One line per method with mean and standard error, as bars from 0 or as points; None where nothing is known."""
    from matplotlib.ticker import MaxNLocator

    known = {method: values[method] for method in looks if method in values and not math.isnan(values[method][0])}
    if not known:
        return None
    picture, [axes] = _figure(title, 0.95 + 0.3 * max(3, len(known)))
    most = max(mean for mean, _ in known.values())
    for n, (method, (mean, error)) in enumerate(known.items()):
        style = looks[method]
        if bars:
            axes.barh(n, mean, color=style.colour, height=0.62, zorder=2)
        axes.errorbar(
            mean, n, xerr=None if math.isnan(error) else error, color="#26262c" if bars else style.colour,
            marker="" if bars else style.marker, markersize=6, elinewidth=1.1, capsize=2.5, zorder=3,
        )  # fmt: skip
        text = f"{mean:.3f}" if not bars else f"{mean:.3g}"
        axes.annotate(text, (mean + float(np.nan_to_num(error)), n), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(known)), list(known))
    for tick, method in zip(axes.get_yticklabels(), known, strict=True):
        tick.set_fontweight("bold" if looks[method].layer == 5 else "normal")
    axes.set_ylim(len(known) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if bars:
        axes.set_xlim(0, 1.18 * most if most > 0 else 1)
    return _png(picture)


def over_time(curves: Mapping[str, Sequence[Sequence[CurvePoint]]], title: str, looks: Mapping[str, Look]) -> bytes | None:
    """AP (s2 = .1) by minutes of training: thin lines are runs, thick ones their mean. Below it, the phases of the methods that have some.

    Args:
        curves: method -> one curve per run.
        title: of the chart.
        looks: method -> how it is drawn.

    Returns:
        PNG; None where there is no curve.
    """
    runs = {method: [curve for curve in curves.get(method, ()) if any(CURVE_S2 in point.ap for point in curve)] for method in looks}
    runs = {method: kept for method, kept in runs.items() if kept}
    if not runs:
        return None
    phases = {method: found for method, kept in runs.items() if len(found := _phases(kept[0])) > 1}
    picture, [axes, *below] = _figure(title, strips=len(phases))
    for method, kept in runs.items():
        style, lines = looks[method], [_line(curve) for curve in kept]
        for line in lines if len(lines) > 1 else []:
            axes.plot(*line.T, color=style.colour, linewidth=0.8, alpha=0.35, linestyle=style.dash, zorder=2)
        axes.plot(*mean_line(lines).T, color=style.colour, marker=style.marker, markersize=4.5, linestyle=style.dash, linewidth=style.width,
                  zorder=style.layer)  # fmt: skip
    axes.set_xlim(left=0)
    _between_0_and_1(axes)
    for strip in below:
        _phase_rows(strip, axes, phases, looks)
    (below or [axes])[-1].set_xlabel("minutes of training", fontsize=9)
    return _png(picture)


def _line(curve: Sequence[CurvePoint]) -> Array:
    """(n, 2): minutes, AP."""
    return np.array([(point.seconds / 60, point.ap[CURVE_S2]) for point in curve if CURVE_S2 in point.ap], dtype=np.float64)


def mean_line(lines: Sequence[Array]) -> Array:
    """(n, 2): the mean of several lines of minutes and AP, over the minutes that all of them have; where there are none, one point."""
    if len(lines) == 1:
        return lines[0]
    first, last = max(line[0, 0] for line in lines), min(line[-1, 0] for line in lines)
    count = max(len(line) for line in lines)
    minutes = np.linspace(first, last, count) if count > 1 and first < last else np.array([(first + last) / 2])
    return np.column_stack([minutes, np.mean([np.interp(minutes, *line.T) for line in lines], axis=0)])


def _phases(curve: Sequence[CurvePoint]) -> list[tuple[str, float, float]]:
    """Name, start and end in minutes of each phase, as far as the points of the curve tell."""
    found: list[tuple[str, float, float]] = []
    before = 0.0
    for point in curve:
        if found and found[-1][0] == point.phase:
            found[-1] = (point.phase, found[-1][1], point.seconds / 60)
        else:
            found.append((point.phase, before, point.seconds / 60))
        before = point.seconds / 60
    return found


def _phase_rows(strip: Axes, above: Axes, phases: Mapping[str, Sequence[tuple[str, float, float]]], looks: Mapping[str, Look]) -> None:
    """A row per method under the chart, in pieces that name its phases."""
    for n, (method, pieces) in enumerate(phases.items()):
        for k, (name, start, end) in enumerate(pieces):
            strip.barh(n, end - start, left=start, height=0.78, color=looks[method].colour, alpha=(0.22, 0.42, 0.62)[k % 3], linewidth=0)
            strip.annotate(name[:24], (start, n), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8, annotation_clip=True)
            if k and looks[method].layer == 5:
                above.axvline(start, color="#8a8a92", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    strip.set_yticks(range(len(phases)), list(phases), fontsize=8)
    strip.set_ylim(len(phases) - 0.5, -0.5)
    strip.tick_params(length=0, labelsize=8)
    strip.tick_params(axis="x", labelsize=8.5, length=2)
    strip.spines[:].set_visible(False)


# --- frames -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """A method's poses on a frame, (m, K, 2) frame pixels, and what is wrong with them."""

    poses: Array
    verdict: Verdict
    error: float  # median distance of the points that were found from their labels, pixels; NaN where none was found


@dataclass(frozen=True, eq=False)
class ShownFrame:
    """A row of the page: the labels, and each method's panel. Pictures are JPEG."""

    title: str
    animals: int
    labels: bytes
    methods: dict[str, tuple[bytes, Judged]]


def aligned(val: Labels, guess: Labels) -> list[tuple[Array, Array]]:
    """Predictions on each labelled frame of ``val`` that its labels can judge, in its order: poses (m, K, 2) with the keypoints of ``val``,
    and scores (m,).

    Raises FormatError where the two have no video in common.
    """
    order = [guess.skeleton.keypoints.index(name) if name in guess.skeleton.keypoints else -1 for name in val.skeleton.keypoints]
    found, pairs = [], frame_pairs(val, guess)
    for _, guesses in pairs:
        animals = [p for f in guesses for p in f.predicted]
        wider = [np.concatenate([p.points, [[np.nan, np.nan]]])[order] for p in animals]  # -1 is the added row: not predicted
        found.append((stacked(wider, len(order)), np.array([p.score for p in animals], dtype=np.float64)))
    boxes = [[box for f in frames for box in f.unposed] for frames, _ in pairs]
    left_out = on_boxes([animals for _, _, animals in labelled(val)], [poses for poses, _ in found], boxes)
    return [(poses[~out], scores[~out]) for (poses, scores), out in zip(found, left_out, strict=True)]


def labelled(val: Labels) -> list[tuple[int, int, Array]]:
    """Video, number and animals (n, K, 2) of each labelled frame, in the order of ``aligned``; animals without a point are left out."""
    frames: dict[tuple[int, int], list[Array]] = {}
    for frame in val.labelled_frames:
        frames.setdefault((frame.video, frame.index), []).extend(i.points for i in frame.instances if i.labelled.any())
    return [(video, index, stacked(animals, len(val.skeleton))) for (video, index), animals in frames.items()]


def worst_first(truth: Sequence[Array], predicted: Sequence[tuple[Array, Array]]) -> list[int]:
    """Frames by AP (s2 = .1) of each alone, the lowest first. In a frame without animals a prediction is as bad as can be."""
    merits = []
    for animals, (poses, scores) in zip(truth, predicted, strict=True):
        ap = keypoint_ap([animals], [(poses, scores)], MEDIUM_S2).ap
        merits.append(float(len(poses) == 0) if math.isnan(ap) else ap)
    return [int(i) for i in np.argsort(merits, kind="stable")]


def show_frames(
    val: Labels, chosen: Sequence[int], predicted: Mapping[str, Sequence[tuple[Array, Array]]]
) -> tuple[list[ShownFrame], list[str]]:
    """The chosen frames with labels, and with each method's poses and errors, all cut to the same part.

    Args:
        val: labels.
        chosen: places in ``labelled(val)``.
        predicted: method -> what ``aligned`` gave.

    Returns:
        The frames that could be read, and a sentence for each video that could not.
    """
    frames = labelled(val)
    areas = animal_areas([animals for _, _, animals in frames])
    shown, missing = [], []
    for place in chosen:
        video, index, animals = frames[place]
        try:
            with open_video(val.videos[video]) as opened:
                image = opened.read(index)
        except (FormatError, OSError) as error:
            missing.append(str(error))
            continue
        poses = {method: found[place][0] for method, found in predicted.items()}
        title = val.videos[video].title(index)
        shown.append(_shown(image, title, val.skeleton, animals, areas[place], poses))
    return shown, list(dict.fromkeys(missing))


def _shown(image: Frame, title: str, skeleton: Skeleton, animals: Array, areas: Array, poses: Mapping[str, Array]) -> ShownFrame:
    crop = Crop(image, np.concatenate([animals.reshape(-1, 2), *(each.reshape(-1, 2) for each in poses.values())]), PANEL)
    here = crop.placed(animals, len(skeleton))
    panels = {}
    for method, found in poses.items():
        verdict = judge(animals, found, areas)
        distances = [np.linalg.norm(animals[row] - found[column], axis=-1) for row, column in verdict.pairs]
        known = np.concatenate(distances) if distances else np.empty(0)
        known = known[np.isfinite(known)]
        drawn = draw_errors(crop.image, skeleton, here, crop.placed(found, len(skeleton)), verdict, least=THIN)
        panels[method] = (_jpeg(drawn), Judged(found, verdict, float(np.median(known)) if known.size else math.nan))
    return ShownFrame(
        title, len(animals), _jpeg(draw_poses(crop.image, skeleton, here, width=max(THIN, line_width(here, crop.image.shape[:2])))), panels
    )


def _jpeg(image: Frame) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=84, subsampling=0)
    return file.getvalue()

"""``report.html`` of a comparison: who is best on these data and by how much, a table, charts, the worst frames side by side.

It is made from what the comparison's folder holds (``comparison_results``), so it can be written at any time, also of half a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.labels import FormatError, Labels
from smp_plugin.baselines import DLC, OWN, Job, budget_in_words, own_settings
from smp_plugin.comparison_pictures import (
    Look,
    ShownFrame,
    aligned,
    by_method,
    labelled,
    look,
    over_labels,
    over_time,
    show_frames,
    worst_first,
)
from smp_plugin.comparison_results import (
    Cell,
    Difference,
    Summary,
    in_words,
    mean_and_error,
    paired_differences,
    predictions_of,
    read_outcome,
    read_results,
    said_by,
    shown,
    summarise,
)
from smp_plugin.page import CSS, Html, bullets, escape, picture, table, write_page

WORST = 6  # frames
MOST_WARNINGS = 10  # that are not folded
AP_FIGURES = {"ap_s2_1": "AP, s2 = 1", "ap_s2_0.1": "AP, s2 = 0.1", "ap_s2_0.0025": "AP, s2 = 0.0025"}
# Figure: heading, how it is written, and which is better: +1 the greater, -1 the smaller, 0 neither.
TABLE: dict[str, tuple[str, str, int]] = {
    **{name: (heading, "{:.3f}", 1) for name, heading in AP_FIGURES.items()},
    "ar_s2_1": ("AR, s2 = 1", "{:.3f}", 1),
    "pixel_error_median": ("pixel error", "{:.2f}", -1),
    "missed": ("missed", "{:.1f}", -1),
    "invented": ("invented", "{:.1f}", -1),
    "doubled": ("doubled", "{:.1f}", -1),
    "frames_per_second": ("frames/s", "{:.1f}", 1),
    "peak_memory_gb": ("memory", "{:.2f}", -1),
    "train_minutes": ("minutes", "{:.1f}", 0),
    "steps": ("steps", "{:.0f}", 0),
}
DIFFERENCES = (*AP_FIGURES, "pixel_error_median", "missed", "invented")
DESCRIPTIONS = {
    "directpose": "this project's network with none of the fusion terms, labelled frames only",
    "smp-labeled": "this project's, with the fusion terms, labelled frames only",
    "smp": "this project's, with the fusion terms, labelled and unlabelled frames",
    "sleap-bottomup": "SLEAP, bottom-up",
    "sleap-topdown": "SLEAP, top-down",
    "dlc-dekr_w18": "DeepLabCut, DEKR",
    "dlc-top_down_resnet_50": "DeepLabCut, top-down with a ResNet-50",
    "dlc-rtmpose_s": "DeepLabCut, top-down with RTMPose",
}
HOW = (
    "Every method learnt from the same labelled frames, and predicted the same validation frames, which chose nothing: no early stopping, "
    "no best checkpoint, no threshold.",
    "AP and AR are COCO's for keypoints, in [0, 1], the greater the better; every prediction and every validation frame counts. s2 is "
    "the squared tolerance relative to the animal's area: at 1 (the SemiMultiPose paper's) it matters that animals are found, at 0.1 it "
    "matters too where their points are, at 0.0025 (SLEAP's) almost only that.",
    "Missed: labelled animals without a prediction. Invented: predictions where no animal is labelled. Doubled: predictions beyond the "
    "first of an animal. AP counts whatever a method finds, however unsure: SLEAP predicts for it with a lower threshold of peaks, 0.05, "
    "and 0 for the points of an animal that was found. These counts and the pixel error are of what a person is shown: of this project's "
    "methods, what scores above the cut that training chose on the frames it learnt from; of SLEAP's, peaks above its own threshold, 0.2; "
    "of DeepLabCut's, everything, as it has no cut for animals.",
    "The pixel error is the median over the labelled points of animals that were found: a method that misses the difficult animals looks "
    "better in it than it is.",
    "± is the standard error of the mean over runs (seeds); with one run there is none. Differences are taken between runs that share "
    "labels and seed, so what is hard about these labels drops out. A difference smaller than its standard error is reported as none; a "
    "method is called best only where it leads the next one by more standard errors than Student's t (97.5 %) asks for with so many pairs: "
    "12.7 with 2 pairs, 4.3 with 3, 2.8 with 5. A smaller lead may well be chance.",
    "Frames/s: prediction of the validation frames with the model loaded and warm, writing included. It is not measured alike where these "
    "are frames of a video, and is not the speed on a whole one: this project's methods and SLEAP's look for the frames, which lie "
    "scattered, and decode them within that time; DeepLabCut's read images that were made of them before. Memory: the most that the "
    "method's process, or the GPU where it used one, held at any time, training included. The points of the curves over training time cost "
    "no training time.",
)
PAGE_CSS = """
ul.lead { padding-left: 1.2rem } small { color: #6e6e76; font-size: .82em } th { vertical-align: bottom }
table.results { font-size: .88rem; min-width: 100% } table.results td, table.results th { padding-right: .42rem }
table.results td { white-space: nowrap }
table.results td:first-child, table.results th:first-child { position: sticky; left: 0; background: #fafaf8; z-index: 1 }
tr.group th { border-bottom: 1px solid #b9b9b2; padding-top: 1rem } tr.ours td:first-child { font-weight: 600; color: #00519e }
.charts { display: flex; flex-wrap: wrap; gap: 1rem }
.charts img { flex: 1 1 20rem; min-width: 0; max-width: 27rem; align-self: flex-start }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; padding: 0; margin: .3rem 0 .8rem; list-style: none }
.legend svg { vertical-align: middle; margin-right: .4rem }
#larger:checked ~ .wide .frames { grid-template-columns: repeat(var(--columns), 35rem) }
.frames { display: grid; grid-template-columns: repeat(var(--columns), minmax(17rem, 1fr)); gap: .35rem .6rem }
.frames h3 { grid-column: 1 / -1; margin: 1rem 0 0 } .frames h3 span { position: sticky; left: 0 }
.frames figure { margin: 0 } .frames figcaption { font-size: .84rem; line-height: 1.35; padding: .1rem 0 }
.frames img { width: 100% } .frames .labels { position: sticky; left: 0; background: #fafaf8; padding-right: .3rem }
.absent { background: #efefea; color: #6e6e76; border-radius: 4px; padding: 1rem }
@media (max-width: 900px) { .frames .labels, table.results td:first-child { position: static } .frames { gap: .35rem } }
"""


def write_comparison(folder: Path, *, title: str, val: Labels, facts: Mapping[str, object], notes: Sequence[str]) -> Path:
    """Write ``folder/report.html`` from the finished cells in ``folder``.

    Args:
        folder: of the comparison: ``results.csv``, and ``cells/<method>_<fraction>_<seed>`` with ``outcome.json`` and predictions.
            Cells without these two still have their figures in the table.
        title: of the page.
        val: the labels that the methods were measured on; its videos may be absent.
        facts: about data, budget and machine, name -> value.
        notes: sentences for the reader, e.g. which method could not run and why.

    Returns:
        The page's path.

    Raises:
        FormatError: ``results.csv`` is no table of results.
    """
    cells = read_results(folder)
    parts = [f"<h1>{escape(title)}</h1>", '<p class="faint">Pose estimation methods compared on the same labels</p>']
    parts.append(f'<ul class="lead">{"".join(f"<li>{escape(text)}</li>" for text in in_words(cells))}</ul>')
    warnings = [*notes, *_mixed_versions(cells), *said_by(folder, cells, lambda outcome: outcome.warnings)]
    parts.extend(f'<p class="warning">{escape(note)}</p>' for note in warnings[:MOST_WARNINGS])
    if rest := warnings[MOST_WARNINGS:]:
        parts.append(f'<details class="warning"><summary>{len(rest)} more warnings</summary>{bullets(rest)}</details>')
    if cells:
        methods = list(dict.fromkeys(cell.method for cell in cells))
        ours = reference_of(methods)
        looks = {method: look(method, methods, ours) for method in methods}
        parts.append("<h2>Means and standard errors</h2>" + _results(summarise(cells), ours))
        parts.append(_differences(cells, ours))
        parts.append(_charts(folder, cells, looks))
        parts.append(_frames(folder, cells, methods, ours, val))
        parts.append(_details(folder, cells, methods))
    parts.append("<h2>Data and machine</h2>" + table([], [(name, str(value)) for name, value in facts.items()]) if facts else "")
    parts.append(f"<h2>How the numbers were made</h2><details><summary>Definitions and conditions</summary>{bullets(HOW)}</details>")
    page = folder / "report.html"
    write_page(page, title, parts, CSS + PAGE_CSS)
    return page


def _mixed_versions(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each method of which runs were made by different versions: a comparison may be gone on with years later."""
    versions: dict[str, dict[str, None]] = {}
    for cell in cells:
        versions.setdefault(cell.method, {}).update({cell.version: None} if cell.version else {})
    return [
        f"The runs of {method} were made by different versions ({', '.join(made)}), so that its means may be of different methods."
        for method, made in versions.items()
        if len(made) > 1
    ]


def reference_of(methods: Sequence[str]) -> str:
    """The method that others are compared with: ``smp``, else another of ours, else the first."""
    return next((method for method in ("smp", *reversed(OWN)) if method in methods), methods[0])


# --- tables -------------------------------------------------------------------------------------------------------------------------------


def _results(summaries: Sequence[Summary], ours: str) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ("method", "runs", *(heading for heading, _, _ in TABLE.values())))
    body = ""
    for fraction, labels in _fractions(summaries).items():
        group = [s for s in summaries if s.fraction == fraction]
        body += _group_row(labels, fraction, len(TABLE) + 2)
        bold = {name: _best([s.mean[name] for s in group], name) for name in TABLE}
        for s in group:
            numbers = [_number(s, name, bold[name]) for name in TABLE]
            body += _row(s.method, [str(s.runs), *numbers], s.method == ours)
    note = (
        "Bold is the best mean, whatever its error. Missed, invented and doubled animals are counted over all validation frames; "
        "minutes and steps are those of training, memory is in GB at its peak, training included."
    )
    return f'<div class=wide><table class=results><tr>{head}</tr>{body}</table></div><p class="faint">{note}</p>'


def _differences(cells: Sequence[Cell], ours: str) -> str:
    """Every other method minus ours; nothing where there is no pair."""
    differences = paired_differences(cells, ours)
    if not differences:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in ("method", "pairs", *(TABLE[name][0] for name in DIFFERENCES)))
    body = ""
    for fraction, labels in _fractions(summarise(cells)).items():
        group = [d for d in differences if d.fraction == fraction]
        body += _group_row(labels, fraction, len(DIFFERENCES) + 2) if group else ""
        for d in group:
            body += _row(d.method, [str(d.pairs), *(_difference(d, name) for name in DIFFERENCES)])
    note = (
        f"Each method minus {ours}, over runs with the same labels and seed, mean ± standard error. Positive AP: the method is better than "
        f"{ours}; positive errors: it makes more of them. Grey: the difference is within its standard error, or there is one run only. "
        "Runs that found no animal have no pixel error, and are no pairs in it."
    )
    return (
        f"<h2>Differences to {escape(ours)}</h2><div class=wide><table class=results><tr>{head}</tr>{body}</table></div>"
        f'<p class="faint">{escape(note)}</p>'
    )


def _fractions(summaries: Sequence[Summary]) -> dict[str, int]:
    """Fraction -> number of labelled frames, ascending."""
    return {s.fraction: s.labels for s in sorted(summaries, key=lambda s: s.labels)}


def _group_row(labels: int, fraction: str, columns: int) -> str:
    asked = "" if fraction == str(labels) else f" ({escape(fraction)})"
    return f"<tr class=group><th colspan={columns}>{labels} labelled {'frame' if labels == 1 else 'frames'}{asked}</th></tr>"


def _row(method: str, numbers: Sequence[str], ours: bool = False) -> str:
    cells = "".join(f"<td class=number>{number}</td>" for number in numbers)
    return f"<tr{' class=ours' if ours else ''}><td>{escape(method)}</td>{cells}</tr>"


def _best(values: Sequence[float], name: str) -> str:
    """The best of several means as it is written; nothing where all look the same."""
    _, form, better = TABLE[name]
    known = [value for value in values if not math.isnan(value)]
    if not better or len({form.format(value) for value in known}) < 2:
        return ""
    return form.format(max(known) if better > 0 else min(known))


def _number(summary: Summary, name: str, best: str) -> str:
    mean, error, (_, form, better) = summary.mean[name], summary.error[name], TABLE[name]
    if math.isnan(mean):
        return "-"
    text = form.format(mean)
    text = f"<b>{text}</b>" if text == best else text
    return f"{text} <small>± {'-' if math.isnan(error) else form.format(error)}</small>" if better else text


def _difference(difference: Difference, name: str) -> str:
    mean, error, form = difference.mean[name], difference.error[name], TABLE[name][1]
    if math.isnan(mean):
        return "-"
    text = f"{'+' if mean > 0 else ''}{form.format(mean)}".replace("-", "\N{MINUS SIGN}")
    text = f"{text} <small>± {'-' if math.isnan(error) else form.format(error)}</small>"
    lead = difference.lead(name)
    if math.isnan(lead):
        return f'<span class="faint">{text}</span>'
    return text if lead else f'<span class="faint">none <small>({text})</small></span>'


# --- charts -------------------------------------------------------------------------------------------------------------------------------


def _charts(folder: Path, cells: Sequence[Cell], looks: Mapping[str, Look]) -> str:
    summaries = summarise(cells)
    fractions = _fractions(summaries)
    accuracy = [(over_labels(summaries, name, heading, looks), heading) for name, heading in AP_FIGURES.items() if len(summaries) > 1]
    accuracy_heading = "Accuracy against the number of labels" if len(fractions) > 1 else "Accuracy"
    curves = {cell.key: outcome.curve for cell in cells if (outcome := read_outcome(folder, cell)) and outcome.curve}
    training = []
    for fraction, labels in fractions.items():
        runs = {m: [curve for (method, share, _), curve in curves.items() if (method, share) == (m, fraction)] for m in looks}
        heading = f"AP, s2 = 0.1, {labels} labelled frames"
        training.append((over_time(runs, heading, looks), heading))
    costs = []
    for name, heading, unit in (
        ("frames_per_second", "Speed of prediction", "frames per second"),
        ("peak_memory_gb", "Memory at its peak, training included", "GB"),
    ):
        values = {m: mean_and_error([cell.figures[name] for cell in cells if cell.method == m]) for m in looks}
        costs.append((by_method(values, f"{heading}, {unit}", looks), heading))
    text = _chart_row(accuracy_heading, accuracy, "", _legend(looks) if len(fractions) > 1 else "")
    without = [m for m in looks if not any(key[0] == m for key in curves)]
    aside = f"No curve was recorded for {', '.join(without)}." if without else ""
    text += _chart_row("Accuracy over training time", training, aside, _legend(looks))
    unlike = " DeepLabCut's speed is without decoding of a video, that of the others with it." if {*looks} & {*DLC} else ""
    return text + _chart_row("Speed and memory", costs, f"Means over all runs of a method.{unlike}", "")


def _chart_row(heading: str, charts: Sequence[tuple[bytes | None, str]], aside: str, legend: str) -> str:
    pictures = "".join(picture(content, alt) for content, alt in charts if content)
    faint = f'<p class="faint">{escape(aside)}</p>' if aside else ""
    return f"<h2>{escape(heading)}</h2>{legend if pictures else ''}<div class=charts>{pictures}</div>{faint}" if pictures or faint else ""


def _legend(looks: Mapping[str, Look]) -> str:
    dashes = {"-": "", "--": " stroke-dasharray='6 3'", ":": " stroke-dasharray='2 2.5'"}
    marks = {
        "o": "<circle cx=16 cy=7 r=4 {}/>",
        "s": "<rect x=12.4 y=3.4 width=7.2 height=7.2 {}/>",
        "^": "<path d='M16 2 L20.6 10.5 L11.4 10.5 Z' {}/>",
    }
    entries = ""
    for method, style in looks.items():
        line = f"<line x1=0 x2=32 y1=7 y2=7 stroke='{style.colour}' stroke-width={style.width}{dashes[style.dash]} />"
        mark = marks[style.marker].format(f"fill='{style.colour}'")
        entries += f"<li><svg width=32 height=14>{line}{mark}</svg>{escape(method)}</li>"
    return f"<ul class=legend>{entries}</ul>"


# --- frames -------------------------------------------------------------------------------------------------------------------------------


def _frames(folder: Path, cells: Sequence[Cell], methods: Sequence[str], ours: str, val: Labels) -> str:
    """The worst frames of ``ours``, each with the labels and every method's poses side by side."""
    chosen = _shown_cells(cells, methods, ours)
    predicted, failed = {}, {}
    for method, cell in chosen.items():
        try:
            found, outcome = predictions_of(folder, cell), read_outcome(folder, cell)
            predicted[method] = aligned(val, shown(found, outcome.min_score if outcome else 0.0))
        except FormatError as error:
            failed[method] = str(error)
    heading = "<h2>Validation frames side by side</h2>"
    if not predicted:
        return f'{heading}<p class="absent">No predictions could be read: {escape("; ".join(failed.values()))}</p>'
    judge_by = ours if ours in predicted else next(iter(predicted))
    truth = [animals for _, _, animals in labelled(val)]
    frames, missing = show_frames(val, worst_first(truth, predicted[judge_by])[:WORST], predicted)
    cell = chosen[judge_by]
    text = (
        f"The frames on which {judge_by} is worst, the worst first. Models learnt from {cell.labels} labelled frames, seed {cell.seed}. "
        "A red line leads from a labelled point to the predicted one, and a red ring stands where a point was not predicted; a missed "
        "animal has a dashed red box, one invented where none is labelled a yellow box, one predicted twice a double violet box."
    )
    gone = "".join(f'<p class="absent">No picture: {escape(sentence)}</p>' for sentence in missing)
    if not frames:
        return f"{heading}{gone}"
    rows = "".join(_frame_row(n, frame, methods, chosen, failed) for n, frame in enumerate(frames, 1))
    larger = "<input type=checkbox id=larger> <label for=larger>larger pictures</label>"
    columns = f'{larger}<div class=wide><div class=frames style="--columns:{len(methods) + 1}">{rows}</div></div>'
    return f'{heading}<p class="faint">{escape(text)}</p>{gone}{columns}'


def _shown_cells(cells: Sequence[Cell], methods: Sequence[str], ours: str) -> dict[str, Cell]:
    """Per method its cell with the most labels that ``ours`` had, and the seed of ``ours`` where there is one, else the first."""
    most = max((cell for cell in cells if cell.method == ours), key=lambda cell: (cell.labels, -cell.seed))
    candidates = [cell for cell in cells if cell.fraction == most.fraction]
    nearest = sorted(candidates, key=lambda cell: (cell.seed != most.seed, cell.seed))
    return {method: found[0] for method in methods if (found := [cell for cell in nearest if cell.method == method])}


def _frame_row(number: int, frame: ShownFrame, methods: Sequence[str], shown: Mapping[str, Cell], failed: Mapping[str, str]) -> str:
    animals = f"{frame.animals} labelled {'animal' if frame.animals == 1 else 'animals'}"
    panels = f'<figure class="labels"><b>Labels</b>{picture(frame.labels, "Labels", "jpeg")}<figcaption>{animals}</figcaption></figure>'
    for method in methods:
        if method in frame.methods:
            content, judged = frame.methods[method]
            error = "" if math.isnan(judged.error) else f"; points {judged.error:.1f} px off (median)"
            inside, picture_of = f"{judged.verdict}{error}", picture(content, method, "jpeg")
        else:
            inside = ""
            reason = failed.get(method, "no run with this many labels is finished")
            picture_of = Html(f"<div class=absent>{escape(reason)}</div>")
        panels += f"<figure><b>{escape(method)}</b>{picture_of}<figcaption>{escape(inside)}</figcaption></figure>"
    return f"<h3><span>{number}. {escape(frame.title)}</span></h3>{panels}"


# --- details ------------------------------------------------------------------------------------------------------------------------------


def _details(folder: Path, cells: Sequence[Cell], methods: Sequence[str]) -> str:
    """Folded: what each method is, its version, settings and notes."""
    text = ""
    for method in methods:
        own = [cell for cell in cells if cell.method == method]
        known = [("What", DESCRIPTIONS[method])] if method in DESCRIPTIONS else []
        known.append(("Version", ", ".join(dict.fromkeys(cell.version for cell in own if cell.version)) or "-"))
        known.append(("Settings", "; ".join(dict.fromkeys(_settings(folder, cell) for cell in own)) or "-"))
        outcomes = [outcome for cell in own if (outcome := read_outcome(folder, cell))]
        said = list(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
        text += f"<h3>{escape(method)}</h3>{table([], known)}{bullets(said) if said else ''}"
    count = f"{len(methods)} {'method' if len(methods) == 1 else 'methods'}"
    return f"<h2>Methods</h2><details><summary>Versions, settings and notes of {count}</summary>{text}</details>"


def _settings(folder: Path, cell: Cell) -> str:
    """The job's, as far as its file can be read."""
    try:
        job = Job.read(cell.folder(folder))
        budget = budget_in_words(job.minutes, job.steps)
        peer = f"{cell.method.partition('-')[0]}."
        given = own_settings(job.settings) if cell.method in OWN else {n: v for n, v in job.settings.items() if n.startswith(peer)}
        preset = [f"preset {job.preset}"] if cell.method in OWN else []
        return ", ".join([budget, f"device {job.device}", *preset, *(f"{name} = {value}" for name, value in given.items())])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "-"

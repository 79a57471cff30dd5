"""``check``: what a run would learn from, and what looks wrong with it, as sentences and as one page with pictures. Nothing is trained."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from converters.labels import Labels, stacked
from smp_plugin.config import Config
from smp_plugin.diagnosis import Finding, Spot, alike, certain, likely, thumbnail
from smp_plugin.drawing import SIDES, draw_poses, keypoint_sides
from smp_plugin.frame_reader import FrameReader
from smp_plugin.model import LEVEL_STRIDES
from smp_plugin.page import CSS, Html, bullets, escape, picture, table, write_page
from smp_plugin.preparation import Material, complete_lengths, name_sources, prepare
from smp_plugin.progress import Reporter
from smp_plugin.report import Crop
from smp_plugin.run_folder import dated_folder, open_folder, spread

if TYPE_CHECKING:
    from smp_plugin.diagnosis import Thumbnail

PICTURES = 6  # of one finding
SAMPLES = 6  # frames of the project, whatever is found
GLIMPSES = 6  # frames of an unlabelled video that tell whether it is stuck
WIDTH = 380  # of a picture, pixels
CLOSE = 0.12  # share of the frame's width shown around an animal, at least
SPOTS = ".spots { display: flex; flex-wrap: wrap; gap: .8rem } .spots figure { margin: 0; width: 380px; max-width: 100% }"


def check(
    projects: list[Path] | None = None,
    *,
    config: Config | None = None,
    out: Path | None = None,
    val: Path | None = None,
    video_root: Path | None = None,
    unlabeled: list[Path] | None = None,
    reporter: Reporter | None = None,
) -> list[str]:
    """Read what ``train`` with the same arguments would learn from, say what it is and what looks wrong, and write ``check.html``.

    Args:
        projects, config, val, video_root, unlabeled: as of ``train``.
        out: the folder of the page; default a dated folder under ``runs/``. A run may follow in the same folder.

    Returns:
        A sentence for each problem, with its remedy.

    Raises:
        FormatError: bad input, as with ``train``.
    """
    reporter = reporter or Reporter(quiet=True)
    config = copy.deepcopy(config or Config())
    name_sources(config, projects, val, video_root, unlabeled, keep=False)
    material = prepare(config, reporter)
    choices, warnings = reporter.take()
    out = open_folder(out or dated_folder(), new=out is None)
    reporter.log_to(out / "log.txt")
    training, validation, every = material.training, material.validation, material.labels
    reader = FrameReader(material.videos, 1.0)
    sizes, thumbnails = _look(every, reader, reporter)
    findings = certain(training, validation, sizes, config.data.input_scale, config.data.crop, LEVEL_STRIDES[0])
    findings += [*likely(training, validation, thumbnails), *_stuck(material)]
    facts = _facts(every, sizes, config)
    for name, value in facts:
        reporter.say(f"{name}: {value}")
    for finding in findings:
        reporter.warn(finding.sentence)
    _write(out / "check.html", every, findings, facts, choices, warnings, reader)
    reporter.say(f"{len(findings) or 'nothing'} to look at; pictures: {out / 'check.html'}")
    return [finding.sentence for finding in findings]


def _look(
    labels: Labels, reader: FrameReader, reporter: Reporter
) -> tuple[dict[tuple[int, int], tuple[int, int]], dict[tuple[int, int], Thumbnail]]:
    """(height, width) and thumbnail of every labelled frame, which shows too that all can be read."""
    places = sorted({(f.video, f.index) for f in labels.frames})
    sizes, thumbnails = {}, {}
    with reporter.task("looking at labelled frames", len(places), "frames") as task:
        for number, place in enumerate(places, 1):
            frame = reader.video(place[0]).read(place[1])
            sizes[place], thumbnails[place] = (frame.shape[0], frame.shape[1]), thumbnail(frame)
            task.update(number)
    return sizes, thumbnails


def _stuck(material: Material) -> list[Finding]:
    """Unlabelled videos that show one picture from beginning to end."""
    findings, reader = [], FrameReader(material.unlabeled_videos, 1.0)
    for number, source in enumerate(material.unlabeled_videos):
        there = reader.video(number).frame_numbers
        glimpses = [there[int(i)] for i in np.linspace(0, 0.95 * (len(there) - 1), GLIMPSES)]  # the very end may be damaged
        seen = [thumbnail(frame.permute(1, 2, 0).numpy()) for frame in reader.get_many(number, glimpses)]
        if len(seen) == GLIMPSES and all(alike(seen[0], other) for other in seen[1:]):
            what = "frames from beginning to end show the same picture, as if the recording were stuck"
            findings.append(Finding(f"{source.name}: {what}; look at it, and take it out of the project or of --unlabeled."))
    return findings


def _facts(labels: Labels, sizes: dict[tuple[int, int], tuple[int, int]], config: Config) -> list[tuple[str, str]]:
    """What there is to learn from, name and value."""
    frames, keypoints = labels.frames, len(labels.skeleton)
    animals = [i for f in frames for i in f.instances]
    counts = [len(f.instances) for f in frames]
    known = np.array([i.labelled for i in animals]).reshape(-1, keypoints)
    lengths = complete_lengths([(i, list(range(keypoints))) for i in animals])  # as the input scale is chosen by
    shares = zip(labels.skeleton.keypoints, known.mean(axis=0), strict=True)
    facts = [
        ("frames", f"{len(frames)}, {' or '.join(_sizes(sizes))} pixels"),
        ("animals a frame", f"{min(counts)} to {max(counts)}, {np.mean(counts):.1f} on average"),
        ("keypoints an animal", f"{known.sum(axis=1).mean():.1f} of {keypoints}; {known.all(axis=1).mean():.0%} have all of them"),
        ("labelled share of keypoints", ", ".join(f"{name} {share:.0%}" for name, share in shares)),
    ]
    if len(lengths):
        low, middle, high = np.percentile(lengths, (5, 50, 95))
        scale, side = config.data.input_scale, np.median([max(size) for size in sizes.values()])
        facts.append(
            ("longer side of an animal's box", f"{middle:.0f} pixels (most {low:.0f} to {high:.0f}), {middle / side:.0%} of the frame")
        )
        facts.append(
            ("at the input scale", f"{scale * middle:.0f} pixels (most {scale * low:.0f} to {scale * high:.0f}), crops {config.data.crop}")
        )
    pairs = [f"{labels.skeleton.keypoints[a]} and {labels.skeleton.keypoints[b]}" for a, b in labels.skeleton.symmetries]
    facts.append(("left and right", ", ".join(pairs) or "no pairs: where there are some, give the skeleton symmetries"))
    return facts


def _sizes(sizes: dict[tuple[int, int], tuple[int, int]]) -> list[str]:
    """The most frequent first."""
    every = [f"{width} x {height}" for height, width in sizes.values()]
    different = sorted(set(every), key=every.count, reverse=True)
    return different if len(different) <= 3 else [*different[:2], f"{len(different) - 2} other sizes"]


def _write(
    path: Path,
    labels: Labels,
    findings: list[Finding],
    facts: list[tuple[str, str]],
    choices: list[str],
    warnings: list[str],
    reader: FrameReader,
) -> None:
    parts: list[str] = [f"<h1>{escape(path.parent.name)}</h1>", '<p class="faint">What training would learn from</p>']
    parts += [f'<p class="warning">{escape(text)}</p>' for text in warnings]
    parts.append("<h2>Data</h2>" + table([], facts) + bullets(choices))
    parts.append(f"<h2>{'To look at' if findings else 'Nothing found that looks wrong'}</h2>")
    if any(keypoint_sides(labels.skeleton)):
        parts.append(f'<p class="faint">{SIDES}</p>')
    for finding in findings:
        parts.append(f'<p class="warning">{escape(finding.sentence)}</p>' + _pictures(labels, finding.spots[:PICTURES], reader, CLOSE))
    samples = [Spot(f, tuple(range(len(f.instances)))) for f in spread(labels.frames, SAMPLES)]
    parts.append("<h2>Some labelled frames</h2>" + _pictures(labels, samples, reader, 1.0))
    write_page(path, path.parent.name, parts, CSS + SPOTS)


def _pictures(labels: Labels, spots: Sequence[Spot], reader: FrameReader, least: float) -> Html:
    """``least``: share of the frame's width that a picture shows at least."""
    figures = []
    for spot in spots:
        image = reader.video(spot.frame.video).read(spot.frame.index)
        poses = stacked([spot.frame.instances[n].points for n in spot.animals], len(labels.skeleton))
        crop = Crop(image, poses.reshape(-1, 2), WIDTH, least)
        file = io.BytesIO()
        Image.fromarray(draw_poses(crop.image, labels.skeleton, crop.placed(poses, len(labels.skeleton)))).save(file, "jpeg", quality=88)
        title = labels.videos[spot.frame.video].title(spot.frame.index)
        figures.append(f'<figure>{picture(file.getvalue(), title, "jpeg")}<figcaption class="faint">{escape(title)}</figcaption></figure>')
    return Html(f'<div class="spots">{"".join(figures)}</div>' if figures else "")

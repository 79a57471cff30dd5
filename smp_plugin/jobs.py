"""What ``smp-predict`` predicts, and into which files. What can be known to fail is asked here, before the first frame is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from converters.deeplabcut_machinelabels import check_machinelabels
from converters.deeplabcut_writing import video_names
from converters.files import is_one_of, refuse_overwriting
from converters.labels import FormatError, LabeledFrame, Skeleton, VideoSource
from converters.project import (
    ANALYSIS,
    DLC_PREDICTIONS,
    check_predictions,
    files_written,
    format_of,
    is_project,
    project_title,
    read_project,
)
from converters.video import open_video, video_source
from smp_plugin.config import parse_ranges
from smp_plugin.progress import Reporter
from smp_plugin.records import refuse_replacing

MACHINELABELS = "labeled-data"  # of a DeepLabCut project: predictions for a person to correct

Numbers = list[int] | range


@dataclass(frozen=True)
class Job:
    """What is predicted into one output.

    Attributes:
        output: a file; a folder for DeepLabCut's files of one video; or the folder ``labeled-data`` of a DeepLabCut project.
        kind: its format, one of those in `converters.project`, or `MACHINELABELS`.
        inputs: what the user named.
        videos: what frames are numbered by.
        wanted: for each video the frame numbers, ascending.
    """

    output: Path
    kind: str
    inputs: list[Path]
    videos: list[VideoSource]
    wanted: list[Numbers]

    @property
    def total(self) -> int:
        """Number of frames."""
        return sum(len(numbers) for numbers in self.wanted)

    @property
    def to_folder(self) -> bool:
        """Whether DeepLabCut's files of one video are written, under the names that it would give them."""
        return self.kind == DLC_PREDICTIONS and is_folder(self.output)

    @property
    def files(self) -> list[Path]:
        """All that may be written, in each of which something may be lost. None of `MACHINELABELS`: these are never replaced."""
        if self.kind == MACHINELABELS:
            return []
        files = files_written(self.output, self.videos, self.to_folder)
        return files if self.to_folder else [files[0], *(file for file in files[1:] if not is_one_of(file, self.inputs))]

    @property
    def config(self) -> Path:
        """Of `MACHINELABELS`: the project's file."""
        return self.output.parent / "config.yaml"


def plan(
    inputs: list[Path],
    output: Path,
    suffix: str | None,
    frames: str | None,
    video_root: Path | None,
    skeleton: Skeleton,
    reporter: Reporter,
) -> list[Job]:
    """Which frames are predicted, and where they are written; arguments as those of `predict`. `check` asks whether that is possible.

    Raises:
        FormatError: an input or the output is of no known kind, the keypoints of a project are not those of ``skeleton``, or there are no
            such frames.
    """
    kind = output_kind(output, suffix)
    absent: list[str] = []
    asked = [Job(output, kind, [path], *_asked(path, frames, kind, video_root, skeleton, reporter, absent)) for path in inputs]
    if absent:
        if not any(job.total for job in asked):
            raise FormatError(f"{absent[0]}, nor any other of these.")
        for sentence in absent:
            reporter.warn(f"{sentence}, nor any other of these, so that it is left out")
        asked = [_only_wanted(job) for job in asked if job.total]
    if kind == MACHINELABELS:
        jobs = [_without_labels(_together(asked))]
    elif is_folder(output):
        jobs = _one_by_one(asked, suffix or "slp")
    else:
        jobs = [_only_wanted(_together(asked)) if kind in (ANALYSIS, DLC_PREDICTIONS) else _together(asked)]
    if not sum(job.total for job in jobs):
        if kind == MACHINELABELS and frames not in (None, "all", "unlabeled"):
            raise FormatError(f"--frames {frames}: all these frames of {', '.join(map(str, inputs))} are labelled already; ask for others.")
        remedy = "extract some" if kind == MACHINELABELS else "try --frames all"
        raise FormatError(
            f"{', '.join(map(str, inputs))}: no frames are asked for with --frames {frames or 'unlabeled'}; {remedy}, or name videos."
        )
    return jobs


def is_folder(output: Path) -> bool:
    """Whether an output is a folder, there or to be made."""
    return output.is_dir() or not output.suffix


def output_kind(output: Path, suffix: str | None) -> str:
    """The output's format, one of those in `converters.project`, or `MACHINELABELS`. FormatError where its name says none."""
    if output.name == MACHINELABELS:
        if not (output.parent / "config.yaml").is_file():
            raise FormatError(f"-o {output}: there is no DeepLabCut project (config.yaml) around it; name a file, or another folder.")
        return MACHINELABELS
    if is_folder(output):
        if (output / "config.yaml").is_file():
            corrected = output / MACHINELABELS
            raise FormatError(f"-o {output} is a DeepLabCut project; name {corrected} to correct the predictions there, or another folder.")
        return format_of(Path(f"_.{suffix or 'slp'}"))
    if suffix is not None and not output.name.lower().endswith(f".{suffix}"):
        raise FormatError(f"--format {suffix}: -o {output} says another format; leave --format out, or name a folder.")
    try:
        return format_of(output)
    except FormatError as error:  # whose list of endings is of all that can be read
        endings = ".slp (SLEAP), .analysis.h5 (SLEAP analysis), .h5 or .csv (DeepLabCut), or .json (COCO results)"
        raise FormatError(f"-o {output}: predictions are written to a file that ends in {endings}, or to a folder; rename it.") from error


def _together(asked: list[Job]) -> Job:
    inputs = [path for job in asked for path in job.inputs]
    videos = [video for job in asked for video in job.videos]
    return replace(asked[0], inputs=inputs, videos=videos, wanted=[numbers for job in asked for numbers in job.wanted])


def _only_wanted(job: Job) -> Job:
    """The same without videos of which no frame is wanted."""
    kept = [(video, numbers) for video, numbers in zip(job.videos, job.wanted, strict=True) if len(numbers)]
    return replace(job, videos=[video for video, _ in kept], wanted=[numbers for _, numbers in kept])


def _one_by_one(asked: list[Job], suffix: str) -> list[Job]:
    """A file for each input, or for each video where the format holds only one."""
    titles = [_title(job.inputs[0]) for job in asked]
    kind, folder = asked[0].kind, asked[0].output
    if kind in (ANALYSIS, DLC_PREDICTIONS):
        asked = [replace(job, videos=[v], wanted=[w]) for job in asked for v, w in zip(job.videos, job.wanted, strict=True) if len(w)]
        titles = [video_names(job.videos)[0] for job in asked]
    if kind == DLC_PREDICTIONS:
        for number, title in enumerate(titles):
            if title.lower() in [other.lower() for other in titles[:number]]:
                raise FormatError(f"-o {folder}: two videos are called {title}, and DeepLabCut's files by them; use two folders.")
        return asked
    taken: set[str] = set()
    jobs = []
    for job, title in zip(asked, titles, strict=True):
        while title.lower() in taken:
            title += "_"
        taken.add(title.lower())
        jobs.append(replace(job, output=folder / f"{title}{'' if kind == ANALYSIS else '.predictions'}.{suffix}"))
    return jobs


def _title(path: Path) -> str:
    if is_project(path):
        return project_title(path)
    return path.stem if path.is_file() else path.name


def _asked(
    path: Path, frames: str | None, kind: str, video_root: Path | None, skeleton: Skeleton, reporter: Reporter, absent: list[str]
) -> tuple[list[VideoSource], list[Numbers]]:
    """Videos of one input and the frames wanted of each; ``absent`` is told of those that have none of them."""
    to_correct = kind == MACHINELABELS
    without_numbers = frames in (None, "all", "labeled", "unlabeled")
    if to_correct and frames == "labeled":
        raise FormatError("--frames labeled: only frames without labels are given to a person to correct; leave --frames out.")
    if not is_project(path):
        if frames in ("labeled", "unlabeled"):
            raise FormatError(f"--frames {frames}: {path} is no project and has no labels; give a project, or --frames all or 0-999.")
        source = video_source(path)
        if to_correct and source.kind == "file" and without_numbers:
            raise FormatError(f"{path}: which of its frames are to be corrected? Say so with --frames, such as --frames 0,500,1000.")
        chosen = _numbers(source, frames or "all", set(), reporter, absent)
        reporter.say(f"{path}: {len(chosen):,} frames")
        return [source], [chosen]
    labels = read_project(path, video_root)
    for note in labels.notes:
        reporter.warn(note)
    if labels.skeleton.keypoints != skeleton.keypoints:
        raise FormatError(
            f"{path}: its keypoints are {', '.join(labels.skeleton.keypoints)}, those of the model {', '.join(skeleton.keypoints)}; "
            "name the project's videos in its place, or another model with --model (names and their order must be the same)."
        )
    wanted: list[Numbers] = []
    for number, source in enumerate(labels.videos):
        labelled = {f.index for f in labels.labelled_frames if f.video == number}
        whole_video = to_correct and source.kind == "file" and without_numbers  # nobody corrects every frame of it
        wanted.append([] if whole_video else _numbers(source, frames or "unlabeled", labelled, reporter, absent))
    reporter.say(
        f"{path}: {sum(len(w) for w in wanted):,} frames ({frames or 'unlabeled, as for any project'}) of {len(labels.videos)} videos"
    )
    return labels.videos, wanted


def _numbers(source: VideoSource, frames: str, labelled: set[int], reporter: Reporter, absent: list[str]) -> Numbers:
    with open_video(source) as video:
        existing, name = video.frame_numbers, video.name
    if frames == "all":
        return existing if isinstance(existing, range) else list(existing)
    if frames == "labeled":
        return sorted(labelled)
    if frames == "unlabeled":
        return [i for i in existing if i not in labelled]
    wanted = parse_ranges(frames)
    last = max(existing, default=-1)
    chosen = {i for a, b in wanted for i in range(a, min(b, last) + 1)}
    found = [i for i in existing if i in chosen]
    if beyond := [end for _, end in wanted if end > last]:
        what = f"--frames {frames}: {name} has {len(existing):,} frames (0-{last}); frame {beyond[0]} does not exist"
        if found:
            reporter.warn(f"{what}, and those that do are predicted")
        else:
            absent.append(what)
    return found


def _without_labels(job: Job) -> Job:
    """The same without frames that are labelled in the project, under whatever name."""
    labels = read_project(job.config, predicted=False, require_videos=False)
    labelled = {place for frame in labels.labelled_frames for place in labels.videos[frame.video].places(frame.index)}
    wanted: list[Numbers] = []
    for video, numbers in zip(job.videos, job.wanted, strict=True):
        wanted.append([number for number in numbers if not video.places(number) & labelled])
    return _only_wanted(replace(job, wanted=wanted))


def check(jobs: list[Job], skeleton: Skeleton) -> None:
    """Raise what writing would, before anything is predicted.

    Raises:
        FormatError: an output can't be written, is an input, holds what must not be lost, or can't hold what is predicted.
    """
    inputs = [path for job in jobs for path in job.inputs]
    for job in jobs:
        if job.kind == MACHINELABELS:
            check_machinelabels(job.config, skeleton, job.videos)
        else:
            refuse_overwriting(job.output, inputs)
    refuse_replacing([file for job in jobs for file in job.files])
    for job in jobs:
        if job.kind != MACHINELABELS:
            check_predictions(job.output, skeleton, job.videos, _examples(job), job.inputs)


def _examples(job: Job) -> Iterator[LabeledFrame]:
    """A frame of each video, and each image: these may have names of their own in the output."""
    for number, (video, numbers) in enumerate(zip(job.videos, job.wanted, strict=True)):
        for index in numbers if video.kind == "images" else numbers[:1]:
            yield LabeledFrame(number, index)

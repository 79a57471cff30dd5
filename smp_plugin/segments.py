"""The work of a video in segments: each finished one is a small whole file, so that a run that was killed goes on where it stood.

The files lie in a hidden folder beside the output, ``.OUTPUT.segments``, with a record of what they were made from. The folder is there
exactly as long as its output is not finished: that is how a finished file is told from one that was cut short. The record stays beside a
finished output, ``.OUTPUT.made_from.json``: a name alone does not say of which videos an output is, nor that one of them was damaged. Files
are safetensors, which are read without running code, whatever is in them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from converters.deeplabcut_predictions import SCORER
from converters.deeplabcut_writing import video_names
from converters.files import written_whole
from converters.labels import FormatError, LabeledFrame, PredictedInstance, VideoSource, stacked
from converters.project import COCO
from smp_plugin import __version__
from smp_plugin.config import Config, to_dict
from smp_plugin.jobs import MACHINELABELS, Job, Numbers
from smp_plugin.progress import Reporter
from smp_plugin.records import RECORD, digest, record_of, stamp, written

if TYPE_CHECKING:
    from smp_plugin.inference import FramePoses

LENGTH = 1024  # frames: seconds of a GPU's work, minutes of a CPU's
SHORT = 32  # of the few hundred that a person is to correct, of which an interrupted run writes nothing else
_OTHER = {
    "version": "by another version of smp-plugin",
    "model": "with another model",
    "settings": "with other settings",
    "tracking": "with another choice of --track",
    "videos": "from other videos, or from videos that have changed",
    "frames": "for other frames",
}
_OF_PARTS = {*_OTHER} - {"tracking"}  # segments are predicted before animals are followed
_OF_WHOLE = {*_OTHER} - {"version"}  # each version's finished outputs stay as they are


@dataclass(frozen=True)
class Segment:
    """Frames that are predicted together.

    Attributes:
        place: among the segments of its job.
        video: index into the job's videos.
        frames: their numbers, ascending.
        to_end: the last of a whole video, which may hold more frames than its header promises: they belong to it.
        first: the first of its video.
    """

    place: int
    video: int
    frames: Numbers
    to_end: bool
    first: bool


@dataclass
class Found:
    """What was found in a segment, as arrays.

    Attributes:
        numbers: (F,) frame numbers; fewer than the segment's where the video ended or the run was interrupted.
        counts: (F,) animals in each.
        poses, scores, point_scores: (A, K, 2) frame pixels, (A,) and (A, K), of all animals, frame by frame.
        length: frames of the video as read so far, and as its header promised.
        complete: whether it was not interrupted.
        trouble: UTF-8 bytes of what is wrong with the video after these frames, which makes them its last ones; mostly none.
    """

    numbers: np.ndarray
    counts: np.ndarray
    poses: np.ndarray
    scores: np.ndarray
    point_scores: np.ndarray
    length: np.ndarray
    complete: np.ndarray
    trouble: np.ndarray

    @classmethod
    def of(
        cls, found: Sequence[tuple[int, FramePoses]], keypoints: int, length: tuple[int, int], complete: bool = True, damage: str = ""
    ) -> Found:
        """From (number, animals) of each frame."""
        return cls(
            np.array([number for number, _ in found], np.int64),
            np.array([len(animals.scores) for _, animals in found], np.int64),
            stacked([pose for _, animals in found for pose in animals.poses], keypoints),
            np.array([score for _, animals in found for score in animals.scores], np.float64),
            np.array([scores for _, animals in found for scores in animals.point_scores], np.float64).reshape(-1, keypoints),
            np.array(length, np.int64),
            np.array(complete),
            np.frombuffer(damage.encode(), np.uint8),
        )

    @property
    def damage(self) -> str:
        """What is wrong with the video after these frames."""
        return self.trouble.tobytes().decode()

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        return save({each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Found:
        """The opposite. Raises SafetensorError, KeyError or ValueError for anything else."""
        arrays = load(data)
        found = cls(*(arrays[each.name] for each in fields(cls)))
        agree = len(found.poses) == len(found.scores) == len(found.point_scores) == found.counts.sum()
        if not agree or len(found.counts) != len(found.numbers):
            raise ValueError("the arrays do not fit together")
        return found

    def frames(self, video: int) -> Iterator[LabeledFrame]:
        """Each frame, also those without animals."""
        animals = zip(self.poses, self.scores, self.point_scores, strict=True)
        for number, count in zip(self.numbers, self.counts, strict=True):
            predicted = [PredictedInstance(p, None, float(s), q) for p, s, q in itertools.islice(animals, int(count))]
            yield LabeledFrame(video, int(number), predicted=predicted)


def cut(job: Job, length: int) -> list[Segment]:
    """The work of a job in segments of ``length`` frames, the last of each video shorter."""
    pieces = [
        (video, wanted[start : start + length], isinstance(wanted, range) and start + length >= len(wanted), start == 0)
        for video, wanted in enumerate(job.wanted)
        for start in range(0, len(wanted), length)
    ]
    return [Segment(place, *piece) for place, piece in enumerate(pieces)]


@dataclass
class Work:
    """A job in segments, and the folder of those that are finished.

    Attributes:
        job: what is predicted into which output.
        made_from: what two runs must agree on for one to go on with the other's work, from `made_from`.
        length: frames in a segment; those of an unfinished run, where there is one to go on with.
        missing: places of segments that are not finished.
        damage: what is wrong with its videos, a sentence each; known of an output that is finished.
    """

    job: Job
    made_from: dict[str, str]
    length: int
    missing: set[int] = field(default_factory=set)
    damage: list[str] = field(default_factory=list)

    @functools.cached_property
    def name(self) -> Path:
        """What messages call the output: DeepLabCut's files are known by the first part of their names."""
        output = self.job.output
        return output / f"{video_names(self.job.videos)[0]}{SCORER}" if self.job.to_folder else output

    @property
    def folder(self) -> Path:
        """Where finished segments are kept."""
        return self.name.with_name(f".{self.name.name}.segments")

    @property
    def record(self) -> Path:
        """What a finished output was made from."""
        return record_of(self.name)

    @functools.cached_property
    def segments(self) -> list[Segment]:
        """All of them, in order."""
        return cut(self.job, self.length)

    def look(self) -> None:
        """Find what an earlier run has left.

        Raises:
            FormatError: it was made from something else, so its segments are no parts of this prediction.
        """
        record = self.folder / RECORD
        if record.is_file():
            before, other = self._compared(record, _OF_PARTS)
            if other:
                raise FormatError(f"--resume: {self.name} was begun {other}; call it as before, or leave --resume out to start again.")
            self.length = before["length"]

    def finished(self, model: Path) -> bool:
        """Whether an earlier run has finished the output. Without a record (the output was moved here alone), dates decide: whether it is
        newer than the model and all that is predicted.

        Raises:
            FormatError: it was made from something else.
        """
        existing = [path for path in outputs(self.job) if path.exists()]
        if not existing or self.folder.exists():
            return False
        if not self.record.is_file():
            read = [model, *self.job.inputs, *(path for video in self.job.videos for path in video.paths)]
            return max(stamp(path)[1] for path in existing) > max(stamp(path)[1] for path in read)
        before, other = self._compared(self.record, _OF_WHOLE)
        if other:
            raise FormatError(
                f"--resume: {self.name} was made {other}; call it as before (new inputs come last), move it away to have it predicted "
                "again, or leave --resume out to predict everything again."
            )
        self.damage = before["damage"]
        return True

    def changed(self) -> list[Path]:
        """Files of a finished output that are others than were written: a person's corrections, or what another program put there."""
        before = written(self.record)
        return [path for path in self.job.files if path.name in before and path.is_file() and digest(path) != before[path.name]]

    def _compared(self, record: Path, keys: set[str]) -> tuple[dict[str, Any], str]:
        """A record of an earlier run, and in what of ``keys`` this run differs, in words; of settings, in those that both know."""
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            settings, mine = (json.loads(made["settings"]) for made in (before, self.made_from))
            if all(settings.get(key, value) == value for key, value in mine.items()):
                before["settings"] = self.made_from["settings"]
            before["length"], before["damage"] = int(before["length"]), [str(each) for each in before["damage"]]
            return before, ", ".join(words for key, words in _OTHER.items() if key in keys and before[key] != self.made_from[key])
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return {}, "in a way that can't be read"

    def begin(self, resume: bool, reporter: Reporter) -> None:
        """Make the folder, with the segments of the earlier run where it is resumed and without them where it is not."""
        try:
            if resume and (self.folder / RECORD).is_file():  # none is missing until all were read: what is cut off here removes nothing
                self.missing = {s.place for s in self.segments if (found := self.read(s)) is None or not found.complete}
                reporter.say(f"{self.name}: {self._done:,} of {self.job.total:,} frames were predicted earlier")
                return
            self.missing = {segment.place for segment in self.segments}
            if self.folder.exists():
                if self.begun:
                    reporter.warn(f"{self.name}: an unfinished run is started again from its first frame; --resume goes on with one.")
                shutil.rmtree(self.folder)
            self.folder.mkdir()
            self._keep_record(self.folder / RECORD)
        except OSError as error:
            raise FormatError(f"{self.folder} can't be written ({error.strerror}); choose another folder for -o.") from error

    def save(self, segment: Segment, data: bytes) -> None:
        """Keep a segment, from `Found.to_bytes`."""
        with written_whole(self._file(segment)) as path:
            path.write_bytes(data)
        if Found.from_bytes(data).complete:
            self.missing.discard(segment.place)

    def read(self, segment: Segment) -> Found | None:
        """What was found in a segment, or in a part of it; None where there is no such file, or a damaged one."""
        try:
            return Found.from_bytes(self._file(segment).read_bytes())
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    @property
    def begun(self) -> bool:
        """Whether there is something to write."""
        return any(self._file(segment).exists() for segment in self.segments)

    def finish(self) -> None:
        """The output is finished."""
        if outputs(self.job):
            self._keep_record(self.record, written={path.name: digest(path) for path in self.job.files if path.exists()})
        self.remove()

    def remove(self) -> None:
        """There is nothing to go on with."""
        shutil.rmtree(self.folder)

    def _keep_record(self, record: Path, **more: object) -> None:
        with written_whole(record) as path:
            path.write_text(json.dumps({**self.made_from, "length": self.length, "damage": self.damage, **more}), encoding="utf-8")

    @property
    def left(self) -> int:
        """Frames in segments that are not finished."""
        return self.job.total - self._done

    @property
    def _done(self) -> int:
        """Frames in finished segments."""
        return sum(len(segment.frames) for segment in self.segments if segment.place not in self.missing)

    def _file(self, segment: Segment) -> Path:
        return self.folder / f"{segment.place:06}.safetensors"


def made_from(job: Job, model: Path, settings: dict[str, object]) -> dict[str, str]:
    """What two runs must agree on for one to go on with the other's work, as texts.

    Args:
        model: a model file.
        settings: of prediction; batch and runtime are no matter, since they only round differently.
    """
    videos = [[video.embedded, _middle(video), [[path.name, *stamp(path)] for path in video.paths]] for video in job.videos]
    labels = [stamp(path) for path in job.inputs if job.kind == COCO and path.is_file()]  # whose ids of images are in the output
    return {
        "version": __version__,
        "model": digest(model),
        "settings": json.dumps({key: value for key, value in settings.items() if key not in ("batch", "runtime", "track")}, sort_keys=True),
        "tracking": json.dumps(settings.get("track")),
        "videos": hashlib.sha256(json.dumps([*videos, *labels]).encode()).hexdigest(),
        "frames": hashlib.sha256(b"|".join(np.array(wanted, np.int64).tobytes() for wanted in job.wanted)).hexdigest(),
    }


def _middle(video: VideoSource) -> str:
    """Some of a video's bytes: cameras that run together may make files of the same name, size and time."""
    if video.kind != "file" or not video.paths[0].is_file():
        return ""
    with video.paths[0].open("rb") as file:
        file.seek(stamp(video.paths[0])[0] // 2)
        return file.read(4096).hex()


def divide(jobs: list[Job], model: Path, config: Config, resume: bool, reporter: Reporter) -> tuple[list[Work], list[str]]:
    """The work that is to be done; of jobs that an earlier run has finished there is none where it is resumed, but their videos' damage.

    Raises:
        FormatError: what is to be resumed was made from something else.
    """
    settings, batch = to_dict(config)["predict"], config.predict.batch or 1
    works, by_date, damage = [], [], list[str]()
    for job in jobs:
        frames = SHORT if job.kind == MACHINELABELS else LENGTH
        length = -(-frames // batch) * batch  # whole batches, so that it does not matter which segments are predicted in one go
        work = Work(job, made_from(job, model, settings), length)
        if resume and work.finished(model):
            reporter.say(f"{work.name}: finished earlier, skipped")
            by_date += [] if work.record.is_file() else [work.name]
            if changed := work.changed():
                reporter.warn(
                    f"--resume: {changed[0]} was changed since it was written, and stays so; move it away to have it predicted again."
                )
            damage += work.damage
            continue
        if resume:
            work.look()
        works.append(work)
    if by_date:
        others = f" and {len(by_date) - 1} more" if len(by_date) > 1 else ""
        reporter.warn(
            f"--resume: nothing says what {by_date[0]}{others} was made from, so it is taken as finished by its date alone; leave --resume "
            "out, or move it away, if it may be of other videos or settings."
        )
    return works, damage


def leave(works: list[Work], something: bool, reporter: Reporter) -> None:
    """The run ends here. Work that is not finished is kept if there is a part to go on with, or an output that would seem finished.

    ``something``: whether the run has written anything; with nothing to go on with at all, nothing is left.
    """
    unfinished = [work for work in works if work.folder.is_dir()]
    something = something or any(work.left < work.job.total for work in unfinished)
    for work in unfinished:
        if done := work.job.total - work.left:
            kept = f"{done:,} of {work.job.total:,} frames are kept in {work.folder}"
            reporter.say(f"{work.name}: {kept}; the same command with --resume goes on from there")
        elif not something or not any(path.exists() for path in outputs(work.job)):
            work.remove()


def outputs(job: Job) -> list[Path]:
    """Files of which a finished job has made one."""
    if job.kind == MACHINELABELS:
        return []  # these are never replaced: `check` refuses them
    if job.to_folder:
        return [job.output / f"{video_names(job.videos)[0]}{SCORER}{several}.h5" for several in ("", "_el")]
    return [job.output]

"""DeepLabCut's predictions of whole videos: tables, ``.h5`` and ``.csv``. Those for a person to correct are in `deeplabcut_machinelabels`.

Traps of the format:

* DeepLabCut finds predictions by name, ``VIDEO SCORER [_el] .h5``, and what it reads beside them by ``VIDEO SCORER _meta.pickle``;
* a row for every frame of the video, and the columns of all animals: a table is known only after the last frame, so animals are kept in a
  file until then, and the table is written in pieces;
* DeepLabCut's own predictions may count from the corner of a crop, which only the pickled companion says: it is read without unpickling it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from converters.deeplabcut_tables import (
    KEY,
    UNIQUE,
    Column,
    Table,
    columns_of,
    individual_names,
    number_animals,
    predicted_instance,
    read_table,
    write_csv,
    write_h5,
)
from converters.deeplabcut_writing import video_names
from converters.files import Finder, is_one_of, natural_order, refuse_overwriting, written_whole
from converters.hdf5 import check_hdf5
from converters.labels import FormatError, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, check_frame, files_of
from converters.pickled import plain
from converters.video import open_video, table_length

SCORER = "DLC_SemiMultiPose_best"  # DeepLabCut's create_labeled_video(init_weights="SemiMultiPose_best.pt") asks for this one
_SCORERS = ("DLC", "DeepCut")  # how their names begin
_COORDS = ("x", "y", "likelihood")
_TRACKER = re.compile(r"_(el|bx|sk|ctd|tr)$")
_VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".m4v", ".wmv", ".webm", ".flv")
_META = ("Scorer", "fps", "frame_dimensions", "nframes", "cropping", "cropping_parameters", "individuals", "bodyparts", "unique_bodyparts")
_PIECE = 1 << 20  # values of a table held at once


# --- predictions of whole videos, written ---


def write_dlc_predictions(
    path: Path,
    skeleton: Skeleton,
    videos: Sequence[VideoSource],
    frames: Iterable[LabeledFrame],
    provenance: dict[str, Any],
    inputs: Iterable[Path] = (),
    *,
    several: bool | None = None,
) -> int:
    """Write predictions as DeepLabCut's ``analyze_videos`` does: a row for each frame of a video, NaN where nothing was found.

    Positions are in pixels of the whole frame. Animals of one track share their columns; those without one are numbered in each frame
    anew. Memory does not grow with the length of the video; files appear whole or not at all, also where nothing was found.

    Args:
        path: what to write, which decides how much:

            * a folder (made where there is none): for each video ``VIDEO SCORER.h5`` with `SCORER`, ``_el`` before the suffix where there
              are several animals, and beside it the same as ``.csv`` and ``_meta.pickle``: what DeepLabCut finds by itself;
            * a name that DeepLabCut would give (``clipDLC_MyNet_el.h5`` for ``clip.mp4``): the same three files, under this name, but for
              those beside it that are inputs;
            * any other name that ends in ``.h5`` or ``.csv``: this file alone.
        skeleton: what the instances' points are.
        videos: a file holds one; several need a folder.
        frames: at most one for each frame of a video, in any order, read once. A person's animals get the likelihood 1, and hide
            predicted ones of their tracks.
        provenance: JSON values that say where the predictions come from; kept inside ``.h5`` files where pandas does not look.
        inputs: further files that must not be overwritten; the videos never are.
        several: whether files are those of a project for several animals, with a level of columns more, and a name that such projects look
            for; None: whether there is a track, or a frame with several animals. They are in any case where there is.

    Returns:
        The number of frames read from ``frames``.

    Raises:
        FormatError: several videos for one file, an input would be overwritten, or a frame does not fit the skeleton and videos.
    """
    path = Path(path).absolute()
    to_folder = path.is_dir() or path.suffix.lower() not in (".h5", ".csv")
    if not to_folder and len(videos) != 1:
        raise FormatError(f"{path} would hold {len(videos)} videos, but DeepLabCut keeps one in a file; name a folder to write.")
    names = video_names(videos)
    protected = [*files_of(videos), *inputs]
    if not to_folder:
        refuse_overwriting(path, protected)
    with ExitStack() as stack:
        found = [_Found(file, len(skeleton)) for file in _scratch(path, to_folder, len(videos), stack)]
        count = _collect(path, skeleton, videos, frames, found)
        several = any(len(each.tracks) > 1 or each.most > 1 for each in found) or (
            any(each.tracks for each in found) if several is None else several
        )
        for video, name, each in zip(videos, names, found, strict=True):
            file = path / f"{name}{SCORER}{'_el' if several else ''}.h5" if to_folder else path
            scorer, multi = _scorer(file, name) or SCORER, several or bool(_TRACKER.search(file.stem))
            columns = columns_of(scorer, each.individuals() if multi else None, skeleton.keypoints, _COORDS)
            size = each.measure(path, video)
            kept = {"provenance": json.dumps(provenance), "video": json.dumps(_described(video))}
            write = _writers(columns, each, _meta(scorer, size, each, skeleton, multi), kept)
            for one in (file, *_companions(file, name)):
                if to_folder or not is_one_of(one, protected):
                    write[one.suffix.lower()](stack.enter_context(written_whole(one, protected)))
    return count


def _scratch(path: Path, to_folder: bool, count: int, stack: ExitStack) -> list[IO[bytes]]:
    """Files without a name, of which a killed process leaves nothing, on the disk of what will be written.

    A new folder ``path`` goes where nothing was written.
    """
    try:
        if to_folder and not path.exists():
            path.mkdir()
            stack.callback(lambda: path.rmdir() if not any(path.iterdir()) else None)
        return [stack.enter_context(tempfile.TemporaryFile(dir=path if to_folder else path.parent)) for _ in range(count)]
    except OSError as error:
        raise FormatError(f"{path} cannot be written ({error.strerror}); choose an existing folder that you may write to.") from error


@dataclass
class _Found:
    """The animals found in one video, in a file in the order they came."""

    file: IO[bytes]
    keypoints: int
    tracks: dict[str, int] = field(default_factory=dict)
    others: int = 0  # most animals without a track in a frame
    most: int = 0  # most animals in a frame
    n_frames: int = 0
    seen: int = 0  # frames given

    @property
    def record(self) -> np.dtype:
        return np.dtype([("frame", "i8"), ("animal", "i4"), ("values", "f8", (self.keypoints, 3))])

    def add(self, frame: LabeledFrame) -> None:
        animals = [animal for animal in frame.shown if animal.labelled.any()]
        records = np.zeros(len(animals), self.record)
        for record, number, animal in zip(records, number_animals(animals, self.tracks), animals, strict=True):
            scores = animal.point_scores if isinstance(animal, PredictedInstance) else np.ones(len(animal.points))
            scores = np.where(animal.labelled, scores, np.nan)
            record["frame"], record["animal"], record["values"] = frame.index, number, np.column_stack([animal.points, scores])
        self.file.write(records.tobytes())
        self.others = max(self.others, -int(records["animal"].min(initial=0)))
        self.seen += 1
        self.most, self.n_frames = max(self.most, len(animals)), max(self.n_frames, frame.index + 1)

    def measure(self, path: Path, source: VideoSource) -> tuple[int, int, float]:
        """Width, height and frames per second. Makes the table, which ``path`` gets, as long as the video, or to the last animal."""
        width, height, fps = 0, 0, None
        try:
            with open_video(source) as video:
                width, height, fps = video.width, video.height, video.fps
            if source.kind == "embedded" and source.original is not None:
                with open_video(source.original) as video:
                    fps = video.fps
        except FormatError:
            pass
        self.n_frames = max(1, table_length(path, source, self.n_frames - 1, self.seen))
        return width, height, fps or 30.0

    def individuals(self) -> list[str]:
        return individual_names(self.tracks, self.others) or ["animal1"]

    def pieces(self, columns: list[Column]) -> Iterator[np.ndarray]:
        """The table's rows, some at a time."""
        self.file.flush()
        size = os.fstat(self.file.fileno()).st_size
        records = np.memmap(self.file, self.record, "r") if size else np.zeros(0, self.record)
        order = np.argsort(records["frame"], kind="stable")
        numbers = np.asarray(records["frame"])[order]
        step = max(1, _PIECE // len(columns))
        for start in range(0, self.n_frames, step):
            stop = min(start + step, self.n_frames)
            piece = np.full((stop - start, len(columns) // (3 * self.keypoints), self.keypoints, 3), np.nan)
            chosen = records[np.sort(order[slice(*np.searchsorted(numbers, (start, stop)))])]
            slots = np.where(chosen["animal"] >= 0, chosen["animal"], len(self.tracks) - 1 - chosen["animal"])
            piece[chosen["frame"] - start, slots] = chosen["values"]
            yield piece.reshape(stop - start, -1)


def _collect(path: Path, skeleton: Skeleton, videos: Sequence[VideoSource], frames: Iterable[LabeledFrame], found: list[_Found]) -> int:
    count = 0
    for frame in frames:
        check_frame(path, frame, skeleton, videos)
        found[frame.video].add(frame)
        count += 1
    return count


def is_own_table(path: Path) -> bool:
    """Whether `write_dlc_predictions` has written an ``.h5`` file, which holds its note, a ``.csv`` file, which has its scorer, or is
    called as DeepLabCut calls it and has such an ``.h5`` file beside it, or a ``_meta.pickle``, which says less than DeepLabCut's own.
    """
    import h5py

    try:
        if path.suffix.lower() == ".pickle":
            return sorted(plain(path.read_bytes())["data"]) == sorted(_META)
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig") as text:
                scorer = text.readline(1000).removeprefix("scorer,").partition(",")[0]
            if scorer == SCORER or not (scorer.startswith(_SCORERS) and scorer in path.stem):
                return scorer == SCORER
            path = path.with_suffix(".h5")
        with h5py.File(path, "r") as file:
            check_hdf5(file)
            return f"{KEY}/smp_provenance" in file
    except (OSError, ValueError, KeyError, RuntimeError, TypeError):  # what h5py raises, and what is no such description
        return False


def prediction_files(path: Path, videos: Sequence[VideoSource], to_folder: bool) -> list[Path]:
    """The files that `write_dlc_predictions` may write; in a folder, what is predicted decides which of two names a video's get."""
    names = video_names(videos)
    if to_folder:
        tables = [(path / f"{name}{SCORER}{several}.h5", name) for name in names for several in ("", "_el")]
    else:
        tables = [(path, names[0])] if len(names) == 1 else []
    return list(dict.fromkeys(file for table, name in tables for file in (table, *_companions(table, name)))) or [path]


def existing_companions(path: Path, video: VideoSource) -> list[Path]:
    """What is there already of the files that `write_dlc_predictions` writes beside the file ``path``.

    Raises:
        FormatError: they say that the video was cropped, so that positions in ``path`` would be taken to count from there.
    """
    (name,) = video_names([video])
    there = [file for file in _companions(path, name) if file.exists()]
    if there and _corner(path, _scorer(path, name) or SCORER, []) != (0, 0):
        raise FormatError(f"{path} would count from the whole frame, and {there[-1]} says from a crop; give the output another name.")
    return there


def _companions(path: Path, video: str) -> list[Path]:
    """What DeepLabCut expects beside a file that is named as it names them."""
    scorer, other = _scorer(path, video), ".h5" if path.suffix.lower() == ".csv" else ".csv"
    return [path.with_suffix(other), path.with_name(f"{video}{scorer}_meta.pickle")] if scorer is not None else []


def _scorer(path: Path, video: str) -> str | None:
    """The scorer in the name of a file that is named as DeepLabCut does."""
    rest = _TRACKER.sub("", path.stem).removeprefix(video)
    return rest if path.stem.startswith(video) and rest.startswith(_SCORERS) else None


def _meta(scorer: str, size: tuple[int, int, float], found: _Found, skeleton: Skeleton, multi: bool) -> dict[str, Any]:
    """DeepLabCut's description of an analysed video."""
    width, height, fps = size
    corners, individuals = [0, width, 0, height], found.individuals() if multi else ["animal"]
    values: list[object] = [scorer, fps, (width, height), found.n_frames, False, corners, individuals, list(skeleton.keypoints), []]
    return dict(zip(_META, values, strict=True))


def _writers(columns: list[Column], found: _Found, meta: dict[str, Any], kept: dict[str, str]) -> dict[str, Callable[[Path], None]]:
    """How a video's files are written, by their suffixes."""
    rows = range(found.n_frames)

    def h5(file: Path) -> None:
        write_h5(file, columns, rows, found.pieces(columns), kept)

    def csv(file: Path) -> None:
        write_csv(file, columns, rows, found.pieces(columns))

    def described(file: Path) -> None:
        file.write_bytes(pickle.dumps({"data": meta}))

    return {".h5": h5, ".csv": csv, ".pickle": described}


def _described(video: VideoSource) -> dict[str, Any]:
    original = _described(video.original) if video.original is not None else None
    return {"paths": video.written, "embedded": video.embedded, "original": original}


def _from_description(noted: dict[str, Any], finder: Finder) -> VideoSource:
    original = _from_description(noted["original"], finder) if noted["original"] is not None else None
    return VideoSource(tuple(finder.find(name) or finder.expected(name) for name in noted["paths"]), noted["embedded"], original)


# --- predictions of whole videos, read ---


def read_dlc_predictions(path: Path, video_root: Path | None = None, predicted: bool = True, require_videos: bool = False) -> Labels:
    """Read predictions of DeepLabCut's, or of `write_dlc_predictions`; nothing in the files is executed.

    Likelihoods become point scores, and their mean over an animal's points its score. Individuals become tracks. Every row becomes a
    frame, also one in which nothing was found. The video is the one that this project noted, else the one of the same name beside the file.

    Args:
        path: an ``.h5`` or ``.csv`` file of predictions, or of ``machinelabels``.
        video_root: folder to look for the video in, or its images, if they are not found otherwise.
        predicted: read the animals, too; without them the frames are empty.
        require_videos: raise where the video or an image is not found, if the file says its name, by its own or in it; otherwise it keeps
            the path that it should have.

    Raises:
        FormatError: no such file, no table of DeepLabCut's, or a video that is not found.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise FormatError(f"{path} does not exist; name an .h5 or .csv file of DeepLabCut's predictions.")
    table, notes = read_table(path), []
    scorers = list(dict.fromkeys(column.scorer for column in table.columns))
    if len(scorers) > 1:
        notes.append(f"{path}: the predictions of {scorers[0]} are read, those of {', '.join(scorers[1:])} are left out.")
        table = table.of_scorer(scorers[0])
    of_animals = list(dict.fromkeys(column.bodypart for column in table.columns if column.individual != UNIQUE))
    unique = [name for name in dict.fromkeys(column.bodypart for column in table.columns) if name not in of_animals]
    if unique and of_animals:
        notes.append(f"{path}: {', '.join(unique)} exist once in a picture and belong to no animal; they are left out.")
    try:
        skeleton = Skeleton(tuple(of_animals or unique))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    video, numbers = _predicted_video(path, table, scorers[0], video_root, notes)
    named = scorers[0] in path.stem or "video" in table.attributes or not all(isinstance(row, int) for row in table.rows)
    if require_videos and named and (missing := [file for file in video.paths if not file.exists()]):
        raise FormatError(f"{path} is of {missing[0]}, which is not found; give its folder with --video-root FOLDER.")
    corner = _corner(path, scorers[0], notes)
    frames = {number: LabeledFrame(0, number) for number in numbers}
    for individual, values in table.animals(skeleton.keypoints).items() if predicted else ():
        values[..., :2] += corner
        for row in np.flatnonzero(np.isfinite(values[..., :2]).all(axis=2).any(axis=1)):
            animal = predicted_instance(values[row], individual)
            if animal is not None:
                frames[numbers[row]].predicted.append(animal)
    return Labels(skeleton, [video], [frames[number] for number in sorted(frames)], path, notes)


def _predicted_video(path: Path, table: Table, scorer: str, root: Path | None, notes: list[str]) -> tuple[VideoSource, list[int]]:
    """The video, and the frame number of each row."""
    finder = Finder(path.parent, root)
    names = [row for row in table.rows if isinstance(row, str)]
    if names and len(names) < len(table.rows):
        raise FormatError(f"{path}: some rows are numbers and some are images; predictions have one kind, so save the file again.")
    if names:
        beside, project = Finder(path.parent), Finder(path.parent.parent.parent, root)
        images = {name: beside.find(name.rpartition("/")[2]) or project.find(name) or path.parent / name for name in names}
        ordered = sorted(set(images.values()), key=natural_order)
        places = {image: place for place, image in enumerate(ordered)}
        return VideoSource(tuple(ordered)), [places[images[name]] for name in names]
    numbers = [row for row in table.rows if isinstance(row, int)]
    if "video" in table.attributes:
        try:
            return _from_description(json.loads(table.attributes["video"]), finder), numbers
        except (ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"{path}: the note of the video in it is damaged; the video is looked for by name.")
    stem = path.stem.partition(scorer)[0].rstrip("_") or path.stem
    for folder in [path.parent] if root is None else [path.parent, root.absolute()]:
        if same := sorted(file for file in folder.iterdir() if file.stem == stem and file.suffix.lower() in _VIDEO_SUFFIXES):
            return VideoSource((same[0],)), numbers
    notes.append(f"{path}: no video called {stem} lies beside it; where the video itself is needed, put it there, or give --video-root.")
    return VideoSource((path.parent / f"{stem}.mp4",)), numbers


def _corner(path: Path, scorer: str, notes: list[str]) -> tuple[float, float]:
    """Where the analysed part of the frames begins, by DeepLabCut's companion file; (0, 0) where that says nothing."""
    companion = path.with_name(path.stem.partition(scorer)[0] + scorer + "_meta.pickle")
    if scorer not in path.stem or not companion.is_file():
        return 0.0, 0.0
    try:
        data = plain(companion.read_bytes())["data"]
        if data["cropping"] is not True:
            return 0.0, 0.0
        x, _, y, _ = data["cropping_parameters"]
        corner = float(x), float(y)
        if not np.isfinite(corner).all():
            raise ValueError(f"the crop begins at {corner}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        notes.append(f"{companion} cannot be read ({error}); if the video was cropped for the analysis, positions count from the crop.")
        return 0.0, 0.0
    notes.append(f"{path}: the video was cropped for the analysis; positions are moved by ({x}, {y}) to count from the whole frame.")
    return corner

"""SLEAP analysis files (``.analysis.h5``): dense arrays of one video, track by track, as SLEAP's "Export Analysis HDF5" lays them out.

Datasets, with the axes in the order that MATLAB sees reversed: ``tracks`` (track, 2, node, frame), ``point_scores`` (track, node, frame),
``instance_scores`` and ``tracking_scores`` (track, frame), but ``track_occupancy`` (frame, track); ``track_names``, ``node_names``,
``edge_names``, ``edge_inds``, ``labels_path``, ``video_path``, ``video_ind``, ``provenance``. The layout is that of sleap-io 0.9
(``io/analysis_h5.py``), which reads what is written here.

Traps of the format:

* one file holds one video, and a frame without animals is only a frame that no track occupies;
* an animal without a track has no place: where there are no tracks at all, SLEAP makes some, ``track_0`` the first animal of each frame;
* a person's animals are told from a model's only by their missing (NaN) scores;
* axes may be in another order, which the attribute ``dims`` of each dataset names; older files do not name edges and videos;
* an attribute holds 64 kB at most, so the images of a sequence are a dataset of this project, ``image_paths``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import Finder, written_whole
from converters.hdf5 import check_hdf5, check_space, written_pieces
from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource, check_frame, files_of
from converters.video import table_length

_BLOCK = 1024  # frames in memory at once, and in one piece of a dataset
_FEW = 1 << 20  # animals that are read without a question
_PER_BYTE = 65  # more cannot lie in a byte of compressed positions, 16 bytes each, for gzip makes at best a 1032nd of something
_NOTED = "untracked_places"
# Axes of each dataset, in SLEAP's order
_AXES = {
    "tracks": ("track", "xy", "node", "frame"),
    "point_scores": ("track", "node", "frame"),
    "instance_scores": ("track", "frame"),
    "tracking_scores": ("track", "frame"),
    "track_occupancy": ("frame", "track"),
}


def write_analysis(
    path: Path,
    skeleton: Skeleton,
    videos: Sequence[VideoSource],
    frames: Iterable[LabeledFrame],
    provenance: dict[str, Any],
    inputs: Iterable[Path] = (),
) -> int:
    """Write the animals of one video as SLEAP's analysis file, whole or not at all, in memory that does not grow with their number.

    As in SLEAP, a person's animal takes the place of a predicted one of the same track. Animals without a track get places in the order of
    their scores, a person's first: ``track_0``... as SLEAP calls them, or ``untracked_0``... beside tracks, where SLEAP would drop them.

    Args:
        path: the file to write; an existing one is replaced.
        skeleton: what the instances' points are.
        videos: exactly one.
        frames: at most one for each frame, in any order, but fastest in ascending order.
        provenance: JSON values that say where the file comes from.
        inputs: further files that must not be overwritten; the video never is.

    Returns:
        The number of frames read.

    Raises:
        FormatError: several videos, ``path`` is an input or not writable, or a frame does not fit the skeleton and the video.
    """
    import h5py

    path = Path(path).absolute()
    if len(videos) != 1:
        raise FormatError(f"{path} can hold one video, and there are {len(videos)}; write a file for each, or a .slp for all.")
    (video,) = videos
    with written_whole(path, [*files_of(videos), *inputs]) as temporary, h5py.File(temporary, "w") as file:
        arrays = _Arrays(file, len(skeleton))
        count, last = 0, -1
        for frame in frames:
            check_frame(path, frame, skeleton, videos)
            arrays.add(frame)
            count, last = count + 1, max(last, frame.index)
        arrays.finish(table_length(path, video, last, count))
        _write_names(file, skeleton, arrays)
        _write_origin(file, video, provenance)
        file.attrs["skeleton_name"] = skeleton.name or ""
        file.attrs["skeleton_symmetries"] = json.dumps([[skeleton.keypoints[i] for i in pair] for pair in skeleton.symmetries])
    return count


class _Arrays:
    """The datasets with a frame axis, written block by block; tracks and frames are added as they come."""

    def __init__(self, file: Any, n_keypoints: int) -> None:
        self.tracks: dict[str, int] = {}  # place by name
        self.untracked: list[int] = []  # places of animals without a track
        self._n_frames = 0
        self._block = -1
        self._waiting: list[LabeledFrame] = []
        sizes = {"track": 0, "xy": 2, "node": n_keypoints, "frame": 0}
        self._datasets = {}
        for name, axes in _AXES.items():
            kind, fill = (np.uint8, 0) if name == "track_occupancy" else (np.float64, np.nan)
            self._datasets[name] = file.create_dataset(
                name,
                shape=tuple(sizes[axis] for axis in axes),
                maxshape=tuple(None if axis in ("track", "frame") else sizes[axis] for axis in axes),
                chunks=tuple({"track": 1, "frame": _BLOCK}.get(axis, sizes[axis]) for axis in axes),
                dtype=kind,
                fillvalue=fill,
                compression="gzip",
                compression_opts=9,
            )
            self._datasets[name].attrs["dims"] = json.dumps(axes)

    def add(self, frame: LabeledFrame) -> None:
        """Keep a frame until its block is full."""
        block = frame.index // _BLOCK
        if block != self._block:
            self._flush()
            self._block = block
        self._waiting.append(frame)
        self._n_frames = max(self._n_frames, frame.index + 1)

    def finish(self, n_frames: int) -> None:
        """Write the last block; there are at least ``n_frames`` frames."""
        self._n_frames = max(self._n_frames, n_frames)
        self._flush()

    def _flush(self) -> None:
        placed = [(frame.index % _BLOCK, self._place(instance, taken), instance) for frame, taken, instance in self._animals()]
        n_tracks = len(self.tracks) + len(self.untracked)
        for name, axes in _AXES.items():
            shape = self._datasets[name].shape
            sizes = {"track": n_tracks, "frame": self._n_frames}
            self._datasets[name].resize(tuple(sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True)))
        if placed:
            for name, dataset in self._datasets.items():
                self._fill(name, dataset, placed)
        self._waiting = []

    def _animals(self) -> Iterable[tuple[LabeledFrame, set[int], Instance]]:
        for frame in self._waiting:
            taken: set[int] = set()
            for instance in sorted(frame.shown, key=lambda i: -np.nan_to_num(i.score) if isinstance(i, PredictedInstance) else -np.inf):
                if instance.labelled.any():
                    yield frame, taken, instance

    def _place(self, instance: Instance, taken: set[int]) -> int:
        """The animal's place on the track axis: its track's, or the next one for animals without."""
        if instance.track is not None:
            place = self.tracks.setdefault(instance.track, len(self.tracks) + len(self.untracked))
            if place not in taken:
                taken.add(place)
                return place
        free = next((place for place in self.untracked if place not in taken), None)
        if free is None:
            free = len(self.tracks) + len(self.untracked)
            self.untracked.append(free)
        taken.add(free)
        return free

    def _fill(self, name: str, dataset: Any, placed: list[tuple[int, int, Instance]]) -> None:
        """Put the waiting animals into the block, which may have been written before: frames come in any order."""
        start = self._block * _BLOCK
        by_frame = _AXES[name][0] == "frame"
        part = (slice(start, start + _BLOCK), ...) if by_frame else (..., slice(start, start + _BLOCK))
        block = dataset[part]
        for index, place, instance in placed:
            if by_frame:
                block[index, place] = 1
            elif name == "tracks":
                block[place, :, :, index] = instance.points.T
            elif isinstance(instance, PredictedInstance) and name == "point_scores":
                block[place, :, index] = instance.point_scores
            elif isinstance(instance, PredictedInstance) and name == "instance_scores":
                block[place, index] = instance.score
        check_space(Path(dataset.file.filename))
        dataset[part] = block


def _write_names(file: Any, skeleton: Skeleton, arrays: _Arrays) -> None:
    names = {place: name for name, place in arrays.tracks.items()}
    stem = "untracked" if arrays.tracks else "track"
    made = {}
    for number, place in enumerate(arrays.untracked):
        name = f"{stem}_{number}"
        while name in arrays.tracks:
            name += "_"
        made[place] = name
    names |= made
    keypoints = skeleton.keypoints
    for key, values in {
        "track_names": [names[place] for place in sorted(names)],
        "node_names": list(keypoints),
        "edge_names": [[keypoints[a], keypoints[b]] for a, b in skeleton.edges],
    }.items():
        file.create_dataset(key, data=np.char.encode(np.array(values, dtype=str), "utf-8"))
    file.create_dataset("edge_inds", data=np.array(skeleton.edges, dtype=np.int64).reshape(-1, 2))
    file.attrs[_NOTED] = np.array(arrays.untracked, dtype=np.int64)  # of this project: their names are no tracks
    file.attrs["preset"], file.attrs["format"] = "matlab", "analysis"


def _write_origin(file: Any, video: VideoSource, provenance: dict[str, Any]) -> None:
    meta = {"dataset": f"{video.embedded}/video"} if video.kind == "embedded" else {}
    file.attrs["video_backend_metadata"] = json.dumps(meta)
    if video.kind == "images":
        file.create_dataset("image_paths", data=np.char.encode(np.array(video.written), "utf-8"), compression="gzip")
    file.create_dataset("video_path", data=video.written[0])
    file.create_dataset("video_ind", data=0)
    file.create_dataset("labels_path", data=str(provenance.get("source", "")))
    file.create_dataset("provenance", data=json.dumps(provenance))


def is_analysis(path: Path) -> bool:
    """Whether an HDF5 file is SLEAP's analysis file, whatever its name."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "track_occupancy" in file
    except OSError:
        return False


def is_own_analysis(path: Path) -> bool:
    """Whether `write_analysis` has written a file, which notes what SLEAP does not."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _NOTED in file.attrs
    except OSError:
        return False


def read_analysis(path: Path, video_root: Path | None = None, predicted: bool = True, require_videos: bool = True) -> Labels:
    """Read a SLEAP analysis file. Animals without any score are a person's; the others are a model's, in ``predicted``.

    Frames that no animal occupies are not in the file, so they are not in ``frames``.

    Args:
        path: the file.
        video_root: folder to look for the video in, if it is not where the file says.
        predicted: read predictions too.
        require_videos: raise where the video is not found or not named; otherwise it keeps the path in the file.

    Raises:
        FormatError: not an analysis file, damaged, or its video is not found.
    """
    import h5py

    path = Path(path).absolute()
    try:
        with h5py.File(path, "r") as file:
            absent = [name for name in ("tracks", "track_occupancy", "track_names", "node_names") if name not in file]
            if absent:
                raise FormatError(f"{path} is an HDF5 file, but no SLEAP analysis file: it has no '{absent[0]}'; export it again.")
            check_hdf5(file, _at_once)
            skeleton = _read_skeleton(path, file)
            video = _read_video(path, file, Finder(path.parent, video_root), require_videos)
            frames = _read_frames(path, file, len(skeleton), predicted)
    except FormatError:
        raise
    except Exception as error:  # h5py raises what it meets: OSError, KeyError, TypeError, ValueError
        cause = str(error) or "for an unknown reason"
        raise FormatError(f"{path} cannot be read as a SLEAP analysis file and may be damaged ({cause}); export it again.") from error
    return Labels(skeleton, [video], frames, path)


def _texts(values: Any) -> list[Any]:
    """Bytes, or nested lists of them, as texts; an empty list was written as an array of numbers."""
    found: list[Any] = np.asarray(values).tolist()
    return [_texts(each) if isinstance(each, list) else each.decode() if isinstance(each, bytes) else str(each) for each in found]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_skeleton(path: Path, file: Any) -> Skeleton:
    names = _texts(file["node_names"][()])
    place = {name: number for number, name in enumerate(names)}
    edges = _texts(file["edge_names"][()]) if "edge_names" in file else []
    symmetries = json.loads(_text(file.attrs.get("skeleton_symmetries", "[]")))
    lines = tuple((place[a], place[b]) for a, b in edges)
    mirrored = sorted({(min(place[a], place[b]), max(place[a], place[b])) for a, b in symmetries})  # sleap-io writes them in any order
    try:
        return Skeleton(tuple(names), lines, tuple(mirrored), _text(file.attrs.get("skeleton_name", "")) or None)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _read_video(path: Path, file: Any, finder: Finder, required: bool) -> VideoSource:
    named = _texts(file["image_paths"][()]) if "image_paths" in file else [_text(file["video_path"][()])] if "video_path" in file else []
    if not any(named):
        if required:
            raise FormatError(f"{path} does not name its video; export it again with a newer SLEAP.")
        named = [path.name.removesuffix(".h5").removesuffix(".analysis") + ".mp4"]
    found = [finder.find(name) for name in named]
    if required and None in found:
        raise FormatError(
            f"{path} names the video {named[found.index(None)]}, which is not found; give its folder with --video-root FOLDER."
        )
    paths = tuple(there or finder.expected(name) for name, there in zip(named, found, strict=True))
    dataset = json.loads(_text(file.attrs.get("video_backend_metadata", "{}"))).get("dataset") or ""
    return VideoSource(paths, embedded=dataset.removesuffix("/video") or None)


def _at_once(dataset: Any) -> int:
    """Bytes of a dataset that are in memory together: arrays are read in pieces, for they are mostly empty.

    Three hours of thirty animals are 19 GB of NaN and an animal here and there, of which gzip makes a thousandth. Such a size says nothing
    about the file: pieces are read where something was written and an animal is.
    """
    return 0 if dataset.name.lstrip("/") in _AXES else dataset.nbytes


def _read_frames(path: Path, file: Any, n_keypoints: int, predicted: bool) -> list[LabeledFrame]:
    occupied = _Array(file, "track_occupancy")
    n_tracks = occupied.sizes["track"]
    sizes = {"track": n_tracks, "frame": occupied.sizes["frame"], "node": n_keypoints, "xy": 2}
    if _Array(file, "tracks").sizes != sizes:
        raise FormatError(
            f"{path}: 'tracks' has the shape {file['tracks'].shape}, which does not fit its tracks and nodes; export it again."
        )
    names: list[str | None] = list(_texts(file["track_names"][()])) or [None] * n_tracks
    for place in file.attrs.get(_NOTED, []):
        names[place] = None
    where = occupied.where_set(max(_FEW, _PER_BYTE * file["tracks"].id.get_storage_size()))
    points = _Array(file, "tracks").values(where, sizes)
    scores = {"point_scores": np.full(points.shape[:2], np.nan), "instance_scores": np.full(len(points), np.nan)}
    scores |= {name: _Array(file, name).values(where, sizes) for name in scores if name in file}
    found = np.isfinite(points).all(axis=2).any(axis=1).tolist()
    frames: dict[int, LabeledFrame] = {}
    for number, (index, place) in enumerate(where.tolist()):
        frame = frames.setdefault(index, LabeledFrame(0, index))
        if not found[number]:
            continue
        score, each = float(scores["instance_scores"][number]), scores["point_scores"][number]
        if np.isnan(score) and np.isnan(each).all():
            frame.instances.append(Instance(points[number], names[place]))
        elif predicted:
            frame.predicted.append(PredictedInstance(points[number], names[place], np.nan_to_num(score), np.nan_to_num(each)))
    return list(frames.values())


class _Array:
    """A dataset with a frame and a track axis, read in pieces. The file says the order of its axes, or it is SLEAP's."""

    def __init__(self, file: Any, name: str) -> None:
        self._dataset, self._name = file[name], name
        dims = self._dataset.attrs.get("dims")
        self._axes: list[str] = list(json.loads(_text(dims)) if dims is not None else _AXES[name])
        shape = self._dataset.shape
        if sorted(self._axes) != sorted(_AXES[name]) or len(shape) != len(self._axes) or self._dataset.dtype.kind not in "fiub":
            raise ValueError(f"{name} holds no numbers by {', '.join(_AXES[name])}")
        self.sizes = dict(zip(self._axes, shape, strict=True))

    def where_set(self, most: int) -> np.ndarray:
        """(animals, 2) frame and track of what is not 0, in this order; what was never written is 0. ValueError for more than ``most``."""
        found, count = [np.empty((0, 2), dtype=np.int64)], 0
        for piece in written_pieces(self._dataset):
            spans, occupied = dict(zip(self._axes, piece, strict=True)), self._read(piece, ("frame", "track")) > 0
            count += int(np.count_nonzero(occupied))
            if count > most:
                raise ValueError(f"{self._name} marks more animals than are stored")
            found.append(np.argwhere(occupied) + (spans["frame"].start, spans["track"].start))
        places = np.concatenate(found)
        return places[np.lexsort((places[:, 1], places[:, 0]))]

    def values(self, where: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """(animals, ...) the values at these frames and tracks, by node and xy where these are axes; NaN where none were written."""
        if any(size != sizes[axis] for axis, size in self.sizes.items()):
            raise ValueError(f"{self._name} has the shape {self._dataset.shape}, which does not fit its tracks and nodes")
        inner = [axis for axis in ("node", "xy") if axis in self._axes]
        found = np.full((len(where), *(sizes[axis] for axis in inner)), np.nan)
        for piece in written_pieces(self._dataset):
            spans = dict(zip(self._axes, piece, strict=True))
            first, last = np.searchsorted(where[:, 0], [spans["frame"].start, spans["frame"].stop])
            tracks = where[first:last, 1]
            here = first + np.flatnonzero((tracks >= spans["track"].start) & (tracks < spans["track"].stop))
            if len(here):
                frames, tracks = where[here].T
                block = self._read(piece, ("frame", "track", *inner))
                found[(here, *(spans[axis] for axis in inner))] = block[frames - spans["frame"].start, tracks - spans["track"].start]
        return found

    def _read(self, piece: tuple[slice, ...], axes: Sequence[str]) -> np.ndarray:
        return np.transpose(self._dataset[piece], [self._axes.index(axis) for axis in axes])

"""SLEAP projects and packages (``.slp``, ``.pkg.slp``): read through sleap-io, predictions written so that the SLEAP GUI opens them.

Traps of the format:

* an invisible node may still have a position, which the GUI made up: only visible nodes count, through ``Instance.numpy()``;
* the GUI may leave instances without any visible node, two entries for one frame, and predictions that a person has since corrected;
* sleap-io finds image sequences only from the current directory, and videos only from there and beside the project: they are found here;
* a package may number its videos 0, 15, 29, which sleap-io understands only with opened videos;
* skeletons and tracks are compared by identity, and instance scores are float32;
* sleap-io resamples videos of variable frame rate as it reads them, and so gives other frames than those that were labelled;
* sleap-io writes from objects, about 3 kB an animal: long predictions are appended to the tables of a file that it has begun.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import Finder, written_whole
from converters.hdf5 import check_hdf5, check_space, written_pieces
from converters.labels import (
    FormatError,
    Instance,
    LabeledFrame,
    Labels,
    PredictedInstance,
    Skeleton,
    VideoSource,
    check_frame,
    files_of,
    stacked,
)
from converters.video import Video, at_once, open_video

_USER, _PREDICTED = 0, 1  # the format's instance types
_ROWS_AT_ONCE = 16384  # an array of one row costs far more than the row
_NEGATIVE_FRAME = np.dtype([("video_id", "u4"), ("frame_idx", "u8")])


def read_slp(path: Path, video_root: Path | None = None, predicted: bool = True, require_videos: bool = True) -> Labels:
    """Read a SLEAP project or package.

    A person's instances go to ``instances``, a model's to ``predicted``; predictions that a person has corrected and instances without a
    visible node are left out. Entries for the same frame are joined. A package's videos are its embedded images; ``original`` is set to the
    video they were taken from.

    Args:
        path: the ``.slp`` or ``.pkg.slp`` file.
        video_root: folder to look for videos in that are not where the project says.
        predicted: read predictions too.
        require_videos: raise for videos with labels that are not found, and leave out others; otherwise they keep the path the project
            names.

    Raises:
        FormatError: not a SLEAP project, damaged, several different skeletons, or a video with labels, or every video, that is not found.
    """
    path = Path(path).absolute()
    project = _load(path)
    skeleton, orders = _read_skeleton(path, project)
    finder = Finder(path.parent, video_root)
    found = [_read_video(path, video, finder) for video in project.videos]
    videos, missing = [source for source, _ in found], {number: files for number, (_, files) in enumerate(found) if files}
    frames, notes = _read_frames(project, orders, predicted), _notes(path, project)
    if missing and require_videos:
        notes.append(_not_needed(path, missing, frames, len(videos)))
    _check_distinct(path, project, videos, finder)
    if missing and require_videos:
        there = {number: place for place, number in enumerate(number for number in range(len(videos)) if number not in missing)}
        videos = [videos[number] for number in there]
        frames = [replace(frame, video=there[frame.video]) for frame in frames if frame.video in there]
    return Labels(skeleton, videos, frames, path, notes, _left_behind(path, project, frames))


def _not_needed(path: Path, missing: dict[int, list[str]], frames: list[LabeledFrame], videos: int) -> str:
    """A note on videos of which files are ``missing``; FormatError where one of them has labels, or none of the ``videos`` is there."""
    labelled = {frame.video for frame in frames if frame.instances or frame.negative}
    for number, files in missing.items():
        if number in labelled or len(missing) == videos:
            others = f" (and {len(files) - 1} more of its images)" if len(files) > 1 else ""
            raise FormatError(f"{path} names the video {files[0]}{others}, which is not found; give its folder with --video-root FOLDER.")
    some = ", ".join(files[0] for files in list(missing.values())[:3]) + (", ..." if len(missing) > 3 else "")
    return (
        f"{path}: {len(missing)} of the project's videos are not found and have no labels ({some}); they are left out; "
        "--video-root FOLDER says where videos are."
    )


def _load(path: Path) -> Any:
    sio = _sleap_io()
    import h5py

    try:
        with h5py.File(path, "r") as file:
            absent = [name for name in ("metadata", "videos_json", "tracks_json", "frames", "instances", "points") if name not in file]
            if absent:
                raise FormatError(f"{path} is an HDF5 file, but no SLEAP project: it has no '{absent[0]}'. Name a .slp or .pkg.slp file.")
            check_hdf5(file, at_once)
            opened = _renumbered(file)
        return sio.load_slp(str(path), open_videos=opened)
    except FormatError:
        raise
    except Exception as error:  # sleap-io raises what it meets: OSError, KeyError, IndexError, JSONDecodeError, ValueError
        if not h5py.is_hdf5(path):
            raise FormatError(f"{path} is no SLEAP project (not an HDF5 file); name a .slp or .pkg.slp file.") from error
        cause = str(error) or "for an unknown reason"
        raise FormatError(f"{path} cannot be read as a SLEAP project and may be damaged ({cause}); save it again from SLEAP.") from error


def _sleap_io() -> Any:
    try:
        import sleap_io
    except ImportError as error:
        raise FormatError("SLEAP projects need the package sleap-io; install it with: pip install sleap-io") from error
    return sleap_io


def _renumbered(file: Any) -> bool:
    """Whether an embedded video's number differs from its place in the list of videos."""
    numbers = [_dataset_number(json.loads(text)["backend"].get("dataset")) for text in file["videos_json"][()]]
    return any(number not in (None, place) for place, number in enumerate(numbers))


def _dataset_number(dataset: str | None) -> int | None:
    match = re.fullmatch(r"video(\d+)(/video)?", dataset or "")
    return int(match[1]) if match else None


def _read_skeleton(path: Path, project: Any) -> tuple[Skeleton, dict[int, list[int]]]:
    """The project's skeleton, and by ``id`` of each sleap-io skeleton the places of our keypoints in it."""
    used = {id(instance.skeleton): instance.skeleton for frame in project.labeled_frames for instance in frame.instances}
    skeletons = list(used.values()) or list(project.skeletons)
    if not skeletons:
        raise FormatError(f"{path} has no skeleton; open it in SLEAP, define one, and save it again.")
    first = next((each for each in skeletons if each.edges), skeletons[0])
    names = list(first.node_names)
    for other in skeletons:
        if sorted(other.node_names) != sorted(names):
            raise FormatError(
                f"{path} has {len(skeletons)} different skeletons ({', '.join(names)} | {', '.join(other.node_names)}); "
                "keep one per project: save the animals of each kind to a project of their own."
            )
    try:
        symmetries = sorted({(min(pair), max(pair)) for pair in first.symmetry_inds})
        skeleton = Skeleton(tuple(names), tuple(dict.fromkeys(first.edge_inds)), tuple(symmetries), first.name)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    return skeleton, {id(other): [list(other.node_names).index(name) for name in names] for other in skeletons}


def _read_video(path: Path, video: Any, finder: Finder) -> tuple[VideoSource, list[str]]:
    """The video, and which of its files are not found."""
    meta = video.backend_metadata
    if "crop" in meta:
        raise FormatError(
            f"{path} shows a part of the video {video.filename} (a virtual crop); save the cropped video as a file of its own."
        )
    names = _names(video)
    found = [finder.find(name) for name in names]
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    paths = tuple(file or finder.expected(name) for name, file in zip(names, found, strict=True))
    number = _dataset_number(meta.get("dataset"))
    if number is None:
        return VideoSource(paths, sizes=(_stated_size(meta.get("shape")),)), missing  # of a sequence, it is the first image's
    original = None if video.source_video is None else _read_video(path, video.source_video, finder)[0]
    return VideoSource(paths, embedded=f"video{number}", original=original), missing


def _stated_size(shape: Any) -> tuple[int, int] | None:
    """Height and width of (frames, height, width, channels); None of anything else, such as other orders."""
    if not isinstance(shape, Sequence) or len(shape) != 4 or not all(isinstance(each, int) for each in shape):
        return None
    _, height, width, channels = shape
    return (height, width) if height > 0 and width > 0 and channels in (1, 3, 4) else None


def _names(video: Any) -> list[str]:
    return video.filename if isinstance(video.filename, list) else [video.filename]


def _check_distinct(path: Path, project: Any, videos: list[VideoSource], finder: Finder) -> None:
    """Two videos of one name must not both be taken for the one file of that name that was found elsewhere than the project says."""
    places: dict[VideoSource, set[tuple[Path, ...]]] = {}
    for video, source in zip(project.videos, videos, strict=True):
        if source.embedded is None:
            places.setdefault(source, set()).add(tuple(finder.expected(name) for name in _names(video)))
    for source, several in places.items():
        if len(several) > 1 and not all(file.exists() for files in several for file in files):
            raise FormatError(
                f"{path} names two different videos for which only one file is found, {source.name}; move each into a folder named as in "
                "the project, and give the folder above these with --video-root FOLDER."
            )


def _notes(path: Path, project: Any) -> list[str]:
    tracks = {id(i.track): i.track.name for frame in project.labeled_frames for i in frame.instances if i.track is not None}
    twice = len(tracks) - len(set(tracks.values()))
    return [f"{path}: {twice} tracks have the name of another one and are read as that one; give each its own in SLEAP."] if twice else []


def _left_behind(path: Path, project: Any, frames: list[LabeledFrame]) -> list[str]:
    animals = [animal for frame in project.labeled_frames for animal in frame.instances]
    corrections = sum(animal.from_predicted is not None for animal in animals)
    followed = {animal.track for frame in frames for animal in (*frame.instances, *frame.predicted)}
    counts = {
        "tracks have no animal and are left out": len({str(track.name) for track in project.tracks} - followed),
        "animals have a tracking score, which is left out": sum(bool(np.nan_to_num(animal.tracking_score or 0.0)) for animal in animals),
        "sessions of several cameras are left out": len(project.sessions),
        "suggested frames are left out": len(project.suggestions),
        "labels are corrected predictions; these predictions are left out, and the links to them": corrections,
    }
    return [f"{path}: {count} {what}." for what, count in counts.items() if count]


def _read_frames(project: Any, orders: dict[int, list[int]], predicted: bool) -> list[LabeledFrame]:
    places = {id(video): place for place, video in enumerate(project.videos)}
    corrected = {id(i.from_predicted) for frame in project.labeled_frames for i in frame.instances if i.from_predicted is not None}
    frames: dict[tuple[int, int], LabeledFrame] = {}
    for entry in project.labeled_frames:
        key = places[id(entry.video)], int(entry.frame_idx)
        again = key in frames
        frame = frames.setdefault(key, LabeledFrame(*key))
        frame.negative = frame.negative or bool(entry.is_negative)
        for native in entry.instances:
            instance = _read_instance(native, orders[id(native.skeleton)])
            if isinstance(instance, PredictedInstance):
                if predicted and id(native) not in corrected and instance.labelled.any():
                    frame.predicted.append(instance)
            elif instance.labelled.any() and not (again and any(_same(instance, other) for other in frame.instances)):
                frame.instances.append(instance)
    for frame in frames.values():
        frame.negative = frame.negative and not frame.instances
    return list(frames.values())


def _read_instance(native: Any, order: list[int]) -> Instance:
    points, track = native.numpy()[order], str(native.track.name) if native.track is not None else None
    if "score" not in native.points.dtype.names:
        return Instance(points, track)
    scores = np.nan_to_num(np.asarray(native.points["score"], dtype=np.float64)[order])
    return PredictedInstance(points, track, score=float(np.nan_to_num(native.score)), point_scores=scores)


def _same(a: Instance, b: Instance) -> bool:
    return a.track == b.track and np.array_equal(a.points, b.points, equal_nan=True)


def labelled_animals(path: Path) -> int:
    """How many animals a person has labelled in a SLEAP project; 0 where there is no such file, or one that can't be read.

    Only a column of the project is read, piece by piece.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            check_hdf5(file)
            table = file["instances"]
            return sum(int((table.fields("instance_type")[piece] == _USER).sum()) for piece in written_pieces(table))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):  # what h5py raises
        return 0


def write_slp(
    path: Path,
    skeleton: Skeleton,
    videos: Sequence[VideoSource],
    frames: Iterable[LabeledFrame],
    provenance: dict[str, Any],
    inputs: Iterable[Path] = (),
) -> int:
    """Write frames to a ``.slp`` that the SLEAP GUI opens, in memory that does not grow with their number.

    The file appears whole or not at all. A frame without instances is written too: it was looked at, and nothing was found.

    Args:
        path: the file to write.
        skeleton: what the instances' points are.
        videos: written with absolute paths; embedded images are referred to, not copied.
        frames: at most one for each frame of a video, in any order.
        provenance: JSON values that say where the file comes from.
        inputs: further files that must not be overwritten; the videos never are.

    Returns:
        The number of frames written.

    Raises:
        FormatError: ``path`` is an input, a package or not writable, or a frame does not fit the skeleton and videos.
    """
    import h5py

    path = Path(path).absolute()
    if path.name.lower().endswith(".pkg.slp"):
        raise FormatError(f"{path} would be a package without images; give the file a name that ends in .slp alone.")
    with written_whole(path, [*files_of(videos), *inputs]) as temporary:
        check_space(temporary)
        _begin(temporary, skeleton, videos, provenance)
        with h5py.File(temporary, "r+") as file:
            return _append(file, path, skeleton, videos, frames)


def write_slp_package(path: Path, labels: Labels, inputs: Iterable[Path] = ()) -> int:
    """Write a ``.pkg.slp``: everything in ``labels``, and inside it the images of the frames that a person labelled or marked negative.

    Args:
        path: the file to write.
        labels: what to write; its videos must be readable where a frame is labelled. Others are listed without images, as the project
            names them.
        inputs: further files that must not be overwritten; the videos never are.

    Returns:
        The number of frames written.

    Raises:
        FormatError: no frame is labelled, a video cannot be read, or as `write_slp`.
    """
    path = Path(path).absolute()
    if not labels.labelled_frames:
        raise FormatError(f"{path} would hold no image, because no frame is labelled; give the file a name that ends in .slp alone.")
    for number in sorted({frame.video for frame in labels.labelled_frames}):
        open_video(labels.videos[number]).close()  # says what is wrong with it
    for frame in labels.labelled_frames:  # sleap-io would read a device for ever
        video = labels.videos[frame.video]
        if video.kind == "images" and frame.index < len(video.paths) and not (image := video.paths[frame.index]).is_file():
            raise FormatError(
                f"{path} cannot be written: the image {image} is no file; put it there, or give its folder with --video-root."
            )
    sio = _sleap_io()
    with written_whole(path, [*files_of(labels.videos), *inputs]) as temporary:
        linked = temporary.with_name(f"{temporary.stem}.linked.slp")
        try:
            count = write_slp(linked, labels.skeleton, labels.videos, labels.frames, {})
            project = sio.load_slp(str(linked), open_videos=True)
            with _read_here(sio, project, labels.videos):
                sio.save_slp(project, str(temporary), embed="user", embed_inplace=True, verbose=False)
        except FormatError:
            raise
        except Exception as error:  # sleap-io raises what it meets
            raise FormatError(f"{path} cannot be written ({error}); see whether every labelled image can be read.") from error
        finally:
            linked.unlink(missing_ok=True)
    return count


@contextmanager
def _read_here(sio: Any, project: Any, sources: Sequence[VideoSource]) -> Iterator[None]:
    """Let sleap-io take the frames of ``project``, whose videos are the ``sources``, from `open_video`, as training does.

    Images whose bytes it copies as they are stay with it.
    """
    opened: Video | None = None

    class Frames(sio.Video):
        """A video that is closed for sleap-io: it writes the metadata as they are, and asks for nothing but single frames."""

        source: VideoSource
        coloured = False  # whatever its first frame, by which the metadata say so

        @property
        def shape(self) -> Any:  # of a video that is not there, too: sleap-io lists it among those without images
            known = super().shape or (0, 0, 0, 3)
            return (*known[:3], 3) if self.coloured else known

        def __getitem__(self, index: int) -> np.ndarray:
            nonlocal opened
            if opened is None or opened.source is not self.source:  # sleap-io asks for the frames of one video after the other
                if opened is not None:
                    opened.close()
                opened = open_video(self.source)
            frame = opened.read(index)
            self.coloured = self.coloured or bool((frame[..., :1] != frame).any())
            return frame[..., :1] if self.grayscale else frame

    replaced = {}
    for video, source in zip(project.videos, sources, strict=True):
        if video.backend is not None:
            if source.kind == "embedded" or _copied(source):
                continue
            video.backend.close()
        known = {"filename": video.filename, "backend_metadata": video.backend_metadata, "source_video": video.source_video}
        replaced[video] = Frames(**known, open_backend=False)
        replaced[video].source = source
    project.replace_videos(video_map=replaced)
    try:
        yield
    finally:
        if opened is not None:
            opened.close()


def _copied(source: VideoSource) -> bool:
    """Whether these are images that sleap-io does not decode: all PNG, or all JPEG."""
    return source.kind == "images" and {path.suffix.lower() for path in source.paths} in ({".png"}, {".jpg"}, {".jpeg"})


def _begin(path: Path, skeleton: Skeleton, videos: Sequence[VideoSource], provenance: dict[str, Any]) -> None:
    """Let sleap-io write everything but the frames."""
    sio = _sleap_io()
    native = sio.Skeleton(
        nodes=list(skeleton.keypoints),
        edges=[tuple(skeleton.keypoints[i] for i in edge) for edge in skeleton.edges],
        symmetries=[tuple(skeleton.keypoints[i] for i in pair) for pair in skeleton.symmetries],
        name=skeleton.name,
    )
    labels = sio.Labels(videos=[_write_video(sio, video) for video in videos], skeletons=[native], provenance=dict(provenance))
    sio.save_slp(labels, str(path), embed=False, restore_original_videos=False, verbose=False)


def _write_video(sio: Any, source: VideoSource) -> Any:
    """The video with the metadata that sleap-io records for an open one; without its shape where it cannot be opened."""
    names = source.written
    meta: dict[str, Any] = {"filename": names[0]}
    try:
        with open_video(source) as video:
            first = video.read(video.frame_numbers[0]) if video.n_frames else np.zeros((1, 1, 3), dtype=np.uint8)
            grayscale = bool((first[..., :1] == first).all())
            meta |= {"shape": [video.n_frames, video.height, video.width, 1 if grayscale else 3], "grayscale": grayscale, "fps": video.fps}
    except FormatError:
        meta["shape"] = None
    if source.kind == "file":
        meta |= {"type": "MediaVideo", "bgr": True, "dataset": "", "input_format": ""}
    elif source.kind == "images":
        _, height, width, channels = meta["shape"] or (None, None, None, 3)
        meta |= {"type": "ImageVideo", "filenames": names, "height_": height, "width_": width, "channels_": channels}
    else:
        meta |= {"type": "HDF5Video", "dataset": f"{source.embedded}/video", "input_format": "channels_last", "convert_range": False}
        meta["has_embedded_images"] = True
    # Of images that were taken from a video not: SLEAP merges by the video behind, and by a frame's number, which an image does not share.
    original = _write_video(sio, source.original) if source.original is not None and source.kind == "embedded" else None
    filename = names if source.kind == "images" else names[0]
    return sio.Video(filename=filename, backend=None, backend_metadata=meta, source_video=original, open_backend=False)


class _Table:
    """One growing table of an HDF5 file."""

    def __init__(self, file: Any, name: str, dtype: np.dtype | None = None) -> None:
        """Replace the table that sleap-io wrote by an empty one of the same type, or make one of ``dtype``."""
        self.dtype: np.dtype = file[name].dtype if dtype is None else dtype
        if name in file:
            del file[name]
        self._dataset = file.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(4096,), dtype=self.dtype)
        self.rows = 0

    def add(self, count: int, **columns: Any) -> None:
        """Append ``count`` rows; columns that are not given are zero."""
        if not count:
            return
        rows = np.zeros(count, self.dtype)
        for name, values in columns.items():
            rows[name] = values
        check_space(Path(self._dataset.file.filename))
        self.rows += count
        self._dataset.resize((self.rows,))
        self._dataset[self.rows - count :] = rows


def _append(file: Any, path: Path, skeleton: Skeleton, videos: Sequence[VideoSource], frames: Iterable[LabeledFrame]) -> int:
    import h5py

    table = {name: _Table(file, name) for name in ("frames", "instances", "points", "pred_points")}
    table["negative_frames"] = _Table(file, "negative_frames", _NEGATIVE_FRAME)
    numbers = _video_numbers(videos)
    tracks: dict[str, int] = {}
    piece, rows = list[LabeledFrame](), 0
    for frame in frames:
        check_frame(path, frame, skeleton, videos)
        piece.append(frame)
        rows += 1 + len(skeleton) * (len(frame.instances) + len(frame.predicted))
        if rows >= _ROWS_AT_ONCE:
            _append_frames(table, piece, numbers, tracks, len(skeleton))
            piece, rows = [], 0
    _append_frames(table, piece, numbers, tracks, len(skeleton))
    if not table["negative_frames"].rows:
        del file["negative_frames"]  # sleap-io writes the table only where there are some
    del file["tracks_json"]
    names = [json.dumps([0, name], separators=(",", ":")) for name in tracks]
    file.create_dataset("tracks_json", data=names, dtype=h5py.string_dtype(), maxshape=(None,))
    return table["frames"].rows


def _append_frames(
    table: dict[str, _Table], frames: list[LabeledFrame], numbers: list[int], tracks: dict[str, int], keypoints: int
) -> None:
    """Frames with their animals, a column at a time. ``numbers``: of the videos; ``tracks``: number by name, grows by new names."""
    counts = np.array([len(frame.instances) + len(frame.predicted) for frame in frames], np.int64)
    frame_ids = table["frames"].rows + np.arange(len(frames))
    ends = table["instances"].rows + counts.cumsum()
    place = {"video": [numbers[frame.video] for frame in frames], "frame_idx": [frame.index for frame in frames]}
    table["frames"].add(len(frames), frame_id=frame_ids, instance_id_start=ends - counts, instance_id_end=ends, **place)
    negative = [frame for frame in frames if frame.negative]
    place = {"video_id": [numbers[frame.video] for frame in negative], "frame_idx": [frame.index for frame in negative]}
    table["negative_frames"].add(len(negative), **place)

    animals = [animal for frame in frames for animal in (*frame.instances, *frame.predicted)]
    kinds = np.array([_PREDICTED if isinstance(animal, PredictedInstance) else _USER for animal in animals], np.int64)
    scores, starts = np.zeros(len(animals)), np.zeros(len(animals), np.int64)
    predicted = [animal for animal in animals if isinstance(animal, PredictedInstance)]
    scores[kinds == _PREDICTED] = [animal.score for animal in predicted]
    point_scores = np.array([animal.point_scores for animal in predicted]).ravel()
    for kind, name, columns in ((_USER, "points", {}), (_PREDICTED, "pred_points", {"score": point_scores})):
        points = stacked([animals[i].points for i in np.flatnonzero(kinds == kind)], keypoints)  # (n, K, 2)
        starts[kinds == kind] = table[name].rows + keypoints * np.arange(len(points))
        x, y = points.reshape(-1, 2).T
        table[name].add(len(x), x=x, y=y, visible=~np.isnan(x), **columns)
    table["instances"].add(
        len(animals),
        instance_id=table["instances"].rows + np.arange(len(animals)),
        instance_type=kinds,
        frame_id=frame_ids.repeat(counts),
        track=[-1 if animal.track is None else tracks.setdefault(animal.track, len(tracks)) for animal in animals],
        from_predicted=-1,
        score=scores,
        point_id_start=starts,
        point_id_end=starts + keypoints,
        tracking_score=np.nan,
    )


def _video_numbers(videos: Sequence[VideoSource]) -> list[int]:
    """How ``frames`` refers to each video: by its place, or an embedded one by its number in the package, as sleap-io reads it."""
    numbers = [place if (number := _dataset_number(video.embedded)) is None else number for place, video in enumerate(videos)]
    return numbers if len(set(numbers)) == len(numbers) else list(range(len(videos)))

"""Which format is this path? Reads projects and predictions, and writes them, in the format that the path's name says.

| path | read | written by `write_project` | written by `write_predictions` |
|---|---|---|---|
| ``.slp`` | SLEAP project | the same | the same |
| ``.pkg.slp`` | SLEAP package | with the images of labelled frames | |
| ``config.yaml``, or its folder | DeepLabCut project | a new project | |
| ``.json`` | COCO keypoints; results, where ``annotations`` is given | labels | results |
| ``.analysis.h5`` | SLEAP analysis file, also one called ``.h5`` | the same | the same |
| ``.h5`` ``.csv`` | DeepLabCut predictions | | the same; of each video, where ``path`` is a folder |

Traps: names lie, so what a name promises is checked before a library sees the file, and what libraries raise is turned into one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from converters.labels import FormatError, LabeledFrame, Labels, Skeleton, VideoSource

SLEAP, PACKAGE, DLC, COCO, ANALYSIS, DLC_PREDICTIONS = "SLEAP", "SLEAP package", "DeepLabCut", "COCO", "SLEAP analysis", "DLC predictions"

_ENDINGS = {
    ".pkg.slp": PACKAGE,
    ".slp": SLEAP,
    ".analysis.h5": ANALYSIS,
    ".h5": DLC_PREDICTIONS,
    ".csv": DLC_PREDICTIONS,
    ".json": COCO,
    ".yaml": DLC,
    ".yml": DLC,
}
_KNOWN = (
    ".slp or .pkg.slp (SLEAP), config.yaml (DeepLabCut), .json (COCO), .analysis.h5 (SLEAP analysis), .h5 or .csv (DeepLabCut predictions)"
)


def format_of(path: Path) -> str:
    """The format that a path's name says, one of the names above; a folder, or what has no ending, is a DeepLabCut project.

    Raises:
        FormatError: the ending is none of those known.
    """
    name = path.name.lower()
    found = next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)
    if path.is_dir() or (found is None and not path.suffix and not path.exists()):
        return DLC
    if found is None:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise FormatError(f"{path} {ending}, which is no known format; known are {_KNOWN}.")
    return found


def is_project(path: Path) -> bool:
    """Whether this project reads labels or predictions from a path, by its name; of a folder, whether it is a DeepLabCut project."""
    path = Path(path)
    if path.is_dir():
        return (path / "config.yaml").is_file()
    return path.name.lower().endswith(tuple(_ENDINGS))


def project_title(path: Path) -> str:
    """A project's name: that of its file without the ending; of a DeepLabCut project, its folder's."""
    if format_of(path) == DLC:
        return (path if path.is_dir() else path.absolute().parent).resolve().name
    return path.stem.removesuffix(".pkg").removesuffix(".analysis")


def read_project(
    path: Path,
    video_root: Path | None = None,
    predicted: bool = True,
    require_videos: bool = True,
    *,
    images: Path | None = None,
    category: str | None = None,
    annotations: Path | None = None,
) -> Labels:
    """Read a labelled project, or predictions.

    Args:
        path: a file of any format in the table above, or the folder of a DeepLabCut project.
        video_root: folder to look for videos in that are not where the project says.
        predicted: read a model's predictions too, into ``LabeledFrame.predicted``.
        require_videos: raise for videos that are not found.
        images: COCO: the folder that file names are relative to.
        category: COCO: the category to read, where several have different keypoints.
        annotations: COCO: ``path`` is a list of results, and these are the labels it belongs to.

    Raises:
        FormatError: no such file, an unknown format, a damaged file, or a video that is not found. A project without labels is no error.
    """
    path = _existing(Path(path))
    try:
        return _read(path, video_root, predicted, require_videos, images, category, annotations)
    except FormatError:
        raise
    except Exception as error:  # the readers' libraries raise what they meet
        what = f"{format_of(path)} file and may be damaged ({str(error) or 'for an unknown reason'})"
        raise FormatError(f"{path} cannot be read as a {what}; save or export it again.") from error


def _read(
    path: Path,
    video_root: Path | None,
    predicted: bool,
    require_videos: bool,
    images: Path | None,
    category: str | None,
    annotations: Path | None,
) -> Labels:
    kind = format_of(path)
    if kind in (SLEAP, PACKAGE):
        from converters.sleap import read_slp

        return read_slp(path, video_root, predicted, require_videos)
    if kind == DLC:
        from converters.deeplabcut import read_dlc

        return read_dlc(path, video_root, predicted, require_videos)
    if kind == COCO and annotations is not None:
        from converters.coco_results import read_coco_results

        return read_coco_results(path, _existing(Path(annotations)), images, video_root, category)
    if kind == COCO:
        from converters.coco import read_coco

        return read_coco(path, images, video_root, predicted, require_videos, category)
    from converters.sleap_analysis import is_analysis, read_analysis

    if kind == ANALYSIS or (path.suffix.lower() == ".h5" and is_analysis(path)):
        return read_analysis(path, video_root, predicted, require_videos)
    if path.name.startswith("CollectedData"):
        raise FormatError(f"{path} is a part of a DeepLabCut project; name the project's config.yaml.")
    from converters.deeplabcut_predictions import read_dlc_predictions

    return read_dlc_predictions(path, video_root, predicted, require_videos)


def _existing(path: Path) -> Path:
    """The file to read: of a folder, the DeepLabCut project in it. FormatError if it is missing, unreadable or empty."""
    if path.is_dir():
        if not (path / "config.yaml").is_file():
            raise FormatError(f"{path} is a folder without a DeepLabCut config.yaml; name the project file in it, such as a .slp or .json.")
        path = path / "config.yaml"
    if not path.exists():
        raise FormatError(f"{path} does not exist; check the path of the project.")
    if not path.is_file():
        raise FormatError(f"{path} is neither a file nor a folder; name a project file.")
    format_of(path)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise FormatError(f"{path} cannot be opened ({error.strerror}); check that you may read it.") from error
    if empty:
        raise FormatError(f"{path} is an empty file; copy or save the project again.")
    return path


def write_project(path: Path, labels: Labels, inputs: Iterable[Path] = (), *, predicted: bool = False) -> list[str]:
    """Write a labelled project, whole or not at all.

    Args:
        path: ``.slp``, ``.pkg.slp``, ``.json`` (COCO), ``.analysis.h5``, or a folder or ``config.yaml`` (DeepLabCut). A file is replaced.
        labels: what to write. SLEAP's formats take predictions, too; the others hold labels only.
        inputs: files that must not be overwritten, such as the project that was read; the videos never are.
        predicted: COCO: write predictions too, as `read_project` reads them, though other programs may take them for labels.

    Returns:
        What a labels-only format cannot hold, a sentence each.

    Raises:
        FormatError: an unknown format, one that holds predictions only, ``path`` is an input or not writable, or a video cannot be read.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == PACKAGE:
        from converters.sleap import write_slp_package

        write_slp_package(path, labels, inputs)
    elif kind == DLC:
        from converters.deeplabcut_writing import write_dlc

        return write_dlc(path.parent if path.suffix.lower() in (".yaml", ".yml") else path, labels)
    elif kind == COCO:
        from converters.coco import write_coco

        return write_coco(path, labels, inputs, predicted)
    elif kind == DLC_PREDICTIONS:
        raise FormatError(f"{path} would hold DeepLabCut predictions, not labels; to write labels, name a folder for a DeepLabCut project.")
    else:
        provenance = {"source": str(labels.path)} if labels.path else {}
        write_predictions(path, labels.skeleton, labels.videos, labels.frames, provenance, inputs)
    return []


def write_predictions(
    path: Path,
    skeleton: Skeleton,
    videos: Sequence[VideoSource],
    frames: Iterable[LabeledFrame],
    provenance: dict[str, Any],
    inputs: Iterable[Path] = (),
    *,
    several: bool | None = None,
) -> int:
    """Write frames with their instances, whole or not at all, in memory that does not grow with their number.

    Args:
        path: a name that ends in ``.slp``, ``.json`` (COCO results), ``.analysis.h5``, or ``.h5`` or ``.csv`` (DeepLabCut). An existing
            file is replaced. A folder receives DeepLabCut's files for each video.
        skeleton: what the instances' points are.
        videos: what ``LabeledFrame.video`` counts.
        frames: read once, while writing.
        provenance: JSON values that say where the predictions come from.
        inputs: files that must not be overwritten, such as the project that was read; the videos never are.
        several: DeepLabCut: whether the files are those of a project for several animals; None: whether some frame has several.

    Returns:
        The number of frames written.

    Raises:
        FormatError: an unknown format, one that holds labels only, or ``path`` is an input or not writable.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == DLC and path.suffix.lower() in (".yaml", ".yml"):
        raise FormatError(f"{path} would be a DeepLabCut project, which holds labels; name a .h5 or .csv file for DeepLabCut predictions.")
    arguments = path, skeleton, videos, frames, provenance, inputs
    if kind == COCO:
        from converters.coco_results import write_coco_results

        return write_coco_results(*arguments)
    if kind != SLEAP:
        _refuse_single_images(path, videos)
    if kind == ANALYSIS:
        from converters.sleap_analysis import write_analysis

        return write_analysis(*arguments)
    if kind in (DLC, DLC_PREDICTIONS):
        from converters.deeplabcut_predictions import write_dlc_predictions

        return write_dlc_predictions(*arguments, several=several)
    from converters.sleap import write_slp

    return write_slp(*arguments)


def _refuse_single_images(path: Path, videos: Sequence[VideoSource]) -> None:
    """FormatError for images taken out of a video, themselves or in a package: the file would have a row for every frame of that video."""
    for video in videos:
        taken = video.original if video.kind == "embedded" else video
        if taken is not None and taken.kind == "images" and taken.original is not None:
            raise FormatError(
                f"{path} has a row for every frame of a video, and {video.name} holds single images of {taken.original.paths[0].name}; "
                "predict that video, or write a .slp file."
            )


def files_written(path: Path, videos: Sequence[VideoSource], to_folder: bool = False) -> list[Path]:
    """The files that `write_predictions` may write, those included that DeepLabCut expects beside its predictions.

    ``to_folder``: ``path`` is a folder for DeepLabCut's predictions of each video, there or to be made.
    """
    if not to_folder and format_of(path) != DLC_PREDICTIONS:
        return [path]
    from converters.deeplabcut_predictions import prediction_files

    return prediction_files(path, videos, to_folder)


def refuse_losing(paths: Iterable[Path]) -> None:
    """FormatError where one of ``paths`` is a file that holds a person's labels, who may have corrected earlier predictions in their own
    file, or a table, what belongs beside it, or an analysis file that this project did not write: these don't say what they hold.
    """
    for path in paths:
        _refuse_losing(path)


def _refuse_losing(path: Path) -> None:
    kind = DLC_PREDICTIONS if path.suffix.lower() == ".pickle" else format_of(path)
    remedy = "which would be lost; move it away, or choose another name"
    if kind == DLC_PREDICTIONS and path.name.lower().startswith("collecteddata"):
        raise FormatError(f"{path}: DeepLabCut calls a person's labels so; choose another name.")
    if not path.is_file() or not path.stat().st_size:
        return
    if kind in (SLEAP, PACKAGE):
        from converters.sleap import labelled_animals

        if count := labelled_animals(path):
            raise FormatError(f"{path} holds {count:,} labelled {'animal' if count == 1 else 'animals'}, {remedy}.")
    elif kind == COCO:
        from converters.coco_results import is_coco_results

        if not is_coco_results(path):
            raise FormatError(f"{path} holds no COCO results but something else, such as labels, {remedy}.")
    elif kind in (ANALYSIS, DLC_PREDICTIONS):
        from converters.deeplabcut_predictions import is_own_table
        from converters.sleap_analysis import is_own_analysis

        if not (is_own_analysis(path) if kind == ANALYSIS else is_own_table(path)):
            raise FormatError(f"{path} holds what neither smp-predict nor smp-convert has written, {remedy}.")


def check_predictions(
    path: Path, skeleton: Skeleton, videos: Sequence[VideoSource], frames: Iterable[LabeledFrame], inputs: Iterable[Path] = ()
) -> None:
    """Raise what `write_predictions` would, before there are predictions: the same is done with empty frames, and given up before the end.

    Arguments and errors are those of `write_predictions`; an existing file stays as it is.
    """

    def until_the_end() -> Iterator[LabeledFrame]:
        yield from frames
        raise _Enough

    with suppress(_Enough):
        write_predictions(path, skeleton, videos, until_the_end(), {}, inputs)


class _Enough(Exception):
    """Ends the writing of a file that is not wanted."""

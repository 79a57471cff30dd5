"""Which format is this path? Reads a project and writes predictions in the format that the path's name says.

Traps: names lie, so what a name promises is checked before a library sees the file, and what libraries raise is turned into one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from converters.labels import FormatError, LabeledFrame, Labels, Skeleton, VideoSource


def read_project(path: Path, video_root: Path | None = None, predicted: bool = True, require_videos: bool = True) -> Labels:
    """Read a labelled project.

    Args:
        path: a SLEAP project (``.slp``) or package (``.pkg.slp``).
        video_root: folder to look for videos in that are not where the project says.
        predicted: read a model's predictions too, into ``LabeledFrame.predicted``.
        require_videos: raise for videos that are not found.

    Raises:
        FormatError: no such file, an unknown format, a damaged file, or a video that is not found. A project without labels is no error.
    """
    path = Path(path)
    if path.is_dir():
        raise FormatError(f"{path} is a folder; name the project file in it, a SLEAP project (.slp or .pkg.slp).")
    if not path.exists():
        raise FormatError(f"{path} does not exist; check the path of the project.")
    _require_sleap(path)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise FormatError(f"{path} cannot be opened ({error.strerror}); check that you may read it.") from error
    if empty:
        raise FormatError(f"{path} is an empty file; copy or save the project again.")
    from converters.sleap import read_slp

    return read_slp(path, video_root, predicted, require_videos)


def write_predictions(
    path: Path,
    skeleton: Skeleton,
    videos: Sequence[VideoSource],
    frames: Iterable[LabeledFrame],
    provenance: dict[str, Any],
    inputs: Iterable[Path] = (),
) -> int:
    """Write frames with their instances, whole or not at all, in memory that does not grow with their number.

    Args:
        path: a name that ends in ``.slp``. An existing file is replaced.
        skeleton: what the instances' points are.
        videos: what ``LabeledFrame.video`` counts.
        frames: read once, while writing.
        provenance: JSON values that say where the predictions come from.
        inputs: files that must not be overwritten, such as the project that was read; the videos never are.

    Returns:
        The number of frames written.

    Raises:
        FormatError: an unknown format, or ``path`` is an input or not writable.
    """
    path = Path(path)
    _require_sleap(path)
    from converters.sleap import write_slp

    return write_slp(path, skeleton, videos, frames, provenance, inputs)


def _require_sleap(path: Path) -> None:
    if path.suffix.lower() != ".slp":
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise FormatError(f"{path} {ending}; a SLEAP project (.slp or .pkg.slp) is needed.")

"""Which video images were taken from, in a file beside a project whose format can't say it (``.slp``, COCO).

Without it, frames of the video that are labelled as images look like frames without a label.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from converters.files import written_whole
from converters.labels import FormatError, Labels, VideoSource


def write_originals(path: Path, videos: Iterable[VideoSource]) -> bool:
    """Write the table (JSON: first image -> video) of those image sequences whose video is known; returns whether there are any."""
    known = {_key(video): video.original.written[0] for video in videos if video.kind == "images" and video.original is not None}
    if known:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return bool(known)


def with_originals(labels: Labels, path: str) -> Labels:
    """The same, with the videos that the table at ``path`` has for image sequences ("": none). FormatError if it is none."""
    if not path:
        return labels
    try:
        known = {image: Path(video) for image, video in json.loads(Path(path).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} is no table of videos that images were taken from ({error}); write it as {{image: video}}.") from error

    def linked(video: VideoSource) -> VideoSource:
        if video.kind != "images" or video.original is not None or _key(video) not in known:
            return video
        return replace(video, original=VideoSource((known[_key(video)],)))

    return replace(labels, videos=[linked(video) for video in labels.videos])


def _key(video: VideoSource) -> str:
    """Of an image sequence: its first image, by whatever link it was found."""
    return video.paths[0].resolve().as_posix() if video.paths else ""

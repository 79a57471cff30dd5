"""What a project's format cannot say, in a file beside it: which video images were taken from, and boxes of animals without keypoints.

Neither ``.slp`` nor, for the first, COCO has a place for them. Without the one, frames of the video that are labelled as images look like
frames without a label; without the other, those animals look like background.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.files import written_whole
from converters.labels import FormatError, LabeledFrame, Labels, VideoSource


def write_supplement(path: Path, *projects: Labels) -> bool:
    """Write what there is (JSON: first image -> video, image -> boxes) to ``path``; returns whether there is any."""
    originals, unposed = dict[str, str](), dict[str, list[list[float]]]()
    for labels in projects:
        for video in labels.videos:
            if video.kind == "images" and video.original is not None:
                originals[_key(video)] = video.original.written[0]
        for frame in labels.frames:
            if frame.unposed and labels.videos[frame.video].kind == "images":
                unposed[_key(labels.videos[frame.video], frame.index)] = np.stack(frame.unposed).tolist()
    if originals or unposed:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps({"originals": originals, "unposed": unposed}, indent=1), encoding="utf-8")
    return bool(originals or unposed)


def supplemented(labels: Labels, path: str) -> Labels:
    """The same, with what the file at ``path`` says of its images ("": nothing). FormatError if it is no such file."""
    if not path:
        return labels
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        originals = {image: Path(video) for image, video in table["originals"].items()}
        unposed = {image: list(np.array(boxes, dtype=float).reshape(-1, 4)) for image, boxes in table["unposed"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        where = f"data.supplement: {path} does not hold what a project's format cannot say"
        raise FormatError(f'{where} ({error}); write it as {{"originals": {{image: video}}, "unposed": {{image: [box]}}}}.') from error

    def linked(video: VideoSource) -> VideoSource:
        if video.kind != "images" or video.original is not None or _key(video) not in originals:
            return video
        return replace(video, original=VideoSource((originals[_key(video)],)))

    def boxed(frame: LabeledFrame) -> LabeledFrame:
        video = labels.videos[frame.video]
        found = unposed.get(_key(video, frame.index)) if unposed and video.kind == "images" and not frame.unposed else None
        return replace(frame, unposed=found) if found else frame

    return replace(labels, videos=[linked(video) for video in labels.videos], frames=[boxed(frame) for frame in labels.frames])


def _key(video: VideoSource, index: int = 0) -> str:
    """An image of a sequence, by whatever link it was found."""
    return video.paths[index].resolve().as_posix() if index < len(video.paths) else ""

"""``machinelabels``: predictions in a DeepLabCut project for a person to correct.

Trap of the format: DeepLabCut keeps one such file for each iteration of a project, which may hold corrections that are not saved as labels
yet: it is never replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.deeplabcut import bodyparts, is_multi_animal, read_config
from converters.deeplabcut_predictions import SCORER
from converters.deeplabcut_tables import columns_of, write_csv, write_h5
from converters.deeplabcut_writing import video_names, write_images
from converters.files import written_whole
from converters.labels import FormatError, LabeledFrame, PredictedInstance, Skeleton, VideoSource


def check_machinelabels(config: Path, skeleton: Skeleton, videos: Sequence[VideoSource]) -> None:
    """Raise what `write_machinelabels` would for predictions in each of these videos, before there are any."""
    config = Path(config).absolute()
    settings, _ = _settings(config, skeleton)
    for folder in {file.parent for file in _tables(config, settings, dict(enumerate(video_names(videos)))).values()}:
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise FormatError(f"{existing} cannot be written to; choose a project that you may write to.")


def write_machinelabels(config: Path, skeleton: Skeleton, videos: Sequence[VideoSource], frames: Iterable[LabeledFrame]) -> list[str]:
    """Put predictions into a DeepLabCut project for a person to correct, as ``extract_outlier_frames`` does.

    For each video, ``labeled-data/VIDEO/`` receives the images of its frames that are not there yet, ``machinelabels-iterN.h5`` (N is the
    project's ``iteration``) and ``machinelabels.csv``; DeepLabCut's GUI shows them, and saves what was corrected as labels.

    Args:
        config: the project's ``config.yaml``; it is not changed.
        skeleton: has the project's keypoints, in any order.
        videos: what ``LabeledFrame.video`` counts.
        frames: those with predictions are written. An animal whose track is one of the project's individuals becomes this individual; the
            others take the free ones, best first.

    Returns:
        What was left out and what is left to do, a sentence each.

    Raises:
        FormatError: other keypoints than the project's, a frame that cannot be read, or predictions of this iteration are there already.
    """
    config = Path(config).absolute()
    settings, keypoints = _settings(config, skeleton)
    order = [skeleton.keypoints.index(name) for name in keypoints]
    individuals = [str(name) for name in settings.get("individuals") or ["animal1"]] if is_multi_animal(settings) else None
    chosen: dict[int, list[LabeledFrame]] = {}
    for frame in frames:
        if frame.predicted:
            chosen.setdefault(frame.video, []).append(frame)
    names = video_names(videos)
    tables = _tables(config, settings, {video: names[video] for video in chosen})
    columns = columns_of(SCORER, individuals, keypoints, ("x", "y", "likelihood"))
    known = {re.split(r"[/\\]", str(written))[-1].rpartition(".")[0] for written in settings.get("video_sets") or ()}
    notes, left = [], 0
    for video, mine in sorted(chosen.items()):
        mine.sort(key=lambda frame: frame.index)
        images, _ = write_images(tables[video].parent, videos[video], [frame.index for frame in mine])
        values = np.full((len(mine), len(individuals or [0]), len(keypoints), 3), np.nan)
        for row, frame in enumerate(mine):
            for place, animal in _placed(frame.predicted, individuals or ["animal"]).items():
                scores = np.where(animal.labelled, animal.point_scores, np.nan)
                values[row, place] = np.column_stack([animal.points, scores])[order]
            left += max(0, len(frame.predicted) - values.shape[1])
        index, flat = [("labeled-data", names[video], image) for image in images], values.reshape(len(mine), -1)
        with written_whole(tables[video].with_name("machinelabels.csv")) as csv, written_whole(tables[video]) as h5:
            write_csv(csv, columns, index, [flat])
            write_h5(h5, columns, index, [flat], {})
        if names[video] not in known:
            notes.append(f"{config}: 'video_sets' does not name {names[video]}; add it with deeplabcut.add_new_videos.")
    if left:
        most = len(individuals or [0])
        notes.append(f"{config}: the project is for {most} animal{'s' if most > 1 else ''}; {left} predicted ones are left out.")
    return notes


def _settings(config: Path, skeleton: Skeleton) -> tuple[dict[str, Any], list[str]]:
    """The project's settings and keypoints; FormatError if these are not the skeleton's."""
    settings = read_config(config)
    keypoints = bodyparts(config, settings)
    if sorted(keypoints) != sorted(skeleton.keypoints):
        raise FormatError(
            f"{config}: its keypoints are {', '.join(keypoints)}, the predictions' {', '.join(skeleton.keypoints)}; use the project that "
            "the model was trained on."
        )
    return settings, keypoints


def _tables(config: Path, settings: dict[str, Any], names: Mapping[int, str]) -> dict[int, Path]:
    """The file for each video; FormatError if there is one already."""
    file = f"machinelabels-iter{settings.get('iteration') or '0'}.h5"
    tables = {video: config.parent / "labeled-data" / name / file for video, name in names.items()}
    if there := [table for table in tables.values() if table.exists()]:
        raise FormatError(f"{there[0]} exists already; have it corrected and call deeplabcut.merge_datasets, or move it away.")
    return tables


def _placed(animals: Sequence[PredictedInstance], individuals: list[str]) -> dict[int, PredictedInstance]:
    """Which individual each animal becomes."""
    placed: dict[int, PredictedInstance] = {}
    rest: list[PredictedInstance] = []
    for animal in sorted(animals, key=lambda animal: -animal.score):
        place = individuals.index(animal.track) if animal.track in individuals else -1
        if place >= 0 and place not in placed:
            placed[place] = animal
        else:
            rest.append(animal)
    free = (place for place in range(len(individuals)) if place not in placed)
    placed.update(zip(free, rest, strict=False))
    return placed

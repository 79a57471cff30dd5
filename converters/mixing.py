"""Several projects as one: keypoints are united by name, after names that mean the same have been made the same.

A table of aliases is a ``.csv`` with one keypoint a line and all its names in the columns, as DeepLabCut's conversion tables are. The name
kept is that of the column ``MasterName``, where there is one, else the first of the line. A DeepLabCut ``config.yaml`` with
``SuperAnimalConversionTables`` (project bodypart: SuperAnimal keypoint) serves, too.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton

MASTER = "MasterName"


def read_aliases(path: Path) -> dict[str, str]:
    """Other names of keypoints -> the name kept.

    Raises:
        FormatError: no such table, or a name in two lines of it.
    """
    rows = _rows_of_config(path) if path.suffix.lower() in (".yaml", ".yml") else _rows_of_csv(path)
    aliases: dict[str, str] = {}
    for names in rows:
        for name in names:
            if aliases.setdefault(name, names[0]) != names[0]:
                raise FormatError(f"{path}: {name!r} is a name of {aliases[name]!r} and of {names[0]!r}; leave it in one line.")
    return aliases


def _rows_of_csv(path: Path) -> list[list[str]]:
    """The names of each line, the one kept first."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(
            f"{path}: not a readable CSV table of keypoint names ({error}); save it as UTF-8, names separated by commas."
        ) from error
    if not any(any(line) for line in lines):
        raise FormatError(f"{path}: the table of aliases is empty; write one keypoint a line, its names separated by commas.")
    kept = 0
    if MASTER in lines[0]:
        kept, lines = lines[0].index(MASTER), lines[1:]
    rows = [line[kept : kept + 1] + line[:kept] + line[kept + 1 :] for line in lines]
    found = [[name for name in row if name] for row in rows if any(row)]
    if all(len(names) < 2 for names in found):
        raise FormatError(
            f"{path}: no line has two names; write all names of a keypoint in one line, separated by commas (not semicolons)."
        )
    return found


def _rows_of_config(path: Path) -> list[list[str]]:
    from converters.deeplabcut import read_config

    tables = read_config(path).get("SuperAnimalConversionTables")
    if not isinstance(tables, dict) or not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise FormatError(f"{path} has no SuperAnimalConversionTables; name a .csv with one keypoint a line, or a config.yaml that has.")
    return [[str(kept), str(name)] for table in tables.values() for name, kept in table.items()]


def unite(projects: Sequence[Labels], aliases: Mapping[str, str] | None = None) -> tuple[Labels, list[list[int]]]:
    """Several projects as one, with all keypoints that any of them has.

    Args:
        projects: at least one.
        aliases: other names of keypoints -> the name kept.

    Returns:
        The labels, videos in the order of the projects; and for each project the indices of its keypoints in the common skeleton. What a
        project does not have is NaN in its instances.

    Raises:
        FormatError: two keypoints of one project have the same name after renaming.
    """
    names = [_renamed(project, aliases or {}) for project in projects]
    keypoints = tuple(dict.fromkeys(name for own in names for name in own))
    columns = [[keypoints.index(name) for name in own] for own in names]
    skeletons = [project.skeleton for project in projects]
    edges = [(own[a], own[b]) for own, skeleton in zip(columns, skeletons, strict=True) for a, b in skeleton.edges]
    symmetries = [(own[a], own[b]) for own, skeleton in zip(columns, skeletons, strict=True) for a, b in skeleton.symmetries]
    skeleton = Skeleton(keypoints, _different(edges), _disjoint(symmetries), skeletons[0].name)
    frames: list[LabeledFrame] = []
    offset = 0
    for project, own in zip(projects, columns, strict=True):
        frames += [replace(moved(frame, own, len(keypoints)), video=frame.video + offset) for frame in project.frames]
        offset += len(project.videos)
    videos, notes = [v for project in projects for v in project.videos], [n for project in projects for n in project.notes]
    for project, own in zip(projects, columns, strict=True):
        if lacking := [name for index, name in enumerate(keypoints) if index not in own]:
            notes.append(
                f"{project.path} has no {', '.join(lacking)}: learnt from the other projects (--aliases unites names that differ)."
            )
    return Labels(skeleton, videos, frames, projects[0].path, notes), columns


def moved(frame: LabeledFrame, columns: Sequence[int], count: int) -> LabeledFrame:
    """The frame with its keypoints at ``columns`` of ``count``."""
    if list(columns) == list(range(count)):
        return frame

    def points(instance: Instance) -> np.ndarray:
        wide = np.full((count, 2), np.nan)
        wide[columns] = instance.points
        return wide

    def scores(instance: PredictedInstance) -> np.ndarray:
        wide = np.zeros(count)
        wide[columns] = instance.point_scores
        return wide

    return replace(
        frame,
        instances=[replace(i, points=points(i)) for i in frame.instances],
        predicted=[replace(i, points=points(i), point_scores=scores(i)) for i in frame.predicted],
    )


def _renamed(project: Labels, aliases: Mapping[str, str]) -> list[str]:
    names = [aliases.get(name, name) for name in project.skeleton.keypoints]
    for index, name in enumerate(names):
        if name in names[:index]:
            own = [k for k, renamed in zip(project.skeleton.keypoints, names, strict=True) if renamed == name]
            raise FormatError(f"{project.path}: the table of aliases gives {' and '.join(own)} the one name {name!r}; keep them apart.")
    return names


def _different(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Each pair once, in either direction."""
    return tuple({frozenset(pair): pair for pair in reversed(pairs)}.values())[::-1]


def _disjoint(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Pairs until one of their keypoints has a partner: a keypoint has one mirror image."""
    kept: list[tuple[int, int]] = []
    for pair in _different(pairs):
        if not any(set(pair) & set(other) for other in kept):
            kept.append(pair)
    return tuple(kept)

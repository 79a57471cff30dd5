"""What finished outputs were when they were written: a hidden file beside each, ``.NAME.made_from.json``, has the digests of its files.

By these a file that a person has changed since is told from one that may be replaced.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from converters.labels import FormatError
from converters.project import refuse_losing

RECORD = "made_from.json"


def record_of(output: Path) -> Path:
    """The record of an output; of DeepLabCut's files of a video, these are known by the first part of their names."""
    return output.with_name(f".{output.name}.{RECORD}")


def written(record: Path) -> dict[str, str]:
    """The digest of each file that a record is of, by its name; none where there is no such record, or a damaged one."""
    try:
        return {str(name): str(value) for name, value in json.loads(record.read_text(encoding="utf-8"))["written"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def refuse_replacing(paths: Collection[Path]) -> None:
    """FormatError where a file of ``paths`` is not to be lost, or is a finished output that was changed since: a person may have corrected
    tracks in it, which are no labels.
    """
    known: dict[Path, dict[str, set[str]]] = {}  # of each folder, since DeepLabCut's files may have been written under either name
    for path in paths:
        if path.parent not in known:
            known[path.parent] = {}
            for record in _records(path.parent):
                for name, value in written(record).items():
                    known[path.parent].setdefault(name, set()).add(value)
        digests = known[path.parent].get(path.name, set())
        if digests and path.is_file() and digest(path) in digests:
            continue
        refuse_losing([path])
        if digests and path.is_file():
            raise FormatError(f"{path} was changed since it was written; move it away, or choose another name.")


def forget(paths: Collection[Path]) -> None:
    """Remove the records of what ``paths`` were before something else has replaced them."""
    names = {path.name for path in paths}
    for folder in {path.parent for path in paths}:
        for record in _records(folder):
            before = written(record)
            there = [name for name in names & before.keys() if (folder / name).is_file()]
            if any(digest(folder / name) != before[name] for name in there):
                record.unlink(missing_ok=True)


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".*.{RECORD}"))


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change; zeros where there is no such file, which reading it will say."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, read once as long as it does not change."""
    return _digest(path, *stamp(path))

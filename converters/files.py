"""Files as projects name them, and files that are written whole or not at all.

Traps: a project travels between machines, so the paths in it may be absolute paths of another computer, Windows paths, or relative to the
project's folder; an image sequence may name ten thousand files, so folders are listed once and not asked file by file.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath

from converters.labels import FormatError


class Finder:
    """Finds the files a project names.

    Looks, in this order, at: the path as written where it is absolute; the path relative to the project's folder; the file's name in the
    project's folder; under ``video_root`` the written path's tail, longest first, down to the file's name.
    """

    def __init__(self, folder: Path, video_root: Path | None = None) -> None:
        """``folder``: where the project lies; ``video_root``: where the user keeps the videos. FormatError if that is no folder."""
        if video_root is not None and not video_root.is_dir():
            what = "is a file" if video_root.exists() else "does not exist"
            raise FormatError(f"The folder given for the videos, {video_root}, {what}; check --video-root, which takes a folder.")
        self._folder = folder.absolute()
        self._root = video_root.absolute() if video_root is not None else None
        self._listed: dict[Path, tuple[Path, frozenset[str]]] = {}

    def find(self, written: str) -> Path | None:
        """The absolute path of the file that the project calls ``written``, or None where it is not found.

        FormatError for a name that no file can have.
        """
        if not _possible(written):
            raise FormatError(f"A project in {self._folder} names a file {written!r:.60}, which no file can be called; correct the name.")
        return next((found for candidate in self._candidates(written) if (found := self._existing(candidate))), None)

    def expected(self, written: str) -> Path:
        """Where ``written`` should lie by the project's word, for files that are not found. A Windows path stays one, with slashes."""
        path = Path(written.replace("\\", "/"))
        return path if PureWindowsPath(str(path)).is_absolute() else self._folder / path

    def _candidates(self, written: str) -> Iterator[Path]:
        written = written.replace("\\", "/")
        parts = PureWindowsPath(written).parts  # splits both kinds of path, and knows what a drive is
        yield self._folder / written  # an absolute ``written`` replaces the folder
        tail = [part for part in parts if part not in ("..", ".") and part != PureWindowsPath(written).anchor]
        if not tail:
            return
        yield self._folder / tail[-1]
        if self._root is not None:
            for start in range(len(tail)):
                yield self._root.joinpath(*tail[start:])

    def _existing(self, path: Path) -> Path | None:
        if path.parent not in self._listed:
            try:
                # Only the folder is resolved: a video that is itself a link (git-annex, DVC) keeps the name people know it by.
                self._listed[path.parent] = path.parent.resolve(), frozenset(os.listdir(path.parent))
            except (OSError, RuntimeError):  # not there, not to be read, too long, or a link to itself
                self._listed[path.parent] = path.parent, frozenset()
        folder, names = self._listed[path.parent]
        # A file system may ignore case, so a name that is not listed is asked for once more where the folder exists.
        if path.name in names or (names and os.path.isfile(path)):
            return folder / path.name
        return None


@contextmanager
def written_whole(path: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it there when the block ends well, remove it when anything is raised.

    It is on the disk before it is moved, so that after a power cut there is the old file or the new one. What a killed process left of the
    same file is removed first; should that process still be running, it will find its file gone and fail, so the later one wins.

    Args:
        path: the file to write. An existing one is replaced, but stays untouched if writing fails.
        inputs: files that must not be overwritten.

    Raises:
        FormatError: ``path`` is one of ``inputs``, is a folder, its folder is missing or not writable, or the disk is full.
    """
    path = path.absolute()
    refuse_overwriting(path, inputs)
    if path.is_dir():
        raise FormatError(f"{path} is a folder; name a file to write.")
    remove_leftovers(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        try:
            temporary.touch(exist_ok=False)
        except OSError as error:
            raise FormatError(f"{path} cannot be written ({error.strerror}); choose an existing folder that you may write to.") from error
        temporary.unlink()  # not every writer takes a file that is there
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, UnicodeError) as error:
        raise FormatError(f"{path} cannot be written ({error}); see whether the disk is full, or choose another folder.") from error
    finally:
        with suppress(OSError):  # where nothing could be made there is nothing
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of their attempts to write ``path``."""
    left = re.compile(rf"\.+{re.escape(path.stem)}\.[0-9a-f]{{8}}(\..*)?{re.escape(path.suffix)}")
    with suppress(OSError):  # the folder is not there, or the file is in use, which only Windows minds
        for name in os.listdir(path.parent):
            if left.fullmatch(name):
                (path.parent / name).unlink()


def refuse_overwriting(path: Path, inputs: Iterable[Path]) -> None:
    """FormatError if ``path`` is one of ``inputs``, by whatever name."""
    if is_one_of(path, inputs):
        raise FormatError(f"{path} is one of the inputs and would be overwritten; give the output another name.")


def is_one_of(path: Path, others: Iterable[Path]) -> bool:
    """Whether ``path`` is one of ``others``, by whatever name."""
    return any(_same_file(path, other) for other in others)


def refuse_links(files: Iterable[Path]) -> None:
    """FormatError if one of ``files``, which will be written to, is a link: it may have come with its folder, and lead anywhere."""
    if link := next((path for path in files if path.is_symlink()), None):
        raise FormatError(f"{link} is a link, and what is written there would go where it leads; remove it, or choose another folder.")


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """What to sort files by: by name, numbers in it as numbers (frame2 before frame10)."""
    pieces = re.split(r"(\d+)", path.name)
    return [(0, int(piece)) if piece.isdecimal() else (1, piece.lower()) for piece in pieces] + [(1, path.name)]


def _possible(written: object) -> bool:
    try:
        name = os.fsencode(written) if isinstance(written, str) else b"\0"
    except UnicodeEncodeError:
        return False
    return b"\0" not in name and len(name) < 4000 and all(len(part) < 256 for part in re.split(rb"[/\\]", name))


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of them does not exist
        return os.path.abspath(a) == os.path.abspath(b)

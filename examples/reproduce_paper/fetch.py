"""The data of the paper's Table 1 as SLEAP projects: downloaded, or taken from a folder (``--source``) that somebody filled elsewhere.

What is downloaded lies in ``FOLDER/download``, whole or not at all; what was made of it beside that. Nothing is fetched or made twice.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from beepose import read_beepose  # type: ignore[import-not-found]  # beside this script, not in a package
from PIL import Image

from converters import FormatError, LabeledFrame, Labels, VideoSource, read_project, write_project
from converters.video import open_video

BEEPOSE_COMMIT = "646deb99819e02d4096dbf9a2a4c7749845e1eed"
BEEPOSE = f"https://github.com/piperod/beepose/archive/{BEEPOSE_COMMIT}.zip"
BEEPOSE_FILE = "beepose.zip"
BEEPOSE_PART = "data/raw/bee/dataset_raw/"  # of the repository: labels, train/ and validation/
BEEPOSE_LABELS = ("train_bee_annotations2018.json", ".ipynb_checkpoints/train_bee_annotations2018-checkpoint.json")  # the same text
BEEPOSE_COUNTS = {"train": (135, 1614), "validation": (30, None)}  # labelled images and animals, each counted once

FLIES = "https://storage.googleapis.com/sleap-data/datasets/wt_gold.13pt/tracking_split2/"
FLY_FILES = ("train.pkg.slp", "val.pkg.slp", "test.pkg.slp")
FLY_KEYPOINTS = 13


@dataclass(frozen=True)
class Prepared:
    """What a data set's rows are made from.

    Attributes:
        train: SLEAP project with every labelled frame to learn from; what else its videos hold is unlabelled.
        val: SLEAP project to measure on, or the share of ``train``'s labelled frames that are measured on and not learnt from.
        subsets: fixed random subsets of ``train``, by number of labelled frames; without them they are drawn.
        notes: sentences on where this departs from the paper, for the result.
    """

    train: Path
    val: Path | float
    subsets: dict[int, list[Path]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare(dataset: str, source: Path | None, folder: Path) -> Prepared:
    """Bring a data set (honeybee, pups, flies) into ``folder``, from ``source`` or from where it was published.

    Raises:
        FormatError: a file is missing or is not what it should be, a download failed, or ``folder`` holds data from another source.
    """
    if source is not None and not source.is_dir():
        raise FormatError(f"--source {source} is no folder; name the one with the data.")
    _claim(folder, "the published data" if source is None else str(source.absolute()))
    return {"honeybee": _honeybee, "pups": _pups, "flies": _flies}[dataset](source, folder)


def _claim(folder: Path, source: str) -> None:
    """Data of two sources must not mix."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "source.txt"
    if note.exists() and note.read_text(encoding="utf-8") != source:
        raise FormatError(f"{folder} holds data from {note.read_text(encoding='utf-8')}; choose another -o, or give the same --source.")
    note.write_text(source, encoding="utf-8")


# --- honeybee ---


def _honeybee(source: Path | None, folder: Path) -> Prepared:
    if source is not None and any(source.glob("train*.slp")):
        return _ready_honeybee(source)
    raw = _beepose_folder(source) if source is not None else None
    if raw is None:
        raw = folder / "beepose"
        archive = source / BEEPOSE_FILE if source is not None else folder / "download" / BEEPOSE_FILE
        if source is not None and not archive.is_file():
            raise FormatError(
                f"--source {source} holds neither train*.slp with val*.slp, nor {BEEPOSE_FILE} ({BEEPOSE}), nor that archive unpacked "
                f"({BEEPOSE_PART}); put one of them there."
            )
        if not raw.is_dir():
            if source is None:
                fetch(BEEPOSE, archive)
            unpack(archive, BEEPOSE_PART, raw)
    return _from_beepose(raw, folder)


def _ready_honeybee(source: Path) -> Prepared:
    """``trainN.slp`` with all N labelled frames, ``trainM_I.slp`` with the I-th subset of M, ``valV.slp``."""
    numbers = {path: re.fullmatch(r"train(\d+)(?:_(\d+))?", path.stem) for path in sorted(source.glob("train*.slp"))}
    whole = {int(m[1]): path for path, m in numbers.items() if m and m[2] is None}
    vals = sorted(source.glob("val*.slp"))
    if not whole or not vals:
        raise FormatError(f"--source {source} lacks {'train105.slp' if not whole else 'val30.slp'} beside its train*.slp; copy it there.")
    subsets: dict[int, list[Path]] = {}
    for path, m in sorted(numbers.items(), key=lambda item: int(item[1][2] or 0) if item[1] else 0):
        if m and m[2] is not None:
            subsets.setdefault(int(m[1]), []).append(path)
    most = max(whole)
    with open_video(read_project(vals[0]).videos[0]) as video:
        size = f"{video.width}x{video.height}"
    notes = (
        f"The row of all labels has {most} labelled frames, not the paper's 135. Measured is on {vals[0].name}, held out of these 135, not "
        "on beePose's own validation photographs, on which the paper measures.",
        f"Images have {size} pixels; beePose's have 2560x1440.",
    )
    return Prepared(whole[most].absolute(), vals[0].absolute(), {n: [p.absolute() for p in ps] for n, ps in subsets.items()}, notes)


def _beepose_folder(source: Path) -> Path | None:
    """Where an unpacked copy of beePose has its labels, if ``source`` is one."""
    candidates = (source, source / "dataset_raw", source / BEEPOSE_PART)
    return next((folder for folder in candidates if (folder / "validation.json").is_file()), None)


def _from_beepose(raw: Path, folder: Path) -> Prepared:
    labels = next((raw / name for name in BEEPOSE_LABELS if (raw / name).is_file()), None)
    if labels is None:
        raise FormatError(f"{raw} lacks {BEEPOSE_LABELS[0]}, beePose's training labels; copy it there.")
    train, val = folder / "train135.slp", folder / "val30.slp"
    for path, part, table in ((train, "train", labels), (val, "validation", raw / "validation.json")):
        if path.exists():
            continue
        read = read_beepose(table, raw / part, unlabelled=part == "train")
        frames, animals = len(read.frames), sum(len(f.instances) for f in read.frames)
        wanted = BEEPOSE_COUNTS[part]
        if frames != wanted[0] or (wanted[1] is not None and animals != wanted[1]):
            raise FormatError(
                f"{table} has {animals} animals on {frames} images, and {wanted[1] or 'some'} on {wanted[0]} are expected; get it again."
            )
        write_project(path, read)
    return Prepared(train, val, notes=("Images have beePose's own size, 2560x1440.",))


# --- pups ---


def _pups(source: Path | None, folder: Path) -> Prepared:
    pairs = (("pups_train.slp", "pups_val.slp"), ("pups.slp", "heldout.slp"))
    wanted = " or ".join(" with ".join(pair) for pair in pairs)
    if source is None:
        raise FormatError(
            f"The paper's mouse pups were never published: give --source FOLDER with {wanted} (examples/pups/generate.py draws the latter)."
        )
    for train, val in pairs:
        if (source / train).is_file():
            _need(source, [val])
            note = (
                f"The paper's mouse pups were never published. {train} stands in for them: other animals, and figures not to be compared."
            )
            return Prepared((source / train).absolute(), (source / val).absolute(), notes=(note,))
    raise FormatError(f"--source {source} lacks {wanted}; copy them there.")


# --- flies ---


def _flies(source: Path | None, folder: Path) -> Prepared:
    if source is not None and (source / "flies_train.slp").is_file():
        train, val = source / "flies_train.slp", source / "flies_val.slp"
        note = f"{train.name} stands in for the paper's flies: other frames, labelled by a model."
        if val.is_file():
            return Prepared(train.absolute(), val.absolute(), notes=(note,))
        note += " There is no flies_val.slp beside it: a quarter of its labelled frames is measured on."
        return Prepared(train.absolute(), 0.25, notes=(note,))
    packages = source or folder / "download"
    if source is not None:
        _need(source, FLY_FILES, f"flies_train.slp, or {FLIES}")
    for name in FLY_FILES if source is None else ():
        fetch(FLIES + name, packages / name)
    train = folder / "flies_train.slp"
    if not train.exists():
        labelled, spare = (read_project(packages / name) for name in FLY_FILES[:2])
        write_project(train, unpacked(labelled, spare, folder / "images"))
    return Prepared(
        train, (packages / FLY_FILES[2]).absolute(),
        notes=(
            "The packages have no video. Frames without a label are those of val.pkg.slp, whose labels are not used: no frame chooses "
            "anything here. Which split the paper measured on is not known; here it is test.pkg.slp.",
        ),
    )  # fmt: skip


def unpacked(labelled: Labels, spare: Labels, folder: Path) -> Labels:
    """Embedded images as one sequence of files: of ``labelled`` with their labels, then those of ``spare`` without.

    Args:
        labelled, spare: read from packages (``.pkg.slp``) with the same 13 keypoints.
        folder: for the images; it appears whole or not at all.
    """
    for labels in (labelled, spare):
        if len(labels.skeleton) != FLY_KEYPOINTS or not labels.labelled_frames:
            raise FormatError(f"{labels.path} has {len(labels.skeleton)} keypoints, not {FLY_KEYPOINTS}, or no labels; download it again.")
    sources = [(labels, frame) for labels in (labelled, spare) for frame in labels.labelled_frames]
    names = [f"img{number:05d}.png" for number in range(len(sources))]
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
            made = Path(temporary) / "images"
            made.mkdir()
            for (labels, frame), name in zip(sources, names, strict=True):
                with open_video(labels.videos[frame.video]) as video:
                    image = video.read(frame.index)
                # grey frames are read as three equal channels, and take a third of the space as one
                Image.fromarray(image[..., 0] if (image[..., :1] == image).all() else image).save(made / name)
            made.rename(folder)
    frames = [
        LabeledFrame(0, number, frame.instances, negative=frame.negative)
        for number, (labels, frame) in enumerate(sources)
        if labels is labelled
    ]
    return Labels(labelled.skeleton, [VideoSource(tuple((folder / name).absolute() for name in names))], frames, labelled.path)


# --- files ---


def _need(source: Path, names: list[str] | tuple[str, ...], instead: str = "") -> None:
    if missing := [name for name in names if not (source / name).is_file()]:
        other = f" (or {instead})" if instead else ""
        raise FormatError(f"--source {source} lacks {', '.join(missing)}{other}; copy it there.")


def fetch(url: str, path: Path) -> None:
    """Download to ``path``, whole or not at all; nothing is done where it is there.

    Raises:
        FormatError: no network, no such file, or less came than was announced.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            announced = answer.headers.get("Content-Length")
        size = partial.stat().st_size
        if announced is not None and size != int(announced):
            raise OSError(f"{size} of {announced} bytes came")
        partial.rename(path)
    except (OSError, ValueError) as error:  # URLError, timeouts and SSL errors are OSErrors
        raise FormatError(
            f"{url} could not be downloaded ({error}). Download it where there is a network, and give its folder: --source FOLDER."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def unpack(archive: Path, part: str, folder: Path) -> None:
    """Take what lies below ``part`` out of a repository's archive, whole or not at all.

    Args:
        archive: a zip file whose first folder is the repository's.
        part: a folder inside the repository, ending in a slash.
        folder: to make.
    """
    try:
        with zipfile.ZipFile(archive) as file, tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
            made = Path(temporary) / "part"
            for entry in file.infolist():
                inside = entry.filename.partition("/")[2]
                name = inside.removeprefix(part)
                if entry.is_dir() or name == inside or ".." in Path(name).parts or not name.endswith((".jpg", ".json")):
                    continue
                target = made / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as packed, target.open("wb") as out:  # checks the sum of each file
                    shutil.copyfileobj(packed, out)
            if not made.is_dir():
                raise FormatError(f"{archive} has no {part}; it is not the archive of beePose. Download {BEEPOSE} again.")
            made.rename(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise FormatError(f"{archive} is no whole zip file ({error}); remove it, and download {BEEPOSE} again.") from error

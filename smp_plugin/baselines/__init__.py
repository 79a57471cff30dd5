"""Methods that ``smp-compare`` sets side by side: ours and its ablations, SLEAP's, DeepLabCut's, each through its own API.

One module per camp has ``run(job) -> Outcome``: train on ``job.train`` for the budget, predict the labelled frames of ``job.val`` into
``job.predictions``. Each runs in a process of its own (``python -m smp_plugin.baselines FOLDER``), so that peak memory,
threads and crashes are one method's alone and no peer is imported into ours.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.files import written_whole

if TYPE_CHECKING:
    from converters.labels import Labels

OWN = ("directpose", "smp-labeled", "smp")
SLEAP = ("sleap-bottomup", "sleap-topdown")
DLC = ("dlc-dekr_w18", "dlc-top_down_resnet_50", "dlc-rtmpose_s")
SAID_OTHERWISE = {  # settings of ours that a comparison makes, and how it is told
    "data.projects": "--slp, --dlc or --coco says it",
    "data.val": "--val says it",
    "data.val_fraction": "--val says it",
    "train.device": "--device says it",
    "train.keep": "every method keeps its last model, as validation frames choose nothing",
    "train.minutes": "--minutes says it",
    "train.seed": "--seeds says it",
    "train.steps": "--steps says it",
}
PEERS = ("sleap.", "dlc.")  # how the names of their settings begin
METHODS = (*OWN, *SLEAP, *DLC)
DEFAULT = (*OWN, *SLEAP)  # what is compared unless others are named
MINUTES = 20.0  # wall-clock budget of each training where neither minutes nor steps are asked for


def own_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Without those of the peers."""
    return {key: value for key, value in settings.items() if not key.startswith(PEERS)}


def peer_settings(settings: Mapping[str, str], peer: str) -> dict[str, Any]:
    """Those of one of ``PEERS``, without the beginning of their names: name -> value, as YAML has it."""
    import yaml

    from smp_plugin.config import is_number

    texts = {key.removeprefix(peer): text.strip() for key, text in settings.items() if key.startswith(peer)}
    values = {key: yaml.safe_load(text) for key, text in texts.items()}
    return {key: float(texts[key]) if value == texts[key] and is_number(value) else value for key, value in values.items()}


def budget_in_words(minutes: float, steps: int) -> str:
    """What a training may spend: minutes of wall-clock, or else optimiser steps."""
    return f"{minutes:g} minutes" if minutes else f"{steps} steps"


@dataclass(frozen=True)
class Job:
    """One cell of a comparison.

    Attributes:
        method: one of ``METHODS``.
        train: project (SLEAP's, or COCO labels) with the labelled frames to learn from; frames without a label may be used as such.
        val: project with the frames to predict. Its labels choose nothing: no early stopping, no best checkpoint.
        folder: for everything the method writes; the predictions above all.
        seed: of everything random.
        minutes: wall-clock budget of training, start-up not counted; 0 where ``steps`` count.
        steps: optimiser steps (of a top-down method: of each of its networks).
        device: auto, cpu, cuda[:i], mps.
        preset: of ours.
        settings: further settings, ``section.name`` -> value; with ``sleap.`` or ``dlc.`` before it, of the peers' configurations.
        curve: how many points of AP over training time are wanted; 0 is none. Their cost is outside of the budget.
        rule: by which AP is measured, as `smp_plugin.evaluation.evaluate` takes it.
        supplement: what the formats of ``train`` and ``val`` cannot say, as `converters.supplement` writes it; None: nothing.
    """

    method: str
    train: Path
    val: Path
    folder: Path
    seed: int = 0
    minutes: float = 0.0
    steps: int = 0
    device: str = "auto"
    preset: str = "auto"
    settings: dict[str, str] = field(default_factory=dict)
    curve: int = 6
    rule: str = "auto"
    supplement: Path | None = None

    @property
    def predictions(self) -> Path:
        """Where the poses on the frames of ``val`` go, as the method's package shows them to its users. Ours are COCO where ``val`` is, and
        need no sleap-io either.
        """
        return self.folder / ("predictions.json" if self.method in OWN and self.val.suffix == ".json" else "predictions.slp")

    @property
    def everything(self) -> Path:
        """The same with what the package leaves out as too unsure, for AP, which weighs by scores. Only where a package leaves out any."""
        return self.folder / "everything.slp"

    def truth(self) -> Labels:
        """What the predictions are measured on: ``val``, with what its format cannot say."""
        from converters.project import read_project
        from converters.supplement import supplemented

        return supplemented(read_project(self.val, require_videos=False), str(self.supplement or ""))

    def write(self) -> None:
        """As ``job.json`` in the job's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "job.json").write_text(json.dumps(dataclasses.asdict(self), default=str, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What ``write`` wrote."""
        values = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return cls(**values | {key: Path(values[key]) for key in ("train", "val", "folder", "supplement") if values.get(key)})


@dataclass
class CurvePoint:
    """Accuracy of an unfinished model on the frames of ``val``, for people only: it chooses nothing."""

    seconds: float  # of training so far
    step: int
    phase: str
    ap: dict[str, float]  # s2 as text ("1", "0.1", "0.0025") -> AP


@dataclass
class Outcome:
    """How a method did its job; the poses themselves are in ``job.predictions``.

    Attributes:
        version: name and version of the package, e.g. ``sleap-nn 0.3.5``.
        steps: optimiser steps taken (of a top-down method: of both networks together).
        train_seconds: spent in training.
        predict_seconds: for the frames of ``val``, model loaded and warm, writing included.
        frames: predicted.
        notes: sentences on settings that were chosen, for the report.
        warnings: sentences without which the figures would mislead.
        curve: AP over training time.
        peak_memory: bytes, of the process, or of the GPU where one was used; filled in by ``__main__``.
        machine: the GPU that was used, processor cores and threads; filled in by ``__main__``.
        min_score: animals below it are left out where people look at the poses; AP weighs scores by itself and takes all.
    """

    version: str
    steps: int
    train_seconds: float
    predict_seconds: float
    frames: int
    notes: list[str] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    peak_memory: int = 0
    min_score: float = 0.0
    warnings: list[str] = field(default_factory=list)
    machine: str = ""

    def write(self, folder: Path) -> None:
        """As ``outcome.json`` in the job's folder, whole or not at all."""
        with written_whole(folder / "outcome.json") as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """What ``write`` wrote."""
        return cls.from_dict(json.loads((folder / "outcome.json").read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """What ``to_dict`` gave."""
        return cls(**values | {"curve": [CurvePoint(**point) for point in values["curve"]]})


class Unavailable(Exception):
    """The method can't run here; the message says what is missing and how to get it."""


def read_predictions(path: Path) -> Labels:
    """What a method predicted on the frames of ``val``. Of COCO's images, those without an animal were looked at, too."""
    from converters.labels import LabeledFrame
    from converters.project import read_project

    found = read_project(path, require_videos=False)
    seen = {frame.index for frame in found.frames}
    images = len(found.videos[0].paths) if path.suffix == ".json" else 0
    return replace(found, frames=[*found.frames, *(LabeledFrame(0, index) for index in range(images) if index not in seen)])


def curve_point(job: Job, predictions: Path, seconds: float, step: int, phase: str = "") -> CurvePoint:
    """Measure unfinished predictions the way the finished ones are measured."""
    from smp_plugin.evaluation import evaluate

    found = evaluate(job.truth(), predictions, rule=job.rule)
    return CurvePoint(seconds, step, phase, {f"{s2:g}": figures.ap for s2, figures in (found.partial or found).ap.items()})

"""Every setting once: its default, unit and meaning; presets; YAML in and out. Unknown keys are errors.

``--help`` is not a copy of this file: it names the few settings that have flags of their own.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from converters.files import written_whole
from converters.labels import FormatError

MIN_SCORE = 0.1  # stands in for predict.min_score where training has not chosen one


@dataclass
class DataConfig:
    """What is learnt from, and at which size."""

    projects: tuple[str, ...] = ()  # labelled projects, as named on the command line
    val: str = ""  # project whose labelled frames choose the best model; "": a share of the labelled frames does
    unlabeled: tuple[str, ...] = ()  # videos to take unlabelled frames from, beside those of the projects
    supplement: str = ""  # file (.json) of what the projects' formats cannot say, as `converters.supplement` has it
    video_root: str = ""  # folder where videos that are not found are looked for next
    images: str = ""  # COCO: folder that image names are relative to; "": that of the labels file
    aliases: str = ""  # table of names that mean the same keypoint in different projects (.csv, or a DeepLabCut config.yaml)
    category: str = ""  # COCO: category to learn, where several have different keypoints
    labels: Literal["auto", "complete", "partial"] = "auto"  # are animals without a label background? auto: decided from the labels
    predicted: Literal["ignore", "unused"] = (
        "ignore"  # what a model predicted in labelled frames and nobody corrected: neither animal nor background, or as if not there
    )
    input_scale: float = 0.0  # input pixels per frame pixel; 0: makes the median animal `animal_size` long, or longer in small frames
    animal_size: float = 72.0  # wanted length of the median animal, input pixels
    max_scale: float = 1.5  # how far small animals are enlarged to that: huddled ones are told apart better, but beyond this is only blur
    crop: int = 0  # side of the square training crop, input pixels; 0: four and a half median animals, 192 to 512, in small frames less
    val_fraction: float = -1.0  # share of labelled frames held out when there is no `val`; -1: a tenth to a fifth, with 10 animals or more
    unlabeled_frames: str = ""  # frames of each video used without labels, e.g. "0-999,1500"; "": all
    cache_gb: float = 2.0  # labelled frames kept decoded, gigabytes in each process
    chosen: tuple[str, ...] = ()  # settings that the run chose for these projects, as key=value; other projects get choices of their own


@dataclass
class AugmentConfig:
    """Random changes to training crops. Geometry is shared by teacher and student; strong colour changes and turns are the student's."""

    rotation: float = 180.0  # degrees to either side
    scale: tuple[float, float] = (0.8, 1.25)  # factor on the input scale
    flip: bool = True  # mirror half of the crops, left and right keypoints swapped
    brightness: float = 0.2  # additive, share of the full range
    contrast: float = 0.25  # multiplicative, share
    strong: float = 2.0  # how many times stronger colour changes are in the student's view of unlabelled frames
    turn: bool = True  # the student sees unlabelled crops turned (where rotation is 180) and mirrored (flip); only crops of whole cells
    moving: float = 0.8  # share of unlabelled crops that are laid on what differs from the median of some of the video's frames
    erase: int = 3  # patches wiped out in the student's view of unlabelled frames, at most
    focus: float = 0.5  # share of crops that are laid on a completely labelled animal where labels are partial
    paste: float = 0.5  # share of labelled crops onto which complete animals are pasted; all of them where labels are partial, unless 0
    paste_max: int = 3  # animals pasted on one crop, at most; `paste` 0: none
    paste_overlap: float = 0.3  # share of an animal's keypoints that a pasted one may cover


@dataclass
class ModelConfig:
    """Backbone, feature pyramid and heads."""

    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    weights: str = "auto"  # auto | imagenet | none | a file of backbone weights
    norm: Literal["auto", "group", "frozen"] = (
        "auto"  # backbone normalisation; auto: frozen batch norm with pretrained weights, else group norm
    )
    channels: int = 96  # of the pyramid and the towers
    levels: Literal[2, 3] = 2  # of the pyramid: strides 8, 16 and, with 3, 32, for which the backbone's last stage is needed, too
    tower_depth: int = 2  # conv 3x3 + GroupNorm + ReLU blocks before each head
    heatmap_stride: Literal[4, 8] = 4  # input pixels per cell of the keypoint heatmaps (A)
    heatmap_channels: int = 64  # of the branch that makes them
    kpalign: bool = True  # two-step keypoint vectors: locator, then residuals sampled where it points
    groups: int = 0  # keypoint groups of KPAlign; 0: one per keypoint


@dataclass
class LossConfig:
    """Supervised terms (eq. 3-7) and the fusion loss (eq. 8-9)."""

    gamma: float = 2.0  # focusing exponent of every focal loss
    kappa: float = 0.25  # weight of positives in the focal loss; 1-kappa that of negatives
    heatmap_target: Literal["gaussian", "cell"] = "gaussian"  # cell: one positive cell per keypoint, as the authors
    heatmap_sigma: float = 1.25  # of the Gaussian target, heatmap cells
    heatmap_weight: float = 1.0  # of L_a
    box_weight: float = 1.0  # of L_b
    vector_weight: float = 1.0  # of L_d
    vector_beta: float = 0.1  # strides; errors below it are penalised quadratically, above it linearly
    quality_weight: float = 0.5  # of the score head C
    quality: Literal["oks", "centerness"] = (
        "oks"  # what C learns: similarity of the predicted pose to the label, or closeness to the centre
    )
    quality_s2: float = 0.1  # squared tolerance of that similarity; smaller ones leave little to tell apart while labels are few
    center_radius: float = 1.5  # strides around an animal's centre in which locations are positive
    keypoint_anchors: bool = False  # places around an animal's keypoints are its own, too; always so where labels are partial
    partial_negative: float = 0.3  # weight of background away from labels where labels are partial
    alpha: float = 0.01  # of L_fl, fusion on labelled frames
    beta: float = 0.1  # of L_fu, fusion on unlabelled frames
    fusion: Literal["focal", "quality", "release"] = "focal"  # eq. 9, the quality-focal form, or the authors' hard cells
    fusion_gradient: Literal["both", "heatmap", "vectors"] = "both"  # what L_f reaches: A and y, A only, y only
    fusion_blur: bool = True  # 3x3 Gaussian on the loss map before sampling: a wider basin of attraction for y
    candidate_threshold: float = 0.05  # delta: locations with sigma(B) above it are candidates
    max_candidates: int = 100  # per image
    agreement: float = 0.5  # of the student's agreement with the teacher on unlabelled frames; 0: fusion only
    fill: bool = True  # complete partly labelled frames and animals by what the teacher is sure of, in the third phase
    sure: float = 0.6  # share of a typical labelled animal's score from which the teacher is believed

    @property
    def unlabelled(self) -> bool:
        """Whether unlabelled frames teach anything."""
        return self.beta > 0 or self.agreement > 0


@dataclass
class TrainConfig:
    """Length, schedule and machine."""

    steps: int = 3000  # optimiser steps
    minutes: float = 0.0  # wall-clock budget of training; 0: `steps` decides
    batch: int = 6  # labelled crops a step
    unlabeled_batch: int = 3  # unlabelled crops a step, in the third phase
    optimizer: Literal["muon", "adamw", "sgd"] = "muon"  # muon: orthogonalised momentum for convolution kernels, AdamW for the rest
    lr: float = 2e-3
    backbone_lr: float = 0.0  # factor on the learning rate of the backbone; 0: 0.1 with pretrained weights, as the authors, else 1
    weight_decay: float = 1e-4  # as the authors; with learning rates of a thousandth, a run's weights shrink by less than a thousandth
    warmup: float = 0.03  # share of the run in which the learning rate rises
    final_lr: float = 0.01  # share of the learning rate left at the end (cosine decay)
    clip: float = 5.0  # gradient norm, at most; 0: it is not clipped
    labeled_fusion_start: float = 0.13  # share of the run after which L_fl counts (2k of 15k steps in the paper)
    unlabeled_fusion_start: float = 0.33  # share of the run after which unlabelled frames count (5k of 15k)
    unlabeled_first_step: int = 300  # and not before it: a teacher that has just begun costs more steps than it is worth
    ramp: float = 0.1  # share of the run over which a new term's weight rises
    ema: float = 0.998  # decay of the moving average of weights: the teacher, and the model that is kept
    val_every: int = 200  # steps between validations and checkpoints
    val_frames: int = 40  # validation frames at most while training
    keep: Literal["best", "last"] = (
        "best"  # which model; best: by 10 validation animals or more; last: they are only watched, and take no time
    )
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the processor has it
    compile: Literal["auto", "yes", "no"] = "auto"  # the network, where that proves faster; auto: for long runs on an NVIDIA GPU
    device: str = "auto"  # auto | cpu | cuda[:i] | mps
    devices: int = 1  # processes, one per GPU
    num_nodes: int = 1  # machines
    workers: int = -1  # loader processes; -1: none on a CPU; beside a GPU half of the processors, 2 to 8
    seed: int = 0


@dataclass
class PredictConfig:
    """From the network's outputs to animals."""

    min_score: float = 0.0  # instances below it are dropped, 0 to 1; 0: chosen at the end of training
    max_animals: int = 0  # the best so many per frame; 0: no limit
    nms: float = 0.4  # similarity (OKS, s2 = .1) above which the lower-scoring of two poses is a double
    refine: bool = True  # move keypoints to the near heatmap maximum
    refine_radius: float = 0.12  # how far refinement may look, share of the animal's length
    shrink: float = 1.0  # frames are read at this share of the size that the model learnt them at; smp-predict --fast chooses it
    track: bool = False  # follow animals: one name for each in all frames of a video
    runtime: Literal["pytorch", "compile", "onnx"] = "pytorch"  # what computes the network; the others only where they prove faster
    batch: int = 0  # frames a batch; 0: as measured on an NVIDIA GPU (16 for other runtimes), 4 on others; a CPU takes several at once


@dataclass
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    # Section 4 of the paper: ResNet-50, SGD .01, 15k steps, 2 labelled + 1 unlabelled image, deep towers, stride-8 heatmaps, fusion only.
    "paper": {
        "data.crop": 704,
        "data.animal_size": 192.0,
        "data.max_scale": 1.0,  # enlarging costs this network up to 2.25 times the arithmetic
        "model.backbone": "resnet50",
        "model.channels": 256,
        "model.levels": 3,
        "model.tower_depth": 4,
        "model.heatmap_stride": 8,
        "loss.heatmap_target": "cell",
        "loss.heatmap_weight": 4.0,
        "loss.agreement": 0.0,
        "train.steps": 15000,
        "train.batch": 2,
        "train.unlabeled_batch": 1,
        "train.optimizer": "sgd",
        "train.lr": 0.01,
        "train.val_every": 500,
        "train.unlabeled_first_step": 0,
    },
    # Full-size frames and a deeper network where a GPU carries them.
    "gpu": {
        "data.crop": 512,
        "data.animal_size": 144.0,
        "model.backbone": "resnet50",
        "model.levels": 3,
        "model.tower_depth": 4,
        "train.steps": 10000,
        "train.batch": 8,
        "train.unlabeled_batch": 4,
        "train.lr": 1e-3,
        "train.val_every": 500,
    },
}


# What a run chooses unless it is asked for something else, and the value that leaves the choice to it.
AUTOMATIC: dict[str, Any] = {
    "data.labels": "auto", "data.input_scale": 0.0, "data.crop": 0, "loss.keypoint_anchors": False, "model.norm": "auto",
    "train.backbone_lr": 0.0, "predict.max_animals": 0,
}  # fmt: skip


def preset(name: str, cuda: bool) -> tuple[Config, str]:
    """The settings of a preset, and a sentence saying what was chosen and why. ``auto`` chooses by device."""
    reason = f"preset {name}, as asked for"
    if name == "auto":
        name = "gpu" if cuda else "small"
        reason = f"preset {name}: {'a CUDA device is there' if cuda else 'there is no CUDA device'}"
    if name not in PRESETS:
        raise FormatError(f"There is no preset {name!r}; choose auto, small, gpu or paper.")
    config = Config()
    for key, value in PRESETS[name].items():
        set_value(config, key, value)
    return config, reason


AT_LEAST = {
    "train.steps": 1, "train.batch": 1, "train.val_every": 1, "train.val_frames": 1, "train.devices": 1, "train.num_nodes": 1,
    "train.workers": -1, "model.channels": 1, "model.heatmap_channels": 1, "data.animal_size": 1, "data.val_fraction": -1,
    "loss.max_candidates": 1, "predict.shrink": 0.1, "loss.quality_s2": 1e-6, "loss.heatmap_sigma": 0.1, "augment.paste_max": 1,
}  # fmt: skip  # any other number: 0
# What somebody else's settings may ask of a machine; far more than is of use. Any other number: 1e9.
AT_MOST = {
    "train.batch": 4096, "train.unlabeled_batch": 4096, "train.workers": 256, "model.channels": 4096, "model.heatmap_channels": 4096,
    "model.tower_depth": 64, "data.crop": 8192, "data.input_scale": 64, "loss.max_candidates": 10_000, "predict.batch": 4096,
    **dict.fromkeys((  # shares and scores
        "predict.shrink", "predict.min_score", "predict.nms", "data.val_fraction", "augment.paste", "augment.moving",
        "augment.focus", "loss.candidate_threshold", "loss.partial_negative", "loss.kappa", "train.ema",
        "train.labeled_fusion_start", "train.unlabeled_fusion_start",
    ), 1),
}  # fmt: skip


MAY_MOVE = ("projects", "val", "unlabeled", "supplement", "video_root", "images", "aliases")  # of `data`: files and folders


def set_value(config: Config, key: str, value: Any, where: str = "--set") -> None:
    """Set ``section.name`` in place; ``value`` may be text. Raises FormatError for an unknown key or a value of the wrong type."""
    section_name, _, name = key.partition(".")
    section = getattr(config, section_name, None) if section_name in {f.name for f in dataclasses.fields(config)} else None
    if section is None or name not in {f.name for f in dataclasses.fields(section)}:
        raise FormatError(f"{where}: there is no setting {key!r}. {_nearest(config, key)}")
    kind = typing.get_type_hints(type(section))[name]
    converted = _converted(value, kind, f"{where}: {key}")
    if isinstance(converted, tuple) and any(isinstance(v, float) and v < 0.01 for v in converted):
        raise FormatError(f"{where}: {key} is {value!r}; its numbers must be at least 0.01.")
    if isinstance(converted, (int, float)) and converted < AT_LEAST.get(key, 0):
        raise FormatError(f"{where}: {key} is {value!r}; it must be at least {AT_LEAST.get(key, 0)}.")
    if isinstance(converted, (int, float)) and converted > AT_MOST.get(key, 1e9):
        raise FormatError(f"{where}: {key} is {value!r}; it must be at most {AT_MOST.get(key, 1e9):,.0f}.")
    config.data.chosen = tuple(text for text in config.data.chosen if not text.startswith(f"{key}="))
    setattr(section, name, converted)


def choose(config: Config, key: str, value: Any) -> None:
    """Set in place what was left to the run, and remember that nobody asked for it."""
    set_value(config, key, value)
    config.data.chosen += (f"{key}={get_value(config, key)}",)


def was_chosen(config: Config, key: str) -> bool:
    """Does the value come from a run that chose it, and not from somebody who asked for it?"""
    return key in AUTOMATIC and f"{key}={get_value(config, key)}" in config.data.chosen


def refuse_changes(config: Config, stored: Config) -> None:
    """FormatError where ``config`` asks for other data or another network than a run that is resumed has, from its ``stored`` settings.

    Files may have moved, and what the run was to choose may be left to it again.
    """
    for section in ("data", "model"):
        for name in (f.name for f in dataclasses.fields(getattr(stored, section)) if f.name != "chosen"):
            key, may_move = f"{section}.{name}", name in MAY_MOVE
            wanted, kept = get_value(config, key), get_value(stored, key)
            if wanted == kept or (may_move and wanted) or (was_chosen(stored, key) and wanted == AUTOMATIC[key]):
                continue
            raise FormatError(
                f"--resume: {key} is {kept!r} in the run that goes on, and cannot become {wanted!r}; leave it out, or train anew in "
                "another folder."
            )


def get_value(config: Config, key: str) -> Any:
    """``section.name``."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def forget_projects(config: Config) -> None:
    """Take what belongs to the projects that they name out of a run's settings, in place: other projects follow.

    That is what was named with them, and what the run chose for them. Settings that name no project are left alone.
    """
    data, new = config.data, DataConfig()
    if not data.projects:
        return
    for key in AUTOMATIC:
        if was_chosen(config, key):
            set_value(config, key, AUTOMATIC[key])
    for name in (*MAY_MOVE, "category", "unlabeled_frames", "chosen"):
        setattr(data, name, getattr(new, name))


def _nearest(config: Config, key: str) -> str:
    import difflib

    keys = [f"{s.name}.{f.name}" for s in dataclasses.fields(config) for f in dataclasses.fields(getattr(config, s.name))]
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.4)
    return f"Did you mean {' or '.join(close)}?" if close else "Keys look like train.steps; config.yaml of any run lists them all."


def _converted(value: Any, kind: Any, where: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if str(value) == str(choice):
                return choice
        raise FormatError(f"{where} is {value!r}; it must be one of {', '.join(map(str, choices))}.")
    if isinstance(value, str) and kind is not str:
        value = _parsed(value, where)
        if isinstance(value, str):  # YAML reads 1e-3 as text
            value = float(value) if kind is float and is_number(value) else value
    if kind == tuple[str, ...]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise FormatError(f"{where} is {value!r}; it must be a list of texts such as [first.mp4, second.mp4].")
    if typing.get_origin(kind) is tuple:
        if (
            isinstance(value, (list, tuple))
            and len(value) == 2
            and all(isinstance(v, (int, float)) for v in value)
            and value[0] <= value[1]
        ):
            return (float(value[0]), float(value[1]))
        raise FormatError(f"{where} is {value!r}; it must be two rising numbers such as [0.8, 1.25].")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(
            f"{where} is {value!r}; it must be {'true or false' if kind is bool else 'a number' if kind in (int, float) else 'text'}."
        )
    if kind in (int, float) and not (value == value and abs(value) != float("inf")):
        raise FormatError(f"{where} is {value!r}; it must be a finite number.")
    return value


class _Loader(yaml.SafeLoader):
    """Plain values. No aliases: a few lines of them stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, *name; write the value itself")
        return super().compose_node(parent, index)


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that can't be
        cause = " ".join(str(error).split()).replace('"<unicode string>", ', "")
        raise FormatError(f"{where}: not a readable YAML ({cause}); correct it there.") from error


def is_number(text: str) -> bool:
    """Also such as 1e-4, which YAML 1.1 takes for text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Nested plain dictionary, tuples as lists: for YAML and checkpoints."""
    return {s: {k: list(v) if isinstance(v, tuple) else v for k, v in d.items()} for s, d in dataclasses.asdict(config).items()}


def from_dict(values: Any, base: Config | None = None, where: str = "config") -> Config:
    """Settings from a nested dictionary over ``base`` (default: the defaults). Raises FormatError naming ``where`` and the key."""
    config = base or Config()
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise FormatError(
            f"{where}: settings stand in sections (data, augment, model, loss, train, predict), each a table of names and values."
        )
    for section, entries in values.items():
        for name, value in entries.items():
            set_value(config, f"{section}.{name}", value, where)
    if "chosen" in values.get("data", {}):
        set_value(config, "data.chosen", values["data"]["chosen"], where)  # again: setting a value takes it off this list
    return config


def read_config(path: Path, base: Config | None = None) -> Config:
    """Settings from a YAML file over ``base``."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FormatError(f"{path}: no such settings file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise FormatError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]}).") from error
    return from_dict(_parsed(text, str(path)) or {}, base, str(path))


def write_config(config: Config, path: Path) -> None:
    """All settings as YAML, so that the run can be repeated with ``--config``."""
    with written_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def parse_ranges(text: str, where: str = "--frames") -> list[tuple[int, int]]:
    """``"0-999,1500"`` -> [(0, 999), (1500, 1500)], both ends included."""
    ranges = []
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        known = first.isdecimal() and (last.isdecimal() or part == first) and len(part) < 40
        if not known or (last and int(last) < int(first)):
            raise FormatError(f"{where} is {text!r}; frames are written like 0-999,1500, the smaller number first.")
        ranges.append((int(first), int(last or first)))
    return ranges

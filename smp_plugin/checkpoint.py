"""A trained model in one file: weights, settings, skeleton and versions, as safetensors, which loads without running code."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from converters.files import written_whole
from converters.labels import FormatError, Skeleton
from smp_plugin import __version__
from smp_plugin.config import Config, from_dict, to_dict
from smp_plugin.model import PoseModel

KIND, FORMAT = "smp-plugin model", 2  # the number rises when what is in the files changes


@dataclass
class Checkpoint:
    """What prediction needs. ``typical_length``: median complete animal, input pixels; ``config.data.input_scale`` is resolved."""

    model: PoseModel
    config: Config
    skeleton: Skeleton
    typical_length: float
    facts: dict[str, object]


def written_by() -> dict[str, object]:
    """What a file says about the version that wrote it."""
    return {"format": f"{KIND} {FORMAT}", "version": __version__}


def check_version(where: str, header: object) -> None:
    """Raise FormatError where ``written_by`` is absent from a file's header, or of a version that writes other files."""
    told = header if isinstance(header, dict) else {}
    kind, _, number = str(told.get("format")).rpartition(" ")
    if kind != KIND or not number.isdecimal():
        raise FormatError(f"{where}: the file does not say which version of smp-plugin wrote it, so it is no model of it; train it again.")
    if int(number) != FORMAT:
        remedy = "update smp-plugin" if int(number) > FORMAT else "train it again, or use it with the version that wrote it"
        writer = f"smp-plugin {told.get('version')} (format {number})"
        raise FormatError(f"{where}: written by {writer}, but smp-plugin {__version__} reads format {FORMAT}; {remedy}.")


def save_model(path: Path, checkpoint: Checkpoint) -> None:
    """Write whole or not at all."""
    header = written_by() | {
        "torch": torch.__version__,
        "config": to_dict(checkpoint.config),
        "skeleton": {
            "name": checkpoint.skeleton.name,
            "keypoints": list(checkpoint.skeleton.keypoints),
            "edges": checkpoint.skeleton.edges,
            "symmetries": checkpoint.skeleton.symmetries,
        },
        "typical_length": checkpoint.typical_length,
        "facts": checkpoint.facts,
    }
    tensors = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in checkpoint.model.state_dict().items()}
    with written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"smp_plugin": json.dumps(header)}))


def load_model(path: Path) -> Checkpoint:
    """Read a model file, or the ``model.pt`` of a run folder. Raises FormatError saying what is wrong with it."""
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise FormatError(f"--model {path}: no such model file; give the folder of a finished smp-train run, or the model.pt in it.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("smp_plugin", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FormatError(f"--model {path}: the file is damaged or is no model of smp-train ({str(error).splitlines()[0]}).") from error
    check_version(f"--model {path}", header)
    try:
        config = from_dict(header["config"], where=str(path))
        skeleton = Skeleton(
            tuple(header["skeleton"]["keypoints"]),
            tuple((int(a), int(b)) for a, b in header["skeleton"]["edges"]),
            tuple((int(a), int(b)) for a, b in header["skeleton"]["symmetries"]),
            header["skeleton"]["name"],
        )
        with torch.device("meta"):  # takes no memory, while settings that the weights don't bear out may ask for any amount
            PoseModel(config.model, len(skeleton)).load_state_dict(tensors, assign=True)
        model = PoseModel(config.model, len(skeleton))
        model.load_state_dict(tensors)
        typical = float(header["typical_length"])
        if not 0 < typical < math.inf:
            raise ValueError(f"typical_length is {typical}")
        return Checkpoint(model.eval(), config, skeleton, typical, dict(header["facts"]))
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(
            f"--model {path}: the model file does not fit together ({str(error).splitlines()[0]}); train it again."
        ) from error

"""ResNet feature extractor (torchvision) with GroupNorm or frozen BatchNorm, and where its weights come from."""

from __future__ import annotations

import socket
from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from converters.labels import FormatError
from smp_plugin.normalization import FrozenNorm, GroupNorm
from smp_plugin.unpickling import load_plain

STAGE_CHANNELS = {"resnet18": (64, 128, 256, 512), "resnet34": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048)}


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with 32 groups, or fewer where that does not divide the channels: statistics do not depend on the small batches here."""
    return GroupNorm(next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0), channels)


class Backbone(nn.Module):
    """Images (N, 3, H, W) -> features of strides 4, 8, 16 and, with all four stages, 32.

    Args:
        name: resnet18, resnet34 or resnet50.
        norm: "group" or "frozen" (batch norm whose statistics never change, for pretrained weights).
        stages: how many of its four, from the first.
    """

    def __init__(self, name: str, norm: str, stages: int = 4) -> None:
        super().__init__()
        network = get_model(name, weights=None, norm_layer=FrozenNorm if norm == "frozen" else group_norm)
        self.stem = nn.Sequential(OrderedDict(conv=network.conv1, norm=network.bn1, relu=network.relu, pool=network.maxpool))
        if norm == "group":  # nothing pretrained to agree with: pooling first saves a fifth of a training step on a CPU
            self.stem = nn.Sequential(OrderedDict(conv=network.conv1, pool=network.maxpool, norm=network.bn1, relu=network.relu))
        self.stages = nn.ModuleList((network.layer1, network.layer2, network.layer3, network.layer4)[:stages])
        self.channels, self.frozen = STAGE_CHANNELS[name][:stages], norm == "frozen"

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def load_torchvision(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a torchvision ResNet of the same name. Raises FormatError if any is missing.

        Its classifier and stages that this backbone does without are left out, and where group norm has no place for them the
        statistics of its batch norm.
        """
        names = {"conv1": "stem.conv", "bn1": "stem.norm"} | {f"layer{i + 1}": f"stages.{i}" for i in range(len(self.stages))}
        unused = ("num_batches_tracked",) if self.frozen else ("num_batches_tracked", "running_mean", "running_var")
        renamed = {}
        for key, value in state.items():
            head, _, tail = key.removeprefix("backbone.model.").removeprefix("model.").removeprefix("module.").partition(".")
            if head in names and not tail.endswith(unused):
                renamed[f"{names[head]}.{tail}"] = value
        try:
            self.load_state_dict(renamed)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise FormatError(
                f"--weights: they are not those of this backbone ({reason[:200]}); set model.backbone to theirs (resnet18, 34 or 50)."
            ) from error


def find_weights(choice: str, name: str) -> tuple[dict[str, Tensor] | None, str]:
    """Backbone weights and a sentence saying what was taken and why.

    Args:
        choice: "auto" (ImageNet's from the cache or the net, else none), "imagenet" (an error where they can't be had), "none", or a file
            in torchvision's (or timm's, or DeepLabCut's) ResNet naming.

    Raises:
        FormatError: the file is absent or does not hold weights, or ImageNet weights were asked for and can't be had.
    """
    if choice == "none":
        return None, "backbone weights: none, the backbone is trained from scratch, as asked for"
    if choice in ("auto", "imagenet"):
        weights = get_model_weights(name).DEFAULT
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)  # a cluster without a way out drops connections silently
        try:
            return weights.get_state_dict(progress=False, check_hash=True), f"backbone weights: ImageNet ({weights})"
        except Exception as error:  # urllib, ssl, socket, hash and file errors: whatever went wrong, the remedy is the same
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        finally:
            socket.setdefaulttimeout(patience)
        if choice == "imagenet":
            raise FormatError(
                f"--weights imagenet: the weights of {name} could not be had ({reason}). Download {weights.url} where there is a "
                "network and pass the file with --weights FILE, or use --weights none."
            )
        remedy = f"download {weights.url} elsewhere and pass the file with --weights FILE"
        cost = "training from scratch, which needs more labels and steps"
        return None, f"NO PRETRAINED WEIGHTS could be had for {name} ({reason}): {cost}; {remedy}"
    return _weights_file(Path(choice)), f"backbone weights: {choice}"


def _weights_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FormatError(f"--weights {path}: no such file; give a file of ResNet weights, or one of auto, imagenet, none.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = load_plain(path)
    except Exception as error:
        raise FormatError(
            f"--weights {path}: not a safe file of ResNet weights; give the .pth that torchvision offers, a plain state_dict."
        ) from error
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FormatError(f"--weights {path}: holds no table of weights; give the .pth that torchvision offers, a plain state_dict.")
    return state

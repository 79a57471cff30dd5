"""The backbone against torchvision's network, and every way in which weights can fail to be had."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet, WeightsEnum, resnet18, resnet50

from converters.labels import FormatError
from smp_plugin.backbone import Backbone, find_weights


@pytest.fixture(scope="module")
def network() -> ResNet:
    """A torchvision ResNet-18 whose batch statistics are not those of a fresh one."""
    torch.manual_seed(0)
    network = resnet18(weights=None)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return network.eval()


def features_of(network: ResNet, images: torch.Tensor) -> list[torch.Tensor]:
    """What torchvision's own forward computes on the way: recorded by hooks, not repeated here."""
    features: list[torch.Tensor] = []
    layers = (network.layer1, network.layer2, network.layer3, network.layer4)
    hooks = [layer.register_forward_hook(lambda _module, _inputs, output: features.append(output)) for layer in layers]
    network(images)
    for hook in hooks:
        hook.remove()
    return features


@pytest.mark.parametrize(("prefix", "stages"), [("", 4), ("module.", 4), ("model.", 4), ("backbone.model.", 4), ("", 3)])
def test_torchvision_weights_give_torchvisions_features(network: ResNet, prefix: str, stages: int) -> None:
    backbone = Backbone("resnet18", "frozen", stages)
    backbone.load_torchvision({prefix + k: v for k, v in network.state_dict().items()})
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    for training in (True, False):  # frozen statistics: training mode changes nothing
        with torch.no_grad():
            seen, expected = backbone.train(training)(images), features_of(network, images)[:stages]
            for mine, theirs, stride in zip(seen, expected, (4, 8, 16, 32)[:stages], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
                assert mine.shape[2:] == (64 // stride, 96 // stride)


def test_resnet50_has_the_channels_it_names() -> None:
    backbone = Backbone("resnet50", "frozen")
    backbone.load_torchvision(resnet50(weights=None).state_dict())
    with torch.no_grad():
        assert tuple(f.shape[1] for f in backbone(torch.zeros(1, 3, 32, 32))) == backbone.channels == (256, 512, 1024, 2048)


def test_group_norm_backbone_has_no_statistics_of_batches() -> None:
    assert not [name for name, _ in Backbone("resnet18", "group").named_buffers()]


def test_group_norm_takes_the_kernels_of_pretrained_weights(network: ResNet) -> None:
    backbone = Backbone("resnet18", "group")
    backbone.load_torchvision(network.state_dict())
    mine, theirs = backbone.state_dict(), network.state_dict()
    assert torch.equal(mine["stages.2.0.conv1.weight"], theirs["layer3.0.conv1.weight"])
    assert torch.equal(mine["stem.norm.weight"], theirs["bn1.weight"])


def test_missing_and_foreign_weights_are_refused(network: ResNet) -> None:
    state = network.state_dict()
    del state["layer3.0.conv1.weight"]
    with pytest.raises(FormatError, match="--weights: .*stages.2.0.conv1.weight"):
        Backbone("resnet18", "frozen").load_torchvision(state)
    with pytest.raises(FormatError):
        Backbone("resnet50", "frozen").load_torchvision(network.state_dict())


def test_none_takes_no_weights() -> None:
    weights, sentence = find_weights("none", "resnet18")
    assert weights is None and "scratch" in sentence


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("nesting", [None, "model", "state_dict"])
def test_a_file_of_weights_is_read(tmp_path: Path, network: ResNet, suffix: str, nesting: str | None) -> None:
    path = tmp_path / f"weights{suffix}"
    state = network.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({nesting: state} if nesting else state, path)
    weights, sentence = find_weights(str(path), "resnet18")
    assert weights is not None and path.name in sentence
    Backbone("resnet18", "frozen").load_torchvision(weights)


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_garbage(path: Path) -> None:
    path.write_bytes(b"no weights at all " * 50)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(path.with_name("executed"))))


def write_torch_pickle(path: Path) -> None:
    torch.save({"conv1.weight": Malicious(path.with_name("executed"))}, path)


def write_table_without_weights(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def write_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


@pytest.mark.parametrize("write", [write_garbage, write_pickle, write_torch_pickle, write_table_without_weights, write_list])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused_without_running_it(tmp_path: Path, write: Any, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(FormatError, match="plain state_dict"):
        find_weights(str(path), "resnet18")
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nowhere.pt: no such file"):
        find_weights(str(tmp_path / "nowhere.pt"), "resnet18")


def test_without_a_network_auto_goes_on_and_imagenet_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: WeightsEnum, *_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    weights, sentence = find_weights("auto", "resnet18")
    assert weights is None and sentence.startswith("NO PRETRAINED WEIGHTS") and "no route to host" in sentence
    with pytest.raises(FormatError, match=r"no route to host.*https://.*--weights FILE"):
        find_weights("imagenet", "resnet18")


def test_imagenet_weights_from_the_cache_are_taken(monkeypatch: pytest.MonkeyPatch, network: ResNet) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: network.state_dict())
    for choice in ("auto", "imagenet"):
        weights, sentence = find_weights(choice, "resnet18")
        assert weights is not None and "ImageNet" in sentence

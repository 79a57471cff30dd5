"""A model survives the way to disk and back; nothing else is taken for a model, and no file is run."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from converters.labels import FormatError, Skeleton
from smp_plugin import __version__
from smp_plugin.checkpoint import FORMAT, Checkpoint, load_model, save_model
from smp_plugin.config import Config, ModelConfig, to_dict
from smp_plugin.model import PoseModel
from smp_plugin.run_folder import read_checkpoint

SKELETON = Skeleton(("nose", "left ear", "right ear"), ((0, 1), (0, 2)), ((1, 2),), "mouse")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    config = Config(model=ModelConfig(channels=16, tower_depth=1, heatmap_channels=16, norm="frozen"))
    config.data.input_scale, config.augment.scale = 0.37, (0.9, 1.1)
    return Checkpoint(PoseModel(config.model, 3).eval(), config, SKELETON, 61.5, {"step": 7, "weights": "none"})


@pytest.fixture
def saved(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    path = tmp_path / "model.pt"
    save_model(path, checkpoint)
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["smp_plugin"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def rewrite(path: Path, header: Any, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, metadata={"smp_plugin": json.dumps(header)})


def test_a_model_comes_back_as_it_was(saved: Path, checkpoint: Checkpoint) -> None:
    images = torch.randint(0, 256, (1, 3, 40, 70), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for path in (saved, saved.parent):
        loaded = load_model(path)
        assert not loaded.model.training
        with torch.no_grad():
            before, after = checkpoint.model(images), loaded.model(images)
        for name in ("heatmaps", "presence", "quality", "vectors", "locations", "strides"):
            assert torch.equal(getattr(before, name), getattr(after, name)), name
        assert loaded.config == checkpoint.config and loaded.skeleton == SKELETON
        assert loaded.typical_length == 61.5 and loaded.facts == checkpoint.facts
    assert [p.name for p in saved.parent.iterdir()] == ["model.pt"]


def test_weights_of_any_precision_and_layout_are_kept(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = PoseModel(checkpoint.config.model, 3).to(memory_format=torch.channels_last).bfloat16()
    save_model(tmp_path / "half.pt", dataclasses.replace(checkpoint, model=model))
    for name, value in load_model(tmp_path / "half.pt").model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].float())


def test_a_failed_save_leaves_the_old_model(saved: Path, checkpoint: Checkpoint) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        save_model(saved, dataclasses.replace(checkpoint, facts={"path": Path("not JSON")}))
    assert saved.read_bytes() == before


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, executed = tmp_path / "model.pt", tmp_path / "executed"
    for write in (lambda: path.write_bytes(pickle.dumps(Malicious(executed))), lambda: torch.save(Malicious(executed), path)):
        write()
        with pytest.raises(FormatError, match="model.pt.* damaged or is no model"):
            load_model(path)
        assert not executed.exists()


@pytest.mark.parametrize("keep", [0, 7, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(FormatError, match="damaged"):
        load_model(saved)


def test_garbage_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(FormatError, match="damaged"):
        load_model(tmp_path)
    with pytest.raises(FormatError, match="no such model file"):
        load_model(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "metadata", [None, {"smp_plugin": "[]"}, {"smp_plugin": "{}"}, {"smp_plugin": '{"format": "other 9"}'}, {"smp_plugin": "{"}]
)
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.pt"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(FormatError, match=r"model.pt.*(train it again|damaged)"):
        load_model(path)


VERSIONS = [
    ({}, r"does not say which version of smp-plugin wrote it, so it is no model of it; train it again\.$"),
    ({"format": "smp-plugin model"}, "does not say which version"),
    (
        {"format": f"smp-plugin model {FORMAT - 1}", "version": "0.0.7"},
        rf"smp-plugin 0\.0\.7 \(format {FORMAT - 1}\), but smp-plugin {__version__} reads",
    ),
    (
        {"format": f"smp-plugin model {FORMAT + 1}", "version": "9.1"},
        rf"smp-plugin 9\.1 \(format {FORMAT + 1}\), but .* format {FORMAT}; update smp-plugin\.$",
    ),
]


@pytest.mark.parametrize(("told", "sentence"), VERSIONS, ids=["missing", "without a number", "older", "newer"])
def test_models_and_checkpoints_of_other_versions_are_refused(saved: Path, told: dict[str, str], sentence: str) -> None:
    header, tensors = contents(saved)
    stripped = {name: value for name, value in header.items() if name not in ("format", "version")}
    rewrite(saved, stripped | told, tensors)
    with pytest.raises(FormatError, match=f"^--model {saved}: .*{sentence}"):
        load_model(saved)
    torch.save({"step": 3} | told, saved.parent / "last.ckpt")
    with pytest.raises(FormatError, match=f"^--resume: {saved.parent / 'last.ckpt'}: .*{sentence}"):
        read_checkpoint(saved.parent)


def edit_unknown_setting(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    header["config"]["train"]["stepz"] = 5


def edit_wrong_type(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    header["config"]["model"]["channels"] = "many"


def edit_sections(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    header["config"] = 3


def edit_no_skeleton(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    del header["skeleton"]


def edit_skeleton_type(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    header["skeleton"]["edges"] = [[0, 99]]


def edit_fewer_keypoints(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    header["skeleton"] |= {"keypoints": ["nose"], "edges": [], "symmetries": []}


def edit_missing_weight(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors["presence.logits.weight"]


def edit_shape(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["presence.logits.weight"] = torch.zeros(2, 2)


def edit_length(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    header["typical_length"] = None


EDITS = [value for name, value in list(globals().items()) if name.startswith("edit_")]


@pytest.mark.parametrize("edit", EDITS, ids=[e.__name__ for e in EDITS])
def test_a_model_that_does_not_fit_together_is_refused_with_a_sentence(saved: Path, edit: Any) -> None:
    header, tensors = contents(saved)
    edit(header, tensors)
    rewrite(saved, header, tensors)
    with pytest.raises(FormatError) as caught:
        load_model(saved)
    message = str(caught.value)
    assert message.endswith((".", "?")) and "\n" not in message and len(message) > 30


def test_settings_stand_whole_in_the_file(saved: Path, checkpoint: Checkpoint) -> None:
    header, _ = contents(saved)
    assert header["config"] == json.loads(json.dumps(to_dict(checkpoint.config)))

"""``--fast``: frames read smaller, where that is known to cost little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sleap_io as sio

from converters import FormatError
from smp_plugin.checkpoint import load_model, save_model
from smp_plugin.cli.predict import main
from smp_plugin.evaluation import evaluate
from smp_plugin.model import PoseModel
from smp_plugin.prediction import predict
from smp_plugin.predictor import smallest

pytestmark = pytest.mark.usefixtures("thin_backbone")


@pytest.fixture
def knowing(trained: Path, tmp_path: Path) -> Callable[[object], Path]:
    """The trained model, with what it knows of smaller frames."""

    def make(shrunk: object) -> Path:
        kept = load_model(trained)
        kept.facts["shrunk"] = shrunk
        save_model(tmp_path / "model.pt", kept)
        return tmp_path / "model.pt"

    return make


def test_training_measures_smaller_frames(trained: Path):
    shrunk = load_model(trained).facts["shrunk"]
    assert isinstance(shrunk, dict) and list(shrunk) == ["1.0", "0.75", "0.5"]
    assert all(0 <= ap <= 1 for ap in shrunk.values()) and shrunk["1.0"] > 0.2


@pytest.mark.parametrize(
    ("shrunk", "share"),
    [
        ({"1.0": 0.9, "0.75": 0.89, "0.5": 0.5}, 0.75),
        ({"1.0": 0.9, "0.75": 0.91, "0.5": 0.883}, 0.5),
        ({"1.0": 0.9, "0.75": 0.88, "0.5": 0.0}, 1.0),
        ({"1.0": float("nan"), "0.75": float("nan")}, 1.0),
        ({"1.0": 0.0, "0.75": 0.0, "0.5": 0.0}, 1.0),  # nothing to keep
    ],
)
def test_the_smallest_that_is_about_as_accurate(shrunk: dict[str, float], share: float, knowing: Callable[[object], Path], listener: Any):
    path = knowing(shrunk)
    assert smallest(load_model(path), path, listener) == share
    (said,) = listener.sentences
    assert said.startswith("--fast: frames are read ") and f"{shrunk['1.0']:.3f} at 1" in said
    assert ("1.8 times fewer" in said) == (share == 0.75) and ("in full" in said) == (share == 1)


@pytest.mark.parametrize("shrunk", [None, {}, "x", {"0.5": 0.5}, {"1.0": "a"}, {"1.0": None}, [1, 2]])
def test_nothing_is_known(shrunk: object, knowing: Callable[[object], Path]):
    path = knowing(shrunk)
    with pytest.raises(FormatError, match=r"--fast: what smaller frames cost was never measured for .*leave out --fast, or train with"):
        smallest(load_model(path), path, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", ["-1", "0", "1e-9", "7", "nan"])
def test_somebody_elses_shares(share: str, knowing: Callable[[object], Path], listener: Any):
    path = knowing({"1.0": 0.5, share: 0.5})
    assert smallest(load_model(path), path, listener) == 1


def test_poses_of_smaller_frames_are_in_pixels_of_the_frame(
    knowing: Callable[[object], Path], blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sizes: set[tuple[int, ...]] = set()
    forward = PoseModel.forward

    def watched(self: PoseModel, images: Any) -> Any:
        sizes.add(tuple(images.shape[2:]))
        return forward(self, images)

    monkeypatch.setattr(PoseModel, "forward", watched)
    model = knowing({"1.0": 0.9, "0.75": 0.9, "0.5": 0.1})
    predict([blobs.video], tmp_path / "full.slp", model=model, device="cpu")
    (full,) = sizes
    sizes.clear()
    assert main(f"{blobs.video} -o {tmp_path}/fast.slp --model {model} --device cpu --fast".split()) == 0
    (small,) = sizes
    assert 0.4 * full[0] * full[1] < small[0] * small[1] < 0.8 * full[0] * full[1]
    assert "--fast: frames are read at 0.75 of their size" in capsys.readouterr().err
    assert sio.load_slp(str(tmp_path / "fast.slp")).provenance["settings"]["shrink"] == 0.75
    full_size, fast = (evaluate(blobs.project, tmp_path / f"{name}.slp").pixel_error[50] for name in ("full", "fast"))
    assert fast < full_size + 2

"""A loss that is no number ends the run at once and says whose it is; what was saved before stays good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from converters import FormatError
from smp_plugin import training
from smp_plugin.config import Config
from smp_plugin.training import train

pytestmark = pytest.mark.usefixtures("thin_backbone")

BLUE = 222  # of all pixels of the images marked, far above that of any other


@pytest.fixture
def poisoned(make_blobs: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A project of images, of which number 5 (or 7, without labels) makes a term of the loss infinite."""

    def make(term: str = "box") -> Any:
        blobs = make_blobs(images=True, counts=[1] * 8, labelled=range(6))
        for image in (5, 7):  # one labelled, one not
            mark(blobs.video / f"img{image:03}.png")
        real = training.PoseTraining.loss_terms

        def loss_terms(self: Any, batch: Any) -> dict[str, torch.Tensor]:
            terms = real(self, batch)
            seen = batch.strong if term == "agreement" else batch.images
            if term in terms and len(seen):
                terms[term] = torch.where(seen[:, 2].float().mean(dim=(1, 2)).max() > 120, torch.inf, terms[term])
            return terms

        monkeypatch.setattr(training.PoseTraining, "loss_terms", loss_terms)
        return blobs

    return make


def mark(path: Path, blue: int = BLUE) -> None:
    image = np.array(Image.open(path))
    image[..., 2] = blue
    Image.fromarray(image).save(path)


def settings(make_config: Callable[..., Config], **more: Any) -> Config:
    return make_config(**{"train__steps": 4, "data__val_fraction": 0.0, "data__input_scale": 1.0} | more)


@pytest.mark.parametrize("term", ["box", "agreement"])
def test_the_term_and_the_frame_are_named(poisoned: Any, make_config: Callable[..., Config], tmp_path: Path, term: str):
    blobs, run = poisoned(term), tmp_path / "run"
    config = settings(make_config, train__steps=30, train__unlabeled_fusion_start=0.0)
    with pytest.raises(FormatError) as caught:
        train([blobs.project], config=config, out=run)
    whose = f"blobs/img005.png of {blobs.project}" if term == "box" else "blobs/img007.png (without labels)"
    assert f"the loss is not a finite number ({term} inf); it comes from {whose}: look at" in str(caught.value)
    assert str(run / "not_finite.npz") in str(caught.value)
    kept = np.load(run / "not_finite.npz", allow_pickle=False)
    assert kept["images"].shape == (2, 3, 64, 64) and kept["images"].dtype == np.uint8 and len(kept["frames"]) == 3
    assert any(whose in name for name in kept["frames"]) and kept["values"][kept["terms"].tolist().index(f"loss_{term}")] == np.inf


def test_the_last_good_checkpoint_stays_and_can_be_gone_on_with(poisoned: Any, make_config: Callable[..., Config], tmp_path: Path):
    blobs, run = poisoned(), tmp_path / "run"
    with pytest.raises(FormatError, match=r"^step 3: .*--resume continues from .*last\.ckpt\.$"):
        train([blobs.project], config=settings(make_config), out=run)
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["state_dict"].values())
    mark(blobs.video / "img005.png", 30)
    train(out=run, resume=True)
    assert torch.load(run / "last.ckpt", weights_only=True)["step"] == 4


def bad_gradients(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int], bool]) -> None:
    """A gradient of NaN in the steps for which ``wrong`` is true; the loss stays as it is."""
    real = training.PoseTraining.on_after_backward

    def on_after_backward(self: Any) -> None:
        if wrong(self.step):
            next(p for p in self.model.parameters() if p.grad is not None).grad[0] = torch.nan
        real(self)

    monkeypatch.setattr(training.PoseTraining, "on_after_backward", on_after_backward)


def test_a_gradient_now_and_then_counts_as_zero(
    blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Any
):
    bad_gradients(monkeypatch, lambda step: step in (1, 2))
    run = train([blobs.project], config=settings(make_config), out=tmp_path / "run", reporter=listener)
    assert [text.split(":")[0] for text in listener.alarms if "gradient is not finite" in text] == ["step 2", "step 3"]
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["step"] == 4 and all(value.isfinite().all() for value in saved["state_dict"].values())
    assert not (run / "not_finite.npz").exists()


def test_ten_such_gradients_in_a_row_end_the_run(
    blobs: Any, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bad_gradients(monkeypatch, lambda step: step >= 2)
    run = tmp_path / "run"
    with pytest.raises(FormatError, match=r"step 12: the gradient was not finite 10 times in a row; no crop alone.*lower learning rate"):
        train([blobs.project], config=settings(make_config, train__steps=30, train__val_every=4), out=run)
    saved = torch.load(run / "last.ckpt", weights_only=True)
    assert saved["step"] == 8 and all(value.isfinite().all() for value in saved["state_dict"].values())
    assert (run / "not_finite.npz").exists()

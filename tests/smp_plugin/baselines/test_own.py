"""Our own methods as those of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smp_plugin.baselines import Job, own
from smp_plugin.config import Config, write_config


class _Seen(Exception):
    """Training would begin."""


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(
    blobs: Any, tmp_path: Path, make_config: Callable[..., Config], tiny: dict[str, str], thin_backbone: None
) -> None:
    job = Job("directpose", blobs.project, blobs.project, tmp_path, steps=1, device="cpu", settings=tiny, curve=1)
    (tmp_path / "run").mkdir()
    write_config(make_config(data__projects=(str(blobs.project),), data__val=str(blobs.project)), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "model.pt").write_bytes(b"of the run that was stopped")
    outcome = own.run(job)
    assert outcome.steps == 1 and outcome.frames == 12 and job.predictions.exists()


@pytest.mark.parametrize(("method", "alpha", "beta", "agreement"), [("directpose", 0, 0, 0), ("smp-labeled", 5, 0, 0), ("smp", 5, 2, 0.5)])
def test_the_users_settings_do_not_switch_an_ablation_back_on(
    method: str, alpha: float, beta: float, agreement: float, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []

    def train(*_: Any, config: Config, **__: Any) -> None:
        seen.append(config)
        raise _Seen

    monkeypatch.setattr(own, "train", train)
    asked = {"loss.alpha": "5", "loss.beta": "2", "train.keep": "best", "data.val_fraction": "0.5", "loss.gamma": "3"}
    with pytest.raises(_Seen):
        own.run(Job(method, blobs.project, blobs.project, tmp_path / "cell", steps=1, device="cpu", settings=asked))
    loss = seen[0].loss
    assert (loss.alpha, loss.beta, loss.agreement, loss.gamma) == (alpha, beta, agreement, 3)
    assert seen[0].train.keep == "last" and seen[0].data.val_fraction == 0  # frames that are measured on choose nothing


@pytest.mark.parametrize(("budget", "minutes", "steps"), [({"steps": 7}, 0.0, 7), ({"minutes": 2.0}, 2.0, Config().train.steps)])
def test_the_users_settings_do_not_change_the_budget(
    budget: dict[str, Any], minutes: float, steps: int, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []

    def train(*_: Any, config: Config, **__: Any) -> None:
        seen.append(config)
        raise _Seen

    monkeypatch.setattr(own, "train", train)
    asked = {"train.minutes": "5", "train.steps": "9"}
    with pytest.raises(_Seen):
        own.run(Job("smp", blobs.project, blobs.project, tmp_path / "cell", device="cpu", settings=asked, **budget))
    assert (seen[0].train.minutes, seen[0].train.steps) == (minutes, steps)


def test_a_run_without_unlabelled_frames_says_so(
    make_blobs: Callable[..., Any], tmp_path: Path, tiny: dict[str, str], thin_backbone: None
) -> None:
    project = make_blobs(counts=(1,) * 4, labelled=range(4)).project
    settings = tiny | {"train.unlabeled_first_step": "300"}
    outcome = own.run(Job("smp", project, project, tmp_path, steps=1, device="cpu", settings=settings, curve=1))
    assert outcome.warnings == [own.NO_POOL]


def test_a_run_too_short_for_unlabelled_frames_says_so(blobs: Any, tmp_path: Path, tiny: dict[str, str], thin_backbone: None) -> None:
    settings = tiny | {"train.unlabeled_first_step": "1"}
    outcome = own.run(Job("smp", blobs.project, blobs.project, tmp_path, steps=1, device="cpu", settings=settings, curve=1))
    assert outcome.warnings == [own.TOO_SHORT.format(1)] and "count from step 1 (" in outcome.warnings[0]


@pytest.mark.parametrize(("labelled", "frames"), [(45, 45), (3, None)])
def test_the_curve_is_of_all_validation_frames(
    labelled: int, frames: int | None, blobs: Any, make_blobs: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = make_blobs("val", counts=[1] * labelled, labelled=range(labelled)).project
    seen: list[Config] = []

    def train(*_: Any, config: Config, **__: Any) -> None:
        seen.append(config)
        raise _Seen

    monkeypatch.setattr(own, "train", train)
    with pytest.raises(_Seen):
        own.run(Job("smp", blobs.project, val, tmp_path / "cell", steps=1, device="cpu"))
    assert seen[0].train.val_frames == (frames or Config().train.val_frames)  # never fewer: they also choose the cut

"""SLEAP's and DeepLabCut's own figures, where they are installed: each against the cases in which it is known to differ from ours."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from converters import write_predictions, write_project
from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from smp_plugin import evaluation
from smp_plugin.average_precision import keypoint_ap
from smp_plugin.cli.evaluate import main
from smp_plugin.peer_figures import PeerFrame, installed, peer_figures
from smp_plugin.similarity import SLEAP_S2

needs_sleap = pytest.mark.skipif(find_spec("sleap_nn") is None, reason="sleap-nn is not installed (pip install smp-plugin[sleap])")
needs_dlc = pytest.mark.skipif(find_spec("deeplabcut") is None, reason="deeplabcut is not installed (pip install smp-plugin[dlc])")

SQUARE = np.array([[0.0, 0.0], [40.0, 0.0], [40.0, 40.0], [0.0, 40.0]])
PAIR = np.stack([SQUARE, SQUARE + 200])
MISSING = PAIR.copy()
MISSING[:, 0] = np.nan


def _found(*poses: np.ndarray, score: float = 0.9) -> list[PredictedInstance]:
    return [PredictedInstance(p, score=score, point_scores=np.full(4, score)) for p in poses]


PERFECT = PeerFrame(PAIR, _found(*PAIR))
CASES = {  # ten frames with two animals each -> sleap-nn's mAP, mAR
    "perfect": ([PERFECT] * 10, (1, 1)),
    "doubles with lower scores": ([PeerFrame(PAIR, _found(*PAIR) + _found(*PAIR, score=0.5))] * 10, (1, 1)),
    "half of the frames absent": ([PERFECT] * 5 + [PeerFrame(PAIR, None)] * 5, (1, 1)),
    "half of the frames without a prediction": ([PERFECT] * 5 + [PeerFrame(PAIR, [])] * 5, (51 / 101, 0.5)),
    "frames known to be empty": ([PERFECT] * 10 + [PeerFrame(PAIR[:0], _found(*PAIR))] * 10, (1, 1)),
    "wrong ones with higher scores": ([PeerFrame(PAIR, _found(*PAIR + 20.0) + _found(*PAIR, score=0.5))] * 10, (0, 0)),
    "a point missing": ([PeerFrame(PAIR, _found(*MISSING))] * 10, (0.6, 0.6)),
    "a point not labelled": ([PeerFrame(MISSING, _found(*PAIR))] * 10, (1, 1)),
    "nothing predicted": ([PeerFrame(PAIR, [])] * 10, (0, 0)),
}


@needs_sleap
@pytest.mark.parametrize("case", CASES)
def test_sleap_by_hand(case: str):
    frames, (ap, ar) = CASES[case]
    name, figures = peer_figures("sleap-nn", frames)
    assert name.startswith("sleap-nn 0.") and (figures["mAP"], figures["mAR"]) == (pytest.approx(ap), pytest.approx(ar))


@pytest.mark.parametrize(
    ("case", "ap"),
    [
        ("doubles with lower scores", 1),
        ("half of the frames absent", 51 / 101),
        ("half of the frames without a prediction", 51 / 101),
        ("wrong ones with higher scores", 0.5),
        ("a point missing", 0.6),
    ],
)
def test_ours_beside_sleaps(case: str, ap: float):
    """The table in docs/evaluation.md."""
    poses = [np.stack([p.points for p in frame.predicted]) if frame.predicted else PAIR[:0] for frame in CASES[case][0]]
    scores = [np.array([p.score for p in frame.predicted or []]) for frame in CASES[case][0]]
    found = keypoint_ap([frame.truth for frame in CASES[case][0]], list(zip(poses, scores, strict=True)), SLEAP_S2)
    assert found.ap == pytest.approx(ap, abs=5e-4)


@needs_sleap
def test_sleap_punishes_points_that_are_not_labelled_in_pck():
    assert peer_figures("sleap-nn", CASES["a point not labelled"][0])[1]["PCK@5"] == pytest.approx(0.75)
    assert np.isnan(peer_figures("sleap-nn", [PeerFrame(PAIR, None)])[1]["mAP"])


def _files(folder: Path, video: Path, seed: int = 0) -> tuple[Path, Path]:
    """Labels, and predictions of which some are missing, invented, doubled and inexact; one labelled frame is absent.

    Points have scores of their own where ``seed`` is even.
    """
    rng = np.random.default_rng(seed)
    shutil.copy(video, folder / "clip.mp4")
    videos, skeleton = [VideoSource((folder / "clip.mp4",))], Skeleton(("a", "b", "c", "d"))
    labelled, guessed = [], []
    for index in range(8):
        truth = SQUARE + rng.uniform(0, 300, (3, 1, 2))
        poses = np.concatenate([truth, truth[:1], SQUARE + rng.uniform(0, 300, (1, 1, 2))])[rng.random(5) < 0.8]
        poses = poses + rng.normal(0, 1.5, poses.shape)
        poses[rng.random(poses.shape[:2]) < 0.1] = np.nan
        truth[rng.random(truth.shape[:2]) < 0.1] = np.nan
        labelled.append(LabeledFrame(0, index, [Instance(p) for p in truth]))
        guessed.append(
            LabeledFrame(0, index, [], [PredictedInstance(p, None, rng.random(), rng.random(4) ** (seed % 2 == 0)) for p in poses])
        )
    write_project(folder / "truth.slp", Labels(skeleton, videos, labelled))
    write_predictions(folder / "guess.slp", skeleton, videos, guessed[:7], {})
    return folder / "truth.slp", folder / "guess.slp"


@needs_sleap
@pytest.mark.parametrize("seed", range(4))
def test_sleap_says_the_same_of_files(tmp_path: Path, video_file: Path, seed: int):
    from sleap_nn.evaluation import run_evaluation

    truth, guess = _files(tmp_path, video_file, seed)
    found = evaluation.evaluate(truth, guess, peers=True)
    expected = run_evaluation(str(truth), str(guess))
    (figures,) = [values for name, values in found.peers.items() if name.startswith("sleap-nn")]
    assert figures["mAP"] == pytest.approx(expected["voc_metrics"]["oks_voc.mAP"], abs=1e-9) and 0 < figures["mAP"] < 1
    assert figures["mAR"] == pytest.approx(expected["voc_metrics"]["oks_voc.mAR"], abs=1e-9)
    assert figures["mOKS"] == pytest.approx(expected["mOKS"]["mOKS"], abs=1e-9)
    assert figures["PCK@5"] == pytest.approx(expected["pck_metrics"]["PCK@5"], abs=1e-9)


@needs_dlc
def test_deeplabcut_says_the_same_of_files(tmp_path: Path, video_file: Path, capsys: pytest.CaptureFixture[str]):
    for seed in range(4):
        (tmp_path / str(seed)).mkdir()
        truth, guess = _files(tmp_path / str(seed), video_file, seed)
        assert main([str(truth), str(guess), "--peers", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)  # whatever it prints when it is imported
        (figures,) = [values for name, values in found["peers"].items() if name.startswith("deeplabcut")]
        assert 0 < figures["mAP"] < 1 and figures["mAP"] == pytest.approx(found["deeplabcut"]["ap"], abs=1e-9)
        assert figures["mAR"] == pytest.approx(found["deeplabcut"]["ar"], abs=1e-9)
    assert np.isnan(peer_figures("deeplabcut", [PeerFrame(PAIR[:0], [])])[1]["mAP"])
    assert peer_figures("deeplabcut", [PeerFrame(PAIR, None)])[1]["mAP"] == 0


def test_peers_that_are_not_there_are_said(tmp_path: Path, video_file: Path, monkeypatch: pytest.MonkeyPatch):
    truth, guess = _files(tmp_path, video_file)
    monkeypatch.setattr(evaluation, "installed", lambda: [])
    with pytest.raises(FormatError, match=r"sleap-nn is not installed \(pip install 'smp-plugin\[sleap\]'\) and deeplabcut is not"):
        evaluation.evaluate(truth, guess, peers=True)
    assert evaluation.evaluate(truth, guess).peers == {}


def test_a_peer_that_fails_takes_nothing_with_it(tmp_path: Path, video_file: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(name: str, frames: list[PeerFrame]) -> tuple[str, dict[str, float]]:
        if name == "deeplabcut":
            raise ImportError("no such thing")
        assert [f.predicted is None for f in frames] == [False] * 7 + [True] and frames[0].truth.shape == (3, 4, 2)
        return "sleap-nn 9", {"mAP": 0.25}

    truth, guess = _files(tmp_path, video_file)
    monkeypatch.setattr(evaluation, "installed", lambda: ["sleap-nn", "deeplabcut"])
    monkeypatch.setattr(evaluation, "peer_figures", fails)
    found = evaluation.evaluate(truth, guess, peers=True)
    assert found.peers == {"sleap-nn 9": {"mAP": 0.25}} and found.animals == 24
    assert "deeplabcut's own figures are not shown, since its code failed: ImportError: no such thing" in found.warnings
    assert installed() == [name for name, module in (("sleap-nn", "sleap_nn"), ("deeplabcut", "deeplabcut")) if find_spec(module)]

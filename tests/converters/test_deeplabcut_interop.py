"""DeepLabCut itself takes what is written for it. Skipped where DeepLabCut is not installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from converters import Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.deeplabcut import read_dlc
from converters.deeplabcut_machinelabels import write_machinelabels
from converters.deeplabcut_predictions import read_dlc_predictions, write_dlc_predictions
from converters.deeplabcut_writing import write_dlc

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deeplabcut") is None, reason="deeplabcut is not installed (pip install smp-plugin[dlc])"
)

SKELETON = Skeleton(("nose", "ear", "tail"), ((0, 1), (1, 2)))
SHAPE = np.array([[0.0, 0], [6, 2], [9, 9]])


def posed(index: int, animals: int, jump: bool = False) -> list[np.ndarray]:
    """Animals that walk slowly to the right; with ``jump`` they leap once."""
    return [SHAPE + (5 + index * 0.4 + 25 * (jump and index == 20), 5 + 20 * number) for number in range(animals)]


@pytest.fixture(params=[1, 2], ids=["one animal", "two animals"])
def project(request: pytest.FixtureRequest, tmp_path: Path, video_file: Path) -> tuple[Path, Path, int]:
    """A project that `write_dlc` wrote: its config, its video and how many animals it is for."""
    animals = request.param
    tracks = [f"m{number}" for number in range(animals)] if animals > 1 else [None]
    frames = [
        LabeledFrame(0, index, [Instance(points, track) for points, track in zip(posed(index, animals), tracks, strict=True)])
        for index in (0, 3, 9, 15, 30)
    ]
    write_dlc(tmp_path / "demo-Ada-2024-12-20", Labels(SKELETON, [VideoSource((video_file,))], frames))
    return tmp_path / "demo-Ada-2024-12-20" / "config.yaml", video_file, animals


@pytest.fixture
def shuffle(project: tuple[Path, Path, int]) -> Iterator[str]:
    """A shuffle of another engine that only has a name: DeepLabCut asks it for the scorer, and loads no network."""
    config, _, animals = project
    folder = config.parent / "dlc-models" / "iteration-0" / "demoDec20-trainset95shuffle77"
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    (folder / "train" / "pose_cfg.yaml").write_text("net_type: smp_resnet_50\n")
    (folder / "train" / "snapshot-5000.index").touch()
    names = list(SKELETON.keypoints)
    test = {"dataset": "demo", "num_joints": len(names), "all_joints": [[n] for n in range(len(names))], "all_joints_names": names}
    (folder / "test" / "pose_cfg.yaml").write_text(yaml.safe_dump(test))
    here = os.getcwd()
    yield "DLC_smpresnet50_demoDec20shuffle77_5000"
    os.chdir(here)


def predictions(animals: int, jump: bool = False) -> list[LabeledFrame]:
    return [
        LabeledFrame(
            0, index, predicted=[PredictedInstance(p, f"m{n}" if animals > 1 else None) for n, p in enumerate(posed(index, animals, jump))]
        )
        for index in range(40)
        if index != 33
    ]


def test_labels_are_merged(project: tuple[Path, Path, int]) -> None:
    from deeplabcut.generate_training_dataset.trainingsetmanipulation import merge_annotateddatasets

    config, _, animals = project
    from deeplabcut.utils import auxiliaryfunctions

    settings = auxiliaryfunctions.read_config(str(config))
    table = merge_annotateddatasets(settings, config.parent / "training-datasets")
    assert table.shape == (5, 6 * animals)
    labels = read_dlc(config)
    ours = np.stack([np.concatenate([i.points for i in f.instances]).ravel() for f in labels.frames])
    assert np.array_equal(table.to_numpy(), ours)


def test_a_training_set_is_made(project: tuple[Path, Path, int]) -> None:
    import deeplabcut

    config, _, _ = project
    deeplabcut.create_training_dataset(str(config), Shuffles=[1], net_type="resnet_50", userfeedback=False)
    assert list((config.parent / "training-datasets").rglob("Documentation_data-*.pickle"))


def test_a_labelled_video_without_any_model(project: tuple[Path, Path, int], tmp_path: Path) -> None:
    import deeplabcut

    config, video, animals = project
    out = tmp_path / "out"
    write_dlc_predictions(out, SKELETON, [VideoSource((video,))], predictions(animals), {})
    done = deeplabcut.create_labeled_video(
        str(config), [str(video)], destfolder=str(out), init_weights="/any/SemiMultiPose_best.pt", fastmode=True
    )
    assert list(done) == [True] and list(out.glob("*labeled.mp4"))


def test_functions_that_ask_for_a_shuffle(project: tuple[Path, Path, int], shuffle: str, tmp_path: Path) -> None:
    import deeplabcut
    import matplotlib

    matplotlib.use("Agg")
    config, video, animals = project
    suffix = "_el" if animals > 1 else ""
    out = tmp_path / "out"
    out.mkdir()
    path = out / f"clip{shuffle}{suffix}.h5"
    write_dlc_predictions(path, SKELETON, [VideoSource((video,))], predictions(animals, jump=True), {})
    common: dict[str, Any] = {"shuffle": 77, "destfolder": str(out)}
    deeplabcut.filterpredictions(str(config), [str(video)], **common)
    filtered = read_dlc_predictions(out / f"clip{shuffle}{suffix}_filtered.h5")
    assert len(filtered.frames) == 40 and sum(len(f.predicted) for f in filtered.frames) >= 39 * animals
    deeplabcut.create_labeled_video(str(config), [str(video)], filtered=True, fastmode=True, **common)
    assert list(out.glob("*filtered*labeled.mp4"))
    deeplabcut.plot_trajectories(str(config), [str(video)], **common)
    assert list((out / "plot-poses").rglob("*.png"))
    deeplabcut.extract_outlier_frames(
        str(config), [str(video)], outlieralgorithm="jump", epsilon=10, automatic=True, extractionalgorithm="uniform", **common
    )
    (machine,) = (config.parent / "labeled-data" / "clip").glob("machinelabels-iter0.h5")
    guesses = read_dlc_predictions(machine)
    assert guesses.frames and all(path.is_file() for path in guesses.videos[0].paths)
    assert any(f.predicted for f in read_dlc(config).frames)


def test_our_machinelabels_look_like_theirs(project: tuple[Path, Path, int]) -> None:
    config, video, animals = project
    assert write_machinelabels(config, SKELETON, [VideoSource((video,))], predictions(animals)[5:8]) == []
    table: Any = pd.read_hdf(config.parent / "labeled-data" / "clip" / "machinelabels-iter0.h5")
    assert table.shape == (3, 9 * animals) and table.index.nlevels == 3 and table.columns.nlevels == (4 if animals > 1 else 3)

"""The nest example: the same seed gives the same files, labels sit on their animals, and labels are as sparse as promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")
sio = pytest.importorskip("sleap_io")

EXAMPLE = Path(__file__).parents[2] / "examples" / "pups"
sys.path.insert(0, str(EXAMPLE))
import generate  # type: ignore[import-not-found]  # noqa: E402
import nest  # type: ignore[import-not-found]  # noqa: E402

SIZE, PUPS = (192, 144), 6


def make(out: Path, seed: int = 3) -> Path:
    generate.generate(out, seed, frames=60, heldout=24, size=SIZE, pups=PUPS, labelled=(30, 6))
    return out


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def points(path: Path) -> np.ndarray:
    """All instances of a project, (n, 3, 2), in file order."""
    return np.concatenate([frame.numpy() for frame in sio.load_slp(str(path))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("nest") / "pups")


def test_same_seed_same_files(folder: Path, tmp_path: Path) -> None:
    again, other = make(tmp_path / "again"), make(tmp_path / "other", seed=4)
    for video in ("nest.mp4", "heldout.mp4"):
        assert (folder / video).read_bytes() == (again / video).read_bytes()
        assert (folder / video).read_bytes() != (other / video).read_bytes()
    for project in ("pups.slp", "heldout.slp"):
        np.testing.assert_array_equal(points(folder / project), points(again / project))
        assert [f.frame_idx for f in sio.load_slp(str(folder / project))] == [f.frame_idx for f in sio.load_slp(str(again / project))]


def test_frames_do_not_depend_on_the_order_they_are_drawn_in() -> None:
    one, two = (nest.Clip((3, 0), 20, SIZE, PUPS) for _ in range(2))
    late = one.render(15)
    for t in (0, 15):
        image, owner = two.render(t)
    np.testing.assert_array_equal(late[0], image)
    np.testing.assert_array_equal(late[1], owner)


def test_labels_sit_on_their_animals(folder: Path) -> None:
    clip = nest.Clip((3, 1), 24, SIZE, PUPS)
    for frame in sio.load_slp(str(folder / "heldout.slp")):
        _, owner = clip.render(frame.frame_idx)
        truth = clip.keypoints[frame.frame_idx]
        for instance in frame.numpy():
            seen = np.isfinite(instance[:, 0])
            assert seen.any()
            pup = int(np.nanargmin(np.nanmean(np.linalg.norm(truth - instance, axis=-1), axis=1)))
            np.testing.assert_allclose(instance[seen], truth[pup][seen])
            for x, y in np.round(instance[seen]).astype(int):
                assert (owner[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] == pup + 1).any()


def test_a_covered_keypoint_is_hidden() -> None:
    clip = nest.Clip((3, 0), 4, SIZE, PUPS)
    owner = np.zeros(SIZE[::-1], np.uint8)
    assert not clip.visible(0, owner).any()  # nobody's animal is anywhere
    for pup in range(PUPS):
        owner[:] = pup + 1
        x, y = clip.keypoints[0, pup, 1].round().astype(int)
        assert clip.visible(0, owner)[pup].all()
        owner[y - 3 : y + 4, x - 3 : x + 4] = PUPS + 1  # the mother's foot on the thorax
        assert clip.visible(0, owner)[pup].tolist()[1] is False


def test_drawn_keypoints_lie_inside_the_whole_uncovered_body() -> None:
    clip = nest.Clip((8, 0), 30, (384, 288), 1)
    for t in (0, 14, 29):
        canvas = nest.Canvas(*clip.bedding)
        clip._draw_pup(canvas, t, 0)
        assert clip.visible(t, canvas.owner).all()
        ys, xs = np.nonzero(canvas.owner)
        assert 25 < max(np.ptp(xs), np.ptp(ys)) < 110  # body, limbs and tail


def test_heldout_is_another_nest(folder: Path) -> None:
    train, heldout = decode(folder / "nest.mp4"), decode(folder / "heldout.mp4")
    assert train.shape == (60, *SIZE[::-1], 3)
    assert heldout.shape == (24, *SIZE[::-1], 3)
    thumbs = [v[:, ::4, ::4].astype(float) for v in (train, heldout)]
    within = np.abs(thumbs[0][0] - thumbs[0]).mean(axis=(1, 2, 3)).max()
    between = min(np.abs(frame - thumbs[0]).mean(axis=(1, 2, 3)).min() for frame in thumbs[1])
    assert between > 1.5 * within


def test_labels_are_partial(folder: Path) -> None:
    labels = sio.load_slp(str(folder / "pups.slp"))
    counts = np.isfinite(points(folder / "pups.slp")[..., 0]).sum(axis=1)
    assert len(labels) == len({frame.frame_idx for frame in labels}) == 30
    assert set(counts) == {1, 3}
    assert 0.08 < (counts == 3).mean() < 0.22
    per_frame = np.array([len(frame.instances) for frame in labels])
    assert per_frame.min() >= 1
    assert per_frame.mean() < 0.8 * PUPS
    heldout = np.isfinite(points(folder / "heldout.slp")[..., 0]).sum(axis=1)
    assert heldout.mean() > 1.8


def test_choice_of_labels_counts() -> None:
    rng = np.random.default_rng(0)
    keypoints, visible = rng.uniform(0, 100, (200, 8, 3, 2)), rng.random((200, 8, 3)) < 0.8
    labels = generate.label_sparsely(rng, keypoints, visible)
    seen = np.concatenate([np.isfinite(f[..., 0]) for f in labels])
    assert (seen.sum(axis=1) == 3).mean() == pytest.approx(generate.COMPLETE, abs=0.002)
    assert 0.4 < len(seen) / visible.any(axis=2).sum() < 0.75
    for frame, points_, truth in zip(visible, labels, keypoints, strict=True):
        for instance in points_:
            known = np.isfinite(instance[:, 0])
            pup = np.flatnonzero((truth[:, known] == instance[known]).all(axis=(1, 2)))
            assert frame[pup[0], known].all()
    single = seen[seen.sum(axis=1) == 1].mean(axis=0)
    assert (single > 0.25).all()  # each keypoint gets its share
    empty = generate.label_sparsely(rng, keypoints[:1], np.zeros((1, 8, 3), bool))
    assert empty[0].shape == (0, 3, 2)


@pytest.mark.parametrize("project", ["pups.slp", "heldout.slp"])
def test_project_opens_in_sleap(folder: Path, tmp_path: Path, project: str) -> None:
    labels = sio.load_slp(str(folder / project))
    assert labels.skeleton.node_names == ["Head", "Thorax", "Tail"]
    assert labels.skeleton.edge_names == [("Head", "Thorax"), ("Thorax", "Tail")]
    assert len(labels.skeletons) == len(labels.videos) == 1
    assert Path(labels.video.filename).is_absolute()
    assert labels.video.exists()
    assert labels.video[int(labels[0].frame_idx)].shape == (*SIZE[::-1], 3)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    hidden = folder.rename(folder.with_name("elsewhere"))
    try:
        assert sio.load_slp(str(moved / project)).video.exists()
    finally:
        hidden.rename(folder)


def test_folder_holds_only_finished_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {file.name for file in folder.iterdir()} == set(generate.PARTS)

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(generate, "write_project", broken)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path / "half")
    assert not list((tmp_path / "half").iterdir())


def test_command_line_refuses_to_overwrite(folder: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(EXAMPLE / "generate.py"), *arguments], capture_output=True, text=True)

    refused = run("--out", str(folder))
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert "384x288" in run("--out", str(folder / "x"), "--size", "97x33").stderr

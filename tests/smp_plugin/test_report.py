"""Pictures, videos and the page."""

import csv
import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from converters.labels import FormatError, Skeleton, symmetric_pairs
from smp_plugin.config import Config, write_config
from smp_plugin.drawing import OverlayWriter, animal_colours, draw_poses, keypoint_sides
from smp_plugin.metrics import evaluate_poses
from smp_plugin.page import Html, bullets, picture, table, write_page
from smp_plugin.report import (
    KEYPOINT_COLUMNS,
    GalleryItem,
    evaluation_rows,
    keypoint_rows,
    write_curves,
    write_evaluation,
    write_gallery,
    write_report,
)

SKELETON = Skeleton(("nose", "ear_left", "ear_right", "tail"), ((0, 1), (0, 2), (0, 3)))
POSE = np.array([[60.0, 50.0], [50.0, 40.0], [50.0, 60.0], [20.0, 50.0]])
GREY = np.full((97, 131, 3), 90, dtype=np.uint8)


def test_poses_are_drawn_where_they_are():
    before = GREY.copy()
    drawn = draw_poses(GREY, SKELETON, POSE[None], colours=[(255, 0, 0)])
    assert drawn.shape == GREY.shape and drawn.dtype == np.uint8
    assert np.array_equal(GREY, before)
    assert drawn[50, 40, 0] > 200 and drawn[50, 40, 1] < 60  # on the edge from nose to tail
    assert tuple(drawn[40, 50]) == (255, 255, 255) and max(drawn[60, 50]) < 60  # left ear light, right ear dark
    changed = np.argwhere((drawn != GREY).any(axis=2))
    assert changed.min(axis=0)[1] > 10 and changed.max(axis=0)[1] < 70 and changed.min(axis=0)[0] > 30 and changed.max(axis=0)[0] < 70


@pytest.mark.parametrize(
    "poses",
    [
        np.empty((0, 4, 2)),
        np.full((1, 4, 2), np.nan),
        np.where(np.arange(4)[:, None] < 1, POSE, np.nan)[None],
        POSE[None] + 10_000,
        POSE[None] - [80.0, 0.0],
        np.repeat(POSE[None], 30, axis=0),
        np.full((1, 4, 2), 7.0),
    ],
)
def test_any_pose_can_be_drawn(poses: np.ndarray):
    drawn = draw_poses(GREY, SKELETON, poses, point_scores=np.full(poses.shape[:2], np.nan))
    assert drawn.shape == GREY.shape


def test_left_and_right():
    assert keypoint_sides(SKELETON) == ["", "left", "right", ""]
    assert keypoint_sides(Skeleton(("head", "RAnt", "LAnt", "LegL1", "LegR1"))) == ["", "right", "left", "left", "right"]
    assert keypoint_sides(Skeleton(("a", "b", "rail", "lair"), symmetries=((1, 0),))) == ["right", "left", "", ""]
    assert keypoint_sides(Skeleton(("Tail", "Head"))) == ["", ""]
    crossed = Skeleton(("fore L l", "fore L r", "fore R l", "fore R r"))  # each differs from two others: a keypoint has one partner
    assert sorted(k for pair in symmetric_pairs(crossed) for k in pair) == [0, 1, 2, 3]


def test_colours_repeat_after_eight():
    assert len(set(animal_colours(8))) == 8 and animal_colours(9)[8] == animal_colours(1)[0]


def _decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def test_overlay_has_every_frame_at_an_even_size(tmp_path: Path):
    path = tmp_path / "new" / "overlay.mp4"
    with OverlayWriter(path, SKELETON, fps=29.97) as writer:
        for n in range(5):
            writer.write(GREY, POSE[None] + n)
        writer.write(np.zeros((300, 200, 3), dtype=np.uint8), np.empty((0, 4, 2)))  # another size is fitted in
        assert not path.exists()
    frames = _decoded(path)
    assert len(frames) == 6 and frames[0].shape == (98, 132, 3)
    assert np.abs(frames[0][:20, :20].astype(int) - 90).max() < 8 and frames[0][50, 40].max() > 150
    assert [p.name for p in path.parent.iterdir()] == ["overlay.mp4"]


def test_overlay_leaves_nothing_after_an_error_and_the_frames_so_far_after_an_interruption(tmp_path: Path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), OverlayWriter(tmp_path / "overlay.mp4", SKELETON) as writer:
            writer.write(GREY, POSE[None])
            raise error
        assert len(list(tmp_path.iterdir())) == (1 if error is KeyboardInterrupt else 0)
    assert len(_decoded(tmp_path / "overlay.mp4")) == 1
    with pytest.raises(FormatError, match=r"\.mp4"):
        OverlayWriter(tmp_path / "overlay.avi", SKELETON)


def _metrics_csv(path: Path, rows: list[dict[str, object]]) -> None:
    columns = ["step", "epoch", "seconds", "lr", "phase", "loss", "loss_heatmap", "loss_fusion_unlabeled", "val_ap", "val_ap_s2_0.1"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_curves(tmp_path: Path, count: int):
    rows: list[dict[str, object]] = [
        {
            "step": n,
            "phase": "supervised" if n < 20 else "unlabelled",
            "loss": 1 / (n + 1),
            "loss_fusion_unlabeled": "" if n < 20 else 0.1,
            "val_ap": 0.5 if n % 5 == 0 else "",
        }
        for n in range(count)
    ]
    _metrics_csv(tmp_path / "metrics.csv", rows)
    write_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000


def test_gallery_shows_the_worst_and_survives_empty_frames(tmp_path: Path):
    empty = np.empty((0, 4, 2))
    items = [
        GalleryItem(GREY, POSE[None], POSE[None] + 2, 0.9, "a" * 300),
        GalleryItem(GREY, POSE[None], empty, float("nan"), "unknown"),
        GalleryItem(GREY, empty, empty, 0.1),
        GalleryItem(GREY, np.full((1, 4, 2), np.nan), POSE[None], 0.1),
    ]
    write_gallery(tmp_path / "all.png", items, SKELETON)
    write_gallery(tmp_path / "two.png", items, SKELETON, rows=2)
    write_gallery(tmp_path / "none.png", [], SKELETON)
    heights = [Image.open(tmp_path / name).height for name in ("all.png", "two.png", "none.png")]
    assert heights[0] > heights[1] > heights[2]


def test_page_is_self_contained_and_escaped(tmp_path: Path):
    run = tmp_path / "run <1>"
    run.mkdir()
    write_config(Config(), run / "config.yaml")
    _metrics_csv(run / "metrics.csv", [{"step": 1, "loss": 1}])
    write_curves(run / "metrics.csv", run / "curves.png")
    found = evaluate_poses([POSE[None]], [(POSE[None], np.ones(1))], ["<nose>", "l", "r", "tail"])
    page = write_report(run, data={"Project": "<script>alert(1)</script>"}, choices=["a < b"], evaluation=found, warnings=["x & y"])
    text = page.read_text()
    assert (
        "<script>" not in text and "&lt;script&gt;" in text and "&lt;nose&gt;" in text and "run &lt;1&gt;" in text and "x &amp; y" in text
    )
    assert 'src="data:image/png;base64,' in text and "http" not in text and "Validation frames" not in text
    assert write_report(run).read_text().count("<h2>") == 2
    write_gallery(run / "val_predictions.png", [GalleryItem(GREY, POSE[None], POSE[None], 1.0, "frame")], SKELETON)
    text = write_report(run, evaluation=found, on="training frames").read_text()
    assert "On training frames" in text and "Training frames, worst first" in text and "alidation frames" not in text


def test_page_says_in_words_what_was_found(tmp_path: Path):
    far, near = POSE[None] + 400, POSE[None] + 1
    found = evaluate_poses([np.stack([POSE, POSE + 100])], [(np.concatenate([near, near, far]), np.ones(3))], SKELETON.keypoints)
    text = write_report(tmp_path, evaluation=found).read_text()
    assert "1 of 2 labelled animals were found. Predictions too many: 1 where no animal is labelled, 1 of an animal that has one" in text
    assert "Half of the points found lie within 1.4 pixels of the label; an animal is 40 pixels long." in text
    missed = evaluate_poses([POSE[None]], [(np.empty((0, 4, 2)), np.empty(0))], SKELETON.keypoints)
    assert '<p class="lead">0 of 1 labelled animals were found.</p>' in write_report(tmp_path, evaluation=missed).read_text()
    nothing = evaluate_poses([], [], SKELETON.keypoints)
    assert "No labelled animals" in write_report(tmp_path, evaluation=nothing).read_text()


def test_pictures_go_inside_of_the_page_and_markup_is_kept_once(tmp_path: Path):
    write_page(
        tmp_path / "p.html",
        "<t>",
        [bullets(["<b>", Html("<b>x</b>")]), "", table(["a"], [("<1>", Html("<i>2</i>"))]), picture(b"x", "<p>")],
    )
    text = (tmp_path / "p.html").read_text()
    assert "<title>&lt;t&gt;</title>" in text and "<li>&lt;b&gt;</li><li><b>x</b></li>" in text
    assert "<td>&lt;1&gt;</td><td class=number><i>2</i></td>" in text and 'alt="&lt;p&gt;" src="data:image/png;base64,eA=="' in text


def test_rows_hold_no_nan():
    found = evaluate_poses([POSE[None]], [(np.empty((0, 4, 2)), np.empty(0))], ["banana", "nan", "r", "tail"])
    rows = keypoint_rows(found)
    assert "nan" not in str(evaluation_rows(found)) + str([cells[1:] for cells in rows])
    assert [cells[0] for cells in rows][:2] == ["banana", "nan"] and {len(cells) for cells in rows} == {len(KEYPOINT_COLUMNS)}


def test_rows_say_both_rules_the_peers_and_what_is_exchanged():
    found = evaluate_poses([POSE[None]], [(POSE[None], np.ones(1))], SKELETON.keypoints, symmetries=((1, 2),), partial=True)
    rows = dict(evaluation_rows(dataclasses.replace(found, labels="partial, as asked for", peers={"sleap-nn 0.3.5": {"mAP": 0.5}})))
    assert rows["Labels"] == "partial, as asked for" and rows["By sleap-nn 0.3.5 itself"] == "mAP 0.500"
    for name in ("AP, s2 = 1 (the paper's)", "AP, s2 = 0.0025 (SLEAP's tolerance, strict)", "AP, DeepLabCut's definition"):
        assert rows[name].startswith("1.000") and rows[f"{name}, partial rule"].startswith("1.000")
    assert rows["Left and right exchanged"] == "0 of 1 pairs" and rows["Invented, doubled, left out, partial rule"] == "0, 0, 0"
    plain = dict(evaluation_rows(evaluate_poses([POSE[None]], [(POSE[None], np.ones(1))], SKELETON.keypoints, s2=[0.05])))
    assert not [name for name in plain if "partial" in name or "exchanged" in name] and "AP, s2 = 0.05" in plain


@pytest.mark.parametrize("found_any", [True, False])
def test_evaluation_is_drawn(tmp_path: Path, found_any: bool):
    names = ["$a_b^c$", "l", "r", "tail"]
    predicted = (POSE[None] + 2, np.ones(1)) if found_any else (np.empty((0, 4, 2)), np.empty(0))
    write_evaluation(evaluate_poses([POSE[None]], [predicted], names), tmp_path / "p.png")
    write_evaluation(evaluate_poses([np.empty((0, 4, 2))], [predicted], names), tmp_path / "none.png")
    dark = [np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("p.png", "none.png")]
    assert (dark[0] < 100).sum() > (dark[1] < 100).sum()  # the curve is there

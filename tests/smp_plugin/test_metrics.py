"""Figures of merit against cases worked out by hand and a second implementation of COCO AP."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters import write_predictions, write_project
from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from smp_plugin.metrics import (
    COCO_THRESHOLDS,
    MEDIUM_S2,
    PAPER_S2,
    SLEAP_S2,
    animal_areas,
    animal_lengths,
    evaluate,
    evaluate_poses,
    keypoint_ap,
    match,
    oks,
)

NAN = math.nan
ANIMAL = np.array([[0.0, 0.0], [60.0, 0.0], [30.0, 30.0]])  # 60 x 30 px
NO_POSES = (np.empty((0, 3, 2)), np.empty(0))


def _crowd(rng: np.random.Generator, count: int) -> np.ndarray:
    return ANIMAL + rng.uniform(0, 1000, (count, 1, 2)) + rng.normal(0, 3, (count, 3, 2))


# --- a second implementation, written from COCO's definition ------------------------------------------------------------------------------


def _simple_ap(truth, predicted, s2):
    """Mean over thresholds of 101-point interpolated precision."""
    areas = animal_areas(truth)
    ranked = sorted(
        ((s, f, pose) for f, (poses, scores) in enumerate(predicted) for pose, s in zip(poses, scores, strict=True)), key=lambda r: -r[0]
    )
    total = sum(len(poses) for poses in truth)
    values = []
    for threshold in COCO_THRESHOLDS:
        taken: list[set[int]] = [set() for _ in truth]
        hits = []
        for _, f, pose in ranked:
            best, best_similarity = None, threshold
            for n, label in enumerate(truth[f]):
                seen = ~np.isnan(label[:, 0])
                squared = ((pose - label) ** 2).sum(axis=1)[seen]
                similarity = np.where(np.isnan(squared), 0, np.exp(-squared / (2 * s2 * areas[f][n]))).mean()
                if n not in taken[f] and similarity >= best_similarity:
                    best, best_similarity = n, similarity
            hits.append(best is not None)
            if best is not None:
                taken[f].add(best)
        right = np.cumsum(hits)
        precision = right / np.arange(1, len(hits) + 1)
        values.append(np.mean([max(precision[right / total >= recall], default=0.0) for recall in np.linspace(0, 1, 101)]))
    return float(np.mean(values))


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_second_implementation(seed: int):
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    for _ in range(6):
        labels = _crowd(rng, int(rng.integers(0, 9)))
        labels[rng.random(labels.shape[:2]) < 0.15] = NAN
        labels = labels[~np.isnan(labels[..., 0]).all(axis=1)]
        guesses = np.concatenate([labels, labels[:2], _crowd(rng, int(rng.integers(0, 4)))])
        guesses = np.nan_to_num(guesses, nan=500.0) + rng.normal(0, 6, guesses.shape)
        guesses[rng.random(guesses.shape[:2]) < 0.1] = NAN
        guesses = guesses[rng.random(len(guesses)) < 0.9]
        truth.append(labels)
        predicted.append((guesses, rng.random(len(guesses))))
    for s2 in (PAPER_S2, MEDIUM_S2, SLEAP_S2):
        assert keypoint_ap(truth, predicted, s2).ap == pytest.approx(_simple_ap(truth, predicted, s2), abs=1e-9)


# --- by hand ------------------------------------------------------------------------------------------------------------------------------


def test_oks_by_hand():
    """SLEAP's documented example: 5 px on a 60 x 30 animal is 0.0622 at sigma .025."""
    moved = ANIMAL + [5.0, 0.0]
    area = animal_areas([ANIMAL[None]])[0]
    assert area == [1800.0]
    assert oks(ANIMAL[None], moved[None], area, SLEAP_S2)[0, 0] == pytest.approx(math.exp(-25 / (2 * 0.0025 * 1800)))
    assert oks(ANIMAL[None], moved[None], area, SLEAP_S2)[0, 0] == pytest.approx(0.0622, abs=1e-4)


def test_missing_points():
    label, guess = ANIMAL.copy(), ANIMAL.copy()
    guess[1] = NAN
    assert oks(label[None], guess[None], np.array([1800.0]), 1.0)[0, 0] == pytest.approx(2 / 3)
    label[1] = NAN  # not labelled: not judged
    assert oks(label[None], ANIMAL[None], np.array([1800.0]), 1.0)[0, 0] == 1.0
    found = keypoint_ap([ANIMAL[None]], [(guess[None], np.ones(1))])
    assert found.ap == pytest.approx(0.4)  # .6667 passes .50, .55, .60, .65


def test_perfect_predictions():
    rng = np.random.default_rng(0)
    truth = [_crowd(rng, n) for n in (1, 5, 45)]  # pycocotools alone would cut the 45 to 20
    found = keypoint_ap(truth, [(poses, np.full(len(poses), 0.9)) for poses in truth], SLEAP_S2)
    assert (found.ap, found.ap50, found.ap75, found.ar) == (1, 1, 1, 1)


def test_a_better_scored_double_lowers_ap():
    rng = np.random.default_rng(0)
    truth = [_crowd(rng, 4) for _ in range(3)]
    doubles = [(np.concatenate([p, p]), np.concatenate([np.linspace(0.5, 0.9, 4)] * 2)) for p in truth]
    assert keypoint_ap(truth, doubles).ap < 0.7
    assert keypoint_ap(truth, doubles).ar == 1


def test_half_the_frames_missing():
    truth = [ANIMAL[None], ANIMAL[None]]
    found = keypoint_ap(truth, [(ANIMAL[None], np.ones(1)), NO_POSES])
    assert found.ap == pytest.approx(51 / 101) and found.ar == 0.5  # recalls 0 to .50 of 101


def test_false_animal_in_an_empty_frame_counts():
    truth = [ANIMAL[None], np.empty((0, 3, 2))]
    far = (ANIMAL[None] * 40, np.ones(1))  # large: pycocotools alone ignores unmatched animals beyond its area limits
    assert keypoint_ap(truth, [(ANIMAL[None], np.array([0.5])), far]).ap == pytest.approx(0.5)
    assert keypoint_ap(truth, [(ANIMAL[None], np.array([1.5])), far]).ap == 1


def test_no_labels_no_figure():
    assert math.isnan(keypoint_ap([np.empty((0, 3, 2))], [NO_POSES]).ap)
    assert math.isnan(keypoint_ap([], []).ap)
    with pytest.raises(ValueError, match="empty array"):
        keypoint_ap([ANIMAL[None]], [])


def test_order_does_not_matter():
    rng = np.random.default_rng(1)
    truth = [_crowd(rng, 6) for _ in range(4)]
    predicted = [(p + rng.normal(0, 8, p.shape), rng.random(len(p))) for p in truth]
    first = evaluate_poses(truth, predicted, "abc")
    frames = rng.permutation(4)
    shuffled = [(predicted[f][0][order], predicted[f][1][order]) for f in frames for order in [rng.permutation(6)]]
    assert evaluate_poses([truth[f][rng.permutation(6)] for f in frames], shuffled, "abc") == first


def test_areas():
    one_point = np.full((3, 2), NAN)
    one_point[0] = 5.0
    flat = np.array([[0.0, 0.0], [80.0, 0.0], [NAN, NAN]])
    partial = np.array([[0.0, 0.0], [10.0, 10.0], [NAN, NAN]])
    frames = [np.stack([ANIMAL, one_point]), np.stack([ANIMAL * 2, flat, partial])]
    (first, second) = animal_areas(frames)
    middle = (1800 + 7200) / 2  # median of the complete animals
    assert list(first) == [1800, middle] and list(second) == [7200, middle, 100]
    assert list(animal_areas(frames, padding=10)[0]) == [80 * 50, 400]
    assert list(animal_areas([one_point[None]])[0]) == [32 * 32]
    assert list(animal_areas([np.stack([one_point, partial])])[0]) == [100, 100]
    assert animal_lengths([np.stack([ANIMAL, one_point])])[0].tolist() == [60, 60]


def test_match_takes_the_best_first():
    assert match(np.array([[0.9, 0.8], [0.95, 0.1]]), 0.3) == [(1, 0), (0, 1)]
    assert match(np.empty((0, 3)), 0.3) == [] and match(np.array([[0.2]]), 0.3) == []


def test_counts_and_pixel_errors():
    far = ANIMAL + [500.0, 0.0]
    shifted = ANIMAL + [3.0, 4.0]
    truth = [np.stack([ANIMAL, far]), ANIMAL[None]]
    predicted = [(np.stack([shifted, shifted + 1, ANIMAL + [0, 900]]), np.array([0.9, 0.8, 0.7])), NO_POSES]
    found = evaluate_poses(truth, predicted, ["nose", "tail", "back"])
    assert (found.frames, found.animals, found.predictions) == (2, 3, 3)
    assert (found.missed, found.doubled, found.invented) == (2, 1, 1)
    assert found.pixel_error[50] == pytest.approx(5.0)
    assert found.animal_length == pytest.approx(60.0)
    assert found.pck == {0.05: 0.0, 0.1: pytest.approx(1 / 3), 0.2: pytest.approx(1 / 3)}  # 5 of 60 px: .083; missed animals are not found
    assert found.keypoints["nose"].n == 1 and found.keypoints["tail"].median == pytest.approx(5.0)


def test_result_is_json():
    found = evaluate_poses([ANIMAL[None]], [NO_POSES], ["nose", "tail", "back"])
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["pixel_error"]["50"] is None and plain["ap"]["0.0025"]["ap"] == 0.0


# --- files --------------------------------------------------------------------------------------------------------------------------------

SKELETON = Skeleton(("nose", "tail", "back"), ((0, 1),))


def _video(path: str) -> VideoSource:
    return VideoSource((Path(path),))


def _labels(videos: list[VideoSource], frames: list[tuple[int, int]], skeleton: Skeleton = SKELETON) -> Labels:
    return Labels(skeleton, videos, [LabeledFrame(v, i, [Instance(ANIMAL + 10 * i)]) for v, i in frames], Path("truth.slp"))


def _guess(videos: list[VideoSource], frames: list[tuple[int, int]], skeleton: Skeleton = SKELETON) -> Labels:
    guesses = [LabeledFrame(v, i, [], [PredictedInstance(ANIMAL + 10 * i, score=0.5)]) for v, i in frames]
    return Labels(skeleton, videos, guesses, Path("guess.slp"))


def test_evaluate_pairs_frames_by_video_and_number():
    videos = [_video("/a/one.mp4"), _video("/b/two.mp4")]
    truth = _labels(videos, [(0, 3), (1, 3), (1, 9)])
    found = evaluate(truth, _guess(videos[::-1], [(0, 9), (1, 3), (0, 3), (0, 77)]))
    assert found.ap[SLEAP_S2].ap == 1 and found.frames == 3 and found.predictions == 3 and found.warnings == []


def test_evaluate_pairs_moved_videos_by_name():
    truth = _labels([_video("/a/one.mp4"), _video("/a/two.mp4")], [(0, 1), (1, 2)])
    found = evaluate(truth, _guess([_video("/z/two.mp4"), _video("/z/one.mp4")], [(0, 2), (1, 1)]))
    assert found.ap[SLEAP_S2].ap == 1


def test_names_that_fit_twice_are_not_guessed():
    truth = _labels([_video("/a/x/0.mp4"), _video("/a/y/0.mp4")], [(0, 1), (1, 2)])
    found = evaluate(truth, _guess([_video("/z/y/0.mp4"), _video("/z/x/0.mp4")], [(0, 2), (1, 1)]))  # folder and name decide
    assert found.ap[SLEAP_S2].ap == 1
    with pytest.raises(FormatError, match="no video in common"):
        evaluate(truth, _guess([_video("/z/p/0.mp4"), _video("/z/q/0.mp4")], [(0, 2), (1, 1)]))


def test_evaluate_pairs_only_videos_whatever_their_names():
    found = evaluate(_labels([_video("/a/one.mp4")], [(0, 1)]), _guess([_video("/b/other.avi")], [(0, 1)]))
    assert found.ap[PAPER_S2].ap == 1


def test_evaluate_pairs_images_by_file():
    everything = VideoSource(tuple(Path(f"/a/{n}.png") for n in range(10)))
    some = VideoSource((Path("/b/7.png"), Path("/b/4.png")))
    truth = Labels(SKELETON, [everything], [LabeledFrame(0, n, [Instance(ANIMAL + n)]) for n in (4, 7)])
    guess = Labels(SKELETON, [some], [LabeledFrame(0, i, [], [PredictedInstance(ANIMAL + n)]) for i, n in enumerate((7, 4))])
    assert evaluate(truth, guess).ap[SLEAP_S2].ap == 1


def test_evaluate_pairs_images_by_file_also_where_their_video_is_known():
    paths = (Path("/a/clip/img0120.png"), Path("/a/clip/img0007.png"))
    images = VideoSource(paths, original=_video("/a/clip.mp4"))
    truth = Labels(SKELETON, [images], [LabeledFrame(0, n, [Instance(ANIMAL + n)]) for n in (0, 1)])
    frames = [LabeledFrame(0, 1 - n, [], [PredictedInstance(ANIMAL + n)]) for n in (0, 1)]
    assert evaluate(truth, Labels(SKELETON, [VideoSource(paths[::-1])], frames)).ap[SLEAP_S2].ap == 1


EXTRACTED = (Path("/a/labeled-data/clip/img0007.png"), Path("/a/labeled-data/clip/img0120.png"))


@pytest.mark.parametrize("predicted_on", ["/z/clip.mp4", "/z/clip.avi"])
@pytest.mark.parametrize("images_are_labelled", [True, False])
def test_evaluate_pairs_images_with_the_frames_that_they_were_taken_from(predicted_on: str, images_are_labelled: bool):
    images, video = VideoSource(EXTRACTED, original=_video("/a/videos/clip.mp4")), _video(predicted_on)
    sources = [(images, [(0, 7), (1, 120)]), (video, [(120, 120), (7, 7), (0, 300)])]
    (ours, some), (theirs, others) = sources if images_are_labelled else sources[::-1]
    truth = Labels(SKELETON, [ours], [LabeledFrame(0, i, [Instance(ANIMAL + n)]) for i, n in some])
    guess = Labels(SKELETON, [theirs], [LabeledFrame(0, i, [], [PredictedInstance(ANIMAL + n)]) for i, n in others])
    found = evaluate(truth, guess)
    assert found.animals - found.missed == 2 and found.pixel_error[99] == 0


def test_evaluate_pairs_images_as_images_where_both_have_some():
    images = VideoSource(EXTRACTED, original=_video("/a/clip.mp4"))
    truth = Labels(SKELETON, [images], [LabeledFrame(0, 0, [Instance(ANIMAL + 7)]), LabeledFrame(0, 1, [Instance(ANIMAL + 120)])])
    both = [VideoSource(EXTRACTED[:1]), _video("/a/clip.mp4")]
    frames = [LabeledFrame(0, 0, [], [PredictedInstance(ANIMAL + 7)]), LabeledFrame(1, 120, [], [PredictedInstance(ANIMAL + 120)])]
    assert evaluate(truth, Labels(SKELETON, both, [*frames, LabeledFrame(1, 7)])).pixel_error[99] == 0


def test_images_of_an_unknown_video_are_not_its_first_frames():
    truth = Labels(SKELETON, [VideoSource(EXTRACTED)], [LabeledFrame(0, i, [Instance(ANIMAL)]) for i in (0, 1)])
    with pytest.raises(FormatError, match="have no video in common"):
        evaluate(truth, _guess([_video("/a/clip.mp4")], [(0, 0), (0, 1)]))


def _found_everything(labels: Path, predictions: Path) -> bool:
    found = evaluate(labels, predictions)
    return (found.frames, found.animals, found.missed, found.invented) == (2, 2, 0, 0) and found.pixel_error[99] < 1e-6


@pytest.mark.parametrize("name", ["p.slp", "p.analysis.h5", "p.h5", "p.json"])
@pytest.mark.parametrize("labels", ["labels.json", "labels.slp", "labels.analysis.h5"])
def test_evaluate_images_in_every_format(tmp_path: Path, make_images: Callable[..., list[Path]], labels: str, name: str):
    images = [VideoSource(tuple(make_images(tmp_path / "photos", 3)))]
    write_project(tmp_path / labels, _labels(images, [(0, 0), (0, 2)]))
    inputs = [tmp_path / labels] if labels.endswith("json") else []
    write_predictions(tmp_path / name, SKELETON, images, _guess(images, [(0, 0), (0, 2)]).frames, {}, inputs)
    shutil.rmtree(tmp_path / "photos")  # figures need positions only
    if name == "p.json" and not inputs:
        with pytest.raises(FormatError, match=f"p.json holds COCO results, .* and .*{labels} holds no COCO labels; give those"):
            evaluate(tmp_path / labels, tmp_path / name)
    else:
        assert _found_everything(tmp_path / labels, tmp_path / name)


@pytest.mark.parametrize("name", ["p.slp", "p.analysis.h5", "p.h5", "clipDLC_Net_el.csv"])
def test_evaluate_predictions_of_a_video_with_images_extracted_from_it(tmp_path: Path, video_file: Path, name: str):
    clip = tmp_path / "clip.mp4"
    shutil.copy(video_file, clip)
    write_project(tmp_path / "dlc", _labels([_video(str(clip))], [(0, 7), (0, 30)]))
    guess = _guess([_video(str(clip))], [(0, 30), (0, 7)])
    write_predictions(tmp_path / name, SKELETON, guess.videos, guess.frames, {})
    assert _found_everything(tmp_path / "dlc", tmp_path / name)
    clip.unlink()
    assert _found_everything(tmp_path / "dlc", tmp_path / name)


def test_results_of_other_images_are_noticed(tmp_path: Path, make_images: Callable[..., list[Path]]):
    images = [VideoSource(tuple(make_images(tmp_path / "photos", 3)))]
    write_project(tmp_path / "labels.json", _labels(images, [(0, 0)]))
    result = {"image_id": 77, "category_id": 1, "keypoints": [1.0] * 9, "score": 1.0}
    (tmp_path / "p.json").write_text(json.dumps([result]))
    with pytest.raises(FormatError, match="p.json: none of its 1 results .* belongs to an image and a category of .*labels.json"):
        evaluate(tmp_path / "labels.json", tmp_path / "p.json")


def test_evaluate_pairs_embedded_images_with_their_original():
    original = _video("/gone/one.mp4")
    package = VideoSource((Path("/a/labels.pkg.slp"),), "video0", original)
    other = VideoSource((Path("/a/labels.pkg.slp"),), "video1", _video("/gone/two.mp4"))
    truth = _labels([package, other], [(0, 120), (1, 5)])
    found = evaluate(truth, _guess([_video("/here/two.mp4"), _video("/here/one.mp4")], [(1, 120), (0, 5)]))
    assert found.ap[SLEAP_S2].ap == 1


def test_absent_frames_are_missed():
    video = [_video("/a/one.mp4")]
    found = evaluate(_labels(video, [(0, 1), (0, 2)]), _guess(video, [(0, 1)]))
    assert found.missed == 1 and found.ap[PAPER_S2].ar == 0.5 and "1 of 2 labelled frames" in found.warnings[0]


def test_negative_frames_count():
    video = [_video("/a/one.mp4")]
    truth = _labels(video, [(0, 1)])
    truth.frames.append(LabeledFrame(0, 2, negative=True))
    truth.frames.append(LabeledFrame(0, 3))  # nothing known: not judged
    found = evaluate(truth, _guess(video, [(0, 1), (0, 2), (0, 3)]))
    assert found.frames == 2 and found.invented == 1


def test_no_predictions_is_zero_with_a_warning():
    video = [_video("/a/one.mp4")]
    found = evaluate(_labels(video, [(0, 1)]), _labels(video, [(0, 1)]))
    assert found.ap[PAPER_S2].ap == 0 and found.missed == 1
    assert "no predictions" in found.warnings[0] and "1 labelled animals" in found.warnings[0]


def test_swapped_files_are_noticed():
    video = [_video("/a/one.mp4")]
    with pytest.raises(FormatError, match="order"):
        evaluate(_guess(video, [(0, 1)]), _labels(video, [(0, 1)]))


def test_keypoints_are_paired_by_name():
    video = [_video("/a/one.mp4")]
    truth, guess = _labels(video, [(0, 1)]), _guess(video, [(0, 1)], Skeleton(("back", "nose", "paw")))
    guess.frames[0].predicted[0].points = (ANIMAL + 10)[[2, 0, 1]]
    found = evaluate(truth, guess)
    assert list(found.keypoints) == ["nose", "back"] and found.pixel_error[99] == 0
    assert "paw, tail" in found.warnings[0]
    with pytest.raises(FormatError, match=r"nose, tail, back.*a, b, c"):
        evaluate(truth, _guess(video, [(0, 1)], Skeleton(("a", "b", "c"))))

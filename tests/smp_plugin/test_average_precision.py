"""COCO AP against a second implementation, cases worked out by hand, and DeepLabCut's own function where it is installed."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

from smp_plugin.average_precision import COCO_THRESHOLDS, deeplabcut_ap, keypoint_ap
from smp_plugin.similarity import MEDIUM_S2, PAPER_S2, SLEAP_S2, animal_areas, oks

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


def test_an_empty_frame_may_come_first():
    """It need not know how many keypoints there are."""
    empty, poses = np.zeros((0, 1, 2)), (ANIMAL[None], np.ones(1))
    assert keypoint_ap([empty, ANIMAL[None]], [NO_POSES, poses]) == keypoint_ap([ANIMAL[None], empty], [poses, NO_POSES])
    assert keypoint_ap([empty, ANIMAL[None]], [NO_POSES, poses], SLEAP_S2).ap == 1


# --- SLEAP's tolerance, strictly: two animals in each of ten frames, all perfect but for what is said -------------------------------------

SQUARE = np.array([[0.0, 0.0], [40.0, 0.0], [40.0, 40.0], [0.0, 40.0]])
PAIR = np.stack([SQUARE, SQUARE + 200])
TEN = [PAIR] * 10


def _strict(predicted):
    found = keypoint_ap(TEN, predicted, SLEAP_S2)
    return found.ap, found.ar


def test_strict_sleap_figures_of_doubles():
    worse = [(np.concatenate([PAIR, PAIR]), np.array([0.9, 0.9, 0.5, 0.5]))] * 10
    assert _strict(worse) == (1, 1)  # all 20 animals come before the first double
    better = [(np.concatenate([PAIR, PAIR + 20]), np.array([0.5, 0.5, 0.9, 0.9]))] * 10
    assert _strict(better) == (pytest.approx(0.5), 1)  # 20 right ones after 20 wrong ones: precision 1/2 at best, at the end


def test_strict_sleap_figures_of_absent_frames():
    assert _strict([(PAIR, np.ones(2))] * 5 + [(np.empty((0, 4, 2)), np.empty(0))] * 5) == (pytest.approx(51 / 101), 0.5)


def test_strict_sleap_figures_of_false_animals_with_higher_scores():
    eight = [(np.concatenate([PAIR, PAIR[:1] + 600]), np.array([0.5, 0.5, 0.9]))] * 8
    assert _strict([*eight, (PAIR, np.full(2, 0.5)), (PAIR, np.full(2, 0.5))]) == (pytest.approx(20 / 28), 1)


def test_strict_sleap_figures_of_a_missing_point():
    missing = PAIR.copy()
    missing[:, 0] = NAN
    assert _strict([(missing, np.ones(2))] * 10) == (pytest.approx(0.6), pytest.approx(0.6))  # OKS .75: 6 of 10 thresholds
    complete = keypoint_ap([missing] * 10, [(PAIR, np.ones(2))] * 10, SLEAP_S2)
    assert (complete.ap, complete.ar) == (1, 1)  # what is not labelled is not judged


# --- DeepLabCut's definition --------------------------------------------------------------------------------------------------------------


def test_deeplabcut_tolerance_by_hand():
    """12 px on a 60 x 30 animal: exp(-144 / (2 * .04 * 1800)) = 1/e^1 = .368; one of three so far off leaves OKS .789."""
    moved = ANIMAL.copy()
    moved[0] += [12.0, 0.0]
    assert oks(ANIMAL[None], moved[None], np.array([1800.0]), 0.04)[0, 0] == pytest.approx((2 + math.exp(-1)) / 3)
    assert deeplabcut_ap([ANIMAL[None]], [(moved[None], np.ones(1))]).ap == pytest.approx(0.6)  # .50 to .75
    assert deeplabcut_ap([ANIMAL[None]], [(ANIMAL[None], np.ones(1))]) == keypoint_ap([ANIMAL[None]], [(ANIMAL[None], np.ones(1))])


def test_deeplabcut_leaves_single_points_out():
    single = np.full((3, 2), NAN)
    single[0] = [500.0, 500.0]
    truth, predicted = [np.stack([ANIMAL, single])], [(np.stack([single, ANIMAL]), np.array([0.9, 0.5]))]
    assert deeplabcut_ap(truth, predicted).ap == 1 and deeplabcut_ap(truth, predicted).ar == 1
    full = [(np.stack([ANIMAL + 500, ANIMAL]), np.array([0.9, 0.5]))]
    assert deeplabcut_ap(truth, full).ap == pytest.approx(0.5)  # a complete prediction there counts as wrong
    assert math.isnan(deeplabcut_ap([single[None]], full).ap)


def test_deeplabcut_never_finds_an_animal_without_area():
    flat = np.array([[0.0, 0.0], [80.0, 0.0], [NAN, NAN]])
    found = deeplabcut_ap([np.stack([flat, ANIMAL + 300])], [(np.stack([flat, ANIMAL + 300]), np.array([0.5, 0.9]))])
    assert found.ar == 0.5 and found.ap == pytest.approx(51 / 101)


def test_deeplabcut_gives_no_second_choice():
    """Two predictions lie nearest to one of two animals that touch: COCO gives the second one the other animal."""
    truth = [np.stack([ANIMAL, ANIMAL + [4.0, 0.0]])]
    predicted = [(np.stack([ANIMAL, ANIMAL + [0.5, 0.0]]), np.array([0.9, 0.8]))]
    assert keypoint_ap(truth, predicted, 0.04).ar > 0.9
    assert deeplabcut_ap(truth, predicted).ar == 0.5


@pytest.mark.skipif(find_spec("deeplabcut") is None, reason="deeplabcut is not installed (pip install smp-plugin[dlc])")
@pytest.mark.parametrize("seed", range(10))
def test_deeplabcut_says_the_same(seed: int):
    from deeplabcut.core.metrics import compute_metrics

    rng = np.random.default_rng(seed)
    truth, theirs, predicted, guesses = [], {}, [], {}
    for frame in range(8):
        labels = ANIMAL + rng.uniform(0, 120, (int(rng.integers(0, 6)), 1, 2)) + rng.normal(0, 3, (1, 3, 2))
        labels[: len(labels) // 5, :, 1] = 7.0  # without area
        labels[rng.random(labels.shape[:2]) < 0.25] = NAN
        poses = np.concatenate([labels, labels[:2], ANIMAL + rng.uniform(0, 120, (2, 1, 2))])
        poses = np.nan_to_num(poses, nan=50.0) + rng.normal(0, 4, poses.shape) * (rng.random((len(poses), 1, 1)) < 0.9)
        poses[rng.random(poses.shape[:2]) < 0.2] = NAN
        scores = np.where(np.isnan(poses[..., 0]), NAN, rng.random(poses.shape[:2]))
        labels = labels[~np.isnan(labels[..., 0]).all(axis=1)]
        kept = ~np.isnan(scores).all(axis=1)
        truth.append(labels)
        predicted.append((poses[kept], np.nanmean(scores[kept], axis=1)))
        theirs[str(frame)] = np.concatenate([labels, np.where(np.isnan(labels[..., :1]), 0.0, 2.0)], axis=-1)
        guesses[str(frame)] = np.concatenate([poses, scores[..., None]], axis=-1)
    expected = compute_metrics(theirs, guesses)
    found = deeplabcut_ap(truth, predicted)
    assert 0.05 < found.ap < 0.9  # a case that tells
    assert (100 * found.ap, 100 * found.ar) == (pytest.approx(expected["mAP"], abs=1e-9), pytest.approx(expected["mAR"], abs=1e-9))

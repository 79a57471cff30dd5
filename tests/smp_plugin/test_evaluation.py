"""Files of labels and of predictions: which frames, images, keypoints belong together, and what is said about them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters import write_predictions, write_project
from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from smp_plugin.evaluation import evaluate
from smp_plugin.similarity import PAPER_S2, SLEAP_S2

NAN = math.nan
ANIMAL = np.array([[0.0, 0.0], [60.0, 0.0], [30.0, 30.0]])  # 60 x 30 px
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


def _images(folder: str, *numbers: int) -> VideoSource:
    return VideoSource(tuple(Path(f"/a/{folder}/img{number:04}.png") for number in numbers))


def test_frames_of_another_video_are_not_paired_by_their_numbers():
    truth = _labels([_images("mouse1", 5), _images("mouse2", 7)], [(0, 0), (1, 0)])
    found = evaluate(truth, _guess([_images("mouse2", 5, 7)], [(0, 0), (0, 1)]))  # its own folder is known
    assert (
        found.predictions == 1
        and found.missed == 1
        and found.warnings == ["1 of 2 labelled frames are not in guess.slp: their animals count as missed."]
    )
    renamed = evaluate(
        _labels([_video("/a/one.mp4"), _video("/a/two.mp4")], [(0, 1), (1, 2)]),
        _guess([_video("/a/one.mp4"), _video("/a/two.avi")], [(0, 1), (1, 2)]),
    )
    assert renamed.missed == 0 and not renamed.warnings


def test_names_alone_are_said_to_decide():
    truth = _labels([_images("mouse1", 5, 7), _video("/a/clips/clip.mp4")], [(0, 0), (0, 1), (1, 3)])
    found = evaluate(truth, _guess([_images("mouse2", 5, 7), _video("/z/clips/clip.mp4")], [(0, 0), (0, 1), (1, 3)]))
    assert found.missed == 0 and found.warnings == [
        "mouse1/img0005.png of the labels is taken to be mouse2/img0005.png of the predictions (and 1 more), by its name alone; "
        "check that it is."
    ]
    taken = VideoSource((Path("/a/labeled-data/clip/img0120.png"),), original=_video("/a/videos/clip.mp4"))
    moved = evaluate(_labels([taken], [(0, 0)]), _guess([_video("/scratch/clip.mp4")], [(0, 120)]))
    assert len(moved.warnings) == 1 and "videos/clip.mp4 of the labels is taken to be scratch/clip.mp4" in moved.warnings[0]


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


@pytest.mark.parametrize("images_are_labelled", [True, False])
def test_images_cut_out_of_a_video_are_compared_in_their_place(images_are_labelled: bool):
    """What is predicted outside of the image is nobody's mistake."""
    images = VideoSource(EXTRACTED, original=_video("/a/clip.mp4"), cut=(100, 50, 400, 350))
    sources = [(images, 0, np.zeros(2)), (_video("/b/clip.mp4"), 7, np.array([100, 50]))]
    (ours, i, corner), (theirs, j, other) = sources if images_are_labelled else sources[::-1]
    truth = Labels(SKELETON, [ours], [LabeledFrame(0, i, [Instance(ANIMAL + corner)])])
    found = [PredictedInstance(ANIMAL + other)] + ([PredictedInstance(ANIMAL + other - 90)] if images_are_labelled else [])
    result = evaluate(truth, Labels(SKELETON, [theirs], [LabeledFrame(0, j, [], found)]))
    assert (result.missed, result.invented, result.pixel_error[99]) == (0, 0, 0)


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


@pytest.mark.parametrize("looked_at", [True, False])
def test_predictions_of_other_frames_only_are_said_to_be(looked_at: bool):
    """As of a project, whose labelled frames are left out by default, or in a table with a row for every frame."""
    video = [_video("/a/one.mp4")]
    guess = _guess(video, [(0, 5)])
    guess.frames += [LabeledFrame(0, 1), LabeledFrame(0, 2)] if looked_at else []
    found = evaluate(_labels(video, [(0, 1), (0, 2)]), guess)
    assert found.missed == 2 and len(found.warnings) == 1
    assert "no prediction in any of the 2 labelled frames" in found.warnings[0] and "--frames labeled" in found.warnings[0]


def test_a_video_of_another_name_is_taken_for_the_only_one_aloud():
    found = evaluate(_labels([_video("/a/one.mp4")], [(0, 1)]), _guess([_video("/a/two.mp4")], [(0, 1)]))
    (warning,) = found.warnings
    assert "one.mp4 of the labels is taken to be /a/two.mp4 of the predictions, since each file has only one" in warning
    assert not evaluate(_labels([_video("/a/one.mp4")], [(0, 1)]), _guess([_video("/a/one.mp4")], [(0, 1)])).warnings


def test_negative_frames_count():
    video = [_video("/a/one.mp4")]
    truth = _labels(video, [(0, 1)])
    truth.frames.append(LabeledFrame(0, 2, negative=True))
    truth.frames.append(LabeledFrame(0, 3))  # nothing known: not judged
    found = evaluate(truth, _guess(video, [(0, 1), (0, 2), (0, 3)]))
    assert found.frames == 2 and found.invented == 1


def test_what_is_predicted_on_a_box_without_keypoints_is_not_judged():
    videos, crowd, elsewhere = [_video("/a/one.mp4")], np.array([200.0, 200, 300, 300]), np.array([600.0, 600, 700, 700])
    truth, guess = _labels(videos, [(0, 0)]), _guess(videos, [(0, 0)])
    truth.frames[0].unposed = [crowd, elsewhere, np.array([-5.0, -5, 65, 35])]  # the last around the labelled animal
    two_in, one_in = ANIMAL + 270, ANIMAL + [280.0, 290.0]  # of three points
    guess.frames[0].predicted += [PredictedInstance(pose, score=0.9) for pose in (ANIMAL + 220, two_in, one_in, ANIMAL + 400)]
    found = evaluate(truth, guess)
    assert (found.predictions, found.missed, found.invented, found.doubled) == (3, 0, 2, 0) and found.ap[SLEAP_S2].ap < 0.6
    assert [w for w in found.warnings if "2 predictions lie on animals or crowds" in w]


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


# --- what is asked for --------------------------------------------------------------------------------------------------------------------


def _partly(single: int) -> tuple[Labels, Labels]:
    """Ten animals, of which so many have one keypoint; what is predicted: all of them, and as many that nobody labelled."""
    video = [_video("/a/one.mp4")]
    nose = np.where(np.arange(3)[:, None] == 0, ANIMAL, NAN)
    truth = [LabeledFrame(0, i, [Instance(nose if i < single else ANIMAL)]) for i in range(10)]
    both = [LabeledFrame(0, i, [], [PredictedInstance(ANIMAL, score=0.5), PredictedInstance(ANIMAL + 500, score=0.9)]) for i in range(10)]
    return Labels(SKELETON, video, truth), Labels(SKELETON, video, both)


def test_labels_are_taken_as_partial_as_in_training():
    found = evaluate(*_partly(4))
    assert found.labels == "taken as partial, since 40% of animals have one labelled keypoint (1-1 animals a frame)"
    assert found.ap[SLEAP_S2].ap == pytest.approx(0.5) and found.invented == 10  # ten wrong ones come first
    assert found.partial is not None and found.partial.ap[SLEAP_S2].ap == 1 and found.partial.ignored == 10
    assert found.to_dict()["partial"]["deeplabcut"]["ap"] == 1
    complete = evaluate(*_partly(3))
    assert complete.partial is None and complete.labels.startswith("taken as complete, since 30%")


@pytest.mark.parametrize(("rule", "single"), [("partial", 0), ("complete", 9)])
def test_labels_as_asked_for(rule: str, single: int):
    found = evaluate(*_partly(single), rule=rule)
    assert (found.partial is not None) == (rule == "partial") and found.labels == f"{rule}, as asked for"
    with pytest.raises(ValueError, match="auto, complete, partial"):
        evaluate(*_partly(single), rule="some")


def test_an_animal_without_a_common_keypoint_does_not_make_a_frame_empty():
    video = [_video("/a/one.mp4")]
    tail = np.where(np.arange(3)[:, None] == 1, ANIMAL, NAN)
    truth = Labels(SKELETON, video, [LabeledFrame(0, 1, [Instance(ANIMAL)]), LabeledFrame(0, 2, [Instance(tail)])])
    found = evaluate(truth, _guess(video, [(0, 1), (0, 2)], Skeleton(("nose", "x", "back"))), rule="partial")
    assert found.partial is not None and (found.partial.ignored, found.partial.invented, found.animals) == (1, 0, 1)


def test_left_and_right_are_known_from_either_skeleton_by_name():
    video = [_video("/a/one.mp4")]
    points = np.array([[0.0, 0.0], [-10.0, 20.0], [10.0, 20.0], [0.0, 60.0]])
    plain = Skeleton(("nose", "left", "right", "tail"))
    paired = Skeleton(("right", "nose", "left", "tail"), symmetries=((0, 2),))
    truth = Labels(plain, video, [LabeledFrame(0, 1, [Instance(points)])])
    guess = Labels(paired, video, [LabeledFrame(0, 1, [], [PredictedInstance(points[[1, 0, 2, 3]])])])  # exchanged
    assert (evaluate(truth, guess).swapped_pairs, evaluate(truth, guess).symmetric_pairs) == (1, 1)
    turned = Labels(paired, video, [LabeledFrame(0, 1, [Instance(points[[2, 0, 1, 3]])])])
    right = Labels(plain, video, [LabeledFrame(0, 1, [], [PredictedInstance(points)])])
    assert (evaluate(turned, right).swapped_pairs, evaluate(turned, right).symmetric_pairs) == (0, 1)
    assert evaluate(truth, right).swapped_pairs is None
    few = Labels(Skeleton(("nose", "left")), video, [LabeledFrame(0, 1, [], [PredictedInstance(points[:2])])])
    assert evaluate(turned, few).swapped_pairs is None


def test_deeplabcut_ranks_by_point_scores_where_there_are_any():
    video = [_video("/a/one.mp4")]
    truth = _labels(video, [(0, 0)])
    animals = [PredictedInstance(ANIMAL, None, 0.9, np.full(3, 0.2)), PredictedInstance(ANIMAL + 500, None, 0.1, np.full(3, 0.8))]
    guess = Labels(SKELETON, video, [LabeledFrame(0, 0, [], animals)])
    assert evaluate(truth, guess).deeplabcut.ap == pytest.approx(0.5) and evaluate(truth, guess).ap[PAPER_S2].ap == 1
    for animal in animals:
        animal.point_scores = np.ones(3)  # the file has none
    assert evaluate(truth, guess).deeplabcut.ap == 1

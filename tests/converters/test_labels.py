from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource

VIDEO = VideoSource((Path("/videos/a.mp4"),))


def test_skeleton_flip_order() -> None:
    skeleton = Skeleton(("nose", "left", "right"), symmetries=((1, 2),))
    assert skeleton.mirrored == [0, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": ()}, "no keypoints"),
        ({"keypoints": ("a", "a")}, "twice"),
        ({"keypoints": ("a", "b\n")}, r"called 'b\\n'"),
        ({"keypoints": ("a", "\ud800")}, r"called '\\ud800'"),
        ({"keypoints": ("a", "")}, "called ''"),
        ({"keypoints": ("a", 1)}, "called 1"),
        ({"keypoints": ("a", "b"), "edges": ((0, 2),)}, "edge between keypoints number 1 and 3 is no pair"),
        ({"keypoints": ("a", "b"), "edges": ((1, 1),)}, "edge between keypoints number 2 and 2"),
        ({"keypoints": ("a", "b"), "symmetries": ((0, -1),)}, "symmetry between keypoints number 1 and 0"),
    ],
)
def test_skeleton_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Skeleton(**arguments)


def test_half_a_position_is_not_a_label() -> None:
    given = np.array([[1.0, np.nan], [np.inf, 2.0], [3.0, 4.0]])
    instance = Instance(given)
    assert instance.labelled.tolist() == [False, False, True]
    assert np.isnan(instance.points[:2]).all()
    assert given[0, 0] == 1.0, "the caller's array was changed"


def test_what_no_picture_or_video_can_have() -> None:
    assert Instance(np.array([[1e308, 0], [0, -2e9], [1, 2]])).labelled.tolist() == [False, False, True]
    predicted = PredictedInstance(np.zeros((2, 2)), None, np.inf, np.array([np.nan, 0.5]))
    assert (predicted.score, predicted.point_scores.tolist()) == (0.0, [0.0, 0.5])
    with pytest.raises(FormatError, match="has the number 1000000000, and no video is so long"):
        Labels(Skeleton(("nose",)), [VIDEO], [LabeledFrame(0, 10**9)])
    with pytest.raises(FormatError, match=r"a track called 'a\\x00'"):
        Labels(Skeleton(("nose",)), [VIDEO], [LabeledFrame(0, 3, [Instance(np.zeros((1, 2)), "a\0")])])


def test_messages_are_one_line_whatever_is_in_a_file() -> None:
    message = str(FormatError("/a/b.slp: a\nb\u2028c\0 " + "x" * 10_000 + " do this."))
    assert message.startswith("/a/b.slp: a b c? xxx") and message.endswith("xx do this.") and len(message) == 1500


def test_points_need_two_columns() -> None:
    with pytest.raises(FormatError, match="shape"):
        Instance(np.zeros((3, 3)))


def test_predicted_scores_default_to_what_is_there() -> None:
    predicted = PredictedInstance(np.array([[1.0, 2.0], [np.nan, np.nan]]))
    assert predicted.point_scores.tolist() == [1.0, 0.0]
    with pytest.raises(FormatError, match="point scores"):
        PredictedInstance(np.zeros((2, 2)), point_scores=np.ones(3))


def test_video_kinds_and_pickle() -> None:
    images = VideoSource((Path("/a/1.png"), Path("/a/2.png")))
    embedded = VideoSource((Path("/a/p.pkg.slp"),), embedded="video0", original=VIDEO)
    assert [each.kind for each in (VIDEO, images, VideoSource((Path("/a/1.PNG"),)), embedded)] == ["file", "images", "images", "embedded"]
    assert pickle.loads(pickle.dumps(embedded)) == embedded


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (LabeledFrame(1, 0), "video 1, but there are 1"),
        (LabeledFrame(0, -1), "start at 0"),
        (LabeledFrame(0, 7, [Instance(np.zeros((3, 2)))]), "frame 7 of .* 3 keypoints"),
        (LabeledFrame(0, 7, predicted=[PredictedInstance(np.zeros((1, 2)))]), "1 keypoints"),
    ],
)
def test_labels_refuse(frame: LabeledFrame, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        Labels(Skeleton(("a", "b")), [VIDEO], [frame], Path("/p/project.slp"))
    assert "/p/project.slp" in str(caught.value)


def test_labelled_frames_are_those_to_learn_from() -> None:
    nothing = Instance(np.full((2, 2), np.nan))
    frames = [
        LabeledFrame(0, 0, [Instance(np.zeros((2, 2)))]),
        LabeledFrame(0, 1, [nothing]),
        LabeledFrame(0, 2, negative=True),
        LabeledFrame(0, 3, predicted=[PredictedInstance(np.zeros((2, 2)))]),
        LabeledFrame(0, 4),
    ]
    assert [frame.index for frame in Labels(Skeleton(("a", "b")), [VIDEO], frames).labelled_frames] == [0, 2]


def test_frames_of_images_are_found_in_their_video() -> None:
    names = ("img0042.png", "img7.png", "2024 best.png")
    images = VideoSource(tuple(Path("/labelled") / name for name in names), original=VIDEO)
    assert [images.in_original(index) for index in range(4)] == [(VIDEO, 42), (VIDEO, 7), (images, 2), (images, 3)]
    package = VideoSource((Path("/labels.pkg.slp"),), "video0", VIDEO)
    assert package.in_original(5) == (VIDEO, 5) and VIDEO.in_original(5) == (VIDEO, 5)


def test_frames_are_called_by_their_image_or_by_video_and_number() -> None:
    video = VideoSource((Path("/far/away/cage.mp4"),))
    assert video.title(7) == "cage.mp4, frame 7"
    assert VideoSource((Path("/a/img1.png"), Path("/a/img2.png"))).title(1) == "a/img2.png"
    assert VideoSource((Path("/a/labels.pkg.slp"),), embedded="video0", original=video).title(30) == "cage.mp4, frame 30"


def test_a_frame_has_a_place_of_its_own_and_one_in_the_video_it_was_taken_from(tmp_path: Path) -> None:
    video, package = tmp_path / "cage.mp4", tmp_path / "labels.pkg.slp"
    (tmp_path / "link.mp4").symlink_to(video)
    source, image = VideoSource((tmp_path / "link.mp4",)), tmp_path / "img0030.png"
    assert source.places(30) == {(video, None, 30)}
    assert VideoSource((image,), original=source).places(0) == {(image, None, 0), (video, None, 30)}
    embedded = [VideoSource((package,), embedded=group, original=original) for group, original in (("a", source), ("b", None))]
    assert embedded[0].places(30) == {(package, "a", 30), (video, None, 30)} and embedded[1].places(30) == {(package, "b", 30)}

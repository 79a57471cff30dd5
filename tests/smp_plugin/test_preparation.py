"""What a run learns from, and every automatic choice with its reason."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import FormatError, Instance, LabeledFrame, VideoSource, read_project, write_project
from smp_plugin.checking import check
from smp_plugin.config import Config, read_config, set_value, write_config
from smp_plugin.frame_reader import FrameReader
from smp_plugin.preparation import Material, _pictures, _split, complete_lengths, frame_names, name_sources, prepare


def material_of(*projects: Path, config: Config, listener: Any, val: Path | None = None, extra: list[Path] | None = None) -> Material:
    name_sources(config, list(projects), val, None, extra, keep=False)
    return prepare(config, listener)


def sentence(listener: Any, start: str) -> str:
    """The one sentence that begins so."""
    (found,) = [text for text in listener.sentences + listener.alarms if text.startswith(start)]
    return str(found)


def places(frames: list[Any]) -> set[tuple[int, int]]:
    return {(f.video, f.index) for f in frames}


def test_a_share_is_held_out_and_the_same_for_the_same_seed(blobs: Any, make_config: Callable[..., Config], listener: Any):
    first = material_of(blobs.project, config=make_config(data__val_fraction=0.25), listener=listener)
    again = material_of(blobs.project, config=make_config(data__val_fraction=0.25), listener=listener)
    other = material_of(blobs.project, config=make_config(data__val_fraction=0.25, train__seed=1), listener=listener)
    assert len(first.frames) == 9 and len(first.val_frames) == 3 and not places(first.frames) & places(first.val_frames)
    assert places(first.val_frames) == places(again.val_frames) != places(other.val_frames)
    assert "3 of 12 labelled frames" in listener.sentences[1]


def test_a_frame_labelled_in_two_projects_is_not_held_out_from_itself(blobs: Any, make_config: Callable[..., Config], listener: Any):
    twice = blobs.project.with_name("twice.slp")
    shutil.copy(blobs.project, twice)
    config = make_config(data__val_fraction=0.25)
    name_sources(config, [blobs.project, twice], None, None, None, keep=False)
    material = prepare(config, listener)
    train, held = ({f.index for f in frames} for frames in (material.frames, material.val_frames))
    assert len(held) == 3 and not train & held and len(material.frames) == 18 and len(material.val_frames) == 6


def test_a_picture_is_known_by_its_file_and_by_its_video(tmp_path: Path):
    """DeepLabCut's images know their video, COCO's of the same files do not, and SLEAP labels the video itself."""
    paths = tuple(tmp_path / f"img{i:03}.png" for i in (4, 7))
    clip = VideoSource((tmp_path / "clip.mp4",))
    videos = [VideoSource(paths, original=clip), VideoSource(paths), clip]
    names = [(0, 0), (1, 0), (2, 4), (2, 7), (0, 1), (1, 1)]
    for order in itertools.permutations(range(6)):
        numbers = dict(zip(order, _pictures([LabeledFrame(*names[i]) for i in order], videos), strict=True))
        assert len({numbers[i] for i in (0, 1, 2)}) == len({numbers[i] for i in (3, 4, 5)}) == 1 and {*numbers.values()} == {0, 1}
        assert numbers[order[0]] == 0


@pytest.mark.parametrize(
    ("counts", "share", "held", "why"),
    [
        ([10] * 9, -1.0, 0, "so few are all needed"),
        ([1] * 40, -1.0, 0, "a fifth of them has too few animals"),
        ([2] * 40, -1.0, 5, ""),  # as many as hold ten animals
        ([1] * 95, -1.0, 10, ""),
        ([1] * 40, 0.1, 4, ""),  # as asked for
        ([1] * 8, 0.25, 2, ""),
        ([1] * 8, 0.05, 0, "0.05 of them is none"),
        ([1] + [0] * 7, 0.99, 0, "no animal would be left"),
        ([1] * 40, 0.0, 0, "as asked for"),
    ],
)
def test_labels_are_held_out_where_they_choose_or_somebody_asks_for_it(counts: list[int], share: float, held: int, why: str, listener: Any):
    frames = [LabeledFrame(0, number, [Instance(np.ones((2, 2)))] * count) for number, count in enumerate(counts)]
    config = Config()
    config.data.val_fraction = share
    train, validation = _split(frames, [VideoSource((Path("clip.mp4"),))], None, config, listener)
    assert (len(train), len(validation)) == (len(frames) - held, held)
    said = sentence(listener, "validation")
    assert f"{held} of {len(frames)} labelled frames" in said if held else f"all {len(frames)} labelled frames are trained on" in said
    assert why in said


def test_validation_on_a_project_of_its_own(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    train, val = make_blobs("train"), make_blobs("val", labelled=[1, 2], seed=1)
    material = material_of(train.project, config=make_config(), listener=listener, val=val.project)
    assert len(material.frames) == 12 and places(material.val_frames) == {(1, 1), (1, 2)}
    assert [v.paths[0] for v in material.videos] == [train.video, val.video]
    assert material.unlabeled_videos == material.videos[:1]  # a validation video is no source of unlabelled frames
    assert str(val.project) in sentence(listener, "validation")


def test_validation_frames_of_the_same_video_are_not_unlabelled(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    train = make_blobs("train")
    val = make_blobs("val", labelled=[15, 16])
    shutil.copy(train.project, train.project.with_name("copy.slp"))
    val.video.unlink()
    _point_to(val.project, train.video)
    material = material_of(train.project, config=make_config(), listener=listener, val=val.project)
    drawn = {i for _ in range(50) for i in material.pool.draw(np.random.default_rng(_), 8)[0]}
    assert len(material.pool) == 6 and drawn == {12, 13, 14, 17, 18, 19}


def _point_to(project: Path, video: Path) -> None:
    import sleap_io as sio

    labels = sio.load_slp(str(project), open_videos=False)
    labels.replace_filenames(new_filenames=[str(video)])
    sio.save_slp(labels, str(project), embed=False, verbose=False)


def test_the_same_images_in_another_sequence_are_the_same_frames(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    """A folder of images, of which a validation project holds some, in a sequence of its own."""
    import sleap_io as sio

    train, val = make_blobs("train", images=True), make_blobs("val", images=True, labelled=[0, 1, 2])
    paths = [str(train.video / f"img{number:03}.png") for number in (15, 16, 3)]
    labels = sio.load_slp(str(val.project), open_videos=False)
    labels.videos[0].filename = paths
    labels.videos[0].backend_metadata |= {"filename": paths[0], "filenames": paths}
    sio.save_slp(labels, str(val.project), embed=False, verbose=False)
    material = material_of(train.project, config=make_config(), listener=listener, val=val.project)
    assert len(material.pool) == 6 and material.pool.labelled == [{*range(12), 15, 16}]
    assert sentence(listener, "1 of the 3 validation frames are trained on too")


def test_a_video_by_another_name_is_the_same_video(make_blobs: Any, make_config: Callable[..., Config], listener: Any, tmp_path: Path):
    train, val = make_blobs("train"), make_blobs("val", labelled=[3, 15, 16])
    (tmp_path / "link.mp4").symlink_to(train.video)
    _point_to(val.project, tmp_path / "link.mp4")
    material = material_of(train.project, config=make_config(), listener=listener, val=val.project)
    assert len(material.pool) == 6 and material.pool.labelled == [{*range(12), 15, 16}]
    assert sentence(listener, "1 of the 3 validation frames are trained on too")
    material = material_of(train.project, config=make_config(), listener=listener, extra=[train.video, tmp_path / "link.mp4"])
    assert len(material.unlabeled_videos) == 1 and len(material.pool) == 8


def test_frames_held_out_before_stay_held_out(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    """Also with more labels, another seed, another project before it, and videos in another folder."""
    before, after, other = make_blobs("clip"), make_blobs("more", labelled=range(16)), make_blobs("other", seed=1)
    material = material_of(before.project, config=make_config(data__val_fraction=0.25), listener=listener)
    held = set(frame_names(material.val_frames, material.videos))
    (before.video.parent / "moved").mkdir()
    _point_to(after.project, before.video.rename(before.video.parent / "moved" / "clip.mp4"))
    config = make_config(data__val_fraction=0.25, train__seed=5)
    name_sources(config, [other.project, after.project], None, None, None, keep=True)
    again = prepare(config, listener, held)
    assert places(again.val_frames) == {(1, f.index) for f in material.val_frames} and len(again.frames) == 12 + 13
    assert not places(again.frames) & places(again.val_frames)
    assert prepare(config, listener, set()).val_frames == []
    with pytest.raises(FormatError, match=r"more\.slp: the run to --resume validated on other frames; name the project that it began with"):
        prepare(config, listener, {("nowhere", "else.mp4", "", 0)})


def test_another_skeleton_is_refused_for_validation(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    train, other = make_blobs("train"), make_blobs("other", keypoints=("head", "neck", "tail"))
    with pytest.raises(FormatError, match=r"other\.slp: its keypoints neck are not among those.*head, middle, tail\); validate on"):
        material_of(train.project, config=make_config(), listener=listener, val=other.project)


def test_keypoints_of_several_projects_are_united_by_name(
    make_blobs: Any, make_config: Callable[..., Config], listener: Any, tmp_path: Path
):
    train, other = make_blobs("train"), make_blobs("other", keypoints=("tail", "neck"), labelled=[3, 4], seed=2)
    material = material_of(train.project, other.project, config=make_config(), listener=listener, val=other.project)
    assert material.skeleton.keypoints == ("head", "middle", "tail", "neck")
    assert [source.keypoints for source in material.sources] == [[0, 1, 2], [2, 3]]
    labelled = material.frames[-1].instances[0].labelled
    assert labelled.tolist() == [False, False, True, True]
    assert material.val_frames[0].instances[0].labelled.tolist() == [False, False, True, True]
    assert any("other.slp has no head, middle: learnt from the other projects" in text for text in listener.alarms)
    table = tmp_path / "aliases.csv"
    table.write_text("middle,neck,thorax\n")
    united = material_of(train.project, other.project, config=make_config(data__aliases=str(table)), listener=listener)
    assert united.skeleton.keypoints == ("head", "middle", "tail") and united.sources[1].keypoints == [2, 1]


def test_each_project_says_for_itself_whether_its_labels_are_partial(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    one, all_of_them = make_blobs("one", keypoints=("tail",)), make_blobs("all")
    material = material_of(one.project, all_of_them.project, config=make_config(), listener=listener)
    assert [source.partial for source in material.sources] == [False, False]  # a project of one keypoint has no more to label


def test_several_projects_are_one(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    first, second = make_blobs("first", labelled=[0, 1]), make_blobs("second", labelled=[4, 5, 6], seed=2)
    material = material_of(first.project, second.project, config=make_config(), listener=listener)
    assert places(material.frames) == {(0, 0), (0, 1), (1, 4), (1, 5), (1, 6)}
    assert np.allclose(material.frames[3].instances[0].points, second.truth[5][0])
    assert len(material.pool) == 18 + 17 and len(material.unlabeled_videos) == 2
    assert "7 animals in 5 frames" in listener.sentences[0]


def test_one_video_in_two_projects(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    first, second = make_blobs("first", labelled=[0, 1]), make_blobs("second", labelled=[4, 5, 6])
    _point_to(second.project, first.video)
    material = material_of(first.project, second.project, config=make_config(), listener=listener)
    assert len(material.unlabeled_videos) == 1 and len(material.pool) == 15  # labelled in one project is labelled


@pytest.mark.parametrize(("share", "kind"), [(0.0, "complete"), (0.5, "partial")])
def test_labels_are_complete_or_partial(share: float, kind: str, make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    def hide(frame: int, points: np.ndarray) -> np.ndarray:
        return points if frame >= 8 * share else np.where(np.arange(3)[:, None] == 0, points, np.nan)

    config = make_config()
    material = material_of(make_blobs(counts=[1] * 9, labelled=range(8), hide=hide).project, config=config, listener=listener)
    assert material.partial == (kind == "partial") and config.data.labels == kind
    said = sentence(listener, "labels: taken")
    assert f"taken as {kind}, since {share:.0%} of animals have one labelled keypoint" in said and "overrules" in said


def test_labels_as_asked_for(blobs: Any, make_config: Callable[..., Config], listener: Any):
    assert material_of(blobs.project, config=make_config(data__labels="partial"), listener=listener).partial
    assert not [text for text in listener.sentences if "taken as" in text]


def test_the_scale_brings_animals_to_the_wanted_length(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    project = make_blobs(sizes=[(560, 420)], counts=[1] * 4, labelled=range(4)).project
    config = make_config(data__animal_size=14.0)
    material = material_of(project, config=config, listener=listener)
    assert config.data.input_scale == pytest.approx(14 / 28, rel=0.1) and material.typical_length == pytest.approx(14, abs=0.1)
    assert sentence(listener, "input scale").endswith("(wanted: 14)")
    config = make_config(data__animal_size=99.0, data__max_scale=1.5)
    material_of(project, config=config, listener=listener)
    assert config.data.input_scale == config.data.max_scale  # small animals are enlarged only so far
    config = make_config(data__input_scale=0.25)
    material_of(project, config=config, listener=listener)
    assert config.data.input_scale == 0.25 and "input scale: 0.25, as asked for" in listener.sentences


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize(
    ("side", "length", "scale", "crop", "why"),
    [
        (640, 450, 120 / 450, 224, "(wanted: 72; 120, as frames would be only 102 long)"),
        (640, 210, 0.4, 320, "(wanted: 72; 84, as frames would be only 219 long)"),
        (384, 98, 72 / 98, 320, "(wanted: 72)"),
        (96, 60, 1.5, 192, "(wanted: 72; 90, as frames would be only 115 long)"),
        (96, 40, 1.5, 192, "(wanted: 72)"),  # enlarged as far as may be already
    ],
)
def test_where_animals_fill_the_picture_it_is_not_shrunk_to_nothing(
    side: int,
    length: float,
    scale: float,
    crop: int,
    why: str,
    images: bool,
    make_blobs: Any,
    make_config: Callable[..., Config],
    listener: Any,
):
    def grown(_: int, points: np.ndarray) -> np.ndarray:
        return (points - points[1]) * length / np.ptp(points, axis=0).max() + points[1]

    sizes = [(64, 48), (side, side * 3 // 4)] if images else [(side, side * 3 // 4)]  # the first image may be a small one
    project = make_blobs(sizes=sizes, counts=[1] * 2, labelled=range(2), hide=grown, images=images).project
    config = make_config(data__animal_size=72.0, data__max_scale=1.5, data__crop=0)
    material = material_of(project, config=config, listener=listener)
    assert config.data.input_scale == round(scale, 3) and config.data.crop == crop
    assert material.typical_length == pytest.approx(length * config.data.input_scale)
    assert sentence(listener, "input scale").endswith(why)
    assert ("the largest frame is only" in sentence(listener, "training crops")) == (side != 384)


def one_keypoint(frame: int, points: np.ndarray) -> np.ndarray:
    return np.where(np.arange(3)[:, None] == 0, points, np.nan) if frame < 4 else points


def test_what_was_chosen_for_one_project_is_chosen_anew_for_another(
    make_blobs: Any, make_config: Callable[..., Config], listener: Any, tmp_path: Path
):
    """Animals of another size would be learnt at the wrong scale. A run that is repeated on its own projects is the same run."""
    first, other = make_blobs("first", hide=one_keypoint), make_blobs("other", hide=lambda _, points: 2 * points)
    settings: dict[str, Any] = {"data__crop": 0, "data__animal_size": 112.0, "data__max_scale": 9.0, "data__val_fraction": 0.0}
    config = make_config(**settings)
    material_of(first.project, config=config, listener=listener)
    assert config.data.labels == "partial" and config.loss.keypoint_anchors and config.data.input_scale == pytest.approx(4, abs=0.2)
    write_config(config, tmp_path / "config.yaml")
    again = read_config(tmp_path / "config.yaml")
    name_sources(again, None, None, None, None, keep=False)
    prepare(again, listener)
    assert again == config and "as chosen before" in listener.sentences[-2]
    fresh = make_config(**settings)
    material_of(other.project, config=fresh, listener=listener)
    moved = read_config(tmp_path / "config.yaml")
    moved.data.aliases = moved.data.category = "of the other project"
    material_of(other.project, config=moved, listener=listener)
    assert moved == fresh and moved.data.input_scale == pytest.approx(2, abs=0.2) and not moved.loss.keypoint_anchors
    asked = read_config(tmp_path / "config.yaml")
    set_value(asked, "data.labels", "partial")  # as it was, but now somebody asks for it
    asked.data.input_scale = 1.75
    material_of(other.project, config=asked, listener=listener)
    assert (asked.data.labels, asked.data.input_scale, asked.loss.keypoint_anchors) == ("partial", 1.75, True)


def test_each_project_keeps_its_own_kind_of_labels_when_a_run_is_repeated(
    make_blobs: Any, make_config: Callable[..., Config], listener: Any
):
    partial, complete = make_blobs("partial", hide=one_keypoint), make_blobs("complete", seed=1)
    config = make_config(data__val_fraction=0.0)
    for material in (material_of(partial.project, complete.project, config=config, listener=listener), prepare(config, listener)):
        assert [source.partial for source in material.sources] == [True, False]


def test_left_and_right_are_paired_by_name_where_nobody_says_so(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    """As in DeepLabCut: without pairs, mirrored crops would teach that the left ear is the right one."""
    project = make_blobs(keypoints=("left ear", "nose", "right ear")).project
    material = material_of(project, config=make_config(), listener=listener)
    assert material.skeleton.symmetries == ((0, 2),) and material.skeleton.mirrored == [2, 1, 0]
    assert "left ear and right ear" in sentence(listener, "left and right, by their names")


def test_symmetries_that_are_given_stay(make_project: Any, make_config: Callable[..., Config], listener: Any):
    project = make_project(keypoints=("left ear", "right ear", "nose"))  # which pairs the last two
    assert material_of(project, config=make_config(), listener=listener).skeleton.symmetries == ((1, 2),)
    assert not [text for text in listener.sentences if text.startswith("left and right")]


def test_animals_with_all_keypoints_say_the_size():
    whole, pair = np.array([(0.0, 0), (50, 0), (75, 0), (100, 0)]), np.array([(0.0, 0), (25, 0), (np.nan, np.nan), (np.nan, np.nan)])
    every = [0, 1, 2, 3]
    assert set(complete_lengths([(Instance(whole), every)] * 6 + [(Instance(pair), every)] * 30)) == {100}
    assert set(complete_lengths([(Instance(pair), every)] * 30)) == {25}
    assert set(complete_lengths([(Instance(whole), every)] * 3 + [(Instance(pair), every)] * 30)) == {100, 25}  # three are too few
    assert len(complete_lengths([(Instance(pair), [0, 1])] * 30 + [(Instance(whole), every)] * 10)) == 40  # each has all of its project


def test_a_project_of_one_animal_gets_one(make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any):
    project = read_project(make_blobs(counts=[1] * 20).project)
    write_project(tmp_path / "dlc", project)
    config = make_config()
    material_of(tmp_path / "dlc" / "config.yaml", config=config, listener=listener)
    assert config.predict.max_animals == 1 and "one in a frame" in sentence(listener, "animals: ")
    config = make_config(predict__max_animals=3)
    material_of(tmp_path / "dlc" / "config.yaml", config=config, listener=listener)
    assert config.predict.max_animals == 3


def test_names_of_animals_are_said_not_to_be_learnt(blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any):
    material_of(blobs.project, config=make_config(), listener=listener)
    assert not any("names of animals" in text for text in listener.sentences)
    labels = read_project(blobs.project)
    frames = [replace(f, instances=[replace(i, track="anna") for i in f.instances[:1]]) for f in labels.frames]
    write_project(tmp_path / "named.slp", replace(labels, frames=frames))
    material_of(tmp_path / "named.slp", config=make_config(), listener=listener)
    assert "smp-predict --track numbers animals" in sentence(listener, "names of animals (tracks, individuals) are not learnt")


def test_one_keypoint_says_no_size(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    config = make_config()
    material = material_of(make_blobs(keypoints=["head"]).project, config=config, listener=listener)
    assert config.data.input_scale == 1 and material.typical_length == config.data.animal_size and not material.partial
    assert "no animal has two labelled keypoints" in sentence(listener, "input scale")


def test_unlabelled_frames_of_the_project(blobs: Any, make_config: Callable[..., Config], listener: Any):
    material = material_of(blobs.project, config=make_config(data__val_fraction=0.25), listener=listener)
    drawn = {i for _ in range(50) for i in material.pool.draw(np.random.default_rng(_), 8)[0]}
    assert drawn == set(range(12, 20))  # neither labelled nor held out
    assert sentence(listener, "unlabelled frames") == "unlabelled frames: 8 in 1 video"
    config = make_config(data__unlabeled_frames="10-13,18")
    assert len(material_of(blobs.project, config=config, listener=listener).pool) == 3


def test_unlabelled_frames_of_videos_named(blobs: Any, make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    extra, images = make_blobs("extra", seed=1), make_blobs("pictures", images=True, counts=[1] * 5, labelled=[0])
    material = material_of(blobs.project, config=make_config(), listener=listener, extra=[extra.video, images.video])
    names = [v.paths[0].name for v in material.unlabeled_videos]
    assert len(material.pool) == 25 + 8 and names == ["extra.mp4", "img000.png", "blobs.mp4"]  # the project's own stay
    material = material_of(blobs.project, config=make_config(), listener=listener, extra=[blobs.video])
    assert len(material.pool) == 8  # named, but it is the project's own: its labelled frames stay out


def test_a_package_uses_the_video_it_was_made_from(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    package = make_blobs(embed=True, labelled=[2, 5, 7])
    material = material_of(package.project, config=make_config(), listener=listener)
    assert material.videos[0].kind == "embedded" and material.unlabeled_videos[0].paths == (package.video,)
    drawn = {i for _ in range(99) for i in material.pool.draw(np.random.default_rng(_), 8)[0]}
    assert drawn == set(range(20)) - {2, 5, 7}


def test_a_package_alone_has_labelled_frames_only(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    package = make_blobs(embed=True)
    package.video.unlink()
    material = material_of(package.project, config=make_config(), listener=listener)
    assert len(material.pool) == 0 and len(material.frames) == 12
    assert "--unlabeled VIDEO" in sentence(listener, "unlabelled frames: of ")
    (alarm,) = listener.alarms
    assert "SemiMultiPose-labeled" in alarm


def test_a_package_alone_teaches_by_its_images_without_labels(
    make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any
):
    package = make_blobs(embed=True, labelled=[2, 5, 7, 11, 13])
    package.video.unlink()
    labels = read_project(package.project)
    fewer = replace(labels, frames=[f for f in labels.frames if f.index in (5, 11)])
    write_project(tmp_path / "fewer.slp", fewer)
    material = material_of(tmp_path / "fewer.slp", config=make_config(), listener=listener)
    assert len(material.pool) == 3 and len(material.frames) == 2
    numbers = {i for seed in range(30) for i in material.pool.draw(np.random.default_rng(seed), 2)[0]}
    assert numbers == {2, 7, 13}
    images = FrameReader(material.unlabeled_videos, 1.0).get_many(0, sorted(numbers))
    whole = FrameReader(labels.videos, 1.0)
    assert all(torch.equal(image, whole.get(0, number)[0]) for image, number in zip(images, sorted(numbers), strict=True))
    held = material_of(tmp_path / "fewer.slp", config=make_config(), listener=listener, val=package.project)
    assert len(held.pool) == 0  # all of its other images are validation frames


@pytest.mark.parametrize("first", [True, False])
def test_a_package_lists_videos_of_which_it_holds_no_image(
    make_blobs: Any, make_config: Callable[..., Config], tmp_path: Path, listener: Any, first: bool
):
    import sleap_io as sio

    labelled, other = make_blobs("labelled"), make_blobs("other", seed=1)
    labels, video = sio.load_slp(str(labelled.project), open_videos=True), sio.Video.from_filename(str(other.video))
    labels.videos = [video, *labels.videos] if first else [*labels.videos, video]
    labels.suggestions = [sio.SuggestionFrame(video=labels.videos[int(first)], frame_idx=15)]
    labels.save(str(tmp_path / "both.pkg.slp"), embed="user+suggestions", verbose=False)
    labelled.video.unlink()
    other.video.unlink()
    check([tmp_path / "both.pkg.slp"], config=make_config(), out=tmp_path / "run", reporter=listener)
    assert "; 2 videos it was made from were not found (name them with" in sentence(listener, "unlabelled frames: of ")
    assert "unlabelled frames: 1 in 1 video" in listener.sentences and listener.alarms == []


def test_validation_frames_are_judged_by_their_own_labels(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    complete, partial = make_blobs("complete"), make_blobs("partial", hide=one_keypoint)
    for train, val in ((complete, partial), (partial, complete)):
        material = material_of(train.project, config=make_config(), listener=listener, val=val.project)
        assert (material.partial, material.val_partial) == (train is partial, val is partial)
    material = material_of(partial.project, config=make_config(data__labels="partial"), listener=listener, val=complete.project)
    assert material.val_partial, "as asked for"


def test_a_package_whose_video_has_moved_is_named(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    package = make_blobs(embed=True)
    moved = package.video.rename(package.video.with_name("moved.mp4"))
    material = material_of(package.project, config=make_config(), listener=listener, extra=[moved])
    assert len(material.pool) > 0 and listener.alarms == []


def test_no_unlabelled_frames_is_said(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    project = make_blobs(images=True, counts=[1] * 4, labelled=range(4)).project
    assert len(material_of(project, config=make_config(), listener=listener).pool) == 0
    (alarm,) = listener.alarms
    assert "no unlabelled frames" in alarm and "SemiMultiPose-labeled" in alarm and "--unlabeled VIDEO" in alarm
    listener.alarms.clear()
    material_of(project, config=make_config(loss__beta=0.0, loss__agreement=0.0), listener=listener)
    assert listener.alarms == []  # none were wanted


def test_no_labels_is_bad_input(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    for labelled in ([], [0, 1]):
        project = make_blobs(f"none{len(labelled)}", labelled=labelled, hide=lambda *_: None).project
        with pytest.raises(FormatError, match=r"none\d\.slp: no animal is labelled; label some frames"):
            material_of(project, config=make_config(), listener=listener)


def test_a_label_past_the_end_of_the_video(make_blobs: Any, make_config: Callable[..., Config], listener: Any, tmp_path: Path):
    long, short = make_blobs("long"), make_blobs("short", counts=[1] * 6, labelled=[0])
    _point_to(long.project, short.video)
    with pytest.raises(FormatError, match=r"long\.slp: frame 11 .*short\.mp4.*6 frames.*--video-root"):
        material_of(long.project, config=make_config(), listener=listener)
    with pytest.raises(FormatError, match=r"long\.slp: frame 11"):
        material_of(make_blobs("fine").project, config=make_config(), listener=listener, val=long.project)


def _state(project: Path, **meta: Any) -> None:
    """Let the project say this of its video."""
    import sleap_io as sio

    labels = sio.load_slp(str(project), open_videos=False)
    labels.videos[0].backend_metadata |= meta
    sio.save_slp(labels, str(project), embed=False, verbose=False)


@pytest.mark.parametrize("images", [False, True])
def test_a_video_of_another_size_than_the_project_says(images: bool, make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    blobs = make_blobs("resized", sizes=[(128, 96)], images=images)
    _state(blobs.project, shape=[20, 48, 64, 3])
    material_of(make_blobs("fine").project, config=make_config(), listener=listener, val=blobs.project)
    (warning,) = listener.alarms
    name = blobs.video / "img000.png" if images else blobs.video
    assert warning.startswith(f"{blobs.project}: {name} is 128 x 96 pixels, but 64 x 48 in the project, so labels may lie beside")
    assert "--video-root" in warning
    check([blobs.project], config=make_config(), out=blobs.project.parent / "run", reporter=listener)
    assert (
        listener.alarms[1] == warning
        and "is 128 x 96 pixels, but 64 x 48 in the project" in (blobs.project.parent / "run/check.html").read_text()
    )


@pytest.mark.parametrize(
    "shape",
    [[20, 96, 128, 3], [20, 128, 96, 1], [1, 96, 128, 3], None, [0, 0, 0, 3], [20, None, None, 1], [20, 3, 48, 64], [48, 64, 3], "20x48"],
)
def test_no_size_is_warned_of_that_is_right_or_unknown(shape: Any, make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    """A video that is turned on reading may be stated either way."""
    blobs = make_blobs(sizes=[(128, 96)])
    _state(blobs.project, shape=shape)
    material_of(blobs.project, config=make_config(), listener=listener)
    assert listener.alarms == []


def test_a_package_is_of_the_size_of_its_own_images(make_blobs: Any, make_config: Callable[..., Config], listener: Any):
    package = make_blobs("packed", sizes=[(128, 96)], embed=True)
    shutil.copy(make_blobs("other").video, package.video)
    material_of(package.project, config=make_config(), listener=listener)
    assert listener.alarms == []


@pytest.mark.parametrize(
    ("stated", "warned"),
    [
        ({"width": 128, "height": 96}, False),
        ({"width": 96.0, "height": 128.0}, False),
        ({"width": 64, "height": 48}, True),
        ({"width": 0, "height": 0}, False),
        ({"width": None, "height": "96"}, False),
        ({}, False),
    ],
)
def test_images_of_another_size_than_their_labels_say(
    stated: dict[str, Any], warned: bool, make_blobs: Any, make_config: Callable[..., Config], listener: Any
):
    blobs = make_blobs(sizes=[(128, 96)], images=True)
    labels = blobs.project.with_suffix(".json")
    write_project(labels, read_project(blobs.project))
    content = json.loads(labels.read_text())
    for number, image in enumerate(content["images"]):
        if number:  # the first one is as it says: the labelled ones count
            del image["width"], image["height"]
            image |= stated
    labels.write_text(json.dumps(content))
    material_of(labels, config=make_config(), listener=listener)
    start = f"{labels}: {blobs.video / 'img011.png'} is 128 x 96 pixels, but 64 x 48 in the project"
    assert [text[: len(start)] for text in listener.alarms] == [start] * warned


def test_a_run_remembers_its_sources_and_another_project_brings_its_own(tmp_path: Path):
    config = Config()
    data = config.data
    first, second, val, video = (tmp_path / name for name in ("a.slp", "b.slp", "v.slp", "u.mp4"))
    name_sources(config, [first], val, tmp_path, [video], keep=False)
    name_sources(config, None, None, None, None, keep=True)
    assert (data.projects, data.val, data.unlabeled, data.video_root) == ((str(first),), str(val), (str(video),), str(tmp_path))
    name_sources(config, [second], None, None, None, keep=True)  # resumed, the project was moved
    assert (data.projects, data.val) == ((str(second),), str(val))
    name_sources(config, [first], None, None, None, keep=False)  # another run with the same settings
    assert (data.projects, data.val, data.unlabeled, data.video_root) == ((str(first),), "", (), "")

"""Defects planted in labels are found and named; labels without them are left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters import Instance, LabeledFrame, Labels, Skeleton, VideoSource, read_project
from smp_plugin import diagnosis
from smp_plugin.diagnosis import Finding, animals_twice, certain, likely, thumbnail

SKELETON = Skeleton(("nose", "left ear", "right ear", "back", "tail"), symmetries=((1, 2),))
MOUSE = np.array([[0.0, -40], [-12, -25], [12, -25], [0, 0], [0, 40]])
VIDEO = VideoSource((Path("/videos/nest.mp4"),))
SIZE = (480, 640)


def turned(rng: np.random.Generator, at: tuple[float, float], shape: np.ndarray = MOUSE) -> np.ndarray:
    """The mouse somewhere near, turned, its points a little off."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points: np.ndarray = shape @ turn.T * rng.uniform(0.9, 1.1) + at + rng.uniform(-30, 30, 2) + rng.normal(0, 1.5, shape.shape)
    return points


def project(frames: int = 20, seed: int = 0, first: int = 0) -> Labels:
    """Two mice in every tenth frame, nothing wrong."""
    rng = np.random.default_rng(seed)
    places = ((150.0, 240.0), (450.0, 240.0))
    return Labels(SKELETON, [VIDEO], [LabeledFrame(0, first + 10 * n, [Instance(turned(rng, p)) for p in places]) for n in range(frames)])


def judged(labels: Labels, scale: float = 0.9, crop: int = 320, validation: Labels | None = None) -> list[Finding]:
    validation = validation or Labels(labels.skeleton, labels.videos, [])
    return certain(labels, validation, {(f.video, f.index): SIZE for f in labels.frames + validation.frames}, scale, crop, 8)


def suspected(labels: Labels, validation: Labels | None = None, pictures: dict[tuple[int, int], np.ndarray] | None = None) -> list[Finding]:
    """Of frames that look different, unless pictures are given."""
    validation = validation or Labels(labels.skeleton, labels.videos)
    if pictures is None:
        rng = np.random.default_rng(9)
        pictures = {(f.video, f.index): noise(rng) for f in labels.frames + validation.frames}
    return likely(labels, validation, {place: thumbnail(picture) for place, picture in pictures.items()})


def noise(rng: np.random.Generator) -> np.ndarray:
    """A picture of coarse blocks."""
    return rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(40, axis=0).repeat(40, axis=1)


def move(labels: Labels, frame: int, animal: int, points: np.ndarray) -> None:
    labels.frames[frame].instances[animal] = Instance(points)


def points_of(labels: Labels, frame: int, animal: int = 0) -> np.ndarray:
    return labels.frames[frame].instances[animal].points.copy()


# --- what labels prove ---


def plant_frame_twice(labels: Labels) -> None:
    labels.frames.append(LabeledFrame(0, 30, [Instance(points_of(labels, 3))]))


def plant_animal_twice(labels: Labels) -> None:
    labels.frames[4].instances.append(Instance(points_of(labels, 4, 1) + 0.7))


def plant_point_on_an_animal(labels: Labels) -> None:
    labels.frames[4].instances.append(Instance(np.where(np.arange(5)[:, None] == 2, points_of(labels, 4), np.nan)))


def plant_outside(labels: Labels) -> None:
    points = points_of(labels, 5)
    points[4] = (-5, 240)
    move(labels, 5, 0, points)


def plant_above(labels: Labels) -> None:
    points = points_of(labels, 5)
    points[0, 1] = -3
    move(labels, 5, 0, points)


def plant_together(labels: Labels) -> None:
    move(labels, 6, 1, np.full((5, 2), 77.0))


def plant_never(labels: Labels) -> None:
    for frame in labels.frames:
        for animal in frame.instances:
            animal.points[4] = np.nan


def plant_once(labels: Labels) -> None:
    for frame in labels.frames[1:]:
        for animal in frame.instances:
            animal.points[4] = np.nan


def plant_large(labels: Labels) -> None:
    move(labels, 7, 0, MOUSE * 5 + (320, 240))


def plant_small(labels: Labels) -> None:
    move(labels, 8, 0, MOUSE * 0.08 + (320, 240))


CERTAIN: list[tuple[Callable[[Labels], None], str]] = [
    (plant_frame_twice, r"^1 frame labelled more than once, .*: nest.mp4, frame 30; keep one\.$"),
    (plant_animal_twice, r"^1 animal labelled twice in one frame: nest.mp4, frame 40; delete one of the two\.$"),
    (plant_point_on_an_animal, r"^1 animal labelled twice in one frame: nest.mp4, frame 40"),
    (plant_outside, r"^1 point lies outside of the picture \(tail\): nest.mp4, frame 50; move or delete .* --video-root"),
    (plant_above, r"^1 point lies outside of the picture \(nose\): nest.mp4, frame 50"),
    (plant_together, r"^1 animal with all points at one place: nest.mp4, frame 60; place the points anew"),
    (plant_never, r"^keypoints never labelled: tail: label more of them or remove them"),
    (plant_once, r"^keypoints labelled in a single frame: tail: label"),
    (plant_large, r"^1 animal larger than the training crop of 320 input pixels \(up to 360\): nest.mp4, frame 70; .*data.crop=480"),
    (plant_small, r"^1 animal smaller than 8 input pixels, .*: nest.mp4, frame 80; raise data.input_scale \(0.9 here\)"),
]


def test_labels_without_a_defect_are_left_alone():
    assert judged(project()) == [] and suspected(project(), project(seed=1, first=5)) == []


@pytest.mark.parametrize(("plant", "sentence"), CERTAIN, ids=[plant.__name__ for plant, _ in CERTAIN])
def test_what_labels_prove(plant: Callable[[Labels], None], sentence: str):
    labels = project()
    plant(labels)
    (finding,) = judged(labels)
    assert re.search(sentence, finding.sentence), finding.sentence


def test_one_frame_under_two_names(tmp_path: Path):
    """Extracted as an image, and labelled in the video itself."""
    labels = project(4)
    image = VideoSource((tmp_path / "img0020.png",), original=VIDEO)
    twice = Labels(SKELETON, [VIDEO, image], [*labels.frames, LabeledFrame(1, 0, [Instance(MOUSE + 100)])])
    assert [f.sentence.split(",")[0] for f in judged(twice)] == ["1 frame labelled more than once"]
    other = replace(image, paths=(tmp_path / "img0021.png",))
    assert judged(Labels(SKELETON, [VIDEO, other], twice.frames)) == []
    # Trained and validated on flatters, as is said elsewhere, but no animal is background of another entry.
    alone = Labels(SKELETON, twice.videos, labels.frames)
    assert judged(alone, validation=alone) == []
    assert [f.sentence.split(",")[0] for f in judged(alone, validation=twice)] == ["1 frame labelled more than once"]


def test_animals_that_touch_are_two():
    labels = project()
    labels.frames[2].instances.append(Instance(points_of(labels, 2) + (8, 0)))
    labels.frames[2].instances.append(Instance(np.where(np.arange(5)[:, None] == 4, points_of(labels, 2) + 2, np.nan)))
    assert judged(labels) == []


def test_of_a_crowd_every_pair_is_compared_and_every_animal_measured_once(monkeypatch: pytest.MonkeyPatch):
    rng, measured = np.random.default_rng(3), []
    labels = project(1)
    labels.frames[0].instances = [Instance(np.where(rng.random((5, 1)) < 0.5, rng.integers(0, 3, (5, 2)), np.nan)) for _ in range(40)]

    def length(pose: np.ndarray) -> float:
        measured.append(1)
        return 0.0

    monkeypatch.setattr(diagnosis, "_length", length)
    found = animals_twice(labels)
    poses = [animal.points for animal in labels.frames[0].instances]
    gaps = {(a, b): np.linalg.norm(poses[a] - poses[b], axis=1) for a in range(40) for b in range(a + 1, 40)}
    wanted = [pair for pair, gap in gaps.items() if np.isfinite(gap).any() and np.nanmean(gap) <= 0.5]
    assert found is not None and [spot.animals for spot in found.spots] == wanted and len(measured) == 40


def test_points_on_the_border_are_inside_and_unknown_sizes_are_not_judged():
    labels = project()
    move(labels, 3, 0, points_of(labels, 3) * 0 + [[0, -0.5], [640, 479], [640, 480], [10, 480], [640.4, 9]])
    assert judged(labels, crop=1000) == []
    plant_outside(labels)
    assert certain(labels, project(0), {}, 0.9, 1000, 8) == []


def test_many_places_are_summed_up():
    labels = project()
    for frame in range(9):
        labels.frames[frame].instances.append(Instance(points_of(labels, frame)))
    (finding,) = judged(labels)
    assert finding.sentence.startswith(
        "9 animals labelled twice in one frame: nest.mp4, frame 0, nest.mp4, frame 10, nest.mp4, frame 20 and 6 more;"
    )
    assert len(finding.spots) == 9 and finding.spots[0].animals == (0, 2)


def test_names_of_any_letters():
    labels = replace(project(), skeleton=Skeleton(("{0}", "{count}", "%s", "{", "}")))
    plant_outside(labels)
    assert "({)" not in judged(labels)[0].sentence and "(})" in judged(labels)[0].sentence


# --- what a person judges ---


@pytest.mark.parametrize("axis", ["midline", "other pairs"])
def test_left_and_right_exchanged(axis: str):
    labels = project()
    if axis == "other pairs":  # an animal without a keypoint on its midline
        labels = replace(labels, skeleton=Skeleton(("eye L", "ear L", "ear R", "eye R", "tail")))
        shape = np.array([[-5.0, -40], [-12, -25], [12, -25], [5, -40], [0, 40]])
        rng = np.random.default_rng(3)
        for frame in labels.frames:
            frame.instances = [Instance(turned(rng, (150, 240), shape)), Instance(turned(rng, (450, 240), shape))]
    assert suspected(labels) == []
    for number in (3, 11):
        move(labels, number, 1, points_of(labels, number, 1)[[0, 2, 1, 3, 4]])
    (finding,) = suspected(labels)
    assert "are the other way round in 2 of 40 animals (5.0%) than in most: nest.mp4, frame" in finding.sentence
    assert {(spot.frame.index, spot.animals) for spot in finding.spots} == {(30, (1,)), (110, (1,))}


def test_animals_seen_from_both_sides_are_not_judged():
    labels = project()
    for frame in labels.frames[:9]:
        frame.instances = [Instance(i.points[[0, 2, 1, 3, 4]]) for i in frame.instances]
    assert suspected(labels) == []


def test_a_keypoint_far_off():
    labels = project()
    points = points_of(labels, 12)
    points[4] += 1.2 * (points[2] - points[1]) + 1.2 * (points[4] - points[3])  # the tail far behind, to one side
    move(labels, 12, 0, points)
    (finding,) = suspected(labels)
    assert finding.sentence.startswith("1 animal in a posture unlike the others (tail far from where")
    assert "may well be right" in finding.sentence and [(s.frame.index, s.animals) for s in finding.spots] == [(120, (0,))]


def test_partly_labelled_animals_are_no_outliers():
    labels, rng = project(), np.random.default_rng(4)
    for frame in labels.frames:
        for animal in frame.instances:
            animal.points[rng.random(5) < 0.5] = np.nan
    assert suspected(labels) == []


def test_poses_that_are_all_alike():
    labels = project()
    for n, frame in enumerate(labels.frames):
        frame.instances = [Instance(MOUSE + (100 + 7 * n, 200)), Instance(MOUSE + (300 + 7 * n, 200))]
    (finding,) = suspected(labels)
    assert finding.sentence.startswith("the 40 complete animals all have the same posture")


def test_few_validation_animals():
    (finding,) = suspected(project(), Labels(SKELETON, [VIDEO], project(4, seed=1, first=5).frames))
    assert finding.sentence.startswith("8 animals in 4 validation frames are few")


def test_validation_pictures_that_are_trained_on():
    training = project()
    held = VideoSource((Path("/videos/copy.mp4"),))
    labels = replace(training, videos=[VIDEO, held])
    validation = Labels(SKELETON, labels.videos, [replace(f, video=1) for f in project(seed=1).frames])
    rng = np.random.default_rng(5)
    pictures = {(f.video, f.index): noise(rng) for f in labels.frames + validation.frames}
    assert suspected(labels, validation, pictures) == []
    pictures[1, 40] = (pictures[0, 70].astype(int) + rng.integers(-6, 7, (480, 640, 3))).clip(0, 255).astype(np.uint8)  # compressed anew
    (finding,) = suspected(labels, validation, pictures)
    assert finding.sentence.startswith(
        "1 of 20 validation frames look the same as a training frame (the first as nest.mp4, frame 70): copy.mp4, frame 40;"
    )
    pictures[1, 40][200:260, 300:360] = 255 - pictures[1, 40][200:260, 300:360]  # the same nest, another animal
    assert suspected(labels, validation, pictures) == []


def test_a_recording_that_is_stuck():
    labels, rng = project(), np.random.default_rng(6)
    picture = noise(rng)
    pictures = {(0, f.index): picture for f in labels.frames}
    (finding,) = suspected(labels, None, pictures)
    assert finding.sentence.startswith("/videos/nest.mp4: all 20 labelled frames show the same picture")
    pictures[0, 190] = noise(rng)
    assert suspected(labels, None, pictures) == []


def test_real_labels(shared_data: Path):
    """About 9 % of the bees have their antennae exchanged, and one mouse its ears; apart from this nothing is proved or suspected."""
    bees = read_project(shared_data / "honeybee" / "train105.slp")
    found = suspected(bees)
    assert (
        certain(bees, Labels(bees.skeleton, bees.videos, []), {}, 0.541, 320, 8) == []
        and "LAnt and RAnt are the other way round in" in found[0].sentence
    )
    assert 0.05 < len(found[0].spots) / sum(len(f.instances) for f in bees.frames) < 0.12
    for name in ("flies/flies_train.slp", "flies/pair24/pair24_train.slp", "mice/mice_train.slp", "pups_partial/pups_train.slp"):
        labels = read_project(shared_data / name)
        assert certain(labels, Labels(labels.skeleton, labels.videos, []), {}, 0.7, 320, 8) == [], name

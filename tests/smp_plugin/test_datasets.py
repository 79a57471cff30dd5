"""Training crops: labels follow the image wherever augmentation moves it, and steps repeat exactly."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from converters.labels import Instance, LabeledFrame, PredictedInstance, Skeleton, VideoSource
from smp_plugin.config import Config
from smp_plugin.datasets import NEVER, Batch, LabelSource, StepRange, TrainingSteps, clip_animals, uncorrected
from smp_plugin.unlabeled import UnlabeledPool

SKELETON = Skeleton(("nose", "left", "right", "tail"), ((0, 3),), ((1, 2),))
ANIMAL = np.array([[0.0, -24.0], [-12.0, -4.0], [12.0, -4.0], [0.0, 24.0]])  # seen from above, nose up
N_FRAMES, N_LABELLED = 8, 4
FLOOR = 40


def draw(animals: list[np.ndarray], noise: int) -> np.ndarray:
    """uint8 (150, 200, 3): a bright blob at every keypoint on a dark, faintly textured floor."""
    ys, xs = np.mgrid[:150, :200]
    image = np.full((150, 200), float(FLOOR)) + np.random.default_rng(noise).uniform(-8, 8, (150, 200))
    for animal in animals:
        for x, y in animal:
            image = np.maximum(image, 240 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 2.5**2)))
    return np.repeat(image.astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoSource, list[LabeledFrame]]:
    """An image sequence of two animals a frame; the first four frames are labelled."""
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    frames, paths = [], []
    for index in range(N_FRAMES):
        animals = []
        for x in (55, 145):
            angle = rng.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            animals.append(ANIMAL @ turn.T + (x, 75) + rng.uniform(-10, 10, 2))
        paths.append(folder / f"frame{index}.png")
        Image.fromarray(draw(animals, index)).save(paths[-1])
        frames.append(LabeledFrame(0, index, [Instance(a) for a in animals]))
    return VideoSource(tuple(paths)), frames[:N_LABELLED]


def settings_for(**changes: object) -> Config:
    config = Config()
    config.data.crop, config.data.input_scale, config.data.animal_size = 128, 1.0, 48.0
    config.train.batch, config.train.unlabeled_batch = 3, 2
    config.augment.brightness = config.augment.contrast = 0.0
    for key, value in changes.items():
        section, _, name = key.partition("__")
        assert hasattr(getattr(config, section), name)
        setattr(getattr(config, section), name, value)
    return config


@pytest.fixture
def make_steps(video: tuple[VideoSource, list[LabeledFrame]]) -> Callable[..., TrainingSteps]:
    source, labelled = video

    def make(
        frames: list[LabeledFrame] | None = None,
        partial: bool = False,
        unlabeled_from: int = NEVER,
        rank: int = 0,
        world: int = 1,
        lanes: int = 1,
        **changes: object,
    ) -> TrainingSteps:
        pool = UnlabeledPool([N_FRAMES], [set(range(N_LABELLED))], None)
        labels = LabelSource(labelled if frames is None else frames, list(range(len(SKELETON))), partial)
        steps = TrainingSteps([labels], [source], SKELETON, settings_for(**changes), [source], pool, rank, world, lanes)
        steps.first_unlabeled_step.fill_(unlabeled_from)
        return steps

    return make


def assert_same(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        assert torch.equal(value.nan_to_num(-1e6), getattr(b, name).nan_to_num(-1e6)), name


def brightness_at(image: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """Brightest green value within a pixel of each point (P, 2)."""
    bright = torch.nn.functional.max_pool2d(image[1][None].float(), 3, stride=1, padding=1)[0].numpy()
    cells = points.round().astype(int)
    return bright[cells[:, 1], cells[:, 0]]


# --- labelled crops -----------------------------------------------------------------------------------------------------------------------


def test_a_step_is_the_same_whoever_makes_it_and_whenever(make_steps: Callable[..., TrainingSteps]) -> None:
    one, other = make_steps(unlabeled_from=0), make_steps(unlabeled_from=0)
    for step in (0, 7, 3, 120, 7):
        assert_same(one[step], pickle.loads(pickle.dumps(other))[step] if step == 3 else other[step])
    assert not torch.equal(one[0].images, one[1].images)
    assert not torch.equal(one[0].images, make_steps(train__seed=1)[0].images)


def test_batches_have_the_promised_shapes(make_steps: Callable[..., TrainingSteps]) -> None:
    steps = make_steps(unlabeled_from=5)
    before, after = steps[4], steps[5]
    for batch, unlabelled in ((before, 0), (after, 2)):
        animals = batch.keypoints.shape[1]
        assert batch.images.shape == (3, 3, 128, 128) and batch.images.dtype == torch.uint8
        assert batch.keypoints.shape == (3, animals, 4, 2) and batch.keypoints.dtype == torch.float32
        assert batch.weights.shape == (3, animals) and batch.weights.dtype == torch.float32
        assert batch.background.tolist() == [1.0] * 3
        assert batch.weak.shape == batch.strong.shape == (unlabelled, 3, 128, 128) and batch.weak.dtype == torch.uint8


@pytest.mark.parametrize("paste", [0.0, 1.0])
@pytest.mark.parametrize("input_scale", [1.0, 0.8])
def test_labels_follow_the_image_through_every_augmentation(
    make_steps: Callable[..., TrainingSteps], paste: float, input_scale: float
) -> None:
    steps = make_steps(augment__paste=paste, augment__paste_max=2, data__input_scale=input_scale)
    bright, dark, animals = [], [], 0
    for step in range(25):
        batch = steps[step]
        for image, keypoints in zip(batch.images, batch.keypoints.numpy(), strict=True):
            animals += int(np.isfinite(keypoints).all(axis=(1, 2)).sum())
            points = keypoints[np.isfinite(keypoints).all(axis=2)]
            inside = points[((points >= 4) & (points <= 123)).all(axis=1)]
            bright.append(brightness_at(image, inside))
            # Two directions off a keypoint there is floor (or another animal): a label half a blob off would be caught.
            off = inside + np.array([9.0, 0.0])
            dark.append(brightness_at(image, off[off[:, 0] <= 123]))
            # Left stays on the left of the axis from tail to nose, also in mirrored crops.
            for animal in keypoints[np.isfinite(keypoints).all(axis=(1, 2))]:
                axis, across = animal[0] - animal[3], animal[1] - animal[2]
                assert axis[0] * across[1] - axis[1] * across[0] < 0
    on, off_by = np.concatenate(bright), np.concatenate(dark)
    assert len(on) > 200 and (on > 130).all()
    assert np.median(off_by) < 90
    if paste:
        assert animals > 25 * 3 * 1.3


def test_animals_outside_of_the_crop_draw_no_pasted_ones(make_steps: Callable[..., TrainingSteps]) -> None:
    """Else half of the pasted animals would be left out, or pushed to the crop's edge."""
    steps = make_steps()
    outside = ANIMAL[None] + (64, 64 + 10 * 128)
    crop = torch.zeros(3, 128, 128)
    middles = np.array([steps._paste(np.random.default_rng(i), crop.clone(), outside, True)[1][1].mean(axis=0) for i in range(200)])
    assert abs((middles[:, 1] < 64).mean() - 0.5) < 0.12


def test_label_positions_are_right_to_a_fraction_of_a_pixel(make_steps: Callable[..., TrainingSteps]) -> None:
    steps = make_steps(augment__paste=0.0, data__input_scale=0.9)
    errors = []
    for step in range(10):
        batch = steps[step]
        for image, keypoints in zip(batch.images, batch.keypoints.numpy(), strict=True):
            for x, y in keypoints[np.isfinite(keypoints).all(axis=2)]:
                if 8 < x < 119 and 8 < y < 119:
                    column, row = round(float(x)), round(float(y))
                    patch = (image[1, row - 6 : row + 7, column - 6 : column + 7].double() - 1.6 * FLOOR).clamp(min=0)
                    steps_of = torch.arange(-6, 7)
                    found = ((patch.sum(0) * steps_of).sum() / patch.sum() + column, (patch.sum(1) * steps_of).sum() / patch.sum() + row)
                    errors.append([found[0].item() - x, found[1].item() - y])
    bias = np.mean(errors, axis=0)
    assert len(errors) > 60 and np.abs(bias).max() < 0.05 and np.median(np.abs(errors)) < 0.1


def test_every_labelled_frame_is_seen_once_an_epoch_by_all_processes_together(
    make_steps: Callable[..., TrainingSteps], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    ranks = [make_steps(rank=r, world=2, train__batch=2, augment__paste=0.0) for r in range(2)]
    for steps in ranks:
        original = steps.reader.get

        def get(video: int, index: int, original: Callable[[int, int], Any] = original) -> Any:
            seen.append(index)
            return original(video, index)

        monkeypatch.setattr(steps.reader, "get", get)
    for step in range(3):
        seen.clear()
        batches = [steps[step] for steps in ranks]
        assert sorted(seen) == list(range(N_LABELLED))
        assert not torch.equal(batches[0].images, batches[1].images)


def test_pasted_animals_cover_keypoints_which_become_unlabelled(make_steps: Callable[..., TrainingSteps]) -> None:
    steps = make_steps(augment__paste=1.0, augment__paste_max=3, augment__paste_overlap=0.5)
    plain = make_steps(augment__paste=0.0)
    hidden = added = 0
    for step in range(40):
        pasted, bare = steps[step], plain[step]
        for a, b in zip(pasted.keypoints.numpy(), bare.keypoints.numpy(), strict=True):
            known = np.isfinite(b).all(axis=2).sum(axis=1)
            left = np.array([np.isfinite(a[m]).all(axis=1).sum() if m < len(a) else 0 for m in range(len(b))])
            same = [m for m in range(min(len(a), len(b))) if known[m] and np.nanmax(np.abs(a[m] - b[m]), initial=0) < 1e-3]
            for m in same:
                hidden += int(left[m] < known[m])
            added += int(np.isfinite(a).any(axis=(1, 2)).sum() - (known > 0).sum())
    assert hidden > 3 and added > 40


def test_a_single_keypoint_is_never_covered_and_partial_frames_say_so(
    make_steps: Callable[..., TrainingSteps], video: tuple[VideoSource, list[LabeledFrame]]
) -> None:
    frames = []
    for frame in video[1]:
        points = frame.instances[0].points.copy()
        points[1:] = np.nan
        frames.append(LabeledFrame(0, frame.index, [Instance(points), frame.instances[1]], negative=frame.index == 3))
    steps = make_steps(frames, partial=True, augment__paste=1.0)
    backgrounds: set[float] = set()
    for step in range(20):
        batch = steps[step]
        backgrounds |= {round(b, 6) for b in batch.background.tolist()}
        for image, keypoints in zip(batch.images, batch.keypoints.numpy(), strict=True):
            single = keypoints[np.isfinite(keypoints).all(axis=2).sum(axis=1) == 1]
            points = single[np.isfinite(single).all(axis=2)]
            points = points[((points > 4) & (points < 123)).all(axis=1)]
            if len(points):
                assert brightness_at(image, points).min() > 100
    assert backgrounds == {round(Config().loss.partial_negative, 6), 1.0}  # a frame that a person declared complete keeps its background


def test_frames_without_animals_give_crops_without_animals(make_steps: Callable[..., TrainingSteps]) -> None:
    batch = make_steps([LabeledFrame(0, 0, negative=True)], partial=True)[0]
    assert batch.keypoints.shape == (3, 1, 4, 2) and batch.keypoints.isnan().all() and batch.weights.sum() == 0
    assert batch.background.tolist() == [1.0] * 3


def test_a_frame_that_a_person_calls_empty_is_background_also_where_a_model_saw_an_animal(make_steps: Callable[..., TrainingSteps]) -> None:
    for negative in (True, False):
        frame = LabeledFrame(0, 0, [], [PredictedInstance(ANIMAL + 60)], negative=negative)
        batches = [make_steps([frame])[i] for i in range(8)]
        assert any(batch.keypoints.isfinite().any() for batch in batches) != negative  # of weight 0: nothing is background around it


def test_an_animal_cut_off_by_the_crop_counts_nothing() -> None:
    inside, half, outside, middle_out = ANIMAL + 60, ANIMAL + (118, 60), ANIMAL + 300, ANIMAL + (60, 130)
    partly = np.where(np.arange(4)[:, None] == 0, ANIMAL + 60, np.nan)
    animals = np.stack([inside, half, outside, middle_out, partly, inside, np.full((4, 2), np.nan)])
    keypoints, weights = clip_animals(animals, np.array([1, 1, 1, 1, 1, 0.0, 1]), 128)
    assert weights.tolist() == [1, 1, 0, 1, 0]
    assert np.array_equal(keypoints, np.stack([inside, half, middle_out, partly, inside]), equal_nan=True)
    nothing, none = clip_animals(np.full((2, 4, 2), np.nan), np.ones(2), 128)
    assert nothing.shape == (0, 4, 2) and none.shape == (0,)


def test_predictions_that_nobody_corrected_are_neither_animal_nor_background(
    make_steps: Callable[..., TrainingSteps], video: tuple[VideoSource, list[LabeledFrame]]
) -> None:
    first, second = (i.points for i in video[1][0].instances)
    partly = np.where(np.arange(4)[:, None] == 0, first + 2, np.nan)
    nowhere = np.full((4, 2), np.nan)
    predicted = [PredictedInstance(p) for p in (partly, second, nowhere)]
    frame = LabeledFrame(0, 0, [Instance(first)], predicted)
    assert [p.tolist() for p in uncorrected(frame, 12.0)] == [second.tolist()]  # the first lies on a labelled animal
    assert len(uncorrected(frame, 1.0)) == 2
    ignoring = [make_steps([frame], augment__paste=0.0)[i] for i in range(4)]
    unused = [make_steps([frame], augment__paste=0.0, data__predicted="unused")[i] for i in range(4)]
    for with_it, without in zip(ignoring, unused, strict=True):
        assert torch.equal(with_it.images, without.images)
        assert with_it.weights.sum() == without.weights.sum()
    animals = sum(int(b.keypoints.isfinite().all(-1).any(-1).sum()) for b in ignoring)
    assert animals > sum(int(b.keypoints.isfinite().all(-1).any(-1).sum()) for b in unused)


@pytest.mark.parametrize("keypoints", [1, 4])
def test_in_boxes_of_animals_without_keypoints_nothing_is_background(video: tuple[VideoSource, list[LabeledFrame]], keypoints: int) -> None:
    """Wherever the crop lies: boxes are cut at its border."""
    source, labelled = video
    skeleton = Skeleton(SKELETON.keypoints[:keypoints])
    animal, middle = labelled[0].instances[0].points[:keypoints], labelled[0].instances[1].points.mean(axis=0)
    left, top, right, bottom = box = np.array([*(middle - 40), *(middle + 40)])
    frame = LabeledFrame(0, 0, [Instance(animal)], unposed=[box, box + 900])
    labels = LabelSource([frame], list(range(keypoints)), False)
    config = settings_for(augment__paste=0.0, augment__rotation=0.0, augment__scale=(1.0, 1.0), augment__flip=False, train__batch=1)
    steps = TrainingSteps([labels], [source], skeleton, config, [source], UnlabeledPool([N_FRAMES], [set()], None))
    seen = 0
    for batch in (steps[i] for i in range(40)):
        poses, weights = batch.keypoints[0].numpy(), batch.weights[0].numpy()
        stands, whole = poses[(weights == 0) & np.isfinite(poses).any(axis=(1, 2))], poses[weights > 0]
        if len(whole) and len(stands):
            seen += 1
            moved = whole[0, 0] - animal[0]
            ends = np.clip(np.array([[left, top], [right, bottom]]) + moved, 0, 127)
            if keypoints > 1:
                assert np.allclose(stands[0, :2], ends, atol=1e-3) and len(stands) == 1 and np.isnan(stands[0, 2:]).all()
            else:  # squares of a typical animal's length cover the box, and reach out of it by no more than that
                spots = np.stack(np.meshgrid(*np.linspace(ends[0], ends[1], 30).T), axis=-1).reshape(-1, 1, 2)
                assert (np.abs(spots - stands[:, 0]).max(axis=2).min(axis=1) <= steps.typical / 2 + 1e-3).all()
                assert ((stands[:, 0] >= ends[0] - 1e-3) & (stands[:, 0] <= ends[1] + 1e-3)).all()
    assert seen > 5


def test_every_project_gets_the_same_share_of_crops(video: tuple[VideoSource, list[LabeledFrame]]) -> None:
    source, labelled = video
    everything = LabelSource(labelled[:3], [0, 1, 2, 3], False)
    nose = np.where(np.arange(4)[:, None] == 0, labelled[3].instances[0].points, np.nan)
    lone = LabelSource([LabeledFrame(0, 3, [Instance(nose)])], [0], False)
    settings = settings_for(train__batch=4, augment__paste=0.0)
    steps = TrainingSteps([everything, lone], [source], SKELETON, settings, [source], UnlabeledPool([N_FRAMES], [set()], None))
    assert len(steps.donors) == 7  # an animal with all keypoints that its project has is complete
    assert steps[0].own.tolist() == [[True] * 4, [True, False, False, False]] * 2
    counts = torch.stack([steps[i].keypoints.isfinite().all(-1).sum(-1).amax(-1) for i in range(6)])
    assert set(counts[:, 1::2].unique().tolist()) <= {0, 1} and counts[:, ::2].max() == 4
    pasting = TrainingSteps(
        [lone], [source], SKELETON, settings_for(augment__paste=1.0), [source], UnlabeledPool([N_FRAMES], [set()], None)
    )
    assert max(int((pasting[i].keypoints[..., 0].isfinite()).sum(-1).max()) for i in range(4)) == 1


def test_pasted_animals_are_moved_onto_the_crop_where_labels_are_partial(make_steps: Callable[..., TrainingSteps]) -> None:
    def animals(partial: bool) -> int:
        steps = make_steps(partial=partial, augment__paste=1.0, augment__focus=0.0)
        return sum(int(steps[i].keypoints.isfinite().all(-1).any(-1).sum()) for i in range(20))

    assert animals(partial=True) > 1.2 * animals(partial=False)  # elsewhere one that sticks out is left out


def test_crops_of_partial_labels_are_laid_on_complete_animals(
    video: tuple[VideoSource, list[LabeledFrame]], make_steps: Callable[..., TrainingSteps]
) -> None:
    labelled = video[1]
    noses = [[Instance(np.where(np.arange(4)[:, None] == 0, i.points, np.nan)) for i in f.instances] for f in labelled]
    frames = [LabeledFrame(0, f.index, n) for f, n in zip(labelled, noses, strict=True)]
    frames[2].instances[1] = labelled[2].instances[1]

    def share(**changes: Any) -> float:
        steps = make_steps(frames, augment__paste=0.0, **changes)
        complete = torch.stack([steps[i].keypoints.isfinite().all(-1).all(-1).any(-1) for i in range(20)])
        return float(complete.float().mean())

    assert share(partial=True, augment__focus=1.0) == 1
    assert 0.4 < share(partial=True, augment__focus=0.5) < 0.9
    assert share(partial=True, augment__focus=0.0) < 0.4
    assert share(augment__focus=1.0) == share(augment__focus=0.0) < 0.4  # complete labels show every animal anyway


# --- unlabelled crops ---------------------------------------------------------------------------------------------------------------------


def test_weak_and_strong_views_show_the_same_place(make_steps: Callable[..., TrainingSteps]) -> None:
    steps = make_steps(unlabeled_from=0, augment__erase=0)
    for step in range(6):
        batch = steps[step]
        for weak, strong in zip(batch.weak.float().mean(dim=1), batch.strong.float().mean(dim=1), strict=True):
            scores = {}
            for dy, dx in ((0, 0), (3, 0), (-3, 0), (0, 3), (0, -3)):
                pair = torch.stack((weak[8:-8, 8:-8].flatten(), strong.roll((dy, dx), (0, 1))[8:-8, 8:-8].flatten()))
                scores[dy, dx] = torch.corrcoef(pair)[0, 1].item()
            assert scores[0, 0] > 0.6 and max(scores, key=lambda shift: scores[shift]) == (0, 0)
            assert not torch.equal(weak, strong)


# --- reading and loading ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_processes_give_the_same_batches_as_none(make_steps: Callable[..., TrainingSteps], method: str) -> None:
    lanes = 1 + (method == "fork")
    steps = make_steps(unlabeled_from=2, lanes=lanes)
    alone = [steps[i] for i in range(4, 7)]
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=StepRange(lambda: 4, 4, 7),
        num_workers=lanes,
        multiprocessing_context=method,
    )
    loaded = list(loader)
    assert len(loaded) == len(alone) == 3
    for a, b in zip(loaded, alone, strict=True):
        assert_same(a, b)


def test_the_sampler_goes_on_from_where_the_run_stands() -> None:
    step = 10
    sampler = StepRange(lambda: step, 3, 16)
    assert list(sampler) == [10, 11]  # to the next multiple of 3
    for step, left in ((12, [12, 13, 14]), (15, [15]), (16, [])):  # noqa: B007  # the sampler asks for it
        assert list(sampler) == left


@pytest.mark.parametrize(("device", "ahead"), [("cuda", True), ("mps", False)])
def test_an_apple_gpu_is_waited_for(device: str, ahead: bool):
    """It copies what may be something else by then."""

    class Sent:
        def to(self, _: torch.device, non_blocking: bool) -> bool:
            return non_blocking

    batch: Any = Batch(*[Sent()] * 8)  # type: ignore[arg-type]
    assert set(vars(batch.to(torch.device(device))).values()) == {ahead}

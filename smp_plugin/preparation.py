"""Before training: read the projects, hold frames out, and decide what ``auto`` stands for, each decision with its reason."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters import FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource, read_project
from converters.labels import Place, symmetric_pairs
from converters.mixing import moved, read_aliases, unite
from converters.supplement import supplemented
from converters.video import open_video, video_source
from smp_plugin.completeness import looks_partial
from smp_plugin.config import Config, DataConfig, choose, forget_projects, parse_ranges, was_chosen
from smp_plugin.datasets import LabelSource
from smp_plugin.progress import Reporter
from smp_plugin.unlabeled import UnlabeledPool

MIN_FRAMES_TO_SPLIT = 10  # with fewer labelled frames every one is needed for training, unless a share is asked for
SHARE = 0.1  # of the labelled frames that is held out where none is asked for, and twice as much where that has too few animals
FEW_VALIDATION = 10  # animals; fewer make AP a matter of luck
LEAST_FRAME = 256  # input pixels of the largest frame's longer side: of smaller ones little would be left where animals fill the picture
MOST_ENLARGED = 120  # input pixels to which the median animal is enlarged for that: from 128 on, a coarser level looks for it
FRAMES_A_CROP = 1.25  # sides of the largest frame in that of a crop, at most: the rest would be padding
OTHER_FRAMES = (  # a best model is one by the same frames, and others may have been trained on
    "the run to --resume validated on other frames; name the project that it began with, or train anew in another folder"
)

Name = tuple[str, str, str, int]  # folder, file, HDF5 group in a package or "", number there (0 of an image)


@dataclass
class Material:
    """What a run learns from. Frames of ``sources`` and ``val_frames`` index into ``videos``, ``pool`` into ``unlabeled_videos``."""

    skeleton: Skeleton
    videos: list[VideoSource]
    sources: list[LabelSource]
    val_frames: list[LabeledFrame]
    val_partial: bool  # may animals without a label be expected in them? Where there are none, in what is trained on
    typical_length: float  # median complete animal, input pixels
    unlabeled_videos: list[VideoSource]
    pool: UnlabeledPool

    @property
    def frames(self) -> list[LabeledFrame]:
        """The labelled frames of all projects that are trained on."""
        return [frame for source in self.sources for frame in source.frames]

    @property
    def labels(self) -> Labels:
        """What is trained and validated on."""
        return Labels(self.skeleton, self.videos, self.frames + self.val_frames)

    @property
    def training(self) -> Labels:
        """What is trained on."""
        return Labels(self.skeleton, self.videos, self.frames)

    @property
    def validation(self) -> Labels:
        """What is validated on."""
        return Labels(self.skeleton, self.videos, self.val_frames)

    @property
    def partial(self) -> bool:
        """Are animals without a label to be expected anywhere?"""
        return any(source.partial for source in self.sources)


def name_sources(
    config: Config, projects: list[Path] | None, val: Path | None, video_root: Path | None, unlabeled: list[Path] | None, keep: bool
) -> None:
    """Write what a run learns from into its settings, so that it can be repeated and resumed without naming it again.

    Settings of another run (``--config``) may name sources of their own: those belong to that run's projects, as does what it chose for
    them, so where projects are named anew nothing of them stays, except in a run that is resumed (``keep``), whose files may only have
    moved.
    """
    if projects and not keep:
        forget_projects(config)
    data = config.data
    if projects:
        data.projects = tuple(str(p.absolute()) for p in projects)
    if val:
        data.val = str(val.absolute())
    if video_root:
        data.video_root = str(video_root.absolute())
    if unlabeled:
        data.unlabeled = tuple(str(p.absolute()) for p in unlabeled)
    if data.supplement:
        data.supplement = str(Path(data.supplement).absolute())


def prepare(config: Config, reporter: Reporter, held_out: set[Name] | None = None) -> Material:
    """Read everything that ``config.data`` names and resolve ``labels``, ``input_scale`` and ``crop`` of ``config.data`` in place.

    Args:
        config: settings; see above.
        reporter: is told every choice with its reason.
        held_out: labelled frames that a run which is resumed has held out so far; None: they are chosen.

    Raises:
        FormatError: no project is named, one can't be read, holds no labels, or validation frames have none of its keypoints; or none of
            those ``held_out`` is there.
    """
    projects, val = [Path(p) for p in config.data.projects], Path(config.data.val) if config.data.val else None
    if not projects:
        raise FormatError("No labelled project is named; add --slp PROJECT, --dlc CONFIG or --coco LABELS.")
    aliases = read_aliases(Path(config.data.aliases)) if config.data.aliases else {}
    parts = [_read(p, config.data, reporter) for p in projects]
    labels, columns = unite(parts, aliases)
    for note in labels.notes:
        reporter.warn(note)
    skeleton, frames, videos = _with_sides(labels.skeleton, reporter), labels.labelled_frames, list(labels.videos)
    if not any(f.instances for f in frames):
        guessed = sum(len(f.predicted) for f in labels.frames)
        why = f" ({guessed} predicted ones are no labels: correct some first)" if guessed else ""
        raise FormatError(
            f"{', '.join(map(str, projects))}: no animal is labelled{why}; label some frames (20 is a good start) and try again."
        )
    animals = sum(len(f.instances) for f in frames)
    reporter.say(f"labels: {animals} animals in {len(frames)} frames, {len(skeleton)} keypoints ({', '.join(skeleton.keypoints)})")
    if any(i.track is not None for f in frames for i in f.instances):
        reporter.say("names of animals (tracks, individuals) are not learnt; smp-predict --track numbers animals")
    if all(part.one_animal for part in parts) and not config.predict.max_animals:
        choose(config, "predict.max_animals", 1)
        reporter.say("animals: one in a frame is predicted, since the DeepLabCut project is for one (smp-predict --max-animals overrules)")
    labelled = {(f.video, f.index) for f in frames}  # held-out ones too: unlabelled frames must be new
    if val is not None:
        held = _read(val, config.data, reporter)
        if not held.labelled_frames:  # frames marked as empty are
            raise FormatError(f"--val {val}: no frame is labelled in it; name a project with labelled frames, or leave --val out.")
        val_frames = _held_out(held, skeleton, aliases, len(videos))
        videos += held.videos
        if held_out and not any(_were_held_out(val_frames, videos, held_out)):
            raise FormatError(f"--val {val}: {OTHER_FRAMES}.")
        reporter.say(f"validation: {len(val_frames)} frames of {val}")
        seen = {place for number, index in labelled for place in videos[number].places(index)}
        if twice := sum(bool(seen & videos[f.video].places(f.index)) for f in val_frames):
            reporter.warn(f"{twice} of the {len(val_frames)} validation frames are trained on too, so figures on them flatter")
    else:
        frames, val_frames = _split(frames, videos, held_out, config, reporter)
    of_parts, first = [], 0
    for part in parts:
        of_parts.append([f for f in frames if first <= f.video < first + len(part.videos)])
        first += len(part.videos)
    lengths = complete_lengths([(i, own) for of_part, own in zip(of_parts, columns, strict=True) for f in of_part for i in f.instances])
    longest = 0 if config.data.input_scale > 0 and config.data.crop else _longest_side(frames, videos)
    _choose_scale(config, lengths, longest, reporter)
    typical = float(np.median(lengths)) * config.data.input_scale if len(lengths) else config.data.animal_size
    if config.data.crop == 0:
        _choose_crop(config, typical, longest * config.data.input_scale, reporter)
    sources = []
    for part, of_part, own in zip(parts, of_parts, columns, strict=True):
        if of_part:
            partial = _is_partial(config, of_part, len(own), part.path if len(parts) > 1 else None, reporter)
            sources.append(LabelSource(of_part, own, partial, part.path))
    if config.data.labels == "auto":
        choose(config, "data.labels", "partial" if any(source.partial for source in sources) else "complete")
    if config.data.labels == "partial" and not config.loss.keypoint_anchors:
        choose(config, "loss.keypoint_anchors", True)
    taken = labelled | {(f.video, f.index) for f in val_frames}
    unlabeled_videos, pool = _unlabeled(labels, videos, taken, config, reporter)
    # Validation frames of a project of their own may be labelled in full where those to learn from are not, and the other way round.
    val_partial = any(source.partial for source in sources)
    if val is not None and was_chosen(config, "data.labels"):
        val_partial, _ = looks_partial(val_frames, len(skeleton))
    return Material(skeleton, videos, sources, val_frames, val_partial, typical, unlabeled_videos, pool)


def _read(path: Path, data: DataConfig, reporter: Reporter) -> Labels:
    """A project, whose labelled frames are known to exist: a wrong video is better noticed now than within the first steps."""
    others: list[str] = []
    root, images = (Path(folder) if folder else None for folder in (data.video_root, data.images))
    labels = supplemented(read_project(path, root, images=images, category=data.category or None), data.supplement)
    for number, source in enumerate(labels.videos):
        wanted = {f.index for f in labels.labelled_frames if f.video == number}
        if not wanted:
            continue
        with open_video(source) as video:
            absent = wanted - set(video.frame_numbers) if source.kind == "embedded" else set()
            last = max(absent or wanted)
            try:
                read = {0: (video.height, video.width), last: video.read(last).shape[:2]}
            except FormatError as error:
                raise FormatError(
                    f"{path}: frame {last} of {source.name} is labelled, but can't be read: {error} "
                    "If this is another video than the labelled one, rename it, and give the right one's folder with --video-root."
                ) from error
        others += _other_size(source, read)
    if others:
        more = f" (and {len(others) - 1} more videos are of other sizes)" if len(others) > 1 else ""
        reporter.warn(
            f"{path}: {others[0]}{more}, so labels may lie beside the animals; if it is another one than was labelled, or resized, "
            "rename it, and give the right one's folder with --video-root."
        )
    return labels


def _other_size(source: VideoSource, read: dict[int, tuple[int, ...]]) -> list[str]:
    """What to say of a video or image that has another (height, width) than the project says; nothing where it is merely turned."""
    for index, (height, width) in read.items():
        place = index if source.kind == "images" else 0
        stated = source.sizes[place] if place < len(source.sizes) else None
        if stated is not None and sorted(stated) != sorted((height, width)):
            what = source.paths[place] if source.kind == "images" else source.name
            return [f"{what} is {width} x {height} pixels, but {stated[1]} x {stated[0]} in the project"]
    return []


def _with_sides(skeleton: Skeleton, reporter: Reporter) -> Skeleton:
    """The skeleton with left and right paired by name where its format has no symmetries (DeepLabCut, COCO): without them, mirrored crops
    would teach that left is right.
    """
    if skeleton.symmetries or not (pairs := symmetric_pairs(skeleton)):
        return skeleton
    names = ", ".join(f"{skeleton.keypoints[a]} and {skeleton.keypoints[b]}" for a, b in pairs)
    reporter.say(f"left and right, by their names: {names}; mirrored crops exchange them")
    return replace(skeleton, symmetries=tuple(pairs))


def frame_sizes(labels: Labels) -> dict[tuple[int, int], tuple[int, int]]:
    """(height, width) of the labelled frames of video files, by (video, index); images may all differ, and would have to be read."""
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for number in sorted({f.video for f in labels.frames}):
        if labels.videos[number].kind == "file":
            with open_video(labels.videos[number]) as video:
                sizes |= {(number, f.index): (video.height, video.width) for f in labels.frames if f.video == number}
    return sizes


def _held_out(held: Labels, skeleton: Skeleton, aliases: dict[str, str], first_video: int) -> list[LabeledFrame]:
    """The labelled frames of a validation project, in the keypoints of the training projects, all of which it need not have."""
    renamed, _ = unite([held], aliases)
    if unknown := [name for name in renamed.skeleton.keypoints if name not in skeleton.keypoints]:
        raise FormatError(
            f"{held.path}: its keypoints {', '.join(unknown)} are not among those of the training project "
            f"({', '.join(skeleton.keypoints)}); validate on a project with the same keypoints, or unite names with --aliases."
        )
    columns = [skeleton.keypoints.index(name) for name in renamed.skeleton.keypoints]
    return [replace(moved(f, columns, len(skeleton)), video=f.video + first_video) for f in renamed.labelled_frames]


def frame_names(frames: list[LabeledFrame], videos: list[VideoSource]) -> list[Name]:
    """What frames are called as long as their files are, wherever the project moves and whatever else is labelled in it."""
    names: list[Name] = []
    for frame in frames:
        video = videos[frame.video]
        image = video.kind == "images" and frame.index < len(video.paths)
        path, number = (video.paths[frame.index], 0) if image else (video.paths[0] if video.paths else Path(), frame.index)
        names.append((path.parent.name, path.name, video.embedded or "", number))
    return names


def _split(
    frames: list[LabeledFrame], videos: list[VideoSource], held_out: set[Name] | None, config: Config, reporter: Reporter
) -> tuple[list[LabeledFrame], list[LabeledFrame]]:
    pictures = _pictures(frames, videos)

    def parted(chosen: set[int]) -> tuple[list[LabeledFrame], list[LabeledFrame]]:
        held = [f for f, picture in zip(frames, pictures, strict=True) if picture in chosen]
        return [f for f, picture in zip(frames, pictures, strict=True) if picture not in chosen], held

    if held_out is not None:
        again = _were_held_out(frames, videos, held_out)
        train, held = parted({picture for picture, was in zip(pictures, again, strict=True) if was})
        if (held or not held_out) and any(f.instances for f in train):
            reporter.say(f"validation: {len(held)} of {len(frames)} labelled frames, those that were held out before")
            return train, held
        raise FormatError(f"{', '.join(config.data.projects)}: {OTHER_FRAMES}.")
    different, asked = max(pictures, default=-1) + 1, config.data.val_fraction >= 0
    share = config.data.val_fraction if asked else SHARE
    count = round(share * different)
    if not asked and (animals := sum(len(f.instances) for f in frames)):
        count = min(max(count, math.ceil(FEW_VALIDATION * len(frames) / animals)), int(2 * SHARE * different))
    train, held = parted(set(np.random.default_rng((config.train.seed, 0)).choice(different, size=count, replace=False).tolist()))
    few = different < MIN_FRAMES_TO_SPLIT or sum(len(f.instances) for f in held) < FEW_VALIDATION
    if count and any(f.instances for f in train) and (asked or not few):
        reporter.say(f"validation: {len(held)} of {len(frames)} labelled frames, chosen at random, are held out")
        return train, held
    why = "no animal would be left to learn from"
    if different < MIN_FRAMES_TO_SPLIT and not asked:
        why = "so few are all needed"
    elif few and not asked:
        why = "a fifth of them has too few animals to choose a model by"
    elif not count:
        why = f"{share:g} of them is none" if share else "as asked for"
    reporter.say(
        f"validation: none, all {len(frames)} labelled frames are trained on and the last model is kept ({why}; --val FILE would choose)"
    )
    return frames, []


def _were_held_out(frames: list[LabeledFrame], videos: list[VideoSource], held_out: set[Name]) -> list[bool]:
    names = frame_names(frames, videos)
    again = [name in held_out for name in names]
    return again if any(again) else [name[1:] in {other[1:] for other in held_out} for name in names]  # videos may lie elsewhere now


def _pictures(frames: list[LabeledFrame], videos: list[VideoSource]) -> list[int]:
    """A number for each frame, counted from 0, the same where projects label the same picture, whatever name they have for it."""
    same: dict[Place, Place] = {}  # places of one picture form a chain, whose end stands for it

    def end(place: Place) -> Place:
        while (following := same.setdefault(place, place)) != place:
            same[place] = same[following]
            place = following
        return place

    every = [list(videos[frame.video].places(frame.index)) for frame in frames]
    for first, *others in every:
        for place in others:
            same[end(place)] = end(first)
    ends = [end(places[0]) for places in every]
    numbers = {place: number for number, place in enumerate(dict.fromkeys(ends))}
    return [numbers[place] for place in ends]


def complete_lengths(animals: list[tuple[Instance, list[int]]]) -> np.ndarray:
    """Longer side of the keypoint box of the most completely labelled animals, frame pixels: of all with as many keypoints as the fifth.

    ``animals``: each with its project's keypoints, as indices into its points.
    """
    animals = [(i, own) for i, own in animals if i.labelled.sum() >= 2]
    if not animals:
        return np.empty(0)
    shares = [i.labelled.sum() / len(own) for i, own in animals]
    least = sorted(shares)[-min(5, len(shares))]
    instances = [i for (i, _), share in zip(animals, shares, strict=True) if share >= least]
    lengths = np.array([float(np.ptp(i.points[i.labelled], axis=0).max()) for i in instances])
    return lengths[lengths > 0]


def _longest_side(frames: list[LabeledFrame], videos: list[VideoSource]) -> int:
    """Longer side of the largest of labelled frames, pixels, as far as the first one of each video tells, and ten of differing images."""
    longest = 0
    for number in sorted({f.video for f in frames}):
        with open_video(videos[number]) as video:
            longest = max(longest, video.height, video.width)
            indices = sorted(f.index for f in frames if f.video == number) if videos[number].kind == "images" else []
            for index in indices[:: math.ceil(len(indices) / 10) or 1]:
                with contextlib.suppress(FormatError):  # said where it is needed
                    longest = max(longest, *video.read(index).shape[:2])
    return longest


def _choose_scale(config: Config, lengths: np.ndarray, longest: int, reporter: Reporter) -> None:
    """``lengths`` of animals and the ``longest`` side of a frame, frame pixels."""
    if config.data.input_scale > 0:
        why = "as chosen before for these projects" if was_chosen(config, "data.input_scale") else "as asked for"
        reporter.say(f"input scale: {config.data.input_scale:g}, {why}")
    elif len(lengths) == 0:
        choose(config, "data.input_scale", 1.0)
        size = config.data.animal_size
        reporter.say(
            f"input scale: 1, since no animal has two labelled keypoints to tell its size by; they are taken to be {size:g} pixels long "
            f"(if they are L pixels long, --set data.input_scale=S with S = {size:g} / L)"
        )
    else:
        median, size, most = float(np.median(lengths)), config.data.animal_size, config.data.max_scale
        wanted = min(most, size / median)
        choose(config, "data.input_scale", round(max(wanted, min(most, LEAST_FRAME / longest, MOST_ENLARGED / median)), 3))
        scale = config.data.input_scale
        larger = f"; {scale * median:.0f}, as frames would be only {wanted * longest:.0f} long" if scale > round(wanted, 3) else ""
        reporter.say(
            f"input scale: {scale:g}, since the longer side of the median animal's box is {median:.0f} pixels (wanted: {size:g}{larger})"
        )


def _choose_crop(config: Config, typical: float, longest: float, reporter: Reporter) -> None:
    """By the ``typical`` animal and the ``longest`` side of a frame, input pixels."""
    wanted, most = 32 * round(4.5 * typical / 32), 32 * math.ceil(FRAMES_A_CROP * longest / 32)
    useful = int(np.clip(wanted, 192, 512))
    choose(config, "data.crop", min(useful, most))
    reason = f"the largest frame is only {longest:.0f} long" if most < useful else "192 to 512 are useful"
    why = "" if config.data.crop == wanted else f" would be {wanted}, and {reason}"
    reporter.say(f"training crops: {config.data.crop} input pixels, as four and a half times the median animal{why}")


def _is_partial(config: Config, frames: list[LabeledFrame], keypoints: int, project: Path | None, reporter: Reporter) -> bool:
    if config.data.labels != "auto" and (project is None or not was_chosen(config, "data.labels")):
        return config.data.labels == "partial"
    partial, reason = looks_partial(frames, keypoints)
    reporter.say(
        f"labels{f' of {project}' if project else ''}: taken as {'partial' if partial else 'complete'}, since {reason}; "
        "--labels complete or partial overrules"
    )
    return partial


def _known_in(source: VideoSource, known: set[Place]) -> set[int]:
    """Which frames of a video, or images of a sequence, are among ``known``."""
    if source.kind == "images":
        return {index for index in range(len(source.paths)) if source.place(index) in known}
    file = source.place(0)[0]
    own = {index for path, embedded, index in known if path == file and embedded == source.embedded}
    if source.kind == "embedded" and source.original is not None:  # the same frames, labelled in the video or in another package
        own |= _known_in(source.original, known)
    return own


def _unlabeled(
    labels: Labels, videos: list[VideoSource], taken: set[tuple[int, int]], config: Config, reporter: Reporter
) -> tuple[list[VideoSource], UnlabeledPool]:
    """Every frame without a label of the project's videos (of the originals of images taken from one), and of the videos the user names.

    Of a package whose videos are not there, these are the images in it that have no label.
    """
    ranges = parse_ranges(config.data.unlabeled_frames, "--unlabeled-frames") if config.data.unlabeled_frames else None
    extra = config.data.unlabeled
    named, alone = [video_source(Path(path)) for path in extra], Counter[str]()
    for video in labels.videos:
        there = video.original is not None and all(p.exists() for p in video.original.paths)
        if video.kind == "embedded" and not there:
            alone[video.name] += 1
        if video.kind != "embedded" or not there:
            named.append(video)
        if there and video.original is not None:
            named.append(video.original)
    for package, count in alone.items():
        lost, it = ("the video it was made from was", "it") if count == 1 else (f"{count} videos it was made from were", "them")
        reporter.say(
            f"unlabelled frames: of {package}, only images that it holds without labels; {lost} not found"
            + ("" if extra else f" (name {it} with --unlabeled VIDEO)")
        )
    known = {place for number, index in taken for place in videos[number].places(index)}
    sources, frames, labelled = [], [], []
    for source in {(*(path.resolve() for path in source.paths), source.embedded): source for source in named}.values():
        with open_video(source) as opened:
            if not opened.n_frames:  # a package lists videos of which it holds no image
                continue
            frames.append(opened.frame_numbers if source.kind == "embedded" else opened.n_frames)
        sources.append(source)
        labelled.append(_known_in(source, known))
    pool = UnlabeledPool(frames, labelled, ranges)
    if len(pool) and config.train.unlabeled_batch > 0:
        reporter.say(f"unlabelled frames: {len(pool):,} in {len(sources)} video{'s' if len(sources) > 1 else ''}")
    elif config.loss.unlabelled:
        ranges_leave_none = f"--unlabeled-frames {config.data.unlabeled_frames} leaves none" if ranges else ""
        why = "train.unlabeled_batch is 0" if len(pool) else ranges_leave_none or "all are labelled, or their video is not there"
        reporter.warn(
            f"there are no unlabelled frames to learn from ({why}): training on labelled frames alone, as SemiMultiPose-labeled "
            "(--unlabeled VIDEO adds some)"
        )
    return sources, pool

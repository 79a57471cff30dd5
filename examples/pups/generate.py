"""Make a small mouse-nest project to try semi-supervised training on: two videos and two SLEAP projects, drawn by this script.

``nest.mp4`` with ``pups.slp`` is the material to train from, labelled the way people label real pups: a few frames, some of the pups in
each, mostly one keypoint per pup, never what another animal covers, never the mother. ``heldout.mp4`` with ``heldout.slp`` is another nest
with every visible keypoint of every pup, to measure on.

    python examples/pups/generate.py --out pups

The same seed gives the same frames and labels on every run. The folder is complete once ``pups.slp`` is in it: everything is made under a
temporary name and moved, that file last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import sleap_io as sio
from nest import KEYPOINTS, Clip  # type: ignore[import-not-found]  # beside this script, not in a package

EDGES = (("Head", "Thorax"), ("Thorax", "Tail"))
COMPLETE = 0.15  # of the labelled pups; all others carry one keypoint
FPS = 25
PARTS = ("nest.mp4", "heldout.mp4", "heldout.slp", "pups.slp")  # in the order they are moved into place


def spread_frames(rng: np.random.Generator, frames: int, count: int) -> np.ndarray:
    """(count,) sorted frame numbers: one at a random place in each of ``count`` equal stretches of the video."""
    edges = np.linspace(0, frames, count + 1)
    return np.floor(rng.uniform(edges[:-1], edges[1:])).astype(int).clip(0, frames - 1)


def label_sparsely(rng: np.random.Generator, keypoints: np.ndarray, visible: np.ndarray) -> list[np.ndarray]:
    """What a person labels in each frame when every pup costs effort.

    Args:
        keypoints: (F, N, K, 2) true positions, frame pixels.
        visible: (F, N, K) bool.

    Returns:
        F arrays (pups labelled, K, 2): some of the visible pups of each frame, one random visible keypoint each; over all frames the share
        ``COMPLETE`` of them has all K. NaN where not labelled. Every frame with a visible pup has a label.
    """
    chosen = []
    for frame, seen in enumerate(visible):
        candidates = np.flatnonzero(seen.any(axis=1))
        share = 1.0 if rng.random() < 0.1 else rng.uniform(0.3, 0.8)  # now and then somebody labels them all
        count = min(len(candidates), max(1, round(share * len(candidates))))
        chosen += [(frame, pup) for pup in rng.permutation(candidates)[:count]]
    whole = [i for i, (frame, pup) in enumerate(chosen) if visible[frame, pup].all()]
    complete = set(rng.permutation(whole)[: round(COMPLETE * len(chosen))].tolist())
    labels: list[list[np.ndarray]] = [[] for _ in visible]
    for i, (frame, pup) in enumerate(chosen):
        points = keypoints[frame, pup].copy()
        if i not in complete:
            points[np.arange(len(points)) != rng.choice(np.flatnonzero(visible[frame, pup]))] = np.nan
        labels[frame].append(points)
    return [np.array(f).reshape(-1, *keypoints.shape[2:]) for f in labels]


def label_fully(keypoints: np.ndarray, visible: np.ndarray) -> list[np.ndarray]:
    """F arrays (pups seen, K, 2): every pup with a visible keypoint, NaN where a keypoint is hidden. Arguments as ``label_sparsely``."""
    return [np.where(seen[..., None], points, np.nan)[seen.any(axis=1)] for points, seen in zip(keypoints, visible, strict=True)]


def write_clip(clip: Clip, path: Path, labelled: np.ndarray) -> np.ndarray:
    """Render and encode a clip as H.264; returns which keypoints are visible in the ``labelled`` frames, (F, N, K) bool."""
    visible = {}
    for t, owner in encoded(clip, path):
        if t in labelled:
            visible[t] = clip.visible(t, owner)
        if sys.stderr.isatty() and t % 25 == 0:
            print(f"\r{path.name}: frame {t} of {clip.frames}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(f"\r{path.name}: {clip.frames} frames{' ' * 12}", file=sys.stderr)
    return np.stack([visible[t] for t in labelled.tolist()])


def encoded(clip: Clip, path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Number and owner map (H, W) of every frame, each written to the video at ``path`` before it is handed on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height = clip.size
        stream.pix_fmt = "yuv420p"
        # One thread and no B-frames: with them x264 now and then codes the same pictures into other bytes. A key frame each second: single
        # frames are found quickly.
        stream.options = {"preset": "veryfast", "crf": "23", "g": str(FPS), "bf": "0", "threads": "1"}
        for t in range(clip.frames):
            image, owner = clip.render(t)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            yield t, owner
        container.mux(stream.encode())


def write_project(path: Path, video: Path, shape: tuple[int, int, int, int], frames: np.ndarray, labels: list[np.ndarray]) -> None:
    """A SLEAP project of user instances.

    Args:
        path: the ``.slp`` to write.
        video: absolute path the project names; the file may come to lie there later.
        shape: frames, height, width, channels of the video.
        frames: (F,) frame numbers.
        labels: F arrays (instances, K, 2), frame pixels, NaN where not labelled.
    """
    skeleton = sio.Skeleton(nodes=list(KEYPOINTS), edges=list(EDGES), name="pup")
    backend = {"type": "MediaVideo", "shape": shape, "filename": video.as_posix()}
    source = sio.Video(filename=video.as_posix(), open_backend=False, backend_metadata=backend)
    labelled = [
        sio.LabeledFrame(source, int(t), [sio.Instance.from_numpy(points, skeleton=skeleton) for points in instances])
        for t, instances in zip(frames, labels, strict=True)
    ]
    sio.Labels(labelled, videos=[source], skeletons=[skeleton]).save(str(path), verbose=False)


def summary(name: str, labels: list[np.ndarray], visible: np.ndarray) -> str:
    """One line of counts: frames, pups labelled of those to be seen, and how many carry 1, 2, 3 keypoints."""
    counts = np.concatenate([np.isfinite(f[..., 0]).sum(axis=1) for f in labels])
    kinds = ", ".join(f"{(counts == k).sum()} with {k}" for k in range(1, visible.shape[2] + 1))
    points = np.concatenate([np.isfinite(f[..., 0]) for f in labels]).sum(axis=0)
    names = ", ".join(f"{n} {c}" for n, c in zip(KEYPOINTS, points, strict=True))
    seen = int(visible.any(axis=2).sum())
    return (
        f"{name}: {len(labels)} labelled frames, {len(counts)} of {seen} visible pups labelled ({kinds} keypoints), "
        f"{(counts == len(KEYPOINTS)).mean():.0%} complete; {names}"
    )


def generate(
    out: Path,
    seed: int = 0,
    frames: int = 900,
    heldout: int = 200,
    size: tuple[int, int] = (384, 288),
    pups: int = 8,
    labelled: tuple[int, int] = (40, 30),
) -> list[str]:
    """Write the four files into ``out`` and return a line of counts for each project.

    Args:
        out: folder; made if needed, files of the same names are replaced.
        seed: any integer from 0; two clips and the labels are drawn from it.
        frames, heldout: length of the two videos.
        size: (width, height) pixels, even.
        pups: animals per nest, besides the mother.
        labelled: labelled frames of the training and of the held-out project.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as folder:
        for number, (video, project, length, count) in enumerate(
            (("nest.mp4", "pups.slp", frames, labelled[0]), ("heldout.mp4", "heldout.slp", heldout, labelled[1]))
        ):
            rng = np.random.default_rng((seed, number, 1))
            clip = Clip((seed, number), length, size, pups)
            chosen = spread_frames(rng, length, min(count, length))
            visible = write_clip(clip, Path(folder) / video, chosen)
            keypoints = clip.keypoints[chosen]
            labels = label_sparsely(rng, keypoints, visible) if number == 0 else label_fully(keypoints, visible)
            write_project(Path(folder) / project, out / video, (length, size[1], size[0], 3), chosen, labels)
            lines.append(summary(project, labels, visible))
        (out / PARTS[-1]).unlink(missing_ok=True)
        for part in PARTS:
            (Path(folder) / part).replace(out / part)
    return lines


def parse_size(text: str) -> tuple[int, int]:
    """'384x288' to (384, 288); H.264 with 4:2:0 colour needs even numbers."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()) or int(width) % 2 or int(height) % 2 or min(int(width), int(height)) < 96:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 384x288 (even numbers, 96 or more)")
    return int(width), int(height)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw a mouse-nest video with partly labelled pups, and a second one to measure on.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two videos and two SLEAP projects")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default %(default)s)")
    parser.add_argument("--frames", type=positive, default=900, help="length of the training video (default %(default)s)")
    parser.add_argument("--heldout-frames", type=positive, default=200, help="length of the held-out video (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default=(384, 288), help="frame size, WIDTHxHEIGHT pixels (default 384x288)")
    parser.add_argument("--pups", type=positive, default=8, help="pups in each nest (default %(default)s)")
    parser.add_argument("--labelled", type=positive, default=40, help="labelled frames of the training video (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier run")
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.pups > 200:
        parser.error("--seed is 0 or more; --pups at most 200")
    existing = [name for name in PARTS if (options.out / name).exists()]
    if existing and not options.overwrite:
        parser.error(f"{options.out} already holds {', '.join(existing)}; choose another --out or add --overwrite")
    start = time.perf_counter()
    lines = generate(
        options.out, options.seed, options.frames, options.heldout_frames, options.size, options.pups, labelled=(options.labelled, 30)
    )
    print("\n".join(lines))
    print(f"Wrote {', '.join(PARTS)} to {options.out} in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

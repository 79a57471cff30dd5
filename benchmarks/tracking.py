"""How well animals are followed, against sleap-nn's tracker on the same poses.

    python benchmarks/tracking.py DATA --model runs/speed/compared/cells/smp_all_0/run -o benchmarks/results/tracking.json

DATA is the folder with ``flies/pair24`` and ``mice``; the model was trained on pair24's labels (`speed.py` makes one). Two sets of poses:
predictions for every frame of the pair from its first labelled frame to its last, the best two of a frame where the number of animals is
known, and the labels of the mice, whose identities were proofread, themselves. A switch is a labelled animal that has another track than in
the labelled frame before; a missing one has none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

import smp_plugin
from converters import LabeledFrame, Labels, PredictedInstance, read_project, write_predictions
from smp_plugin.checkpoint import load_model
from smp_plugin.similarity import animal_areas, animal_lengths, assign
from smp_plugin.tracking import Tracker

KNOWN = (0, 2)  # how many animals a tracker is told of; 0: it is not told


def ours(poses: Path, most: int, length: float) -> Labels:
    """Tracks by this package; ``length``: of an animal, frame pixels."""
    labels = read_project(poses, require_videos=False)
    tracker = Tracker(length, most)
    for frame in sorted(labels.frames, key=lambda frame: frame.index):
        numbers = tracker(frame.index, np.array([animal.points for animal in frame.predicted]).reshape(len(frame.predicted), -1, 2))
        for animal, number in zip(frame.predicted, numbers, strict=True):
            animal.track = str(number)
    return labels


def sleap(poses: Path, most: int, length: float) -> Labels:
    """Tracks by sleap-nn: its default, or, where the number of animals is known, the settings that its guide has for that."""
    import sleap_io
    from sleap_nn.inference.tracking import TrackerConfig, apply_tracking

    settings = {"max_tracks": most, "candidates_method": "local_queues"} if most else {}
    with tempfile.TemporaryDirectory() as folder:
        labels = sleap_io.load_slp(str(poses), open_videos=False)
        apply_tracking(labels, TrackerConfig(**settings))
        labels.save(f"{folder}/tracked.slp", verbose=False)
        return read_project(Path(folder) / "tracked.slp", require_videos=False)


def judged(truth: Labels, tracked: Labels) -> dict[str, int]:
    """Switches and missing animals, of the labelled ones, and tracks in all."""
    found = {frame.index: frame.predicted for frame in tracked.frames}
    frames = sorted((frame for frame in truth.labelled_frames if frame.instances), key=lambda frame: frame.index)
    areas = animal_areas([np.array([animal.points for animal in frame.instances]) for frame in frames])
    last: dict[str | None, str] = {}
    switches = missing = 0
    for frame, area in zip(frames, areas, strict=True):
        animals = [animal for animal in found.get(frame.index, []) if animal.track is not None]
        poses = np.array([animal.points for animal in animals]).reshape(len(animals), -1, 2)
        pairs = assign(np.array([animal.points for animal in frame.instances]), poses, area).pairs
        missing += len(frame.instances) - len(pairs)
        for row, column in pairs:
            identity, track = frame.instances[row].track, str(animals[column].track)
            switches += last.get(identity, track) != track
            last[identity] = track
    tracks = {animal.track for frame in tracked.frames for animal in frame.predicted if animal.track is not None}
    return {"switches": switches, "missing": missing, "tracks": len(tracks)}


def main() -> None:
    """Follow in every way, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    trackers: dict[str, Callable[[Path, int, float], Labels]] = {"smp": ours}
    if find_spec("sleap_nn"):
        trackers["sleap-nn"] = sleap
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pair, mice = args.data / "flies" / "pair24", read_project(args.data / "mice" / "mice_train.slp")
        flies = read_project(pair / "pair24_train.slp")
        labelled = [frame.index for frame in flies.labelled_frames]
        span = f"{min(labelled)}-{max(labelled)}"
        video = pair / "centered_pair_small.mp4"
        shown = [LabeledFrame(f.video, f.index, predicted=[PredictedInstance(a.points) for a in f.instances]) for f in mice.labelled_frames]
        for most in KNOWN:
            limit: dict[str, object] = {"predict.max_animals": most}
            out = Path(folder) / f"flies{most}.slp"
            smp_plugin.predict([video], out, model=args.model, frames=span, device="cpu", config_overrides=limit)
            write_predictions(Path(folder) / f"mice{most}.slp", mice.skeleton, mice.videos, shown, {})
        checkpoint = load_model(args.model)
        lengths = {"flies": checkpoint.typical_length / checkpoint.config.data.input_scale}
        lengths["mice"] = float(np.median(np.concatenate(animal_lengths([np.array([a.points for a in f.predicted]) for f in shown]))))
        for name, truth in (("flies", flies), ("mice", mice)):
            for most in KNOWN:
                for method, follow in trackers.items():
                    poses = Path(folder) / f"{name}{most}.slp"
                    started = time.perf_counter()
                    tracked = follow(poses, most, lengths[name])
                    seconds = time.perf_counter() - started
                    row = {"set": name, "method": method, "known_number": most, "frames": len(tracked.frames), **judged(truth, tracked)}
                    rows.append(row | {"labelled_frames": len(truth.labelled_frames), "frames_per_second": len(tracked.frames) / seconds})
                    print(json.dumps(rows[-1]), flush=True)
    command = "python benchmarks/tracking.py DATA --model runs/speed/compared/cells/smp_all_0/run -o benchmarks/results/tracking.json"
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "command": command, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

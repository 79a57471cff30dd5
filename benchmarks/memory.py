"""Does memory grow with the length of a video? Peak memory of prediction and of training, each in a process of its own.

    python benchmarks/memory.py DATA/flies/pair24 --model runs/speed/compared/cells/smp_all_0/run -o OUT.json

The videos are the middle of pair24's frames, over and over, so that every frame has animals to keep. Ten steps are trained with the frames
of each video as the unlabelled ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
from machine import machine

from converters import VideoSource
from converters.video import open_video

LENGTHS = (1_000, 10_000, 100_000)
SIDE = 128
COMMAND = "python benchmarks/memory.py DATA/flies/pair24 --model runs/speed/compared/cells/smp_all_0/run -o benchmarks/results/memory.json"
CHILD = """
import json, sys
from pathlib import Path
model, video, output = (Path(a) for a in sys.argv[1:4])
import smp_plugin
if sys.argv[4] == "predict":
    smp_plugin.predict([video], output, model=model, device="cpu")
else:
    from smp_plugin.config import preset, set_value
    config, _ = preset("small", cuda=False)
    unlabelled = {"train.unlabeled_fusion_start": 0.2, "train.unlabeled_first_step": 0}
    for key, value in {"train.steps": 10, **unlabelled, "model.weights": "none", "train.device": "cpu"}.items():
        set_value(config, key, value)
    smp_plugin.train([model], config=config, out=output, unlabeled=[video])
from smp_plugin.machine import peak_memory
print("PEAK", peak_memory() / 2**20)
"""


def write_video(path: Path, source: Path, frames: int) -> Path:
    """``frames`` frames, the middle ``SIDE`` pixels of the first hundred of ``source`` in turn."""
    with open_video(VideoSource(paths=(source,))) as video:
        top, left = (video.height - SIDE) // 2, (video.width - SIDE) // 2
        shown = [frame[top : top + SIDE, left : left + SIDE] for _, frame in zip(range(100), (f for _, f in video.stream()), strict=False)]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        pictures = [av.VideoFrame.from_ndarray(frame.copy(), format="rgb24").reformat(format="yuv420p") for frame in shown]
        for number in range(frames):
            picture = pictures[number % len(pictures)]
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def peak(what: str, model: Path, video: Path, output: Path) -> float:
    """Megabytes that a process needed at most."""
    command = [sys.executable, "-c", CHILD, str(model), str(video), str(output), what]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    lines = [line for line in done.stdout.splitlines() if line.startswith("PEAK ")]
    if not lines:
        sys.exit(f"{what} failed:\n{done.stderr[-2000:]}")
    return float(lines[-1].split()[1])


def main() -> None:
    """Measure every length, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--lengths", type=lambda text: tuple(map(int, text.split(","))), default=LENGTHS)
    args = parser.parse_args()
    project, rows = args.data.resolve() / "pair24_train.slp", []
    with tempfile.TemporaryDirectory() as folder:
        for length in args.lengths:
            video = write_video(Path(folder) / f"{length}.mp4", args.data / "centered_pair_small.mp4", length)
            row = {"frames": length, "predict_mb": peak("predict", args.model.resolve(), video, Path(folder) / f"{length}.slp")}
            row["train_mb"] = peak("train", project, video, Path(folder) / f"run{length}")
            print(row, flush=True)
            rows.append(row)
    growth = {key: rows[-1][key] / rows[0][key] for key in ("predict_mb", "train_mb")}
    print(f"longest over shortest: {growth}")
    if args.output:
        result = {"rows": rows, "longest_over_shortest": growth, "command": COMMAND, "machine": machine()}
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

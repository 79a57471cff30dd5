"""Speed and memory of prediction against SLEAP's models, end to end on the same videos in the same run, and of training beside it.

    python benchmarks/speed.py DATA -o benchmarks/results/speed.json

DATA is the folder with ``flies/pair24``. Every method is trained on the same labels for ``--minutes`` (``smp-compare`` does it, and its
results are kept in ``--models`` for another run). The paper's preset and DeepLabCut's DEKR are only begun, as their speed does not need
their accuracy; the former with the frozen norm that pretrained weights, its usual start, bring. DeepLabCut's top-down networks, whose
speed does, are left out; so are methods whose package is not installed. Then, in ``--rounds`` that take each method in turn, a process of
its own predicts a video from file to file. Ratios are taken within a round: these machines are noisy. ``smp-small-fast`` is the small
preset on frames of `SHRINK` their size, as ``--fast`` may choose; its accuracy on the held-out frames stands beside it. A name that ends
in ``-onnx`` asks for ``--runtime onnx``, which is left where it is not faster. A crowd tiles the
video, 2 x 2 or 4 x 4, with some of the tiles shown, so that only the size of the frames, or the number of animals in them, differs; only
our small preset predicts it, since sleap-nn shrinks frames to the size of those it was trained on, and finds nothing there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from machine import machine
from speed_case import BATCH
from torchvision.models import get_model

from converters import VideoSource, read_project
from converters.video import open_video
from smp_plugin.baselines import Job, deeplabcut
from smp_plugin.checkpoint import load_model
from smp_plugin.comparison import compare
from smp_plugin.comparison_results import cell_folder, read_outcome, read_results
from smp_plugin.config import preset, set_value
from smp_plugin.frame_reader import FrameReader
from smp_plugin.progress import Reporter
from smp_plugin.run_folder import shrunk
from smp_plugin.training import train

METHODS = (
    "smp-small",
    "smp-small-fast",
    "smp-small-onnx",
    "smp-paper",
    "smp-paper-onnx",
    "sleap-bottomup",
    "sleap-topdown",
    "dlc-dekr_w18",
)
COMPARED = {  # names in smp-compare
    "smp-small": "smp",
    "smp-small-fast": "smp",
    "smp-small-onnx": "smp",
    "sleap-bottomup": "sleap-bottomup",
    "sleap-topdown": "sleap-topdown",
}
SHRINK = 0.75
AIM = 0.5  # AP (s2 = .1)


def models(args: argparse.Namespace, methods: list[str]) -> dict[str, list[str]]:
    """Method -> the files or folders of its trained networks. Trains what is not there yet."""
    project, folder = args.data / "flies" / "pair24" / "pair24_train.slp", args.models
    wanted = [COMPARED[m] for m in methods if m in COMPARED]
    compare(
        project, val=0.25, out=folder / "compared", methods=wanted, minutes=args.minutes, device=args.device, preset="small", curve=6,
        settings={"model.weights": "none"}, reporter=Reporter(),  # from scratch, as its peers
    )  # fmt: skip
    if any(method.startswith("smp-paper") for method in methods) and not (folder / "paper" / "model.pt").exists():
        config, _ = preset("paper", cuda=False)
        weights = folder / "resnet50.pth"  # as good as any for timing, and the network is the one that pretrained weights bring
        torch.save(get_model("resnet50", weights=None).state_dict(), weights)
        begun = {"train.steps": 1, "train.device": args.device, "model.weights": str(weights), "data.crop": 384}
        for key, value in begun.items():
            set_value(config, key, value)
        train([project], config=config, out=folder / "paper", reporter=Reporter())
    if "dlc-dekr_w18" in methods and find_spec("deeplabcut") and not (folder / "dlc" / "networks.json").exists():
        data = (folder / "compared" / "data").absolute()
        job = Job("dlc-dekr_w18", next(data.glob("train_*.slp")), data / "val.slp", folder / "dlc", steps=1, device=args.device, curve=0)
        converted = deeplabcut.convert(job)
        snapshot = deeplabcut.train(job, converted.config, converted.train).pose.snapshot
        assert snapshot is not None
        made = [str(path.resolve()) for path in (snapshot.with_name("pytorch_config.yaml"), snapshot)]
        (folder / "dlc" / "networks.json").write_text(json.dumps(made))
    found = {
        "smp-small": [folder_of(folder, "smp") / "run"],
        "smp-small-fast": [folder_of(folder, "smp") / "run"],
        "smp-small-onnx": [folder_of(folder, "smp") / "run"],
        "smp-paper": [folder / "paper"],
        "smp-paper-onnx": [folder / "paper"],
        "sleap-bottomup": [folder_of(folder, "sleap-bottomup") / "models" / "bottomup"],
        "sleap-topdown": [folder_of(folder, "sleap-topdown") / "models" / name for name in ("centroid", "centered_instance")],
    }
    if (folder / "dlc" / "networks.json").exists() and find_spec("deeplabcut"):
        found["dlc-dekr_w18"] = [Path(name) for name in json.loads((folder / "dlc" / "networks.json").read_text())]
    return {m: [str(p.resolve()) for p in found[m]] for m in methods if m in found and all(p.exists() for p in found[m])}


def folder_of(models_folder: Path, method: str) -> Path:
    """Where smp-compare keeps a method's only run."""
    return cell_folder(models_folder / "compared", method, "all", 0)


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    """H.264 at 25 frames a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def videos(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The videos that are predicted: path, frames, animals, size."""
    source = args.data / "flies" / "pair24" / "centered_pair_small.mp4"
    with open_video(VideoSource(paths=(source,))) as video:
        most = max([args.frames, *(shown * args.crowd_frames for _, shown in args.crowds)])
        frames = [video.read(i) for i in range(most)]
    write_video(args.models / "warm.mp4", frames[:BATCH])
    path = write_video(args.models / f"pair24_{args.frames}.mp4", frames[: args.frames])
    made = [{"name": "pair24", "path": str(path.resolve()), "frames": args.frames, "animals": 2}]
    empty = np.median(np.stack(frames[:: max(1, len(frames) // 50)]), axis=0).astype(np.uint8)  # the flies move, the background stays
    for side, shown in args.crowds:
        crowd = []
        for number in range(args.crowd_frames):
            tiles = [frames[number + args.crowd_frames * i] if i < shown else empty for i in range(side**2)]
            crowd.append(np.vstack([np.hstack(tiles[row : row + side]) for row in range(0, side**2, side)]))
        name = f"crowd{side}x{side}-{2 * shown}"
        path = write_video(args.models / f"{name}.mp4", crowd)
        made.append({"name": name, "path": str(path.resolve()), "frames": args.crowd_frames, "animals": 2 * shown})
    return made


def measured(method: str, networks: list[str], video: dict[str, Any], args: argparse.Namespace, parts: bool) -> dict[str, Any]:
    """One method on one video in a process of its own."""
    case = {
        "method": method, "models": networks, "video": video["path"], "frames": video["frames"], "device": args.device, "parts": parts,
        "output": str((args.models / "out.slp").resolve()), "launched": time.time(), "shrink": SHRINK if method.endswith("fast") else 1.0,
        "warm": str((args.models / "warm.mp4").resolve()), "animals": video["animals"],
        "runtime": "onnx" if method.endswith("onnx") else "pytorch",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("speed_case.py")), json.dumps(case)]
    for _ in range(3):  # DeepLabCut's two threads now and then lose frames, which ends the case
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if lines:
            break
    else:
        sys.exit(f"{method} on {video['name']} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def matrix_rate(device: str) -> dict[str, float]:
    """Billions of operations a second that this machine does in a 3 x 3 convolution of 256 channels, in each precision."""
    rates = {}
    where = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.randn(8, 256, 32, 32, device=where, dtype=dtype).contiguous(memory_format=torch.channels_last)
        convolution = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False, device=where, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        best = float("inf")
        with torch.inference_mode():
            for _ in range(10):
                started = time.perf_counter()
                convolution(images)
                if where.type == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - started)
        rates[str(dtype).removeprefix("torch.")] = 2 * images.numel() * 256 * 9 / best / 1e9
    return rates


def summarised(runs: list[dict[str, Any]], rate: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each method and video: medians over the rounds, and the median of each round's ratios to SLEAP's models."""
    rows = []
    speeds = {(r["method"], r["video"], r["round"]): r["frames_per_second"] for r in runs}
    for method, video in dict.fromkeys((r["method"], r["video"]) for r in runs):
        own = [r for r in runs if (r["method"], r["video"]) == (method, video)]
        row: dict[str, Any] = {"method": method, "video": video, "animals": own[0]["animals"], "rounds": len(own)}
        row |= {key: statistics.median(r[key] for r in own) for key in ("frames_per_second", "startup_seconds", "peak_memory_gb")}
        for peer in ("sleap-bottomup", "sleap-topdown", "dlc-dekr_w18"):
            ratios = [r["frames_per_second"] / speeds[peer, video, r["round"]] for r in own if (peer, video, r["round"]) in speeds]
            if ratios and method.startswith("smp"):
                row[f"times_{peer}"] = statistics.median(ratios)
                row[f"times_{peer}_range"] = [min(ratios), max(ratios)]
        optional = [key for key in own[0] if key.endswith("_ms") or key == "animals_found"]
        row |= {key: statistics.median(r[key] for r in own if key in r) for key in optional}
        if "gflop" in own[0]:
            row |= {"gflop": own[0]["gflop"], "floor_ms": 1e3 * own[0]["gflop"] / max(rate.values())}
        rows.append(row)
    return rows


def trained(folder: Path) -> list[dict[str, Any]]:
    """Training of the same runs: steps, minutes, accuracy on the frames held out, and how soon it was first seen to be `AIM`."""
    made: list[dict[str, Any]] = []
    for cell in read_results(folder / "compared"):
        figures = {key: None if math.isnan(value) else value for key, value in cell.figures.items()}
        curve = outcome.curve if (outcome := read_outcome(folder / "compared", cell)) else []
        made.append({"method": cell.method, "labels": cell.labels, "version": cell.version, **figures})
        made[-1]["steps_per_second"] = cell.figures["steps"] / max(60 * cell.figures["train_minutes"], 1e-9)
        made[-1][f"minutes_to_ap_s2_0.1_of_{AIM}"] = next((p.seconds / 60 for p in curve if p.ap.get("0.1", 0) >= AIM), None)
    return made


def accuracy(folder: Path) -> dict[str, float]:
    """AP (s2 = .1) of the small preset's model on the held-out frames, by the share of their size at which they are read."""
    labels = read_project(folder / "compared" / "data" / "val.slp")
    return shrunk(load_model(folder_of(folder, "smp") / "run"), labels.labelled_frames, FrameReader(labels.videos, 1.0))


def command(args: argparse.Namespace) -> str:
    """What was run, for the result file; the folders are the reader's own."""
    numbers = f"--minutes {args.minutes:g} --rounds {args.rounds} --frames {args.frames} --crowd-frames {args.crowd_frames}"
    crowds = ",".join(f"{side}:{shown}" for side, shown in args.crowds)
    return f"python benchmarks/speed.py DATA -o OUT --methods {args.methods} {numbers} --crowds {crowds} --device {args.device}"


def main() -> None:
    """Train, predict in rounds, print a table or JSON, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--models", type=Path, default=Path("runs/speed"), help="where trained models are kept")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--minutes", type=float, default=10.0, help="training of each method")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=200, help="of the pair24 video")
    parser.add_argument("--crowd-frames", type=int, default=12, help="of each crowd video")
    parser.add_argument(
        "--crowds",
        type=lambda text: [tuple(map(int, pair.split(":"))) for pair in text.split(",") if pair],
        default=[(2, 1), (4, 1), (4, 15)],
        metavar="SIDE:SHOWN,...",
        help="tiles along a side of each crowd, and how many show animals (2:1,4:1,4:15)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and nothing else")
    args = parser.parse_args()
    if min(args.frames, args.crowd_frames) < BATCH:
        parser.error(f"at least {BATCH} frames of each video, please: a batch")
    if wrong := [pair for pair in args.crowds if not 0 <= pair[1] <= pair[0] ** 2]:
        parser.error(f"--crowds {wrong[0][0]}:{wrong[0][1]}: so many tiles cannot be shown")
    args.models.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # what DeepLabCut says in this process
        networks = models(args, args.methods.split(","))
    shown, rate = videos(args), matrix_rate(args.device)
    runs: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for video in shown:
            for method, files in networks.items():
                if video["name"].startswith("crowd") and method != "smp-small":
                    continue
                run = measured(method, files, video, args, parts=method.startswith("smp") and not method.endswith("onnx"))
                runs.append({"method": method, "video": video["name"], "animals": video["animals"], "round": number, **run})
                if not args.json:
                    print(f"round {number + 1}, {video['name']}, {method}: {run['frames_per_second']:.2f} frames/s", flush=True)
    rows = summarised(runs, rate)
    result = {
        "rows": rows,
        "training": trained(args.models),
        "accuracy_of_fast": accuracy(args.models) if "smp-small-fast" in networks else {},
        "gflop_per_second": rate,
        "runs": runs,
        "machine": machine(),
        "command": command(args),
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result if args.json else rows, indent=1))


if __name__ == "__main__":
    main()

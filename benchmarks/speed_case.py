"""One method on one video in a process of its own, so that its start-up and its memory are seen: prints a line of JSON.

    python benchmarks/speed_case.py '{"method": "smp-small", "models": ["runs/a"], "video": "video.mp4", "frames": 300, "output": "out.slp",
        "device": "cpu"}'

The first batch, which warms up, is not timed. What is timed is the whole way from the video file to the file of predictions.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH = 4  # frames to warm up with


def ours(case: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], None], Callable[[], dict[str, float]]]:
    """Warming up, the work, and figures of it: animals found in a frame, and milliseconds a frame of its parts, writing included."""
    from converters import LabeledFrame, PredictedInstance, VideoSource, write_predictions
    from converters.video import open_video
    from smp_plugin.checkpoint import load_model
    from smp_plugin.devices import choose_device
    from smp_plugin.predictor import Predictor

    checkpoint = load_model(Path(case["models"][0]))
    checkpoint.config.predict.shrink, checkpoint.config.predict.runtime = case.get("shrink", 1.0), case.get("runtime", "pytorch")
    predictor = Predictor(checkpoint, choose_device(case["device"])[0])
    source = VideoSource(paths=(Path(case["video"]),))

    def animals(found: Any) -> list[PredictedInstance]:
        return [PredictedInstance(p, None, float(s), q) for p, s, q in zip(found.poses, found.scores, found.point_scores, strict=True)]

    kept: list[tuple[int, Any]] = []  # what the last work has found

    def write(frames: Iterable[tuple[int, Any]], output: str) -> None:
        labelled = (LabeledFrame(0, index, predicted=animals(found)) for index, found in frames)
        write_predictions(Path(output), checkpoint.skeleton, [source], labelled, {})

    def predicted(frames: int) -> Iterator[tuple[int, Any]]:
        kept.clear()
        with open_video(source) as video:
            for index, _, found in predictor.stream(itertools.islice(video.stream(), frames)):
                kept.append((index, found))
                yield index, found

    def afterwards() -> dict[str, float]:
        figures = {"animals_found": sum(len(found.scores) for _, found in kept) / len(kept)}
        if case.get("parts"):
            started = time.perf_counter()
            write(kept, case["output"] + ".again.slp")
            figures["write_ms"] = 1e3 * (time.perf_counter() - started) / len(kept)
            figures |= parts(predictor, source, min(case["frames"], 40))
        return figures

    return (
        lambda: write(predicted(BATCH), case["output"] + ".warm.slp"),
        lambda: write(predicted(case["frames"]), case["output"]),
        afterwards,
    )


def parts(predictor: Any, source: Any, frames: int) -> dict[str, float]:
    """Milliseconds a frame of each part alone, one after the other, and the network's arithmetic."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from converters.video import open_video
    from smp_plugin import decode, devices, transforms

    def timed(part: Callable[[], Any]) -> tuple[float, Any]:
        started = time.perf_counter()
        result = part()
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, result

    config, shrink = predictor.config, predictor.config.predict.shrink
    scale, typical = config.data.input_scale * shrink, predictor.checkpoint.typical_length * shrink
    spent: dict[str, float] = dict.fromkeys(("decode_video", "transform", "network", "decode_outputs"), 0.0)
    with open_video(source) as video, torch.inference_mode():
        stream = video.stream()
        for _ in range(frames // BATCH):
            seconds, images = timed(lambda: [next(stream)[1] for _ in range(BATCH)])
            spent["decode_video"] += seconds
            seconds, inputs = timed(lambda x=images: transforms.resize_frames(predictor.images(x), scale))  # type: ignore[misc]
            spent["transform"] += seconds
            with devices.autocast(predictor.device, config.train.precision):
                seconds, outputs = timed(lambda x=inputs: predictor.model(x))  # type: ignore[misc]
            spent["network"] += seconds
            seconds, _found = timed(lambda x=outputs: decode.decode(x, config.predict, typical).poses.cpu())  # type: ignore[misc]
            spent["decode_outputs"] += seconds
        with devices.autocast(predictor.device, config.train.precision), FlopCounterMode(display=False) as counter:
            predictor.model(inputs[:1])
    done = frames // BATCH * BATCH
    figures = {f"{name}_ms": 1e3 * seconds / done for name, seconds in spent.items()}
    return {**figures, "gflop": counter.get_total_flops() / 1e9, "input_pixels": float(np.prod(inputs.shape[2:]))}


def sleap(case: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], None], Callable[[], dict[str, float]]]:
    """The same of sleap-nn, through its own predictor."""
    import logging

    logging.disable(logging.INFO)
    from sleap_nn.inference import Predictor

    predictor = Predictor.from_model_paths(case["models"], device=case["device"], batch_size=BATCH)

    found: list[int] = []  # animals in the frames of the last work that have any

    def work(frames: int, output: str) -> None:
        labels = predictor.predict(case["video"], frames=list(range(frames)))
        labels.save(output, verbose=False)
        found[:] = [len(frame.instances) for frame in labels]

    return (
        lambda: work(BATCH, case["output"] + ".warm.slp"),
        lambda: work(case["frames"], case["output"]),
        lambda: {"animals_found": sum(found) / case["frames"]},
    )


def deeplabcut(case: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], None], Callable[[], dict[str, float]]]:
    """The same of DeepLabCut, but for the writing of its file. It takes whole videos: ``case["warm"]`` is a short one."""
    import contextlib
    import io

    from deeplabcut.pose_estimation_pytorch.apis.utils import get_pose_inference_runner
    from deeplabcut.pose_estimation_pytorch.apis.videos import video_inference

    config, snapshot = case["models"]
    device = None if case["device"] == "auto" else case["device"]
    runner = get_pose_inference_runner(config, snapshot, batch_size=BATCH, device=device, max_individuals=case["animals"])

    found: list[int] = []  # animals in the frames of the last work

    def work(video: str, frames: int) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            poses = [frame["bodyparts"] for frame in video_inference(video, runner)]  # (n, K, 3), negative where nothing is
        assert len(poses) == frames
        found[:] = [int((pose[..., 2] >= 0).any(axis=1).sum()) for pose in poses]

    return (
        lambda: work(case["warm"], BATCH),
        lambda: work(case["video"], case["frames"]),
        lambda: {"animals_found": sum(found) / case["frames"]},
    )


def main() -> None:
    case = json.loads(sys.argv[1])
    begun = time.time()
    warm, work, afterwards = {"sleap": sleap, "dlc": deeplabcut, "smp": ours}[case["method"].partition("-")[0]](case)
    warm()
    ready = time.time()
    work()
    done = time.time()
    from smp_plugin.machine import peak_memory  # now, since start-up is timed

    figures = {"startup_seconds": ready - case.get("launched", begun), "frames_per_second": case["frames"] / (done - ready)}
    print("RESULT " + json.dumps({**figures, "peak_memory_gb": peak_memory() / 2**30, **afterwards()}))


if __name__ == "__main__":
    main()

"""Prediction in pieces: what a kill leaves is gone on with, and other processes predict the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smp_plugin
from converters import FormatError, Labels, Skeleton, VideoSource, read_project
from converters.deeplabcut_predictions import SCORER
from converters.video import open_video
from smp_plugin import cluster, prediction, predictor, segments
from smp_plugin.checkpoint import Checkpoint, save_model
from smp_plugin.cli import convert
from smp_plugin.cli.predict import main
from smp_plugin.config import Config
from smp_plugin.inference import FramePoses
from smp_plugin.jobs import MACHINELABELS, Job
from smp_plugin.model import PoseModel
from smp_plugin.prediction import predict
from smp_plugin.predictor import Predictor
from smp_plugin.segments import Found, Segment, Work, cut

FRAMES, LENGTH = 60, 8
SKELETON = Skeleton(("head", "middle", "tail"))


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LENGTH", LENGTH)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path], make_config: Callable[..., Any]) -> Path:
    """A video, and two models that have learnt nothing but see something in every frame."""
    folder = tmp_path_factory.mktemp("place")
    make_video(folder / "clip.mp4", n_frames=FRAMES)
    config = make_config(model__norm="group", data__input_scale=1.0, predict__max_animals=3, predict__min_score=1e-6)
    for seed, name in enumerate(("model.pt", "other.pt")):
        torch.manual_seed(seed)
        model = PoseModel(config.model, len(SKELETON))
        for parameter in model.parameters():
            parameter.data.clamp_(min=-1.0)  # the heads' biases, by which it sees nothing
        save_model(folder / name, Checkpoint(model, config, SKELETON, 28.0, {}))
    return folder


def linked(path: Path, other: Path) -> Path:
    """The same file under another name."""
    os.link(path, other)
    return other


@pytest.fixture
def video(place: Path, tmp_path: Path) -> Path:
    return linked(place / "clip.mp4", tmp_path / "clip.mp4")


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """What one process predicts undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "LENGTH", LENGTH)
        (path,) = predict([place / "clip.mp4"], tmp_path_factory.mktemp("whole") / "out.slp", model=place / "model.pt", device="cpu")
    return read_project(path)


def assert_same(a: Labels, b: Labels, video: int = 0) -> None:
    """To the last bit."""
    frames = [f for f in a.frames if f.video == video]
    assert [f.index for f in frames] == [f.index for f in b.frames] == list(range(FRAMES))
    assert sum(len(f.predicted) for f in frames) > FRAMES
    for f, g in zip(frames, b.frames, strict=True):
        assert len(f.predicted) == len(g.predicted)
        for i, j in zip(f.predicted, g.predicted, strict=True):
            assert np.array_equal(i.points, j.points, equal_nan=True) and i.score == j.score
            assert np.array_equal(i.point_scores, j.point_scores)


def leftovers(folder: Path) -> list[str]:
    """Without what finished outputs were made from."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".made_from.json"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The last bits of a result depend on how many threads worked on a batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counted(Predictor):
    """Counts the frames that the network sees, in batches of 4 one after the other; raises Ctrl-C with the frame ``stop``."""

    seen = 0
    stop = -1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batch, self.lanes = 4, 1

    def attempt(self, images: torch.Tensor) -> list[FramePoses] | None:
        type(self).seen += len(images)
        if 0 <= type(self).stop <= type(self).seen:
            type(self).stop = -1
            signal.raise_signal(signal.SIGINT)
        return super().attempt(images)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    class Mine(Counted):
        pass

    monkeypatch.setattr(prediction, "Predictor", Mine)
    return Mine


# --- cutting and keeping ---


def test_every_frame_is_in_one_segment(video: Path):
    source = VideoSource((video,))
    job = Job(video.with_name("out.slp"), "SLEAP", [video], [source] * 3, [range(20), [], [3, 5, 9]])
    assert cut(job, 8) == [
        Segment(0, 0, range(8), False, True),
        Segment(1, 0, range(8, 16), False, False),
        Segment(2, 0, range(16, 20), True, False),
        Segment(3, 2, [3, 5, 9], False, True),
    ]


def test_what_was_found_survives_a_file():
    rng = np.random.default_rng(0)
    found = [(n, FramePoses(rng.normal(size=(k, 3, 2)), rng.random(k), rng.random((k, 3)))) for n, k in ((4, 2), (5, 0), (9, 1))]
    data = Found.of(found, 3, (90, 100)).to_bytes()
    frames = list(Found.from_bytes(data).frames(1))
    assert [(f.video, f.index, len(f.predicted)) for f in frames] == [(1, 4, 2), (1, 5, 0), (1, 9, 1)]
    for frame, (_, animals) in zip(frames, found, strict=True):
        for k, animal in enumerate(frame.predicted):
            assert np.array_equal(animal.points, animals.poses[k]) and animal.score == animals.scores[k]
            assert np.array_equal(animal.point_scores, animals.point_scores[k])


def test_the_network_sees_whole_batches(place: Path, video: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch):
    lengths: list[int] = []
    monkeypatch.setattr(Work, "save", lambda self, segment, data: lengths.append(len(segment.frames)))
    predict([video], video.with_name("out.json"), model=place / "model.pt", device="cpu", config_overrides={"predict.batch": 3})
    assert lengths == [9] * 6 + [6]


# --- going on ---

KILLED = """
import os, signal, sys
from pathlib import Path
from smp_plugin import segments
from smp_plugin.prediction import predict

segments.LENGTH, save = int(sys.argv[4]), segments.Work.save

def save_and_die(work, segment, data):
    save(work, segment, data)
    if segment.place == 3:
        os.kill(os.getpid(), signal.SIGKILL)

segments.Work.save = save_and_die
predict([Path(sys.argv[1])], Path(sys.argv[2]), model=Path(sys.argv[3]), device="cpu")
"""


def test_a_killed_run_goes_on(place: Path, video: Path, whole: Labels, counted: type[Counted], listener: Any, environment: dict[str, str]):
    out = video.with_name("out.slp")
    options: dict[str, Any] = {"model": place / "model.pt", "device": "cpu", "resume": True}
    command = [sys.executable, "-c", KILLED, str(video), str(out), str(place / "model.pt"), str(LENGTH)]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    assert leftovers(video.parent) == [".out.slp.segments", "clip.mp4"]
    before = leftovers(video.with_name(".out.slp.segments"))
    changes: list[tuple[str, dict[str, Any]]] = [
        ("with another model", {"model": place / "other.pt"}),
        ("with other settings", {"config_overrides": {"predict.min_score": 0.5}}),
        ("for other frames", {"frames": "0-30"}),
    ]
    for words, change in changes:
        with pytest.raises(FormatError, match=rf"--resume: .*out\.slp was begun {words}; call it as before, or leave --resume out"):
            predict([video], out, **{**options, **change})
    assert leftovers(video.with_name(".out.slp.segments")) == before
    (video.with_name(".out.slp.segments") / "000001.safetensors").write_bytes(b"damaged")
    predict([video], out, **options, config_overrides={"predict.batch": 4}, reporter=listener)
    assert counted.seen == FRAMES - 3 * LENGTH
    assert f"{out}: 24 of 60 frames were predicted earlier" in listener.sentences
    assert_same(read_project(out), whole)
    assert leftovers(video.parent) == ["clip.mp4", "out.slp"]


def test_an_interrupted_run_goes_on(place: Path, video: Path, whole: Labels, counted: type[Counted], capsys: pytest.CaptureFixture[str]):
    out = video.with_name("out.slp")
    command = [
        str(video),
        "-o",
        str(out),
        "--model",
        str(place / "model.pt"),
        "--device",
        "cpu",
        "--overlay",
        str(video.with_name("o.mp4")),
    ]
    counted.stop = 20
    assert main(command) == 130
    assert "16 of 60 frames are kept in" in capsys.readouterr().err
    assert [f.index for f in read_project(out).frames] == list(range(17))
    counted.seen = 0
    assert main([*command, "--resume"]) == 0 and counted.seen == FRAMES - 16
    assert_same(read_project(out), whole)
    with open_video(VideoSource((video.with_name("o.mp4"),))) as drawn:
        assert len(list(drawn.stream())) == FRAMES
    assert leftovers(video.parent) == ["clip.mp4", "o.mp4", "out.slp"]
    assert main([*command, "--resume"]) == 2
    assert "it would lack what was finished earlier (1 of 1 inputs)" in " ".join(capsys.readouterr().err.split())


def test_a_resume_that_is_interrupted_while_it_looks_loses_nothing(
    place: Path, video: Path, counted: type[Counted], monkeypatch: pytest.MonkeyPatch
):
    out, kept = video.with_name("out.json"), video.with_name(".out.json.segments")
    counted.stop = 20
    with pytest.raises(KeyboardInterrupt):
        predict([video], out, model=place / "model.pt", device="cpu")
    out.unlink()
    before = leftovers(kept)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Work, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict([video], out, model=place / "model.pt", device="cpu", resume=True)
    assert leftovers(kept) == before


def test_without_resume_it_starts_again(place: Path, video: Path, counted: type[Counted], listener: Any):
    counted.stop = 20
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predict([video], video.with_name("out.slp"), model=place / "model.pt", device="cpu", reporter=listener)
        assert counted.seen == 20
        counted.seen, counted.stop = 0, 20
    assert [alarm for alarm in listener.alarms if "an unfinished run is started again" in alarm and "--resume" in alarm]


@pytest.mark.parametrize("suffix", ["slp", "json", "h5"])
def test_finished_videos_are_skipped(
    suffix: str, place: Path, video: Path, monkeypatch: pytest.MonkeyPatch, counted: type[Counted], listener: Any
):
    monkeypatch.setattr(
        Predictor, "attempt", lambda self, images: [FramePoses(np.ones((1, 3, 2)), np.ones(1), np.ones((1, 3)))] * len(images)
    )
    videos = [linked(video, video.with_name(name)) for name in ("a.mp4", "b.mp4", "c.mp4")]
    out = video.with_name("out")
    options: dict[str, Any] = {"model": place / "model.pt", "device": "cpu", "suffix": suffix}
    for name in ("a.mp4", "b.mp4", "c.mp4", "clip.mp4"):
        os.utime(video.with_name(name), (10**9, 10**9))
    predict(videos, out, **options)
    files = leftovers(out)
    counted.seen, counted.stop = 0, FRAMES + 20  # the next call, with other settings, is interrupted in the second video
    overrides: dict[str, object] = {"predict.min_score": 0.5}
    with pytest.raises(KeyboardInterrupt):
        predict(videos, out, **options, config_overrides=overrides)
    counted.seen = 0
    assert predict(videos, out, **options, resume=True, config_overrides=overrides, reporter=listener)
    assert [re.sub(r".*/", "", s) for s in listener.sentences if "skipped" in s] == [
        {"h5": f"a{SCORER}"}.get(suffix, f"a.predictions.{suffix}") + ": finished earlier, skipped"
    ]
    assert counted.seen == 2 * FRAMES - 16 and leftovers(out) == files


@pytest.mark.parametrize("suffix", ["slp", "json", "h5"])
def test_a_finished_file_of_something_else_is_not_skipped(suffix: str, place: Path, tmp_path: Path, counted: type[Counted], listener: Any):
    videos = [tmp_path / day / "cam.mp4" for day in ("day1", "day0")]
    for video in videos:
        video.parent.mkdir()
        shutil.copy(place / "clip.mp4", video)
    os.utime(videos[1], (10**9, 10**9))
    out, settings = tmp_path / "out", {"predict.min_score": 0.5}
    options: dict[str, Any] = {"model": place / "model.pt", "device": "cpu", "suffix": suffix, "frames": "0-3"}
    predict(videos[:1], out, **options)
    before, counted.seen = {path: path.read_bytes() for path in out.iterdir()}, 0
    changes: list[tuple[str, list[Path], dict[str, Any]]] = [
        ("from other videos", videos[1:], {}),  # which would get the same name
        ("with another model", videos[:1], {"model": place / "other.pt"}),
        ("with other settings", videos[:1], {"config_overrides": settings}),
        ("with another choice of --track", videos[:1], {"config_overrides": {"predict.track": True}}),
        ("for other frames", videos[:1], {"frames": "0-4"}),
    ]
    for words, inputs, change in changes:
        with pytest.raises(FormatError, match=rf"--resume: .*cam.* was made {words}.*; call it as before .*, move it away to have it pred"):
            predict(inputs, out, **{**options, **change}, resume=True)
    os.utime(place / "model.pt")  # nothing else
    predict(videos[:1], out, **options, resume=True, reporter=listener)
    assert before == {path: path.read_bytes() for path in out.iterdir()} and counted.seen == 0 and not listener.alarms
    (record,) = out.glob(".*.made_from.json")
    record.unlink()
    for path in out.iterdir():
        os.utime(path)
    predict(videos[:1], out, **options, resume=True, reporter=listener)
    assert counted.seen == 0 and ["by its date alone" in alarm for alarm in listener.alarms] == [True]
    for path in out.iterdir():
        path.unlink()
    predict(videos[1:], out, **options, resume=True)
    assert counted.seen == 4 and record.exists()


@pytest.mark.parametrize(("name", "suffix"), [("out.slp", None), ("out", "json"), ("out", "h5")])
def test_an_output_that_was_changed_since_is_not_replaced(name: str, suffix: str | None, place: Path, video: Path, counted: type[Counted]):
    def again() -> None:
        predict([video], video.with_name(name), model=place / "model.pt", device="cpu", suffix=suffix, frames="0-3")

    again()
    again()
    (output,) = video.parent.rglob(f"[!.]*.{suffix or 'slp'}")
    os.utime(output, (10**9, 10**9))  # copied
    again()
    before = output.read_bytes() + b"\n"
    output.write_bytes(before)
    counted.seen = 0
    with pytest.raises(FormatError, match=rf"{output.name} was changed since it was written; move it away, or choose another name"):
        again()
    assert output.read_bytes() == before and counted.seen == 0
    output.rename(video.with_name("mine"))
    again()


@pytest.mark.parametrize("name", ["out", "clipDLC_net_el.h5"])
@pytest.mark.parametrize("ending", [".h5", ".csv", "_meta.pickle"])
def test_nothing_is_lost_of_what_deeplabcut_expects_beside_a_table(
    name: str, ending: str, place: Path, video: Path, counted: type[Counted]
):
    def again() -> None:
        predict([video], out, model=place / "model.pt", device="cpu", suffix=None if out.suffix else "h5", frames="0-3")

    out = video.with_name(name)
    again()
    again()
    (edited,) = video.parent.rglob(f"[!.]*{ending}")
    (record,) = video.parent.rglob(".*.made_from.json")
    record.unlink()
    again()  # as after an interrupted run, which leaves none
    edited.write_bytes(before := edited.read_bytes() + b"\n")
    counted.seen = 0
    with pytest.raises(FormatError, match=rf"{edited.name} was changed since it was written; move it away, or choose another name"):
        again()
    edited.rename(video.with_name("mine"))
    again()
    record.unlink()
    counted.seen = 0
    edited.write_bytes(theirs := b"what another program has written")
    with pytest.raises(FormatError, match=rf"{edited.name} holds what neither .* has written, which would be lost; move it away, or"):
        again()
    assert edited.read_bytes() == theirs and video.with_name("mine").read_bytes() == before and counted.seen == 0


@pytest.mark.parametrize(("name", "suffix"), [("out.slp", None), ("out", "h5")])
def test_smp_convert_replaces_no_output_that_was_changed_since(
    name: str, suffix: str | None, place: Path, video: Path, counted: type[Counted], listener: Any, capsys: pytest.CaptureFixture[str]
):
    out, other = video.with_name(name), video.with_name("other.slp")
    options: dict[str, Any] = {"model": place / "model.pt", "device": "cpu", "frames": "0-3"}
    predict([video], other, **options)
    predict([video], out, **options, suffix=suffix)
    called = [str(other), str(out), *(["--format", suffix] if suffix else [])]
    (output,) = (path for path in video.parent.rglob(f"[!.]*{'.csv' if suffix else out.suffix}") if path != other)
    before = output.read_bytes()
    output.write_bytes(before + b"\n")
    assert convert.main(called) == 2
    said = capsys.readouterr().err
    assert f"{output.name} was changed since it was written; move it away, or choose another name" in said
    assert output.read_bytes() == before + b"\n"
    predict([video], out, **options, suffix=suffix, resume=True, reporter=listener)
    (alarm,) = listener.alarms
    assert f"{output.name} was changed since it was written, and stays so; move it away to have it predicted again" in alarm
    output.write_bytes(before)
    assert convert.main(called) == 0, "as it was written, it may be replaced"
    assert [path.name for path in video.parent.rglob(".*.made_from.json")] == [".other.slp.made_from.json"], "it is of what was replaced"
    counted.seen = 0
    predict([video], out, **options, suffix=suffix, resume=True, reporter=listener)
    assert counted.seen == 0 and "by its date alone" in listener.alarms[-1]
    predict([video], out, **options, suffix=suffix)
    assert counted.seen == 4, "what smp-convert has written may be replaced"


def test_a_record_vouches_for_no_other_file(place: Path, video: Path, counted: type[Counted], listener: Any):
    out = video.with_name("out.json")
    options: dict[str, Any] = {"model": place / "model.pt", "device": "cpu", "frames": "0-3"}
    predict([video], out, **options)
    out.write_text("[]")
    predict([video], out, **options, resume=True, reporter=listener)
    assert "out.json was changed since it was written, and stays so; move it away" in listener.alarms[0] and out.read_text() == "[]"


def test_videos_of_cameras_that_run_together_are_told_apart(place: Path, tmp_path: Path):
    made = set()
    for camera in (b"left", b"back"):
        video = tmp_path / camera.decode() / "0001.avi"
        video.parent.mkdir()
        video.write_bytes(bytes(9000) + camera + bytes(9000))
        os.utime(video, (10**9, 10**9))
        job = Job(tmp_path / "out.slp", "SLEAP", [video], [VideoSource((video,))], [range(9)])
        made.add(segments.made_from(job, place / "model.pt", {})["videos"])
    assert len(made) == 2


def test_an_output_that_was_begun_anew_is_not_the_finished_one(place: Path, video: Path, counted: type[Counted]):
    out = video.with_name("out.json")
    options: dict[str, Any] = {"model": place / "model.pt", "device": "cpu"}
    predict([video], out, **options)
    counted.seen, counted.stop = 0, 20
    with pytest.raises(KeyboardInterrupt):
        predict([video], out, **options, config_overrides={"predict.min_score": 0.5})
    assert not list(video.parent.glob(".*.made_from.json"))
    with pytest.raises(FormatError, match="was begun with other settings"):
        predict([video], out, **options, resume=True)


def test_little_is_lost_of_what_a_person_waits_for(place: Path, video: Path, listener: Any):
    job = Job(video.with_name("labeled-data"), MACHINELABELS, [video], [VideoSource((video,))], [range(100)])
    (work,), _ = segments.divide([job], place / "model.pt", Config(), False, listener)
    assert [len(segment.frames) for segment in work.segments] == [32, 32, 32, 4]


# --- elsewhere ---


def test_a_process_for_each_device(place: Path, video: Path, whole: Labels, monkeypatch: pytest.MonkeyPatch, listener: Any):
    monkeypatch.setattr(prediction, "every_device", lambda name: ["cpu", "cpu"])
    monkeypatch.setattr(prediction, "_done_here", None)
    out, overlay, twin = video.with_name("out.slp"), video.with_name("o.mp4"), video.with_name("twin.mp4")
    predict([video, linked(video, twin)], out, model=place / "model.pt", overlay=overlay, reporter=listener)
    for number in range(2):
        assert_same(read_project(out), whole, number)
    with open_video(VideoSource((overlay,))) as drawn:
        assert len(list(drawn.stream())) == 2 * FRAMES
    assert leftovers(video.parent) == ["clip.mp4", "o.mp4", "out.slp", "twin.mp4"]
    assert "predicting on cpu, cpu, a process each" in listener.sentences


def test_what_workers_say_is_said_once(place: Path, video: Path, monkeypatch: pytest.MonkeyPatch, listener: Any, capfd: Any):
    """Each segment by a worker that has just been started."""

    @contextmanager
    def workers(*_: object) -> Iterator[Executor]:
        with ThreadPoolExecutor(2) as pool:
            yield pool

    def attempt(self: Predictor, images: torch.Tensor) -> list[FramePoses] | None:
        return None if len(images) > 2 else [FramePoses(np.ones((1, 3, 2)), np.ones(1), np.ones((1, 3)))] * len(images)

    monkeypatch.setattr(cluster, "executor", workers)
    monkeypatch.setattr(predictor, "_predictor", predictor.Recipe.predictor)
    monkeypatch.setattr(predictor, "choose_device", lambda name: (torch.device("cpu"), "NO USE OF THE NVIDIA GPU that is there (busy)"))
    monkeypatch.setattr(Predictor, "attempt", attempt)
    predict([video], video.with_name("out.slp"), model=place / "model.pt", device="cpu", reporter=listener)
    assert listener.alarms == [
        f"{platform.node()}: NO USE OF THE NVIDIA GPU that is there (busy)",
        f"{platform.node()}: cpu: its memory is not enough for --batch 4; smaller batches are tried.",
    ]
    assert capfd.readouterr().err.count("its memory is not enough") == 1


def test_a_lost_process_is_said():
    with pytest.raises(FormatError, match="predicted on one of cpu was lost .*--resume"), cluster.processes(["cpu"]) as pool:
        pool.submit(os._exit, 1).result()


def test_a_script_that_lacks_the_guard_is_told_so(tmp_path: Path, environment: dict[str, str]):
    script = tmp_path / "script.py"
    script.write_text("from smp_plugin import cluster\nwith cluster.processes(['cpu', 'cpu']) as pool: pool.submit(int).result()\n")
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment).stderr.splitlines()[-1]
    assert 'on cpu, cpu were lost as they started; a script needs `if __name__ == "__main__":` around the call of predict, or mem' in told


def test_a_lost_worker_is_made_up_for(place: Path, video: Path, whole: Labels, monkeypatch: pytest.MonkeyPatch):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("distributed")
    keep, killed, addresses = Work.save, list[int](), set[str]()

    def save_and_kill(work: Work, segment: Segment, data: bytes) -> None:
        keep(work, segment, data)
        if not killed:
            for process in (psutil.Process(), *psutil.Process().children()):
                addresses.update(c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)
            killed.append(multiprocessing.active_children()[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Work, "save", save_and_kill)
    out = video.with_name("out.slp")
    command = [str(video), "-o", str(out), "--model", str(place / "model.pt"), "--device", "cpu", "--local-cluster", "2", "--quiet"]
    assert main(command) == 0
    assert killed and not psutil.pid_exists(killed[0]) and addresses == {"127.0.0.1"}
    assert_same(read_project(out), whole)
    assert leftovers(video.parent) == ["clip.mp4", "out.slp"]


def test_a_worker_with_another_model_refuses(place: Path, video: Path):
    recipe = predictor.Recipe(place / "model.pt", "0" * 64, smp_plugin.__version__, "{}", "cpu")
    with pytest.raises(FormatError, match="this is another file; give a path that all machines share"):
        predictor.predict_segment(recipe, VideoSource((video,)), Segment(0, 0, range(8), False, True))
    with pytest.raises(FormatError, match="has smp-plugin .*, the caller 0.0.0; install the same version"):
        predictor.Recipe(place / "model.pt", recipe.digest, "0.0.0", "{}", "cpu").predictor()


def test_dask_is_asked_for_in_a_sentence(place: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    command = [str(video), "--model", str(place / "model.pt"), "--json"]
    assert main([*command, "--scheduler", "tcp://127.0.0.1:1", "--local-cluster", "2"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*command, "--local-cluster", "2"]) == 2
    assert json.loads(capsys.readouterr().out)["message"] == (
        "--local-cluster needs Dask, which is not installed; pip install 'smp-plugin[cluster]'."
    )


def test_a_scheduler_that_is_not_there(place: Path, video: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "_PATIENCE", 0.3)
    with pytest.raises(FormatError, match=r"--scheduler tcp://127\.0\.0\.1:1: no Dask scheduler answers there .*start one with"):
        predict([video], video.with_name("out.slp"), model=place / "model.pt", scheduler="tcp://127.0.0.1:1")
    assert leftovers(video.parent) == ["clip.mp4"]

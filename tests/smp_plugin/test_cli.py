"""Flags, exit codes and one-line errors; no model is made here."""

import errno
import json
import signal
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import smp_plugin
from converters.labels import FormatError
from smp_plugin.cli import _common, convert, evaluate, predict, train
from smp_plugin.config import Config, write_config
from smp_plugin.metrics import Evaluation


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project.slp").touch()
    (tmp_path / "video.mp4").touch()
    return tmp_path


@pytest.fixture(autouse=True)
def keep_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_common, "_hush", lambda: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the library and keeps what it was called with."""
    kept: list[dict[str, Any]] = []

    def fake_train(projects: list[Path], **options: Any) -> Path:
        kept.append({"projects": projects, **options})
        return Path("runs/x")

    def fake_predict(inputs: list[Path], output: Path, **options: Any) -> list[Path]:
        kept.append({"inputs": inputs, "output": output, **options})
        return [output]

    for name, function in (("training", fake_train), ("prediction", fake_predict)):
        module = types.ModuleType(f"smp_plugin.{name}")
        setattr(module, {"training": "train", "prediction": "predict"}[name], function)
        monkeypatch.setitem(sys.modules, f"smp_plugin.{name}", module)
        monkeypatch.setattr(smp_plugin, name, module, raising=False)
    return kept


SLOW = ("torch", "torchvision", "lightning", "pandas", "sleap_io", "av", "matplotlib", "h5py", "pycocotools")


def test_importing_the_commands_loads_nothing_slow(environment: dict[str, str]):
    code = f"""import sys, smp_plugin, smp_plugin.cli.train, smp_plugin.cli.predict, smp_plugin.cli.evaluate, smp_plugin.cli.convert
print([name for name in {SLOW} if name in sys.modules])"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("module", [train, predict, evaluate, convert])
def test_help_fits_one_screen_and_ends_with_an_example(module: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert module.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 45 and "Example:" in text.rstrip().splitlines()[-2] + text.rstrip().splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        (train, [], "Missing option '--slp'"),
        (train, ["project.slp"], "project.slp has no option before it; write --slp project.slp."),
        (train, ["--slp", "project.slp", "more.json"], "more.json has no option before it; write --coco more.json."),
        (train, ["my mice/config.yaml"], "write --dlc 'my mice/config.yaml'."),
        (train, ["video.mp4"], "video.mp4 has no option before it; a labelled project is named with --slp, --dlc or --coco"),
        (train, ["--slp", "nothere.slp"], "nothere.slp: no such file"),
        (train, ["--dlc", "nothere.yaml"], "nothere.yaml: no such file"),
        (train, ["--dlc", "project.slp"], "--dlc project.slp is a SLEAP file; name it with --slp"),
        (train, ["--coco", "video.mp4"], "video.mp4 ends in .mp4, which is no known format"),
        (train, ["--slp", "project.slp", "--steps", "0"], "--steps"),
        (train, ["--slp", "project.slp", "--steps", "9", "--minutes", "5"], "Give --minutes or --steps, not both"),
        (train, ["--slp", "project.slp", "--images", "."], "--images is for COCO labels, and none are named with --coco"),
        (train, ["--slp", "project.slp", "--category", "mouse"], "--category is for COCO labels, and none are named with --coco"),
        (train, ["--slp", "project.slp", "--bogus"], "--bogus"),
        (train, ["--slp", "project.slp", "--device", "gpu"], "'gpu' is none of auto"),
        (train, ["--slp", "project.slp", "--set", "train.lr"], "section.name=value"),
        (train, ["--slp", "project.slp", "--set", "train.lrr=1"], "Did you mean train.lr"),
        (train, ["--slp", "project.slp", "--val", "1.5"], "below 1"),
        (train, ["--slp", "project.slp", "--val", "no.slp"], "no.slp: no such file"),
        (train, ["--slp", "project.slp", "--resume"], "--resume needs -o"),
        (train, ["--slp", "project.slp", "--check", "--resume", "-o", "run"], "--check trains nothing"),
        (train, ["--slp", "project.slp", "--unlabeled-frames", "9-1"], "--unlabeled-frames is '9-1'"),
        (train, ["--slp", "project.slp", "--config", "no.yaml"], "no.yaml: no such settings file"),
        (predict, [], "Missing argument"),
        (predict, ["nothere.mp4"], "nothere.mp4: no such file"),
        (predict, ["video.mp4", "--frames", "some"], "all, labeled, unlabeled"),
        (predict, ["video.mp4", "--frames", "5-2"], "0-999,1500"),
        (predict, ["video.mp4", "--min-score", "2"], "--min-score"),
        (predict, ["video.mp4", "--model", "runs/none"], "no such file"),
        (predict, ["video.mp4", "project.slp"], "need -o"),
        (evaluate, ["project.slp"], "Missing argument"),
        (evaluate, ["project.slp", "nothere.slp"], "nothere.slp: no such file"),
        (evaluate, ["project.slp", "project.slp", "--s2", "1,0"], "--s2 0: a tolerance is a number above 0"),
        (evaluate, ["project.slp", "project.slp", "--s2", "1,,2"], "--s2 with nothing between commas"),
        (evaluate, ["project.slp", "project.slp", "--s2", "loose"], "--s2 loose: a tolerance is a number above 0"),
        (evaluate, ["project.slp", "project.slp", "--labels", "some"], "'auto', 'complete', 'partial'"),
        (evaluate, ["project.slp", "project.slp", "--plot", "p.jpg"], "--plot p.jpg: the picture is a PNG"),
        (evaluate, ["project.slp", "project.slp", "--plot", "no/p.png"], "--plot no/p.png: its folder is not there"),
        (convert, ["project.slp"], "Missing argument 'OUT'"),
        (convert, ["nothere.slp", "out.json"], "nothere.slp: no such file"),
        (convert, ["project.slp", "out.json", "--annotations", "no.json"], "no.json: no such file"),
        (convert, ["project.slp", "out.json", "--only", "some"], "'labels', 'predictions'"),
        (convert, ["project.slp", "out.mp4"], "no known format"),
        (convert, ["project.slp", "project.slp"], "is the input and would be overwritten"),
        (convert, ["project.slp", "out.json"], "is an empty file"),
    ],
)
def test_bad_usage_is_one_sentence_and_2(
    module: Any, arguments: list[str], sentence: str, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    assert module.main(arguments) == 2
    shown = capsys.readouterr()
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith(f"{module.command.name}: ") and sentence in last and "Traceback" not in shown.err
    assert calls == []


def test_patterns_are_expanded_on_windows(calls: list[dict[str, Any]], in_folder: Path, monkeypatch: pytest.MonkeyPatch):
    (in_folder / "other.mp4").touch()
    monkeypatch.setattr(sys, "argv", ["smp-predict", "*.mp4", "-o", "out.slp"])
    assert predict.main() == 2, "shells of other systems have done it, so the star is a name"
    monkeypatch.setattr("rich_click.rich_command.os", SimpleNamespace(name="nt"))
    assert predict.main() == 0 and sorted(calls[0]["inputs"]) == [Path("other.mp4"), Path("video.mp4")]


def test_train_passes_everything_on(calls: list[dict[str, Any]], in_folder: Path):
    (in_folder / "settings.yaml").write_text("train: {steps: 5, lr: 0.1, seed: 3, minutes: 9}\nmodel: {channels: 32}\n")
    text = (
        "--slp project.slp --slp project.slp -o runs/x --preset paper --config settings.yaml --set train.lr=0.2 --set train.seed=4 --seed 5"
    )
    more = "--steps 7 --video-root root --unlabeled video.mp4 --unlabeled-frames 0-9 --labels partial"
    rest = "--weights none --device cpu --val 0.2 --quiet"
    assert train.main([*text.split(), *more.split(), *rest.split()]) == 0
    call = calls[0]
    config = call["config"]
    assert call["projects"] == [Path("project.slp")] * 2 and call["out"] == Path("runs/x") and call["video_root"] == Path("root")
    assert call["unlabeled"] == [Path("video.mp4")] and call["val"] is None and call["resume"] is False and call["reporter"].quiet
    assert config.model.backbone == "resnet50" and config.model.channels == 32  # preset, then file
    assert (config.train.lr, config.train.seed) == (0.2, 5)  # file, then --set, then the flag
    assert (config.train.steps, config.train.minutes) == (7, 0.0)
    assert (config.data.val_fraction, config.data.labels, config.data.unlabeled_frames) == (0.2, "partial", "0-9")
    assert (config.model.weights, config.train.device) == ("none", "cpu")


@pytest.mark.parametrize(
    ("preset", "text", "said"),
    [
        ("paper", "train: {lr: 0.1}", ["preset paper, as asked for", "settings of c.yaml, which beat the preset's"]),
        ("paper", None, ["settings of c.yaml, to which the preset paper adds nothing"]),
        ("auto", None, ["settings of c.yaml"]),
    ],
)
def test_a_preset_is_named_where_it_counts(preset: str, text: str | None, said: list[str], in_folder: Path):
    path = Path("c.yaml")
    write_config(Config(), path)  # every setting
    if text:
        path.write_text(text)
    config, reasons = _common.build_config(preset, path, [], {}, "cpu", other_projects=False)
    assert reasons == said and (config.model.backbone == "resnet50") == bool(text)


def test_settings_of_another_run_leave_its_projects_behind(calls: list[dict[str, Any]], in_folder: Path):
    (in_folder / "config.yaml").write_text(
        "data: {projects: [/other.slp], val: /val.slp, images: /images, category: cat, aliases: /table.csv, labels: complete, crop: 256,\n"
        "  input_scale: 0.5, animal_size: 50, chosen: [data.labels=complete, data.crop=256, data.input_scale=0.5]}\n"
    )
    rest = "--slp project.slp --config config.yaml --device cpu --set data.category=mouse --labels complete --set data.input_scale=0.5"
    assert train.main(rest.split()) == 0
    data = calls[0]["config"].data
    assert (data.val, data.images, data.aliases, data.crop, data.animal_size) == ("", "", "", 0, 50)
    assert (data.category, data.labels, data.input_scale, data.chosen) == ("mouse", "complete", 0.5, ())
    assert train.main(["--config", "config.yaml", "--device", "cpu"]) == 0  # the same run again
    data = calls[1]["config"].data
    assert (data.val, data.category, data.crop, data.labels, len(data.chosen)) == ("/val.slp", "cat", 256, "complete", 3)


def test_train_resumes_with_the_runs_settings(calls: list[dict[str, Any]], in_folder: Path):
    (in_folder / "run").mkdir()
    (in_folder / "run" / "config.yaml").write_text("train: {steps: 11}")
    assert train.main(["--slp", "project.slp", "-o", "run", "--resume", "--device", "cpu", "--val", "video.mp4"]) == 0
    assert calls[0]["resume"] is True and calls[0]["config"].train.steps == 11 and calls[0]["val"] == Path("video.mp4")


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("--labels complete", "data.labels"),
        ("--unlabeled-frames 0-9", "data.unlabeled_frames"),
        ("--weights none", "model.weights"),
        ("--set data.crop=96", "data.crop"),
        ("--set model.levels=3", "model.levels"),
        ("--val 0.2", "data.val"),
        ("--labels auto --set data.crop=0 --aliases video.mp4", None),  # left to the run again; moved
        ("--labels partial --set data.crop=64", None),  # as it is
    ],
)
def test_a_resumed_run_says_what_it_cannot_change(
    calls: list[dict[str, Any]], in_folder: Path, capsys: pytest.CaptureFixture[str], argument: str, key: str | None
):
    (in_folder / "run").mkdir()
    stored = "{labels: partial, crop: 64, val: old.slp, chosen: [data.labels=partial, data.crop=64]}"
    (in_folder / "run" / "config.yaml").write_text(f"data: {stored}")
    code = train.main(["--slp", "project.slp", "-o", "run", "--resume", "--device", "cpu", *argument.split()])
    if key is None:
        assert code == 0 and len(calls) == 1
    else:
        assert code == 2 and not calls and f"--resume: {key} is " in " ".join(capsys.readouterr().err.split())


def test_a_share_of_frames_to_validate_on_beats_the_settings_files_project(calls: list[dict[str, Any]], in_folder: Path):
    (in_folder / "old.yaml").write_text("data: {val: old.slp}")
    assert train.main(["--config", "old.yaml", "--slp", "project.slp", "--val", "0.2"]) == 0
    assert calls[0]["config"].data.val == "" and calls[0]["config"].data.val_fraction == 0.2 and calls[0]["val"] is None


def test_predict_passes_everything_on(calls: list[dict[str, Any]], in_folder: Path):
    text = "video.mp4 project.slp -o out.slp --model project.slp --frames 0-9,12 --batch 2 --max-animals 3 --min-score 0.2 --no-refine"
    assert predict.main([*text.split(), "--overlay", "o.mp4", "--device", "cuda:1", "--json"]) == 0
    call = calls[0]
    assert call["inputs"] == [Path("video.mp4"), Path("project.slp")] and call["output"] == Path("out.slp") and call["frames"] == "0-9,12"
    assert call["config_overrides"] == {"predict.batch": 2, "predict.max_animals": 3, "predict.min_score": 0.2, "predict.refine": False}
    assert (
        call["model"] == Path("project.slp") and call["device"] == "cuda:1" and call["overlay"] == Path("o.mp4") and call["reporter"].json
    )


def test_predict_defaults(calls: list[dict[str, Any]], in_folder: Path):
    assert predict.main(["project.slp", "--quiet"]) == 0
    assert calls[0]["output"] == Path("project.predictions.slp") and calls[0]["config_overrides"] == {} and calls[0]["device"] == "auto"
    assert predict.main(["video.mp4", "--quiet"]) == 0
    assert calls[1]["output"] == Path("video.mp4.predictions.slp") and calls[1]["frames"] is None and calls[1]["suffix"] is None
    (in_folder / "Mice-Ann").mkdir()
    for name in ("Mice-Ann/config.yaml", "a.pkg.slp", "b.analysis.h5", "c.json"):
        (in_folder / name).touch()
    for arguments, output in [
        ("Mice-Ann", "Mice-Ann.predictions.slp"),
        ("Mice-Ann/config.yaml", "Mice-Ann/Mice-Ann.predictions.slp"),
        ("a.pkg.slp", "a.predictions.slp"),
        ("b.analysis.h5", "b.predictions.slp"),
        ("c.json --format json", "c.predictions.json"),
        ("video.mp4 --format h5", "."),  # called by the video, where DeepLabCut looks
        (".", f"{in_folder.name}.predictions.slp"),
    ]:
        assert predict.main([*arguments.split(), "--quiet"]) == 0
        assert calls[-1]["output"] == Path(output)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (FormatError("a.slp: no\n  frames."), 2, "smp-predict: a.slp: no frames."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 0, ""),
        (ZeroDivisionError("oh"), 1, "smp-predict-error.txt"),
        (
            OSError(errno.ENOSPC, "No space left", "out.slp"),
            2,
            "out.slp could not be written or read (No space left)",
        ),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    sentence: str,
    calls: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    in_folder: Path,
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["smp_plugin.prediction"], "predict", fail)
    monkeypatch.setattr(_common.os, "dup2", lambda *_: None)
    assert predict.main(["video.mp4", "--frames", "all"]) == code
    shown = capfd.readouterr().err
    assert sentence in shown and "Traceback" not in shown
    saved = in_folder / "smp-predict-error.txt"
    assert saved.exists() == (code == 1)
    if code == 1:
        assert "ZeroDivisionError: oh" in saved.read_text() and "smp-predict video.mp4 --frames all" in saved.read_text()
        assert "ZeroDivisionError: oh" in shown


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["as usual", "switched off"])
def test_terminated_is_as_interrupted(ctrl_c: Any, calls: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.modules["smp_plugin.prediction"], "predict", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGINT, ctrl_c), signal.getsignal(signal.SIGTERM)
    try:
        assert predict.main(["video.mp4"]) == 143
        assert "terminated; everything finished so far is kept" in capsys.readouterr().err
        assert (ctrl_c, before[1]) == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGINT, before[0])


@pytest.mark.parametrize(
    ("first", "then", "code"),
    [
        (
            "import smp_plugin.cli.predict",
            "signal.raise_signal(signal.SIGINT)",
            3 if sys.platform == "win32" else -signal.SIGINT,
        ),  # still loading: nothing to say
        ("from smp_plugin.cli.predict import main", "raise SystemExit(main(['.']))", 130),
    ],
)
def test_ctrl_c_from_the_first_moment(first: str, then: str, code: int, tmp_path: Path, environment: dict[str, str]):
    stub = "import types; stub = sys.modules['smp_plugin.prediction'] = types.ModuleType('p')"
    stub += "; stub.predict = lambda *_, **__: signal.raise_signal(signal.SIGINT)"
    usual = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'smp-predict'"
    command = [sys.executable, "-c", f"{usual}; {first}; {stub}; {then}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == code and "Traceback" not in done.stderr


def test_json_errors_are_json(capsys: pytest.CaptureFixture[str], calls: Any, monkeypatch: pytest.MonkeyPatch):
    assert predict.main(["nothere.mp4", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": True, "type": "FormatError", "message": "nothere.mp4: no such file or folder."}


def test_convert_passes_everything_on_and_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import converters

    kept: list[Any] = []

    def fake(source: Path, target: Path, refuse: Any, **options: Any) -> list[str]:
        kept.append((source, target, options))
        return ["out.json: no tracks."]

    monkeypatch.setattr(converters, "convert", fake)
    text = "project.slp out.json --only labels --format h5 --video-root v --images i --category c --annotations video.mp4"
    assert convert.main([*text.split()]) == 0
    shown = capsys.readouterr().err
    assert "Warning: out.json: no tracks." in shown and "written: out.json" in shown
    options = {"only": "labels", "suffix": "h5", "video_root": Path("v"), "images": Path("i"), "category": "c"}
    options["annotations"] = Path("video.mp4")
    assert kept == [(Path("project.slp"), Path("out.json"), options)]
    assert convert.main(["project.slp", "out.json", "--quiet"]) == 0
    assert capsys.readouterr().err.strip() == "Warning: out.json: no tracks."


def test_evaluate_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import numpy as np

    from smp_plugin import evaluation, metrics, peer_figures

    pose = np.array([[[0.0, 0.0], [60.0, 40.0]]])
    asked: list[dict[str, Any]] = []

    def fake(labels: Path, predictions: Path, **options: Any) -> Evaluation:
        assert (labels, predictions, options["video_root"]) == (Path("project.slp"), Path("video.mp4"), Path("root"))
        asked.append(options)
        return metrics.evaluate_poses([pose], [(pose, np.ones(1))], ["nose", "[tail]"])

    monkeypatch.setattr(evaluation, "evaluate", fake)
    monkeypatch.setattr(peer_figures, "installed", lambda: ["sleap-nn"])
    arguments = ["project.slp", "video.mp4", "--video-root", "root"]
    assert evaluate.main(arguments) == 0
    text = capsys.readouterr().out
    assert "1.000" in text and "[tail]" in text and max(map(len, text.splitlines())) <= 110
    assert "By sleap-nn itself" in text and "--peers" in text  # how to get it
    assert asked[-1] == {"video_root": Path("root"), "s2": metrics.DEFAULT_S2, "rule": "auto", "peers": False}
    assert evaluate.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ap"]["1.0"]["ap"] == 1.0
    more = "--s2 1,.05 --s2 0.025 --s2 1 --labels partial --peers --plot p.png"
    assert evaluate.main([*arguments, *more.split()]) == 0
    assert asked[-1] == {"video_root": Path("root"), "s2": (1.0, 0.05, 0.025), "rule": "partial", "peers": True}
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_package_is_lazy():
    assert smp_plugin.__version__ and {"train", "predict", "evaluate"} <= set(dir(smp_plugin))
    assert smp_plugin.evaluate.__module__ == "smp_plugin.evaluation"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        smp_plugin.nothing  # noqa: B018

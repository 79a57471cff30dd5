"""Training and prediction killed at random moments: what is left must be whole, and going on must change nothing.

    python benchmarks/faults.py --trials 100 --fresh 4      # of each signal for each command; exit code 1 if one fails

Called again with the same output it goes on, until there are as many trials.

A tiny project is made and learnt once without disturbance. Then runs are started, killed by SIGKILL, SIGTERM or SIGINT, gone on with and
killed again, until one ends by itself. The moment is a random share of the command's work, or (every other trial) just before a file is
opened to write, moved or removed. A trial fails if

* the project or its video changed, or anything but the signal's exit code (137, 143, 130; 0 once all is done) or a traceback came out;
* of training: a file in the run folder is not whole, a line of `metrics.csv` differs, or the run that at last ended by itself has not, to
  the last bit, the weights, optimiser and metrics of the undisturbed one;
* of prediction: an output is there but not whole, does not hold what the undisturbed one begins with, or after SIGTERM or SIGINT
  not all frames that this run predicted; with ``--resume``, the output at the end differs from the undisturbed one;
* a temporary file is still there once a run ended by itself.

Importing torch takes longer than all the rest, so processes are forked from one that has done it, but for ``--fresh`` ones, whose life
begins with the interpreter; there Ctrl-C while Python itself still starts gives Python's own traceback. All have one thread, so predict one
batch at a time. Times differ between machines, so a seed gives the same signals, not the same moments.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if os.environ.get("OMP_NUM_THREADS") != "1":  # a process that has threads cannot be forked
    os.environ["OMP_NUM_THREADS"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import torch
from faults_process import Ended, Moment, import_all, run
from machine import machine
from PIL import Image

from converters import Instance, LabeledFrame, Labels, Skeleton, VideoSource, read_project, write_project
from converters.files import written_whole
from smp_plugin import segments
from smp_plugin.checkpoint import load_model, save_model
from smp_plugin.config import read_config
from smp_plugin.run_folder import read_checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ROWS = ("train", "predict", "predict --resume")
FRAMES, SIZE, LABELLED, STEPS, EVERY = 48, 64, 10, 4, 2
SEGMENT = 8  # frames of what smp-predict keeps, so that there is something to go on with
KILLS = 6  # in a run, at most
SETTINGS = (
    "data.crop=64", "data.animal_size=24", "model.channels=16", "model.tower_depth=1", "model.heatmap_channels=16", "train.batch=2",
    "train.unlabeled_batch=1", "train.optimizer=sgd", "train.precision=fp32", f"train.val_every={EVERY}",
    "train.labeled_fusion_start=0.3", "train.unlabeled_fusion_start=0.6", "train.unlabeled_first_step=0",
)  # fmt: skip
TRAIN = ["--slp", "in/project.slp", "-o", "run", "--weights", "none", "--device", "cpu", "--steps", str(STEPS)]
TRAIN += ["--val", "0.2", *(word for setting in SETTINGS for word in ("--set", setting))]
PREDICT = ["in/clip.mp4", "--device", "cpu", "--json", "--max-animals", "2", "--min-score", "0.000001"]
OUTPUTS = {  # by what is asked for, the files that come
    "out/clip.slp": ("out/clip.slp", "out/clip.poses.mp4"),
    "out/clip.analysis.h5": ("out/clip.analysis.h5",),
    "out/clipDLC_net_el.h5": ("out/clipDLC_net_el.h5", "out/clipDLC_net_el.csv", "out/clipDLC_net_meta.pickle"),
}  # fmt: skip


def make_project(folder: Path) -> None:
    """A project with labels, and its video, in which a shade drifts."""
    import av

    rng = np.random.default_rng(0)
    folder.mkdir()
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIZE
        for number in range(FRAMES):
            image = np.repeat((3 * np.arange(SIZE) + number).astype(np.uint8), 3 * SIZE).reshape(SIZE, SIZE, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    skeleton = Skeleton(("nose", "tail"), ((0, 1),), (), "animal")
    frames = [LabeledFrame(0, i, [Instance(rng.uniform(8, SIZE - 8, (2, 2)), None)]) for i in range(LABELLED)]
    write_project(folder / "project.slp", Labels(skeleton, [VideoSource((folder / "clip.mp4",))], frames))


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, tensors within dictionaries and lists too."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# --- training ---


def rows_of(run_folder: Path) -> list[dict[str, str]]:
    """Lines of metrics.csv without what the clock says."""
    path = run_folder / "metrics.csv"
    with path.open(newline="") if path.exists() else tempfile.TemporaryFile("r") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def result_of(run_folder: Path) -> Any:
    """What must not depend on where the run was killed."""
    saved, kept = read_checkpoint(run_folder), load_model(run_folder)
    facts = {key: value for key, value in kept.facts.items() if key not in ("minutes", "projects")}
    state = {key: saved[key] for key in ("state_dict", "optimizer_states", "callbacks", "step")}
    return state, kept.model.state_dict(), kept.config.predict.min_score, facts, rows_of(run_folder)


@dataclass
class Training:
    """Runs of smp-train, compared with one that nothing happened to."""

    whole: Path  # folder of the undisturbed run
    life: float = 0  # seconds of work
    fresh_life: float = 0  # the same with imports
    operations: int = 0  # of files
    result: Any = None
    name = row = "train"

    def words(self, folder: Path) -> list[str]:
        """Start, or go on where there is something to go on with."""
        return TRAIN + (["--resume"] if (folder / "run" / "config.yaml").exists() else [])

    def look(self, folder: Path, *_: object) -> list[str]:
        """What is wrong with the run folder after a kill."""
        run_folder, problems = folder / "run", []
        if not run_folder.exists():
            return []
        names = {path.name for path in run_folder.iterdir()}
        if "last.ckpt" in names and not 0 < read_checkpoint(run_folder)["step"] <= STEPS:  # any step: a wish to stop keeps the one at hand
            problems.append("last.ckpt is of no step of the run")
        if "model.pt" in names:
            load_model(run_folder)
        if "config.yaml" in names:
            read_config(run_folder / "config.yaml")
        for picture in names & {"curves.png", "val_predictions.png"}:
            Image.open(run_folder / picture).load()
        if "report.html" in names and not (run_folder / "report.html").read_text().endswith("</html>\n"):
            problems.append("report.html is cut off")
        rows = rows_of(run_folder)
        if rows != rows_of(self.whole / "run")[: len(rows)]:
            problems.append("metrics.csv differs")
        return problems

    def place(self, folder: Path) -> str:
        """Where the signal came."""
        if not (folder / "run" / "config.yaml").exists():
            return "start-up"
        if not (folder / "run" / "last.ckpt").exists():
            return "before the first checkpoint"
        return "between checkpoints" if len(rows_of(folder / "run")) < STEPS // EVERY else "at the end"

    def compare(self, folder: Path) -> list[str]:
        """What differs from the undisturbed run in one that ended by itself."""
        self.result = self.result or result_of(self.whole / "run")
        return [] if same(result_of(folder / "run"), self.result) else ["it did not end as the undisturbed run"]


# --- prediction ---


def save_sure(run_folder: Path, path: Path) -> None:
    """The model as one that sees animals everywhere; after so few steps it would find none."""
    kept = load_model(run_folder)
    for layer in kept.model.presence.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)
    save_model(path, kept)


def poses_in(path: Path) -> list[Any]:
    """Of each frame with animals of a file of predictions, its number and animals; a table has rows for frames that nobody predicted."""
    labels = read_project(path, require_videos=False)
    return [(f.index, [i.points.tolist() for i in f.predicted]) for f in sorted(labels.frames, key=lambda f: f.index) if f.predicted]


def length_of(video: Path) -> int:
    """Frames of a video that can be decoded."""
    from converters.video import open_video, video_source

    with open_video(video_source(video)) as opened:
        return len(list(opened.stream()))


@dataclass
class Prediction:
    """Runs of smp-predict with one output, compared with one that nothing happened to."""

    whole: Path
    output: str
    resume: bool = False
    life: float = 0
    fresh_life: float = 0
    operations: int = 0
    name = "predict"

    @property
    def row(self) -> str:
        """Of the table."""
        return "predict --resume" if self.resume else "predict"

    @property
    def files(self) -> tuple[str, ...]:
        """What comes."""
        return OUTPUTS[self.output][: 1 if self.resume else None]

    def words(self, folder: Path) -> list[str]:
        """The same command every time."""
        overlay = [word for name in self.files if name.endswith(".mp4") for word in ("--overlay", name)]
        begun = ["--resume"] if self.resume and any((folder / "out").iterdir()) else []
        return [*PREDICT, "--model", str(self.whole.with_name("model.pt")), "-o", self.output, *overlay, *begun]

    def look(self, folder: Path, sent: int, ended: Ended) -> list[str]:
        """What is wrong with the outputs after a kill. They are then removed, so that the next run makes its own, but for ``resume``."""
        problems = []
        reported = [json.loads(line).get("n_processed") for line in ended.text.splitlines() if line.startswith('{"n_processed')]
        made, expected = (reported or [0])[-1], poses_in(self.whole / self.output)
        there = {name for name in self.files if (folder / name).exists()}
        if self.output in there:
            found = poses_in(folder / self.output)  # after SIGKILL all frames, or those that an earlier signal left to go on with
            least = 1 if self.resume and sent == signal.SIGKILL else FRAMES if sent == signal.SIGKILL else made
            if found != expected[: len(found)] or len(found) < least:
                problems.append(f"{len(found)} frames of {len(expected)} are there, {made} were predicted, or they differ")
        elif made and sent != signal.SIGKILL:
            problems.append(f"{made} frames were predicted, and none is kept")
        for name in there:
            if name.endswith(".mp4") and length_of(folder / name) < (FRAMES if sent == signal.SIGKILL else made):
                problems.append(f"{name} is too short")
            if not self.resume:
                (folder / name).unlink()
        return problems

    def place(self, folder: Path) -> str:
        """Where the signal came; asked before the outputs are removed."""
        names = [path.name for path in (folder / "out").iterdir()]
        if any(name.startswith(".") and not name.endswith(".made_from.json") for name in names):
            return "writing"
        return "after some output was whole" if names else "before anything is written"

    def compare(self, folder: Path) -> list[str]:
        """What differs from the undisturbed run in one that ended by itself."""
        if missing := [name for name in self.files if not (folder / name).exists()]:
            return [f"missing: {missing}"]
        problems = [] if poses_in(folder / self.output) == poses_in(self.whole / self.output) else ["poses differ"]
        return problems + [f"{name} is short" for name in self.files if name.endswith(".mp4") and length_of(folder / name) < FRAMES]


# --- trials ---

Subject = Training | Prediction


@dataclass
class Row:
    """The trials of one signal with one command."""

    trials: int = 0
    fresh: int = 0
    places: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)


class Bench:
    """Folders, the undisturbed runs, and the rows of the table."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        before = json.loads(options.output.read_text())["commands"] if options.output.exists() else {}
        self.rows = {name: {sent.name: Row(**before.get(name, {}).get(sent.name, {})) for sent in SIGNALS} for name in ROWS}
        self.root, self.options, self.project, self.number = root, options, root / "project", 0
        self.rng = random.Random(f"{options.seed} {sum(row.trials for rows in self.rows.values() for row in rows.values())}")
        make_project(self.project)
        self.untouched = state_of(self.project)

    def folder(self, name: str) -> Path:
        """A new one with the project in it."""
        folder = self.root / name
        folder.mkdir()
        shutil.copytree(self.project, folder / "in")
        (folder / "out").mkdir()
        return folder

    def undisturbed(self, name: str, words: list[str], folder: Path) -> Ended:
        """Let a command be, and see what it takes."""
        ended = run(name, words, folder)
        if ended.code:
            raise SystemExit(f"smp-{name} ends with {ended.code} undisturbed:\n{ended.text}")
        import_all(ended.facts["modules"])
        print(f"smp-{name}: {ended.cpu_seconds:.1f} s of work, {ended.facts['operations']} file operations", flush=True)
        return ended

    def prepare(self) -> list[Subject]:
        """The undisturbed runs."""
        subjects = [Training(self.folder("whole")), *(Prediction(self.folder(f"whole{n}"), output) for n, output in enumerate(OUTPUTS))]
        subjects.append(Prediction(self.folder("whole_resumed"), next(iter(OUTPUTS)), resume=True))
        for subject in subjects if "predict" in self.options.commands else subjects[:1]:
            ended = self.undisturbed(subject.name, subject.words(subject.whole), subject.whole)
            subject.life, subject.operations = ended.cpu_seconds, ended.facts["operations"]
            if isinstance(subject, Prediction) and len(poses_in(subject.whole / subject.output)) != FRAMES:
                raise SystemExit("there is a frame in which no animal is found")
            if subject is subjects[0]:
                save_sure(self.root / "whole" / "run", self.root / "model.pt")
        gc.collect()
        gc.freeze()  # or the first collection in each process would copy all pages
        return subjects

    def chain(self, subject: Subject, fresh: bool) -> None:
        """A run that is killed and gone on with until it ends by itself, compared with the undisturbed one."""
        folder, rows = self.folder(f"case{self.number}"), self.rows[subject.row]
        self.number += 1
        trials: list[dict[str, Any]] = []
        while True:
            wanted = [sent for sent in SIGNALS if self.missing(rows[sent.name], fresh)]
            sent = self.rng.choice(wanted) if wanted and len(trials) < KILLS else 0
            moment = self.moment(subject, fresh) if sent else Moment()
            ended = run(subject.name, subject.words(folder), folder, sent, moment, fresh and bool(sent))
            name = signal.Signals(sent).name if sent and ended.hit else "none"
            trial = {"signal": name, "moment": vars(moment), "code": ended.code, "fresh": fresh, "place": subject.place(folder)}
            trial["problems"] = self.problems(subject, folder, ended, sent)
            trials.append(trial)
            if name != "none":
                row = rows[name]
                row.trials, row.fresh = row.trials + 1, row.fresh + fresh
                for counts, what in ((row.places, trial["place"]), (row.codes, str(ended.code))):
                    counts[what] = counts.get(what, 0) + 1
            if ended.code != 128 + sent:
                break
        bad = [trial for trial in trials if trial["problems"]]
        if bad:
            blamed = next((trial["signal"] for trial in reversed(trials) if trial["signal"] != "none"), "SIGKILL")
            rows[blamed].failures.append({"case": self.number - 1, "trials": trials})
            print(f"case {self.number - 1}, smp-{subject.name}:", *(f"  {trial}" for trial in trials), sep="\n", flush=True)
            if self.options.keep:
                shutil.copytree(folder, self.options.keep / folder.name, dirs_exist_ok=True)
                shutil.copy(folder.with_name(f"{folder.name}.said"), self.options.keep)
        shutil.rmtree(folder)
        self.write()

    def write(self) -> None:
        """The result so far."""
        command = f"python benchmarks/faults.py --trials {self.options.trials} --fresh {self.options.fresh} --seed {self.options.seed}"
        commands = {name: {sent: vars(row) for sent, row in signals.items()} for name, signals in self.rows.items()}
        with written_whole(self.options.output) as temporary:
            temporary.write_text(json.dumps({"command": command, "machine": machine(), "commands": commands}, indent=1) + "\n")

    def missing(self, row: Row, fresh: bool) -> bool:
        """Are there too few trials?"""
        return row.fresh < self.options.fresh if fresh else row.trials - row.fresh < self.options.trials - self.options.fresh

    def moment(self, subject: Subject, fresh: bool) -> Moment:
        """A random one of the life of a command."""
        if not fresh and self.rng.random() < 0.5:
            return Moment(operation=self.rng.randint(1, subject.operations))
        return Moment(cpu_seconds=self.rng.uniform(0, 1.05 * (subject.fresh_life if fresh else subject.life)))

    def problems(self, subject: Subject, folder: Path, ended: Ended, sent: int) -> list[str]:
        """Everything that is wrong after a process ended."""
        problems = []
        if state_of(folder / "in") != self.untouched:
            problems.append("the project changed")
        if ended.code not in ((0, 128 + sent) if ended.hit else (0,)):
            problems.append(f"exit code {ended.code}")
        began = "_find_and_load" not in ended.text or "in run\n" in ended.text  # before, Python itself answers
        alarms = any(text in ended.text for text in ("Traceback", "Exception ignored", "this is a bug"))
        if (alarms and began) or list(folder.glob("**/*-error.txt")):
            problems.append(f"said: {ended.text[-1500:]}")
        try:
            if not ended.code:
                problems += subject.compare(folder)
                strays = {p.name for p in folder.rglob("*") if p.name.startswith(".")} | {p.name for p in (folder / "tmp").iterdir()}
                strays -= {name for name in strays if name.startswith("torchinductor")}  # made by importing torch
                strays -= {name for name in strays if name.endswith(".made_from.json")}  # what finished outputs were made from
                problems += [f"left over: {sorted(strays)}"] if strays else []
            else:
                problems += subject.look(folder, sent, ended)
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        return problems

    def run(self) -> None:
        """All trials."""
        subjects = [subject for subject in self.prepare() if subject.name in self.options.commands]
        for fresh in (False, True):
            for number, subject in enumerate(subjects if fresh and self.options.fresh else []):
                folder = self.folder(f"fresh{number}")
                subject.fresh_life = run(subject.name, subject.words(folder), folder, fresh=True).cpu_seconds
            while wanting := [s for s in subjects if any(self.missing(row, fresh) for row in self.rows[s.row].values())]:
                self.chain(wanting[self.number % len(wanting)], fresh)


def table(rows: dict[str, dict[str, Row]]) -> str:
    """The rows, for people."""
    lines = [f"{'':26}{'trials':>8}{'fresh':>7}{'failed':>8}  where they came; exit codes"]
    for name, signals in rows.items():
        for sent, row in signals.items():
            places, codes = (", ".join(f"{what}: {count}" for what, count in counts.items()) for counts in (row.places, row.codes))
            lines.append(f"{name + ' ' + sent:26}{row.trials:8}{row.fresh:7}{len(row.failures):8}  {places}; {codes}")
    return "\n".join(lines)


def main() -> int:
    """Run, print a table, write the result; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="*", default=["train", "predict"], choices=["train", "predict"])
    parser.add_argument("--trials", type=int, default=100, help="of each signal for each command (100)")
    parser.add_argument("--fresh", type=int, default=4, help="of these, processes that import everything themselves (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of failed cases there")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    segments.LENGTH = SEGMENT  # but for fresh processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background with it switched off
    with tempfile.TemporaryDirectory(prefix="faults") as root:
        bench = Bench(Path(root).resolve(), options)
        bench.run()
    print("\n" + table(bench.rows))
    return int(any(row.failures for signals in bench.rows.values() for row in signals.values()))


if __name__ == "__main__":
    sys.exit(main())

"""The page of a comparison."""

import importlib.util
import json
import math
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from converters.labels import Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.project import write_predictions
from smp_plugin.baselines import METHODS, CurvePoint, Job, Outcome
from smp_plugin.comparison_pictures import aligned, look, mean_line, worst_first
from smp_plugin.comparison_report import reference_of, write_comparison
from smp_plugin.comparison_results import COLUMNS, append_result, cell_folder, in_words, read_results
from smp_plugin.drawing import DOUBLED, INVENTED, MISSED, draw_errors, judge

HOSTILE = "<script>alert(1)</script>"
SKELETON = Skeleton(("nose", "middle", "tail"), ((0, 1), (1, 2)))
MOUSE = np.array([[30.0, 30.0], [50.0, 36.0], [70.0, 30.0]])
BUDGET = {"5": 5, "25": 25, "all": 105}


@pytest.fixture
def val(tmp_path: Path) -> Labels:
    """Three images with two animals each."""
    paths = []
    for n in range(3):
        paths.append(tmp_path / "images" / f"<i>mouse{n}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((120, 160, 3), 60 + 30 * n, dtype=np.uint8)).save(paths[-1])
    frames = [LabeledFrame(0, n, [Instance(MOUSE + n), Instance(MOUSE + [50, 60])]) for n in range(3)]
    return Labels(SKELETON, [VideoSource(tuple(paths))], frames)


def _row(method: str, fraction: str, seed: int, ap: float, **values: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COLUMNS, 1.0)
    return row | {
        "method": method, "labels": BUDGET[fraction], "fraction": fraction, "seed": seed, "ap_s2_0.1": ap, "version": f"{method} 1.0"
    } | values  # fmt: skip


def _cell(folder: Path, val: Labels, method: str, fraction: str = "5", seed: int = 0, ap: float = 0.5, curve: bool = True) -> None:
    """A finished cell: the second animal is missed in frame 1, in frame 2 one is invented."""
    append_result(folder, _row(method, fraction, seed, ap))
    place = cell_folder(folder, method, fraction, seed)
    found = [[i.points + 2 for i in frame.instances] for frame in val.frames]
    found[1].pop()
    found[2].append(MOUSE + [60, 0])
    frames = [LabeledFrame(0, n, predicted=[PredictedInstance(p, score=0.9) for p in poses]) for n, poses in enumerate(found)]
    for frame in frames:  # kept for AP, and not to be seen
        frame.predicted.append(PredictedInstance(MOUSE + [0, 50], score=0.05))
    place.mkdir(parents=True)
    write_predictions(place / "predictions.slp", val.skeleton, val.videos, frames, {})
    points = [CurvePoint(60.0 * n, 10 * n, "first" if n < 3 else HOSTILE, {"1": 0.2, "0.1": 0.1 * n}) for n in range(1, 5)]
    outcome = Outcome(f"{method} 1.0", 40, 240.0, 1.0, 3, [f"note of {method} & {HOSTILE}"], points if curve else [], min_score=0.1)
    (place / "outcome.json").write_text(json.dumps(outcome.to_dict()))
    Job(
        method, Path("train.slp"), Path("val.slp"), place, seed, 13.0, settings={"loss.beta": "0.2", "sleap.lr": "7", "dlc.lr": "9"}
    ).write()


class _Page(HTMLParser):
    """Text of the rows of all tables, and the attributes that ask for something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.asked: list[str] = []
        self.tags: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th", "b", "small", "span")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def _table(rows: list[list[str]], head: str, n: int = 0) -> dict[str, list[str]]:
    """Method -> its row, of the n-th table with such a head; of several numbers of labels, the first."""
    start = [i for i, row in enumerate(rows) if row[:2] == ["method", head]][n]
    found: dict[str, list[str]] = {}
    for row in rows[start + 1 :]:
        if row[0] == "method":
            break
        found.setdefault(row[0], row)
    return found


def test_figures_are_those_of_the_results(tmp_path: Path, val: Labels):
    folder = tmp_path / "comparison"
    for seed, (ours, theirs) in enumerate([(0.5, 0.4), (0.7, 0.5), (0.9, 0.9)]):
        _cell(folder, val, "smp", seed=seed, ap=ours)
        append_result(folder, _row("sleap-topdown", "5", seed, theirs, missed=7 - seed))
    page = _Page(write_comparison(folder, title="t", val=val, facts={}, notes=[]).read_text())
    results, differences = _table(page.rows, "runs"), _table(page.rows, "pairs")
    column = 3  # method, runs, AP at s2 = 1, at .1
    assert results["smp"][1] == "3" and results["smp"][column] == "0.700 ± 0.115"
    assert results["sleap-topdown"][column] == "0.600 ± 0.153" and results["sleap-topdown"][7] == "6.0 ± 0.6"
    assert differences["sleap-topdown"][1] == "3" and differences["sleap-topdown"][column] == "−0.100 ± 0.058"
    assert differences["sleap-topdown"][2] == "none (0.000 ± 0.000)"


def test_in_words(tmp_path: Path):
    def said(*rows: dict[str, object]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for row in rows:
            append_result(folder, row)
        return " ".join(in_words(read_results(folder)))

    clear = [_row(m, "5", s, ap + 0.01 * s) for m, ap in (("smp", 0.8), ("sleap-topdown", 0.6)) for s in range(3)]
    assert (
        said(*clear)
        == "With 5 labelled frames, smp is best: AP 0.810 ± 0.006 at s2 = 0.1, 0.200 ± 0.000 ahead of sleap-topdown (3 runs paired)."
    )
    equal = [_row("smp", "5", 0, 0.8), _row("smp", "5", 1, 0.6), _row("directpose", "5", 0, 0.6), _row("directpose", "5", 1, 0.78)]
    assert "no method is clearly best: smp has the highest mean" in said(*equal) and "over directpose is within its standard error" in said(
        *equal
    )
    weak = [_row("smp", "5", 0, 0.8), _row("smp", "5", 1, 0.8), _row("directpose", "5", 0, 0.5), _row("directpose", "5", 1, 0.6)]
    assert "0.250 ± 0.050 ahead of directpose (2 runs paired): less than the 12.7 standard errors" in said(*weak)
    more = [_row(method, "5", s, ap) for s in range(2, 5) for method, ap in (("smp", 0.8), ("directpose", 0.52 + 0.02 * s))]
    assert "smp is best" in said(*weak, *more)  # 5 pairs
    assert "less than the 2.0 standard errors" in said(
        *(_row(m, "5", s, ap) for s in range(60) for m, ap in (("smp", 0.5), ("directpose", 0.48 + 0.1 * (-1) ** s)))
    )
    assert "0.300 more than directpose in the one run that they share" in said(_row("smp", "5", 0, 0.8), _row("directpose", "5", 0, 0.5))
    rows = [*(_row("smp", "5", s, ap) for s, ap in enumerate((0.5, 0.9, 0.9))), _row("directpose", "5", 0, 0.6)]
    assert "smp has the highest mean" in said(*rows) and "0.100 LESS than directpose in the one run that they share" in said(*rows)
    assert "shares no labels and seed" in said(_row("smp", "5", 0, 0.8), _row("directpose", "5", 1, 0.5))
    assert "smp reaches AP 0.800 at s2 = 0.1 (1 run)" in said(_row("smp", "5", 0, 0.8))
    same = [_row("smp", "5", 0, 0.8), _row("directpose", "5", 0, 0.8), _row("smp-labeled", "5", 0, 0.7)]
    assert said(*same) == "With 5 labelled frames, directpose and smp do not differ: AP 0.800 at s2 = 0.1."
    none = [_row("smp", "5", 0, 0.0, ap_s2_1=0.0), _row("directpose", "5", 0, 0.0001, ap_s2_1=0.0)]
    assert said(*none) == "With 5 labelled frames, no method found animals well enough: AP 0.000 at s2 = 0.1."
    assert "could not be measured" in said(_row("smp", "5", 0, math.nan))
    loose = said(_row("smp", "5", 0, 0.8, ap_s2_1=0.8), _row("directpose", "5", 0, 0.5, ap_s2_1=0.9))
    assert "If only finding the animals matters (s2 = 1), directpose has the highest AP, 0.900." in loose
    assert len(in_words([])) == 1
    assert len(in_words([*read_results(tmp_path / "0")])) == 1


def test_everything_is_escaped_and_nothing_is_fetched(tmp_path: Path, val: Labels):
    folder = tmp_path / "comparison"
    for method in ("smp", "a<b>&"):
        for fraction in BUDGET:
            _cell(folder, val, method, fraction)
    text = write_comparison(folder, title=HOSTILE, val=val, facts={HOSTILE: HOSTILE}, notes=[f"note {HOSTILE}"]).read_text()
    page = _Page(text)
    assert "<script" not in text and "<i>" not in text and "a<b>" not in text and "&lt;i&gt;mouse1.png" in text
    assert "script" not in page.tags and "link" not in page.tags and page.asked
    assert all(asked.startswith("data:image/") for asked in page.asked)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))
    assert text.count("data:image/jpeg") == 3 * 3 and text.count("data:image/png") >= 3 + 3 + 2
    assert text.index("&lt;i&gt;mouse1.png") < text.index("&lt;i&gt;mouse0.png")  # the worst first
    assert "1 missed; points 2.8 px off" in text and "1 invented; points 2.8 px off" in text and "all animals found" in text
    assert "<h2>Speed and memory</h2>" in text and "Memory at its peak, training included" in text and "Cost of prediction" not in text
    assert "12.7 with 2 pairs" in text and "It is not measured alike" in text
    assert "note of smp &amp; &lt;script&gt;" in text and "13 minutes" in text and "loss.beta = 0.2" in text


@pytest.mark.parametrize(
    ("method", "own"), [("smp", "loss.beta = 0.2"), ("sleap-bottomup", "sleap.lr = 7"), ("dlc-dekr_w18", "dlc.lr = 9")]
)
def test_settings_are_listed_with_the_methods_that_they_are_of(tmp_path: Path, val: Labels, method: str, own: str):
    _cell(tmp_path, val, method)
    text = write_comparison(tmp_path, title="", val=val, facts={}, notes=[]).read_text()
    assert [said for said in ("loss.beta = 0.2", "sleap.lr = 7", "dlc.lr = 9") if said in text] == [own]


def test_runs_of_several_versions_are_said_to_be(tmp_path: Path, val: Labels):
    _cell(tmp_path, val, "smp")
    append_result(tmp_path, _row("directpose", "5", 0, 0.4))
    assert "different versions" not in write_comparison(tmp_path, title="", val=val, facts={}, notes=[]).read_text()
    append_result(tmp_path, _row("smp", "5", 1, 0.5, version="smp 2.0"))
    text = write_comparison(tmp_path, title="", val=val, facts={}, notes=[]).read_text()
    assert "The runs of smp were made by different versions (smp 1.0, smp 2.0)" in text and text.count("different versions") == 1


def test_one_method_one_run_without_a_curve(tmp_path: Path, val: Labels):
    folder = tmp_path / "comparison"
    _cell(folder, val, "sleap-bottomup", curve=False)
    text = write_comparison(folder, title="t", val=val, facts={}, notes=[]).read_text()
    assert "without decoding" not in text
    assert "No curve was recorded for sleap-bottomup" in text and "<h2>Differences" not in text
    assert "there is no other method" in text and "1 run)" in text
    assert _table(_Page(text).rows, "runs")["sleap-bottomup"][3] == "0.500 ± -"
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)


def test_what_is_missing_is_said(tmp_path: Path, val: Labels):
    folder = tmp_path / "comparison"
    folder.mkdir()
    assert "No training is finished yet" in write_comparison(folder, title="t", val=val, facts={}, notes=[]).read_text()
    _cell(folder, val, "smp")
    append_result(folder, _row("directpose", "5", 0, math.nan, missed=None))  # no files
    append_result(folder, _row("dlc-rtmpose_s", "25", 0, 0.5))  # other labels than those that are shown
    text = write_comparison(folder, title="t", val=val, facts={}, notes=[]).read_text()
    assert (
        "predictions.slp" in text and "no run with this many labels is finished" in text and "nan" not in _table(_Page(text).rows, "runs")
    )
    for path in val.videos[0].paths:
        path.unlink()
    gone = write_comparison(folder, title="t", val=val, facts={}, notes=[]).read_text()
    assert "No picture: " in gone and "image/jpeg" not in gone and len(gone) < len(text)
    (cell_folder(folder, "smp", "5", 0) / "predictions.slp").write_bytes(b"damaged")
    assert "No predictions could be read" in write_comparison(folder, title="t", val=val, facts={}, notes=[]).read_text()


def test_predictions_are_put_in_the_order_of_the_labels(val: Labels):
    other = Skeleton(("tail", "ear", "nose"))
    pose = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    guess = Labels(other, val.videos, [LabeledFrame(0, 2, predicted=[PredictedInstance(pose, score=0.5)])])
    poses = [poses for poses, _ in aligned(val, guess)]
    assert [len(p) for p in poses] == [0, 0, 1]
    assert np.array_equal(poses[2][0], [[5.0, 6.0], [np.nan, np.nan], [1.0, 2.0]], equal_nan=True)


def test_predictions_on_a_box_without_keypoints_are_not_shown(val: Labels):
    frames = val.labelled_frames
    crowd = [replace(frame, unposed=[np.array([500.0, 500, 600, 600])]) for frame in frames]
    there = np.full((len(val.skeleton), 2), 550.0)
    guess = Labels(
        val.skeleton, val.videos, [LabeledFrame(f.video, f.index, predicted=[PredictedInstance(there, score=0.5)]) for f in frames]
    )
    assert [len(poses) for poses, _ in aligned(val, guess)] == [1] * len(frames)
    assert [len(poses) for poses, _ in aligned(replace(val, frames=crowd), guess)] == [0] * len(frames)


def test_runs_are_averaged_over_the_minutes_that_all_have():
    few, many = np.array([[1.0, 0.0], [5.0, 0.4]]), np.array([[2.0, 0.4], [3.0, 0.6], [4.0, 0.8], [6.0, 1.0]])
    assert np.allclose(mean_line([few, many]), [[2, 0.25], [3, 0.4], [4, 0.55], [5, 0.65]])
    assert mean_line([many]) is many
    assert np.allclose(mean_line([few[:1], few[1:]]), [[3, 0.2]])  # a point each


def test_worst_first():
    empty, none = np.empty((0, 3, 2)), np.empty(0)
    right, wrong = (MOUSE[None], np.ones(1)), (MOUSE[None] + 3, np.ones(1))
    truth = [empty, MOUSE[None], MOUSE[None], MOUSE[None], empty]
    assert worst_first(truth, [(empty, none), right, wrong, (empty, none), right]) == [3, 4, 2, 0, 1]


def test_errors_are_marked():
    truth = np.stack([MOUSE, MOUSE + [60, 60]])
    poses = np.stack([MOUSE + [0, 4], MOUSE + [1, 3], MOUSE + [70, 0]])
    poses[0, 2] = np.nan
    verdict = judge(truth, poses)
    assert verdict.missed == [1] and verdict.invented == [2] and verdict.doubled in ([0], [1]) and len(verdict.pairs) == 1
    assert str(verdict) == "1 missed, 1 invented, 1 doubled" and str(judge(truth, truth)) == "all animals found"
    grey = np.full((120, 180, 3), 90, dtype=np.uint8)
    drawn = draw_errors(grey, SKELETON, truth, poses, verdict, least=2.0).astype(int)
    for colour, least in ((MISSED, 60), (INVENTED, 60), (DOUBLED, 100)):
        assert (np.abs(drawn - colour).max(axis=2) < 40).sum() > least
    right = draw_errors(grey, SKELETON, truth, truth, judge(truth, truth)).astype(int)
    assert not (np.abs(right - MISSED).max(axis=2) < 60).any()
    nothing = np.empty((0, 3, 2))
    assert np.array_equal(draw_errors(grey, SKELETON, nothing, nothing, judge(nothing, nothing)), grey)
    assert judge(nothing, poses).invented == [0, 1, 2] and judge(truth, nothing).missed == [0, 1]


def test_every_method_looks_its_own_way():
    methods = [*METHODS, "one", "two"]
    looks = [look(method, methods, "smp") for method in methods]
    assert len({(style.colour, style.marker) for style in looks}) == len(methods)
    assert max(looks, key=lambda style: style.width) == looks[methods.index("smp")]
    assert reference_of(["directpose", "smp", "sleap-topdown"]) == "smp" and reference_of(["sleap-topdown"]) == "sleap-topdown"
    assert reference_of(["directpose", "smp-labeled", "dlc-rtmpose_s"]) == "smp-labeled"


def _browser(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "screenshot.py"
    spec = importlib.util.spec_from_file_location("screenshot", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "screenshot", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path: Path, val: Labels, width: int, monkeypatch: pytest.MonkeyPatch):
    if not os.environ.get("SMP_BROWSER_TEST"):
        pytest.skip("set SMP_BROWSER_TEST=1 to look at the page in a Chromium")
    module = _browser(monkeypatch)
    if module.browser() is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(module.BROWSERS)})")
    folder = tmp_path / "comparison"
    for method in METHODS:
        for n, fraction in enumerate(BUDGET):
            _cell(folder, val, method, fraction, ap=0.4 + 0.1 * n)
    page = write_comparison(folder, title="x" * 200, val=val, facts={"Path": "/long" * 60}, notes=[])
    seen = module.screenshot(page, tmp_path / "page.png", width, unfold=True)
    assert seen.content <= width and not seen.wide and not seen.broken and not seen.errors
    assert "labelled frames" in seen.text and "Definitions" in seen.text
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width and picture.height > 2000
        bands = np.asarray(picture.convert("L"), dtype=float)[: picture.height // 10 * 10].reshape(10, -1)
        assert (bands.std(axis=1) > 2).all()  # no tenth of it is blank

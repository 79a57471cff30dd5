from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from converters import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.deeplabcut import read_dlc
from converters.deeplabcut_tables import read_table
from converters.deeplabcut_writing import write_dlc
from converters.sleap import read_slp

PARTS = ("nose", "ear", "tail")
SKELETON = Skeleton(PARTS, ((0, 1), (1, 2)))


def table(animals: dict[str, Any] | None, images: list[str], scorer: str = "Ada", folder: str = "clip", index: str = "three") -> Any:
    """A table of labels as DeepLabCut makes it; ``animals``: individual -> (images, parts, 2), or one array for a single animal."""
    many = isinstance(animals, dict)
    columns, values = [], []
    for individual, points in (animals if isinstance(animals, dict) else {"": animals}).items():
        parts = PARTS if individual != "single" else ("corner",)
        columns += [(scorer, *([individual] if many else []), part, c) for part in parts for c in "xy"]
        values.append(np.asarray(points, dtype=float).reshape(len(images), -1))
    names = ["scorer", *(["individuals"] if many else []), "bodyparts", "coords"]
    rows: Any = [("labeled-data", folder, image) for image in images]
    if index == "three":
        rows = pd.MultiIndex.from_tuples(rows)
    else:
        rows = [("/" if index == "slash" else "\\").join(row) for row in rows]
    return pd.DataFrame(np.concatenate(values, axis=1), columns=pd.MultiIndex.from_tuples(columns, names=names), index=rows)


def save(frame: Any, stem: Path, kinds: str = "h5 csv", layout: str = "fixed") -> None:
    if "h5" in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame.to_hdf(stem.with_suffix(".h5"), key="df_with_missing", mode="w", format=layout)
    if "csv" in kinds:
        frame.to_csv(stem.with_suffix(".csv"))


@pytest.fixture
def make_dlc(tmp_path: Path, make_images: Callable[..., list[Path]]) -> Callable[..., Path]:
    """``make_dlc(animals, ...)`` writes a project of one folder, ``clip``, with labels in its images img2.png and img10.png."""

    def make(
        animals: Any = None,
        index: str = "three",
        kinds: str = "h5 csv",
        layout: str = "fixed",
        name: str = "project",
        **changes: Any,
    ) -> Path:
        project = tmp_path / name
        make_images(project / "labeled-data" / "clip", 12)
        animals = {"a": SOME, "b": SOME + 20} if animals is None else animals
        save(table(animals, ["img2.png", "img10.png"], index=index), project / "labeled-data" / "clip" / "CollectedData_Ada", kinds, layout)
        content: dict[str, Any] = {
            "Task": "demo",
            "scorer": "Ada",
            "date": "Nov21",
            "multianimalproject": isinstance(animals, dict),
            "project_path": r"C:\Users\ada\dlc\project",
            "video_sets": {r"C:\Users\ada\dlc\project\videos\clip.mp4": {"crop": "0, 64, 0, 48"}},
            "bodyparts": list(PARTS),
            "skeleton": [["nose", "ear"], ["ear", "tail"]],
            "iteration": 0,
        }
        if isinstance(animals, dict):
            content |= {
                "bodyparts": "MULTI!",
                "multianimalbodyparts": list(PARTS),
                "individuals": ["a", "b"],
                "uniquebodyparts": ["corner"],
            }
        content |= changes
        (project / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not ...}))
        return project / "config.yaml"

    return make


SOME = np.array([[[1, 2], [3.5, 4], [5, 6]], [[7, 8], [np.nan, np.nan], [9, 10]]])


def summary(labels: Labels) -> list[Any]:
    return [(f.index, [(i.track, np.nan_to_num(i.points, nan=-1).tolist()) for i in f.instances]) for f in labels.frames]


# --- reading ---


@pytest.mark.parametrize("kinds", ["h5 csv", "h5", "csv"])
@pytest.mark.parametrize("index", ["three", "slash", "backslash"])
def test_several_animals(make_dlc: Callable[..., Path], index: str, kinds: str) -> None:
    labels = read_dlc(make_dlc(index=index, kinds=kinds))
    assert labels.skeleton == SKELETON
    (video,) = labels.videos
    assert video.kind == "images" and [path.name for path in video.paths] == [f"img{n}.png" for n in range(12)], "natural order"
    full = np.nan_to_num(SOME, nan=-1)
    shifted = np.nan_to_num(SOME + 20, nan=-1)
    assert summary(labels) == [
        (2, [("a", full[0].tolist()), ("b", shifted[0].tolist())]),
        (10, [("a", full[1].tolist()), ("b", shifted[1].tolist())]),
    ]
    assert not any(frame.negative or frame.predicted for frame in labels.frames)


@pytest.mark.parametrize(("index", "layout"), [("three", "fixed"), ("slash", "fixed"), ("slash", "table"), ("backslash", "table")])
def test_one_animal(make_dlc: Callable[..., Path], index: str, layout: str) -> None:
    labels = read_dlc(make_dlc(SOME, index=index, layout=layout, kinds="h5", multianimalproject=""))
    assert [(f.index, [i.track for i in f.instances]) for f in labels.frames] == [(2, [None]), (10, [None])]
    assert np.array_equal(labels.frames[1].instances[0].points, SOME[1], equal_nan=True)


def test_rows_and_animals_without_a_point(make_dlc: Callable[..., Path]) -> None:
    nothing = SOME * [[[np.nan]], [[1]]]
    labels = read_dlc(make_dlc({"a": nothing, "b": SOME * np.nan}))
    assert [(f.index, len(f.instances), f.negative) for f in labels.frames] == [(2, 0, False), (10, 1, False)]
    assert [f.index for f in labels.labelled_frames] == [10]


def test_unique_bodyparts_are_left_out_with_a_note(make_dlc: Callable[..., Path]) -> None:
    labels = read_dlc(make_dlc({"a": SOME, "single": [[[50, 40]], [[50, 40]]]}))
    assert [len(f.instances) for f in labels.frames] == [1, 1]
    assert any("corner exist once in a picture" in note for note in labels.notes)


def test_stray_likelihood_and_unknown_edges(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc(skeleton=[["nose", "ear", "tail"], ["bodypart1", "objectA"], ["nose", "nose"], ["nose", "ear"]])
    for file in (config.parent / "labeled-data/clip").glob("Coll*"):
        file.unlink()
    frame = table({"a": SOME}, ["img2.png", "img10.png"])
    frame[("Ada", "a", "nose", "likelihood")] = 0.5
    save(frame, config.parent / "labeled-data/clip/CollectedData_Ada")
    labels = read_dlc(config)
    assert labels.skeleton.edges == ((0, 1), (1, 2))
    assert len(labels.frames) == 2 and np.array_equal(labels.frames[0].instances[0].points, SOME[0])
    assert (
        sum("have no likelihood" in note for note in labels.notes) == sum("1 of the skeleton's lines" in note for note in labels.notes) == 1
    )


def test_other_scorers(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc()
    folder = config.parent / "labeled-data" / "clip"
    save(table({"a": SOME + 5}, ["img2.png", "img10.png"], scorer="Bob"), folder / "CollectedData_Bob")
    labels = read_dlc(config)
    assert labels.frames[0].instances[0].points[0, 0] == 1
    assert any("CollectedData_Bob are left out" in note for note in labels.notes)
    for file in folder.glob("CollectedData_Ada*"):
        file.unlink()
    labels = read_dlc(config)
    assert labels.frames[0].instances[0].points[0, 0] == 6
    assert any("no labels by the project's scorer Ada" in note for note in labels.notes)


def test_several_folders_videos_and_the_plots_of_labels(
    make_dlc: Callable[..., Path], make_images: Callable[..., list[Path]], video_file: Path
) -> None:
    sets = {f"/gone/videos/{name}.mp4": {"crop": "0, 64, 0, 48"} for name in ("clip", "other", "third")}
    config = make_dlc(video_sets=sets)
    root = config.parent
    make_images(root / "labeled-data" / "clip_labeled", 2)  # DeepLabCut's check_labels draws such pictures
    make_images(root / "labeled-data" / "other", 4)  # extracted, not labelled yet
    (root / "videos").mkdir()
    for name in ("clip.mp4", "third.mp4"):
        shutil.copy(video_file, root / "videos" / name)
    labels = read_dlc(config)
    clip = VideoSource((root / "videos" / "clip.mp4",))
    gone = VideoSource((root / "videos" / "other.mp4",))
    assert [(v.kind, len(v.paths), v.original) for v in labels.videos] == [("images", 12, clip), ("images", 4, gone), ("file", 1, None)]
    assert labels.videos[2].paths == (root / "videos" / "third.mp4",)
    assert {f.video for f in labels.frames} == {0}
    assert any("1 of the project's videos are not found (other)" in note for note in labels.notes)
    assert any("'project_path' says" in note for note in labels.notes)


def test_videos_under_video_root(make_dlc: Callable[..., Path], video_file: Path, tmp_path: Path) -> None:
    config = make_dlc()
    (tmp_path / "media").mkdir()
    shutil.copy(video_file, tmp_path / "media" / "clip.mp4")
    (video,) = read_dlc(config, tmp_path / "media").videos
    assert video.original == VideoSource((tmp_path / "media" / "clip.mp4",))


def test_images_as_large_as_the_crop_are_cut_out(make_dlc: Callable[..., Path], tmp_path: Path) -> None:
    config = make_dlc(video_sets={"/x/clip.mp4": {"crop": "10, 74, 5, 53"}})
    labels = read_dlc(config)
    assert labels.videos[0].cut == (10, 5, 74, 53) and labels.frames[0].instances[0].points[0].tolist() == [1, 2]
    assert any("cut out of the video at (10, 5)" in note for note in labels.notes)
    write_dlc(tmp_path / "again", labels)
    assert list(yaml.safe_load((tmp_path / "again/config.yaml").read_text())["video_sets"].values()) == [{"crop": "10, 74, 5, 53"}]
    Image.new("L", (80, 60)).save(config.parent / "labeled-data" / "clip" / "img3.png")
    mixed = read_dlc(config)
    assert mixed.videos[0].cut is None and any("some images are cut out" in note for note in mixed.notes)
    for crop in ("10, 50, 5, 53", "0, 64, 0, 48", "no crop"):
        whole = read_dlc(make_dlc(name=crop, video_sets={"/x/clip.mp4": {"crop": crop}}))
        assert whole.videos[0].cut is None and not any("cut" in note for note in whole.notes)


def test_names_that_yaml_would_change(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc(kinds="")
    text = config.read_text().replace("- nose", "- no").replace("- ear", "- 1_0").replace("- tail", "- 2018-10-30")
    config.write_text(text)
    assert read_dlc(config).skeleton.keypoints == ("no", "1_0", "2018-10-30")


def test_a_damaged_h5_falls_back_to_csv(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc()
    whole = summary(read_dlc(config))
    h5 = config.parent / "labeled-data" / "clip" / "CollectedData_Ada.h5"
    h5.write_bytes(h5.read_bytes()[:2000])
    labels = read_dlc(config)
    assert summary(labels) == whole
    assert any("is damaged, so CollectedData_Ada.csv is read" in note for note in labels.notes)
    h5.with_suffix(".csv").unlink()
    with pytest.raises(FormatError, match=r"CollectedData_Ada.h5 is no table of DeepLabCut's, or is damaged"):
        read_dlc(config)


def test_machinelabels(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc()
    folder = config.parent / "labeled-data" / "clip"
    for iteration, shift in ((2, 1), (10, 2)):
        frame = table({"a": SOME + shift}, ["img2.png", "img5.png"], scorer="Net")
        for part in PARTS:
            frame[("Net", "a", part, "likelihood")] = 0.25
        save(frame, folder / f"machinelabels-iter{iteration}", "h5")
    labels = read_dlc(config)
    assert [(f.index, len(f.instances), len(f.predicted)) for f in labels.frames] == [(2, 2, 0), (5, 0, 1), (10, 2, 0)]
    (guess,) = labels.frames[1].predicted
    assert (guess.points[0, 0], guess.score, guess.track, guess.point_scores.tolist()) == (9, 0.25, "a", [0.25, 0, 0.25])
    assert len(read_dlc(config, predicted=False).frames) == 2


@pytest.mark.parametrize("place", [".", "project", "labeled-data"])
def test_images_that_are_missing(make_dlc: Callable[..., Path], tmp_path: Path, place: str) -> None:
    config = make_dlc()
    folder = config.parent / "labeled-data" / "clip"
    target = {".": tmp_path / "media", "project": tmp_path / "media" / "clip", "labeled-data": tmp_path / "media/labeled-data/clip"}[place]
    target.mkdir(parents=True)
    for image in folder.glob("*.png"):
        image.rename(target / image.name)
    with pytest.raises(FormatError, match=r"labels the image img10.png and 1 more, which .*clip does not hold; .*--video-root") as caught:
        read_dlc(config)
    assert "CollectedData_Ada.h5" in str(caught.value)
    assert read_dlc(config, require_videos=False).videos[0].paths == (folder / "img2.png", folder / "img10.png")
    moved = read_dlc(config, tmp_path / "media")
    assert moved.videos[0].paths[2] == target / "img2.png" and [f.index for f in moved.frames] == [2, 10]


def test_links_saved_as_text(make_dlc: Callable[..., Path], tmp_path: Path) -> None:
    config = make_dlc()
    folder = config.parent / "labeled-data" / "clip"
    (tmp_path / "elsewhere").mkdir()
    for number in (2, 10):
        (folder / f"img{number}.png").rename(tmp_path / "elsewhere" / f"{20 - number}.png")
        (folder / f"img{number}.png").write_text(f"../../../elsewhere/{20 - number}.png")
    (folder / "img3.png").write_text("../../../elsewhere/none.png")
    labels = read_dlc(config)
    assert [labels.videos[0].paths[frame.index] for frame in labels.frames] == [tmp_path / "elsewhere" / n for n in ("18.png", "10.png")]
    assert labels.videos[0].paths[3] == folder / "img3.png"
    assert any("2 images are links that were saved as text" in note for note in labels.notes)


# --- bad input ---


@pytest.mark.parametrize("name", ["img2.png", "CollectedData_Ada.csv"])
def test_devices_and_pipes_in_a_project(make_dlc: Callable[..., Path], name: str) -> None:
    config = make_dlc(kinds="csv")
    (file,) = (config.parent / "labeled-data").rglob(name)
    file.unlink()
    if name.endswith("png"):
        file.symlink_to("/dev/zero")
        assert read_dlc(config).frames
        return
    os.mkfifo(file)
    with pytest.raises(FormatError, match="CollectedData_Ada.csv is no file"):
        read_dlc(config)


def test_a_pickle_in_h5_is_not_run(make_dlc: Callable[..., Path], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "was run",)

    hostile = np.frombuffer(pickle.dumps(Hostile(), 0), dtype=np.uint8)
    config = make_dlc(index="slash")
    stem = config.parent / "labeled-data" / "clip" / "CollectedData_Ada"
    frame = table({"a": SOME}, ["img2.png", "img10.png"], index="slash")
    # the columns of the "table" layout, object values and object levels of the "fixed" one, and every pickled attribute
    save(frame, stem, "h5", "table")
    with h5py.File(stem.with_suffix(".h5"), "r+") as file:
        file["df_with_missing/table"].attrs["values_block_0_kind"] = np.bytes_(hostile.tobytes())
        for attribute in ("info", "non_index_axes", "values_cols", "index_cols"):
            file["df_with_missing"].attrs[attribute] = np.bytes_(hostile.tobytes())
    with pytest.raises(FormatError, match="is no table of DeepLabCut's, or is damaged"):
        read_table(stem.with_suffix(".h5"))
    for node, field in (("block0_values", None), ("axis1", None), ("axis0_level0", "name"), ("axis0_level0", None)):
        save(frame, stem, "h5")
        with h5py.File(stem.with_suffix(".h5"), "r+") as file:
            if field is not None:
                file[f"df_with_missing/{node}"].attrs[field] = np.bytes_(hostile.tobytes())
            else:
                del file[f"df_with_missing/{node}"]
                objects = file["df_with_missing"].create_dataset(node, (1,), h5py.vlen_dtype(np.uint8))
                objects[0] = hostile
                objects.attrs.update({"CLASS": np.bytes_("VLARRAY"), "PSEUDOATOM": np.bytes_("object"), "VERSION": np.bytes_("1.4")})
        if field is None:
            with pytest.raises(FormatError, match="holds other things than"):
                read_table(stem.with_suffix(".h5"))
        else:
            assert len(read_table(stem.with_suffix(".h5")).rows) == 2
    assert not (tmp_path / "was run").exists()
    with pytest.raises(Exception), pd.HDFStore(str(stem.with_suffix(".h5")), "r") as store:  # noqa: B017
        store.get("df_with_missing")  # the proof that the pickle is live: pandas runs it
    assert (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it has no 'bodyparts'"),
        ("- a\n- b\n", "it has no 'bodyparts'"),
        ("bodyparts: [a, b\n", "cannot be read as YAML"),
        ("bodyparts: !!python/object/apply:os.getcwd []\n", r"'bodyparts' names no keypoints"),
        ("? [a]\n: b\n", "cannot be read as YAML"),
        ("bodyparts: " + "[" * 5000, "cannot be read as YAML"),
        ("bodyparts: nose\n", "'bodyparts' is not a list of names"),
        ("bodyparts:\n- [a]\n", "'bodyparts' is not a list of names"),
        ("bodyparts: []\n", "'bodyparts' names no keypoints"),
        ("bodyparts: MULTI!\n", "'multianimalbodyparts' names no keypoints"),
        ("bodyparts: [a, a]\n", "names a keypoint twice: a, a"),
        ("bodyparts: [a]\nvideo_sets: [b]\n", "'video_sets' is not a mapping"),
        ("bodyparts: [a]\nskeleton: {a: b}\n", "'skeleton' is not a list of pairs"),
        ("bodyparts: [a]\nskeleton: [a]\n", "'skeleton' is not a list of pairs"),
    ],
)
def test_bad_config(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_dlc(tmp_path / "config.yaml")
    assert str(tmp_path / "config.yaml") in str(caught.value) and "\n" not in str(caught.value)


def test_no_config(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "config.yaml"):
        with pytest.raises(FormatError, match="does not exist, or is a folder; name the config.yaml"):
            read_dlc(path)


def test_a_project_without_labels_reads(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc()
    shutil.rmtree(config.parent / "labeled-data")
    labels = read_dlc(config)
    assert labels.frames == labels.videos == [] and labels.skeleton == SKELETON


HEADER = "scorer,Ada,Ada\nbodyparts,nose,nose\ncoords,x,y\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "its first lines are not scorer"),
        ("hello", "its first lines are not scorer"),
        ("scorer,Ada\nbodyparts,nose\ncoords,z\n", "no column is called x"),
        (HEADER + "labeled-data/clip/img2.png,1\n", "line 4 has 1 values for 2 columns"),
        (HEADER + "labeled-data/clip/img2.png,1,one\n", "could not convert string to float: 'one'"),
        (HEADER + "labeled-data/clip/img2.txt,1,2\n", "the row 'img2.txt' names no image"),
        (HEADER + "17,1,2\n", "'17' names no image"),
        ("scorer,Ada,Ada\nbodyparts,nose\ncoords,x,y\n", "is no table of DeepLabCut's, or is damaged"),
        (HEADER.replace("nose", "foot") + "labeled-data/clip/img2.png,1,2\n", "the labels are of foot, config.yaml has nose, ear, tail"),
        ("\0\1\2" * 100, "its first lines are not scorer"),
    ],
)
def test_bad_csv(make_dlc: Callable[..., Path], content: str, message: str) -> None:
    config = make_dlc(kinds="")
    (config.parent / "labeled-data" / "clip" / "CollectedData_Ada.csv").write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_dlc(config)
    assert str(config.parent) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", ["text", "no table", "few values", "no columns", "fewer blocks", "codes", "half", "bomb"])
def test_bad_h5(make_dlc: Callable[..., Path], harm: str) -> None:
    config = make_dlc(kinds="h5")
    path = config.parent / "labeled-data" / "clip" / "CollectedData_Ada.h5"
    if harm == "text":
        path.write_text("hello")
    elif harm == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        with h5py.File(path, "r+") as file:
            group = file["df_with_missing"]
            if harm == "no table":
                del file["df_with_missing"]
            elif harm == "few values":
                del group["block0_values"]
                group["block0_values"] = np.zeros((2, 3))
            elif harm == "bomb":
                del group["axis1_label0"]
                group.create_dataset("axis1_label0", (1 << 40,), np.int8, chunks=(1 << 20,))
            elif harm == "fewer blocks":
                group.attrs["nblocks"] = 0
            elif harm == "no columns":
                del group["axis0_level1"]
            else:
                group["axis0_label1"][0] = 99
    with pytest.raises(FormatError, match=r"CollectedData_Ada.h5 is no table of DeepLabCut's, or is damaged \(.+\); save it again"):
        read_dlc(config)


def test_index_names_and_blank_lines_in_csv(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc(kinds="")
    path = config.parent / "labeled-data" / "clip" / "CollectedData_Ada.csv"
    path.write_text(HEADER + "image,,\n\nlabeled-data\\clip\\img2.png,1,2\nlabeled-data/clip/img3.png,,\n")
    assert [(f.index, len(f.instances)) for f in read_dlc(config).frames] == [(2, 1), (3, 0)]


def test_an_image_labelled_twice(make_dlc: Callable[..., Path]) -> None:
    config = make_dlc(kinds="")
    path = config.parent / "labeled-data" / "clip" / "CollectedData_Ada.csv"
    path.write_text(HEADER + "labeled-data/clip/img2.png,1,2\nlabeled-data/clip/img2.png,3,4\n")
    labels = read_dlc(config)
    assert [f.instances[0].points[0].tolist() for f in labels.frames] == [[1, 2]]
    assert any("1 images are labelled twice" in note for note in labels.notes)


# --- writing ---


def test_write_a_project_from_a_video(tmp_path: Path, video_file: Path, number_of: Callable[[np.ndarray], int]) -> None:
    skeleton = Skeleton(PARTS, ((0, 1),), ((0, 2),))
    frames = [
        LabeledFrame(0, 30, [Instance(SOME[1], "old"), Instance(SOME[0])]),
        LabeledFrame(0, 4, [Instance(SOME[0]), Instance(SOME[1])]),
        LabeledFrame(0, 7, negative=True),
        LabeledFrame(0, 9, predicted=[PredictedInstance(SOME[0])]),
    ]
    folder = tmp_path / "mice-Ada-2024-12-05"
    notes = write_dlc(folder, Labels(skeleton, [VideoSource((video_file,))], frames))
    assert len(notes) == 4 and all(
        any(word in note for note in notes) for word in ("left/right", "Predictions", "empty", "without a track")
    )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["Task"], config["scorer"], config["date"], config["multianimalproject"]) == ("mice", "Ada", "Dec5", True)
    assert config["video_sets"] == {str(video_file): {"crop": "0, 64, 0, 48"}} and config["project_path"] == str(folder)
    assert config["individuals"] == ["old", "animal1", "animal2"] and config["bodyparts"] == "MULTI!"
    stored: Any = pd.read_hdf(folder / "labeled-data" / "clip" / "CollectedData_Ada.h5")
    assert list(stored.index) == [("labeled-data", "clip", f"img{n:02d}.png") for n in (4, 7, 30)]
    assert list(stored.columns.names) == ["scorer", "individuals", "bodyparts", "coords"]
    assert stored[("Ada", "old", "nose", "x")].fillna(-1).tolist() == [-1, -1, 7]
    text = pd.read_csv(folder / "labeled-data" / "clip" / "CollectedData_Ada.csv", header=[0, 1, 2, 3], index_col=[0, 1, 2])
    assert np.array_equal(text.to_numpy(), stored.to_numpy(), equal_nan=True) and list(text.columns) == list(stored.columns)
    for number in (4, 7, 30):
        assert number_of(np.array(Image.open(folder / "labeled-data" / "clip" / f"img{number:02d}.png"))) == number
    again = read_dlc(folder / "config.yaml")
    assert again.videos[0].original == VideoSource((video_file,))
    assert [(f.index, len(f.instances)) for f in again.frames] == [(0, 2), (1, 0), (2, 2)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mice-Ada-2024-12-05"], "nothing is left behind"


def test_write_one_animal_from_images(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    images = make_images(tmp_path / "pictures", 12, ".jpg")
    frames = [LabeledFrame(0, n, [Instance(SOME[0] + n)]) for n in (2, 10)]
    assert write_dlc(tmp_path / "out", Labels(SKELETON, [VideoSource(tuple(images))], frames)) == []
    labels = read_dlc(tmp_path / "out" / "config.yaml")
    assert [path.name for path in labels.videos[0].paths] == ["img2.jpg", "img10.jpg"]
    assert labels.videos[0].paths[0].read_bytes() == images[2].read_bytes()
    assert [f.instances[0].points[0, 0] for f in labels.frames] == [3, 11]
    stored: Any = pd.read_hdf(tmp_path / "out" / "labeled-data" / "pictures" / "CollectedData_labeler.h5")
    assert list(stored.columns.names) == ["scorer", "bodyparts", "coords"]
    assert "individuals" not in yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())


def test_write_videos_of_one_name_and_without_labels(tmp_path: Path, video_file: Path) -> None:
    for place in ("a", "b", "c"):
        (tmp_path / place).mkdir()
        shutil.copy(video_file, tmp_path / place / "clip.mp4")
    videos = [VideoSource((tmp_path / place / "clip.mp4",)) for place in ("a", "b")]
    videos += [VideoSource((tmp_path / "c" / "free.mp4",)), VideoSource((tmp_path / "gone.png",))]
    (tmp_path / "c" / "clip.mp4").rename(tmp_path / "c" / "free.mp4")
    frames = [LabeledFrame(video, 5 + video, [Instance(SOME[0] + video)]) for video in (0, 1)]
    notes = write_dlc(tmp_path / "out", Labels(SKELETON, videos, frames))
    renamed = (
        f"{videos[1].name} is called clip_2 here, for another one has its name; put it, or a link to it, at {tmp_path}/out/videos/clip_2"
    )
    assert len(notes) == 2 and renamed in notes[0] and "gone.png has no labels" in notes[1]
    labels = read_dlc(tmp_path / "out" / "config.yaml")
    gone = VideoSource((tmp_path / "out" / "videos" / "clip_2.mp4",))
    assert [(v.kind, v.original) for v in labels.videos] == [("images", videos[0]), ("images", gone), ("file", None)]
    assert [f.instances[0].points[0, 0] for f in labels.frames] == [1, 2]
    for source in videos[:3]:
        assert source.paths[0].read_bytes() == video_file.read_bytes()


def test_pieces_of_tracks_are_no_individuals(tmp_path: Path, video_file: Path) -> None:
    frames = [LabeledFrame(0, n, [Instance(SOME[0] + n, f"t{n}"), Instance(SOME[0] + n + 9, f"u{n}")]) for n in range(12)]
    (note,) = write_dlc(tmp_path / "out", Labels(SKELETON, [VideoSource((video_file,))], frames))
    assert "24 tracks are too many for individuals; the at most 2 animals" in note
    again = read_dlc(tmp_path / "out" / "config.yaml")
    assert [[i.track for i in f.instances] for f in again.frames] == [["animal1", "animal2"]] * 12
    assert [i.points[0, 0] for i in again.frames[5].instances] == [6, 15]


def test_write_whole_or_not_at_all(tmp_path: Path, video_file: Path) -> None:
    frames = [LabeledFrame(0, 3, [Instance(SOME[0])]), LabeledFrame(0, 4000, [Instance(SOME[0])])]
    labels = Labels(SKELETON, [VideoSource((video_file,))], frames)
    with pytest.raises(FormatError, match="frame 4000 was asked for"):
        write_dlc(tmp_path / "out", labels)
    assert list(tmp_path.iterdir()) == []
    for name in (".out.unfinished.0abc", ".output.unfinished.0abc"):  # of processes that were killed, the second at something else
        (tmp_path / name / "out").mkdir(parents=True)
    with pytest.raises(FormatError, match="frame 4000 was asked for"):
        write_dlc(tmp_path / "out", labels)
    assert [path.name for path in tmp_path.iterdir()] == [".output.unfinished.0abc"]
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match="out exists already; name a new folder"):
        write_dlc(tmp_path / "out", labels)
    with pytest.raises(FormatError, match="lies in a folder that does not exist"):
        write_dlc(tmp_path / "a" / "out", labels)


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
POINT = st.one_of(st.just((np.nan, np.nan)), st.tuples(*[st.floats(-1e4, 1e4, allow_subnormal=False)] * 2))


@st.composite
def any_labels(draw: st.DrawFn, videos: list[VideoSource]) -> Labels:
    keypoints = draw(st.lists(NAME, min_size=1, max_size=12, unique=True))
    pair = st.permutations(range(len(keypoints))).map(lambda order: (order[0], order[-1]))
    edges = draw(st.lists(pair, max_size=4, unique=True)) if len(keypoints) > 1 else []
    most = draw(st.integers(0, 6))
    tracks = draw(st.lists(NAME.filter(lambda name: name != "single"), min_size=most, max_size=most, unique=True))
    tracked = draw(st.booleans())
    places = draw(st.lists(st.tuples(st.integers(0, len(videos) - 1), st.integers(0, 11)), max_size=5, unique=True))
    frames = []
    for place in places:
        points = st.lists(POINT, min_size=len(keypoints), max_size=len(keypoints))
        animal = st.tuples(st.sampled_from(tracks), points) if tracks else st.nothing()
        animals = draw(st.lists(animal, max_size=most, unique_by=lambda pair: pair[0]))
        frames.append(LabeledFrame(*place, [Instance(np.array(points), track if tracked else None) for track, points in animals]))
    return Labels(Skeleton(tuple(keypoints), tuple(edges)), videos, frames)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip(data: st.DataObject, tmp_path: Path, video_file: Path, make_images: Callable[..., list[Path]]) -> None:
    if not (tmp_path / "bilder").exists():
        make_images(tmp_path / "bilder", 12)
    paths = tuple(tmp_path / "bilder" / f"img{n}.png" for n in range(12))
    labels = data.draw(any_labels([VideoSource((video_file,)), VideoSource(paths)]))
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        write_dlc(Path(folder) / "project", labels)
        again = read_dlc(Path(folder) / "project" / "config.yaml")
        assert again.skeleton == labels.skeleton
        single = all(len(f.instances) <= 1 and all(i.track is None for i in f.instances) for f in labels.frames)
        folders = [again.videos[f.video].paths[0].parent.name for f in again.frames]
        key = {0: [f for f, name in zip(again.frames, folders, strict=True) if name == "clip"]}
        key[1] = [f for f, name in zip(again.frames, folders, strict=True) if name == "bilder"]
        for video in (0, 1):
            ours = sorted((f for f in labels.frames if f.video == video), key=lambda f: f.index)
            assert len(ours) == len(key[video])
            for before, after in zip(ours, key[video], strict=True):
                wanted = [(i.track, i.points) for i in before.instances if i.labelled.any()]
                found = [(i.track, i.points) for i in after.instances]
                if not single and all(track is None for track, _ in wanted):
                    found = [(None, points) for _, points in found]
                by_name = lambda pair: str(pair[0])  # noqa: E731
                for (one, a), (two, b) in zip(sorted(wanted, key=by_name), sorted(found, key=by_name), strict=True):
                    assert one == two and np.array_equal(a, b, equal_nan=True)


# --- real projects ---


def test_openfield(shared_data: Path) -> None:
    labels = read_dlc(shared_data / "dlc" / "openfield-Pranav-2018-10-30" / "config.yaml")
    assert labels.skeleton.keypoints == ("snout", "leftear", "rightear", "tailbase")
    assert len(labels.videos[0].paths) == len(labels.frames) == 116
    assert sum(i.labelled.sum() for f in labels.frames for i in f.instances) == 464
    assert labels.frames[0].instances[0].points[0].tolist() == [21.521, 265.428]
    folder = labels.videos[0].paths[0].parent
    h5, csv = (read_table(folder / f"CollectedData_Pranav.{suffix}") for suffix in ("h5", "csv"))
    assert h5.rows == csv.rows and h5.columns == csv.columns and np.allclose(h5.values, csv.values, rtol=0, atol=1e-9)


def same_animals(ours: LabeledFrame, theirs: LabeledFrame) -> bool:
    first, second = (sorted((i.points.tolist() for i in frame.instances), key=str) for frame in (ours, theirs))
    return len(first) == len(second) and all(
        np.allclose(a, b, rtol=0, atol=0.01, equal_nan=True) for a, b in zip(first, second, strict=True)
    )


def test_flypair_agrees_with_the_sleap_project(shared_data: Path) -> None:
    ours = read_dlc(shared_data / "dlc" / "flypair-Teacher-2024-12-20" / "config.yaml")
    theirs = read_slp(shared_data / "flies" / "pair24" / "pair24_train.slp", require_videos=False)
    assert ours.skeleton.keypoints == theirs.skeleton.keypoints and len(ours.frames) == 60
    numbers = [int(path.stem.removeprefix("img")) for path in ours.videos[0].paths]
    by_number = {frame.index: frame for frame in theirs.frames}
    assert all(same_animals(frame, by_number[numbers[frame.index]]) for frame in ours.frames)
    assert ours.videos[0].original is not None and ours.videos[0].original.paths[0].is_file()


def test_partly_labelled_bees_agree_with_the_sleap_project(shared_data: Path) -> None:
    ours = read_dlc(shared_data / "pups_partial" / "beepups-Sim-2024-12-20" / "config.yaml")
    theirs = read_slp(shared_data / "pups_partial" / "pups_train.slp", require_videos=False)
    assert ours.skeleton.keypoints == theirs.skeleton.keypoints and len(ours.frames) == 105
    assert all(path.stat().st_size > 1000 for path in ours.videos[0].paths), "images, and no texts"
    by_name = {theirs.videos[frame.video].paths[frame.index].name: frame for frame in theirs.frames}
    assert all(same_animals(frame, by_name[ours.videos[0].paths[frame.index].name]) for frame in ours.frames)

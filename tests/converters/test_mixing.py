"""Several projects as one: keypoints by name, tables of aliases."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.labels import FormatError, Instance, LabeledFrame, Labels, PredictedInstance, Skeleton, VideoSource
from converters.mixing import read_aliases, unite


def project(name: str, *keypoints: str, edges: tuple[tuple[int, int], ...] = (), symmetries: tuple[tuple[int, int], ...] = ()) -> Labels:
    """One frame with one labelled and one predicted animal; keypoint i is at (i, len(name))."""
    points = np.array([[i, len(name)] for i in range(len(keypoints))], dtype=float)
    predicted = PredictedInstance(points + 1, score=0.5, point_scores=np.full(len(keypoints), 0.25))
    frame = LabeledFrame(0, 3, [Instance(points, "one")], [predicted])
    return Labels(
        Skeleton(keypoints, edges, symmetries), [VideoSource((Path(f"{name}.mp4"),))], [frame], Path(f"{name}.slp"), [f"note {name}"]
    )


def test_one_project_stays_as_it_is():
    single = project("a", "nose", "tail", edges=((1, 0),), symmetries=())
    labels, columns = unite([single])
    assert labels.skeleton == single.skeleton and columns == [[0, 1]] and labels.notes == ["note a"]
    assert labels.frames[0].instances == single.frames[0].instances


def test_keypoints_are_united_by_name_and_what_a_project_lacks_is_not_labelled():
    first = project("a", "nose", "left", "right", edges=((0, 1),), symmetries=((1, 2),))
    second = project("bb", "right", "nose", "left", "tail", edges=((2, 1), (1, 3)), symmetries=((0, 2),))
    labels, columns = unite([first, second])
    assert labels.skeleton.keypoints == ("nose", "left", "right", "tail") and columns == [[0, 1, 2], [2, 0, 1, 3]]
    assert set(map(frozenset, labels.skeleton.edges)) == {frozenset((0, 1)), frozenset((0, 3))} and len(labels.skeleton.edges) == 2
    assert len(labels.skeleton.symmetries) == 1
    mine, theirs = labels.frames
    assert (mine.video, theirs.video) == (0, 1) and theirs.index == 3
    assert np.array_equal(mine.instances[0].points, np.array([[0, 1], [1, 1], [2, 1], [np.nan, np.nan]]), equal_nan=True)
    assert np.array_equal(theirs.instances[0].points, [[1, 2], [2, 2], [0, 2], [3, 2]])
    assert mine.predicted[0].point_scores.tolist() == [0.25, 0.25, 0.25, 0] and mine.predicted[0].score == 0.5
    assert mine.instances[0].track == "one"
    assert labels.notes[:2] == ["note a", "note bb"] and "a.slp has no tail" in labels.notes[2] and len(labels.notes) == 3


def test_a_keypoint_has_one_mirror_image():
    labels, _ = unite([project("a", "x", "y", "z", symmetries=((0, 1),)), project("b", "x", "y", "z", symmetries=((2, 1),))])
    assert labels.skeleton.symmetries == ((0, 1),)


def test_names_that_mean_the_same(tmp_path: Path):
    table = tmp_path / "aliases.csv"
    table.write_text("snout,nose, Nase\n\ntailbase,tail\n", encoding="utf-8")
    labels, columns = unite([project("a", "nose", "tail"), project("b", "tailbase", "Nase", "hip")], read_aliases(table))
    assert labels.skeleton.keypoints == ("snout", "tailbase", "hip") and columns == [[0, 1], [1, 0, 2]]


def test_deeplabcuts_tables(tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("lab1,MasterName,lab2\nsnout,nose,\n,tail_base,tailbase\n", encoding="utf-8")
    assert read_aliases(table) == {"nose": "nose", "snout": "nose", "tail_base": "tail_base", "tailbase": "tail_base"}
    config = tmp_path / "config.yaml"
    config.write_text("bodyparts: [snout]\nSuperAnimalConversionTables:\n  superanimal_topviewmouse:\n    snout: nose\n", encoding="utf-8")
    assert read_aliases(config) == {"nose": "nose", "snout": "nose"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "nose,snout\nhead,snout\n", "'snout' is a name of 'nose' and of 'head'"),
        ("a.csv", "", "is empty"),
        ("b.csv", None, "not a readable CSV table"),
        ("config.yaml", "bodyparts: [a]\n", "no SuperAnimalConversionTables"),
        ("config.yaml", "bodyparts: [a]\nSuperAnimalConversionTables: {mouse: 3}\n", "no SuperAnimalConversionTables"),
    ],
)
def test_tables_that_can_not_be_used(tmp_path: Path, name: str, text: str | None, sentence: str):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=sentence):
        read_aliases(tmp_path / name)


def test_two_keypoints_of_one_project_must_stay_two():
    with pytest.raises(FormatError, match=r"a\.slp: the table of aliases gives nose and snout the one name 'nose'"):
        unite([project("a", "nose", "snout")], {"snout": "nose"})


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=4), min_size=1, max_size=6, unique=True
)


@given(names, names)
def test_no_label_is_lost_whatever_the_names(first: list[str], second: list[str]):
    projects = [project("a", *first), project("bb", *second)]
    labels, columns = unite(projects)
    assert set(labels.skeleton.keypoints) == set(first) | set(second)
    for own, part, frame in zip(columns, projects, labels.frames, strict=True):
        assert np.array_equal(frame.instances[0].points[own], part.frames[0].instances[0].points)
        assert frame.instances[0].labelled.sum() == len(own)

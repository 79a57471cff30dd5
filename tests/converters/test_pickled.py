"""Pickles are read as instructions: plain values come out as they went in, and nothing is carried out."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.pickled import OPAQUE, plain

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner, inner, inner),
)


@given(values, st.integers(0, 5))
def test_plain_values_come_out_as_they_went_in(value: Any, protocol: int):
    if not shares(value):
        assert plain(pickle.dumps(value, protocol)) == value


def shares(value: Any, seen: set[int] | None = None) -> bool:
    """Does a container occur twice? The empty tuple does not count: it is written anew each time."""
    seen = set() if seen is None else seen
    if not isinstance(value, (list, tuple, dict)) or value == ():
        return False
    if id(value) in seen:
        return True
    seen.add(id(value))
    return any(shares(item, seen) for item in (value.values() if isinstance(value, dict) else value))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("protocol", range(6))
def test_objects_are_opaque_and_nothing_runs(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    data = {"a": Evil(), "b": OrderedDict(x=1), "c": {1, 2}, "d": Path("x"), "e": 2 + 3j, "f": [1, Evil(), 3], "g": 7}
    found = plain(pickle.dumps(data, protocol))
    assert list(found) == list(data) and found["g"] == 7 and found["a"] is OPAQUE and found["f"] == [1, OPAQUE, 3]
    assert not list(tmp_path.iterdir())


def test_a_small_file_cannot_stand_for_an_endless_value():
    laughs: Any = "ha"
    for _ in range(60):
        laughs = [laughs, laughs]
    assert len(str(plain(pickle.dumps(laughs)))) < 10_000


@given(st.binary(max_size=60) | values.map(pickle.dumps).flatmap(lambda data: st.integers(0, len(data) - 1).map(lambda end: data[:end])))
def test_what_is_no_pickle_is_a_value_error(data: bytes):
    try:
        plain(data)
    except ValueError:
        return
    assert b"." in data  # it had an end

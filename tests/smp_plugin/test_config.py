"""Settings: presets, overrides, YAML, frame ranges."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.labels import FormatError
from smp_plugin import config as c


def test_presets_say_what_was_chosen():
    chosen, reason = c.preset("auto", cuda=False)
    assert chosen == c.Config() and "small" in reason and "no CUDA" in reason
    chosen, reason = c.preset("auto", cuda=True)
    assert chosen.model.backbone == "resnet50" and "gpu" in reason
    assert c.preset("paper", cuda=True)[0].train.optimizer == "sgd"
    with pytest.raises(FormatError, match="no preset 'big'"):
        c.preset("big", cuda=False)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "1e-4", 1e-4),
        ("train.lr", "1", 1.0),
        ("train.steps", "10", 10),
        ("model.heatmap_stride", "8", 8),
        ("augment.flip", "false", False),
        ("augment.scale", "[0.5, 2]", (0.5, 2.0)),
        ("model.weights", "none", "none"),
        ("data.unlabeled_frames", "12", "12"),
        ("data.unlabeled", "[a.mp4, b.mp4]", ("a.mp4", "b.mp4")),
    ],
)
def test_set_value_converts_text(key: str, text: str, value: object):
    config = c.Config()
    c.set_value(config, key, text)
    section, name = key.split(".")
    found = getattr(getattr(config, section), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("train.stepz", "1", "Did you mean .*train.steps"),
        ("train.batch", "0", "train.batch is '0'; it must be at least 1"),
        ("train.lr", "-0.1", "train.lr is '-0.1'; it must be at least 0"),
        ("data.val_fraction", "2", "data.val_fraction is '2'; it must be at most 1"),
        ("steps", "1", "no setting 'steps'"),
        ("train.steps", "many", "must be a number"),
        ("train.steps", "1.5", "must be a number"),
        ("train.lr", "inf", "finite"),
        ("train.lr", ".nan", "finite"),
        ("augment.flip", "1", "true or false"),
        ("augment.scale", "[2, 1]", "two rising numbers"),
        ("data.unlabeled", "a.mp4", "must be a list of texts"),
        ("model.backbone", "vgg", "resnet18, resnet34, resnet50"),
    ],
)
def test_set_value_refuses(key: str, text: str, sentence: str):
    with pytest.raises(FormatError, match=sentence):
        c.set_value(c.Config(), key, text)


def _values(kind: Any) -> st.SearchStrategy[Any]:
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind == tuple[str, ...]:
        return st.lists(st.text(max_size=20), max_size=3).map(tuple)
    if get_origin(kind) is tuple:
        return st.tuples(_values(float), _values(float)).map(lambda pair: tuple(sorted(pair)))
    floats = st.floats(1, min(c.AT_MOST.values()))
    return {bool: st.booleans(), int: st.integers(1, min(c.AT_MOST.values())), float: floats, str: st.text(max_size=20)}[kind]


def _configs() -> st.SearchStrategy[c.Config]:
    sections = {
        section.name: st.builds(kind, **{f: _values(t) for f, t in get_type_hints(kind).items()})
        for section in dataclasses.fields(c.Config)
        for kind in [get_type_hints(c.Config)[section.name]]
    }
    return st.builds(c.Config, **sections)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(_configs())
def test_yaml_round_trip(tmp_path: Path, config: c.Config):
    c.write_config(config, tmp_path / "config.yaml")
    assert c.read_config(tmp_path / "config.yaml") == config
    assert c.from_dict(c.to_dict(config)) == config


def test_read_config_names_file_and_key(tmp_path: Path):
    path = tmp_path / "settings.yaml"
    with pytest.raises(FormatError, match="no such settings file"):
        c.read_config(path)
    path.write_text("train: {stepz: 3}")
    with pytest.raises(FormatError, match=r"settings\.yaml.*stepz"):
        c.read_config(path)
    path.write_text("train: [")
    with pytest.raises(FormatError, match="not a readable YAML"):
        c.read_config(path)
    path.write_text("- 1")
    with pytest.raises(FormatError, match="sections"):
        c.read_config(path)
    path.write_text("")
    assert c.read_config(path) == c.Config()


def test_read_config_keeps_what_it_does_not_name(tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_text("train:\n  steps: 7\n")
    config = c.read_config(path, c.preset("paper", cuda=False)[0])
    assert config.train.steps == 7 and config.model.backbone == "resnet50"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(lambda p: (min(p), max(p))), min_size=1, max_size=5))
def test_parse_ranges_round_trip(ranges: list[tuple[int, int]]):
    text = ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in ranges)
    assert c.parse_ranges(text) == ranges


@pytest.mark.parametrize("text", ["", "a", "5-3", "1-", "-1", "1,,2", "1-2-3", "1.5", "²", "9" * 5000])
def test_parse_ranges_refuses(text: str):
    with pytest.raises(FormatError, match="0-999,1500"):
        c.parse_ranges(text)


@given(st.text(max_size=12))
def test_parse_ranges_gives_ranges_or_a_sentence(text: str):
    try:
        ranges = c.parse_ranges(text)
    except FormatError:
        return
    assert ranges and all(0 <= a <= b for a, b in ranges)


def test_one_animal_a_frame_is_no_choice_for_other_projects():
    config = c.Config()
    config.data.projects = ("single.yaml",)
    c.choose(config, "predict.max_animals", 1)
    c.forget_projects(config)
    assert config.predict.max_animals == 0
    config.data.projects = ("single.yaml",)
    c.set_value(config, "predict.max_animals", 3)  # asked for
    c.forget_projects(config)
    assert config.predict.max_animals == 3

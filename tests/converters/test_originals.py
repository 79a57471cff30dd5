"""Videos that images were taken from, beside a project that can't say it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from converters import FormatError, Labels, Skeleton, VideoSource
from converters.originals import with_originals, write_originals

SKELETON = Skeleton(("nose",))


def test_images_have_their_videos_again(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    video, table = VideoSource((tmp_path / "a.mp4",)), tmp_path / "originals.json"
    images, others = (VideoSource(tuple(make_images(tmp_path / name, 2))) for name in ("a", "b"))
    assert not write_originals(table, [video, others]) and not table.exists()
    assert write_originals(table, [VideoSource(images.paths, original=video), video, others])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    linked = VideoSource(tuple(tmp_path / "link" / path.name for path in images.paths))
    found = with_originals(Labels(SKELETON, [others, images, linked, video]), str(table)).videos
    assert [each.original for each in found] == [None, video, video, None]


def test_without_a_table_nothing_changes_and_another_file_is_none(tmp_path: Path) -> None:
    labels = Labels(SKELETON, [VideoSource((tmp_path / "a.png",))])
    assert with_originals(labels, "") is labels
    for text in ("[1]", "{", '{"a": 1}'):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(FormatError, match=r"table.json is no table of videos that images were taken from"):
            with_originals(labels, str(tmp_path / "table.json"))

"""What is kept beside a project whose format can't say it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters import FormatError, Instance, LabeledFrame, Labels, Skeleton, VideoSource
from converters.supplement import supplemented, write_supplement

SKELETON = Skeleton(("nose",))


def test_images_have_their_videos_and_boxes_again(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    video, table = VideoSource((tmp_path / "a.mp4",)), tmp_path / "table.json"
    images, others = (VideoSource(tuple(make_images(tmp_path / name, 2))) for name in ("a", "b"))
    assert not write_supplement(table, Labels(SKELETON, [video, others])) and not table.exists()
    nose, boxes = [Instance(np.ones((1, 2)))], [np.array([1.5, 2, 3, 4]), np.array([5.0, 6, 7, 8])]
    linked_to_video = VideoSource(images.paths, original=video)
    frames = [LabeledFrame(0, 1, nose, unposed=boxes), LabeledFrame(0, 0, nose)]
    assert write_supplement(table, Labels(SKELETON, [linked_to_video, video], frames), Labels(SKELETON, [others]))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    linked = VideoSource(tuple(tmp_path / "link" / path.name for path in images.paths))
    plain = [LabeledFrame(video, index, nose) for video in range(4) for index in range(2)]
    found = supplemented(Labels(SKELETON, [others, images, linked, video], plain), str(table))
    assert [each.original for each in found.videos] == [None, video, video, None]
    assert [len(frame.unposed) for frame in found.frames] == [0, 0, 0, 2, 0, 2, 0, 0]
    assert np.array_equal(found.frames[3].unposed, boxes)


def test_without_a_table_nothing_changes_and_another_file_is_none(tmp_path: Path) -> None:
    labels = Labels(SKELETON, [VideoSource((tmp_path / "a.png",))])
    assert supplemented(labels, "") is labels
    for text in ("[1]", "{", '{"a": 1}', '{"originals": {"a": 1}, "unposed": {}}', '{"originals": {}, "unposed": {"a": [[1, 2]]}}'):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(FormatError, match=r"table.json does not hold what a project's format cannot say"):
            supplemented(labels, str(tmp_path / "table.json"))

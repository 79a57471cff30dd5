"""When labels are taken as partial."""

import numpy as np
import pytest

from converters.labels import Instance, LabeledFrame
from smp_plugin.completeness import looks_partial


def _frame(*labelled: int) -> LabeledFrame:
    """Animals with so many labelled keypoints of three."""
    points = np.arange(6.0).reshape(3, 2)
    return LabeledFrame(0, 0, [Instance(np.where(np.arange(3)[:, None] < n, points, np.nan)) for n in labelled])


@pytest.mark.parametrize(("single", "partial"), [(0, False), (3, False), (4, True), (10, True)])
def test_more_than_three_of_ten_with_one_keypoint_make_labels_partial(single: int, partial: bool):
    frames = [_frame(*[1] * single), _frame(*[3] * (10 - single)), _frame()]
    found, reason = looks_partial(frames, 3)
    assert found == partial and reason.startswith(f"{10 * single}% of animals have one labelled keypoint (")


def test_with_one_keypoint_in_all_nothing_can_be_told():
    frames = [LabeledFrame(0, 0, [Instance(np.zeros((1, 2)))] * 3)]
    assert looks_partial(frames, 1) == (False, "the project has one keypoint, and whether others are missing cannot be told")
    assert looks_partial([], 3) == (False, "0% of animals have one labelled keypoint (0-0 animals a frame)")

"""Are animals without a label to be expected? One rule for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from converters.labels import LabeledFrame

MOST_SINGLE = 0.3  # share of animals with one labelled keypoint beyond which labels are taken as partial


def looks_partial(frames: Sequence[LabeledFrame], keypoints: int) -> tuple[bool, str]:
    """Whether labels are taken as partial, and why, for a person to read.

    People who label some animals only also leave most of their keypoints out. With one keypoint in all, nothing can be told, and labels are
    taken as complete.

    Args:
        frames: the labelled frames of one project.
        keypoints: how many the project has.
    """
    if keypoints == 1:
        return False, "the project has one keypoint, and whether others are missing cannot be told"
    counts = [len(f.instances) for f in frames if f.instances] or [0]
    single = sum(i.labelled.sum() == 1 for f in frames for i in f.instances) / max(sum(counts), 1)
    reason = f"{single:.0%} of animals have one labelled keypoint ({min(counts)}-{max(counts)} animals a frame)"
    return single > MOST_SINGLE, reason

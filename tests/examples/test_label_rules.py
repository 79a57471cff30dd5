"""The picture of docs/labels.md is drawn from the real targets."""

import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from label_rules import TAIL, main, targets  # type: ignore[import-not-found]  # noqa: E402


def test_the_picture_shows_what_targets_say(tmp_path: Path):
    complete, partial = targets(partial=False)[0], targets(partial=True)[0]
    assert complete.heatmap_weights[0, TAIL].unique().tolist() == [0.0, 1.0]
    assert 0.0 < partial.heatmap_weights[0, TAIL, 0, 0] < 1.0  # a corner without labels
    main(tmp_path / "labels.png")
    assert Image.open(tmp_path / "labels.png").size[0] > 600

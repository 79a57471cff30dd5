"""Draws docs/labels.png: what each kind of label teaches, as the targets of training really are.

    python examples/label_rules.py docs/labels.png

Green is learnt as "here it is", red as "here it is not", paler where it counts less; white teaches nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from smp_plugin.config import LossConfig, ModelConfig
from smp_plugin.model import PoseModel
from smp_plugin.targets import Instances, PoseTargets, build_targets

SIZE, LENGTH = 512, 96.0
HEAD, BODY, TAIL = 0, 1, 2
KINDS = ["all keypoints", "tail not labelled", "one keypoint", "not labelled", "predicted by a model,\nnot corrected"]
CENTRES = np.array([[100, 110], [270, 110], [430, 130], [130, 360], [350, 360]], dtype=float)
ANGLES = np.radians([20, -15, 70, -40, 15])


def poses() -> np.ndarray:
    """(5, 3, 2): head, body, tail of five animals."""
    along = np.array([0.5, 0.0, -0.5])[:, None] * LENGTH
    return np.stack([centre + along * (np.cos(angle), np.sin(angle)) for centre, angle in zip(CENTRES, ANGLES, strict=True)])


def labelled(animals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What training is given of them: keypoints with NaN, and weights; the animal without a label is absent."""
    known = animals[[0, 1, 2, 4]].copy()
    known[1, TAIL] = known[2, [BODY, TAIL]] = np.nan
    return known, np.array([1.0, 1.0, 1.0, 0.0])


def targets(partial: bool) -> tuple[PoseTargets, tuple[int, int]]:
    """The targets of the scene, and the number of heatmap rows and of rows of the finest level."""
    keypoints, weights = labelled(poses())
    config = LossConfig(keypoint_anchors=partial)
    background = config.partial_negative if partial else 1.0
    instances = Instances(
        torch.from_numpy(keypoints)[None].float(), torch.from_numpy(weights)[None].float(), torch.full((1, 1, 1), background)
    )
    with torch.no_grad():
        outputs = PoseModel(ModelConfig(norm="group", channels=8, heatmap_channels=8), 3)(torch.zeros(1, 3, SIZE, SIZE))
    return build_targets(outputs, instances, config, LENGTH), (outputs.heatmaps.shape[2], SIZE // 8)


def colours(positive: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(h, w, 4): green where positive, red elsewhere, as opaque as it counts."""
    image = np.zeros((*positive.shape, 4))
    image[..., 0], image[..., 1] = 0.85 * (1 - positive), 0.65 * positive
    image[..., 3] = 0.55 * weight
    return image


def draw(axes: Axes, title: str, image: np.ndarray) -> None:
    """One panel: the maps over the animals and their labels."""
    for (x, y), angle in zip(CENTRES, ANGLES, strict=True):
        axes.add_patch(Ellipse((x, y), 1.25 * LENGTH, 0.45 * LENGTH, angle=float(np.degrees(angle)), color="0.82", zorder=0))
    axes.imshow(image, extent=(0, SIZE, SIZE, 0), interpolation="nearest", zorder=1)
    known = labelled(poses())[0][:3].reshape(-1, 2)
    axes.plot(known[:, 0], known[:, 1], "o", color="black", markersize=3, zorder=2)
    for (x, y), kind in zip(CENTRES, KINDS, strict=True):
        axes.text(x, y - 0.62 * LENGTH, kind, ha="center", va="bottom", fontsize=7, zorder=3)
    axes.set(title=title, xticks=[], yticks=[], xlim=(0, SIZE), ylim=(SIZE, 0))
    axes.title.set_fontsize(9)


def main(png: Path) -> None:
    """Draw and save."""
    figure = Figure(figsize=(8, 8.2), layout="constrained")
    panels = figure.subplots(2, 2)
    for row, partial in zip(panels, (False, True), strict=True):
        made, (rows, level_rows) = targets(partial)
        tail = made.heatmaps[0, TAIL].numpy(), made.heatmap_weights[0, TAIL].numpy()
        level = slice(0, level_rows * level_rows)  # the finest level, where animals of this size belong
        animal = [m[0, level].view(level_rows, level_rows).numpy() for m in (made.presence, made.presence_weights)]
        name = "--labels partial" if partial else "--labels complete"
        draw(row[0], f"{name}: where is a tail?", colours(*tail))
        draw(row[1], f"{name}: where is an animal?", colours(*animal))
    figure.savefig(png, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Labels and predictions of the same frames side by side, from the worst to the best: ``python picture.py LABELS PREDICTIONS OUT.png``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from converters import read_project
from converters.labels import stacked
from converters.video import open_video
from smp_plugin.metrics import evaluate_poses
from smp_plugin.pairing import frame_pairs
from smp_plugin.report import GalleryItem, write_gallery
from smp_plugin.similarity import MEDIUM_S2


def main(labels_path: Path, predictions_path: Path, png: Path) -> None:
    """Draw three frames: the worst, one in between, and the best."""
    labels, predictions = read_project(labels_path), read_project(predictions_path)
    videos = [open_video(source) for source in labels.videos]
    keypoints = labels.skeleton.keypoints
    items = []
    for labelled, predicted in frame_pairs(labels, predictions):
        truth = stacked([i.points for f in labelled for i in f.instances], len(keypoints))
        found = [i for f in predicted for i in f.predicted]
        poses = stacked([i.points for i in found], len(keypoints))
        score = evaluate_poses([truth], [(poses, np.array([i.score for i in found]))], keypoints).ap[MEDIUM_S2].ap
        frame = labelled[0]
        items.append(GalleryItem(videos[frame.video].read(frame.index), truth, poses, score, f"frame {frame.index}"))
    items.sort(key=lambda item: item.score)
    write_gallery(png, [items[0], items[len(items) // 2], items[-1]], labels.skeleton)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

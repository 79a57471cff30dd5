"""What each choice is worth: the default settings with one thing changed, trained on few labels, measured on val30 of the honeybees.

    python benchmarks/ablation.py DATA -o ablation.json --train 'train5_[012]' --steps 200

DATA is the folder with ``train*.slp`` and ``val30.slp`` (``--train``, ``--val``: other names). The table compares each change with the
default on the same training frames and seeds, in pairs. Refinement costs no training of its own: every run is measured with and without
it. ``benchmarks/results/ablation.json`` was made when ``loss.quality_s2`` was .01 by default: its ``base`` is "strict-quality" here, its
``quality_s2-0.1`` is "default".
"""

from accuracy import grid, parser

METHODS: dict[str, dict[str, object]] = {
    "default": {},
    "no-kpalign": {"model.kpalign": False},  # one step from an animal's place to its keypoints
    "one-cell": {"loss.heatmap_target": "cell"},  # heatmaps with one positive cell, and focal loss, as the authors
    "heatmap-stride-8": {"model.heatmap_stride": 8},
    "three-levels": {"model.levels": 3},  # and the backbone's last stage
    "animals-56": {"data.animal_size": 56.0},
    "centerness": {"loss.quality": "centerness"},
    "strict-quality": {"loss.quality_s2": 0.01},
    "keypoint-anchors": {"loss.keypoint_anchors": True},
    "no-paste": {"augment.paste": 0.0},
    "anywhere": {"augment.moving": 0.0},  # unlabelled crops from anywhere in the frame
    "alpha-0": {"loss.alpha": 0.0},
    "alpha-1": {"loss.alpha": 1.0},
    "beta-0": {"loss.beta": 0.0},
    "beta-1": {"loss.beta": 1.0},
    "no-agreement": {"loss.agreement": 0.0},
    "supervised": {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.agreement": 0.0},
    "fusion-quality": {"loss.fusion": "quality"},
    "fusion-release": {"loss.fusion": "release"},  # the authors' hard cells
    "gradient-to-heatmaps": {"loss.fusion_gradient": "heatmap"},
    "gradient-to-vectors": {"loss.fusion_gradient": "vectors"},
    "teacher-0.9": {"train.ema": 0.9},  # it begins at (1 + step) / (10 + step): .99 is no change before step 890
    "adamw": {"train.optimizer": "adamw", "train.lr": 1e-3},
    "resnet34": {"model.backbone": "resnet34"},
    "resnet50": {"model.backbone": "resnet50"},
}

if __name__ == "__main__":
    arguments = parser(__doc__ or "", "train5_0", METHODS)
    arguments.add_argument("--val", default="val30.slp")
    given = arguments.parse_args()
    grid(given, METHODS, given.val)

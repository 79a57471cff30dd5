"""Partly labelled frames: what is it worth to know that what is not labelled is no background?

    python benchmarks/partial_labels.py DATA -o benchmarks/results/pups_partial.json --steps 400 --seeds 0,1,2

DATA is the folder with ``pups_train.slp`` (84 animals complete, 581 with one keypoint, many not labelled) and ``pups_val.slp`` (complete).
"""

from accuracy import grid, parser

METHODS: dict[str, dict[str, object]] = {
    "complete": {"data.labels": "complete", "augment.paste": 0.0},  # what is not labelled is background
    "partial": {"data.labels": "partial", "augment.paste": 0.0},
    "partial-paste": {"data.labels": "partial"},
}

if __name__ == "__main__":
    grid(parser(__doc__ or "", "pups_train", METHODS).parse_args(), METHODS, "pups_val.slp")

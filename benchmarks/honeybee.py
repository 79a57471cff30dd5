"""Accuracy on honeybee (Table 1 of the SemiMultiPose paper): our method and its ablations, trained on few labels, measured on val30.

    python benchmarks/honeybee.py DATA -o benchmarks/results/honeybee_train5.json --train 'train5_*' --steps 450

DATA is the folder with ``train*.slp`` and ``val30.slp``.
"""

from accuracy import grid, parser

from smp_plugin.baselines.own import SETTINGS

if __name__ == "__main__":
    grid(parser(__doc__ or "", "train25_0", SETTINGS).parse_args(), SETTINGS, "val30.slp")

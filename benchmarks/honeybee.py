"""Accuracy on honeybee (Table 1 of the SemiMultiPose paper): our method and its ablations, trained on few labels, measured on val30.

    python benchmarks/honeybee.py DATA -o benchmarks/results/honeybee_train5.json --train 'train5_*' --steps 450

DATA is the folder with ``train*.slp`` and ``val30.slp``.
"""

from accuracy import grid, parser

METHODS: dict[str, dict[str, object]] = {
    "directpose": {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.agreement": 0.0},  # L_a + L_b + L_d
    "smp-labeled": {"loss.beta": 0.0, "loss.agreement": 0.0},  # + L_fl
    "smp": {},  # + L_fu and agreement with the teacher
}

if __name__ == "__main__":
    grid(parser(__doc__ or "", "train25_0", METHODS).parse_args(), METHODS, "val30.slp")

"""What decoding makes of the same network: candidates that no neighbour surpasses, and keypoints that have a say in the ranking.

    python benchmarks/decoding.py DATA/val30.slp RUN... -o benchmarks/results/decoding.json

Every run's model is measured three times on the labelled frames: as it is; ranked by v alone; and, ranked so, with all locations as
candidates, of which the best `smp_plugin.decode.CANDIDATES` are judged, as it was before.
"""

from __future__ import annotations

import json

from accuracy import FIGURES, mean, measure, runs_parser
from machine import machine

from smp_plugin import decode, inference

WAYS = {"all locations, by v": (0.0, False), "unsurpassed locations, by v": (decode.SAME, False), "as it is": (decode.SAME, True)}


def main() -> None:
    """Measure, print and keep the table."""
    args = runs_parser(__doc__ or "").parse_args()
    ranked, rows = inference.ranked, []
    for run in args.runs:
        for way, (same, by_keypoints) in WAYS.items():
            decode.SAME = same  # between poses of nobody: nothing is surpassed
            inference.ranked = ranked if by_keypoints else lambda found, config: found
            rows.append({"run": run.name, "way": way, **{name: round(v, 4) for name, v in measure(run / "model.pt", args.labels).items()}})
            print(json.dumps(rows[-1]), flush=True)
    names = [name for name in (*FIGURES, "ar_s2_1", "missed") if not name.startswith("unrefined")]
    of_way = {way: [row for row in rows if row["way"] == way] for way in WAYS}
    first = of_way[next(iter(WAYS))]
    table = {
        way: {name: mean([float(str(r[name])) for r in own]) for name in names}
        | {f"{name}_gain": mean([float(str(r[name])) - float(str(f[name])) for r, f in zip(own, first, strict=True)]) for name in names}
        for way, own in of_way.items()
    }
    print(json.dumps(table, indent=1))
    if args.output:
        kept = {
            "summary": table,
            "runs": rows,
            "command": "python benchmarks/decoding.py DATA/val30.slp RUN... -o OUT",
            "machine": machine(),
        }
        args.output.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()

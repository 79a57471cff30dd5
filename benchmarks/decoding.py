"""What decoding makes of the same network: candidates that no neighbour surpasses, keypoints that have a say in the ranking, and doubles
that refinement shows.

    python benchmarks/decoding.py DATA/val30.slp RUN... -o benchmarks/results/decoding.json

Every run's model is measured four times on the labelled frames: as it is; with doubles sought before refinement only; so, and ranked by v
alone; and, ranked so, with all locations as candidates, of which the best `smp_plugin.decode.CANDIDATES` are judged, as it was at first.
"""

from __future__ import annotations

import json

from accuracy import FIGURES, mean, measure, runs_parser
from machine import machine

from smp_plugin import decode, inference

WAYS = {
    "all locations, by v": (0.0, False, False),
    "unsurpassed locations, by v": (decode.SAME, False, False),
    "by keypoints, too": (decode.SAME, True, False),
    "as it is": (decode.SAME, True, True),
}


def main() -> None:
    """Measure, print and keep the table."""
    args = runs_parser(__doc__ or "").parse_args()
    ranked, without_doubles, rows = inference.ranked, decode.without_doubles, []
    for run in args.runs:
        for way, (same, by_keypoints, twice) in WAYS.items():
            decode.SAME = same  # between poses of nobody: nothing is surpassed
            inference.ranked = ranked if by_keypoints else lambda found, config: found
            decode.without_doubles = without_doubles if twice else lambda found, nms, typical: found
            rows.append({"run": run.name, "way": way, **{name: round(v, 4) for name, v in measure(run / "model.pt", args.labels).items()}})
            print(json.dumps(rows[-1]), flush=True)
    names = [name for name in (*FIGURES, "ar_s2_1", "missed", "doubled") if not name.startswith("unrefined")]
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

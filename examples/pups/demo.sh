#!/usr/bin/env bash
# The whole way once: a simulated nest of pups, a few partly labelled frames, training, prediction, evaluation on frames not seen. Ends with the AP and
# the pictures to look at. Usage: examples/pups/demo.sh [FOLDER], with the commands on the PATH. FOLDER is emptied.
set -euo pipefail

out=${1:-runs/demo}
minutes=${DEMO_MINUTES:-4}
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$out/nest" "$out/model" "$out"/heldout.*
mkdir -p "$out"

step() { printf '\n== %s\n' "$*"; }

step "1/4 A simulated nest: a training project with few labels, and held-out frames with all labels"
python "$here/generate.py" --out "$out/nest" --labelled 80 --pups 5

step "2/4 Training, $minutes minutes"
smp-train --slp "$out/nest/pups.slp" -o "$out/model" --minutes "$minutes"

step "3/4 Prediction on the held-out frames and video"
# AP weighs sure against unsure animals by itself, so it is measured without a cut of the score.
smp-predict "$out/nest/heldout.slp" --frames labeled --model "$out/model" -o "$out/heldout.predictions.slp" --min-score 0.01
smp-predict "$out/nest/heldout.mp4" --model "$out/model" -o "$out/heldout.video.slp" --overlay "$out/heldout.overlay.mp4"

step "4/4 Evaluation on the held-out frames"
smp-evaluate "$out/nest/heldout.slp" "$out/heldout.predictions.slp"
smp-evaluate "$out/nest/heldout.slp" "$out/heldout.predictions.slp" --json > "$out/heldout.json"

python "$here/picture.py" "$out/nest/heldout.slp" "$out/heldout.video.slp" "$out/heldout.png"

python - "$out/heldout.json" <<'PYTHON'
import json
import sys

figures = json.load(open(sys.argv[1], encoding="utf-8"))["ap"]
print(f"AP on held-out frames: {figures['1.0']['ap']:.3f} (s2 = 1), {figures['0.1']['ap']:.3f} (s2 = 0.1)")
PYTHON
cat <<END
Look at:
  $out/heldout.png                  labels and predictions side by side, on frames not seen
  $out/heldout.overlay.mp4          the poses on the held-out video
  $out/model/report.html            how training went
  $out/model/val_predictions.png    labels and predictions side by side
  $out/heldout.video.slp            opens in SLEAP
END

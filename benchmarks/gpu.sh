#!/usr/bin/env bash
# Train, answer and evaluate with a model of 150 million parameters on an NVIDIA GPU, then measure the speed of each
# backend. Writes benchmarks/results/gpu.json and gpu.md. Takes a few minutes; needs requirements-gpu.lock.
#
#     benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "benchmarks/gpu.sh: torch sees no NVIDIA GPU on this machine; nothing was measured" >&2
    exit 2
fi
work=build/gpu
"$python" benchmarks/gpu.py prepare --work "$work"
for stage in train answer evaluate; do
    (cd "$work" && PYTHONPATH="$OLDPWD" "$python" -m "stages.$stage")
done
"$python" benchmarks/gpu.py measure --work "$work"

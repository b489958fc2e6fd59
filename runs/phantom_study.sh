#!/usr/bin/env bash
# Does Dice rise with the input and with the network? 2 networks x 2 sizes x 3 inputs, 3 seeds, on the phantom.
#
#     runs/phantom_study.sh OUT [JOBS]
#
# Trains JOBS networks at a time (2 without it), each on one process of one thread, by `lampseg reproduce --scale study`;
# what is done is skipped. Then writes benchmarks/results/phantom_study.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?"give a folder for the study"}
jobs=${2:-2}
export OMP_NUM_THREADS=1
[ -d "$out/data" ] || .venv/bin/lampseg demo-data --out "$out/data" --cases 24 --test 12 --seed 0
for seed in 0 1 2; do
    for network in unet-32 unet-64 seunet-32 seunet-64; do
        echo "$seed $network"
    done
done | xargs -P "$jobs" -L 1 bash -c '
    .venv/bin/lampseg reproduce han --scale study --data "$0/data" --out "$0/seed-$1" --only "$2" --seed "$1" \
        --devices 1 --rounds 1 > "$0/seed-$1-$2.txt" 2>&1 || { tail -5 "$0/seed-$1-$2.txt"; exit 255; }' "$out"
.venv/bin/python runs/phantom_study.py "$out"

#!/usr/bin/env bash
# The rows behind README.md's tables, measured on this machine's CPU, in twenty minutes:
#   bench/cpu.sh ROWS.jsonl NORMS.jsonl
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bench/cpu.sh ROWS.jsonl NORMS.jsonl" >&2
    exit 2
fi
python=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python
rows=$1
bench() { # AREA OPTIONS...
    "$python" -m onepass bench "$1" --json "$rows" "${@:2}"
}

bench optim --threads 1 2
bench optim --optimizer sgd sgd-momentum rmsprop adagrad lion --workload resnet50 --workload tiny2000
bench optim --workload resnet50 --dtype bfloat16
bench optim --workload resnet50 --dtype bfloat16 --state bf16
bench optim --workload resnet50 --workload gpt2 --phase set-to-none zeroed --peers torch-fused torch-foreach --seconds 30
bench amp --workload resnet50 --seconds 30

rows=$2
bench norm --seconds 3
bench norm --seconds 3 --shape 256x56 64x56 --layout nchw --dtype float32 --fusion bn+relu --peers torch torch.compile

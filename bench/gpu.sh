#!/usr/bin/env bash
# Builds, tests and measures onepass on a machine with an NVIDIA GPU:  bench/gpu.sh OUTDIR
#
# Needs nvcc and a python3 with torch, triton, setuptools, pybind11, ninja, pytest, hypothesis and rich; no network.
# Measured are optimizers, batch normalization, linear layers in 8 bits and fake quantization, the most important of
# each first.
# OUTDIR gets six logs, rows.jsonl (see bench/README.md) and summary.txt, a line per stage as it ends:
#   ok, FAILED (exit code), CUT (ran past its limit) or LEFT OUT (why). Exit code: 0 if every line is ok, else 1.
#
# Environment, in seconds:
#   ONEPASS_GPU_SECONDS        for everything (510)
#   ONEPASS_GPU_BENCH_SECONDS  of these, kept for the benchmarks at the end (200)
#   ONEPASS_GPU_STAGE_SECONDS  no stage gets more (each has a limit of its own)
set -u

if [ $# -ne 1 ]; then
    echo "usage: bench/gpu.sh OUTDIR" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
total=${ONEPASS_GPU_SECONDS:-510}
for_bench=${ONEPASS_GPU_BENCH_SECONDS:-200}
most=${ONEPASS_GPU_STAGE_SECONDS:-$total}
least=3 # seconds below which a stage is not begun
wrong=0
child=

TMP=$(mktemp -d) || exit 2
# shellcheck disable=SC2329  # the trap calls it
clean_up() {
    if [ -n "$child" ]; then kill "$child" 2>/dev/null; fi
    rm -rf "$TMP" "$out"/.rows.jsonl.*.tmp
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() {
    echo "$*" | tee -a "$out/summary.txt"
}

missed() { # NAME WHY: a stage that was not run
    wrong=1
    say "$(printf '%-9s %-28s %s' "LEFT OUT" "$1" "$2")"
}

# stage NAME LOG LIMIT KEEP COMMAND...: runs the command for LIMIT seconds at most, and so that KEEP seconds are left
# for what comes after it. Returns its exit code, 1 if it was left out.
stage() {
    local name=$1 log="$out/$2" limit=$3 keep=$4 begin=$SECONDS code verdict
    shift 4
    local left=$((total - SECONDS - keep))
    if [ "$limit" -gt "$most" ]; then limit=$most; fi
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    if [ "$limit" -lt "$least" ]; then
        missed "$name" "no time is left"
        return 1
    fi
    echo "=== $name: $*" >>"$log"
    timeout --kill-after=3 "$limit" "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    wait "$child"
    code=$?
    child=
    case $code in
    0) verdict="ok" ;;
    124 | 137) verdict="CUT" ;;
    *) verdict="FAILED" ;;
    esac
    if [ "$code" -ne 0 ]; then wrong=1; fi
    local took="$((SECONDS - begin)) s of $limit s"
    if [ "$verdict" = FAILED ]; then took="$took, exit code $code"; fi
    say "$(printf '%-9s %-28s %s' "$verdict" "$name" "$took")"
    return "$code"
}

# --- the machine and the build ------------------------------------------------------------------------------
rm -f "$out"/0[1-6]-*.log "$out/rows.jsonl" "$out/summary.txt"
if [ -d /usr/local/cuda/bin ]; then PATH="$PATH:/usr/local/cuda/bin"; fi
if [ -z "${ONEPASS_COMMIT:-}" ]; then # for the rows: the copy is no checkout
    ONEPASS_COMMIT=$(git -C "$root" describe --always --dirty --exclude='*' 2>/dev/null)
fi
export PATH ONEPASS_COMMIT
say "onepass ${ONEPASS_COMMIT:-of no known commit} on $(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem \
    --format=csv,noheader 2>/dev/null | tr '\n' ';'), $(nvcc --version 2>/dev/null | grep -o 'release [0-9.]*' || echo 'no nvcc')"

tree="$TMP/tree" site="$TMP/site"
mkdir "$tree"
tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' --exclude='*.egg-info' \
    --exclude=__pycache__ -cf - . | tar -C "$tree" -xf -
cd "$tree" || exit 2

install=(python3 -m pip install --no-build-isolation --no-deps --no-index --target "$site" .)
python_only=
if ! stage build 01-build.log 200 "$for_bench" env ONEPASS_CUDA=1 ONEPASS_CUDA_ARCHS=native "${install[@]}"; then
    # What needs no compiler, Triton among it, can still be tested.
    rm -rf "$site"
    python_only=1
    stage build-python-only 01-build.log 40 0 env ONEPASS_BUILD=0 "${install[@]}"
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
onepass=(python3 -m onepass)
pytest=(python3 -m pytest -p no:cacheprovider --tb=short)

# --- correct? -----------------------------------------------------------------------------------------------
stage info 02-selftest.log 30 "$for_bench" "${onepass[@]}" info
# The riskiest guess first: how numbers lie in the tensor core's registers, which nothing without a GPU can prove.
stage mma-layout 02-selftest.log 40 "$for_bench" "${pytest[@]}" tests/test_gpu_int8.py \
    tests/test_gpu_int8_weight.py -k unit_vectors
stage selftest-cuda 02-selftest.log 150 "$for_bench" "${onepass[@]}" selftest --device cuda
# What the selftest has just compared is left out here.
stage gpu-tests 03-gpu-tests.log 150 "$for_bench" "${pytest[@]}" -m gpu --continue-on-collection-errors tests \
    --deselect tests/test_gpu.py::test_op_agrees_with_the_reference

small=("${onepass[@]}" selftest --device cuda --case plain --case phase --dtype float32)
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        # Without torch's allocator each tensor has bounds of its own to check.
        stage "sanitizer-$tool" 04-sanitizer.log 45 "$for_bench" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 9 "${small[@]}"
    else
        missed "sanitizer-$tool" "compute-sanitizer is not installed"
    fi
done

stage selftest-cpu 05-cpu.log 60 "$for_bench" "${onepass[@]}" selftest
stage cpu-tests 05-cpu.log 90 "$for_bench" "${pytest[@]}" -m "not slow and not gpu" tests/test_ops.py

# --- fast? The most important first. --------------------------------------------------------------------------
area=optim
bench() { # NAME LIMIT OPTIONS...
    local name=$1 limit=$2
    shift 2
    stage "bench-$name" 06-bench.log "$limit" 0 "${onepass[@]}" bench "$area" --device cuda --json "$out/rows.jsonl" "$@"
}
norm() { # NAME LIMIT LAYOUT DTYPE OPTIONS...: the layers that are the largest, and one of many channels
    area=norm bench "norm-$1" "$2" --layout "$3" --dtype "$4" --peers torch --seconds 0.6 "${@:5}"
}
int8() { # NAME LIMIT OPTIONS...: 1, 16, 256 and 4096 rows by each weight; the five are meant to take 80 s
    area=int8 bench "int8-$1" "$2" --seconds 0.4 "${@:3}"
}
layers=(64x112 256x56 512x28 2048x7)
for workload in resnet50 1B; do
    bench "$workload-float32" 40 --seconds 4 --workload "$workload"
done
for layout in nhwc nchw; do
    norm "$layout-bfloat16" 30 "$layout" bfloat16 --shape "${layers[@]}"
done
int8 linear 40 --op int8_linear --weight 4096x4096
int8 weight-only 30 --op int8_weight_only_mm --weight 4096x4096
int8 gradients 30 --op int8_mm_bwd --weight 4096x4096
norm compile 40 nhwc bfloat16 --shape 256x56 --peers torch torch.compile apex
for workload in gpt2 tiny2000 llama; do
    bench "$workload-float32" 40 --seconds 4 --workload "$workload"
done
for workload in resnet50 gpt2 llama; do
    bench "phase-$workload" 50 --seconds 4 --workload "$workload" --phase set-to-none zeroed
done
for layout in nhwc nchw; do
    norm "$layout-float32" 30 "$layout" float32 --shape "${layers[@]:1}"
done
int8 shapes 30 --op int8_linear --weight 768x768 11008x4096 --peers _int_mm
area=fake_quant bench fake-quant 25 --seconds 0.4 --shape 4096x4096
area=amp bench amp-resnet50 40 --seconds 3 --workload resnet50
bench optimizers 60 --seconds 2 --workload resnet50 --optimizer adam sgd sgd-momentum rmsprop adagrad lion
for workload in resnet50 1B gpt2 llama; do
    bench "$workload-bfloat16" 40 --seconds 3 --workload "$workload" --dtype bfloat16
done
int8 float16 20 --op int8_linear --weight 4096x4096 --dtype float16 --peers _int_mm

if [ -n "$python_only" ]; then say "The compiled kernels were not there: all of the above is about the others."; fi
say "$SECONDS s in all, exit code $wrong"
exit "$wrong"

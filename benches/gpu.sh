#!/usr/bin/env bash
# On a machine with a GPU: prints tokens/s and memory of training at 4 × 256 tokens for the shapes of SmolLM2-135M and
# TinyLlama-1.1B, with random weights; beside PEFT in PyTorch on the same GPU where python3 has it; runs the tests of the GPU path,
# and checks training over NF4 against the processor.
#
#   benches/gpu.sh
#
# Needs python3 with numpy, and 2.3 GB below TMPDIR. BURNISH and BURNISH_TESTS name a program and a test binary that were
# built before with `--features wgpu`, `cuda` or both; without them cargo builds both with FEATURES (wgpu). Of cuda and wgpu, those
# run that the program has and the machine has a driver for. TIMEOUT is the most seconds for one measurement (120), ROUNDS the
# alternations with PEFT (2), LOG a file for all figures as JSON. What matters most comes first, so a run that is cut short has it.
# Exit code 1 if a test, a comparison or a measurement failed.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
features=${FEATURES:-wgpu}
log=${LOG:-/dev/null}
limit=${TIMEOUT:-120}
say() { printf '\n## %s (%d s)\n' "$*" "$SECONDS"; }

say "GPU"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null ||
    vulkaninfo --summary 2>/dev/null | grep deviceName || echo "unknown: neither nvidia-smi nor vulkaninfo is here"

if [ -z "${BURNISH:-}" ]; then
    cargo build --release --features "$features" || exit 1
    BURNISH=target/release/burnish
fi
# Mesa complains on stderr where it is missing.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
# CUDA's mathematical functions, which PyTorch's triton brings, too.
if [ -z "${CUDA_PATH:-}" ] && [ ! -e /usr/local/cuda/nvvm/libdevice/libdevice.10.bc ]; then
    found=$(python3 -c 'import importlib.util as u, pathlib as p
print(next(p.Path(u.find_spec("triton").origin).parent.rglob("libdevice.10.bc")))' 2>/dev/null) && {
        mkdir -p "$work/cuda/nvvm/libdevice"
        cp "$found" "$work/cuda/nvvm/libdevice/"
        export CUDA_PATH=$work/cuda
    }
fi

devices=()
echo '{"text": "One line."}' >"$work/line.jsonl"
for device in cuda wgpu; do
    if said=$(timeout "$limit" "$BURNISH" eval --device "$device" --compute f32 --base tests/fixtures/gguf/smollm.gguf \
        --data "$work/line.jsonl" 2>&1); then
        devices+=("$device")
    else
        echo "without $device: $(tail -n 4 <<<"$said" | tr '\n' ' ')"
    fi
done
[ ${#devices[@]} != 0 ] || exit 1
first=${devices[0]}
echo "devices: ${devices[*]} ($SECONDS s)"

model() { # SHAPE
    python3 benches/random_model.py --shape "$1" --tokenizer tests/fixtures/text/bytelevel --out "$work/$1" >/dev/null
}
speed() { # SHAPE, then arguments of benches/speed.py
    local shape=$1
    shift
    python3 benches/speed.py --burnish "$BURNISH" --base "$work/$shape" --timeout "$limit" "$@" 2>>"$log" || failed=1
}
modes=f32
[ "$first" != cuda ] || modes=f32,bf16

model smollm2-135m || exit 1
has_peft=0
if [ "$first" = cuda ] && python3 -c 'import torch, transformers, peft; assert torch.cuda.is_available()' 2>/dev/null; then
    has_peft=1
fi
beside_peft() { # SHAPE WORKLOADS MODES
    python3 benches/peft_side_by_side.py --model "$work/$1" --burnish "$BURNISH" --device cuda --rounds "${ROUNDS:-2}" \
        --steps 20 --workloads "$2" --modes "$3" --burnish-modes "$3" || failed=1
}
if [ $has_peft = 1 ]; then
    say "SmolLM2-135M's shape at 4 × 256 beside PEFT, on $first"
    beside_peft smollm2-135m qv bf16,f32
fi
say "SmolLM2-135M's shape at 4 × 256 on $first"
speed smollm2-135m --devices "$first" --modes "$modes" --targets all-linear --steps 20
speed smollm2-135m --devices "$first" --modes "${modes##*,}/nf4,${modes##*,}/recompute" --targets q-v --steps 20

say "Losses over NF4 on the processor and on $first"
speed smollm2-135m --devices "cpu,$first" --modes f32/nf4,f32/nf4-double --targets all-linear --steps 3 --warm-up 0 \
    --shape 2x128 --tolerance 1e-3

say "TinyLlama-1.1B's shape at 4 × 256 on $first"
model tinyllama-1.1b || exit 1
if [ $has_peft = 1 ]; then
    ROUNDS=1 beside_peft tinyllama-1.1b qv bf16
fi
speed tinyllama-1.1b --devices "$first" --modes "$modes,${modes##*,}/nf4-double" --targets q-v --steps 8

for device in "${devices[@]}"; do
    say "Tests of the GPU path on $device"
    if [ -n "${BURNISH_TESTS:-}" ]; then
        BURNISH_TEST_DEVICE=$device timeout $((2 * limit)) "$BURNISH_TESTS" gpu:: || failed=1
    else
        BURNISH_TEST_DEVICE=$device cargo test --release --features "$features" --test burnish gpu:: || failed=1
    fi
done
for device in "${devices[@]:1}"; do
    say "SmolLM2-135M's and TinyLlama-1.1B's shapes at 4 × 256 on $device"
    speed smollm2-135m --devices "$device" --modes f32,f32/nf4 --targets q-v --steps 8
    speed tinyllama-1.1b --devices "$device" --modes f32/nf4-double --targets q-v --steps 4
done

say "done"
exit $failed

#!/usr/bin/env bash
# On a machine with a GPU that has a Vulkan driver: runs the tests of the wgpu path, checks training over NF4 against the
# processor, and prints tokens/s and memory at 4 × 256 tokens for the shape of SmolLM2-135M and at 1 × 512 for that of
# TinyLlama-1.1B, both with random weights.
#
#   benches/gpu.sh
#
# Needs python3 with numpy, and 2.3 GB below TMPDIR. BURNISH and BURNISH_TESTS name a program and a test binary that were
# built before with `--features wgpu`; without them cargo builds both. TIMEOUT is the most seconds for one measurement
# (600), LOG a file for all figures as JSON. Exit code 1 if a test or a comparison failed.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

echo "## GPU"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null ||
    vulkaninfo --summary 2>/dev/null | grep deviceName || echo "unknown: neither nvidia-smi nor vulkaninfo is here"

if [ -z "${BURNISH:-}" ]; then
    cargo build --release --features wgpu || exit 1
    BURNISH=target/release/burnish
fi

echo "## Tests of the wgpu path"
# Mesa complains on stderr where it is missing.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
if [ -n "${BURNISH_TESTS:-}" ]; then
    "$BURNISH_TESTS" wgpu:: || failed=1
else
    cargo test --release --features wgpu --test burnish wgpu:: || failed=1
fi

model() { # SHAPE
    python3 benches/random_model.py --shape "$1" --tokenizer tests/fixtures/text/bytelevel --out "$work/$1" >/dev/null
}
speed() { # SHAPE, then arguments of benches/speed.py
    local shape=$1
    shift
    python3 benches/speed.py --burnish "$BURNISH" --base "$work/$shape" --timeout "${TIMEOUT:-600}" "$@" \
        2>>"${LOG:-/dev/null}" || failed=1
}

echo "## Losses over NF4 on both devices"
model smollm2-135m || exit 1
speed smollm2-135m --devices cpu,wgpu --modes f32/nf4,f32/nf4-double --targets all-linear --steps 3 --warm-up 0 \
    --shape 2x128 --tolerance 1e-3

echo "## SmolLM2-135M's shape"
speed smollm2-135m --devices wgpu --modes f32,f32/nf4,f32/nf4/recompute --targets q-v --steps 8
speed smollm2-135m --devices wgpu --modes f32 --targets all-linear --steps 8

echo "## TinyLlama-1.1B's shape"
model tinyllama-1.1b || exit 1
speed tinyllama-1.1b --devices wgpu --modes f32/nf4-double,f32/nf4-double/recompute --targets attention --steps 4 \
    --shape 1x512
speed tinyllama-1.1b --devices wgpu --modes f32/nf4-double/recompute --targets attention --steps 4 --shape 4x256

exit $failed

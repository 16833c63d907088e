#!/usr/bin/env bash
# What only a GPU can tell, in one go of at most eight minutes:
#
#   bash benchmarks/on_gpu.sh            # on a GPU; PROXYLESSNAS_DATA says where the data are
#   SMALL=1 bash benchmarks/on_gpu.sh    # everything in small, on a CPU, to see that it runs
#
# Each part has its own time, so that none takes that of the next; what a part printed is in
# $OUT/PART.txt, and its end is shown. The parts: the tests that need a GPU; what steps cost on the
# ImageNet space at the paper's batch of 256, plain and in bfloat16, channels_last with compiled
# candidates, beside DARTS; then the two tables whose every answer is known.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/on_gpu}
PYTHON=${PYTHON:-python}
export PYTHONPATH=src:benchmarks
mkdir -p "$OUT"

part() { # name, seconds, command
  local name=$1 seconds=$2 start=$SECONDS status
  shift 2
  timeout "$seconds" "$@" >"$OUT/$name.txt" 2>&1
  status=$?
  echo "== $name: exit $status after $((SECONDS - start)) s of at most $seconds"
  tail -n 24 "$OUT/$name.txt"
}

if [ -n "${SMALL:-}" ]; then
  steps=(--device cpu --side 32 --batch 8 --widths 8,16 --depths 1,1)
  fast=()
  cells=(--minutes 0.2 --networks 24 --measured 30 --devices raspi4 --quantiles 0.5 --no-zero-cost)
else
  steps=(--device cuda --space mobile --widths "" --depths "" --side 224 --batch 256)
  fast=(--autocast --compile)
  cells=(--cells 5 --no-halved --minutes 1.5 --networks 150 --no-zero-cost)
  macro=(--epochs 6 --limits 45 65 --estimators two_path --tau 100)
fi

part tests 60 "$PYTHON" -m pytest -q -n 0 -p no:cacheprovider tests/training/test_gpu.py
part steps_plain 60 "$PYTHON" benchmarks/peers.py --steps-alone --peers proxylessnas,darts "${steps[@]}"
part steps_fast 90 "$PYTHON" benchmarks/peers.py --steps-alone --peers proxylessnas,darts \
  "${steps[@]}" "${fast[@]}"
part cells 180 "$PYTHON" benchmarks/nas_bench_201.py --weights "$OUT/cells.safetensors" \
  --json "$OUT/cells.json" "${cells[@]}"
if [ -z "${SMALL:-}" ]; then
  part macro 90 "$PYTHON" benchmarks/nas_bench_macro.py --out "$OUT/macro" "${macro[@]}"
fi

#!/usr/bin/env bash
# plot.sh ROOT: bench/plot on a made-up file of results. Skipped (exit status 77) where python3 or matplotlib is missing; wrong
# usage is tested without matplotlib too.
set -euo pipefail
plot=$1/bench/plot
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if ! command -v python3 >/dev/null; then
  echo "skipped: python3 is not installed (apt-get install python3)"
  exit 77
fi

# expect STATUS WORDS ARGUMENT...
expect() {
  local status=$1 words=$2 got=0 output
  shift 2
  output=$("$plot" "$@" 2>&1) || got=$?
  ((got == status)) && grep -qE -- "$words" <<<"$output" && return
  printf 'FAIL: plot %s: exit status %d, expected %d and "%s":\n%s\n' "$*" "$got" "$status" "$words" "$output"
  exit 1
}

expect 2 'none.json cannot be read' "$folder/none.json"
echo '{"results": [' >"$folder/torn.json"
expect 2 'torn.json cannot be read' "$folder/torn.json"
echo '[]' >"$folder/other.json"
expect 2 'is no file of tandem-bench' "$folder/other.json"

python3 - "$folder/made_up.json" <<'TEXT'
import json, sys

results = [{"group": "gemm", "case": "broken", "m": 1, "ok": False, "note": "not in any chart"}]
for case, n, k in (("fc1", 4096, 7168), ("big", 24576, 1536)):
    for m in (1, 16, 4096):
        us = 5 + n * k / 4e6 + m * n * k / 4e8
        one = {"group": "gemm", "case": case, "m": m, "n": n, "k": k, "ok": True, "bytes": n * k + m * (2 * n + k),
               "flops": 2 * m * n * k, "gbps": 1000.5, "percent_of_bandwidth": 22.2, "tflops": 3, "sm_mhz": 1980, "us": {"median": us, "min": us - 0.1, "max": us + 0.2}, "floor_us": us / 2}
        if m != 16:
            one["cublaslt_us"] = {"median": us + 3, "min": us + 2, "max": us + 4}
        if case == "fc1":
            one["peer_us"] = us + 2
            one["goal_us"] = us - 1
        results.append(one)
data = {"tandem_bench": 1, "date": "2026-01-01T00:00:00Z", "device": "a GPU", "device_sms": 132, "sms": 132,
        "cublaslt": "none", "replays": 21, "rest_ms": 0,
        "bandwidth_gbps": {"best": 4500.0}, "results": results}
json.dump(data, open(sys.argv[1], "w"))
TEXT

expect 0 '^[|] fc1 [|] 1 [|] 12.41 [(]12.31 to 12.61[)] [|] 1000 .* 15.41 [|] 14.41 [|] 11.41 [|] 1.16 [|]$' "$folder/made_up.json" --table
expect 0 '^[|] big [|] 16 [|] .* – [|] – [|] – [|] – [|]$' "$folder/made_up.json" --table

if ! python3 -c 'import matplotlib' 2>/dev/null; then
  expect 77 'matplotlib is missing: apt-get install python3-matplotlib' "$folder/made_up.json"
  echo "skipped: matplotlib is not installed (apt-get install python3-matplotlib)"
  exit 77
fi
expect 2 'is no folder' "$folder/made_up.json" --out "$folder/none"
expect 0 'roofline.svg' "$folder/made_up.json" --out "$folder"
for chart in times roofline; do
  [[ $(tail -c 7 "$folder/$chart.svg") == "</svg>" ]] || { echo "FAIL: $chart.svg does not end"; exit 1; }
  python3 -c 'import sys, xml.etree.ElementTree as tree; tree.parse(sys.argv[1])' "$folder/$chart.svg"
done
# Text is drawn as glyphs; the comment that matplotlib puts before them has it in letters.
for words in 'gemm fc1: 4096 x 7168' 'gemm big: 24576 x 1536' 'cuBLASLt, same run' 'best peer, recorded' 'goal'; do
  grep -qF -- "<!-- $words -->" "$folder/times.svg" || { echo "FAIL: times.svg lacks '$words'"; exit 1; }
done
if grep -qF 'broken' "$folder"/*.svg; then
  echo "FAIL: a failed case is in a chart"
  exit 1
fi
echo "2 charts"

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

python3 - "$folder/overlap.json" <<'TEXT'
import json, sys

def way(lanes, wait, sms, experts, m, us):
    return {"group": "overlap", "m": m, "ok": True, "lanes": lanes, "wait": wait, "side_sms": sms, "experts": experts,
            "us": {"median": us, "min": us - 1, "max": us + 2}}

results, forks = [{"group": "overlap", "case": "green_edge_dense", "m": 1, "ok": False, "note": "not in any chart"}], []
for m in (1, 64):
    for case, lanes, wait, sms in (("serial", "serial", "edge", 0), ("soft", "soft", "edge", 16), ("green_signal", "green", "signal", 16)):
        for experts in ("dense", "hits") if lanes == "soft" else ("dense", "hits", "grouped"):  # older files have no grouped
            us = 400 + m - (10 if lanes == "soft" else 0) - {"dense": 0, "hits": 100, "grouped": 120}[experts]
            results.append({**way(lanes, wait, sms, experts, m, us), "case": f"{case}_{experts}", "experts_hit": 8 + m / 2,
                            "percent_of_serial": 97.5, "percent_of_serial_dense": 88.8, "gbps": 3000, "launches": 18.25})
    results.append({**results[-5], "case": "tuned", "best": "soft_dense", "percent_over_best": 0.5, "close": True, "gain_us": 9.5,
                    "router_us": 10.75, "hides_router": False})
forks = [{**way("green", "signal", 16, "hits", 16, 800.0), "layers": 4, "launches": 77, "extra_us": 3.25}]
data = {"tandem_bench": 1, "date": "2026-01-01T00:00:00Z", "device": "a GPU", "device_sms": 132, "sms": 132, "replays": 21,
        "rest_ms": 5, "bandwidth_gbps": {"best": 0.0}, "results": results,
        "overlap": {"shape": "TP8", "layers": 4, "context": 4096, "forks": forks}}
json.dump(data, open(sys.argv[1], "w"))
TEXT

expect 0 '^a GPU, 2026-01-01, TP8 layer, 4 a graph, context 4096, 21 replays' "$folder/overlap.json" --table
expect 0 '^[|] 64 [|] 40 [|] green 16, signals [|] hits [|] 364.0 [(]363.0 to 366.0[)] [|] 97.5 [|] 88.8 [|] 3000 [|] – [|] 18.25 [|]$' \
  "$folder/overlap.json" --table
expect 0 '^[|] 64 [|] 40 [|] serial [|] grouped [|] 344.0 [(]343.0 to 346.0[)] [|] 97.5 ' "$folder/overlap.json" --table
expect 0 '^[|] 1 [|] [+]0.50 % [|] soft dense [|] yes [|] 9.50 [|] 10.75 [|] no [|]$' "$folder/overlap.json" --table
expect 0 '^[|] 4 [|] 16 [|] green 16, signals [|] 800.0 [(]799.0 to 802.0[)] [|] [+]3.25 [|] 77 [|]$' "$folder/overlap.json" --table

if ! python3 -c 'import matplotlib' 2>/dev/null; then
  expect 77 'matplotlib is missing: apt-get install python3-matplotlib' "$folder/made_up.json"
  echo "skipped: matplotlib is not installed (apt-get install python3-matplotlib)"
  exit 77
fi
expect 2 'is no folder' "$folder/made_up.json" --out "$folder/none"
expect 0 'roofline.svg' "$folder/made_up.json" --out "$folder"
expect 0 'overlap.svg' "$folder/overlap.json" --out "$folder"
for chart in times roofline overlap; do
  [[ $(tail -c 7 "$folder/$chart.svg") == "</svg>" ]] || { echo "FAIL: $chart.svg does not end"; exit 1; }
  python3 -c 'import sys, xml.etree.ElementTree as tree; tree.parse(sys.argv[1])' "$folder/$chart.svg"
done
# Text is drawn as glyphs; the comment that matplotlib puts before them has it in letters.
for words in 'gemm fc1: 4096 x 7168' 'gemm big: 24576 x 1536' 'cuBLASLt, same run' 'best peer, recorded' 'goal'; do
  grep -qF -- "<!-- $words -->" "$folder/times.svg" || { echo "FAIL: times.svg lacks '$words'"; exit 1; }
done
for words in 'soft, dense' 'green, signals, hits' 'green, signals, grouped' 'tuned' 'time over that of one lane, same experts'; do
  grep -qF -- "<!-- $words -->" "$folder/overlap.svg" || { echo "FAIL: overlap.svg lacks '$words'"; exit 1; }
done
if grep -qF 'broken' "$folder"/*.svg; then
  echo "FAIL: a failed case is in a chart"
  exit 1
fi
echo "3 charts"

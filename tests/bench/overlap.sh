#!/usr/bin/env bash
# overlap.sh TANDEM_BENCH ROOT: --suite overlap on the host device: all ways run and give the same bits, each has its row, and
# the JSON file has what docs/overlap.md says. Times are not judged.
set -euo pipefail
bench=$1
plot=$2/bench/plot
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cases=0
failed=0

# rows COUNT WORDS FILE: so many lines of FILE match WORDS (a regular expression).
rows() {
  local got
  got=$(grep -cE -- "$2" "$3") || true
  cases=$((cases + 1))
  ((got == $1)) && return
  failed=$((failed + 1))
  printf 'FAIL: %d lines of %s match "%s", expected %d\n' "$got" "${3##*/}" "$2" "$1"
}

status=0
"$bench" --suite overlap --host --m 3,1 --layers 2,1 --json "$folder/run.json" >"$folder/out" 2>"$folder/err" || status=$?
if ((status != 0)); then
  printf 'FAIL: exit status %d\n' "$status"
  cat "$folder/out" "$folder/err"
  exit 1
fi

number='[0-9]+\.[0-9]+'
for lanes in 'serial' 'soft 16' 'split 4' 'green 16, edge' 'green 16, signal'; do
  for experts in dense hits grouped; do
    rows 2 "^ +[13] +$lanes +$experts( +$number){5} +[0-9]+ +- +$number\$" "$folder/out"
  done
  rows 1 "^ +2 $lanes( +$number){3} +[-+]$number +[0-9]+\$" "$folder/out"
  rows 1 "^ +1 $lanes( +$number){3} +[-+]$number +[0-9]+\$" "$folder/out"
done
rows 2 "^ +[13] tuned: (serial|soft 16) +(dense|hits|grouped)( +$number){5} " "$folder/out"
rows 2 '^ +goal, at most 1 % slower than the best \(.*\): [-+][0-9.]+ %, (holds|MISSED)$' "$folder/out"
rows 2 '^ +experts hit: [0-9.]+; the choice was measured$' "$folder/out"
rows 1 '^tuned: 2 buckets in ' "$folder/out"
rows 1 '^44 timed with the bits of the serial result, 0 skipped, 0 with other bits$' "$folder/out"
rows 1 '^goals: [0-2] of 2 tuned choices at most 1 % slower than the best; 0 of 0 dense ones hide the router' "$folder/out"
rows 0 'FAILED|skipped:' "$folder/out"
# M ascends, whatever the order on the command line.
rows 1 '^ +1 +serial +dense' <(grep -m1 -E '^ +[13] ' "$folder/out")

rows 32 '"group": "overlap"' "$folder/run.json"
rows 44 '"ok": true' "$folder/run.json"
for lanes in serial soft split green_edge green_signal; do
  for experts in dense hits grouped; do
    rows 2 "\"case\": \"${lanes}_$experts\"" "$folder/run.json"
  done
done
rows 2 '"case": "tuned"' "$folder/run.json"
rows 32 '"percent_of_serial": ' "$folder/run.json"
rows 32 '"experts_hit": ' "$folder/run.json"
rows 2 '"percent_over_best": ' "$folder/run.json"
rows 2 '"measured": true' "$folder/run.json"
rows 12 '"extra_us": ' "$folder/run.json"
rows 1 '"overlap": \{' "$folder/run.json"
rows 0 '"percent_of_bandwidth"|"router_us"' "$folder/run.json" # of a GPU

"$bench" --compare "$folder/run.json" "$folder/run.json" >"$folder/compared"
rows 1 '^32 compared, 0 apart' "$folder/compared"
if command -v python3 >/dev/null; then
  "$plot" "$folder/run.json" --table >"$folder/table"
  rows 1 '^\| 3 \| [0-9]+ \| green 16, signals \| hits \| ' "$folder/table"
  rows 1 '^\| 1 \| [0-9]+ \| split 4 \| grouped \| ' "$folder/table"
  rows 2 '^\| [12] \| 1 \| split 16 \| .* \| \+0\.00 \| ' "$folder/table"
fi
echo "$cases cases, $failed failed"
((failed == 0)) || cat "$folder/out"
((failed == 0))

#!/usr/bin/env bash
# arguments.sh TANDEM_BENCH: what needs no GPU: the list, wrong usage (a sentence and exit status 2), --compare; and one case,
# which is measured where there is a GPU and skipped where there is none.
set -euo pipefail
bench=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cases=0
failed=0

# expect STATUS WORDS ARGUMENT...: the exit status, and WORDS (a regular expression) somewhere in the output.
expect() {
  local status=$1 words=$2 got=0 output
  shift 2
  output=$("$bench" "$@" 2>&1) || got=$?
  cases=$((cases + 1))
  if ((got != status)) || ! grep -qE -- "$words" <<<"$output"; then
    failed=$((failed + 1))
    printf 'FAIL: %s\n  exit status %d, expected %d and "%s":\n%s\n' "$*" "$got" "$status" "$words" "$output"
  fi
}

# result NAME M US: an entry of a results file.
result() {
  printf '{"group": "gemm", "case": "%s", "m": %d, "sms": 132, "ok": true, "us": {"median": %s, "min": 1, "max": 9}}' "$@"
}
# file NAME RESULT...: such a file.
file() {
  local name=$1 IFS=,
  shift
  printf '{"tandem_bench": 1, "results": [%s]}' "$*" >"$folder/$name"
}

expect 0 '^gemm +fc1 +131072 +7168 +256 +roof +1,16,64,128,256 ' --list
expect 0 '^attention +mla_decode_128h ' --list
expect 0 'CASE is a group' --help
expect 0 'Exit status: 0 done' --help

expect 2 'name cases or a --suite'
expect 2 "'gem' is no case and no group; --list shows them" gem
expect 2 "'mla_decode_16h' is no case of group 'gemm'" gemm fc1 mla_decode_16h
expect 2 'none of the cases named is in the suite' rmsnorm --suite roof
expect 2 "--suite: 'rooof' is none of roof, prefill, small, all, overlap" --suite rooof
expect 2 "--m: 'x' is no number from 1 to 65536" gemm fc1 --m x
expect 2 "--m: '' is no number" gemm fc1 --m 1,,2
expect 2 "--m: '0' is no number" gemm fc1 --m 0
expect 2 "--m: '16k' is no number" gemm fc1 --m 1,16k
expect 2 "--m: '99999999999999999999' is no number" gemm fc1 --m 99999999999999999999
expect 2 '--m: 16 comes twice' gemm fc1 --m 16,1,16
expect 2 '--m: more than 12 numbers' gemm fc1 --m 1,2,3,4,5,6,7,8,9,10,11,12,13
expect 2 "--sms: '0' is no number from 1" gemm fc1 --sms 0
expect 2 "--repeat-bits: '1' is no number from 2" gemm fc1 --repeat-bits 1
expect 2 "--replays: '20' is no number from 21" gemm fc1 --replays 20
expect 2 "--rest: '-1' is no number from 0" gemm fc1 --rest -1
expect 2 "--json: '$folder/none/x.json' cannot be written: .*No such file" gemm fc1 --json "$folder/none/x.json"
expect 2 '--json: .* cannot be written: a folder' gemm fc1 --json "$folder"
expect 2 "--json: '' cannot be written" gemm fc1 --json ''
expect 2 'unrecognized option' --nonsense

expect 0 'overlap measures no cases but whole layers' --list
expect 2 'overlap has no cases and goes with no other suite' --suite overlap gemm
expect 2 'overlap has no cases and goes with no other suite' --suite overlap --suite roof
expect 2 'overlap takes no --sms and no --repeat-bits' --suite overlap --sms 16
expect 2 'overlap takes no --sms and no --repeat-bits' --suite overlap --repeat-bits 2
expect 2 '--m: --suite overlap takes at most 1024' --suite overlap --m 1,1025
expect 2 "--layers: '62' is no number from 1 to 61" --suite overlap --layers 4,62
expect 2 '--layers: 4 comes twice' --suite overlap --layers 4,1,4
expect 2 '--layers: more than 8 numbers' --suite overlap --layers 1,2,3,4,5,6,7,8,9
expect 2 '--host and --layers are for --suite overlap' --suite roof --host
expect 2 '--host and --layers are for --suite overlap' gemm fc1 --layers 4

expect 2 '--compare needs two files, not 1' --compare a.json
expect 2 "--tolerance: 'many' is no percentage" --compare a b --tolerance many
expect 2 "none.json: unable to open" --compare "$folder/none.json" "$folder/none.json"
printf '{"tandem_bench": ' >"$folder/torn.json"
expect 2 'torn.json:1: ' --compare "$folder/torn.json" "$folder/torn.json"
printf '{"results": []}' >"$folder/other.json"
expect 2 'other.json is no file of tandem-bench' --compare "$folder/other.json" "$folder/other.json"
file a.json "$(result fc1 1 200)" "$(result fc1 16 210)"
file near.json "$(result fc1 16 215)" "$(result fc1 1 195)" "$(result fc2 1 5)"
file far.json "$(result fc1 1 200)" "$(result fc1 16 220.5)"
file less.json "$(result fc1 1 200)"
file none.json
file odd.json '7' '{"group": 1}' '{"group": "gemm", "case": "fc1", "m": 1, "sms": 132, "ok": true, "us": {"median": -3}}'
expect 0 '2 compared, 0 apart by more than 3 %, 0 of A without' --compare "$folder/a.json" "$folder/near.json"
expect 1 '^gemm fc1 +16 +132 +210.00 +220.50 +1.050  slower' --compare "$folder/a.json" "$folder/far.json"
sed 's/"tandem_bench": 1,/& "rest_ms": 0,/' "$folder/a.json" >"$folder/no_rest.json"
sed 's/"tandem_bench": 1,/& "rest_ms": 5,/' "$folder/a.json" >"$folder/rest.json"
expect 0 'measured otherwise: rest_ms is 0 in A, 5 in B' --compare "$folder/no_rest.json" "$folder/rest.json"
expect 1 '1.050  slower' "$folder/a.json" --compare "$folder/far.json"
expect 0 '0 apart by more than 5.5 %' --compare "$folder/a.json" "$folder/far.json" --tolerance 5.5
expect 1 '0.952  faster' --compare "$folder/far.json" "$folder/a.json"
expect 1 '^gemm fc1 +16 +132  has no time in B' --compare "$folder/a.json" "$folder/less.json"
expect 1 'no case in common' --compare "$folder/a.json" "$folder/none.json"
expect 1 'no case in common' --compare "$folder/odd.json" "$folder/a.json"

status=0
output=$("$bench" gemm router --m 3 --repeat-bits 3 --json "$folder/run.json" 2>&1) || status=$?
cases=$((cases + 1))
case $status in
  0) grep -q '^1 measured, 0 failed' <<<"$output" && grep -q '"sm_mhz": [1-9]' "$folder/run.json" && "$bench" --compare "$folder/run.json" "$folder/run.json" >/dev/null ;;
  77) grep -q '^skipped: no GPU to measure: ' <<<"$output" && [[ ! -e $folder/run.json ]] ;;
  *) false ;;
esac || {
  failed=$((failed + 1))
  printf 'FAIL: gemm router: exit status %d:\n%s\n' "$status" "$output"
}
echo "$cases cases, $failed failed"
((failed == 0))

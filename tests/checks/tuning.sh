#!/usr/bin/env bash
# Tuning, its file, a model that goes by it, and files that are refused while the steps still run, seen from outside:
# tuning.sh EXAMPLE_02.
set -euo pipefail

example=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
file=$folder/tuning.json
step=(--device host --tiny --context 64 --tokens "1,3" --replays 1)

fail() {
  echo "$1" >&2
  sed 's/^/  /' "$folder/out" "$folder/err" >&2
  exit 1
}
run() { "$example" "${step[@]}" "$@" >"$folder/out" 2>"$folder/err" || fail "exit status $? of: $*"; }

run --tune --tuning "$file"
grep -q '^tuned 3 buckets in .* programs' "$folder/out" || fail "no line about the tuning" # 1, 2 and 3 tokens
[ "$(grep -c '"tokens":' "$file")" = 3 ] || fail "the file has not 3 entries"

run --tuning "$file" --explain
grep -q 'the tuning measured .* ways' "$folder/out" || fail "the file is not gone by"
[ ! -s "$folder/err" ] || fail "something to say about a good file"

run --tune --tuning "$file" # measured anew: in the place of the old entries
[ "$(grep -c '"tokens":' "$file")" = 3 ] || fail "the entries have doubled"

cp "$file" "$folder/cut.json" && truncate -s -40 "$folder/cut.json"
run --tune --tuning "$folder/cut.json"
grep -q "^replaced: $folder/cut.json" "$folder/err" || fail "a file cut short was replaced without a word"

sed 's/"tried": /"tried": 1/' "$file" >"$folder/edited.json"
head -c 300 "$file" >"$folder/short.json"
for name in edited short missing; do
  run --tuning "$folder/$name.json"
  grep -q "^not used: $folder/$name.json" "$folder/err" || fail "$name: no reason given"
  [ "$(grep -c '^  [13] ' "$folder/out")" = 2 ] || fail "$name: the steps were not timed"
done
grep -q 'No such file' "$folder/err" || fail "missing: another reason"

# Of another device: the checksum is right, and nothing in it holds here.
sed 's/"device": "host, /"device": "GPU, /' "$file" >"$folder/other.json"
run --tuning "$folder/other.json"
right=$(sed -n 's/.*and "\(fnv1a64:[0-9a-f]*\)" would fit.*/\1/p' "$folder/err")
sed -i "s/fnv1a64:[0-9a-f]*/$right/" "$folder/other.json"
run --tuning "$folder/other.json"
grep -q 'it was measured on GPU' "$folder/err" || fail "another device's tuning: no reason given"
run --tuning "$folder/other.json" --explain
grep -q 'nothing was measured for this bucket; the tuning is of no use here' "$folder/out" || fail "explain has no reason"

#!/usr/bin/env bash
# exports.sh ROOT COMPILER LIBRARY SONAME: the shared library exports exactly the functions that the headers mark TDM_API.
set -euo pipefail
root=$1 compiler=$2 library=$3 soname=$4

declared=$(echo '#include "tandem/tandem.h"' | "$compiler" -std=c11 -E -P -I "$root/include" -x c - | tr '\n' ' ' |
  grep -oP '__attribute__\(\(visibility\("default"\)\)\)[^;(]*?\btdm_\w+(?=\s*\()' | grep -oP 'tdm_\w+$' | sort -u)
exported=$(nm -D --defined-only "$library" | awk '$2 != "A" {sub(/@.*/, "", $3); print $3}' | sort -u)

missing=$(comm -23 <(echo "$declared") <(echo "$exported"))
extra=$(comm -13 <(echo "$declared") <(echo "$exported"))
foreign=$(grep -v '^tdm_' <<<"$exported" || true)
has_soname=$(readelf -d "$library" | grep -F "Library soname: [$soname]" || true)

[[ -z $missing ]] || printf 'TDM_API in a header, but not exported:\n%s\n' "$missing"
[[ -z $extra ]] || printf 'exported, but TDM_API in no header:\n%s\n' "$extra"
[[ -z $foreign ]] || printf 'exported without the prefix tdm_:\n%s\n' "$foreign"
[[ -n $has_soname ]] || echo "$library has not the soname $soname"
echo "$(wc -l <<<"$declared") functions declared, $(wc -l <<<"$exported") symbols exported"
[[ -n $declared && -z $missing && -z $extra && -z $foreign && -n $has_soname ]]

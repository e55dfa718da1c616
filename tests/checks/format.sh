#!/usr/bin/env bash
# format.sh [--fix] [CLANG_FORMAT]: the sources are as clang-format 14 lays them out; --fix makes them so. Another version lays
# some lines out otherwise, so without version 14 the check is skipped (exit status 77).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fix=false
if [[ ${1:-} == --fix ]]; then
  fix=true
  shift
fi
formatter=""
for candidate in "$@" clang-format-14 clang-format; do
  if command -v "$candidate" >/dev/null && "$candidate" --version | grep -q 'version 14\.'; then
    formatter=$candidate
    break
  fi
done
if [[ -z $formatter ]]; then
  echo "skipped: clang-format 14 is not installed (apt-get install clang-format-14)"
  exit 77
fi

mapfile -t files < <(find . \( -path ./build -o -path './.*' \) -prune -o -type f \
  \( -name '*.[ch]' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -printf '%P\n' | sort)
((${#files[@]} > 0))
if $fix; then
  "$formatter" --style=file -i "${files[@]}"
elif ! report=$("$formatter" --style=file --dry-run --Werror "${files[@]}" 2>&1); then
  grep -oE '^[^:]+:[0-9]+' <<<"$report" | sort -uV
  echo "these lines are laid out otherwise by clang-format 14; \`cmake --build --preset release --target format\` repairs them"
  exit 1
fi
echo "${#files[@]} files, $("$formatter" --version)"

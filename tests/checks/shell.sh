#!/usr/bin/env bash
# shell.sh: shellcheck finds nothing in the project's scripts. Skipped (exit status 77) where shellcheck is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mapfile -t scripts < <(find . -path ./build -prune -o -path ./.git -prune -o -type f -print0 |
  xargs -0 grep -lE '^#!(/usr/bin/env |/bin/)(ba)?sh' | sort)
((${#scripts[@]} > 0))
for script in "${scripts[@]}"; do bash -n "$script"; done
if ! command -v shellcheck >/dev/null; then
  echo "skipped: shellcheck is not installed (apt-get install shellcheck)"
  exit 77
fi
shellcheck -x "${scripts[@]}"
echo "${#scripts[@]} scripts"

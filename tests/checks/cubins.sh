#!/usr/bin/env bash
# cubins.sh ROOT LISTER [NVCC]: every kernel file of the tree is embedded in the library. Skipped (exit status 77) in a build
# without NVCC.
set -euo pipefail
root=$1 lister=$2 nvcc=${3:-}
list=$("$lister")
if [[ -z $nvcc ]]; then
  [[ -z $list ]] || { echo "kernels are embedded in a build without nvcc: $list"; exit 1; }
  echo "skipped: this build compiles no kernels, since nvcc is missing"
  exit 77
fi
wanted=$(find "$root/kernels" -name '*_sm90.cu' -exec basename {} .cu \; | sort)
embedded=$(awk '{print $1}' <<<"$list" | sort)
echo "$list"
if [[ $wanted != "$embedded" ]]; then
  echo "the tree's kernel files (<) and the embedded ones (>) differ:"
  diff <(echo "$wanted") <(echo "$embedded") || true
  exit 1
fi

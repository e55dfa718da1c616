#!/usr/bin/env bash
# steps.sh ROOT: every kernel begins and ends as kernels/device/step.cuh asks for: it takes a tdm_step_sync, waits, and calls
# step_end once. A kernel that did not wait would break the order of everything behind it on its lane.
set -euo pipefail
root=$1
bad=0 kernels=0
for file in "$root"/kernels/*/*_sm90.cu; do
  [[ $file == */epoch_sm90.cu ]] && continue # launched by the runtime itself, before the lanes fork
  count=$(grep -c '__global__' "$file" || true)
  taken=$(grep -c 'const __grid_constant__ tdm_step_sync sync' "$file" || true)
  kernels=$((kernels + count))
  # Bodies may be in headers of the op's own.
  bodies=("$file" "$(dirname "$file")"/*.cuh)
  [[ $file == */moe_fc2_sm90.cu ]] && bodies+=("$root"/kernels/gemm_fp8/gemm_fp8_{swap,upright}.cuh)
  [[ $file == */grouped_gemm_fp8_sm90.cu ]] && bodies+=("$root/kernels/gemm_fp8/gemm_fp8_plain.cuh")
  [[ $file == */router_gemm_sm90.cu || $file == */moe_gate_router_sm90.cu ]] && bodies+=("$root/kernels/gemm_bf16/gemm_bf16.cuh")
  waits=$(cat "${bodies[@]}" 2>/dev/null | grep -cE 'step_begin\(sync(, false)?\)|step_wait\(sync\)' || true)
  ends=$(cat "${bodies[@]}" 2>/dev/null | grep -c 'step_end(sync)' || true)
  if ((taken < count || waits == 0 || ends == 0)); then
    echo "${file#"$root"/}: $count kernels, $taken take a tdm_step_sync, $waits waits, $ends ends"
    bad=1
  fi
done
echo "$kernels kernels in the sources"
((kernels > 0)) || { echo "no kernel was found under $root/kernels" >&2; exit 1; }
exit "$bad"

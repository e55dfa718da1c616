/* gemm_fp8 but for its plain form, which is for clusters; there are none here. */

#include "tests/emulated/emulator.h"

#include "kernels/gemm_fp8/gemm_fp8_swap.cuh"
#include "kernels/gemm_fp8/gemm_fp8_upright.cuh"

namespace {

template <class Gemm> void gemm(tdm_gemm_fp8_params p, tdm_step_sync sync) {
  Gemm::run(p, sync);
}

const emulator::Kernel kernels[] = {
#define GEMM(name, ...) {name, emulator::call<tdm_gemm_fp8_params, gemm<tdm::__VA_ARGS__>>},
#define SWAP(rows, tokens, stages)                                                                                     \
  GEMM("tdm_gemm_fp8_swap_n" #rows "t" #tokens "_sm90", GemmFp8Swap<rows, tokens, stages, false>)
#define UPRIGHT(rows, tokens, stages)                                                                                  \
  GEMM("tdm_gemm_fp8_n" #rows "t" #tokens "_sm90", GemmFp8Upright<rows, tokens, stages, false>)
#define PLAIN(...)
#include "kernels/gemm_fp8/gemm_fp8_variants.inc"
};
const emulator::Kernels known(kernels, sizeof kernels / sizeof *kernels);

} // namespace

#include "kernels/bmm_quant/bmm_quant_sm90.h"

#include <stdio.h>

#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t tokens;
  uint32_t shared_bytes;
} variants[] = {
#define BMM_QUANT(tokens, stages) {tokens, TDM_GEMM_BF16_SHARED(128, tokens, stages)},
#include "kernels/bmm_quant/bmm_quant_variants.inc"
#undef BMM_QUANT
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/* The smallest tile that holds all rows. Where weights are few, the smallest one whose tiles take no more than half of
 * the SMs: activations then come by several SMs, and weights, which every tile of tokens reads anew, early and out of
 * L2. The other half is for the step behind. */
static int choose(int64_t columns, int64_t m, int32_t sms) {
  for (int i = 0; i < VARIANTS; i++)
    if (columns * ceil_div(m, variants[i].tokens) <= sms / 2) return i;
  int i = 0;
  while (i + 1 < VARIANTS && variants[i].tokens < m) i++;
  return i;
}

void tdm_bmm_quant_sm90_make_plan(int64_t batch, int64_t m, int64_t n, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  const int64_t columns = batch * (n / 128);
  const int i = choose(columns, m, sms);
  tdm_gemm_bf16_sm90_plan plan = {.rows = 128, .tokens = variants[i].tokens, .segments = 1, .granule = 2};
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_bmm_quant_t%d_sm90", plan.tokens);
  const int64_t units = columns * ceil_div(m, plan.tokens);
  plan.launch.grid = (uint32_t)(units < sms ? units : sms);
  plan.launch.block = TDM_GEMM_BF16_THREADS;
  plan.launch.shared_bytes = variants[i].shared_bytes;
  *out_plan = plan;
}

tdm_status tdm_bmm_quant_sm90_params(const tdm_bmm_quant_args* args, const tdm_gemm_bf16_sm90_plan* plan,
                                     tdm_tensor_map_fn encode, void* encode_ctx, tdm_bmm_quant_params* out_params) {
  const tdm_view *q = &args->out_q, *scale = &args->out_scale;
  const int64_t n = args->w.shape[1];
  tdm_view out = *q; /* as [B, M, N] */
  out.rank = 3;
  out.shape[0] = args->w.shape[0], out.shape[1] = q->shape[0], out.shape[2] = n;
  out.stride[0] = n, out.stride[1] = q->stride[0], out.stride[2] = 1;
  tdm_bmm_quant_params params = {.out_scale = tdm_view_data(scale),
                                 .out_scale_stride = scale->stride[0],
                                 .quant_eps = args->quant_eps,
                                 .pow2_scale = args->pow2_scale,
                                 .vectors = q->stride[0] % 8 == 0};
  TDM_TRY(tdm_gemm_bf16_sm90_fill("bmm_quant", &args->n_tokens, &args->a, &args->w, &out, plan, NULL, NULL, encode,
                                  encode_ctx, &params.gemm));
  *out_params = params;
  return TDM_OK;
}

#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_sm90.h"

#include <stdio.h>

#include "kernels/gemm_fp8/gemm_fp8_sm90.h"
#include "runtime/op.h"
#include "runtime/status.h"

static const struct {
  int32_t tokens, groups, cluster;
  uint32_t shared_bytes;
} variants[] = {
#define GROUPED(tokens, groups, pieces, cluster, stages)                                                               \
  {tokens, groups, cluster, TDM_GEMM_FP8_GROUPED_SHARED(groups, pieces, stages)},
#include "kernels/grouped_gemm_fp8/grouped_gemm_fp8_variants.inc"
#undef GROUPED
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

void tdm_grouped_gemm_fp8_sm90_make_plan_for(const tdm_grouped_gemm_fp8_args* args, int32_t sms, int32_t tokens,
                                             tdm_grouped_gemm_fp8_sm90_plan* out_plan) {
  tdm_grouped_gemm_fp8_sm90_plan plan = {.tokens = tokens};
  size_t i = 0;
  while (variants[i].tokens != tokens) i++;
  int32_t cluster = variants[i].cluster;
  /* Where a tile holds all rows of a group, no more than those are fetched. */
  int64_t most = ceil_div(args->max_rows, 8) * 8;
  plan.x_rows = cluster == 1 && most < tokens ? (int32_t)most : tokens;
  plan.x_box = plan.x_rows / cluster;
  (void)snprintf(plan.launch.kernel, sizeof plan.launch.kernel, "tdm_grouped_gemm_fp8_m%d_sm90", tokens);
  plan.launch.shared_bytes = variants[i].shared_bytes;
  plan.launch.block = (uint32_t)(128 * variants[i].groups + 128);
  /* Every group may end in a tile that is not full. */
  int64_t groups = args->w.shape[0], rows = args->a.shape[0];
  int64_t tiles = groups * ceil_div(args->max_rows, tokens), spread = ceil_div(rows, tokens) + groups;
  int64_t clusters = (tiles < spread ? tiles : spread) * ceil_div(args->w.shape[1], 128 * cluster);
  int64_t places = sms / cluster;
  plan.launch.grid = (uint32_t)((clusters < places ? clusters : places) * cluster);
  *out_plan = plan;
}

void tdm_grouped_gemm_fp8_sm90_make_plan(const tdm_grouped_gemm_fp8_args* args, int32_t sms,
                                         tdm_grouped_gemm_fp8_sm90_plan* out_plan) {
  int64_t mean = ceil_div(args->a.shape[0], args->w.shape[0]);
  int64_t expected = mean < args->max_rows ? mean : args->max_rows;
  int32_t tokens = expected <= 64 ? 64 : expected <= 128 || sms < 2 ? 128 : 192;
  tdm_grouped_gemm_fp8_sm90_make_plan_for(args, sms, tokens, out_plan);
}

tdm_status tdm_grouped_gemm_fp8_sm90_params(const tdm_grouped_gemm_fp8_args* args,
                                            const tdm_grouped_gemm_fp8_sm90_plan* plan, tdm_tensor_map_fn encode,
                                            void* encode_ctx, tdm_grouped_gemm_fp8_params* out_params) {
  int64_t rows = args->a.shape[0], k = args->a.shape[1], groups = args->w.shape[0], n = args->w.shape[1];
  int64_t scale_rows = args->w_scale.shape[1];
  if (args->a.dtype != TDM_E4M3)
    return TDM_FAIL(TDM_UNSUPPORTED, "grouped_gemm_fp8: %s activations need the host device",
                    tdm_dtype_name(args->a.dtype));
  if (groups > TDM_GEMM_FP8_MAX_GROUPS || groups * n > INT32_MAX)
    return TDM_FAIL(TDM_UNSUPPORTED, "grouped_gemm_fp8: %lld groups of %lld rows of w; at most %d groups, 2^31 rows",
                    (long long)groups, (long long)n, TDM_GEMM_FP8_MAX_GROUPS);
  if (groups > 1 &&
      (args->w.stride[0] != n * args->w.stride[1] || args->w_scale.stride[0] != scale_rows * args->w_scale.stride[1]))
    return TDM_FAIL(TDM_UNSUPPORTED,
                    "grouped_gemm_fp8: groups of w (%lld apart) and w_scale (%lld) must follow each other without gaps",
                    (long long)args->w.stride[0], (long long)args->w_scale.stride[0]);
  tdm_grouped_gemm_fp8_params params = {.gemm = {.w_scale = tdm_view_data(&args->w_scale),
                                                 .w_scale_stride = args->w_scale.stride[1],
                                                 .out = tdm_view_data(&args->out),
                                                 .out_stride = args->out.stride[0],
                                                 .out_dtype = (int32_t)args->out.dtype,
                                                 .m = (int32_t)rows,
                                                 .n = (int32_t)n,
                                                 .k_blocks = (int32_t)(k / 128),
                                                 .segments = 1,
                                                 .granule = 1},
                                        .groups = {.row_start = tdm_view_data(&args->row_start),
                                                   .row_count = tdm_view_data(&args->row_count),
                                                   .n_groups = (int32_t)groups,
                                                   .max_rows = (int32_t)args->max_rows,
                                                   .x_rows = plan->x_rows}};
  /* The scales' box is wider by what lies between a multiple of 16 bytes and a group's first. */
  tdm_view w = args->w;
  w.rank = 2;
  w.shape[0] = groups * n;
  w.shape[1] = k;
  w.stride[0] = args->w.stride[1];
  w.stride[1] = 1;
  const tdm_gemm_fp8_sm90_plan gemm = {.rows = 128, .tokens = plan->x_rows + 4, .x_rows = plan->x_box};
  TDM_TRY(tdm_gemm_fp8_sm90_encode("grouped_gemm_fp8", &args->a, tdm_view_data(&args->a_scale), args->a_scale.stride[0],
                                   &w, &gemm, encode, encode_ctx, &params.gemm));
  TDM_TRY(tdm_gemm_fp8_sm90_encode_out(&args->out, encode, encode_ctx, &params.gemm));
  *out_params = params;
  return TDM_OK;
}

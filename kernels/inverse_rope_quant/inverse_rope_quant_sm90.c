#include "kernels/inverse_rope_quant/inverse_rope_quant_sm90.h"

#include <math.h>
#include <string.h>

#include "runtime/op.h"

void tdm_inverse_rope_quant_sm90_shape(const tdm_inverse_rope_quant_args* args,
                                       tdm_inverse_rope_quant_params* out_params) {
  const tdm_view *x = &args->x, *q = &args->out_q, *scale = &args->out_scale;
  tdm_inverse_rope_quant_params params = {.x_stride = x->stride[0],
                                          .x_head_stride = x->stride[1],
                                          .cos_sin_stride = args->cos_sin.stride[0],
                                          .out_q_group_stride = q->stride[0],
                                          .out_q_stride = q->stride[1],
                                          .out_scale_group_stride = scale->stride[0],
                                          .out_scale_stride = scale->stride[1],
                                          .rows = (int32_t)x->shape[0],
                                          .heads = (int32_t)x->shape[1],
                                          .group_heads = (int32_t)(x->shape[1] / q->shape[0]),
                                          .head_blocks = (int32_t)(x->shape[2] / 128),
                                          .n_positions = (int32_t)args->cos_sin.shape[0],
                                          .x_dtype = (int32_t)x->dtype,
                                          .style = (int32_t)args->style,
                                          .pow2_scale = args->pow2_scale,
                                          .quant_eps = args->quant_eps};
  params.vectors =
      (x->stride[0] | x->stride[1] | q->stride[0] | q->stride[1]) % 8 == 0 && args->cos_sin.stride[0] % 4 == 0;
  params.x_row_bytes = (int32_t)(params.x_stride * 2);
  params.x_head_bytes = (int32_t)(params.x_head_stride * 2);
  params.out_q_row_bytes = (int32_t)params.out_q_stride;
  params.out_scale_row = (int32_t)params.out_scale_stride;
  params.fast_from = fmaxf(params.quant_eps, 0x1p-70f);
  params.group_inverse = (uint32_t)((INT64_C(0x80000000) + params.group_heads - 1) / params.group_heads);
  *out_params = params;
}

void tdm_inverse_rope_quant_sm90_params(const tdm_inverse_rope_quant_args* args,
                                        tdm_inverse_rope_quant_params* out_params) {
  tdm_inverse_rope_quant_sm90_shape(args, out_params);
  out_params->n_tokens = tdm_view_data_or_null(&args->n_tokens);
  out_params->x = tdm_view_data(&args->x);
  out_params->positions = tdm_view_data(&args->positions);
  out_params->cos_sin = tdm_view_data(&args->cos_sin);
  out_params->out_q = tdm_view_data(&args->out_q);
  out_params->out_scale = tdm_view_data(&args->out_scale);
}

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static bool fits(int64_t stride) {
  return stride <= INT32_MAX;
}

/* The warps of a CTA take heads side by side; few items are spread over smaller CTAs. */
static void plan_d512(const tdm_inverse_rope_quant_params* params, int64_t items, int32_t sms,
                      tdm_kernel_launch* launch) {
  int32_t warps = TDM_INVERSE_ROPE_QUANT_THREADS / 32;
  const int64_t resident = (int64_t)sms * TDM_INVERSE_ROPE_QUANT_CTAS * warps;
  while (params->heads % warps != 0 || (warps > 1 && items / warps < sms)) warps /= 2;
  int64_t tiles = items / warps, most = resident / warps;
  launch->block = (uint32_t)warps * 32;
  launch->shared_bytes = (uint32_t)(warps * TDM_INVERSE_ROPE_QUANT_SLOTS * TDM_INVERSE_ROPE_QUANT_SLOT_BYTES);
  launch->grid = (uint32_t)(tiles < most ? tiles : most);
}

void tdm_inverse_rope_quant_sm90_plan(const tdm_inverse_rope_quant_params* params, int32_t sms,
                                      tdm_kernel_launch* out_launch) {
  int64_t items = ceil_div(params->rows, 4) * params->heads; /* a head of four tokens */
  bool fast = params->x_dtype == TDM_KERNEL_BF16 && params->head_blocks == 4 && params->vectors &&
              items <= INT32_MAX / 2 && fits(params->x_stride * 2) && fits(params->x_head_stride * 2) &&
              fits(params->out_q_stride) && fits(params->out_scale_stride);
  const char* kernel = !fast                              ? "tdm_inverse_rope_quant_any_sm90"
                       : params->style == TDM_ROPE_HALVES ? "tdm_inverse_rope_quant_d512_halves_sm90"
                                                          : "tdm_inverse_rope_quant_d512_pairs_sm90";
  tdm_kernel_launch launch = {.block = 256};
  memcpy(launch.kernel, kernel, strlen(kernel) + 1);
  if (fast) {
    plan_d512(params, items, sms, &launch);
  } else {
    int64_t grid = ceil_div(items * params->head_blocks, 4), most = (int64_t)sms * 8;
    launch.grid = (uint32_t)(grid < most ? grid : most);
  }
  *out_launch = launch;
}

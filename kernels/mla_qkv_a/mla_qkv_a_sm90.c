#include "kernels/mla_qkv_a/mla_qkv_a_sm90.h"

#include <stdio.h>

#include "kernels/mla_norm_write/mla_norm_write_sm90.h"
#include "kernels/mla_qkv_a/mla_qkv_a.h"
#include "runtime/buffer.h"

/* Above them gemm_fp8 takes a form that adds its segments up itself. */
enum { APART_ROWS = 128 };

void tdm_mla_qkv_a_sm90_make_plan(const tdm_mla_qkv_a_args* args, int32_t sms, tdm_mla_qkv_a_sm90_plan* out_plan) {
  const int64_t rows = args->a.shape[0], columns = args->w.shape[0];
  tdm_mla_qkv_a_sm90_plan plan = {0};
  tdm_gemm_fp8_sm90_make_plan(rows, columns, args->a.shape[1], sms, &plan.product);
  tdm_buffer buffer;
  const tdm_view qkv = tdm_mla_qkv_a_between(args, NULL, &buffer);
  const tdm_mla_norm_write_args behind = tdm_mla_qkv_a_rows(args, &qkv);
  tdm_mla_norm_write_params params;
  tdm_kernel_launch launch;
  tdm_mla_norm_write_sm90_launch(&behind, sms, &params, &launch);
  const int32_t segments = plan.product.segments;
  plan.apart = rows <= APART_ROWS && segments > 1 && segments <= TDM_MLA_QKV_A_SEGMENTS && params.norm.vectors &&
               params.norm.cols <= TDM_MLA_QKV_A_COLUMNS;
  plan.product_bytes = plan.apart ? (size_t)(rows * columns * segments) * sizeof(float) : buffer.bytes;
  *out_plan = plan;
}

tdm_status tdm_mla_qkv_a_sm90_encode(const tdm_mla_qkv_a_args* args, const tdm_encode_env* env,
                                     tdm_encoded_step* out_step) {
  tdm_mla_qkv_a_sm90_plan plan;
  tdm_mla_qkv_a_sm90_make_plan(args, env->sms, &plan);
  tdm_buffer buffer;
  const tdm_view qkv = tdm_mla_qkv_a_between(args, env->scratch, &buffer);
  const tdm_gemm_fp8_args product = tdm_mla_qkv_a_product(args, &qkv);
  const tdm_mla_norm_write_args rows = tdm_mla_qkv_a_rows(args, &qkv);
  void* const partials = plan.apart ? env->scratch : (uint8_t*)env->scratch + plan.product_bytes;
  tdm_gemm_fp8_params params;
  tdm_mla_qkv_a_params behind = {.parts = partials,
                                 .segment_stride = args->a.shape[0] * args->w.shape[0],
                                 .columns = (int32_t)args->w.shape[0],
                                 .segments = plan.product.segments};
  tdm_kernel_launch launch;
  TDM_TRY(tdm_gemm_fp8_sm90_params(&product, &plan.product, partials, plan.apart ? NULL : env->state, env->tensor_map,
                                   env->tensor_map_ctx, &params));
  params.apart = plan.apart;
  if (plan.apart) params.out = NULL;
  TDM_TRY(tdm_encoded_step_add(out_step, &plan.product.launch, &params, sizeof params));
  tdm_mla_norm_write_sm90_launch(&rows, env->sms, &behind.rows, &launch);
  if (!plan.apart) return tdm_encoded_step_add(out_step, &launch, &behind.rows, sizeof behind.rows);
  (void)snprintf(launch.kernel, sizeof launch.kernel, "tdm_mla_qkv_a_sm90");
  launch.shared_bytes = 0;
  return tdm_encoded_step_add(out_step, &launch, &behind, sizeof behind);
}

#include "kernels/mla_absorb/mla_absorb.h"

#include "kernels/common/check.h"
#include "kernels/common/mla.h"
#include "kernels/mla_absorb/mla_absorb_sm90.h"
#include "kernels/ops.h"
#include "kernels/rope/rope.h"

#define OP "mla_absorb"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_mla_absorb_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_mla_absorb_args, q, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_mla_absorb_args, w),
    TDM_OPERAND(tdm_mla_absorb_args, positions, TDM_READ),
    TDM_OPERAND(tdm_mla_absorb_args, cos_sin, TDM_READ),
    TDM_OPERAND(tdm_mla_absorb_args, out, TDM_WRITE),
};

/* Rank 3, any strides but the last. */
static tdm_status check_rows(const char* name, const tdm_view* view, const int64_t* shape) {
  TDM_TRY(tdm_check_strided(OP, name, view, TDM_BF16_OR_F32, 3, shape));
  if (view->stride[2] != 1) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": %s has last stride %lld, not 1", name, (long long)view->stride[2]);
  }
  return TDM_OK;
}

static tdm_status check(void* void_args) {
  tdm_mla_absorb_args* args = void_args;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(check_rows("q", &args->q, (int64_t[]){TDM_ANY, TDM_ANY, TDM_MLA_NOPE + TDM_MLA_ROPE}));
  const int64_t rows = args->q.shape[0], heads = args->q.shape[1];
  TDM_TRY(check_rows("w", &args->w, (int64_t[]){heads, TDM_MLA_NOPE, TDM_MLA_LATENT}));
  TDM_TRY(check_rows("out", &args->out, (int64_t[]){rows, heads, TDM_MLA_CACHED}));
  TDM_TRY(tdm_check_distinct(OP, "out", &args->out));
  TDM_TRY(tdm_rope_check(OP, &args->positions, &args->cos_sin, args->style, rows));
  return tdm_check_overlap(&tdm_op_mla_absorb, args, NULL, NULL);
}

tdm_gemm_bf16_args tdm_mla_absorb_gemm(const tdm_mla_absorb_args* args) {
  return (tdm_gemm_bf16_args){.size = sizeof(tdm_gemm_bf16_args),
                              .n_tokens = args->n_tokens,
                              .a = tdm_view_transpose(tdm_view_slice(args->q, 2, 0, TDM_MLA_NOPE), 0, 1),
                              .w = tdm_view_transpose(args->w, 1, 2),
                              .out = tdm_view_transpose(tdm_view_slice(args->out, 2, 0, TDM_MLA_LATENT), 0, 1)};
}

tdm_rope_args tdm_mla_absorb_rope(const tdm_mla_absorb_args* args) {
  return (tdm_rope_args){.size = sizeof(tdm_rope_args),
                         .n_tokens = args->n_tokens,
                         .x = tdm_view_slice(args->q, 2, TDM_MLA_NOPE, TDM_MLA_ROPE),
                         .positions = args->positions,
                         .cos_sin = args->cos_sin,
                         .out = tdm_view_slice(args->out, 2, TDM_MLA_LATENT, TDM_MLA_ROPE),
                         .style = args->style};
}

static void plan(const void* args, int32_t sms, tdm_plan* out_plan) {
  const tdm_gemm_bf16_args gemm = tdm_mla_absorb_gemm(args);
  const tdm_rope_args rope = tdm_mla_absorb_rope(args);
  tdm_plan of_rope = {0};
  tdm_op_gemm_bf16.plan(&gemm, 0, out_plan);
  tdm_op_rope.plan(&rope, 0, &of_rope);
  out_plan->flops += of_rope.flops;
  out_plan->bytes += of_rope.bytes;
  if (sms == 0) return;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_mla_absorb_sm90_plan(args, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_mla_absorb_params params;
  tdm_mla_absorb_sm90_plan(args, env->sms, &kernel);
  if (kernel.short_k) {
    tdm_mla_absorb_short_params params_short;
    TDM_TRY(tdm_mla_absorb_short_sm90_params(args, &kernel, env, &params_short));
    return tdm_encoded_step_add(out_step, &kernel.launch, &params_short, sizeof params_short);
  }
  TDM_TRY(tdm_mla_absorb_sm90_params(args, &kernel, env, &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_mla_absorb = {
    .name = OP,
    .args_bytes = sizeof(tdm_mla_absorb_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_mla_absorb_ref,
    .encode = encode,
};

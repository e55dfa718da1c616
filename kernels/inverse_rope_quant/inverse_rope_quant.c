#include "kernels/inverse_rope_quant/inverse_rope_quant.h"

#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/inverse_rope_quant/inverse_rope_quant_sm90.h"
#include "kernels/rope/rope.h"

#define OP "inverse_rope_quant"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_inverse_rope_quant_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_inverse_rope_quant_args, x, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_inverse_rope_quant_args, positions),
    TDM_WEIGHT_OPERAND(tdm_inverse_rope_quant_args, cos_sin),
    TDM_OPERAND(tdm_inverse_rope_quant_args, out_q, TDM_WRITE),
    TDM_OPERAND(tdm_inverse_rope_quant_args, out_scale, TDM_WRITE),
};

static tdm_status check(void* void_args) {
  tdm_inverse_rope_quant_args* args = void_args;
  const tdm_view *x = &args->x, *q = &args->out_q;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_strided(OP, "x", x, TDM_BF16_OR_F32, 3, (int64_t[]){TDM_ANY, TDM_ANY, TDM_ANY}));
  int64_t rows = x->shape[0], heads = x->shape[1], dim = x->shape[2];
  if (x->stride[2] != 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": x has last stride %lld, not 1", (long long)x->stride[2]);
  if (dim % TDM_QUANT_BLOCK != 0)
    return TDM_FAIL(TDM_UNSUPPORTED, OP ": x has heads of %lld values, not a multiple of 128: scales would span heads",
                    (long long)dim);
  if (args->cos_sin.rank == 2 && args->cos_sin.shape[1] > 0 && args->cos_sin.shape[1] != TDM_ROPE_DIM)
    return TDM_FAIL(TDM_UNSUPPORTED, OP ": cos_sin is %lld wide; the rotation is of the last %d values",
                    (long long)args->cos_sin.shape[1], (int)TDM_ROPE_DIM);
  TDM_TRY(tdm_rope_check(OP, &args->positions, &args->cos_sin, args->style, rows));
  if (args->style == TDM_ROPE_DEINTERLEAVE)
    return TDM_FAIL(TDM_UNSUPPORTED, OP ": style is %d (TDM_ROPE_DEINTERLEAVE), which has no inverse in place",
                    (int)args->style);
  TDM_TRY(tdm_check_tensor(OP, "out_q", q, TDM_DTYPES(TDM_E4M3), 3, (int64_t[]){TDM_ANY, rows, TDM_ANY}));
  if (heads % q->shape[0] != 0 || heads / q->shape[0] * dim != q->shape[2])
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": out_q has %lld groups of %lld columns for %lld heads of %lld values",
                    (long long)q->shape[0], (long long)q->shape[2], (long long)heads, (long long)dim);
  TDM_TRY(tdm_check_act_scale(OP, "out_scale", &args->out_scale, "out_q", q));
  TDM_TRY(tdm_check_eps(OP, "quant_eps", &args->quant_eps, 1e-10f));
  return tdm_check_overlap(&tdm_op_inverse_rope_quant, args, NULL, NULL);
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_inverse_rope_quant_args* args = void_args;
  const tdm_view* x = &args->x;
  double rows = (double)x->shape[0], heads = (double)x->shape[1], dim = (double)x->shape[2];
  out_plan->flops = rows * heads * (2 * dim + 3 * TDM_ROPE_DIM); /* a comparison and a division; the rotation */
  out_plan->bytes = tdm_traffic(x) + tdm_traffic(&args->positions) + rows * TDM_ROPE_DIM * sizeof(float) +
                    tdm_traffic(&args->out_q) + tdm_traffic(&args->out_scale);
  out_plan->scratch_bytes = (size_t)args->out_q.shape[2] * sizeof(float);
  if (sms == 0) return;
  tdm_inverse_rope_quant_params params;
  tdm_kernel_launch launch;
  tdm_inverse_rope_quant_sm90_shape(args, &params);
  tdm_inverse_rope_quant_sm90_plan(&params, sms, &launch);
  tdm_plan_kernel(out_plan, &launch, 1, 0, 0);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_inverse_rope_quant_params params;
  tdm_kernel_launch launch;
  tdm_inverse_rope_quant_sm90_params(args, &params);
  tdm_inverse_rope_quant_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_inverse_rope_quant = {
    .name = OP,
    .args_bytes = sizeof(tdm_inverse_rope_quant_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_inverse_rope_quant_ref,
    .encode = encode,
};

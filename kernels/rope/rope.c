#include "kernels/rope/rope.h"

#include "kernels/common/check.h"
#include "kernels/ops.h"
#include "kernels/rope/rope_sm90.h"

#define OP "rope"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_rope_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_rope_args, x, TDM_READ),
    TDM_OPERAND(tdm_rope_args, positions, TDM_READ),
    TDM_OPERAND(tdm_rope_args, cos_sin, TDM_READ),
    TDM_OPERAND(tdm_rope_args, out, TDM_WRITE),
};

tdm_status tdm_rope_check(const char* op, const tdm_view* positions, const tdm_view* cos_sin, tdm_rope_style style,
                          int64_t rows) {
  TDM_TRY(tdm_check_tensor(op, "positions", positions, TDM_DTYPES(TDM_I32), 1, (int64_t[]){rows}));
  TDM_TRY(tdm_check_tensor(op, "cos_sin", cos_sin, TDM_DTYPES(TDM_F32), 2, (int64_t[]){TDM_ANY, TDM_ROPE_DIM}));
  if (style < TDM_ROPE_DEINTERLEAVE || style > TDM_ROPE_HALVES) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: style is %d, not a tdm_rope_style", op, (int)style);
  }
  return TDM_OK;
}

/* [M, h, 64], any token and head stride: heads may lie within tokens, as after a projection, or tokens within heads. */
static tdm_status check_heads(const char* name, const tdm_view* view, const int64_t* shape) {
  TDM_TRY(tdm_check_strided(OP, name, view, TDM_BF16_OR_F32, 3, shape));
  if (view->stride[2] != 1) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": %s has last stride %lld, not 1", name, (long long)view->stride[2]);
  }
  return TDM_OK;
}

static tdm_status check(void* void_args) {
  tdm_rope_args* args = void_args;
  TDM_TRY(tdm_check_count(OP, "n_tokens", &args->n_tokens));
  TDM_TRY(check_heads("x", &args->x, (int64_t[]){TDM_ANY, TDM_ANY, TDM_ROPE_DIM}));
  int64_t rows = args->x.shape[0];
  TDM_TRY(check_heads("out", &args->out, (int64_t[]){rows, args->x.shape[1], TDM_ROPE_DIM}));
  TDM_TRY(tdm_check_distinct(OP, "out", &args->out));
  TDM_TRY(tdm_rope_check(OP, &args->positions, &args->cos_sin, args->style, rows));
  return tdm_check_overlap(&tdm_op_rope, args, "out", "x");
}

static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_rope_args* args = void_args;
  (void)sms;
  double rows = (double)args->x.shape[0];
  out_plan->flops = rows * (double)args->x.shape[1] * TDM_ROPE_DIM * 3;
  out_plan->bytes = tdm_traffic(&args->x) + tdm_traffic(&args->positions) + rows * TDM_ROPE_DIM * sizeof(float) +
                    tdm_traffic(&args->out);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_rope_params params;
  tdm_kernel_launch launch;
  tdm_rope_sm90_params(args, &params);
  tdm_rope_sm90_plan(&params, env->sms, &launch);
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_rope = {
    .name = OP,
    .args_bytes = sizeof(tdm_rope_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_rope_ref,
    .encode = encode,
};

#include "kernels/mla_prefill/mla_prefill.h"

#include "kernels/common/check.h"
#include "kernels/common/mla.h"
#include "kernels/common/sequence.h"
#include "kernels/mla_prefill/mla_prefill_sm90.h"
#include "kernels/ops.h"

#define OP "mla_prefill"

static const tdm_operand operands[] = {
    TDM_OPERAND(tdm_mla_prefill_args, n_seqs, TDM_READ),   TDM_OPERAND(tdm_mla_prefill_args, q_nope, TDM_READ),
    TDM_OPERAND(tdm_mla_prefill_args, q_rope, TDM_READ),   TDM_OPERAND(tdm_mla_prefill_args, kv, TDM_READ),
    TDM_OPERAND(tdm_mla_prefill_args, k_rope, TDM_READ),   TDM_OPERAND(tdm_mla_prefill_args, seq_start, TDM_READ),
    TDM_OPERAND(tdm_mla_prefill_args, seq_kind, TDM_READ), TDM_OPERAND(tdm_mla_prefill_args, out, TDM_READ_WRITE),
};

/* [M, h, width], any token and head stride. */
static tdm_status check_heads(const char* name, const tdm_view* view, const int64_t* shape) {
  TDM_TRY(tdm_check_strided(OP, name, view, TDM_BF16_OR_F32, 3, shape));
  if (view->stride[2] != 1) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, OP ": %s has last stride %lld, not 1", name, (long long)view->stride[2]);
  }
  return TDM_OK;
}

static tdm_status check(void* void_args) {
  tdm_mla_prefill_args* args = void_args;
  int64_t n_seqs;
  TDM_TRY(tdm_check_sequences(OP, &args->n_seqs, &args->seq_start, &args->seq_kind, &n_seqs));
  TDM_TRY(check_heads("q_nope", &args->q_nope, (int64_t[]){TDM_ANY, TDM_ANY, TDM_MLA_NOPE}));
  int64_t rows = args->q_nope.shape[0], heads = args->q_nope.shape[1];
  TDM_TRY(check_heads("q_rope", &args->q_rope, (int64_t[]){rows, heads, TDM_MLA_ROPE}));
  TDM_TRY(tdm_check_tensor(OP, "kv", &args->kv, TDM_BF16_OR_F32, 3,
                           (int64_t[]){rows, heads, TDM_MLA_NOPE + TDM_MLA_VALUE}));
  TDM_TRY(tdm_check_tensor(OP, "k_rope", &args->k_rope, TDM_BF16_OR_F32, 2, (int64_t[]){rows, TDM_MLA_ROPE}));
  TDM_TRY(check_heads("out", &args->out, (int64_t[]){rows, heads, TDM_MLA_VALUE}));
  TDM_TRY(tdm_check_distinct(OP, "out", &args->out));
  TDM_TRY(tdm_check_softmax_scale(OP, args->scale));
  return tdm_check_overlap(&tdm_op_mla_prefill, args, NULL, NULL);
}

/* Lengths are data: flops and bytes are those of all rows in one sequence. */
static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_mla_prefill_args* args = void_args;
  double rows = (double)args->q_nope.shape[0], heads = (double)args->q_nope.shape[1];
  double pairs = rows * (rows + 1) / 2;
  out_plan->flops = 2 * heads * pairs * (TDM_MLA_NOPE + TDM_MLA_ROPE + TDM_MLA_VALUE);
  out_plan->bytes = tdm_traffic(&args->n_seqs) + tdm_traffic(&args->q_nope) + tdm_traffic(&args->q_rope) +
                    tdm_traffic(&args->kv) + tdm_traffic(&args->k_rope) + tdm_traffic(&args->seq_start) +
                    tdm_traffic(&args->seq_kind) + tdm_traffic(&args->out);
  if (sms == 0) out_plan->scratch_bytes = tdm_mla_prefill_ref_scratch_bytes(args);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  const tdm_mla_prefill_args* prefill = args;
  tdm_mla_prefill_params params;
  tdm_kernel_launch launch;
  tdm_mla_prefill_sm90_plan(prefill->q_nope.shape[0], prefill->q_nope.shape[1], prefill->seq_kind.shape[0], env->sms,
                            &launch);
  TDM_TRY(tdm_mla_prefill_sm90_params(args, env->tensor_map, env->tensor_map_ctx, &params));
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_mla_prefill = {
    .name = OP,
    .args_bytes = sizeof(tdm_mla_prefill_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_mla_prefill_ref,
    .encode = encode,
};

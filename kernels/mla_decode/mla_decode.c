#include "kernels/mla_decode/mla_decode.h"

#include <math.h>

#include "kernels/common/check.h"
#include "kernels/common/mla.h"
#include "kernels/common/sequence.h"
#include "kernels/mla_decode/mla_decode_sm90.h"
#include "kernels/ops.h"

#define OP "mla_decode"

static const tdm_operand operands[] = {
    TDM_OPERAND(tdm_mla_decode_args, n_seqs, TDM_READ),    TDM_OPERAND(tdm_mla_decode_args, q, TDM_READ),
    TDM_OPERAND(tdm_mla_decode_args, cache, TDM_READ),     TDM_OPERAND(tdm_mla_decode_args, block_table, TDM_READ),
    TDM_OPERAND(tdm_mla_decode_args, seq_start, TDM_READ), TDM_OPERAND(tdm_mla_decode_args, kv_len, TDM_READ),
    TDM_OPERAND(tdm_mla_decode_args, seq_kind, TDM_READ),  TDM_OPERAND(tdm_mla_decode_args, out, TDM_WRITE),
};

static tdm_status check(void* void_args) {
  tdm_mla_decode_args* args = void_args;
  int64_t n_seqs;
  TDM_TRY(tdm_check_sequences(OP, &args->n_seqs, &args->seq_start, &args->seq_kind, &n_seqs));
  TDM_TRY(tdm_check_tensor(OP, "kv_len", &args->kv_len, TDM_DTYPES(TDM_I32), 1, (int64_t[]){n_seqs}));
  TDM_TRY(
      tdm_check_tensor(OP, "block_table", &args->block_table, TDM_DTYPES(TDM_I32), 2, (int64_t[]){n_seqs, TDM_ANY}));
  TDM_TRY(tdm_check_tensor(OP, "cache", &args->cache, TDM_BF16_OR_F32, 3,
                           (int64_t[]){TDM_ANY, TDM_PAGE_TOKENS, TDM_MLA_CACHED}));
  TDM_TRY(tdm_check_tensor(OP, "q", &args->q, TDM_BF16_OR_F32, 3, (int64_t[]){TDM_ANY, TDM_ANY, TDM_MLA_CACHED}));
  TDM_TRY(tdm_check_tensor(OP, "out", &args->out, TDM_BF16_OR_F32, 3,
                           (int64_t[]){args->q.shape[0], args->q.shape[1], TDM_MLA_LATENT}));
  TDM_TRY(tdm_check_softmax_scale(OP, args->scale));
  return tdm_check_overlap(&tdm_op_mla_decode, args, NULL, NULL);
}

/* Lengths are data: flops and bytes are those of full block tables, no page shared, and at most the whole cache. */
static void plan(const void* void_args, int32_t sms, tdm_plan* out_plan) {
  const tdm_mla_decode_args* args = void_args;
  double keys = (double)args->block_table.shape[1] * TDM_PAGE_TOKENS;
  double pages =
      fmin((double)args->block_table.shape[0] * (double)args->block_table.shape[1], (double)args->cache.shape[0]);
  out_plan->flops = 2 * (double)args->q.shape[0] * (double)args->q.shape[1] * keys * (TDM_MLA_CACHED + TDM_MLA_LATENT);
  out_plan->bytes = tdm_traffic(&args->n_seqs) + tdm_traffic(&args->q) + tdm_traffic(&args->block_table) +
                    tdm_traffic(&args->seq_start) + tdm_traffic(&args->kv_len) + tdm_traffic(&args->seq_kind) +
                    tdm_traffic(&args->out) +
                    pages * TDM_PAGE_TOKENS * TDM_MLA_CACHED * (double)tdm_dtype_bytes(args->cache.dtype);
  if (sms == 0) {
    out_plan->scratch_bytes = tdm_mla_decode_ref_scratch_bytes(args);
    return;
  }
  tdm_mla_decode_plan kernels;
  tdm_mla_decode_sm90_make_plan(args, sms, &kernels);
  tdm_plan_kernel(out_plan, &kernels.attend, kernels.max_splits, kernels.partial_bytes, 0);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_mla_decode_plan kernels;
  tdm_mla_decode_params params;
  tdm_mla_decode_sm90_make_plan(args, env->sms, &kernels);
  TDM_TRY(tdm_mla_decode_sm90_params(args, &kernels, env->scratch, env->tensor_map, env->tensor_map_ctx, &params));
  TDM_TRY(tdm_encoded_step_add(out_step, &kernels.attend, &params, sizeof params));
  return kernels.max_splits > 1 ? tdm_encoded_step_add(out_step, &kernels.merge, &params, sizeof params) : TDM_OK;
}

const tdm_op tdm_op_mla_decode = {
    .name = OP,
    .args_bytes = sizeof(tdm_mla_decode_args),
    .operands = operands,
    .n_operands = sizeof operands / sizeof operands[0],
    .check = check,
    .plan = plan,
    .ref = tdm_mla_decode_ref,
    .encode = encode,
};

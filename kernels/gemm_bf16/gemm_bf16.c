#include "kernels/gemm_bf16/gemm_bf16.h"

#include "kernels/common/check.h"
#include "kernels/gemm_bf16/gemm_bf16_short_sm90.h"

static const tdm_operand operands[] = {
    TDM_OPTIONAL_OPERAND(tdm_gemm_bf16_args, n_tokens, TDM_READ),
    TDM_OPERAND(tdm_gemm_bf16_args, a, TDM_READ),
    TDM_WEIGHT_OPERAND(tdm_gemm_bf16_args, w),
    TDM_OPERAND(tdm_gemm_bf16_args, out, TDM_WRITE),
};

static bool contiguous(const tdm_view* view, int32_t dim) {
  return view->shape[dim] == 1 || view->stride[dim] == 1;
}

static tdm_status check(void* args_) {
  tdm_gemm_bf16_args* args = args_;
  const char* op = "gemm_bf16";
  const tdm_view* a = &args->a;
  const tdm_view* w = &args->w;
  const tdm_view* out = &args->out;
  int32_t rank = a->rank;
  if (rank != 2 && rank != 3) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "gemm_bf16: a has rank %d, not 2 or 3", rank);
  }
  const int64_t any[] = {TDM_ANY, TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_count(op, "n_tokens", &args->n_tokens));
  TDM_TRY(tdm_check_strided(op, "a", a, TDM_BF16_OR_F32, rank, any));
  TDM_TRY(tdm_check_strided(op, "w", w, TDM_BF16_OR_F32, rank, any));
  if (rank == 3 && a->shape[0] != w->shape[0]) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "gemm_bf16: a has %lld batches, w %lld", (long long)a->shape[0],
                    (long long)w->shape[0]);
  }
  if (a->shape[rank - 1] != w->shape[rank - 1]) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "gemm_bf16: a has %lld columns, w %lld", (long long)a->shape[rank - 1],
                    (long long)w->shape[rank - 1]);
  }
  int64_t m = a->shape[rank - 2];
  int64_t n = w->shape[rank - 2];
  const int64_t out_shape[] = {a->shape[0], m, n};
  TDM_TRY(tdm_check_strided(op, "out", out, TDM_BF16_OR_F32, rank, rank == 3 ? out_shape : out_shape + 1));
  TDM_TRY(tdm_check_distinct(op, "out", out));
  if (!contiguous(a, rank - 1)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "gemm_bf16: a has last stride %lld, not 1", (long long)a->stride[rank - 1]);
  }
  if (!contiguous(w, rank - 1) && !contiguous(w, rank - 2)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "gemm_bf16: w has strides %lld and %lld for N and K, neither is 1",
                    (long long)w->stride[rank - 2], (long long)w->stride[rank - 1]);
  }
  if (!contiguous(out, rank - 1)) {
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "gemm_bf16: out has last stride %lld, not 1",
                    (long long)out->stride[rank - 1]);
  }
  return tdm_check_overlap(&tdm_op_gemm_bf16, args, NULL, NULL);
}

static void plan_sm90(const void* args_, int32_t sms, tdm_gemm_bf16_sm90_plan* out_plan) {
  const tdm_gemm_bf16_args* args = args_;
  const tdm_view *a = &args->a, *w = &args->w;
  if (tdm_gemm_bf16_short_sm90_make_plan(args, sms, out_plan)) return;
  tdm_gemm_bf16_sm90_make_plan(a->rank == 3 ? a->shape[0] : 1, a->shape[a->rank - 2], w->shape[w->rank - 2],
                               w->shape[w->rank - 1], tdm_gemm_bf16_sm90_mn_major(w), sms, out_plan);
}

static void plan(const void* args_, int32_t sms, tdm_plan* out_plan) {
  const tdm_gemm_bf16_args* args = args_;
  const tdm_view* a = &args->a;
  int64_t m = a->shape[a->rank - 2];
  int64_t k = a->shape[a->rank - 1];
  double batches = a->rank == 3 ? (double)a->shape[0] : 1.0;
  out_plan->flops = 2.0 * batches * (double)m * (double)k * (double)args->w.shape[a->rank - 2];
  out_plan->bytes = tdm_traffic_all(&tdm_op_gemm_bf16, args);
  if (sms == 0) return;
  tdm_gemm_bf16_sm90_plan kernel;
  plan_sm90(args_, sms, &kernel);
  tdm_plan_kernel(out_plan, &kernel.launch, kernel.segments, kernel.partial_bytes, kernel.counter_bytes);
}

static tdm_status encode(const void* args, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  (void)plan_;
  tdm_gemm_bf16_sm90_plan kernel;
  tdm_gemm_bf16_params params;
  plan_sm90(args, env->sms, &kernel);
  if (kernel.short_k) {
    tdm_gemm_bf16_short_params params_short;
    TDM_TRY(tdm_gemm_bf16_short_sm90_params(args, &kernel, env->tensor_map, env->tensor_map_ctx, &params_short));
    return tdm_encoded_step_add(out_step, &kernel.launch, &params_short, sizeof params_short);
  }
  TDM_TRY(tdm_gemm_bf16_sm90_params(args, &kernel, env->scratch, env->state, env->tensor_map, env->tensor_map_ctx,
                                    &params));
  return tdm_encoded_step_add(out_step, &kernel.launch, &params, sizeof params);
}

const tdm_op tdm_op_gemm_bf16 = {
    .name = "gemm_bf16",
    .args_bytes = sizeof(tdm_gemm_bf16_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_gemm_bf16_ref,
    .encode = encode,
};

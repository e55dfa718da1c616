#include "kernels/fill/fill.h"

#include <math.h>

#include "kernels/common/check.h"
#include "kernels/fill/fill_params.h"

static const tdm_operand operands[] = {TDM_OPERAND(tdm_fill_args, out, TDM_WRITE)};

static tdm_status check(void* args_) {
  const tdm_fill_args* args = args_;
  const int64_t any[] = {TDM_ANY, TDM_ANY, TDM_ANY, TDM_ANY};
  TDM_TRY(tdm_check_tensor("fill", "out", &args->out, TDM_BF16_OR_F32 | TDM_DTYPES(TDM_E4M3), args->out.rank, any));
  int64_t packed = 1;
  for (int32_t dim = args->out.rank - 1; dim >= 0; packed *= args->out.shape[dim--])
    if (args->out.shape[dim] > 1 && args->out.stride[dim] != packed)
      return TDM_FAIL(TDM_UNSUPPORTED, "fill: out has stride %lld in dimension %d, must be contiguous",
                      (long long)args->out.stride[dim], dim);
  if (!isfinite(args->amplitude) || !isfinite(args->offset))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "fill: amplitude %g and offset %g must be finite", (double)args->amplitude,
                    (double)args->offset);
  return TDM_OK;
}

static void plan(const void* args, int32_t sms, tdm_plan* out_plan) {
  (void)sms;
  out_plan->bytes = tdm_traffic_all(&tdm_op_fill, args);
}

static tdm_status encode(const void* args_, const tdm_plan* plan_, const tdm_encode_env* env,
                         tdm_encoded_step* out_step) {
  const tdm_fill_args* args = args_;
  (void)plan_;
  tdm_fill_params params = {.out = tdm_view_data(&args->out),
                            .count = 1,
                            .seed = args->seed,
                            .amplitude = args->amplitude,
                            .offset = args->offset,
                            .dtype = (int32_t)args->out.dtype};
  for (int32_t dim = 0; dim < args->out.rank; dim++) params.count *= args->out.shape[dim];
  const tdm_kernel_launch launch = {.kernel = "tdm_fill_sm90", .grid = (uint32_t)env->sms * 8, .block = 256};
  return tdm_encoded_step_add(out_step, &launch, &params, sizeof params);
}

const tdm_op tdm_op_fill = {
    .name = "fill",
    .args_bytes = sizeof(tdm_fill_args),
    .operands = operands,
    .n_operands = (int32_t)(sizeof operands / sizeof operands[0]),
    .check = check,
    .plan = plan,
    .ref = tdm_fill_ref,
    .encode = encode,
};

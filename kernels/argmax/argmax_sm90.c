#include "kernels/argmax/argmax_sm90.h"

#include "runtime/op.h"

void tdm_argmax_sm90_params(const tdm_argmax_args* args, tdm_argmax_params* out_params) {
  *out_params = (tdm_argmax_params){.n_rows = tdm_view_data_or_null(&args->n_rows),
                                    .logits = tdm_view_data(&args->logits),
                                    .out = tdm_view_data(&args->out),
                                    .logits_stride = args->logits.stride[0],
                                    .rows = (int32_t)args->logits.shape[0],
                                    .cols = (int32_t)args->logits.shape[1]};
}

void tdm_argmax_sm90_plan(const tdm_argmax_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {.kernel = "tdm_argmax_sm90", .block = TDM_ARGMAX_THREADS};
  launch.grid = (uint32_t)(params->rows < sms * 2 ? params->rows : sms * 2);
  *out_launch = launch;
}

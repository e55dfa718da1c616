#include "kernels/sample/sample_sm90.h"

#include "runtime/op.h"

void tdm_sample_sm90_params(const tdm_sample_args* args, tdm_sample_params* out_params) {
  tdm_sample_params params = {.n_rows = tdm_view_data_or_null(&args->n_rows),
                              .logits = tdm_view_data(&args->logits),
                              .temperature = tdm_view_data(&args->temperature),
                              .top_p = tdm_view_data(&args->top_p),
                              .seeds = tdm_view_data(&args->seeds),
                              .positions = tdm_view_data(&args->positions),
                              .out = tdm_view_data(&args->out),
                              .logits_stride = args->logits.stride[0],
                              .rows = (int32_t)args->logits.shape[0],
                              .cols = (int32_t)args->logits.shape[1],
                              .unit_log2 = 62};
  for (int64_t tokens = 1; tokens < params.cols; tokens *= 2) params.unit_log2--;
  *out_params = params;
}

void tdm_sample_sm90_plan(const tdm_sample_params* params, int32_t sms, tdm_kernel_launch* out_launch) {
  tdm_kernel_launch launch = {
      .kernel = "tdm_sample_sm90", .block = TDM_SAMPLE_THREADS, .shared_bytes = TDM_SAMPLE_SHARED_BYTES};
  launch.grid = (uint32_t)(params->rows < sms ? params->rows : sms);
  *out_launch = launch;
}

#include "kernels/common/builder.h"

#include <stdio.h>

const char* tdm_builder_label(const tdm_builder* builder, const char* name, char* text) {
  snprintf(text, TDM_LABEL_BYTES, "%s%s", builder->prefix, name);
  return text;
}

tdm_status tdm_builder_temp(tdm_builder* builder, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                            tdm_view* out_view) {
  char label[TDM_LABEL_BYTES];
  return tdm_program_temp(builder->program, tdm_builder_label(builder, name, label), dtype, rank, shape, out_view);
}

tdm_status tdm_builder_rows(tdm_builder* builder, const char* name, tdm_dtype dtype, int64_t cols, tdm_view* out_view) {
  const int64_t shape[] = {builder->rows, cols};
  return tdm_builder_temp(builder, name, dtype, 2, shape, out_view);
}

tdm_status tdm_builder_tap(tdm_builder* builder, const char* name, tdm_dtype dtype, int64_t cols, tdm_view* out_view) {
  TDM_TRY(tdm_builder_rows(builder, name, dtype, cols, out_view));
  return builder->keep ? tdm_program_keep(builder->program, out_view) : TDM_OK;
}

bool tdm_builder_quantises(const tdm_builder* builder, const tdm_weight* weight) {
  return weight->data.dtype == TDM_E4M3 && builder->activation != TDM_F32;
}

tdm_status tdm_builder_activation(tdm_builder* builder, const char* name, int64_t cols, const tdm_weight* weight,
                                  bool want_plain, tdm_activation* out_activation) {
  *out_activation = (tdm_activation){0};
  const bool quantises = tdm_builder_quantises(builder, weight);
  char inner[48], label[TDM_LABEL_BYTES];
  if (want_plain || !quantises)
    TDM_TRY(tdm_builder_tap(builder, name, builder->activation, cols, &out_activation->plain));
  if (!quantises) return TDM_OK;
  snprintf(inner, sizeof inner, "%s.q", name);
  TDM_TRY(tdm_builder_rows(builder, inner, TDM_E4M3, cols, &out_activation->q));
  snprintf(inner, sizeof inner, "%s.scale", name);
  return tdm_program_temp_scales(builder->program, tdm_builder_label(builder, inner, label), builder->rows, cols,
                                 &out_activation->scale);
}

tdm_status tdm_builder_linear(tdm_builder* builder, tdm_lane* lane, const char* name, const tdm_activation* x,
                              const tdm_weight* weight, const tdm_view* out) {
  char label[TDM_LABEL_BYTES];
  tdm_builder_label(builder, name, label);
  if (weight->data.dtype != TDM_E4M3) {
    const tdm_gemm_bf16_args args = {
        .size = sizeof args, .n_tokens = builder->n_tokens, .a = x->plain, .w = weight->data, .out = *out};
    return tdm_append_gemm_bf16(builder->program, lane, label, &args);
  }
  const bool quantises = tdm_builder_quantises(builder, weight);
  const tdm_gemm_fp8_args args = {.size = sizeof args,
                                  .n_tokens = builder->n_tokens,
                                  .a = quantises ? x->q : x->plain,
                                  .a_scale = x->scale,
                                  .w = weight->data,
                                  .w_scale = weight->scale,
                                  .out = *out};
  return tdm_append_gemm_fp8(builder->program, lane, label, &args);
}

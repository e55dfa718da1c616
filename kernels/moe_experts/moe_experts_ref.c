#include "kernels/common/check.h"
#include "kernels/common/convert.h"
#include "kernels/moe_experts/moe_experts.h"
#include "kernels/moe_fc1/moe_fc1.h"
#include "kernels/moe_fc2/moe_fc2.h"
#include "runtime/buffer.h"

/* The two ops with FC1's output in the scratch; what they want for themselves lies behind it. */
typedef struct parts {
  tdm_moe_fc1_args fc1;
  tdm_moe_fc2_args fc2;
  tdm_buffer values, scales;
} parts;

static size_t whole(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

static void split(const tdm_moe_experts_args* args, void* scratch, parts* out) {
  const int64_t m = args->x.shape[0], depth = args->w2.shape[1];
  out->values = (tdm_buffer){.data = scratch, .bytes = whole((size_t)(m * depth))};
  out->scales = (tdm_buffer){.bytes = whole((size_t)(depth / TDM_QUANT_BLOCK * tdm_scale_stride(m)) * sizeof(float))};
  out->scales.data = scratch ? out->values.data + out->values.bytes : NULL;
  const tdm_view values = tdm_view_make(&out->values, TDM_E4M3, 2, (int64_t[]){m, depth});
  tdm_view scales = tdm_view_make(&out->scales, TDM_F32, 2, (int64_t[]){depth / TDM_QUANT_BLOCK, m});
  scales.stride[0] = tdm_scale_stride(m);
  out->fc1 = tdm_moe_experts_fc1(args, &values, &scales);
  out->fc2 = tdm_moe_experts_fc2(args, &values, &scales);
}

size_t tdm_moe_experts_ref_scratch_bytes(const tdm_moe_experts_args* args) {
  parts p;
  split(args, NULL, &p);
  const size_t fc1 = tdm_moe_fc1_ref_scratch_bytes(&p.fc1), fc2 = tdm_moe_fc2_ref_scratch_bytes(&p.fc2);
  return p.values.bytes + p.scales.bytes + (fc1 > fc2 ? fc1 : fc2);
}

tdm_status tdm_moe_experts_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_moe_experts_args* args = void_args;
  int64_t rows = 0;
  tdm_chosen chosen;
  parts p;
  /* What is wrong is ours to name. */
  TDM_TRY(tdm_live_rows("moe_experts", &args->n_tokens, args->x.shape[0], &rows));
  TDM_TRY(tdm_read_chosen("moe_experts", &args->chosen, rows, args->w13.shape[0], &chosen));
  split(args, scratch, &p);
  void* const rest = p.scales.data + p.scales.bytes;
  TDM_TRY(tdm_moe_fc1_ref(&p.fc1, plan, rest));
  return tdm_moe_fc2_ref(&p.fc2, plan, rest);
}

#include "kernels/bmm_quant/bmm_quant.h"
#include "kernels/common/check.h"
#include "kernels/gemm_bf16/gemm_bf16.h"
#include "kernels/quant/quant.h"
#include "runtime/buffer.h"

/* The product [M, B*N] as bf16, then what quant wants for a row of it. */
static size_t product_bytes(const tdm_bmm_quant_args* args) {
  return (size_t)(args->out_q.shape[0] * args->out_q.shape[1]) * sizeof(uint16_t);
}

size_t tdm_bmm_quant_ref_scratch_bytes(const tdm_bmm_quant_args* args) {
  return product_bytes(args) + (size_t)args->out_q.shape[1] * sizeof(float);
}

/* gemm_bf16 into the scratch, and quant out of it. */
tdm_status tdm_bmm_quant_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_bmm_quant_args* args = void_args;
  const int64_t m = args->out_q.shape[0], columns = args->out_q.shape[1], n = args->w.shape[1];
  int64_t rows = 0;
  TDM_TRY(tdm_live_rows("bmm_quant", &args->n_tokens, m, &rows)); /* a wrong count is ours to name */
  tdm_buffer memory = {.data = scratch, .bytes = product_bytes(args)};
  tdm_gemm_bf16_args product = {
      .size = sizeof product, .n_tokens = args->n_tokens, .a = args->a, .w = args->w, .out = {.buffer = &memory}};
  product.out.dtype = TDM_BF16;
  product.out.rank = 3;
  product.out.shape[0] = args->w.shape[0], product.out.shape[1] = m, product.out.shape[2] = n;
  product.out.stride[0] = n, product.out.stride[1] = columns, product.out.stride[2] = 1;
  TDM_TRY(tdm_gemm_bf16_ref(&product, plan, NULL));
  const tdm_quant_args quant = {.size = sizeof quant,
                                .n_tokens = args->n_tokens,
                                .x = tdm_view_make(&memory, TDM_BF16, 2, (int64_t[]){m, columns}),
                                .out_q = args->out_q,
                                .out_scale = args->out_scale,
                                .quant_eps = args->quant_eps,
                                .pow2_scale = args->pow2_scale};
  return tdm_quant_ref(&quant, plan, memory.data + memory.bytes);
}

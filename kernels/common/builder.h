#ifndef KERNELS_COMMON_BUILDER_H
#define KERNELS_COMMON_BUILDER_H

/* What blocks share when they append steps: where they append, in which precision, and how a linear picks its op. */

#include "kernels/common/weights.h"
#include "tandem/model.h"

/* Lives while one program is being built. */
typedef struct tdm_builder {
  tdm_program* program;
  tdm_lane* main_lane;  /* the chain that everything waits for */
  tdm_lane* side_lane;  /* what can run beside it */
  tdm_view n_tokens;    /* i32 [1] */
  int64_t rows;         /* M: the bucket */
  tdm_dtype activation; /* bf16; f32 where nothing is quantised */
  bool pow2_scale;      /* of FP8 activations */
  bool keep;            /* keep the named intermediate values */
  tdm_moe_path moe_path;
  char prefix[32]; /* of labels, "layer3." */
} tdm_builder;

/* Activations in the forms that their consumers want; absent ones are not made. */
typedef struct tdm_activation {
  tdm_view plain; /* [M, K] bf16 or f32 */
  tdm_view q;     /* [M, K] e4m3 */
  tdm_view scale; /* [K/128, M] f32 */
} tdm_activation;

enum { TDM_LABEL_BYTES = 96 }; /* prefix and name; a program refuses what is longer than its 63 characters */

/* Labels get the builder's prefix. `text` has room for TDM_LABEL_BYTES and is returned. */
const char* tdm_builder_label(const tdm_builder* builder, const char* name, char* text);

/* A temporary [M, cols] (M rows of the builder) or of any shape. */
tdm_status tdm_builder_rows(tdm_builder* builder, const char* name, tdm_dtype dtype, int64_t cols, tdm_view* out_view);
tdm_status tdm_builder_temp(tdm_builder* builder, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                            tdm_view* out_view);
/* The same, kept when the builder keeps intermediate values. */
tdm_status tdm_builder_tap(tdm_builder* builder, const char* name, tdm_dtype dtype, int64_t cols, tdm_view* out_view);

/* Whether a linear with this weight takes quantised activations: e4m3 weights outside of the f32 mode. */
bool tdm_builder_quantises(const tdm_builder* builder, const tdm_weight* weight);

/* Makes the temporaries of an activation [M, cols]: q and scale for `weight`s that quantise, plain for others or if
 * wanted. */
tdm_status tdm_builder_activation(tdm_builder* builder, const char* name, int64_t cols, const tdm_weight* weight,
                                  bool want_plain, tdm_activation* out_activation);

/* out = x * weight^T on `lane`: gemm_fp8 for e4m3 weights, gemm_bf16 for others. */
tdm_status tdm_builder_linear(tdm_builder* builder, tdm_lane* lane, const char* name, const tdm_activation* x,
                              const tdm_weight* weight, const tdm_view* out);

#endif

#ifndef KERNELS_COMMON_CONVERT_H
#define KERNELS_COMMON_CONVERT_H

/* Conversions between f32 and the small formats (docs/formulas.md, section 0), bit-exact with the GPU's, and typed
 * loads and stores for the references. */

#include "tandem/base.h"

float tdm_bf16_to_f32(uint16_t bits);
uint16_t tdm_f32_to_bf16(float value); /* nearest, ties to even, overflow to infinity; NaN gives 0x7fff */

/* The value of every code; what tdm_e4m3_to_f32 reads, open to inner loops. */
extern const float tdm_e4m3_table[256];
float tdm_e4m3_to_f32(uint8_t bits);
uint8_t tdm_f32_to_e4m3(
    float value); /* nearest, ties to even, saturating to +-448; infinity saturates; NaN gives 0x7f */

float tdm_ue8m0_to_f32(uint8_t bits);
/* Smallest power of two >= value, as ue8m0. value > 0; clamped to [2^-127, 2^127]. NaN gives 255. */
uint8_t tdm_f32_to_ue8m0_ceil(float value);

float tdm_e2m1_to_f32(uint8_t nibble); /* low four bits */
uint8_t tdm_f32_to_e2m1(float value);  /* nearest, ties to even, saturating to +-6; NaN gives 7 (+6) */

/* Element `index` of an array of bf16, f32 or e4m3 as f32, and back with one rounding. */
float tdm_load_f32(const void* data, tdm_dtype dtype, int64_t index);
void tdm_store_f32(void* data, tdm_dtype dtype, int64_t index, float value);

/* Elements index, index + stride, ... (`count` of them) of an array of bf16, f32 or e4m3, as f32; and `count`
 * neighbouring elements back, each rounded once. */
void tdm_load_f32_row(const void* data, tdm_dtype dtype, int64_t index, int64_t stride, int64_t count, float* out);
void tdm_store_f32_row(void* data, tdm_dtype dtype, int64_t index, int64_t count, const float* values);

#define TDM_QUANT_BLOCK 128 /* values that share an FP8 scale */

/* One 1 x 128 block (section 2): writes 128 e4m3 values and returns the scale. A block with NaN or infinity gets NaN
 * for its scale and 0x7f for its values. */
float tdm_quant_block(const float* values, uint8_t* out, float eps, bool pow2_scale);

#endif

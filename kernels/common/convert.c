#include "kernels/common/convert.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static const uint32_t sign_bit = 0x80000000u;
static const uint32_t infinity_bits = 0x7f800000u;

float tdm_bf16_to_f32(uint16_t bits) {
  return float_of((uint32_t)bits << 16);
}

uint16_t tdm_f32_to_bf16(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & ~sign_bit) > infinity_bits) return 0x7fff;
  bits += 0x7fffu + (bits >> 16 & 1u); /* half a unit, less one bit when the result would otherwise stay even */
  return (uint16_t)(bits >> 16);
}

/* e >= 1: (8 + m) * 2^(e - 10); e = 0: m * 2^-9. Both are an integer shifted, times 2^-9. */
#define E4M3(e, m) ((float)((e) > 0 ? (8 + (m)) << ((e) > 0 ? (e)-1 : 0) : (m)) * 0x1p-9f)
#define ROW(sign, e)                                                                                                   \
  sign E4M3(e, 0), sign E4M3(e, 1), sign E4M3(e, 2), sign E4M3(e, 3), sign E4M3(e, 4), sign E4M3(e, 5),                \
      sign E4M3(e, 6), sign E4M3(e, 7)
#define LAST_ROW(sign)                                                                                                 \
  sign E4M3(15, 0), sign E4M3(15, 1), sign E4M3(15, 2), sign E4M3(15, 3), sign E4M3(15, 4), sign E4M3(15, 5),          \
      sign E4M3(15, 6), NAN
#define HALF(sign)                                                                                                     \
  ROW(sign, 0), ROW(sign, 1), ROW(sign, 2), ROW(sign, 3), ROW(sign, 4), ROW(sign, 5), ROW(sign, 6), ROW(sign, 7),      \
      ROW(sign, 8), ROW(sign, 9), ROW(sign, 10), ROW(sign, 11), ROW(sign, 12), ROW(sign, 13), ROW(sign, 14),           \
      LAST_ROW(sign)

const float tdm_e4m3_table[256] = {HALF(+), HALF(-)};

float tdm_e4m3_to_f32(uint8_t bits) {
  return tdm_e4m3_table[bits];
}

uint8_t tdm_f32_to_e4m3(float value) {
  uint32_t bits = bits_of(value);
  uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
  uint32_t magnitude = bits & ~sign_bit;
  if (magnitude > infinity_bits) return 0x7f;
  if (magnitude >= bits_of(448.0f)) return sign | 0x7e;
  if (magnitude < bits_of(0x1p-6f)) {
    /* Subnormal: next to 2^14 an f32's last bit is worth 2^-9, so the addition rounds to a multiple of it. */
    return sign | (uint8_t)(bits_of(float_of(magnitude) + 0x1p14f) - bits_of(0x1p14f));
  }
  magnitude += 0x7ffffu + (magnitude >> 20 & 1u);
  return sign | (uint8_t)((magnitude >> 20) - ((127u - 7u) << 3));
}

float tdm_ue8m0_to_f32(uint8_t bits) {
  if (bits == 0) return 0x1p-127f;
  if (bits == 255) return NAN;
  return float_of((uint32_t)bits << 23);
}

uint8_t tdm_f32_to_ue8m0_ceil(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & ~sign_bit) > infinity_bits) return 255;
  if (bits <= bits_of(0x1p-127f) || bits >= sign_bit) return 0;
  uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0);
  return (uint8_t)(exponent > 254 ? 254 : exponent);
}

float tdm_e2m1_to_f32(uint8_t nibble) {
  static const float values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  return values[nibble & 15];
}

uint8_t tdm_f32_to_e2m1(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & ~sign_bit) > infinity_bits) return 7;
  float a = fabsf(value);
  /* Steps at the midpoints between neighbours; a midpoint belongs to the even code. */
  int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
  return (uint8_t)((bits >> 28 & 8u) | (uint32_t)code);
}

float tdm_load_f32(const void* data, tdm_dtype dtype, int64_t index) {
  float value;
  tdm_load_f32_row(data, dtype, index, 1, 1, &value);
  return value;
}

void tdm_store_f32(void* data, tdm_dtype dtype, int64_t index, float value) {
  tdm_store_f32_row(data, dtype, index, 1, &value);
}

void tdm_load_f32_row(const void* data, tdm_dtype dtype, int64_t index, int64_t stride, int64_t count, float* out) {
  if (dtype == TDM_F32) {
    const float* from = (const float*)data + index;
    for (int64_t i = 0; i < count; i++) out[i] = from[i * stride];
  } else if (dtype == TDM_BF16) {
    const uint16_t* from = (const uint16_t*)data + index;
    for (int64_t i = 0; i < count; i++) out[i] = tdm_bf16_to_f32(from[i * stride]);
  } else {
    assert(dtype == TDM_E4M3);
    const uint8_t* from = (const uint8_t*)data + index;
    for (int64_t i = 0; i < count; i++) out[i] = tdm_e4m3_table[from[i * stride]];
  }
}

void tdm_store_f32_row(void* data, tdm_dtype dtype, int64_t index, int64_t count, const float* values) {
  if (dtype == TDM_F32) {
    memcpy((float*)data + index, values, (size_t)count * sizeof(float));
  } else if (dtype == TDM_BF16) {
    uint16_t* to = (uint16_t*)data + index;
    for (int64_t i = 0; i < count; i++) to[i] = tdm_f32_to_bf16(values[i]);
  } else {
    assert(dtype == TDM_E4M3);
    uint8_t* to = (uint8_t*)data + index;
    for (int64_t i = 0; i < count; i++) to[i] = tdm_f32_to_e4m3(values[i]);
  }
}

float tdm_quant_block(const float* values, uint8_t* out, float eps, bool pow2_scale) {
  /* As integers, magnitudes order like the values with infinity and NaN on top, which fmax would lose. */
  uint32_t top = 0;
  for (int i = 0; i < TDM_QUANT_BLOCK; i++) {
    uint32_t magnitude = bits_of(values[i]) & ~sign_bit;
    if (magnitude > top) top = magnitude;
  }
  if (top >= infinity_bits) {
    memset(out, 0x7f, TDM_QUANT_BLOCK);
    return NAN;
  }
  float amax = float_of(top);
  if (amax < eps) amax = eps;
  float scale = amax * (1.0f / 448.0f);
  if (pow2_scale) scale = tdm_ue8m0_to_f32(tdm_f32_to_ue8m0_ceil(scale));
  for (int i = 0; i < TDM_QUANT_BLOCK; i++) out[i] = tdm_f32_to_e4m3(values[i] / scale);
  return scale;
}

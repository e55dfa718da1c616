#ifndef KERNELS_MLA_DECODE_MLA_DECODE_WALK_H
#define KERNELS_MLA_DECODE_MLA_DECODE_WALK_H

/* How the kernels of mla_decode divide their work, for the kernels and for their tests on the host.
 *
 * The units of a sequence are splits of its keys times tokens times head tiles, one after the other in that order, each
 * as long as it has keys. All sequences end to end are cut into equal shares, one a CTA, and a CTA has the units that
 * begin in its share: so no CTA has more than its share and a unit, however the lengths are mixed. */

#include <stdint.h>

#ifdef __CUDACC__
#define TDM_WALK_FUNCTION __host__ __device__ __forceinline__
#else
#define TDM_WALK_FUNCTION static inline
#endif

/* The units of a sequence. Lengths count grains of keys. */
typedef struct tdm_mla_decode_units {
  int32_t columns; /* tokens times head tiles */
  int32_t splits;
  int32_t length; /* of a unit of every split but the last; of that one it is last_length */
  int32_t last_length;
} tdm_mla_decode_units;

typedef struct tdm_mla_decode_place {
  int32_t split;
  int32_t column;
  int32_t start; /* within the sequence */
  int32_t length;
} tdm_mla_decode_place;

TDM_WALK_FUNCTION tdm_mla_decode_units tdm_mla_decode_units_of(int32_t columns, int32_t keys, int32_t split_keys,
                                                               int32_t grain) {
  const int32_t splits = (keys + split_keys - 1) / split_keys, rest = keys - (splits - 1) * split_keys;
  const tdm_mla_decode_units units = {keys > 0 ? columns : 0, splits, (split_keys + grain - 1) / grain,
                                      (rest + grain - 1) / grain};
  return units;
}

TDM_WALK_FUNCTION int32_t tdm_mla_decode_total(const tdm_mla_decode_units* units) {
  return units->columns == 0 ? 0 : units->columns * ((units->splits - 1) * units->length + units->last_length);
}

/* The first unit that starts at `offset` (below the total) or later; split == splits when there is none. */
TDM_WALK_FUNCTION tdm_mla_decode_place tdm_mla_decode_from(const tdm_mla_decode_units* units, int32_t offset) {
  const int32_t row = units->columns * units->length;
  if (offset < 0) offset = 0;
  int32_t split = offset / row;
  if (split >= units->splits) split = units->splits - 1;
  int32_t length = split + 1 < units->splits ? units->length : units->last_length;
  int32_t column = (offset - split * row + length - 1) / length;
  if (column >= units->columns) {
    column = 0;
    split++;
    length = split + 1 < units->splits ? units->length : units->last_length;
  }
  const tdm_mla_decode_place place = {split, column, split * row + column * length, length};
  return place;
}

/* Where share number `share` of `shares` begins. */
TDM_WALK_FUNCTION int32_t tdm_mla_decode_share(int32_t total, int32_t share, int32_t shares) {
  const int32_t more = total % shares;
  return share * (total / shares) + (share < more ? share : more);
}

#endif

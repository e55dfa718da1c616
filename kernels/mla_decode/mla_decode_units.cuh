#ifndef KERNELS_MLA_DECODE_MLA_DECODE_UNITS_CUH
#define KERNELS_MLA_DECODE_MLA_DECODE_UNITS_CUH

/* What the kernels of mla_decode have in common: the walk over units of work, output, and how parts of a sum meet. */

#include "kernels/device/elements.cuh"
#include "kernels/device/mbarrier.cuh"
#include "kernels/device/sequence.cuh"
#include "kernels/device/softmax.cuh"
#include "kernels/device/step.cuh"
#include "kernels/mla_decode/mla_decode_params.h"

namespace tdm {

constexpr int32_t kPage = 64, kLatent = 512;
constexpr float kInfinity = __builtin_huge_valf();

/* What a CTA works on. */
struct Unit {
  int32_t row;
  int32_t first_head;
  int32_t split;
  int32_t begin, end; /* keys */
  int32_t splits;     /* of the token */
  const int32_t* page_numbers;

  __device__ __forceinline__ int32_t pages() const {
    return (end - begin + kPage - 1) / kPage;
  }
};

__device__ __forceinline__ Sequences sequences(const tdm_mla_decode_params& p) {
  return live_sequences(p.n_seqs, p.seq_start, p.seq_kind, p.seqs, p.rows);
}

/* Keys that a sequence has. */
__device__ __forceinline__ int32_t length(const tdm_mla_decode_params& p, int32_t sequence) {
  return min(max(p.kv_len[sequence], 0), p.max_keys);
}

__device__ __forceinline__ int32_t splits_of(const tdm_mla_decode_params& p, int32_t keys) {
  return (keys + p.split_keys - 1) / p.split_keys;
}

/* The units of this CTA one after the other, kHeads heads each; every role's warps walk the same way. First come the
 * splits that are full, of all sequences, then the last ones of sequences whose keys do not divide: so a token more
 * than fills them gives no CTA a second full split. */
template <int32_t kHeads> struct Walk {
  Sequences seqs;
  int32_t index; /* among the full ones, then among the others */
  bool full = true;
  UnitCursor cursor;

  __device__ explicit Walk(const tdm_mla_decode_params& p)
      : seqs(sequences(p)), index(static_cast<int32_t>(blockIdx.x)) {
  }

  /* False when there is no next one. Head tiles vary fastest, then tokens: neighbours read the same pages. */
  __device__ __forceinline__ bool next(const tdm_mla_decode_params& p, Unit& unit) {
    const int32_t tiles = (p.heads + kHeads - 1) / kHeads;
    const auto units_of = [&](int32_t s) { /* all loads at once */
                                           const int32_t kind = seqs.kind[s], keys = length(p, s);
                                           const int32_t splits = keys / p.split_keys,
                                                         rest = keys > splits * p.split_keys ? 1 : 0;
                                           const int32_t units = seqs.tokens(s) * tiles * (full ? splits : rest);
                                           return kind == kAbsorbed ? units : 0;
    };
    for (;; index += static_cast<int32_t>(gridDim.x)) {
      UnitPlace place = find_unit(seqs, index, cursor, units_of);
      if (place.sequence < 0 && full) {
        full = false;
        index -= place.unit;
        cursor = UnitCursor{};
        place = find_unit(seqs, index, cursor, units_of);
      }
      if (place.sequence < 0) return false;
      const int32_t s = place.sequence, tokens = seqs.tokens(s), token = place.unit / tiles % tokens;
      const int32_t split = full ? place.unit / tiles / tokens : length(p, s) / p.split_keys;
      const int32_t begin = split * p.split_keys;
      const int32_t keys = length(p, s) - tokens + token + 1;
      if (begin >= keys) continue; /* the sequence's last split is past this token */
      unit = Unit{seqs.begin(s) + token,
                  place.unit % tiles * kHeads,
                  split,
                  begin,
                  min(begin + p.split_keys, keys),
                  splits_of(p, keys),
                  p.block_table + s * p.block_table_stride + begin / kPage};
      index += static_cast<int32_t>(gridDim.x);
      return true;
    }
  }
};

__device__ __forceinline__ void store_pair(const tdm_mla_decode_params& p, int64_t offset, float v0, float v1) {
  if (p.out_dtype == TDM_KERNEL_BF16 && p.vectors != 0) {
    *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p.out) + offset) = bf16x2(v0, v1);
  } else {
    store_element(p.out, p.out_dtype, offset, v0);
    store_element(p.out, p.out_dtype, offset + 1, v1);
  }
}

/* A part of the keys' sums joins those before it: a * from + b * part, whose factors take both to the common base. The
 * kernels and the merge do it in this one way and order, so that a row has the same bits wherever it is done. */
__device__ __forceinline__ void fold(float& a, float from, float b, float part) {
  a = __fmaf_rn(b, part, __fmul_rn(a, from));
}

/* What the merge has to do for a row. */
__device__ __forceinline__ void note_splits(const tdm_mla_decode_params& p, int32_t row, int32_t splits) {
  if (p.splits != nullptr) p.splits[row] = splits > 1 ? splits : 0;
}

/* Zeros for the rows of sequences of another kind, a head a warp, by `warps` warps of each CTA. */
__device__ __forceinline__ void clear_others(const tdm_mla_decode_params& p, int32_t warp, int32_t warps) {
  const Sequences seqs = sequences(p);
  const auto units_of = [&](int32_t s) { return seqs.kind[s] == kAbsorbed ? 0 : seqs.tokens(s) * p.heads; };
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  UnitCursor cursor;
  for (int32_t index = static_cast<int32_t>(blockIdx.x) * warps + warp;;
       index += static_cast<int32_t>(gridDim.x) * warps) {
    const UnitPlace place = find_unit(seqs, index, cursor, units_of);
    if (place.sequence < 0) return;
    const int64_t row = seqs.begin(place.sequence) + place.unit / p.heads;
    const int64_t offset = row * p.out_stride + place.unit % p.heads * p.out_head_stride;
    for (int32_t column = 2 * lane; column < kLatent; column += 64) store_pair(p, offset + column, 0.0f, 0.0f);
    if (place.unit % p.heads == 0 && lane == 0) note_splits(p, static_cast<int32_t>(row), 0);
  }
}

} // namespace tdm

#endif

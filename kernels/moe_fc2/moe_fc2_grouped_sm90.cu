/* FC2 with routing weights for sm_90a, of each expert for the tokens alone that chose it, FP8.
 *
 * 1. A unit is 64 columns of the output and a segment of the experts, the dense form's; its sums, of up to `tokens`
 * tokens, are kept in shared memory. A CTA goes through the experts that somebody chose, ascending, up to 8 or 16
 * of their tokens at a time, and reads each expert's weights once for each group.
 * 2. The groups of all units lie one behind the other and are divided evenly among the CTAs. A CTA begins with the
 * first groups of its last unit and leaves their sums to the next CTA (device/turns.cuh), which ends with the others
 * and finds them there. Where tokens are few, or too many for one pass, CTAs have whole tiles instead, all segments of
 * them.
 * 3. Producers: a thread asks for weights, up to two blocks of 128 along K a stage, by TMA; warps gather the tokens'
 * rows, scales and routing weights by plain asynchronous copies (device/choices.cuh).
 * 4. Two warpgroups multiply groups in turn. Then, one after the other, a token's sum comes to registers, takes the
 * expert's blocks, and goes back: the same operations in the same order as in the dense form, so the same bits. Warp w
 * of both has the same 16 columns of all tokens' sums, so that turns pass from warp to warp.
 * 5. Segments of a tile meet in the workspace, and are added in ascending order.
 *
 *   two warpgroups         multiply         ring of weights  w     [2][64][128] e4m3, swizzled
 *   a warp                 lane 0: weights  ring of tokens   x     [2][group][128] e4m3, swizzled
 *   two or three warps     tokens                            note  scales, weights and places of the tokens
 *                                           sums             [tokens][64] f32
 *
 * Where sync.reads_ahead, routing is done before FC1 begins: choices are looked at and the first weights asked for
 * while the last CTAs of FC1 still run.
 *
 * Block: 352 or 384 threads. Limit: device bandwidth on w2 of the experts that were chosen. */

#include <cstring>

#include "kernels/device/choices.cuh"
#include "kernels/device/turns.cuh"
#include "kernels/moe_fc2/moe_fc2_grouped_params.h"

namespace {

constexpr int kColumns = TDM_MOE_FC2_GROUPED_COLUMNS;

/* What consumers read of a slot besides the tile; places and alpha with an expert's first slot alone. Places: of the
 * tokens' sums, `Sums::place` of column 0. Where there is no token they lead to sums that nobody reads. */
template <int kGroup> struct alignas(16) Note {
  float scale[2][kGroup]; /* of a block each */
  float alpha[kGroup];
  int32_t places[kGroup];
  float w_scale[2];
  int32_t padding[2];
};

/* Sums in shared memory: [tokens + kGroup][64], an element at [token][column ^ 8 (token % 4)], against bank conflicts.
 */
struct Sums {
  __device__ static __forceinline__ int32_t place(int32_t token) {
    return token * kColumns ^ 8 * (token % 4);
  }
};

using Ring = tdm::SizedRing;

/* Where things lie in shared memory, in the order of tdm_moe_fc2_grouped_bytes. */
template <int kGroup> struct Memory {
  using Note = ::Note<kGroup>;
  static_assert(sizeof(Note) == TDM_MOE_FC2_GROUPED_NOTE_BYTES(kGroup), "launch size");
  static constexpr int kXBytes = 2 * 128 * kGroup;
  uint8_t* w;
  uint8_t* x;
  float* sums;
  Note* notes; /* [2][slots of tokens]: twice, device/gemm.cuh, Ring */
  uint64_t* barriers;
  uint64_t* order; /* [2 warpgroups][4 warps] whose turn it is at the sums */
  int32_t* bounds; /* first group of a tile of each segment, and its end */
  tdm::Turn* turn;
  uint32_t* flag;
  void* choices;

  __device__ __forceinline__ Memory(uint8_t* memory, const tdm_moe_fc2_grouped_params& p)
      : w(memory), x(w + p.stages * TDM_MOE_FC2_GROUPED_W_BYTES) {
    sums = reinterpret_cast<float*>(x + p.x_stages * kXBytes);
    notes = reinterpret_cast<Note*>(sums + (p.tokens + kGroup) * kColumns);
    barriers = reinterpret_cast<uint64_t*>(notes + 2 * p.x_stages);
    order = barriers + 2 * (p.stages + p.x_stages);
    turn = reinterpret_cast<tdm::Turn*>(order + 8);
    flag = reinterpret_cast<uint32_t*>(turn + 1);
    bounds = reinterpret_cast<int32_t*>(flag + 1);
    choices = bounds + TDM_MOE_FC2_GROUPED_SEGMENTS + 1;
  }
  __device__ __forceinline__ Ring weights(const tdm_moe_fc2_grouped_params& p) const {
    return Ring{barriers, barriers + p.stages, static_cast<uint32_t>(p.stages)};
  }
  __device__ __forceinline__ Ring tokens(const tdm_moe_fc2_grouped_params& p) const {
    uint64_t* const first = barriers + 2 * p.stages;
    return Ring{first, first + p.x_stages, static_cast<uint32_t>(p.x_stages)};
  }
  __device__ __forceinline__ uint8_t* w_of(const Ring& ring) const {
    return w + ring.slot * TDM_MOE_FC2_GROUPED_W_BYTES;
  }
  __device__ __forceinline__ uint8_t* x_of(const Ring& ring) const {
    return x + ring.slot * kXBytes;
  }
  __device__ __forceinline__ Note& note_of(const Ring& ring) const {
    return notes[ring.parity * ring.stages + ring.slot];
  }
};

/* Groups begin .. end - 1 of a tile, all of one segment. */
struct Piece {
  int32_t tile;
  int32_t begin, end;
  int32_t rank;      /* of the segment, among those that somebody chose experts of */
  bool first, last;  /* whether it begins and ends its unit */
  bool last_of_work; /* nothing of the CTA's comes after it */
};

/* Of the groups of all tiles, tile by tile, those from `from` to `to` - 1; all of the CTA's threads have the same. */
struct Work {
  const tdm::Choices& choices;
  const int32_t* bounds; /* of segments, in groups of a tile */
  int32_t segments;
  uint32_t groups; /* of a tile */
  int32_t ranks;   /* segments that have groups */
  uint32_t from, to;

  /* All threads of the CTA. */
  __device__ __forceinline__ Work(const tdm_moe_fc2_grouped_params& p, const tdm::Choices& chosen, int32_t* to_bounds)
      : choices(chosen), bounds(to_bounds), segments(p.segments),
        groups(static_cast<uint32_t>(chosen.before[chosen.n])), ranks(0), from(0), to(0) {
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    if (thread <= segments)
      to_bounds[thread] = choices.before[choices.below(tdm::segment_begin(thread, segments, p.n_experts, 1))];
    __syncthreads();
    for (int32_t s = 0; s < segments; ++s) ranks += bounds[s + 1] > bounds[s];
  }
  /* An even share of the groups of all tiles; CTAs that would have none come last, for nobody may wait for them. */
  __device__ __forceinline__ void share(int32_t n_tiles, uint32_t cta) {
    const uint32_t all = static_cast<uint32_t>(n_tiles) * groups, ctas = min(gridDim.x, all);
    if (cta >= ctas) return;
    from = all / ctas * cta + all % ctas * cta / ctas;
    to = all / ctas * (cta + 1) + all % ctas * (cta + 1) / ctas;
  }
  /* Number of a tile's group among those of all tiles. */
  __device__ __forceinline__ uint32_t place(int32_t tile, int32_t group) const {
    return static_cast<uint32_t>(tile) * groups + static_cast<uint32_t>(group);
  }
  /* The unit that group number `at` is in, as a whole piece. */
  __device__ __forceinline__ Piece unit_of(uint32_t at) const {
    const int32_t tile = static_cast<int32_t>(at / groups), group = static_cast<int32_t>(at % groups);
    int32_t rank = 0, begin = 0, end = 0;
    for (int32_t s = 1; s <= segments; ++s) {
      end = bounds[s];
      if (end > group) break;
      rank += end > begin;
      begin = end;
    }
    return Piece{tile, begin, end, rank, true, true, false};
  }
  /* The last unit's first groups, whole units, the first unit's last groups. */
  template <class Body> __device__ __forceinline__ void each_piece(Body body) const {
    if (from >= to) return;
    const Piece first = unit_of(from), last = unit_of(to - 1);
    const uint32_t begin = place(first.tile, first.begin), end = place(last.tile, last.end);
    const uint32_t last_begin = place(last.tile, last.begin);
    const bool head = end > to, tail = begin < from, one = begin == last_begin;
    const uint32_t rest = head ? last_begin : to;
    uint32_t at = tail ? place(first.tile, first.end) : from; /* of the whole units that are left */
    bool left_head = head, left_tail = tail && !(head && one);
    while (left_head || at < rest || left_tail) {
      Piece piece;
      if (left_head) {
        left_head = false;
        piece = last;
        piece.end = static_cast<int32_t>(to - place(last.tile, 0)), piece.last = false;
        if (one) piece.begin = static_cast<int32_t>(from - place(last.tile, 0)), piece.first = !tail;
      } else if (at < rest) {
        piece = unit_of(at);
        at = place(piece.tile, piece.end);
      } else {
        left_tail = false;
        piece = first;
        piece.begin = static_cast<int32_t>(from - place(first.tile, 0)), piece.first = false;
      }
      piece.last_of_work = at >= rest && !left_tail;
      body(piece);
    }
  }
  /* body(index, first, count) for each group of a piece: an expert of the list, tokens first .. first + count - 1 of
   * those that chose it. */
  template <class Body>
  __device__ __forceinline__ void each_group(const Piece& piece, int32_t of_group, Body body) const {
    int32_t index = choices.holder(piece.begin), first = (piece.begin - choices.before[index]) * of_group;
    for (int32_t group = piece.begin; group < piece.end; ++group) {
      const int32_t rows = choices.rows(index);
      body(index, first, min(rows - first, of_group));
      first += of_group;
      if (first >= rows) {
        first = 0;
        ++index;
      }
    }
  }
};

/* By a thread. */
template <int kBlocks, int kGroup>
__device__ void load_weights(const tdm_moe_fc2_grouped_params& p, const Work& work, const Memory<kGroup>& shared,
                             Ring& ring) {
  const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
  work.each_piece([&](const Piece& piece) {
    work.each_group(piece, kGroup, [&](int32_t index, int32_t, int32_t) {
      const uint64_t policy = work.choices.rows(index) <= kGroup ? once : often;
      const int32_t kb = work.choices.expert(index) * p.blocks;
      for (int32_t block = 0; block < p.blocks; block += kBlocks) {
        uint64_t* const full = ring.begin_fill();
        tdm::mbarrier_arrive_expect(full, kBlocks * kColumns * 128);
        tdm::tma_load_3d(shared.w_of(ring), &p.w, full, policy, 0, piece.tile * kColumns, kb + block);
        ring.advance();
      }
    });
  });
}

/* A warp, one of some that take sets of 32 / kGroup groups in turn: a lane has a token of one of the groups, its
 * scales and its weight, and copies its part of all rows of that group. Slots of a set are waited for together; from a
 * set to its next one a warp goes no further than once around the ring: two rounds ahead the parity of empty[] is the
 * same. */
template <int kBlocks, int kGroup> struct Gatherer {
  static constexpr int kWarps = TDM_MOE_FC2_GROUPED_GATHERERS(kGroup);
  static constexpr int kSubs = 32 / kGroup, kPieces = 8 * kBlocks; /* of 16 bytes of a row */
  const tdm_moe_fc2_grouped_params& p;
  const Memory<kGroup>& shared;
  const tdm::Choices& choices;
  Ring& ring;
  int32_t& turn; /* the warp whose set is next */
  int32_t lane, sub, token, stages, at_once, mine, warps;
  int32_t held = 0;                              /* groups of the set */
  int32_t index = 0, first = 0, count = 0, tile; /* the lane's group */

  __device__ __forceinline__ Gatherer(const tdm_moe_fc2_grouped_params& params, const Memory<kGroup>& memory,
                                      const tdm::Choices& chosen, Ring& tokens, int32_t warp, int32_t& next)
      : p(params), shared(memory), choices(chosen), ring(tokens), turn(next),
        lane(static_cast<int32_t>(threadIdx.x % 32)), sub(lane / kGroup), token(lane % kGroup),
        stages(p.blocks / kBlocks), at_once(min(kSubs, max(p.x_stages / stages, 1))), mine(warp),
        warps(min(kWarps, max(p.x_stages / (at_once * stages), 1))), tile(0) {
  }

  __device__ __forceinline__ void gather(const Work& work) {
    work.each_piece([&](const Piece& piece) {
      work.each_group(piece, kGroup, [&](int32_t of_index, int32_t of_first, int32_t of_count) {
        if (sub == held) index = of_index, first = of_first, count = of_count, tile = piece.tile;
        if (++held == at_once) end_set();
      });
    });
    if (held > 0) end_set();
  }
  __device__ __forceinline__ void end_set() {
    if (turn == mine) copy_set();
    turn = turn + 1 == warps ? 0 : turn + 1;
    ring.advance_by(static_cast<uint32_t>(held * stages));
    held = 0;
  }

  /* Of the rows that chose the lane's expert the one of its token, counted from the pass's first; -1: none. */
  __device__ __forceinline__ int32_t row_of_token() const {
    if (token >= count) return -1;
    const uint32_t* const words = choices.bits + choices.expert(index) * choices.words;
    int32_t left = first + token, w = 0;
    for (; left >= __popc(words[w]); ++w) left -= __popc(words[w]);
    uint32_t word = words[w];
    int32_t bit = 0;
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
      const int32_t below = __popc(word & ((1u << half) - 1));
      const bool above = left >= below;
      left -= above ? below : 0;
      bit += above ? half : 0;
      word >>= above ? half : 0;
    }
    return 32 * w + bit;
  }

  __device__ __forceinline__ void copy_set() {
    const bool active = sub < held;
    if (!active) count = 0;
    const int32_t row = row_of_token(), most = __reduce_max_sync(~0u, count);
    const int32_t expert = choices.expert(index);
    const int32_t row_of_x = choices.first_row + max(row, 0);
    const uint32_t offset = static_cast<uint32_t>(row_of_x * p.x_stride);
    Ring at = ring;
    at.advance_by(static_cast<uint32_t>(sub * stages));
    for (int32_t stage = 0; stage < stages; ++stage) {
      const int32_t kb = expert * p.blocks + stage * kBlocks;
      auto& note = shared.note_of(at);
      uint8_t* const to = shared.x_of(at);
      const uint8_t* const from = p.x + int64_t{kb} * 128;
      if (active) (void)at.begin_fill();
#pragma unroll 2
      for (int32_t other = 0; other < most; ++other) {
        const uint8_t* const its = from + __shfl_sync(~0u, offset, sub * kGroup + other);
#pragma unroll
        for (int32_t piece = token; piece < (kPieces + kGroup - 1) / kGroup * kGroup; piece += kGroup)
          if (other < count && piece < kPieces)
            tdm::copy_async_16(to + piece / 8 * (kGroup * 128) +
                                   tdm::swizzled(static_cast<uint32_t>(other), static_cast<uint32_t>(piece % 8)),
                               its + piece * 16);
      }
      if (active) {
        if (row >= 0) {
#pragma unroll
          for (int b = 0; b < kBlocks; ++b)
            tdm::copy_async_4(&note.scale[b][token], p.x_scale + (kb + b) * p.x_scale_stride + row_of_x);
        }
        if (token < kBlocks)
          tdm::copy_async_4(&note.w_scale[token], p.w_scale + tile * kColumns / 128 * p.w_scale_stride + kb + token);
        if (stage == 0) {
          note.places[token] = Sums::place(row < 0 ? p.tokens + token : row);
          if (row < 0 || p.alpha == nullptr)
            note.alpha[token] = 1.0f;
          else
            tdm::copy_async_4(&note.alpha[token], p.alpha + row_of_x * p.alpha_stride + expert);
        }
        tdm::copy_async_arrive(&at.full[at.slot]);
        tdm::mbarrier_arrive(&at.full[at.slot]);
      }
      __syncwarp();
      at.advance();
    }
  }
};

/* Of a consumer, over all passes: whether the next group is its own, and the phase of its turn. */
struct Order {
  bool own;
  uint32_t parity;
};

/* A warpgroup that multiplies every other group. */
template <int kBlocks, int kGroup> struct Consumer {
  using Note = ::Note<kGroup>;
  const tdm_moe_fc2_grouped_params& p;
  const tdm_step_sync& sync;
  const Memory<kGroup>& shared;
  const Work& work;
  const int32_t rows; /* of the pass */
  Ring& weights;
  Ring& tokens;
  Order& order;

  __device__ static __forceinline__ uint32_t consumer() {
    return threadIdx.x / 128;
  }
  /* Of the consumer's warps. */
  __device__ static __forceinline__ void sync_warps() {
    tdm::named_barrier_sync(1 + consumer(), 128);
  }

  __device__ __forceinline__ float4& sum_of(int32_t token, int32_t column) const {
    return *reinterpret_cast<float4*>(&shared.sums[Sums::place(token) ^ column]);
  }
  __device__ static __forceinline__ int32_t lane() {
    return static_cast<int32_t>(threadIdx.x % 32);
  }
  /* The first of four columns that are the thread's, of every eighth token. */
  __device__ static __forceinline__ int32_t column() {
    return static_cast<int32_t>(threadIdx.x % 128 / 32) * 16 + 4 * (lane() % 4);
  }
  template <int kAtOnce, class Body> __device__ __forceinline__ void each_mine(Body body) const {
#pragma unroll kAtOnce
    for (int32_t token = lane() / 4; token < rows; token += 8) body(token, column());
  }

  __device__ __forceinline__ void zero() const {
    each_mine<1>([&](int32_t token, int32_t column) { sum_of(token, column) = make_float4(0.0f, 0.0f, 0.0f, 0.0f); });
  }

  /* The thread's pairs of neighbours, `from` on, of a slot's values. */
  template <class Value, int kTokens>
  __device__ static __forceinline__ void read(Value (&to)[kTokens], const Value* from) {
#pragma unroll
    for (int i = 0; i < kTokens; i += 2) {
      const uint2 pair = *reinterpret_cast<const uint2*>(from + 4 * i);
      memcpy(&to[i], &pair.x, 4);
      memcpy(&to[i + 1], &pair.y, 4);
    }
  }

  /* The warp's turn at the sums of its columns: the other consumer's warp has had the group before. */
  __device__ __forceinline__ void await_turn() const {
    tdm::mbarrier_wait(&shared.order[threadIdx.x / 32], order.parity);
    order.parity ^= 1;
  }
  __device__ __forceinline__ void pass_turn() const {
    tdm::mbarrier_arrive(&shared.order[threadIdx.x / 32 ^ 4]);
  }

  /* Whether a group is so long that a warp may not wait for its slots before the group in front is done: twice around a
   * ring ahead their parity is that of slots which are not filled yet. */
  __device__ __forceinline__ bool long_groups() const {
    return 2 * p.blocks > kBlocks * min(p.stages, p.x_stages);
  }

  /* An expert's blocks for a group of kGroup tokens, of the piece its first and its last one or not. Sums of a thread:
   * of tokens 8 i + 2 (lane % 4) and the next, of columns lane / 4 and 8 further of the warp's 16. */
  __device__ __forceinline__ void add_group(const Piece& piece, bool first_of_piece, bool last_of_piece) const {
    constexpr int kTokens = kGroup / 4; /* of a thread */
    const int32_t first_token = 2 * (lane() % 4);
    const int32_t first_column = static_cast<int32_t>(threadIdx.x % 128 / 32) * 16 + lane() / 4;
    int32_t places[kTokens] = {};
    float alpha[kTokens] = {}, c[2 * kTokens] = {}, acc[kBlocks][kGroup / 2];
    const bool waits_first = long_groups();
    if (waits_first) await_turn();
    for (int32_t block = 0; block < p.blocks; block += kBlocks) {
      tokens.await();
      weights.await();
      tdm::fence_async_shared();
      tdm::wgmma_fence();
      const uint32_t w = tdm::wgmma_descriptor_lower(shared.w_of(weights));
      const uint32_t x = tdm::wgmma_descriptor_lower(shared.x_of(tokens));
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          tdm::wgmma_e4m3<kGroup>::issue(acc[b], tdm::wgmma_descriptor_whole(w + b * (kColumns * 128 / 16) + 2 * k),
                                         tdm::wgmma_descriptor_whole(x + b * kGroup * (128 / 16) + 2 * k), k != 0);
      tdm::wgmma_commit();
      /* No branch up to the products' end: the compiler would wait for them before. */
      const Note& note = shared.note_of(tokens);
      const bool first = block == 0;
      int32_t new_places[kTokens];
      float new_alpha[kTokens], folded[kBlocks][kTokens], scales[kBlocks][kTokens];
      read(new_places, note.places + first_token);
      read(new_alpha, note.alpha + first_token);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        places[i] = first ? new_places[i] ^ first_column : places[i];
        alpha[i] = first ? new_alpha[i] : alpha[i];
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        read(folded[b], note.scale[b] + first_token);
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          folded[b][i] *= alpha[i];
          scales[b][i] = folded[b][i] * note.w_scale[b];
        }
      }
      tdm::wgmma_wait<0>();
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) tdm::wgmma_settle(acc[b]);
      __syncwarp();
      weights.hand_back();
      tokens.hand_back();
      if (first) {
        if (!waits_first) await_turn();
        if (first_of_piece) begin(piece);
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          c[2 * i] = shared.sums[places[i]];
          c[2 * i + 1] = shared.sums[places[i] ^ 8];
        }
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          const int at = 4 * (i / 2) + i % 2;
          const bool weighs = folded[b][i] != 0.0f; /* the dense form passes over what has no weight */
          const float low = fmaf(scales[b][i], acc[b][at], c[2 * i]);
          const float high = fmaf(scales[b][i], acc[b][at + 2], c[2 * i + 1]);
          c[2 * i] = weighs ? low : c[2 * i];
          c[2 * i + 1] = weighs ? high : c[2 * i + 1];
        }
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      shared.sums[places[i]] = c[2 * i];
      shared.sums[places[i] ^ 8] = c[2 * i + 1];
    }
    if (last_of_piece) end(piece);
    pass_turn();
  }

  /* Four columns of a token's result. */
  __device__ __forceinline__ void store(int32_t token, int32_t column, float4 sum) const {
    const int32_t m = work.choices.first_row + token;
    float v[4] = {sum.x, sum.y, sum.z, sum.w};
    if (p.addend != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column + i < p.n) v[i] += tdm::load_element(p.addend, p.addend_dtype, m * p.addend_stride + column + i);
    }
    const int64_t at = m * p.out_stride + column;
    if (column + 4 > p.n || (p.out_stride & 3) != 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column + i < p.n) tdm::store_element(p.out, p.out_dtype, at + i, v[i]);
    } else if (p.out_dtype == TDM_KERNEL_F32) {
      *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p.out) + at) =
          make_uint2(tdm::bf16x2(v[0], v[1]), tdm::bf16x2(v[2], v[3]));
    }
  }

  /* Sums in the workspace: of a CTA, then of the segments of each tile. The thread's columns of token 0; a token is
   * kColumns / 4 on. */
  __device__ __forceinline__ float4* kept(int64_t place) const {
    return reinterpret_cast<float4*>(p.partials + place * p.tokens * kColumns + column());
  }
  __device__ __forceinline__ void keep(int64_t place) const {
    float4* const to = kept(place);
    each_mine<2>([&](int32_t token, int32_t column) { __stcg(to + token * (kColumns / 4), sum_of(token, column)); });
  }

  __device__ __forceinline__ void leave() const {
    const tdm::Turn turn = *shared.turn;
    keep(turn.cta);
    __threadfence();
    sync_warps();
    if (threadIdx.x % 128 == 0) tdm::tell_next(p.counters, turn);
  }
  __device__ __forceinline__ void take_up() const {
    const tdm::Turn turn = *shared.turn;
    if (threadIdx.x % 128 == 0) tdm::await_previous(p.counters, turn, sync);
    sync_warps();
    const float4* const from = kept(int64_t{turn.cta} - 1);
    each_mine<4>([&](int32_t token, int32_t column) { sum_of(token, column) = __ldcg(from + token * (kColumns / 4)); });
  }

  /* Of the tokens of some shares the sum over the segments, those of other pieces in the workspace, `first` on. */
  __device__ __forceinline__ void combine(const Piece& piece, int64_t first, uint32_t shares) const {
    const float4* const others = kept(first);
    const int32_t next = p.tokens * (kColumns / 4);
    const auto add = [](float4& total, float4 v) { total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w; };
    const auto here = [&](int32_t token) { return (shares >> token / 8 % max(work.ranks, 1) & 1) != 0; };
    each_mine<4>([&](int32_t token, int32_t column) {
      if (!here(token)) return;
      const float4* const its = others + token * (kColumns / 4);
      float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f), v[2] = {total, total};
#pragma unroll
      for (int32_t s = 0; s < 2; ++s)
        if (s < work.ranks) v[s] = s == piece.rank ? sum_of(token, column) : __ldcg(its + s * next);
      add(total, v[0]);
      add(total, v[1]);
#pragma unroll 1
      for (int32_t s = 2; s < work.ranks; ++s)
        add(total, s == piece.rank ? sum_of(token, column) : __ldcg(its + s * next));
      sum_of(token, column) = total;
    });
#pragma unroll 1
    for (int32_t token = lane() / 4; token < rows; token += 8)
      if (here(token)) store(token, piece.tile * kColumns + column(), sum_of(token, column()));
  }

  /* A unit is complete. A CTA that has whole tiles keeps it until the last; else it meets the tile's others, and its
   * share is every work.ranks-th run of eight tokens. A CTA that has more to do does not wait for them. */
  __device__ __forceinline__ void complete(const Piece& piece) const {
    const bool whole = p.counters == nullptr;
    const int64_t first = whole ? int64_t{blockIdx.x} * p.segments : gridDim.x + int64_t{piece.tile} * p.segments;
    uint32_t* const counter = p.counters + 1 + gridDim.x + piece.tile;
    uint32_t shares = whole && piece.rank + 1 < work.ranks ? 0 : ~tdm::kMeetingLeaves;
    if (work.ranks > 1 && (!whole || shares == 0)) keep(first + piece.rank);
    if (work.ranks > 1 && !whole) {
      __threadfence();
      sync_warps();
      if (threadIdx.x % 128 == 0) {
        *shared.flag = tdm::meet(counter, piece.rank, work.ranks, piece.last_of_work);
        __threadfence();
      }
      sync_warps();
      shares = *shared.flag;
    }
    if (shares != 0) combine(piece, first, shares);
    if (threadIdx.x % 128 == 0 && (shares & tdm::kMeetingLeaves) != 0) tdm::leave_meeting(counter, work.ranks);
  }

  __device__ __forceinline__ void begin(const Piece& piece) const {
    if (piece.first)
      zero();
    else
      take_up();
    __syncwarp();
  }
  __device__ __forceinline__ void end(const Piece& piece) const {
    __syncwarp();
    if (piece.last)
      complete(piece);
    else
      leave();
  }

  __device__ void multiply() const {
    const uint32_t stages = static_cast<uint32_t>(p.blocks / kBlocks);
    work.each_piece([&](const Piece& piece) {
      int32_t group = piece.begin;
      work.each_group(piece, kGroup, [&](int32_t, int32_t, int32_t) {
        if (order.own) {
          add_group(piece, group == piece.begin, group + 1 == piece.end);
        } else {
          weights.advance_by(stages);
          tokens.advance_by(stages);
        }
        order.own = !order.own;
        ++group;
      });
    });
  }

  /* Of a tile, where nobody chose anything. */
  __device__ void store_nothing(int32_t tile) const {
    combine(Piece{tile, 0, 0, 0, true, true, true}, 0, ~0u);
  }
};

template <int kBlocks, int kGroup> __device__ void run(const tdm_moe_fc2_grouped_params& p, const tdm_step_sync& sync) {
  constexpr uint32_t kProducer = 256; /* the thread that asks for weights */
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  const Memory<kGroup> shared(memory, p);
  Ring weights = shared.weights(p), tokens = shared.tokens(p);
  const bool ahead = sync.reads_ahead != 0;
  tdm::step_enter(sync);
  if (threadIdx.x == 0) {
    for (int32_t i = 0; i < p.stages; ++i) {
      tdm::mbarrier_init(&weights.full[i], 1);
      tdm::mbarrier_init(&weights.empty[i], 4);
    }
    for (int32_t i = 0; i < p.x_stages; ++i) {
      tdm::mbarrier_init(&tokens.full[i], 2 * kGroup);
      tdm::mbarrier_init(&tokens.empty[i], 4);
    }
    for (int32_t i = 0; i < 8; ++i) tdm::mbarrier_init(&shared.order[i], 32);
    tdm::fence_barrier_init();
    tdm::tma_prefetch_map(&p.w);
  }
  if (!ahead) tdm::step_wait(sync);
  if (threadIdx.x == 32) tdm::draw_turn(p.counters, *shared.turn);
  const int32_t live = tdm::live_rows(p.n_tokens, p.m), n_tiles = (p.n + kColumns - 1) / kColumns;
  const bool shares = p.counters != nullptr;
  const int32_t passes = (live + p.tokens - 1) / p.tokens, units = shares ? min(passes, 1) : passes * n_tiles;
  Order order{threadIdx.x < 128, threadIdx.x < 128 ? 1u : 0u}; /* the first turn is there already */
  int32_t turn = 0;
  bool waits = ahead;
  for (int32_t u = shares ? 0 : static_cast<int32_t>(blockIdx.x); u < units; u += static_cast<int32_t>(gridDim.x)) {
    const int32_t first_row = u % passes * p.tokens, tile = u / passes;
    const tdm::Choices choices =
        tdm::load_choices(shared.choices, p.choices, p.n_experts, min(p.m, p.tokens), first_row, live, kGroup);
    Work work(p, choices, shared.bounds);
    const uint32_t cta = shared.turn->cta;
    if (shares)
      work.share(n_tiles, cta);
    else
      work.from = static_cast<uint32_t>(tile) * work.groups, work.to = work.from + work.groups;
    if (threadIdx.x == kProducer) load_weights<kBlocks, kGroup>(p, work, shared, weights);
    if (waits) tdm::step_wait(sync);
    waits = false;
    if (threadIdx.x < kProducer) {
      const Consumer<kBlocks, kGroup> consumer{p,       sync,   shared, work, min(live - first_row, p.tokens),
                                               weights, tokens, order};
      consumer.multiply();
      if (work.groups == 0 && threadIdx.x < 128) {
        const int32_t step = shares ? static_cast<int32_t>(gridDim.x) : n_tiles;
        for (int32_t t = shares ? static_cast<int32_t>(cta) : tile; t < n_tiles; t += step) consumer.store_nothing(t);
      }
    } else if (threadIdx.x >= kProducer + 32) {
      const int32_t warp = static_cast<int32_t>((threadIdx.x - kProducer) / 32) - 1;
      Gatherer<kBlocks, kGroup> gatherer(p, shared, choices, tokens, warp, turn);
      if (gatherer.mine < gatherer.warps) gatherer.gather(work);
    }
    __syncthreads();
  }
  if (waits) tdm::step_wait(sync);
  tdm::step_end(sync);
}

} // namespace

#define GROUPED(blocks, group)                                                                                         \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC2_GROUPED_THREADS(group), 1)                                  \
      tdm_moe_fc2_grouped_b##blocks##_t##group##_sm90(const __grid_constant__ tdm_moe_fc2_grouped_params p,            \
                                                      const __grid_constant__ tdm_step_sync sync) {                    \
    run<blocks, group>(p, sync);                                                                                       \
  }
#include "kernels/moe_fc2/moe_fc2_grouped_variants.inc"

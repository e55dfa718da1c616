#ifndef KERNELS_MOE_FC2_MOE_FC2_GROUPED_CUH
#define KERNELS_MOE_FC2_MOE_FC2_GROUPED_CUH

/* FC2 of each expert for the rows that chose it: moe_fc2_grouped_sm90.cu has the steps. */

#include <cstring>

#include "kernels/device/choices.cuh"
#include "kernels/device/turns.cuh"
#include "kernels/moe_fc2/moe_fc2_grouped_params.h"

namespace tdm::fc2 {

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
  using Note = fc2::Note<kGroup>;
  static_assert(sizeof(Note) == TDM_MOE_FC2_GROUPED_NOTE_BYTES(kGroup), "launch size");
  static constexpr int kXBytes = 2 * 128 * kGroup;
  uint8_t* w;
  uint8_t* x;
  float* sums;
  Note* notes; /* [2][slots of tokens]: twice, device/gemm.cuh, Ring */
  uint64_t* barriers;
  uint64_t* order; /* [2 warpgroups][4 warps] whose turn it is at the sums */
  uint64_t* kept;  /* [2] sums of every other piece are in the workspace */
  uint64_t* seen;  /* [2] and the finisher knows */
  int32_t* bounds; /* first group of a tile of each segment, and its end */
  tdm::Turn* turn;
  uint32_t* flag; /* of the last piece: whether it is its tile's last; then what its meeting said */
  void* choices;
  uint32_t rotation; /* place of the weights' first stage */

  __device__ __forceinline__ Memory(uint8_t* memory, const tdm_moe_fc2_grouped_params& p)
      : Memory(memory, memory + p.stages * TDM_MOE_FC2_GROUPED_W_BYTES,
               memory + p.stages * TDM_MOE_FC2_GROUPED_W_BYTES + p.x_stages * kXBytes, nullptr, p) {
  }
  /* Each where it is wanted; the rest, from the notes on, behind the sums if nowhere else. */
  __device__ __forceinline__ Memory(uint8_t* of_weights, uint8_t* of_tokens, void* of_sums, void* rest,
                                    const tdm_moe_fc2_grouped_params& p)
      : w(of_weights), x(of_tokens), sums(static_cast<float*>(of_sums)), rotation(0) {
    notes = rest == nullptr ? reinterpret_cast<Note*>(sums + (p.tokens + kGroup) * kColumns) : static_cast<Note*>(rest);
    barriers = reinterpret_cast<uint64_t*>(notes + 2 * p.x_stages);
    order = barriers + 2 * (p.stages + p.x_stages);
    kept = order + 8;
    seen = kept + 2;
    turn = reinterpret_cast<tdm::Turn*>(seen + 2);
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
  __device__ __forceinline__ uint32_t place_of(const Ring& ring) const {
    const uint32_t place = ring.slot + rotation;
    return place < ring.stages ? place : place - ring.stages;
  }
  __device__ __forceinline__ uint8_t* w_of(const Ring& ring) const {
    return w + place_of(ring) * TDM_MOE_FC2_GROUPED_W_BYTES;
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

  __device__ __forceinline__ Work(const tdm_moe_fc2_grouped_params& p, const tdm::Choices& chosen,
                                  const int32_t* of_segments)
      : choices(chosen), bounds(of_segments), segments(p.segments),
        groups(static_cast<uint32_t>(of_segments[p.segments])), ranks(0), from(0), to(0) {
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
  /* The last unit's first groups, whole units, the first unit's last groups. Units are looked up again, not kept, for
   * registers are few. */
  template <class Body> __device__ __forceinline__ void each_piece(Body body) const {
    if (from >= to) return;
    uint32_t at, rest; /* of the whole units that are left, and their end */
    bool left_head, left_tail, one;
    {
      const Piece first = unit_of(from), last = unit_of(to - 1);
      const uint32_t begin = place(first.tile, first.begin), last_begin = place(last.tile, last.begin);
      const bool head = place(last.tile, last.end) > to, tail = begin < from;
      one = begin == last_begin;
      rest = head ? last_begin : to;
      at = tail ? place(first.tile, first.end) : from;
      left_head = head, left_tail = tail && !(head && one);
    }
    while (left_head || at < rest || left_tail) {
      const bool is_head = left_head, is_tail = !is_head && at >= rest;
      Piece piece = unit_of(is_head ? to - 1 : is_tail ? from : at);
      if (is_head) piece.end = static_cast<int32_t>(to - place(piece.tile, 0)), piece.last = false;
      if (is_tail || (is_head && one)) {
        const int32_t begin = static_cast<int32_t>(from - place(piece.tile, 0));
        piece.first = begin <= piece.begin, piece.begin = max(begin, piece.begin);
      }
      if (is_head)
        left_head = false;
      else if (is_tail)
        left_tail = false;
      else
        at = place(piece.tile, piece.end);
      piece.last_of_work = !left_head && at >= rest && !left_tail;
      body(piece);
    }
  }
  /* The last of each_piece, as far as its tile, its rank and its end go; there is one. */
  __device__ __forceinline__ Piece last_piece() const {
    Piece first = unit_of(from), last = unit_of(to - 1);
    const bool head = place(last.tile, last.end) > to, tail = place(first.tile, first.begin) < from;
    const uint32_t last_begin = place(last.tile, last.begin);
    const bool one = place(first.tile, first.begin) == last_begin;
    if (tail && !(head && one)) return first;
    if (head && !one) return unit_of(last_begin - 1);
    last.last = !head;
    return last;
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

/* By a thread. before_fill(place): in front of every stage. */
template <int kBlocks, int kGroup, class BeforeFill>
__device__ void load_weights(const tdm_moe_fc2_grouped_params& p, const Work& work, const Memory<kGroup>& shared,
                             Ring& ring, BeforeFill before_fill) {
  const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
  work.each_piece([&](const Piece& piece) {
    work.each_group(piece, kGroup, [&](int32_t index, int32_t, int32_t) {
      const uint64_t policy = work.choices.rows(index) <= kGroup ? once : often;
      const int32_t kb = work.choices.expert(index) * p.blocks;
      for (int32_t block = 0; block < p.blocks; block += kBlocks) {
        before_fill(shared.place_of(ring));
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

  /* await(index): by a lane, in front of the copies of its tokens of an expert. */
  template <class Await> __device__ __forceinline__ void gather(const Work& work, Await await) {
    work.each_piece([&](const Piece& piece) {
      work.each_group(piece, kGroup, [&](int32_t of_index, int32_t of_first, int32_t of_count) {
        if (sub == held) index = of_index, first = of_first, count = of_count, tile = piece.tile;
        if (++held == at_once) end_set(await);
      });
    });
    if (held > 0) end_set(await);
  }
  template <class Await> __device__ __forceinline__ void end_set(Await await) {
    if (turn == mine) {
      if (sub < held) await(index);
      __syncwarp();
      copy_set();
    }
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

/* What becomes of a piece's sums. A unit's are complete: a CTA that has whole tiles adds them to those of the segments
 * before; else segments of a tile meet in the workspace, and of those there a CTA's share is every work.ranks-th run of
 * eight tokens. What a CTA leaves of a unit the next one takes up. */
template <int kGroup> struct Ends {
  const tdm_moe_fc2_grouped_params& p;
  const Memory<kGroup>& shared;
  const Work& work;
  const int32_t rows; /* of the pass */

  /* Four columns of a token, then of the token `step` further. */
  struct Seat {
    int32_t column, token, step;
  };
  /* A thread's, of some that read and write whole rows. */
  __device__ static __forceinline__ Seat seat_of(uint32_t thread, int32_t threads) {
    constexpr uint32_t kAcross = kColumns / 4;
    return Seat{static_cast<int32_t>(thread % kAcross * 4), static_cast<int32_t>(thread / kAcross),
                threads / static_cast<int32_t>(kAcross)};
  }

  __device__ __forceinline__ bool whole_tiles() const {
    return p.counters == nullptr;
  }
  /* Whether consumers go on, the sums are in the workspace, and the finisher tells others of them. The work's last
   * piece is for the whole CTA. */
  __device__ __forceinline__ bool for_finisher(const Piece& piece) const {
    return !whole_tiles() && !piece.last_of_work && (!piece.last || work.ranks > 1);
  }
  __device__ __forceinline__ uint32_t* counter(const Piece& piece) const {
    return p.counters + 1 + gridDim.x + piece.tile;
  }

  __device__ __forceinline__ float4& sum_of(int32_t token, int32_t column) const {
    return *reinterpret_cast<float4*>(&shared.sums[Sums::place(token) ^ column]);
  }
  /* Sums in the workspace: of a CTA, then of the segments of each tile. A token is kColumns / 4 on. */
  __device__ __forceinline__ float4* partial(int64_t place, int32_t column) const {
    return reinterpret_cast<float4*>(p.partials + place * p.tokens * kColumns + column);
  }
  __device__ __forceinline__ int64_t place_of_tile(const Piece& piece) const {
    return whole_tiles() ? int64_t{blockIdx.x} * p.segments : gridDim.x + int64_t{piece.tile} * p.segments;
  }
  __device__ __forceinline__ int64_t place_of(const Piece& piece) const {
    return piece.last ? place_of_tile(piece) + piece.rank : int64_t{shared.turn->cta};
  }

  /* What one thread tells others when the piece's sums are in the workspace; answers what tdm::meet does. */
  __device__ __forceinline__ uint32_t tell(const Piece& piece) const {
    if (piece.last) return tdm::meet(counter(piece), piece.rank, work.ranks, piece.last_of_work);
    tdm::tell_next(p.counters, *shared.turn);
    return 0;
  }

  /* Whether the work's last piece is its tile's last, whose sums need not go to the workspace. */
  __device__ __forceinline__ bool comes_last() const {
    if (whole_tiles() || work.from >= work.to) return false;
    const Piece piece = work.last_piece();
    return piece.last && work.ranks > 1 && tdm::meets_nobody(counter(piece), piece.rank, work.ranks);
  }

  __device__ __forceinline__ void keep(int64_t place, const Seat& seat) const {
    constexpr int kAtOnce = 4;
    float4* const to = partial(place, seat.column);
    for (int32_t token = seat.token; token < rows; token += kAtOnce * seat.step) {
      float4 v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) v[i] = sum_of(min(token + i * seat.step, rows - 1), seat.column);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (token + i * seat.step < rows) __stcg(to + (token + i * seat.step) * (kColumns / 4), v[i]);
    }
  }

  /* Sums that the CTA before left; the thread's own are there then. */
  __device__ __forceinline__ void take_up(const Seat& seat) const {
    const float4* const from = partial(int64_t{shared.turn->cta} - 1, seat.column);
#pragma unroll 4
    for (int32_t token = seat.token; token < rows; token += seat.step)
      tdm::copy_async_16(&sum_of(token, seat.column), from + token * (kColumns / 4));
    tdm::copy_async_commit();
    tdm::copy_async_wait<0>();
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
  __device__ __forceinline__ void store_sums(const Piece& piece, const Seat& seat) const {
#pragma unroll 1
    for (int32_t token = seat.token; token < rows; token += seat.step)
      store(token, piece.tile * kColumns + seat.column, sum_of(token, seat.column));
  }

  /* Of the tokens of some shares the sum over the segments in the workspace; those of rank `own` are the CTA's sums.
   * kSegments and kAtOnce: what is asked for at a time. */
  template <int kSegments, int kAtOnce>
  __device__ __forceinline__ void combine(const Piece& piece, int32_t own, uint32_t shares, const Seat& seat) const {
    const float4* const parts = partial(place_of_tile(piece), seat.column);
    const int32_t next = p.tokens * (kColumns / 4), all = (1 << work.ranks) - 1;
    const bool every = (static_cast<int32_t>(shares) & all) == all;
    const int32_t n_shares = every ? 1 : work.ranks;
#pragma unroll 1
    for (int32_t share = 0; share < n_shares; ++share) {
      if (!every && (shares >> share & 1) == 0) continue;
      const auto token_of = [&](int32_t i) { return (i / 8 * n_shares + share) * 8 + i % 8; };
#pragma unroll 1
      for (int32_t at = seat.token; token_of(at) < rows; at += kAtOnce * seat.step) {
        float4 total[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) total[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
        for (int32_t first = 0; first < work.ranks; first += kSegments) {
          float4 v[kSegments][kAtOnce];
#pragma unroll
          for (int s = 0; s < kSegments; ++s) {
            const bool here = first + s == own;
            const float4* const its = parts + min(first + s, work.ranks - 1) * next;
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
              const int32_t token = token_of(at + i * seat.step);
              v[s][i] = total[i];
              if (!here && token < rows) v[s][i] = __ldcg(its + token * (kColumns / 4));
            }
          }
#pragma unroll
          for (int s = 0; s < kSegments; ++s) {
            if (first + s == work.ranks) break;
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
              const int32_t token = min(token_of(at + i * seat.step), rows - 1);
              if (first + s == own) v[s][i] = sum_of(token, seat.column);
              total[i].x += v[s][i].x, total[i].y += v[s][i].y, total[i].z += v[s][i].z, total[i].w += v[s][i].w;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int32_t token = token_of(at + i * seat.step);
          if (token < rows) store(token, piece.tile * kColumns + seat.column, total[i]);
        }
      }
    }
  }

  /* All threads, when all groups are done: the note that consumers waited for, if there was one, is set back, and the
   * last piece ended, whose unit waits for the tile's others. */
  __device__ __forceinline__ void end_work() const {
    if (threadIdx.x == 0 && !whole_tiles() && shared.turn->cta > 0) *tdm::note_for(p.counters, *shared.turn) = 0;
    Piece piece = work.last_piece();
    piece.last_of_work = true;
    const Seat mine = seat_of(threadIdx.x, static_cast<int32_t>(blockDim.x));
    if (piece.last && work.ranks == 1) return store_sums(piece, mine);
    uint32_t shares = ~tdm::kMeetingLeaves;
    if (*shared.flag != 0) {
      if (threadIdx.x == 0) *counter(piece) = 0;
    } else if (!whole_tiles()) {
      keep(place_of(piece), mine);
      __syncthreads();
      if (threadIdx.x == 0) *shared.flag = tell(piece);
      __syncthreads();
      shares = *shared.flag;
    }
    if (shares != 0) combine<1, 4>(piece, piece.rank, shares, mine);
    if (threadIdx.x == 0 && (shares & tdm::kMeetingLeaves) != 0) tdm::leave_meeting(counter(piece), work.ranks);
  }
};

/* A warp that tells others of pieces whose sums consumers have put into the workspace, and adds up units that nobody
 * waits for, so that the consumers go on. kept[] and seen[]: of every other piece, so that arrivals do not mix; no
 * consumer is two pieces ahead of it. */
template <int kGroup> __device__ void finish(const Ends<kGroup>& ends) {
  uint32_t n = 0;
  ends.work.each_piece([&](const Piece& piece) {
    if (!ends.for_finisher(piece)) return;
    tdm::mbarrier_wait(&ends.shared.kept[n % 2], n / 2 % 2);
    __syncwarp(); /* a lane that had not seen it yet would find the phase after next */
    uint32_t shares = 0;
    if (threadIdx.x % 32 == 0) {
      tdm::mbarrier_arrive(&ends.shared.seen[n % 2]);
      shares = ends.tell(piece);
    }
    ++n;
    __syncwarp();
    shares = __shfl_sync(~0u, shares, 0);
    if (shares == 0) return;
    ends.template combine<2, 4>(piece, -1, shares, Ends<kGroup>::seat_of(threadIdx.x % 32, 32));
    if (threadIdx.x % 32 == 0 && (shares & tdm::kMeetingLeaves) != 0)
      tdm::leave_meeting(ends.counter(piece), ends.work.ranks);
  });
}

/* Of a consumer, over all passes: whether the next group is its own, and the phase of its turn. Its rings are where its
 * own next group is. */
struct Order {
  bool own;
  uint32_t parity;
  uint32_t kept; /* pieces that went to the finisher */
};

/* A warpgroup that multiplies every other group. */
template <int kBlocks, int kGroup, int kFirst = 0> struct Consumer { /* kFirst: thread of the consumers */
  using Note = fc2::Note<kGroup>;
  const tdm_moe_fc2_grouped_params& p;
  const tdm_step_sync& sync;
  const Memory<kGroup>& shared;
  const Work& work;
  const Ends<kGroup>& ends;
  Ring& weights;
  Ring& tokens;
  Order& order;
  using Seat = typename Ends<kGroup>::Seat;

  __device__ static __forceinline__ int32_t lane() {
    return static_cast<int32_t>(threadIdx.x % 32);
  }
  /* The thread's columns are the warp's. */
  __device__ static __forceinline__ Seat seat() {
    return Seat{static_cast<int32_t>(threadIdx.x % 128 / 32) * 16 + 4 * (lane() % 4), lane() / 4, 8};
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

  __device__ static __forceinline__ float masked(float value, uint32_t mask) {
    return __uint_as_float(__float_as_uint(value) & mask);
  }

  /* The warp's turn at the sums of its columns: the other consumer's warp has had the group before. */
  __device__ __forceinline__ void await_turn() const {
    tdm::mbarrier_wait(&shared.order[(threadIdx.x - kFirst) / 32], order.parity);
    order.parity ^= 1;
  }
  __device__ __forceinline__ void pass_turn() const {
    tdm::mbarrier_arrive(&shared.order[(threadIdx.x - kFirst) / 32 ^ 4]);
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
      float new_alpha[kTokens], scales[kBlocks][kTokens];
      uint32_t weighs[kBlocks][kTokens]; /* all bits or none: the dense form passes over what has no weight */
      read(new_places, note.places + first_token);
      read(new_alpha, note.alpha + first_token);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        places[i] = first ? new_places[i] ^ first_column : places[i];
        alpha[i] = first ? new_alpha[i] : alpha[i];
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const float w_scale = note.w_scale[b];
        read(scales[b], note.scale[b] + first_token);
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          const float folded = scales[b][i] * alpha[i];
          weighs[b][i] = folded != 0.0f ? ~0u : 0;
          scales[b][i] = masked(folded * w_scale, weighs[b][i]);
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
          c[2 * i] = fmaf(scales[b][i], masked(acc[b][at], weighs[b][i]), c[2 * i]); /* no sum is -0: 0 changes none */
          c[2 * i + 1] = fmaf(scales[b][i], masked(acc[b][at + 2], weighs[b][i]), c[2 * i + 1]);
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

  /* The sums of the warp's columns. Every lane waits for the note by itself: with a barrier of the warpgroup here
   * racecheck reports what is none, and with a test for one lane the compiler does the scales before the products. */
  __device__ __forceinline__ void begin(const Piece& piece) const {
    const Seat mine = seat();
    if (piece.first) {
#pragma unroll 4
      for (int32_t token = mine.token; token < ends.rows; token += mine.step)
        ends.sum_of(token, mine.column) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    } else {
      tdm::await_note(tdm::note_for(p.counters, *shared.turn), *shared.turn, sync);
      ends.take_up(mine);
    }
    __syncwarp();
  }
  /* By the warps one by one. */
  __device__ __forceinline__ void end(const Piece& piece) const {
    __syncwarp();
    if (piece.last_of_work) return;
    if (piece.last && work.ranks == 1) return ends.store_sums(piece, seat());
    ends.keep(ends.place_of(piece), seat());
    if (ends.whole_tiles()) return;
    __syncwarp();
    if (lane() == 0) {
      tdm::mbarrier_wait(&shared.seen[order.kept % 2], order.kept / 2 % 2 ^ 1);
      tdm::mbarrier_arrive(&shared.kept[order.kept % 2]);
    }
  }

  __device__ void multiply() const {
    const uint32_t stages = static_cast<uint32_t>(p.blocks / kBlocks);
    work.each_piece([&](const Piece& piece) {
      for (int32_t group = piece.begin + (order.own ? 0 : 1); group < piece.end; group += 2) {
        add_group(piece, group == piece.begin, group + 1 == piece.end);
        weights.advance_by(stages);
        tokens.advance_by(stages);
      }
      order.own ^= (piece.end - piece.begin) % 2 != 0;
      order.kept += ends.for_finisher(piece) ? 1u : 0u;
    });
  }

  /* Of a tile, where nobody chose anything. */
  __device__ void store_nothing(int32_t tile) const {
    for (int32_t token = seat().token; token < ends.rows; token += seat().step)
      ends.store(token, tile * kColumns + seat().column, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
  }
};

} // namespace tdm::fc2

#endif

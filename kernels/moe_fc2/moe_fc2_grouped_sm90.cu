/* FC2 with routing weights for sm_90a, of each expert for the tokens alone that chose it, FP8.
 *
 * 1. A CTA has 128 columns of the output and a segment of the experts, and keeps the sums of up to kTokens tokens in
 * shared memory. It goes through the experts that somebody chose, ascending, a group of up to 32 of their tokens at a
 * time, and reads each expert's weights once for each group.
 * 2. Producers: a thread asks for weights, one block of 128 along K a stage, by TMA; warps gather the tokens' rows,
 * scales and routing weights by plain asynchronous copies (device/choices.cuh).
 * 3. Consumers: each of two warpgroups has 64 columns. A token's sum comes to registers, takes the expert's blocks, and
 * goes back: the same operations in the same order as in the dense form, so the same bits. A warp owns its 16 columns
 * of all tokens' sums, so that one group follows the other without a barrier.
 * 4. Segments are those of the dense form. Their partials meet in the workspace, and each adds up its share of the
 * tokens, segments ascending.
 *
 *   warpgroup 0   thread 0: weights          stage:  w      [128][128] e4m3, swizzled     sums  [kTokens][128] f32
 *                 warps 1 to 3: tokens                    x      [32][128] e4m3, swizzled
 *   warpgroup 1   columns  0..63                     note   scales, weights and rows of 32 tokens
 *   warpgroup 2   columns 64..127
 *
 * Block: 384 threads. Limit: device bandwidth on w2 of the experts that were chosen. */

#include "kernels/device/choices.cuh"
#include "kernels/moe_fc2/moe_fc2_grouped_params.h"

namespace {

constexpr int kGroup = TDM_CHOICES_GROUP, kGatherers = TDM_MOE_FC2_GATHERERS;

/* What consumers read of a stage besides the tiles; rows and alpha with an expert's first block alone. */
struct Note {
  float scale[kGroup];
  float alpha[kGroup];
  int32_t rows[kGroup]; /* of the CTA's tokens; -1: none */
  float w_scale;
  int32_t padding[3];
};
static_assert(sizeof(Note) == TDM_MOE_FC2_GROUPED_NOTE_BYTES, "launch size");

template <int kTokens, int kStages> struct Shared {
  alignas(1024) uint8_t w[kStages][128 * 128];
  alignas(1024) uint8_t x[kStages][kGroup * 128];
  alignas(16) float sums[kTokens * 128];
  Note notes[2][kStages]; /* twice: device/gemm.cuh, Ring */
  int32_t gathered[kGatherers][kGroup];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint32_t flag;
};

template <int kTokens, int kStages> struct MoeFc2Grouped {
  using Memory = Shared<kTokens, kStages>;
  static_assert(sizeof(Memory) == TDM_MOE_FC2_GROUPED_SHARED(kTokens, kStages), "launch size");
  using Ring = tdm::Ring<kStages>;
  using Gathering = tdm::Gathering<kStages, true>;
  static constexpr uint32_t kBothConsumers = 1;

  /* Rows from a multiple of kTokens on, columns of a tile, experts of a segment. */
  struct Work {
    int32_t first_row, rows;
    int32_t tile, segment;
    int64_t meeting;    /* where the segments of these sums meet */
    int32_t begin, end; /* of the list of choices */
  };

  /* Calls body(index, first, count) for each group: an expert of the list, tokens first .. first + count - 1 of those
   * that chose it. A group takes p.blocks stages. */
  template <class Body>
  __device__ static __forceinline__ void each_group(const tdm::Choices& choices, const Work& work, Body body) {
    for (int32_t index = work.begin; index < work.end; ++index) {
      const int32_t rows = choices.rows(index);
      for (int32_t first = 0; first < rows; first += kGroup) body(index, first, min(rows - first, kGroup));
    }
  }

  __device__ static void load_weights(const tdm_moe_fc2_grouped_params& p, const tdm::Choices& choices,
                                      const Work& work, Memory& shared, Ring& ring) {
    const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
    each_group(choices, work, [&](int32_t index, int32_t, int32_t) {
      const uint64_t policy = choices.rows(index) <= kGroup ? once : often;
      const int32_t kb = choices.expert(index) * p.blocks;
      tdm::load_in_pairs(ring, shared.full, shared.empty, 128 * 128, kb, kb + p.blocks, [&](uint32_t slot, int32_t at) {
        tdm::tma_load_3d(shared.w[slot], &p.w, &shared.full[slot], policy, 0, work.tile * 128, at);
      });
    });
  }

  /* A warp, one of some that take groups in turn: 16 bytes of a row a lane, four rows at a time; lane r has the scale
   * and the weight of token r. From a group to its next one a warp goes no further than once around the ring: two
   * rounds ahead the parity of empty[] is the same as now. */
  __device__ static void gather_tokens(const tdm_moe_fc2_grouped_params& p, const tdm::Choices& choices,
                                       const Work& work, Memory& shared, Gathering& gathering) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32), mine = static_cast<int32_t>(threadIdx.x / 32) - 1;
    const uint32_t piece = threadIdx.x % 8;
    const float* const w_scale = p.w_scale + work.tile * p.w_scale_stride;
    const int32_t gatherers = min(kGatherers, 1 + (kStages - 1) / p.blocks);
    if (mine >= gatherers) return;
    int32_t* const gathered = shared.gathered[mine];
    int32_t turn = 0;
    each_group(choices, work, [&](int32_t index, int32_t first, int32_t count) {
      if (turn++ % gatherers != mine) {
        gathering.ring.advance_by(static_cast<uint32_t>(p.blocks));
        return;
      }
      const int32_t expert = choices.expert(index);
      __syncwarp();
      choices.place_rows(index, first, kGroup, gathered);
      __syncwarp();
      uint32_t from[kGroup / 4];
#pragma unroll
      for (int i = 0; i < kGroup / 4; ++i) {
        const int32_t token = 4 * i + lane / 8;
        from[i] = token < count ? static_cast<uint32_t>(gathered[token] * p.x_stride) + piece * 16 : 0;
      }
      const int32_t row = lane < count ? gathered[lane] : -1;
      for (int32_t block = 0; block < p.blocks; ++block) {
        const int32_t kb = expert * p.blocks + block;
        gathering.begin(shared.empty);
        const Ring& at = gathering.ring;
        const uint8_t* x = p.x + int64_t{kb} * 128;
#pragma unroll
        for (int i = 0; i < kGroup / 4; ++i) {
          const int32_t token = 4 * i + lane / 8;
          if (token < count)
            tdm::copy_async_16(shared.x[at.slot] + tdm::swizzled(static_cast<uint32_t>(token), piece), x + from[i]);
        }
        Note& note = shared.notes[at.parity][at.slot];
        if (row >= 0) tdm::copy_async_4(&note.scale[lane], p.x_scale + kb * p.x_scale_stride + row);
        if (lane == 0) tdm::copy_async_4(&note.w_scale, w_scale + kb);
        if (block == 0) {
          note.rows[lane] = row < 0 ? -1 : row - work.first_row;
          if (row < 0 || p.alpha == nullptr)
            note.alpha[lane] = 1.0f;
          else
            tdm::copy_async_4(&note.alpha[lane], p.alpha + row * p.alpha_stride + expert);
        }
        gathering.end(shared.full);
      }
    });
  }

  __device__ static void multiply(const tdm_moe_fc2_grouped_params& p, const tdm::Choices& choices, const Work& work,
                                  Memory& shared, Ring& ring, uint32_t consumer) {
    each_group(choices, work, [&](int32_t, int32_t, int32_t count) {
      if (count <= 8)
        add_group<8>(p, shared, ring, count, consumer);
      else
        add_group<kGroup>(p, shared, ring, count, consumer);
    });
  }

  /* An expert's blocks for a group of `count` tokens, kN at most; two products are under way. Sums of a thread: of
   * tokens 8 i + 2 (lane % 4) and the next, of columns lane / 4 and 8 further of the warp's 16. Elements lie at
   * [token][column ^ 8 (token % 4)], against bank conflicts. */
  template <int kN>
  __device__ static __forceinline__ void add_group(const tdm_moe_fc2_grouped_params& p, Memory& shared, Ring& ring,
                                                   int32_t count, uint32_t consumer) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    const int32_t column = static_cast<int32_t>(64 * consumer + 16 * warp + lane / 4);
    const auto token_of = [&](int i) { return 8 * (i / 2) + static_cast<int32_t>(2 * (lane % 4)) + i % 2; };
    int32_t places[kN / 4]; /* -1: no token */
    float weights[kN / 4], c[kN / 2], even[kN / 2], odd[kN / 2];
    Ring asked = ring;
    const auto issue = [&](float(&acc)[kN / 2]) {
      tdm::mbarrier_wait(&shared.full[asked.slot], asked.parity);
      tdm::fence_async_shared();
      const uint64_t w = tdm::wgmma_descriptor(shared.w[asked.slot] + consumer * 64 * 128);
      const uint64_t x = tdm::wgmma_descriptor(shared.x[asked.slot]);
      tdm::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) tdm::wgmma_e4m3<kN>::issue(acc, w + 2 * k, x + 2 * k, k != 0);
      tdm::wgmma_commit();
      asked.advance();
    };
    const auto finish = [&](auto pending, float(&acc)[kN / 2]) {
      const Note& note = shared.notes[ring.parity][ring.slot];
      const float w_scale = note.w_scale;
      float scales[kN / 4];
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) scales[i] = note.scale[token_of(i)];
      tdm::wgmma_wait<decltype(pending)::value>();
      tdm::wgmma_settle(acc);
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) {
        if (8 * (i / 2) >= count) continue;
        const float folded = scales[i] * weights[i], scale = folded * w_scale;
        const int first = 4 * (i / 2) + i % 2;
        if (folded != 0.0f) { /* as the dense form passes over what has no weight */
          c[first] = fmaf(scale, acc[first], c[first]);
          c[first + 2] = fmaf(scale, acc[first + 2], c[first + 2]);
        }
      }
      __syncwarp();
      if (lane == 0) tdm::mbarrier_arrive(&shared.empty[ring.slot]);
      ring.advance();
    };
    issue(even);
    const Note& note = shared.notes[ring.parity][ring.slot];
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int32_t row = note.rows[token_of(i)];
      places[i] = row < 0 ? -1 : row * 128 + (column ^ 8 * (row % 4));
      weights[i] = note.alpha[token_of(i)];
      const int first = 4 * (i / 2) + i % 2;
      c[first] = row < 0 ? 0.0f : shared.sums[places[i]];
      c[first + 2] = row < 0 ? 0.0f : shared.sums[places[i] ^ 8];
    }
    using One = tdm::Constant<1>;
    using None = tdm::Constant<0>;
    int32_t block = 1;
    for (; block + 1 < p.blocks; block += 2) {
      issue(odd);
      finish(One(), even);
      issue(even);
      finish(One(), odd);
    }
    if (block < p.blocks) {
      issue(odd);
      finish(One(), even);
      finish(None(), odd);
    } else {
      finish(None(), even);
    }
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int first = 4 * (i / 2) + i % 2;
      if (places[i] < 0) continue;
      shared.sums[places[i]] = c[first];
      shared.sums[places[i] ^ 8] = c[first + 2];
    }
    __syncwarp(); /* another lane of this warp may have the token next */
  }

  /* Four columns of a token's sum. */
  __device__ static __forceinline__ float4 sum_of(const Memory& shared, int32_t token, int32_t column) {
    return *reinterpret_cast<const float4*>(&shared.sums[token * 128 + (column ^ 8 * (token % 4))]);
  }

  __device__ static __forceinline__ void store(const tdm_moe_fc2_grouped_params& p, int32_t m, int32_t column,
                                               float4 sum) {
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

  /* Both consumers, whose sums are complete: a warp a token. */
  __device__ static void finish(const tdm_moe_fc2_grouped_params& p, const Work& work, Memory& shared, bool one_wave) {
    constexpr int32_t kWarps = 8, kAtOnce = 8;
    const int32_t thread = static_cast<int32_t>(threadIdx.x) - 128, warp = thread / 32, lane = thread % 32;
    const int32_t column = work.tile * 128 + 4 * lane;
    tdm::named_barrier_sync(kBothConsumers, 256);
    if (p.segments == 1) {
      for (int32_t token = warp; token < work.rows; token += kWarps)
        store(p, work.first_row + token, column, sum_of(shared, token, 4 * lane));
      return;
    }
    constexpr int64_t kPartial = int64_t{kTokens} * 128;
    float* const partials = p.partials + work.meeting * p.segments * kPartial + 4 * lane;
    for (int32_t token = warp; token < work.rows; token += kWarps)
      __stcg(reinterpret_cast<float4*>(partials + work.segment * kPartial + token * 128),
             sum_of(shared, token, 4 * lane));
    __threadfence();
    tdm::named_barrier_sync(kBothConsumers, 256);
    if (thread == 0) {
      shared.flag = tdm::meet(p.counters + work.meeting, work.segment, p.segments, one_wave);
      __threadfence();
    }
    tdm::named_barrier_sync(kBothConsumers, 256);
    const uint32_t shares = shared.flag;
    for (int32_t share = 0; share < p.segments; ++share) {
      if ((shares >> share & 1) == 0) continue;
      for (int32_t base = share + p.segments * warp; base < work.rows; base += p.segments * kWarps * kAtOnce) {
        float4 total[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) total[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int32_t s = 0; s < p.segments; ++s) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const int32_t token = base + i * p.segments * kWarps;
            if (token >= work.rows) continue;
            const float4 v = __ldcg(reinterpret_cast<const float4*>(partials + s * kPartial + token * 128));
            total[i].x += v.x, total[i].y += v.y, total[i].z += v.z, total[i].w += v.w;
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int32_t token = base + i * p.segments * kWarps;
          if (token < work.rows) store(p, work.first_row + token, column, total[i]);
        }
      }
    }
    if (thread == 0 && (shares & tdm::kMeetingLeaves) != 0) tdm::leave_meeting(p.counters + work.meeting, p.segments);
  }

  __device__ static void run(const tdm_moe_fc2_grouped_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    tdm::step_enter(sync);
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        tdm::mbarrier_init(&shared.full[i], 1 + Gathering::kArrivals);
        tdm::mbarrier_init(&shared.empty[i], 8);
      }
      tdm::fence_barrier_init();
      tdm::tma_prefetch_map(&p.w);
    }
    __syncthreads();
    tdm::step_wait(sync);
    const int32_t live = tdm::live_rows(p.n_tokens, p.m);
    const int32_t m_tiles = (live + kTokens - 1) / kTokens, all_m_tiles = (p.m + kTokens - 1) / kTokens;
    const int32_t n_tiles = (p.n + 127) / 128, units = m_tiles * n_tiles * p.segments;
    const bool one_wave = units <= static_cast<int32_t>(gridDim.x);
    Ring ring;
    Gathering gathering;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < units; u += static_cast<int32_t>(gridDim.x)) {
      const tdm::Unit unit = tdm::unit_at(u, m_tiles, p.segments, n_tiles);
      Work work;
      work.first_row = unit.m_tile * kTokens;
      work.rows = min(live - work.first_row, kTokens);
      work.tile = unit.n_tile;
      work.segment = unit.segment;
      work.meeting = int64_t{unit.n_tile} * all_m_tiles + unit.m_tile;
      const tdm::Choices choices = tdm::load_choices(memory + sizeof(Memory), p.choices, p.n_experts, min(p.m, kTokens),
                                                     work.first_row, live, kGroup);
      work.begin = choices.below(tdm::segment_begin(unit.segment, p.segments, p.n_experts, 1));
      work.end = choices.below(tdm::segment_begin(unit.segment + 1, p.segments, p.n_experts, 1));
      if (threadIdx.x >= 128) {
        for (int32_t i = static_cast<int32_t>(threadIdx.x) - 128; i < work.rows * 32; i += 256)
          reinterpret_cast<float4*>(shared.sums)[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        tdm::named_barrier_sync(kBothConsumers, 256);
        multiply(p, choices, work, shared, ring, threadIdx.x / 128 - 1);
        finish(p, work, shared, one_wave);
      } else if (threadIdx.x == 0) {
        load_weights(p, choices, work, shared, ring);
      } else if (threadIdx.x / 32 - 1 < kGatherers) {
        gather_tokens(p, choices, work, shared, gathering);
      }
      __syncthreads();
    }
    tdm::step_end(sync);
  }
};

} // namespace

#define GROUPED(tokens, stages)                                                                                        \
  extern "C" __global__ void __launch_bounds__(TDM_MOE_FC2_GROUPED_THREADS, 1) tdm_moe_fc2_grouped_t##tokens##_sm90(   \
      const __grid_constant__ tdm_moe_fc2_grouped_params p, const __grid_constant__ tdm_step_sync sync) {              \
    MoeFc2Grouped<tokens, stages>::run(p, sync);                                                                       \
  }
#include "kernels/moe_fc2/moe_fc2_grouped_variants.inc"

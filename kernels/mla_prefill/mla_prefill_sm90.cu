/* Causal MLA attention over new tokens, expanded form, for sm_90a.
 *
 * 1. A unit is a head and 128 consecutive queries of a sequence of kind EXPANDED; persistent CTAs walk the units.
 * 2. Producer: one lane brings the queries, then keys and values, 64 tokens at a time, up to the last query's own.
 * 3. Consumers: each warpgroup has 64 queries: scores over 128 + 64 values, online softmax in f32, probabilities
 * rounded to bf16 from registers into the product with the 128 value columns, which the tensor cores transpose.
 * 4. Rows past the sequence's end are other tokens, or NaN: zeroed in shared memory before use. On the diagonal the
 *    probability 0 of a later token would still meet its values: where those are not finite, the tile is added up
 * without the tensor cores.
 * 5. Division by the sum of the unrounded probabilities, one rounding, store. Rows of other sequences are not touched.
 *
 *   warpgroup 0 (producer)   warp 0, one lane: TMA
 *   warpgroup 1              queries  0 ..  63
 *   warpgroup 2              queries 64 .. 127
 *   q      3 x [128 queries][64] bf16, swizzled: nope, nope, rope
 *   stage  5 x [64 tokens][64] bf16, swizzled: k nope, k nope, k rope, v, v
 *
 * Grid: up to one CTA an SM; block: 384 threads. Limit: tensor cores and softmax, which a warpgroup does in turn. */

#include "kernels/device/elements.cuh"
#include "kernels/device/mbarrier.cuh"
#include "kernels/device/softmax.cuh"
#include "kernels/device/step.cuh"
#include "kernels/device/tma.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/mla_prefill/mla_prefill_params.h"

namespace {

constexpr int kStages = TDM_MLA_PREFILL_STAGES, kChunks = 5, kChunkBytes = 64 * 128;
constexpr int32_t kQueries = TDM_MLA_PREFILL_QUERIES, kExpanded = 2; /* TDM_SEQ_EXPANDED */

struct Shared {
  alignas(1024) uint8_t q[3][2 * kChunkBytes];
  alignas(1024) uint8_t keys[kStages][kChunks * kChunkBytes];
  float probabilities[8][16][64]; /* of a warp's queries, where the tensor cores are left out */
  uint32_t broken[2][4];          /* by warp of a warpgroup: it saw values that are not finite */
  uint64_t q_full;
  uint64_t q_empty;
  uint64_t full[kStages];
  uint64_t empty[kStages];
};
static_assert(sizeof(Shared) == TDM_MLA_PREFILL_SHARED, "launch size");

/* The units of this CTA, one after the other: u = blockIdx.x, + gridDim.x, ..., where heads vary fastest and query
 * blocks are numbered through the sequences. The cursor only moves forward. */
struct Walk {
  int32_t seqs, sequence = 0, first_block = 0, unit;
  int32_t begin, tokens, head,
      query0; /* of the current unit: first row and length of its sequence, first query in it */

  __device__ explicit Walk(const tdm_mla_prefill_params& p)
      : seqs(min(max(*p.n_seqs, 0), p.max_seqs)), unit(static_cast<int32_t>(blockIdx.x)) {
  }

  /* Moves to the next unit; false when there is none. */
  __device__ bool next(const tdm_mla_prefill_params& p) {
    const int32_t block = unit / p.heads;
    for (; sequence < seqs; ++sequence) {
      begin = p.seq_start[sequence];
      tokens = p.seq_kind[sequence] == kExpanded ? p.seq_start[sequence + 1] - begin : 0;
      const int32_t blocks = (tokens + kQueries - 1) / kQueries;
      if (block < first_block + blocks) {
        head = unit % p.heads;
        query0 = (block - first_block) * kQueries;
        unit += static_cast<int32_t>(gridDim.x);
        return true;
      }
      first_block += blocks;
    }
    return false;
  }

  __device__ int32_t keys() const {
    return min(query0 + kQueries, tokens);
  }
};

struct Stage {
  uint32_t slot = 0, parity = 0;
  __device__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ void load(const tdm_mla_prefill_params& p, Shared& shared) {
  const uint64_t once = tdm::l2_evict_first(), often = tdm::l2_evict_last();
  Stage stage;
  uint32_t q_parity = 1;
  for (Walk walk(p); walk.next(p);) {
    tdm::mbarrier_wait(&shared.q_empty, q_parity);
    q_parity ^= 1;
    tdm::mbarrier_arrive_expect(&shared.q_full, sizeof shared.q);
    const int32_t query = walk.begin + walk.query0;
    tdm::tma_load_3d(shared.q[0], &p.q_nope, &shared.q_full, once, 0, query, walk.head);
    tdm::tma_load_3d(shared.q[1], &p.q_nope, &shared.q_full, once, 64, query, walk.head);
    tdm::tma_load_3d(shared.q[2], &p.q_rope, &shared.q_full, once, 0, query, walk.head);
    for (int32_t key = 0; key < walk.keys(); key += 64) {
      tdm::mbarrier_wait(&shared.empty[stage.slot], stage.parity ^ 1);
      uint64_t* full = &shared.full[stage.slot];
      uint8_t* chunks = shared.keys[stage.slot];
      tdm::mbarrier_arrive_expect(full, kChunks * kChunkBytes);
      tdm::tma_load_3d(chunks, &p.kv, full, often, 0, walk.begin + key, walk.head);
      tdm::tma_load_3d(chunks + kChunkBytes, &p.kv, full, often, 64, walk.begin + key, walk.head);
      tdm::tma_load_2d(chunks + 2 * kChunkBytes, &p.k_rope, full, often, 0, walk.begin + key);
      tdm::tma_load_3d(chunks + 3 * kChunkBytes, &p.kv, full, often, 128, walk.begin + key, walk.head);
      tdm::tma_load_3d(chunks + 4 * kChunkBytes, &p.kv, full, often, 192, walk.begin + key, walk.head);
      stage.advance();
    }
  }
}

/* Whether the stage's values hold NaN or infinity; the same answer for the whole warpgroup. */
__device__ bool values_broken(Shared& shared, const uint8_t* values, uint32_t consumer) {
  const uint32_t thread = threadIdx.x % 128;
  bool broken = false;
  for (uint32_t i = thread; i < 2 * kChunkBytes / 16; i += 128) {
    const uint4 v = *reinterpret_cast<const uint4*>(values + 16 * i);
#pragma unroll
    for (const uint32_t pair : {v.x, v.y, v.z, v.w})
      broken |= (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
  }
  broken = __any_sync(~0u, broken);
  if (thread % 32 == 0) shared.broken[consumer][thread / 32] = broken;
  tdm::named_barrier_sync(2 + consumer, 128);
  const uint32_t* flags = shared.broken[consumer];
  broken = (flags[0] | flags[1] | flags[2] | flags[3]) != 0;
  tdm::named_barrier_sync(2 + consumer, 128);
  return broken;
}

/* o += p v over the keys below each row's limit. s: probabilities as the softmax leaves them. */
__device__ void add_values_slowly(Shared& shared, float (&o)[64], const float (&s)[32], const uint8_t* values,
                                  const int32_t (&limit)[2]) {
  const uint32_t lane = threadIdx.x % 32, column = 2 * (lane % 4);
  float(&mine)[16][64] = shared.probabilities[threadIdx.x / 32 - 4];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 32; ++i)
    mine[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + column + i % 2] = tdm::round_element(s[i], TDM_KERNEL_BF16);
  __syncwarp();
#pragma unroll 1
  for (int32_t key = 0; key < 64; ++key) {
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const int half = i / 2 % 2;
      if (key >= limit[half]) continue;
      const uint32_t d = 8 * (i / 4) + column;
      const uint32_t chunk = d / 64, byte = d % 64 * 2 ^ key % 8 * 16;
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(values + chunk * kChunkBytes + key * 128 + byte);
      o[i] = fmaf(mine[lane / 4 + 8 * half][key], tdm::bf16_low(pair), o[i]);
      o[i + 1] = fmaf(mine[lane / 4 + 8 * half][key], tdm::bf16_high(pair), o[i + 1]);
    }
  }
}

__device__ void store(const tdm_mla_prefill_params& p, const Walk& walk, const float (&o)[64], const float (&sum)[2],
                      int32_t query) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (query + 8 * half >= walk.tokens) continue;
    const int64_t start =
        (walk.begin + query + 8 * half) * p.out_stride + walk.head * p.out_head_stride + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float first = __fdiv_rn(o[4 * i + 2 * half], sum[half]),
                  second = __fdiv_rn(o[4 * i + 2 * half + 1], sum[half]);
      if (p.out_dtype == TDM_KERNEL_BF16 && start % 2 == 0) {
        *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p.out) + start + 8 * i) = tdm::bf16x2(first, second);
      } else {
        tdm::store_element(p.out, p.out_dtype, start + 8 * i, first);
        tdm::store_element(p.out, p.out_dtype, start + 8 * i + 1, second);
      }
    }
  }
}

__device__ void attend(const tdm_mla_prefill_params& p, Shared& shared, uint32_t consumer) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  Stage stage;
  uint32_t q_parity = 0;
  for (Walk walk(p); walk.next(p);) {
    const int32_t query = walk.query0 + static_cast<int32_t>(64 * consumer + 16 * warp + lane / 4);
    float o[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] = 0.0f;
    tdm::Softmax softmax;
    tdm::mbarrier_wait(&shared.q_full, q_parity);
    q_parity ^= 1;
    const int32_t keys = walk.keys();
    for (int32_t key = 0; key < keys; key += 64) {
      tdm::mbarrier_wait(&shared.full[stage.slot], stage.parity);
      uint8_t* chunks = shared.keys[stage.slot];
      if (keys - key < 64) {
        tdm::clear_rows<kChunks, 256>(chunks, keys - key, static_cast<int32_t>(threadIdx.x) - 128);
        tdm::fence_async_shared();
        tdm::named_barrier_sync(1, 256);
      }
      const int32_t first_query = walk.query0 + 64 * static_cast<int32_t>(consumer);
      if (key >= first_query + 64) { /* all of it comes later */
        if (lane == 0) tdm::mbarrier_arrive(&shared.empty[stage.slot]);
        stage.advance();
        continue;
      }

      float s[32];
      tdm::wgmma_fence();
#pragma unroll
      for (int chunk = 0; chunk < 3; ++chunk) {
        const uint64_t a = tdm::wgmma_descriptor(shared.q[chunk] + consumer * kChunkBytes);
        const uint64_t b = tdm::wgmma_descriptor(chunks + chunk * kChunkBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) tdm::wgmma_bf16<64>::issue<0>(s, a + 2 * k, b + 2 * k, chunk + k != 0);
      }
      tdm::wgmma_commit();
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(s);

      float factor[2];
      const int32_t limit[2] = {query - key + 1, query + 8 - key + 1};
      if (softmax.add(s, factor, p.log2_scale, limit)) {
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] *= factor[i / 2 % 2];
      }
      const uint8_t* v = chunks + 3 * kChunkBytes;
      if (key + 63 > first_query && values_broken(shared, v, consumer)) {
        add_values_slowly(shared, o, s, v, limit);
        __syncwarp();
        if (lane == 0) tdm::mbarrier_arrive(&shared.empty[stage.slot]);
        stage.advance();
        continue;
      }
      uint32_t probabilities[4][4];
      tdm::pack_probabilities(probabilities, s);
      const uint64_t values = tdm::wgmma_descriptor(v, kChunkBytes);
      tdm::wgmma_settle(o);
      tdm::wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) tdm::wgmma_bf16_registers_n128(o, probabilities[k], values + 128 * k, 1);
      tdm::wgmma_commit();
      tdm::wgmma_wait<0>();
      tdm::wgmma_settle(o);
      if (lane == 0) tdm::mbarrier_arrive(&shared.empty[stage.slot]);
      stage.advance();
    }
    if (lane == 0) tdm::mbarrier_arrive(&shared.q_empty);
    softmax.finish();
    store(p, walk, o, softmax.sum, query);
  }
}

} // namespace

extern "C" __global__ void __launch_bounds__(TDM_MLA_PREFILL_THREADS, 1)
    tdm_mla_prefill_sm90(const __grid_constant__ tdm_mla_prefill_params p, const __grid_constant__ tdm_step_sync sync) {
  TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    tdm::mbarrier_init(&shared.q_full, 1);
    tdm::mbarrier_init(&shared.q_empty, 8);
    for (int i = 0; i < kStages; ++i) {
      tdm::mbarrier_init(&shared.full[i], 1);
      tdm::mbarrier_init(&shared.empty[i], 8);
    }
    tdm::fence_barrier_init();
  }
  __syncthreads();
  tdm::step_begin(sync);
  if (threadIdx.x < 128) {
    tdm::registers_lower<40>();
    if (threadIdx.x == 0) load(p, shared);
  } else {
    tdm::registers_raise<232>();
    attend(p, shared, threadIdx.x / 128 - 1);
  }
  tdm::step_end(sync);
}

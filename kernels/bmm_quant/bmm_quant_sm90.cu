/* BF16 BMM with FP8 quantisation for sm_90a: the values of all heads out of the latent space, as the output projection
 * wants them.
 *
 * 1. Persistent CTAs walk the units: 128 columns of a batch x kTokens, columns fastest, so that a CTA's first unit has
 * the same weights whatever the number of live tokens. gridDim.x is the SM budget.
 * 2. Producer and products are those of gemm_bf16 (gemm_bf16.cuh) with 128 weight rows a tile: each of two warpgroups
 * has 64 of them. K is not cut, so that values have the bits of a gemm_bf16 that does not cut it either.
 * 3. Epilogue: values are rounded to bf16 and go through shared memory to rows of tokens; half a warp then has the 128
 * columns of a token and does with them what quant does. Scale columns from the live count to the next multiple of 4
 * become zero.
 * 4. Rows from the live count on are not stored; tiles without live rows are not computed.
 *
 * Block: 384 threads. Shared: the ring, and in place of gemm_bf16's staging [32 tokens][128] bf16, 16 bytes of padding
 * a row. Limit: latency where heads are few; device bandwidth on the weights and the activations where they are many.
 */

#include "kernels/bmm_quant/bmm_quant_params.h"
#include "kernels/gemm_bf16/gemm_bf16.cuh"

namespace {

template <int kTokens, int kStages> struct BmmQuant {
  using Gemm = tdm::GemmBf16<128, kTokens, kStages, false>;
  using Memory = typename Gemm::Shared;
  static constexpr uint32_t kBothConsumers = 1; /* a named barrier */
  static constexpr int kPass = TDM_GEMM_BF16_STAGED_ROWS(kTokens), kRowBytes = 128 * 2 + 16;
  static_assert(kPass * kRowBytes <= sizeof(Memory::staged) && kPass % 16 == 0, "tokens of a pass");

  struct Walk {
    const tdm_gemm_bf16_params& p;
    int32_t live, m_tiles, n_tiles, columns, units;

    __device__ Walk(const tdm_gemm_bf16_params& params, int32_t live_tokens)
        : p(params), live(live_tokens), m_tiles((live + kTokens - 1) / kTokens), n_tiles(p.n / 128),
          columns(n_tiles * p.batch), units(m_tiles * columns) {
    }
    __device__ tdm::Unit at(int32_t index) const {
      const int32_t column = index % columns;
      return tdm::Unit{index / columns, column % n_tiles, 0, column / n_tiles};
    }
    __device__ int32_t begin(const tdm::Unit&) const {
      return 0;
    }
    __device__ int32_t end(const tdm::Unit&) const {
      return p.k_blocks;
    }
  };

  __device__ static void load_weights(const tdm_gemm_bf16_params& p, Memory& shared, const tdm_step_sync& sync) {
    const uint64_t once = tdm::l2_evict_first();
    const auto live = [&] { return tdm::live_rows(p.n_tokens, p.m); };
    const Walk most(p, p.m);
    /* The live count then decides no more than whether this CTA has anything to do. */
    const bool ahead = sync.fetches_ahead != 0 && (most.m_tiles == 1 || most.units <= static_cast<int32_t>(gridDim.x));
    if (!ahead) tdm::step_wait(sync);
    const Walk walk(p, ahead ? p.m : live());
    tdm::fill_weights<kStages, 2>(
        sync, ahead, walk, [&] { return Walk(p, live()).units - static_cast<int32_t>(blockIdx.x); }, shared.full,
        shared.empty, 2 * 128 * 128,
        [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
          Gemm::copy_weights(p, shared, unit, kb, at.slot, once);
        });
  }

  __device__ static void load_tokens(const tdm_gemm_bf16_params& p, Memory& shared) {
    const uint64_t often = tdm::l2_evict_last();
    const Walk walk(p, tdm::live_rows(p.n_tokens, p.m));
    tdm::fill_stages<kStages, 2>(walk, shared.full, shared.empty, 2 * 128 * kTokens,
                                 [&](const tdm::Unit& unit, int32_t kb, const auto& at) {
                                   Gemm::copy_tokens(p, shared, unit, kb, at.slot, often);
                                   return true;
                                 });
  }

  __device__ static void multiply(const tdm_bmm_quant_params& p, Memory& shared, uint32_t consumer) {
    const Walk walk(p.gemm, tdm::live_rows(p.gemm.n_tokens, p.gemm.m));
    tdm::Ring<kStages> ring;
    for (int32_t u = static_cast<int32_t>(blockIdx.x); u < walk.units; u += static_cast<int32_t>(gridDim.x)) {
      const tdm::Unit unit = walk.at(u);
      float c[kTokens / 2];
      Gemm::accumulate(shared, ring, c, walk.begin(unit), walk.end(unit), consumer * 64 * 128);
      store(p, shared, c, walk, unit, consumer);
    }
  }

  __device__ static __forceinline__ void store(const tdm_bmm_quant_params& p, Memory& shared,
                                               const float (&c)[kTokens / 2], const Walk& walk, const tdm::Unit& unit,
                                               uint32_t consumer) {
    const uint32_t thread = threadIdx.x - 128, lane = thread % 32, warp = thread % 128 / 32;
    const int32_t padded = (walk.live + 3) / 4 * 4;
    uint8_t* const staged = shared.staged[0];
    uint8_t* const out = static_cast<uint8_t*>(p.gemm.out) + unit.batch * p.gemm.out_batch_stride + unit.n_tile * 128;
    float* const out_scale = p.out_scale + (unit.batch * walk.n_tiles + unit.n_tile) * p.out_scale_stride;
#pragma unroll
    for (int pass = 0; pass < kTokens / kPass; ++pass) {
      const int32_t m0 = unit.m_tile * kTokens + pass * kPass;
      if (m0 >= walk.live) break;
      tdm::named_barrier_sync(kBothConsumers, 256); /* the rows of the pass before have been read */
#pragma unroll
      for (int group = 0; group < kPass / 8; ++group) {
        const int i = 4 * (pass * (kPass / 8) + group);
        uint8_t* row =
            staged + (8 * group + lane % 8) * kRowBytes + (64 * consumer + 16 * warp + 8 * (lane / 8 % 2)) * 2;
        tdm::stmatrix_x2_transposed(row, tdm::bf16x2(c[i], c[i + 1]), tdm::bf16x2(c[i + 2], c[i + 3]));
      }
      tdm::named_barrier_sync(kBothConsumers, 256);
#pragma unroll
      for (uint32_t step = 0; step < kPass / 16; ++step) {
        const uint32_t row = thread / 16 + 16 * step, column = thread % 16 * 8;
        const int32_t m = m0 + static_cast<int32_t>(row);
        float v[8], scale;
        tdm::load_8(v, staged + row * kRowBytes, TDM_KERNEL_BF16, column, true);
        const uint2 bytes = tdm::quant_8(v, p.quant_eps, p.pow2_scale != 0, &scale);
        if (m < walk.live) tdm::store_bytes_8(out + m * p.gemm.out_stride + column, bytes, p.vectors != 0);
        if (m < padded && column == 0) out_scale[m] = m < walk.live ? scale : 0.0f;
      }
    }
  }

  __device__ static void run(const tdm_bmm_quant_params& p, const tdm_step_sync& sync) {
    TDM_DYNAMIC_SHARED(uint8_t, memory, 1024);
    Memory& shared = *reinterpret_cast<Memory*>(memory);
    Gemm::prepare(p.gemm, shared, sync);
    if (threadIdx.x < 128) {
      if (threadIdx.x == 0) load_weights(p.gemm, shared, sync);
      if (threadIdx.x == 32) {
        tdm::step_wait(sync);
        load_tokens(p.gemm, shared);
      }
    } else {
      tdm::step_wait(sync);
      multiply(p, shared, threadIdx.x / 128 - 1);
    }
    tdm::step_end(sync);
  }
};

} // namespace

/* Few registers, although shared memory holds but one of these CTAs: it can then begin on an SM beside CTAs of the step
 * before. */
#define BMM_QUANT(tokens, stages)                                                                                      \
  extern "C" __global__ void __launch_bounds__(TDM_GEMM_BF16_THREADS, (tokens) <= 64 ? 2 : 1)                          \
      tdm_bmm_quant_t##tokens##_sm90(const __grid_constant__ tdm_bmm_quant_params p,                                   \
                                     const __grid_constant__ tdm_step_sync sync) {                                     \
    BmmQuant<tokens, stages>::run(p, sync);                                                                            \
  }
#include "kernels/bmm_quant/bmm_quant_variants.inc"

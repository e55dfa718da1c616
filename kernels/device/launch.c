#include "kernels/device/launch.h"

#include <string.h>

_Static_assert(sizeof((tdm_plan*)0)->variant == sizeof((tdm_kernel_launch*)0)->kernel, "a variant is a kernel's name");

void tdm_plan_kernel(tdm_plan* plan, const tdm_kernel_launch* launch, int32_t splits, size_t scratch_bytes,
                     size_t state_bytes) {
  memcpy(plan->variant, launch->kernel, sizeof plan->variant);
  plan->splits = splits;
  plan->scratch_bytes = scratch_bytes;
  plan->state_bytes = state_bytes;
}

bool tdm_tensor_tile_valid(const tdm_tensor_tile* tile) {
  if ((uintptr_t)tile->data % 16 != 0) return false;
  for (uint32_t i = 0; i < tile->rank; i++)
    if (tile->dim[i] < 1 || tile->dim[i] > UINT32_MAX || tile->box[i] < 1 || tile->box[i] > 256) return false;
  for (uint32_t i = 0; i + 1 < tile->rank; i++)
    if (tile->stride_bytes[i] % 16 != 0 || tile->stride_bytes[i] >= UINT64_C(1) << 40) return false;
  return true;
}

tdm_prefetch tdm_prefetch_of(const tdm_view* view) {
  if (!tdm_view_present(view)) return (tdm_prefetch){.data = NULL};
  const int64_t element = (int64_t)tdm_dtype_bytes(view->dtype);
  return (tdm_prefetch){.data = tdm_view_data(view),
                        .stride = view->stride[0] * element,
                        .bytes = view->shape[1] * element,
                        .rows = (int32_t)view->shape[0]};
}

enum {
  REFERENCE_SMS = TDM_REFERENCE_SMS,
  MAX_SEGMENTS = 16,
  /* 64 rows by 128 bytes of weights, picoseconds: one SM's bulk copies at 57 GB/s, all SMs' at 4.5 TB/s
     (docs/peers.md). */
  SM_BLOCK_PS = 143700,
  DEVICE_BLOCK_PS = 1820,
  /* What a cut costs, fitted to q_a|kv_a (best at 4) and o (best uncut) at 1 .. 8 segments; H200, 2026-11-22: meeting
   * in the workspace, a bit for every segment that is read back, and the end of a unit in every wave. */
  SPLIT_PS = 600000,
  SEGMENT_PS = 100000,
  UNIT_PS = 700000
};

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int32_t tdm_gemm_segments(int64_t tiles, int64_t tile_rows, int64_t blocks, int64_t granule) {
  int64_t granules = ceil_div(blocks, granule), pieces = tile_rows / 64, best_cost = INT64_MAX;
  int32_t best = 1;
  for (int32_t segments = 1; segments <= MAX_SEGMENTS && segments <= granules; segments++) {
    int64_t waves = ceil_div(tiles * segments, REFERENCE_SMS);
    int64_t sm = waves * ceil_div(granules, segments) * granule * pieces * SM_BLOCK_PS;
    int64_t device = tiles * pieces * blocks * DEVICE_BLOCK_PS;
    int64_t cost = sm > device ? sm + device / 4 : device + sm / 4; /* they overlap, not quite */
    if (segments > 1) cost += SPLIT_PS + segments * SEGMENT_PS + waves * UNIT_PS;
    if (cost < best_cost) {
      best_cost = cost;
      best = segments;
    }
  }
  return best;
}

uint32_t tdm_gemm_shared_bytes(uint32_t needed, int64_t blocks) {
  const uint32_t more_than_half = 120 * 1024;
  return needed < more_than_half && blocks >= 40 ? more_than_half : needed;
}

int32_t tdm_gemm_token_tile(int64_t m) {
  static const int32_t tiles[] = {8, 16, 24, 32, 64};
  for (int i = 0; i < 5; i++)
    if (m <= tiles[i]) return tiles[i];
  return 128;
}

uint32_t tdm_gemm_loaded_rows(int64_t m, int32_t tile) {
  return (uint32_t)(m < tile ? (m + 7) / 8 * 8 : tile);
}

#include "runtime/workspace.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 256

/* When a block is used, lane by lane. */
typedef struct life {
  int32_t first[TDM_MAX_LANES]; /* step, -1: never */
  int32_t last[TDM_MAX_LANES];
  bool used;
} life;

/* Block in the order of placement. */
typedef struct placed {
  int32_t block;
  size_t bytes;
} placed;

static void collect_lives(const int32_t* lane_of, const tdm_use* uses, int64_t n_uses, life* lives, int32_t n_blocks) {
  for (int32_t block = 0; block < n_blocks; block++)
    for (int32_t lane = 0; lane < TDM_MAX_LANES; lane++) lives[block].first[lane] = lives[block].last[lane] = -1;
  for (int64_t i = 0; i < n_uses; i++) {
    if (uses[i].space < 0) continue;
    life* one = &lives[uses[i].space];
    const int32_t lane = lane_of[uses[i].step];
    if (one->first[lane] < 0) one->first[lane] = uses[i].step;
    one->last[lane] = uses[i].step;
    one->used = true;
  }
}

static bool ordered(const tdm_schedule* schedule, const int32_t* lane_of, const life* a, const life* b) {
  for (int32_t from = 0; from < schedule->n_lanes; from++)
    for (int32_t to = 0; to < schedule->n_lanes; to++)
      if (a->last[from] >= 0 && b->first[to] >= 0 &&
          !tdm_schedule_ordered(schedule, lane_of, a->last[from], b->first[to]))
        return false;
  return true;
}

static int by_bytes_descending(const void* a, const void* b) {
  const placed *x = a, *y = b;
  if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
  return (x->block > y->block) - (x->block < y->block);
}

static size_t padded(size_t bytes) {
  return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static bool may_share(const tdm_schedule* schedule, const int32_t* lane_of, const life* lives, const tdm_block* blocks,
                      int32_t a, int32_t b) {
  if (!lives[a].used || !lives[b].used) return false;
  return (!blocks[a].keep && ordered(schedule, lane_of, &lives[a], &lives[b])) ||
         (!blocks[b].keep && ordered(schedule, lane_of, &lives[b], &lives[a]));
}

/* Lowest offset at which `block` meets none of the placed blocks that it may not share with. `order` holds them by
 * placement; moving up past each obstacle and starting over ends because every round leaves one obstacle below for
 * good. */
static size_t lowest_offset(const tdm_schedule* schedule, const int32_t* lane_of, const life* lives,
                            const tdm_block* blocks, const placed* order, int32_t n_placed, int32_t block) {
  size_t offset = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (int32_t i = 0; i < n_placed; i++) {
      const tdm_block* other = &blocks[order[i].block];
      const bool meets =
          offset < other->offset + padded(other->bytes) && other->offset < offset + padded(blocks[block].bytes);
      if (!meets || may_share(schedule, lane_of, lives, blocks, order[i].block, block)) continue;
      offset = other->offset + padded(other->bytes);
      moved = true;
    }
  }
  return offset;
}

tdm_status tdm_workspace_layout(tdm_runtime* runtime, const tdm_schedule* schedule, const int32_t* lane_of,
                                const tdm_use* uses, int64_t n_uses, tdm_block* blocks, int32_t n_blocks,
                                size_t* out_bytes) {
  *out_bytes = 0;
  if (n_blocks == 0) return TDM_OK;
  life* lives = tdm_host_alloc_array(runtime, n_blocks, sizeof *lives);
  placed* order = tdm_host_alloc_array(runtime, n_blocks, sizeof *order);
  tdm_status status = lives && order ? TDM_OK : TDM_OUT_OF_MEMORY;
  if (status == TDM_OK) {
    collect_lives(lane_of, uses, n_uses, lives, n_blocks);
    for (int32_t i = 0; i < n_blocks; i++) order[i] = (placed){.block = i, .bytes = blocks[i].bytes};
    qsort(order, (size_t)n_blocks, sizeof *order, by_bytes_descending);
    for (int32_t i = 0; i < n_blocks; i++) {
      tdm_block* block = &blocks[order[i].block];
      block->offset = lowest_offset(schedule, lane_of, lives, blocks, order, i, order[i].block);
      if (*out_bytes < block->offset + padded(block->bytes)) *out_bytes = block->offset + padded(block->bytes);
    }
  }
  tdm_host_free(runtime, order, (size_t)n_blocks * sizeof *order);
  tdm_host_free(runtime, lives, (size_t)n_blocks * sizeof *lives);
  return status;
}

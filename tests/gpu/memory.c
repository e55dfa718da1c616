/* A full device: warming up a graph cache runs out of memory halfway, the buckets before that go on to be replayed, and
 * once there is memory again the rest is captured. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tandem/tandem.h"
#include "tests/gpu/gpu.h"

enum { ROWS = 64, COLS = 1024, OUT_BYTES = ROWS * COLS * 4, BUCKETS = 4, HOARDS = 4096 };

/* Bucket 4 needs more memory than the largest one, whose workspace the others share. */
static const int64_t buckets[BUCKETS] = {1, 2, 4, 8};
static const size_t small_bytes = (size_t)4 << 20, large_bytes = (size_t)2 << 30;

typedef struct side {
  tdm_runtime* runtime;
  tdm_lane* lane;
  tdm_buffer* out;
  tdm_graph_cache* cache;
} side;

static CUdeviceptr hoard[HOARDS];
static int n_hoards;

static bool ok(gpu_rig* rig, tdm_status status, const char* what) {
  if (status != TDM_OK) gpu_fail(rig, "%s: %s: %s", what, tdm_status_name(status), tdm_last_error()->message);
  return status == TDM_OK;
}

static size_t free_bytes(void) {
  size_t free, total;
  GPU_TRY(gpu.cuMemGetInfo(&free, &total));
  return free;
}

/* Takes device memory until `left` or less is free; 0: until not even the smallest piece is to be had. */
static void occupy(size_t left) {
  for (size_t piece = (size_t)64 << 30; piece >= (size_t)64 << 10 && n_hoards < HOARDS;) {
    const size_t free = free_bytes();
    if (left && free <= left) return;
    size_t wanted = left && free - left < piece ? free - left : piece;
    if (gpu.cuMemAlloc(&hoard[n_hoards], wanted) == CUDA_SUCCESS) {
      n_hoards++;
    } else {
      piece /= 2;
    }
  }
}

static void release(void) {
  while (n_hoards > 0) GPU_TRY(gpu.cuMemFree(hoard[--n_hoards]));
}

/* Random values that depend on the bucket, at the end of a temporary; their norm to the side's output. */
static tdm_status build(void* ctx, int64_t n_tokens, tdm_program* program, tdm_seal_config* seal) {
  (void)seal;
  const side* s = ctx;
  const int64_t shape[] = {ROWS, COLS};
  const size_t bytes = n_tokens == 4 ? large_bytes : small_bytes;
  tdm_view temp;
  tdm_status status = tdm_program_temp(program, "temp", TDM_F32, 2,
                                       (int64_t[]){(int64_t)(bytes / (COLS * sizeof(float))), COLS}, &temp);
  const tdm_view values = status == TDM_OK ? tdm_view_slice(temp, 0, temp.shape[0] - ROWS, ROWS) : temp;
  const tdm_fill_args fill = {.size = sizeof fill, .out = values, .seed = (uint64_t)n_tokens, .amplitude = 1};
  const tdm_rmsnorm_args norm = {.size = sizeof norm, .x = values, .out = tdm_view_make(s->out, TDM_F32, 2, shape)};
  if (status == TDM_OK) status = tdm_append_fill(program, s->lane, "fill", &fill);
  return status == TDM_OK ? tdm_append_rmsnorm(program, s->lane, "norm", &norm) : status;
}

static bool open_side(gpu_rig* rig, side* s) {
  tdm_runtime_config config;
  tdm_lane_config lane;
  tdm_graph_cache_config cache;
  *s = (side){0};
  if (!ok(rig, tdm_runtime_config_init(&config, sizeof config), "runtime config") ||
      !ok(rig, tdm_lane_config_init(&lane, sizeof lane), "lane config") ||
      !ok(rig, tdm_graph_cache_config_init(&cache, sizeof cache), "cache config"))
    return false;
  config.device_kind = TDM_DEVICE_CUDA;
  lane.name = "main";
  cache.buckets = buckets;
  cache.n_buckets = BUCKETS;
  cache.build = build;
  cache.ctx = s;
  return ok(rig, tdm_runtime_create(&config, &s->runtime), "runtime") &&
         ok(rig, tdm_lane_get(s->runtime, &lane, &s->lane), "lane") &&
         ok(rig, tdm_buffer_create(s->runtime, OUT_BYTES, &s->out), "output") &&
         ok(rig, tdm_graph_cache_create(s->runtime, &cache, &s->cache), "cache");
}

static void close_side(gpu_rig* rig, side* s) {
  tdm_graph_cache_destroy(s->cache);
  tdm_buffer_destroy(s->out);
  (void)ok(rig, tdm_runtime_destroy(s->runtime), "destroying the runtime");
}

static bool captured(const side* s, int bucket) {
  tdm_graph_bucket_info info = {.size = sizeof info};
  return tdm_graph_cache_get_bucket(s->cache, bucket, &info) == TDM_OK && info.captured;
}

static bool replay(gpu_rig* rig, side* s, int bucket, void* out) {
  tdm_graph* graph;
  return ok(rig, tdm_graph_cache_get(s->cache, buckets[bucket], &graph), "getting a bucket") &&
         ok(rig, tdm_graph_replay(graph, NULL), "replay") &&
         ok(rig, tdm_buffer_read(s->out, 0, out, OUT_BYTES), "read");
}

/* Replays what is captured and compares. Answers how many buckets that were. */
static int compare(gpu_rig* rig, side* s, uint8_t (*expected)[OUT_BYTES]) {
  static uint8_t got[OUT_BYTES];
  int n = 0;
  for (int i = 0; i < BUCKETS; i++) {
    if (!captured(s, i) || !replay(rig, s, i, got)) continue;
    n++;
    if (memcmp(got, expected[i], OUT_BYTES) != 0) gpu_fail(rig, "bucket %d has other bits", (int)buckets[i]);
  }
  return n;
}

/* One life of a runtime and its cache, in the middle of which the device is full but for `left` bytes. */
static void run_full(gpu_rig* rig, size_t left, int least_captured, uint8_t (*expected)[OUT_BYTES]) {
  side s;
  if (open_side(rig, &s)) {
    occupy(left);
    const size_t free = free_bytes();
    const tdm_status status = tdm_graph_cache_warm_up(s.cache);
    const char* sentence = tdm_last_error()->message;
    (void)printf("  %zu KB free: warm-up: %s: %s\n", free >> 10, tdm_status_name(status), sentence);
    if (status != TDM_OUT_OF_MEMORY) gpu_fail(rig, "warm-up of a full device is %s", tdm_status_name(status));
    if (left && !strstr(sentence, "bytes of device memory")) gpu_fail(rig, "no bytes are named");
    if (captured(&s, 2)) gpu_fail(rig, "bucket 4 is captured all the same");
    const int n = compare(rig, &s, expected);
    (void)printf("  %d buckets replayed\n", n);
    if (n < least_captured) gpu_fail(rig, "%d buckets could be replayed, not %d", n, least_captured);
    release();
    if (ok(rig, tdm_graph_cache_warm_up(s.cache), "warm-up with memory again") && compare(rig, &s, expected) != BUCKETS)
      gpu_fail(rig, "not all buckets were replayed");
  }
  release();
  close_side(rig, &s);
}

void test_memory(gpu_rig* rig, bool quick) {
  static uint8_t expected[BUCKETS][OUT_BYTES];
  static const struct {
    const char* name;
    size_t left;
    int least_captured;
  } ways[] = {{"64 MB left", (size_t)64 << 20, 3}, {"nothing left", 0, 1}};
  side s;
  if (quick) return;
  gpu_begin(rig, "memory: four buckets");
  if (open_side(rig, &s) && ok(rig, tdm_graph_cache_warm_up(s.cache), "warm-up"))
    for (int i = 0; i < BUCKETS; i++) (void)replay(rig, &s, i, expected[i]);
  if (memcmp(expected[0], expected[1], OUT_BYTES) == 0) gpu_fail(rig, "buckets 1 and 2 have the same values");
  close_side(rig, &s);
  gpu_end(rig);
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    size_t free[3];
    for (int round = 0; round < 3; round++) { /* what the driver keeps for itself it has after the first */
      gpu_begin(rig, "memory: %s, round %d", ways[i].name, round);
      run_full(rig, ways[i].left, ways[i].least_captured, expected);
      free[round] = free_bytes();
      if (round == 2 && free[2] != free[1]) gpu_fail(rig, "%zu bytes are free, %zu were before", free[2], free[1]);
      gpu_end(rig);
    }
  }
}

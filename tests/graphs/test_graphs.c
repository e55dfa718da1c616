#include <criterion/criterion.h>
#include <stdio.h>

#include "tandem/tandem.h"
#include "tests/support/heap.h"
#include "tests/support/probe.h"
#include "tests/support/rig.h"

typedef struct bench {
  test_heap host, device;
  tdm_runtime* runtime;
  tdm_lane* lane;
  tdm_buffer* result; /* 256 bytes */
  int builds;
  int64_t fails_at; /* bucket whose build fails */
} bench;

static void bench_open(bench* t) {
  *t = (bench){.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT};
  tdm_runtime_config config;
  tdm_lane_config lane;
  tdm_runtime_config_init(&config, sizeof config);
  config.host_allocator = test_heap_allocator(&t->host);
  config.device_allocator = test_heap_allocator(&t->device);
  cr_assert_eq(tdm_runtime_create(&config, &t->runtime), TDM_OK);
  tdm_lane_config_init(&lane, sizeof lane);
  lane.name = "main";
  cr_assert_eq(tdm_lane_get(t->runtime, &lane, &t->lane), TDM_OK);
  cr_assert_eq(tdm_buffer_create(t->runtime, 256, &t->result), TDM_OK);
}

static void bench_close(bench* t) {
  tdm_buffer_destroy(t->result);
  cr_assert_eq(tdm_runtime_destroy(t->runtime), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(t->host.outstanding, 0);
  cr_assert_eq(t->device.outstanding, 0);
}

/* A bucket of n tokens: n bytes of a temporary, then n bytes of the result. */
/* Programs of two tokens and more wait by signal. */
static tdm_status build(void* ctx, int64_t n_tokens, tdm_program* program, tdm_seal_config* seal) {
  bench* t = ctx;
  if (n_tokens > 1) seal->wait_form = TDM_WAIT_SIGNAL;
  t->builds++;
  if (n_tokens == t->fails_at) return TDM_FAIL(TDM_UNSUPPORTED, "no bucket of %d", (int)n_tokens);
  tdm_view temp;
  TDM_TRY(tdm_program_temp(program, "temp", TDM_U8, 1, &n_tokens, &temp));
  const probe_args first = {.size = sizeof first, .write0 = temp, .salt = 1};
  const probe_args second = {
      .size = sizeof second, .read0 = temp, .write0 = tdm_view_make(t->result, TDM_U8, 1, &n_tokens), .salt = 2};
  TDM_TRY(tdm_program_append(program, t->lane, &probe_op, "first", &first));
  return tdm_program_append(program, t->lane, &probe_op, "second", &second);
}

static tdm_graph_cache_config config_of(bench* t, const int64_t* buckets, int32_t n) {
  tdm_graph_cache_config config;
  cr_assert_eq(tdm_graph_cache_config_init(&config, sizeof config), TDM_OK);
  if (buckets) config.buckets = buckets;
  if (buckets) config.n_buckets = n;
  config.build = build;
  config.ctx = t;
  return config;
}

Test(graphs, replay_gives_the_eager_bits) {
  bench t;
  bench_open(&t);
  tdm_program* program;
  tdm_graph* graph = NULL;
  uint8_t eager[256], replayed[256];
  cr_assert_eq(tdm_program_create(t.runtime, "p", &program), TDM_OK);
  tdm_seal_config seal;
  cr_assert_eq(tdm_seal_config_init(&seal, sizeof seal), TDM_OK);
  cr_assert_eq(build(&t, 100, program, &seal), TDM_OK);
  test_expect_failure("capture before seal", tdm_graph_capture(program, &graph), TDM_INVALID_STATE, "sealed before");
  cr_assert_null(graph);
  cr_assert_eq(tdm_program_seal(program, NULL), TDM_OK);
  cr_assert_eq(tdm_graph_capture(program, &graph), TDM_OK);
  cr_assert_eq(tdm_graph_program(graph), program);
  cr_assert_eq(tdm_program_launch(program, NULL), TDM_OK);
  cr_assert_eq(tdm_buffer_read(t.result, 0, eager, 256), TDM_OK);
  memset(replayed, 0, 256);
  cr_assert_eq(tdm_buffer_write(t.result, 0, replayed, 256), TDM_OK);
  cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  cr_assert_eq(tdm_buffer_read(t.result, 0, replayed, 256), TDM_OK);
  cr_assert_arr_eq(eager, replayed, 256);
  tdm_graph_destroy(graph);
  tdm_graph_destroy(NULL);
  tdm_program_destroy(program);
  bench_close(&t);
}

Test(graphs, cache_builds_each_bucket_once) {
  bench t;
  bench_open(&t);
  tdm_graph_cache* cache;
  tdm_graph *graph, *same;
  const int64_t buckets[] = {1, 4, 16, 200};
  const tdm_graph_cache_config config = config_of(&t, buckets, 4);
  cr_assert_eq(tdm_graph_cache_create(t.runtime, &config, &cache), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(t.builds, 1, "the largest bucket sizes the workspace");
  static const struct {
    int64_t tokens, bucket;
  } cases[] = {{1, 1}, {2, 4}, {4, 4}, {5, 16}, {16, 16}, {17, 200}, {200, 200}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cr_assert_eq(tdm_graph_cache_get(cache, cases[i].tokens, &graph), TDM_OK);
    cr_assert_eq(tdm_graph_cache_get(cache, cases[i].tokens, &same), TDM_OK);
    cr_assert_eq(graph, same);
    tdm_view temp;
    cr_assert_eq(tdm_program_find(tdm_graph_program(graph), "temp", &temp), TDM_OK);
    cr_assert_eq(temp.shape[0], cases[i].bucket);
    tdm_program_info program = {.size = sizeof program};
    cr_assert_eq(tdm_program_get_info(tdm_graph_program(graph), &program), TDM_OK);
    cr_assert_eq(program.wait_form, cases[i].bucket > 1 ? TDM_WAIT_SIGNAL : TDM_WAIT_EDGE, "what build asks for");
    cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  }
  cr_assert_eq(t.builds, 4);
  tdm_graph_cache_info info = {.size = sizeof info};
  cr_assert_eq(tdm_graph_cache_get_info(cache, &info), TDM_OK);
  cr_assert_eq(info.captured, 4);
  cr_assert_eq(info.workspace_bytes, 256, "one workspace for all");
  cr_assert_eq(tdm_graph_cache_evict(cache, 4), TDM_OK);
  for (int32_t i = 0; i < 4; i++) {
    tdm_graph_bucket_info bucket = {.size = sizeof bucket};
    cr_assert_eq(tdm_graph_cache_get_bucket(cache, i, &bucket), TDM_OK);
    cr_assert_eq(bucket.n_tokens, buckets[i]);
    cr_assert_eq(bucket.captured, i != 1);
    cr_assert_eq(bucket.steps, i == 1 ? 0 : 2);
    cr_assert_eq(bucket.workspace_bytes, i == 1 ? 0 : 256);
    cr_assert_eq(bucket.shares_workspace, i != 1);
  }
  tdm_graph_bucket_info none = {.size = sizeof none};
  test_expect_failure("no bucket 4", tdm_graph_cache_get_bucket(cache, 4, &none), TDM_INVALID_ARGUMENT,
                      "0 to 3, not 4");
  test_expect_failure("no bucket -1", tdm_graph_cache_get_bucket(cache, -1, &none), TDM_INVALID_ARGUMENT, "not -1");
  cr_assert_eq(tdm_graph_cache_warm_up(cache), TDM_OK);
  cr_assert_eq(t.builds, 5);
  test_expect_failure("0 tokens", tdm_graph_cache_get(cache, 0, &graph), TDM_INVALID_ARGUMENT, "0 tokens|200");
  test_expect_failure("too many", tdm_graph_cache_get(cache, 201, &graph), TDM_INVALID_ARGUMENT, "201 tokens|200");
  cr_assert_null(graph);
  test_expect_failure("evict the largest", tdm_graph_cache_evict(cache, 200), TDM_INVALID_ARGUMENT, "200");
  test_expect_failure("evict none", tdm_graph_cache_evict(cache, 5), TDM_INVALID_ARGUMENT, "5");
  tdm_graph_cache_destroy(cache);
  bench_close(&t);
}

Test(graphs, a_failing_bucket_leaves_the_others) {
  bench t;
  bench_open(&t);
  tdm_graph_cache* cache;
  tdm_graph* graph;
  const int64_t buckets[] = {1, 4, 16, 200};
  const tdm_graph_cache_config config = config_of(&t, buckets, 4);
  cr_assert_eq(tdm_graph_cache_create(t.runtime, &config, &cache), TDM_OK);
  t.fails_at = 4;
  test_expect_failure("warm up", tdm_graph_cache_warm_up(cache), TDM_UNSUPPORTED, "no bucket of 4");
  cr_assert_eq(tdm_graph_cache_get(cache, 1, &graph), TDM_OK);
  cr_assert_eq(tdm_graph_replay(graph, NULL), TDM_OK);
  test_expect_failure("the bucket", tdm_graph_cache_get(cache, 3, &graph), TDM_UNSUPPORTED, "no bucket of 4");
  t.fails_at = 0;
  cr_assert_eq(tdm_graph_cache_warm_up(cache), TDM_OK);
  tdm_graph_cache_destroy(cache);
  t.fails_at = 200;
  test_expect_failure("create", tdm_graph_cache_create(t.runtime, &config, &cache), TDM_UNSUPPORTED,
                      "no bucket of 200");
  cr_assert_null(cache);
  bench_close(&t);
}

Test(graphs, cache_refuses_bad_configs) {
  bench t;
  bench_open(&t);
  tdm_graph_cache* cache;
  static const int64_t zero[] = {0, 1}, twice[] = {1, 1}, falling[] = {4, 2};
  static const struct {
    const int64_t* buckets;
    int32_t n;
    const char* words;
  } cases[] = {{zero, 2, "buckets[0] is 0"},
               {twice, 2, "buckets[1] is 1"},
               {falling, 2, "buckets[1] is 2"},
               {zero, 0, "0 buckets"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const tdm_graph_cache_config config = config_of(&t, cases[i].buckets, cases[i].n);
    test_expect_failure(cases[i].words, tdm_graph_cache_create(t.runtime, &config, &cache), TDM_INVALID_ARGUMENT,
                        cases[i].words);
  }
  tdm_graph_cache_config config = config_of(&t, NULL, 0);
  config.build = NULL;
  test_expect_failure("build", tdm_graph_cache_create(t.runtime, &config, &cache), TDM_INVALID_ARGUMENT, "build");
  config = config_of(&t, NULL, 0);
  config.name = "a name that has more than thirty-one characters";
  test_expect_failure("name", tdm_graph_cache_create(t.runtime, &config, &cache), TDM_INVALID_ARGUMENT,
                      "31 characters");
  bench_close(&t);
}

Test(graphs, cache_survives_every_allocation_failure) {
  bench t;
  bench_open(&t);
  const int64_t buckets[] = {1, 4, 16};
  const tdm_graph_cache_config config = config_of(&t, buckets, 3);
  for (int which = 0; which < 2; which++)
    for (int64_t n = 1;; n++) {
      test_heap* heap = which ? &t.device : &t.host;
      const int64_t host_before = t.host.outstanding, device_before = t.device.outstanding;
      test_heap_fail_at(heap, n);
      tdm_graph_cache* cache;
      tdm_status status = tdm_graph_cache_create(t.runtime, &config, &cache);
      if (status == TDM_OK) status = tdm_graph_cache_warm_up(cache);
      tdm_graph_cache_destroy(cache);
      test_heap_fail_at(heap, 0);
      cr_assert_eq(t.host.outstanding, host_before, "failure %d leaks", (int)n);
      cr_assert_eq(t.device.outstanding, device_before, "failure %d leaks", (int)n);
      if (status == TDM_OK) break;
      cr_assert_eq(status, TDM_OUT_OF_MEMORY);
    }
  bench_close(&t);
}

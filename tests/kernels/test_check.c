#include "kernels/common/check.h"

#include <criterion/criterion.h>
#include <math.h>

#include "tests/support/rig.h"

/* Two views of one buffer by bytes: f32, rank 2. */
static const struct {
  const char* name;
  int64_t offset[2];
  int64_t shape[2][2];
  int64_t stride[2][2];
  bool overlap;
} pairs[] = {
    {"the same", {0, 0}, {{4, 8}, {4, 8}}, {{8, 1}, {8, 1}}, true},
    {"one after the other", {0, 128}, {{4, 8}, {4, 8}}, {{8, 1}, {8, 1}}, false},
    {"a byte too near", {0, 124}, {{4, 8}, {4, 8}}, {{8, 1}, {8, 1}}, true},
    {"column ranges", {0, 32}, {{4, 8}, {4, 8}}, {{16, 1}, {16, 1}}, false},
    {"column ranges, the second first", {32, 0}, {{4, 8}, {4, 8}}, {{16, 1}, {16, 1}}, false},
    {"column ranges that share one", {0, 28}, {{4, 8}, {4, 8}}, {{16, 1}, {16, 1}}, true},
    {"column ranges that wrap into the next row", {0, 40}, {{4, 8}, {4, 8}}, {{16, 1}, {16, 1}}, true},
    {"column ranges of other rows", {0, 96}, {{4, 8}, {4, 8}}, {{16, 1}, {16, 1}}, false},
    {"a row of the other's gap", {0, 32}, {{4, 8}, {1, 8}}, {{16, 1}, {99, 1}}, false},
    {"a row of the other's own", {0, 64}, {{4, 8}, {1, 8}}, {{16, 1}, {99, 1}}, true},
    {"strides 16 and 32", {0, 32}, {{4, 8}, {2, 8}}, {{16, 1}, {32, 1}}, false},
    {"strides 16 and 24", {0, 32}, {{4, 8}, {2, 8}}, {{16, 1}, {24, 1}}, true},
    {"alternate elements", {0, 4}, {{1, 8}, {1, 8}}, {{99, 2}, {99, 2}}, false},
};

Test(check, views_overlap) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* memory = test_rig_tensor(&rig, "memory", TDM_F32, 1, (int64_t[]){200});
  test_tensor* other = test_rig_tensor(&rig, "other", TDM_F32, 1, (int64_t[]){200});
  for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
    tdm_view views[2];
    for (int v = 0; v < 2; v++) {
      views[v] = tdm_view_make(memory->buffer, TDM_F32, 2, pairs[i].shape[v]);
      views[v].offset_bytes = pairs[i].offset[v];
      views[v].stride[0] = pairs[i].stride[v][0];
      views[v].stride[1] = pairs[i].stride[v][1];
    }
    cr_expect_eq(tdm_views_overlap(&views[0], &views[1]), pairs[i].overlap, "%s", pairs[i].name);
    cr_expect_eq(tdm_views_overlap(&views[1], &views[0]), pairs[i].overlap, "%s, exchanged", pairs[i].name);
    views[1].buffer = other->buffer;
    cr_expect_not(tdm_views_overlap(&views[0], &views[1]), "%s, in two buffers", pairs[i].name);
    views[1].buffer = NULL;
    cr_expect_not(tdm_views_overlap(&views[0], &views[1]), "%s, one absent", pairs[i].name);
  }
  test_rig_close(&rig);
}

/* Against every element of random views: never false when they share a byte. */
Test(check, views_overlap_by_brute_force) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* memory = test_rig_tensor(&rig, "memory", TDM_U8, 1, (int64_t[]){20000});
  int64_t apart = 0;
  for (int n = 0; n < 20000; n++) {
    static uint8_t used[20000];
    tdm_view views[2];
    for (int v = 0; v < 2; v++) {
      int64_t shape[3];
      for (int i = 0; i < 3; i++) shape[i] = 1 + test_random_below(&rig.random, 4);
      views[v] = tdm_view_make(memory->buffer, TDM_BF16, 3, shape);
      views[v].offset_bytes = 2 * test_random_below(&rig.random, 40);
      int64_t step = 1 + test_random_below(&rig.random, 3);
      for (int i = 2; i >= 0; i--) {
        views[v].stride[i] = step;
        step *= shape[i] * (1 + test_random_below(&rig.random, 3));
      }
    }
    for (int64_t i = 0; i < test_view_count(&views[0]); i++) {
      used[(uint8_t*)test_view_at(&views[0], i) - memory->memory] = 1;
    }
    bool shared = false;
    for (int64_t i = 0; i < test_view_count(&views[1]); i++) {
      shared = shared || used[(uint8_t*)test_view_at(&views[1], i) - memory->memory];
    }
    for (int64_t i = 0; i < test_view_count(&views[0]); i++) {
      used[(uint8_t*)test_view_at(&views[0], i) - memory->memory] = 0;
    }
    bool says = tdm_views_overlap(&views[0], &views[1]);
    if (shared && !says) cr_expect_fail("case %d: they overlap", n);
    if (!says) apart++;
  }
  cr_expect_gt(apart, 1000, "the cases have views apart: %lld", (long long)apart);
  test_rig_close(&rig);
}

static const struct {
  const char* name;
  int64_t shape[3];
  int64_t stride[3];
  bool distinct;
} layouts[] = {
    {"contiguous", {2, 3, 4}, {12, 4, 1}, true},
    {"wide rows", {2, 3, 4}, {100, 20, 1}, true},
    {"heads inside", {2, 3, 4}, {4, 8, 1}, true},
    {"transposed", {2, 3, 4}, {12, 1, 3}, true},
    {"rows that share an element", {1, 3, 4}, {1, 3, 1}, false},
    {"batches inside rows", {2, 3, 4}, {4, 4, 1}, false},
    {"one of each, strides do not matter", {1, 1, 1}, {1, 1, 1}, true},
    {"one row, its stride does not matter", {2, 1, 4}, {4, 1, 1}, true},
};

Test(check, distinct) {
  for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
    tdm_view view = tdm_view_make(NULL, TDM_F32, 3, layouts[i].shape);
    for (int d = 0; d < 3; d++) view.stride[d] = layouts[i].stride[d];
    tdm_status status = tdm_check_distinct("op", "out", &view);
    cr_expect_eq(status, layouts[i].distinct ? TDM_OK : TDM_INVALID_ARGUMENT, "%s", layouts[i].name);
    if (status != TDM_OK) test_expect_failure(layouts[i].name, status, TDM_INVALID_ARGUMENT, "op: out|stride");
  }
}

Test(check, eps) {
  static const struct {
    float value, expected; /* 0: refused */
  } values[] = {{0.0f, 0.5f},  {-0.0f, 0.5f}, {1e-6f, 1e-6f},   {TDM_MIN_EPS, TDM_MIN_EPS}, {1e-31f, 0.0f},
                {-1.0f, 0.0f}, {NAN, 0.0f},   {INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    float value = values[i].value;
    tdm_status status = tdm_check_eps("op", "eps", &value, 0.5f);
    cr_expect_eq(status, values[i].expected != 0.0f ? TDM_OK : TDM_INVALID_ARGUMENT, "%g", (double)values[i].value);
    if (status == TDM_OK) cr_expect_eq(value, values[i].expected, "%g", (double)values[i].value);
  }
}

Test(check, weight_scale_of_any_rank) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* w = test_rig_tensor(&rig, "w", TDM_E4M3, 3, (int64_t[]){3, 200, 130});
  test_tensor* scale = test_rig_tensor(&rig, "w_scale", TDM_F32, 3, (int64_t[]){3, 2, 2});
  cr_expect_eq(tdm_check_weight_scale("op", "w_scale", &scale->view, "w", &w->view), TDM_OK);
  scale->view.shape[0] = 2;
  test_expect_failure("experts", tdm_check_weight_scale("op", "w_scale", &scale->view, "w", &w->view),
                      TDM_INVALID_ARGUMENT, "op: w_scale is [2, 2, 2], not [3, 2, 2]");
  tdm_view absent = {0};
  test_expect_failure("absent", tdm_check_weight_scale("op", "w_scale", &absent, "w", &w->view), TDM_INVALID_ARGUMENT,
                      "op: w is e4m3 but w_scale is absent");
  w->view.dtype = TDM_I8;
  test_expect_failure("stray", tdm_check_weight_scale("op", "w_scale", &scale->view, "w", &w->view),
                      TDM_INVALID_ARGUMENT, "op: w_scale is given but w is i8, not e4m3");
  cr_expect_eq(tdm_check_weight_scale("op", "w_scale", &absent, "w", &w->view), TDM_OK);
  test_rig_close(&rig);
}

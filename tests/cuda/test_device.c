#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/cuda/cuda_rig.h"
#include "tests/support/rig.h"

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static tdm_status create_and_forget(int32_t ordinal, test_heap* heap) {
  tdm_runtime_config config;
  tdm_runtime* runtime = NULL;
  cr_assert_eq(tdm_runtime_config_init(&config, sizeof config), TDM_OK);
  config.device_kind = TDM_DEVICE_CUDA;
  config.device_ordinal = ordinal;
  config.host_allocator = test_heap_allocator(heap);
  const tdm_status status = tdm_runtime_create(&config, &runtime);
  cr_assert((status == TDM_OK) == (runtime != NULL));
  return tdm_runtime_destroy(runtime) == TDM_OK ? status : TDM_INTERNAL;
}

Test(device, refuses_what_it_cannot_drive) {
  static const struct {
    const char* name;
    fake_device device;
    int32_t ordinal;
    tdm_status status;
    const char* words;
  } cases[] = {
      {"no device", {.count = 0}, 0, TDM_UNSUPPORTED, "cuda:0|no CUDA device"},
      {"no such device", {.count = 1, .major = 9, .sms = 132}, 3, TDM_INVALID_ARGUMENT, "cuda:3|1 device"},
      {"Ampere", {.count = 1, .major = 8, .sms = 108}, 0, TDM_UNSUPPORTED, "cuda:0|Fake H200|8.0|host"},
      {"Blackwell", {.count = 1, .major = 10, .sms = 148}, 0, TDM_UNSUPPORTED, "10.0|9.0"},
      {"Hopper of a later minor", {.count = 1, .major = 9, .minor = 1, .sms = 132}, 0, TDM_UNSUPPORTED, "9.1|9.0"},
  };
  test_heap heap = TEST_HEAP_INIT;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    fake_cuda_reset(&cases[i].device);
    test_expect_failure(cases[i].name, create_and_forget(cases[i].ordinal, &heap), cases[i].status, cases[i].words);
    cr_assert_eq(heap.outstanding, 0, "%s", cases[i].name);
    cuda_rig_expect_clean(cases[i].name);
  }
}

Test(device, tells_what_it_is) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_runtime_info info = {.size = sizeof info};
  cr_assert_eq(tdm_runtime_get_info(rig.runtime, &info), TDM_OK);
  cr_assert_str_eq(info.device_name, "Fake H200");
  cr_assert_eq(info.sms, 132);
  cr_assert_eq(info.device_kind, TDM_DEVICE_CUDA);
  cr_assert_eq(fake_cuda_live().pushed, 0);
  cuda_rig_close(&rig);
}

Test(device, runtimes_stand_side_by_side) {
  cuda_rig first, second;
  cuda_rig_open(&first);
  cuda_rig_open(&second);
  tdm_buffer *a, *b;
  cr_assert_eq(tdm_buffer_create(first.runtime, 1000, &a), TDM_OK);
  cr_assert_eq(tdm_buffer_create(second.runtime, 1000, &b), TDM_OK);
  tdm_buffer_destroy(a);
  cr_assert_eq(tdm_runtime_destroy(first.runtime), TDM_OK);
  uint8_t bytes[1000] = {1};
  cr_assert_eq(tdm_buffer_read(b, 0, bytes, sizeof bytes), TDM_OK, "the second runtime's context is gone");
  cr_assert_eq(bytes[0], 0);
  tdm_buffer_destroy(b);
  cuda_rig_close(&second);
  cr_assert_eq(first.host.outstanding, 0);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static void use_memory(tdm_runtime* runtime) {
  uint8_t in[300], out[300];
  tdm_buffer* buffer;
  cr_assert_eq(tdm_buffer_create(runtime, sizeof in, &buffer), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq((uintptr_t)tdm_buffer_data(buffer) % 256, 0);
  cr_assert_eq(tdm_buffer_read(buffer, 0, out, sizeof out), TDM_OK);
  for (size_t i = 0; i < sizeof out; i++) cr_assert_eq(out[i], 0, "new memory is not zero");
  for (size_t i = 0; i < sizeof in; i++) in[i] = (uint8_t)(3 * i);
  cr_assert_eq(tdm_buffer_write(buffer, 0, in, sizeof in), TDM_OK);
  cr_assert_eq(tdm_buffer_read(buffer, 7, out, 100), TDM_OK);
  cr_assert_eq(memcmp(out, in + 7, 100), 0);
  tdm_buffer_destroy(buffer);
}

Test(memory, comes_from_the_pool) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  use_memory(rig.runtime);
  tdm_buffer* buffer;
  cr_assert_eq(tdm_buffer_create(rig.runtime, 4096, &buffer), TDM_OK);
  cr_assert_eq(fake_cuda_live().bytes, 4096);
  tdm_buffer_destroy(buffer);
  cr_assert_eq(fake_cuda_live().blocks, 0);
  cuda_rig_close(&rig);
}

Test(memory, comes_from_the_callers_allocator) {
  cuda_rig rig = {.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT};
  tdm_runtime_config config = cuda_rig_config(&rig);
  config.device_allocator = test_heap_allocator(&rig.device);
  cr_assert_eq(tdm_runtime_create(&config, &rig.runtime), TDM_OK);
  use_memory(rig.runtime);
  cr_assert_eq(rig.device.calls, 1);
  cr_assert_eq(fake_cuda_live().blocks, 0);
  test_heap_fail_at(&rig.device, 1);
  tdm_buffer* buffer;
  test_expect_failure("no memory", tdm_buffer_create(rig.runtime, 100, &buffer), TDM_OUT_OF_MEMORY,
                      "100 bytes of device memory");
  cuda_rig_close(&rig);
}

Test(memory, runs_out) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_buffer *first, *second;
  fake_cuda_limit_memory(1000);
  cr_assert_eq(tdm_buffer_create(rig.runtime, 600, &first), TDM_OK);
  test_expect_failure("second", tdm_buffer_create(rig.runtime, 600, &second), TDM_OUT_OF_MEMORY,
                      "600 bytes of device memory");
  cr_assert_null(second);
  tdm_buffer_destroy(first);
  cr_assert_eq(tdm_buffer_create(rig.runtime, 600, &second), TDM_OK, "what was freed cannot be had again");
  tdm_buffer_destroy(second);
  cuda_rig_close(&rig);
}

/* An error that is not about memory keeps its status and code. */
Test(memory, says_what_failed) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_buffer* buffer;
  fake_cuda_fail(&(fake_fault){.name = "cuMemsetD8Async", .nth = 1, .result = CUDA_ERROR_ILLEGAL_ADDRESS});
  test_expect_failure("create", tdm_buffer_create(rig.runtime, 100, &buffer), TDM_CUDA, "cuMemsetD8Async|700");
  cr_assert_eq(tdm_last_error()->raw_code, 700);
  cr_assert_eq(fake_cuda_live().blocks, 0);
  cuda_rig_close(&rig);
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

static tdm_status try_lane(cuda_rig* rig, const char* name, int32_t sms, tdm_lane** out_lane) {
  tdm_lane_config config;
  cr_assert_eq(tdm_lane_config_init(&config, sizeof config), TDM_OK);
  config.name = name;
  config.kind = TDM_LANE_GREEN;
  config.sms = sms;
  return tdm_lane_get(rig->runtime, &config, out_lane);
}

static int32_t granted(const tdm_lane* lane, int32_t requested) {
  tdm_lane_info info = {.size = sizeof info};
  cr_assert_eq(tdm_lane_get_info(lane, &info), TDM_OK);
  cr_assert_eq(info.requested_sms, requested);
  return info.granted_sms;
}

/* docs/peers.md, section 1.7. Partitions that overlap would be a breach. */
Test(lanes, green_ones_are_rounded_up) {
  static const struct {
    int32_t wanted, granted;
  } cases[] = {{1, 2},   {3, 4},   {7, 8},     {8, 8},     {10, 16},   {12, 16},
               {20, 24}, {32, 32}, {112, 112}, {124, 128}, {128, 128}, {132, 132}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cuda_rig rig;
    cuda_rig_open(&rig);
    cr_assert_eq(granted(cuda_rig_lane(&rig, "one", TDM_LANE_GREEN, cases[i].wanted), cases[i].wanted),
                 cases[i].granted, "%d SMs", cases[i].wanted);
    cuda_rig_close(&rig);
  }
}

Test(lanes, green_ones_share_the_device) {
  cuda_rig rig;
  cuda_rig_open(&rig);
  tdm_lane* lane;
  cr_assert_eq(granted(cuda_rig_lane(&rig, "side", TDM_LANE_GREEN, 16), 16), 16);
  cr_assert_eq(granted(cuda_rig_lane(&rig, "third", TDM_LANE_GREEN, 7), 7), 8);
  test_expect_failure("too many", try_lane(&rig, "main", 109, &lane), TDM_UNSUPPORTED, "lane 'main'|109|132|108");
  cr_assert_eq(granted(cuda_rig_lane(&rig, "main", TDM_LANE_GREEN, 108), 108), 108);
  test_expect_failure("none left", try_lane(&rig, "last", 1, &lane), TDM_UNSUPPORTED, "lane 'last'|only 0");
  cr_assert_eq(granted(cuda_rig_lane(&rig, "soft", TDM_LANE_SOFT, 20), 20), 20);
  cr_assert_eq(granted(cuda_rig_lane(&rig, "whole", TDM_LANE_WHOLE, 0), 0), 132);
  cr_assert_eq(fake_cuda_live().greens, 3);
  cuda_rig_close(&rig);
}

/* Each partition divides all SMs. */
Test(lanes, partitions_know_nothing_of_each_other) {
  static const int32_t sides[] = {16, 8, 32};
  cuda_rig rig;
  cuda_rig_open(&rig);
  for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
    char side[16], rest[16];
    (void)snprintf(side, sizeof side, "side%d", sides[i]);
    (void)snprintf(rest, sizeof rest, "main%d", sides[i]);
    cr_assert_eq(granted(cuda_rig_green(&rig, side, sides[i], sides[i]), sides[i]), sides[i]);
    cr_assert_eq(granted(cuda_rig_green(&rig, rest, sides[i], 132 - sides[i]), 132 - sides[i]), 132 - sides[i]);
  }
  tdm_lane_config config;
  tdm_lane* lane;
  cr_assert_eq(tdm_lane_config_init(&config, sizeof config), TDM_OK);
  config.name = "side8";
  config.kind = TDM_LANE_GREEN;
  config.sms = 8;
  config.partition = 16;
  test_expect_failure("another partition", tdm_lane_get(rig.runtime, &config, &lane), TDM_INVALID_ARGUMENT,
                      "lane 'side8'|partition 8|partition 16");
  config.name = "more";
  test_expect_failure("a full one", tdm_lane_get(rig.runtime, &config, &lane), TDM_UNSUPPORTED, "lane 'more'|only 0");
  cuda_rig_close(&rig);
}

/* Work queues of their own where the driver knows of them, and said so. */
Test(lanes, green_ones_keep_work_queues_apart) {
  for (int able = 0; able < 2; able++) {
    cuda_rig rig;
    tdm_lane_info info = {.size = sizeof info};
    fake_cuda_reset(&(fake_device){.count = 1, .major = 9, .sms = 132, .step = 8, .work_queues = able});
    rig = (cuda_rig){.host = TEST_HEAP_INIT, .device = TEST_HEAP_INIT};
    const tdm_runtime_config config = cuda_rig_config(&rig);
    cr_assert_eq(tdm_runtime_create(&config, &rig.runtime), TDM_OK, "%s", tdm_last_error()->message);
    const tdm_lane* lanes[] = {cuda_rig_lane(&rig, "side", TDM_LANE_GREEN, 16),
                               cuda_rig_lane(&rig, "main", TDM_LANE_GREEN, 116),
                               cuda_rig_lane(&rig, "soft", TDM_LANE_SOFT, 16)};
    for (int i = 0; i < 3; i++) {
      cr_assert_eq(tdm_lane_get_info(lanes[i], &info), TDM_OK);
      cr_assert_eq(info.own_work_queues, able && i < 2, "lane %d", i);
    }
    cr_assert_eq(fake_cuda_balanced(), able ? 2 : 0);
    cuda_rig_close(&rig);
  }
}

/* What a lane that could not be made had taken is free again. */
Test(lanes, a_failed_one_takes_no_sms) {
  static const char* const calls[] = {"cuDeviceGetDevResource", "cuDevSmResourceSplitByCount",
                                      "cuDevResourceGenerateDesc", "cuGreenCtxCreate", "cuGreenCtxStreamCreate"};
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    cuda_rig rig;
    cuda_rig_open(&rig);
    tdm_lane* lane;
    fake_cuda_fail(&(fake_fault){.name = calls[i], .nth = 1, .result = CUDA_ERROR_UNKNOWN});
    test_expect_failure(calls[i], try_lane(&rig, "side", 16, &lane), TDM_CUDA, calls[i]);
    cr_assert_null(lane);
    cr_assert_eq(granted(cuda_rig_lane(&rig, "side", TDM_LANE_GREEN, 16), 16), 16);
    cr_assert_eq(granted(cuda_rig_lane(&rig, "main", TDM_LANE_GREEN, 116), 116), 116, "%s: SMs are lost", calls[i]);
    cuda_rig_close(&rig);
  }
}

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tandem/tandem.h"
#include "tests/support/heap.h"
#include "tests/support/rig.h"

Test(status, names_and_dtypes) {
  cr_assert_str_eq(tdm_version(), "0.1.0");
  cr_assert_str_eq(tdm_status_name(TDM_OK), "OK");
  cr_assert_str_eq(tdm_status_name(TDM_INTERNAL), "INTERNAL");
  cr_assert_str_eq(tdm_status_name((tdm_status)11), "UNKNOWN");
  cr_assert_str_eq(tdm_status_name((tdm_status)-1), "UNKNOWN");
  cr_assert_eq(tdm_dtype_bytes(TDM_BF16), 2);
  cr_assert_eq(tdm_dtype_bytes(TDM_I64), 8);
  cr_assert_eq(tdm_dtype_bytes((tdm_dtype)0), 0);
  cr_assert_eq(tdm_dtype_bytes((tdm_dtype)99), 0);
  cr_assert_str_eq(tdm_dtype_name(TDM_E4M3), "e4m3");
  cr_assert_str_eq(tdm_dtype_name((tdm_dtype)99), "?");
}

static void* fail_elsewhere(void* status_after) {
  cr_assert_eq(tdm_last_error()->status, TDM_OK, "a new thread has no failure");
  tdm_runtime* runtime;
  tdm_runtime_config config;
  tdm_runtime_config_init(&config, sizeof config);
  config.device_ordinal = 7;
  cr_assert_eq(tdm_runtime_create(&config, &runtime), TDM_INVALID_ARGUMENT);
  *(tdm_status*)status_after = tdm_last_error()->status;
  return NULL;
}

Test(status, last_error_belongs_to_its_thread) {
  cr_assert_eq(tdm_last_error()->status, TDM_OK);
  cr_assert_str_eq(tdm_last_error()->message, "");
  tdm_status elsewhere = TDM_OK;
  pthread_t thread;
  cr_assert_eq(pthread_create(&thread, NULL, fail_elsewhere, &elsewhere), 0);
  pthread_join(thread, NULL);
  cr_assert_eq(elsewhere, TDM_INVALID_ARGUMENT);
  cr_assert_eq(tdm_last_error()->status, TDM_OK);
}

/* One change to good configs, and what must be said of it. */
typedef struct runtime_case {
  const char* name;
  void (*change)(tdm_runtime_config* config);
  tdm_status status;
  const char* words;
} runtime_case;

static void* no_alloc(void* ctx, size_t bytes, size_t alignment) {
  (void)ctx;
  (void)bytes;
  (void)alignment;
  return NULL;
}
static void no_free(void* ctx, void* memory, size_t bytes) {
  (void)ctx;
  (void)memory;
  (void)bytes;
}

static void size_zero(tdm_runtime_config* c) {
  c->size = 0;
}
static void size_huge(tdm_runtime_config* c) {
  c->size = sizeof *c + 8;
}
static void bad_kind(tdm_runtime_config* c) {
  c->device_kind = (tdm_device_kind)9;
}
static void negative_ordinal(tdm_runtime_config* c) {
  c->device_ordinal = -1;
}
static void second_host(tdm_runtime_config* c) {
  c->device_ordinal = 1;
}
static void cuda(tdm_runtime_config* c) {
  c->device_kind = TDM_DEVICE_CUDA;
}
static void bad_level(tdm_runtime_config* c) {
  c->log_level = (tdm_log_level)0;
}
static void half_host(tdm_runtime_config* c) {
  c->host_allocator.alloc = no_alloc;
}
static void half_device(tdm_runtime_config* c) {
  c->device_allocator.free = no_free;
}
static void no_memory(tdm_runtime_config* c) {
  c->host_allocator = (tdm_allocator){no_alloc, no_free, NULL};
}

Test(runtime, refuses_bad_configs) {
  static const runtime_case cases[] = {
      {"size 0", size_zero, TDM_INVALID_ARGUMENT, "tdm_runtime_config.size is 0"},
      {"size of a newer library", size_huge, TDM_INVALID_ARGUMENT, "tdm_runtime_config.size is"},
      {"no such kind", bad_kind, TDM_INVALID_ARGUMENT, "device_kind is 9"},
      {"negative ordinal", negative_ordinal, TDM_INVALID_ARGUMENT, "device_ordinal is -1"},
      {"second host", second_host, TDM_INVALID_ARGUMENT, "ordinal is 1"},
      {"cuda", cuda, TDM_UNSUPPORTED, "cuda:0"},
      {"no such log level", bad_level, TDM_INVALID_ARGUMENT, "log_level is 0"},
      {"host allocator without free", half_host, TDM_INVALID_ARGUMENT, "host_allocator"},
      {"device allocator without alloc", half_device, TDM_INVALID_ARGUMENT, "device_allocator"},
      {"allocator without memory", no_memory, TDM_OUT_OF_MEMORY, "bytes of host memory"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    tdm_runtime_config config;
    cr_assert_eq(tdm_runtime_config_init(&config, sizeof config), TDM_OK);
    cases[i].change(&config);
    tdm_runtime* runtime = (tdm_runtime*)&config;
    test_expect_failure(cases[i].name, tdm_runtime_create(&config, &runtime), cases[i].status, cases[i].words);
    cr_assert_null(runtime, "%s: out_runtime must be NULL", cases[i].name);
  }
  test_expect_failure("NULL", tdm_runtime_create(NULL, NULL), TDM_INVALID_ARGUMENT, "out_runtime");
  test_expect_failure("init NULL", tdm_runtime_config_init(NULL, 8), TDM_INVALID_ARGUMENT, "tdm_runtime_config_init");
  cr_assert_eq(tdm_runtime_destroy(NULL), TDM_OK);
}

/* A caller that was compiled when the struct ended after device_ordinal. */
Test(runtime, accepts_an_older_config) {
  tdm_runtime_config config;
  memset(&config, 0xee, sizeof config);
  const size_t old = offsetof(tdm_runtime_config, host_allocator);
  cr_assert_eq(tdm_runtime_config_init(&config, old), TDM_OK);
  cr_assert_eq(((uint8_t*)&config)[old], 0xee, "nothing beyond the caller's struct is written");
  tdm_runtime* runtime;
  cr_assert_eq(tdm_runtime_create(&config, &runtime), TDM_OK, "%s", tdm_last_error()->message);
  tdm_runtime_info info = {.size = sizeof info};
  cr_assert_eq(tdm_runtime_get_info(runtime, &info), TDM_OK);
  cr_assert_eq(info.device_kind, TDM_DEVICE_HOST);
  cr_assert_str_eq(info.device_name, "host");
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK);
}

Test(runtime, refuses_to_go_while_it_is_needed) {
  tdm_runtime* runtime;
  tdm_buffer* buffer;
  tdm_program* program;
  cr_assert_eq(tdm_runtime_create(NULL, &runtime), TDM_OK);
  cr_assert_eq(tdm_buffer_create(runtime, 64, &buffer), TDM_OK);
  cr_assert_eq(tdm_program_create(runtime, "p", &program), TDM_OK);
  test_expect_failure("alive", tdm_runtime_destroy(runtime), TDM_INVALID_STATE, "1 buffers|1 programs");
  tdm_buffer_destroy(buffer);
  test_expect_failure("alive", tdm_runtime_destroy(runtime), TDM_INVALID_STATE, "1 programs");
  tdm_program_destroy(program);
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK);
}

static tdm_status get_lane(tdm_runtime* runtime, const char* name, tdm_lane_kind kind, int32_t sms, tdm_lane** lane) {
  tdm_lane_config config;
  tdm_lane_config_init(&config, sizeof config);
  config.name = name;
  config.kind = kind;
  config.sms = sms;
  return tdm_lane_get(runtime, &config, lane);
}

Test(lanes, come_from_one_pool) {
  tdm_runtime* runtime;
  tdm_lane *main_lane, *again, *green;
  cr_assert_eq(tdm_runtime_create(NULL, &runtime), TDM_OK);
  cr_assert_eq(get_lane(runtime, "main", TDM_LANE_WHOLE, 0, &main_lane), TDM_OK);
  cr_assert_eq(get_lane(runtime, "main", TDM_LANE_WHOLE, 0, &again), TDM_OK);
  cr_assert_eq(main_lane, again);
  cr_assert_eq(get_lane(runtime, "router", TDM_LANE_GREEN, 16, &green), TDM_OK);
  tdm_lane_info info = {.size = sizeof info};
  cr_assert_eq(tdm_lane_get_info(green, &info), TDM_OK);
  cr_assert_str_eq(info.name, "router");
  cr_assert_eq(info.requested_sms, 16);
  cr_assert_eq(info.granted_sms, 0, "the host device has no SMs to grant");
  test_expect_failure("other kind", get_lane(runtime, "router", TDM_LANE_SOFT, 16, &again), TDM_INVALID_ARGUMENT,
                      "router");
  test_expect_failure("other SMs", get_lane(runtime, "router", TDM_LANE_GREEN, 8, &again), TDM_INVALID_ARGUMENT,
                      "16 SMs|8 SMs");
  test_expect_failure("no name", get_lane(runtime, NULL, TDM_LANE_WHOLE, 0, &again), TDM_INVALID_ARGUMENT, "name");
  test_expect_failure("empty name", get_lane(runtime, "", TDM_LANE_WHOLE, 0, &again), TDM_INVALID_ARGUMENT, "name");
  test_expect_failure("long name",
                      get_lane(runtime, "0123456789012345678901234567890123456789", TDM_LANE_WHOLE, 0, &again),
                      TDM_INVALID_ARGUMENT, "31 characters");
  test_expect_failure("kind", get_lane(runtime, "x", (tdm_lane_kind)4, 0, &again), TDM_INVALID_ARGUMENT, "kind 4");
  test_expect_failure("whole with SMs", get_lane(runtime, "x", TDM_LANE_WHOLE, 8, &again), TDM_INVALID_ARGUMENT,
                      "8 SMs");
  test_expect_failure("green without", get_lane(runtime, "x", TDM_LANE_GREEN, 0, &again), TDM_INVALID_ARGUMENT,
                      "0 SMs");
  for (int i = 2; i < 16; i++) {
    char name[16];
    snprintf(name, sizeof name, "lane%d", i);
    cr_assert_eq(get_lane(runtime, name, TDM_LANE_WHOLE, 0, &again), TDM_OK);
  }
  test_expect_failure("too many", get_lane(runtime, "last", TDM_LANE_WHOLE, 0, &again), TDM_UNSUPPORTED, "at most 16");
  cr_assert_null(again);
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK);
}

Test(buffers, wrap_read_write) {
  tdm_runtime* runtime;
  tdm_buffer *buffer, *wrapped;
  _Alignas(16) uint8_t memory[64] = {0}, out[8];
  cr_assert_eq(tdm_runtime_create(NULL, &runtime), TDM_OK);
  cr_assert_eq(tdm_buffer_create(runtime, 40, &buffer), TDM_OK);
  cr_assert_eq((uintptr_t)tdm_buffer_data(buffer) % 256, 0);
  cr_assert_eq(tdm_buffer_bytes(buffer), 40);
  cr_assert_eq(tdm_buffer_read(buffer, 32, out, 8), TDM_OK);
  for (int i = 0; i < 8; i++) cr_assert_eq(out[i], 0, "buffers start as zeros");
  cr_assert_eq(tdm_buffer_write(buffer, 32, "abcdefgh", 8), TDM_OK);
  cr_assert_eq(tdm_buffer_read(buffer, 32, out, 8), TDM_OK);
  cr_assert_arr_eq(out, "abcdefgh", 8);
  test_expect_failure("past the end", tdm_buffer_write(buffer, 33, "abcdefgh", 8), TDM_INVALID_ARGUMENT,
                      "33 .. 41|40 bytes");
  test_expect_failure("far out", tdm_buffer_read(buffer, SIZE_MAX, out, 8), TDM_INVALID_ARGUMENT, "40 bytes");
  test_expect_failure("NULL", tdm_buffer_read(buffer, 0, NULL, 8), TDM_INVALID_ARGUMENT, "NULL");
  test_expect_failure("no bytes", tdm_buffer_create(runtime, 0, &wrapped), TDM_INVALID_ARGUMENT, "0 bytes");
  test_expect_failure("too many", tdm_buffer_create(runtime, SIZE_MAX, &wrapped), TDM_INVALID_ARGUMENT, "bytes");
  test_expect_failure("misaligned", tdm_buffer_wrap(runtime, memory + 1, 8, &wrapped), TDM_INVALID_ARGUMENT, "16-byte");
  cr_assert_eq(tdm_buffer_wrap(runtime, memory, 64, &wrapped), TDM_OK);
  cr_assert_eq(tdm_buffer_write(wrapped, 3, "x", 1), TDM_OK);
  cr_assert_eq(memory[3], 'x');
  tdm_buffer_destroy(wrapped);
  tdm_buffer_destroy(buffer);
  tdm_buffer_destroy(NULL);
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK);
}

/* Host and device memory come from the callbacks and all of it goes back, with the sizes it was asked for. */
Test(runtime, uses_the_callers_allocators) {
  test_heap host = TEST_HEAP_INIT, device = TEST_HEAP_INIT;
  tdm_runtime_config config;
  tdm_runtime_config_init(&config, sizeof config);
  config.host_allocator = test_heap_allocator(&host);
  config.device_allocator = test_heap_allocator(&device);
  tdm_runtime* runtime;
  tdm_buffer* buffer;
  tdm_lane* lane;
  cr_assert_eq(tdm_runtime_create(&config, &runtime), TDM_OK);
  cr_assert_eq(tdm_buffer_create(runtime, 1000, &buffer), TDM_OK);
  cr_assert_eq(get_lane(runtime, "main", TDM_LANE_WHOLE, 0, &lane), TDM_OK);
  cr_assert_eq(device.bytes, 1000);
  cr_assert_gt(host.outstanding, 2);
  tdm_buffer_destroy(buffer);
  cr_assert_eq(tdm_runtime_destroy(runtime), TDM_OK);
  cr_assert_eq(host.outstanding, 0);
  cr_assert_eq(host.bytes, 0);
  cr_assert_eq(device.outstanding, 0);
  cr_assert_eq(device.bytes, 0);
}

/* Random programs run serially, in shuffled orders and on lanes side by side: always the same bits. ThreadSanitizer
 * watches the lanes where it is built in. */

#include <stdio.h>
#include <stdlib.h>

#include "tests/support/probe.h"

enum { STEPS = 400, LANES = 4, SPACES = 24, BYTES = 384, PITCH = 64 };

static uint64_t next_random(uint64_t* state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return *state >> 33;
}

static void must(tdm_status status) {
  if (status == TDM_OK) return;
  printf("%s: %s\n", tdm_status_name(status), tdm_last_error()->message);
  exit(1);
}

static tdm_view random_view(const tdm_view* spaces, uint64_t* random) {
  tdm_view view = spaces[next_random(random) % SPACES];
  int64_t extent = BYTES;
  if (next_random(random) % 2) {
    view.rank = 2;
    view.shape[0] = BYTES / PITCH;
    view.stride[0] = PITCH;
    view.stride[1] = 1;
    extent = PITCH;
  }
  const int64_t begin = (int64_t)(next_random(random) % (uint64_t)extent);
  return tdm_view_slice(view, view.rank - 1, begin, 1 + (int64_t)(next_random(random) % (uint64_t)(extent - begin)));
}

/* The bytes of all spaces after one run from zeroed buffers. */
static void run(tdm_program* program, const tdm_view* spaces, tdm_order order, uint64_t seed, uint8_t* out) {
  tdm_launch_config config;
  must(tdm_launch_config_init(&config, sizeof config));
  config.order = order;
  config.seed = seed;
  static const uint8_t zeros[BYTES];
  for (int i = 0; i < SPACES; i++) must(tdm_buffer_write(spaces[i].buffer, 0, zeros, BYTES));
  must(tdm_program_launch(program, &config));
  for (int i = 0; i < SPACES; i++) must(tdm_buffer_read(spaces[i].buffer, 0, out + i * BYTES, BYTES));
}

static int compare_orders(uint64_t seed) {
  tdm_runtime* runtime;
  tdm_program* program;
  tdm_lane* lanes[LANES];
  tdm_view spaces[SPACES];
  must(tdm_runtime_create(NULL, &runtime));
  must(tdm_program_create(runtime, "orders", &program));
  for (int i = 0; i < LANES; i++) {
    const char* const names[LANES] = {"a", "b", "c", "d"};
    tdm_lane_config config;
    must(tdm_lane_config_init(&config, sizeof config));
    config.name = names[i];
    must(tdm_lane_get(runtime, &config, &lanes[i]));
  }
  for (int i = 0; i < SPACES; i++) {
    const int64_t bytes = BYTES;
    if (i % 2) { /* temporaries, kept so that their end can be seen */
      must(tdm_program_temp(program, "space", TDM_U8, 1, &bytes, &spaces[i]));
      must(tdm_program_keep(program, &spaces[i]));
    } else {
      tdm_buffer* buffer;
      must(tdm_buffer_create(runtime, BYTES, &buffer));
      spaces[i] = tdm_view_make(buffer, TDM_U8, 1, &bytes);
    }
  }
  uint64_t random = seed;
  for (int i = 0; i < STEPS; i++) {
    probe_args args = {.size = sizeof args, .salt = (uint64_t)i};
    tdm_view* const views[] = {&args.read0, &args.read1, &args.read2, &args.write0, &args.write1, &args.update};
    for (int k = 0; k < 6; k++)
      if (next_random(&random) % 3 == 0) *views[k] = random_view(spaces, &random);
    args.scratch_bytes = next_random(&random) % 4 ? 0 : 200;
    must(tdm_program_append(program, lanes[next_random(&random) % LANES], &probe_op, "step", &args));
  }
  must(tdm_program_seal(program, NULL));

  static uint8_t expected[SPACES * BYTES], found[SPACES * BYTES];
  int different = 0;
  run(program, spaces, TDM_ORDER_SERIAL, 0, expected);
  for (uint64_t i = 0; i < 40; i++) {
    run(program, spaces, i % 2 ? TDM_ORDER_LANES : TDM_ORDER_SHUFFLED, i, found);
    if (memcmp(found, expected, sizeof expected) == 0) continue;
    printf("seed %d: run %d (%s) gave other bytes than serial order\n", (int)seed, (int)i,
           i % 2 ? "lanes" : "shuffled");
    different++;
  }
  for (int i = 0; i < SPACES; i += 2) tdm_buffer_destroy(spaces[i].buffer);
  tdm_program_destroy(program);
  must(tdm_runtime_destroy(runtime));
  return different;
}

int main(void) {
  int different = 0;
  for (uint64_t seed = 1; seed <= 5; seed++) different += compare_orders(seed);
  printf("%d of 200 runs differ from serial order\n", different);
  return different != 0;
}

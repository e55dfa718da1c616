#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>

#include "tests/emulated/emulated.h"
#include "tests/emulated/flawed.h"

enum { ROWS = 7, SEEDS = 40 };

/* Launches in so many orders; answers in how many of them the sums are right. */
static int right_sums(flaw which) {
  static float x[ROWS][FLAWED_COLUMNS], out[FLAWED_COLUMNS];
  const tdm_tensor_tile tile = {x, TDM_F32, 2, {FLAWED_COLUMNS, ROWS}, {sizeof x[0]}, {FLAWED_COLUMNS, 1}, false};
  flawed_params params = {.out = out, .rows = ROWS, .flaw = which};
  tdm_encoded_launch launch = {{"flawed_sum", 1, FLAWED_THREADS, FLAWED_SHARED_BYTES, false}, sizeof params, {0}};
  for (int i = 0; i < ROWS * FLAWED_COLUMNS; i++) x[i / FLAWED_COLUMNS][i % FLAWED_COLUMNS] = (float)(i * i % 251);
  cr_assert_eq(emulated_encode(NULL, &tile, &params.x), TDM_OK);
  memcpy(launch.params, &params, sizeof params);
  int right = 0;
  for (uint64_t seed = 0; seed < SEEDS; seed++) {
    memset(out, 0xff, sizeof out);
    cr_assert(emulated_launch(&launch, seed));
    bool same = true;
    for (int column = 0; column < FLAWED_COLUMNS; column++) {
      float sum = 0.0f;
      for (int row = 0; row < ROWS; row++) sum += x[row][column];
      same = same && out[column] == sum;
    }
    right += same;
  }
  return right;
}

Test(emulator, a_right_kernel_is_right_in_every_order) {
  cr_expect_eq(right_sums(FLAW_NONE), SEEDS);
}

Test(emulator, a_wait_in_the_wrong_place_gives_wrong_sums) {
  cr_expect_eq(right_sums(FLAW_READS_EARLY), 0);
  cr_expect_lt(right_sums(FLAW_GIVES_BACK_EARLY), SEEDS / 2);
}

/* What no kernel may do ends the process. */

Test(emulator, a_stage_that_is_filled_again_too_early, .signal = SIGABRT) {
  (void)right_sums(FLAW_FILLS_EARLY);
}

Test(emulator, arrivals_that_are_too_many, .signal = SIGABRT) {
  (void)right_sums(FLAW_ARRIVES_TOO_OFTEN);
}

Test(emulator, an_end_under_a_copy, .signal = SIGABRT) {
  (void)right_sums(FLAW_STOPS_EARLY);
}

Test(emulator, a_wait_without_end, .signal = SIGABRT) {
  (void)right_sums(FLAW_WAITS_FOREVER);
}

Test(emulator, a_barrier_that_a_thread_misses, .signal = SIGABRT) {
  (void)right_sums(FLAW_MISSES_A_BARRIER);
}

Test(emulator, stores_past_shared_memory, .signal = SIGABRT) {
  (void)right_sums(FLAW_WRITES_TOO_FAR);
}

Test(emulator, copies_past_shared_memory, .signal = SIGABRT) {
  (void)right_sums(FLAW_COPIES_TOO_FAR);
}

Test(emulator, knows_no_other_kernels) {
  const tdm_encoded_launch launch = {{"tdm_rope_sm90", 1, 32, 0, false}, 0, {0}};
  cr_expect_not(emulated_launch(&launch, 0));
}

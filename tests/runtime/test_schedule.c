/* Waits and workspace of random programs, judged by brute force over the happens-before order. */

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/program.h"
#include "tests/support/probe.h"
#include "tests/support/random.h"

enum { STEPS = 1000, LANES = 4, TEMPS = 40, BUFFERS = 3, BYTES = 512, PITCH = 64, WORDS = (STEPS + 63) / 64 };

/* What one step touches, byte by byte, written down apart from the library. Spaces: the temporaries, then the buffers.
 */
typedef struct footprint {
  uint8_t reads[(TEMPS + BUFFERS) * BYTES / 8], writes[(TEMPS + BUFFERS) * BYTES / 8];
} footprint;

typedef struct random_program {
  tdm_runtime* runtime;
  tdm_lane* lanes[LANES];
  tdm_program* program;
  tdm_view spaces[TEMPS + BUFFERS];
  tdm_buffer* buffers[BUFFERS];
  int32_t n_steps;
  int32_t lane_of[STEPS];
  footprint* footprints;    /* [STEPS] */
  uint64_t (*after)[WORDS]; /* after[a] has bit b: a is done before b starts */
} random_program;

static void mark(uint8_t* bits, int64_t space, const tdm_view* view) {
  const int64_t cols = view->rank == 2 ? view->shape[1] : 1;
  for (int64_t row = 0; row < view->shape[0]; row++)
    for (int64_t col = 0; col < cols; col++) {
      const int64_t byte = space * BYTES + view->offset_bytes + row * view->stride[0] + col * view->stride[1];
      bits[byte / 8] |= (uint8_t)(1u << (byte % 8));
    }
}

/* A run of bytes, or a band of columns through all rows of a space. */
static tdm_view random_view(random_program* p, test_random* random, int64_t* out_space) {
  *out_space = test_random_below(random, TEMPS + BUFFERS);
  tdm_view view = p->spaces[*out_space];
  if (test_random_below(random, 2)) {
    const int64_t begin = test_random_below(random, BYTES), count = 1 + test_random_below(random, BYTES - begin);
    return tdm_view_slice(view, 0, begin, count);
  }
  view.rank = 2;
  view.shape[0] = BYTES / PITCH;
  view.stride[0] = PITCH;
  view.shape[1] = PITCH;
  view.stride[1] = 1;
  const int64_t begin = test_random_below(random, PITCH), count = 1 + test_random_below(random, PITCH - begin);
  return tdm_view_slice(view, 1, begin, count);
}

static void append_random_step(random_program* p, test_random* random, int32_t index) {
  probe_args args = {.size = sizeof args, .salt = (uint64_t)index};
  tdm_view* const views[] = {&args.read0, &args.read1, &args.read2, &args.write0, &args.write1, &args.update};
  footprint* touched = &p->footprints[index];
  for (int i = 0; i < 6; i++) {
    if (test_random_below(random, 3) == 0) continue;
    int64_t space;
    *views[i] = random_view(p, random, &space);
    if (i < PROBE_READS || i == 5) mark(touched->reads, space, views[i]);
    if (i >= PROBE_READS) mark(touched->writes, space, views[i]);
  }
  if (test_random_below(random, 4) == 0) args.scratch_bytes = (size_t)(1 + test_random_below(random, 700));
  p->lane_of[index] = (int32_t)test_random_below(random, LANES);
  cr_assert_eq(tdm_program_append(p->program, p->lanes[p->lane_of[index]], &probe_op, "step", &args), TDM_OK, "%s",
               tdm_last_error()->message);
}

static void program_open(random_program* p, uint64_t seed, int32_t n_steps) {
  *p = (random_program){.n_steps = n_steps};
  p->footprints = calloc((size_t)n_steps, sizeof *p->footprints);
  p->after = calloc((size_t)n_steps, sizeof *p->after);
  test_random random = {.state = seed};
  cr_assert_eq(tdm_runtime_create(NULL, &p->runtime), TDM_OK);
  for (int i = 0; i < LANES; i++) {
    tdm_lane_config config;
    tdm_lane_config_init(&config, sizeof config);
    config.name = (const char*[]){"a", "b", "c", "d"}[i];
    cr_assert_eq(tdm_lane_get(p->runtime, &config, &p->lanes[i]), TDM_OK);
  }
  cr_assert_eq(tdm_program_create(p->runtime, "random", &p->program), TDM_OK);
  const int64_t shape[] = {BYTES};
  for (int i = 0; i < TEMPS + BUFFERS; i++) {
    char label[16];
    snprintf(label, sizeof label, "t%d", i);
    if (i < TEMPS) {
      cr_assert_eq(tdm_program_temp(p->program, label, TDM_U8, 1, shape, &p->spaces[i]), TDM_OK);
      continue;
    }
    cr_assert_eq(tdm_buffer_create(p->runtime, BYTES, &p->buffers[i - TEMPS]), TDM_OK);
    p->spaces[i] = tdm_view_make(p->buffers[i - TEMPS], TDM_U8, 1, shape);
  }
  for (int32_t i = 0; i < n_steps; i++) append_random_step(p, &random, i);
  cr_assert_eq(tdm_program_seal(p->program, NULL), TDM_OK, "%s", tdm_last_error()->message);
}

static void program_close(random_program* p) {
  tdm_program_destroy(p->program);
  for (int i = 0; i < BUFFERS; i++) tdm_buffer_destroy(p->buffers[i]);
  cr_assert_eq(tdm_runtime_destroy(p->runtime), TDM_OK, "%s", tdm_last_error()->message);
  free(p->footprints);
  free(p->after);
}

static bool bit(const uint64_t* words, int32_t index) {
  return words[index / 64] >> (index % 64) & 1;
}

/* Closes `after` over lane order and waits, except wait number `without`. Steps only point forward, so one pass from
 * the back is enough. */
static void close_order(random_program* p, const tdm_wait* waits, int32_t n_waits, int32_t without) {
  memset(p->after, 0, (size_t)p->n_steps * sizeof *p->after);
  int32_t next_of_lane[LANES] = {-1, -1, -1, -1};
  for (int32_t a = p->n_steps - 1; a >= 0; a--) {
    const int32_t next = next_of_lane[p->lane_of[a]];
    next_of_lane[p->lane_of[a]] = a;
    for (int32_t i = -1; i < n_waits; i++) {
      const int32_t b = i < 0 ? next : waits[i].signaler == a && i != without ? waits[i].waiter : -1;
      if (b < 0) continue;
      p->after[a][b / 64] |= 1ull << (b % 64);
      for (int w = 0; w < WORDS; w++) p->after[a][w] |= p->after[b][w];
    }
  }
}

static bool conflict(const footprint* a, const footprint* b) {
  for (size_t i = 0; i < sizeof a->reads; i++)
    if ((a->writes[i] & (b->reads[i] | b->writes[i])) || (a->reads[i] & b->writes[i])) return true;
  return false;
}

static tdm_wait* get_waits(const random_program* p, int32_t* out_count) {
  cr_assert_eq(tdm_program_get_waits(p->program, NULL, 0, out_count), TDM_OK);
  tdm_wait* waits = calloc((size_t)*out_count + 1, sizeof *waits);
  cr_assert_eq(tdm_program_get_waits(p->program, waits, *out_count, out_count), TDM_OK);
  return waits;
}

Test(schedule, waits_are_sufficient) {
  for (uint64_t seed = 1; seed <= 3; seed++) {
    random_program p;
    program_open(&p, seed, STEPS);
    int32_t n_waits, conflicts = 0;
    tdm_wait* waits = get_waits(&p, &n_waits);
    close_order(&p, waits, n_waits, -1);
    for (int32_t a = 0; a < STEPS; a++)
      for (int32_t b = a + 1; b < STEPS; b++) {
        if (!conflict(&p.footprints[a], &p.footprints[b])) continue;
        conflicts++;
        cr_assert(bit(p.after[a], b), "seed %d: steps %d and %d conflict and are not ordered", (int)seed, a, b);
      }
    cr_assert_gt(conflicts, 10000, "the case is too easy: %d conflicts", conflicts);
    cr_assert_gt(n_waits, 300, "the case is too easy: %d waits", n_waits);
    free(waits);
    program_close(&p);
  }
}

Test(schedule, no_wait_is_redundant) {
  enum { FEW = 250 }; /* every wait is left out once and the order closed anew */
  for (uint64_t seed = 11; seed <= 13; seed++) {
    random_program p;
    program_open(&p, seed, FEW);
    int32_t n_waits;
    tdm_wait* waits = get_waits(&p, &n_waits);
    for (int32_t i = 0; i < n_waits; i++) {
      cr_assert_lt(waits[i].signaler, waits[i].waiter);
      cr_assert_neq(p.lane_of[waits[i].signaler], p.lane_of[waits[i].waiter]);
      cr_assert(conflict(&p.footprints[waits[i].signaler], &p.footprints[waits[i].waiter]),
                "seed %d: step %d waits for step %d without need", (int)seed, waits[i].waiter, waits[i].signaler);
      close_order(&p, waits, n_waits, i);
      cr_assert(!bit(p.after[waits[i].signaler], waits[i].waiter),
                "seed %d: the wait of step %d for step %d is implied", (int)seed, waits[i].waiter, waits[i].signaler);
    }
    cr_assert_gt(n_waits, 50, "the case is too easy: %d waits", n_waits);
    free(waits);
    program_close(&p);
  }
}

/* Temporaries that share bytes are used strictly one after the other. */
Test(schedule, sharing_memory_needs_no_further_waits) {
  for (uint64_t seed = 21; seed <= 24; seed++) {
    random_program p;
    program_open(&p, seed, 60);
    int32_t n_waits, shared = 0;
    tdm_wait* waits = get_waits(&p, &n_waits);
    close_order(&p, waits, n_waits, -1);
    for (int a = 0; a < TEMPS; a++)
      for (int b = 0; b < TEMPS; b++) {
        const size_t first = p.program->temps[a].offset, second = p.program->temps[b].offset;
        if (a == b || first >= second + BYTES || second >= first + BYTES) continue;
        bool a_first = true, b_first = true;
        for (int32_t i = 0; i < p.n_steps; i++)
          for (int32_t k = 0; k < p.n_steps; k++) {
            const footprint *x = &p.footprints[i], *y = &p.footprints[k];
            bool uses_a = false, uses_b = false;
            for (int byte = 0; byte < BYTES / 8; byte++) {
              uses_a = uses_a || x->reads[a * BYTES / 8 + byte] || x->writes[a * BYTES / 8 + byte];
              uses_b = uses_b || y->reads[b * BYTES / 8 + byte] || y->writes[b * BYTES / 8 + byte];
            }
            if (!uses_a || !uses_b) continue;
            a_first = a_first && bit(p.after[i], k);
            b_first = b_first && bit(p.after[k], i);
          }
        cr_assert(a_first || b_first, "seed %d: temporaries %d and %d share bytes at %zu and %zu", (int)seed, a, b,
                  first, second);
        shared++;
      }
    tdm_program_info info = {.size = sizeof info};
    tdm_program_get_info(p.program, &info);
    cr_assert(shared == 0 || info.workspace_bytes < info.temp_bytes + 60 * 1024);
    free(waits);
    program_close(&p);
  }
}

/* A chain of temporaries on one lane needs no more than the two that are alive at a time. */
Test(schedule, a_chain_takes_two_temporaries) {
  random_program p;
  program_open(&p, 1, 1);
  tdm_program* program;
  cr_assert_eq(tdm_program_create(p.runtime, "chain", &program), TDM_OK);
  tdm_view last = {0};
  for (int i = 0; i < 20; i++) {
    tdm_view next;
    cr_assert_eq(tdm_program_temp(program, "link", TDM_U8, 1, (int64_t[]){1024}, &next), TDM_OK);
    probe_args args = {.size = sizeof args, .read0 = last, .write0 = next};
    cr_assert_eq(tdm_program_append(program, p.lanes[0], &probe_op, "link", &args), TDM_OK);
    last = next;
  }
  cr_assert_eq(tdm_program_seal(program, NULL), TDM_OK);
  tdm_program_info info = {.size = sizeof info};
  cr_assert_eq(tdm_program_get_info(program, &info), TDM_OK);
  cr_assert_eq(info.temp_bytes, 20 * 1024);
  cr_assert_eq(info.workspace_bytes, 2 * 1024);
  cr_assert_eq(info.waits, 0);
  tdm_program_destroy(program);
  program_close(&p);
}

/* Two lanes writing two bands of the same rows, as the latent and the rotated part of queries, do not wait for each
 * other. */
Test(schedule, interleaved_bands_do_not_conflict) {
  random_program p;
  program_open(&p, 1, 1);
  tdm_program* program;
  tdm_view rows;
  cr_assert_eq(tdm_program_create(p.runtime, "bands", &program), TDM_OK);
  cr_assert_eq(tdm_program_temp(program, "rows", TDM_U8, 2, (int64_t[]){8, 576}, &rows), TDM_OK);
  probe_args left = {.size = sizeof left, .write0 = tdm_view_slice(rows, 1, 0, 512)};
  probe_args right = {.size = sizeof right, .write0 = tdm_view_slice(rows, 1, 512, 64)};
  probe_args both = {.size = sizeof both, .read0 = rows};
  cr_assert_eq(tdm_program_append(program, p.lanes[0], &probe_op, "left", &left), TDM_OK);
  cr_assert_eq(tdm_program_append(program, p.lanes[1], &probe_op, "right", &right), TDM_OK);
  cr_assert_eq(tdm_program_append(program, p.lanes[0], &probe_op, "both", &both), TDM_OK);
  cr_assert_eq(tdm_program_seal(program, NULL), TDM_OK);
  tdm_wait waits[4];
  int32_t count;
  cr_assert_eq(tdm_program_get_waits(program, waits, 4, &count), TDM_OK);
  cr_assert_eq(count, 1);
  cr_assert_eq(waits[0].signaler, 1);
  cr_assert_eq(waits[0].waiter, 2);
  tdm_program_destroy(program);
  program_close(&p);
}

/* Two buffers over the same memory are the same memory. */
Test(schedule, wrapped_memory_is_compared_by_address) {
  random_program p;
  program_open(&p, 1, 1);
  tdm_program* program;
  tdm_buffer* alias;
  cr_assert_eq(tdm_program_create(p.runtime, "alias", &program), TDM_OK);
  cr_assert_eq(tdm_buffer_wrap(p.runtime, tdm_buffer_data(p.buffers[0]), BYTES, &alias), TDM_OK);
  probe_args writer = {.size = sizeof writer, .write0 = p.spaces[TEMPS]};
  probe_args reader = {.size = sizeof reader, .read0 = tdm_view_make(alias, TDM_U8, 1, (int64_t[]){BYTES})};
  cr_assert_eq(tdm_program_append(program, p.lanes[0], &probe_op, "writer", &writer), TDM_OK);
  cr_assert_eq(tdm_program_append(program, p.lanes[1], &probe_op, "reader", &reader), TDM_OK);
  cr_assert_eq(tdm_program_seal(program, NULL), TDM_OK);
  int32_t count;
  cr_assert_eq(tdm_program_get_waits(program, NULL, 0, &count), TDM_OK);
  cr_assert_eq(count, 1);
  tdm_program_destroy(program);
  tdm_buffer_destroy(alias);
  program_close(&p);
}

/* One runtime used by several threads: each builds, launches and checks programs of its own, all launch one they share,
 * and some of their calls fail, which none of the others may see. ThreadSanitizer watches where it is built in. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "tandem/graph.h"
#include "tests/support/probe.h"

enum { THREADS = 4, ROUNDS = 30, BYTES = 256 };

typedef struct shared_things {
  tdm_runtime* runtime;
  tdm_program* program; /* launched by everybody */
  atomic_int wrong;
} shared_things;

static void must(tdm_status status) {
  if (status == TDM_OK) return;
  printf("%s: %s\n", tdm_status_name(status), tdm_last_error()->message);
  exit(1);
}

static tdm_lane* lane_of(tdm_runtime* runtime, const char* name) {
  tdm_lane_config config;
  tdm_lane* lane;
  must(tdm_lane_config_init(&config, sizeof config));
  config.name = name;
  must(tdm_lane_get(runtime, &config, &lane));
  return lane;
}

/* in ─► middle ─► out, on two lanes. */
static tdm_program* make_program(tdm_runtime* runtime, tdm_buffer* in, tdm_buffer* out) {
  const int64_t bytes = BYTES;
  tdm_program* program;
  tdm_view middle;
  must(tdm_program_create(runtime, "threads", &program));
  must(tdm_program_temp(program, "middle", TDM_U8, 1, &bytes, &middle));
  const probe_args first = {.size = sizeof first, .read0 = tdm_view_make(in, TDM_U8, 1, &bytes), .write0 = middle};
  const probe_args second = {.size = sizeof second, .read0 = middle, .write0 = tdm_view_make(out, TDM_U8, 1, &bytes)};
  must(tdm_program_append(program, lane_of(runtime, "main"), &probe_op, "first", &first));
  must(tdm_program_append(program, lane_of(runtime, "side"), &probe_op, "second", &second));
  must(tdm_program_seal(program, NULL));
  return program;
}

static void* work(void* argument) {
  shared_things* shared = argument;
  tdm_buffer *in, *out;
  must(tdm_buffer_create(shared->runtime, BYTES, &in));
  must(tdm_buffer_create(shared->runtime, BYTES, &out));
  tdm_program* program = make_program(shared->runtime, in, out);
  tdm_graph* graph;
  must(tdm_graph_capture(program, &graph));
  tdm_launch_config serial;
  must(tdm_launch_config_init(&serial, sizeof serial));
  serial.order = TDM_ORDER_SERIAL;
  for (int i = 0; i < ROUNDS; i++) {
    uint8_t input[BYTES], found[BYTES], expected[BYTES];
    memset(input, i, sizeof input);
    must(tdm_buffer_write(in, 0, input, BYTES));
    must(tdm_graph_replay(graph, NULL));
    must(tdm_buffer_read(out, 0, found, BYTES));
    must(tdm_program_launch(shared->program, NULL));
    must(tdm_program_launch(program, &serial));
    must(tdm_buffer_read(out, 0, expected, BYTES));
    if (memcmp(found, expected, BYTES) != 0) shared->wrong++;
    /* A failure of this thread's, with a number of its own in the sentence. */
    char number[32];
    if (tdm_buffer_read(out, (size_t)(BYTES + i), found, 1) != TDM_INVALID_ARGUMENT) shared->wrong++;
    snprintf(number, sizeof number, "bytes %d ..", BYTES + i);
    if (!strstr(tdm_last_error()->message, number)) shared->wrong++;
  }
  tdm_graph_destroy(graph);
  tdm_program_destroy(program);
  tdm_buffer_destroy(in);
  tdm_buffer_destroy(out);
  return NULL;
}

int main(void) {
  shared_things shared = {0};
  tdm_buffer *in, *out;
  pthread_t threads[THREADS];
  must(tdm_runtime_create(NULL, &shared.runtime));
  must(tdm_buffer_create(shared.runtime, BYTES, &in));
  must(tdm_buffer_create(shared.runtime, BYTES, &out));
  shared.program = make_program(shared.runtime, in, out);
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], NULL, work, &shared) != 0) return 1;
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  tdm_program_destroy(shared.program);
  tdm_buffer_destroy(in);
  tdm_buffer_destroy(out);
  must(tdm_runtime_destroy(shared.runtime));
  printf("%d threads, %d rounds each: %d wrong\n", THREADS, ROUNDS, (int)shared.wrong);
  return shared.wrong != 0;
}

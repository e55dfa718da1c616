/* A step whose table leaves out a read must be noticed: by shuffled order, which gives another result, and by
 * ThreadSanitizer, which reports the race between the lanes. Succeeds when it is noticed, and when the honest step
 * raises no alarm. */

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/probe.h"

#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif

/* ThreadSanitizer remembers four accesses to eight bytes: with no more than four bytes the consumer's reads are all
 * still known when the producer writes. */
enum { BYTES = 4 };

typedef struct setting {
  tdm_runtime* runtime;
  tdm_program* program;
  tdm_buffer *input, *result;
} setting;

static void must(tdm_status status) {
  if (status == TDM_OK) return;
  printf("%s: %s\n", tdm_status_name(status), tdm_last_error()->message);
  exit(1);
}

/* input ─ producer (main) ─► middle ─ consumer (side) ─► result: the consumer is `op`. */
static setting open_setting(const tdm_op* op) {
  setting s;
  const int64_t bytes = BYTES;
  tdm_lane* lanes[2];
  tdm_view middle;
  must(tdm_runtime_create(NULL, &s.runtime));
  must(tdm_program_create(s.runtime, "missing read", &s.program));
  for (int i = 0; i < 2; i++) {
    tdm_lane_config config;
    must(tdm_lane_config_init(&config, sizeof config));
    config.name = i ? "side" : "main";
    must(tdm_lane_get(s.runtime, &config, &lanes[i]));
  }
  must(tdm_buffer_create(s.runtime, BYTES, &s.input));
  must(tdm_buffer_create(s.runtime, BYTES, &s.result));
  must(tdm_program_temp(s.program, "middle", TDM_U8, 1, &bytes, &middle));
  /* The nap lets a consumer that does not wait read before the producer writes, with no lock taken in between that
   * would order the two by chance. */
  const probe_args producer = {
      .size = sizeof producer, .read0 = tdm_view_make(s.input, TDM_U8, 1, &bytes), .write0 = middle, .nap_us = 1000};
  const probe_args consumer = {
      .size = sizeof consumer, .read0 = middle, .write0 = tdm_view_make(s.result, TDM_U8, 1, &bytes)};
  must(tdm_program_append(s.program, lanes[0], &probe_op, "producer", &producer));
  must(tdm_program_append(s.program, lanes[1], op, "consumer", &consumer));
  must(tdm_program_keep(s.program, &middle));
  must(tdm_program_seal(s.program, NULL));
  return s;
}

static void close_setting(setting* s) {
  tdm_program_destroy(s->program);
  tdm_buffer_destroy(s->input);
  tdm_buffer_destroy(s->result);
  must(tdm_runtime_destroy(s->runtime));
}

/* Launches whose result differs from the serial one, each with another input. */
static int count_differences(const tdm_op* op, tdm_order order) {
  setting s = open_setting(op);
  tdm_launch_config config;
  must(tdm_launch_config_init(&config, sizeof config));
  int different = 0;
  for (int i = 0; i < 50; i++) {
    static uint8_t input[BYTES], expected[BYTES], found[BYTES];
    memset(input, i, sizeof input);
    must(tdm_buffer_write(s.input, 0, input, BYTES));
    config.order = order;
    config.seed = (uint64_t)i;
    must(tdm_program_launch(s.program, &config));
    must(tdm_buffer_read(s.result, 0, found, BYTES));
    config.order = TDM_ORDER_SERIAL;
    must(tdm_program_launch(s.program, &config));
    must(tdm_buffer_read(s.result, 0, expected, BYTES));
    different += memcmp(found, expected, BYTES) != 0;
  }
  close_setting(&s);
  return different;
}

#ifdef THREAD_SANITIZER
/* Runs the lanes side by side in a child process and says whether its ThreadSanitizer reported a data race. */
static bool reports_race(const tdm_op* op) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    (void)count_differences(op, TDM_ORDER_LANES);
    exit(0);
  }
  close(ends[1]);
  static char report[1 << 20];
  size_t length = 0;
  for (ssize_t n; length + 1 < sizeof report && (n = read(ends[0], report + length, sizeof report - 1 - length)) > 0;)
    length += (size_t)n;
  close(ends[0]);
  waitpid(child, NULL, 0);
  return strstr(report, "data race") != NULL;
}
#endif

int main(void) {
  int wrong = 0;
  const int honest = count_differences(&probe_op, TDM_ORDER_SHUFFLED);
  const int blind = count_differences(&blind_probe_op, TDM_ORDER_SHUFFLED);
  printf("shuffled order: declared read, %d of 50 results differ; undeclared read, %d of 50\n", honest, blind);
  wrong += honest != 0 || blind == 0;
#ifdef THREAD_SANITIZER
  const bool honest_race = reports_race(&probe_op), blind_race = reports_race(&blind_probe_op);
  printf("thread sanitizer: declared read, %s; undeclared read, %s\n", honest_race ? "a race" : "no race",
         blind_race ? "a race" : "no race");
  wrong += honest_race || !blind_race;
#else
  printf("thread sanitizer: not built in, not tried\n");
#endif
  return wrong != 0;
}

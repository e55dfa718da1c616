/* A C11 user of the installed library: the largest logit of two rows, on the host device. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem/tandem.h>

static void check(tdm_status status, const char* call) {
  if (status == TDM_OK) return;
  fprintf(stderr, "%s: %s: %s\n", call, tdm_status_name(status), tdm_last_error()->message);
  exit(1);
}
#define CHECK(call) check((call), #call)

int main(void) {
  tdm_runtime* runtime;
  CHECK(tdm_runtime_create(NULL, &runtime));
  tdm_lane_config lane_config;
  CHECK(tdm_lane_config_init(&lane_config, sizeof lane_config));
  lane_config.name = "main";
  tdm_lane* lane;
  CHECK(tdm_lane_get(runtime, &lane_config, &lane));

  const float logits[2][4] = {{0.5f, 2.0f, -1.0f, 2.0f}, {-3.0f, -2.0f, -1.0f, -4.0f}};
  tdm_buffer *in, *out;
  CHECK(tdm_buffer_create(runtime, sizeof logits, &in));
  CHECK(tdm_buffer_create(runtime, 2 * sizeof(int32_t), &out));
  CHECK(tdm_buffer_write(in, 0, logits, sizeof logits));

  tdm_argmax_args args;
  memset(&args, 0, sizeof args);
  args.size = sizeof args;
  args.logits = tdm_view_make(in, TDM_F32, 2, (const int64_t[]){2, 4});
  args.out = tdm_view_make(out, TDM_I32, 1, (const int64_t[]){2});
  tdm_program* program;
  CHECK(tdm_program_create(runtime, "consumer", &program));
  CHECK(tdm_append_argmax(program, lane, "argmax", &args));
  CHECK(tdm_program_seal(program, NULL));
  CHECK(tdm_program_launch(program, NULL));

  int32_t tokens[2] = {-1, -1};
  CHECK(tdm_buffer_read(out, 0, tokens, sizeof tokens));
  tdm_program_destroy(program);
  tdm_buffer_destroy(in);
  tdm_buffer_destroy(out);
  CHECK(tdm_runtime_destroy(runtime));

  char built_for[32];
  snprintf(built_for, sizeof built_for, "%d.%d.%d", TDM_VERSION_MAJOR, TDM_VERSION_MINOR, TDM_VERSION_PATCH);
  printf("tandem %s: %d %d\n", tdm_version(), (int)tokens[0], (int)tokens[1]);
  return tokens[0] == 1 && tokens[1] == 2 && strcmp(tdm_version(), built_for) == 0 ? 0 : 1;
}

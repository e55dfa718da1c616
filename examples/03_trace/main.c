/* A picture of a decode step: which step ran on which SM, and when. Writes trace.svg and trace.json (for Perfetto). */

#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode_step.h"

enum { EXIT_BAD_USAGE = 2, EXIT_TANDEM = 3, EXIT_FILE = 4 };

typedef struct example_arguments {
  decode_step_options step;
  int64_t tokens, side_sms;
  tdm_strategy strategy;
  tdm_wait_form wait_form;
  tdm_moe_path moe_path;
  const char* folder;
} example_arguments;

static const struct argp_option options[] = {
    {"device", 'd', "auto|host|cuda:N", 0, "where to run (default auto)", 0},
    {"whole", 'w', NULL, 0, "the whole layer (default: the slice of one of 8 tensor-parallel ranks)", 0},
    {"tiny", 't', NULL, 0, "a layer small enough for the host device", 0},
    {"layers", 'l', "N", 0, "layers in a step (default 1)", 0},
    {"context", 'c', "N", 0, "tokens in the cache of each sequence (default 4096)", 0},
    {"strategy", 's', "serial|soft|split|green|signal", 0, "lanes, as in 02_decode_graph (default signal)", 0},
    {"side-sms", 'n', "N", 0, "SMs of the side lane (default 16)", 0},
    {"moe", 'e', DECODE_STEP_MOE, 0,
     "which experts are computed: all, those that a token chose, or these and each for its tokens alone (default auto)",
     0},
    {"tokens", 'm', "N", 0, "sequences in the batch, one token each (default 64)", 0},
    {"output", 'o', "DIR", 0, "folder for trace.svg and trace.json (default .)", 0},
    {0},
};

static error_t parse(int key, char* text, struct argp_state* state) {
  example_arguments* arguments = state->input;
  bool ok = true;
  switch (key) {
  case 'd':
    ok = decode_step_parse_device(text, &arguments->step);
    break;
  case 'w':
    arguments->step.whole = true;
    break;
  case 't':
    arguments->step.tiny = true;
    break;
  case 'l':
    ok = decode_step_parse_number(text, 1, 61, &arguments->step.layers);
    break;
  case 'c':
    ok = decode_step_parse_number(text, 1, 131072, &arguments->step.context);
    break;
  case 's':
    arguments->strategy = strcmp(text, "serial") == 0                                 ? TDM_STRATEGY_SERIAL
                          : strcmp(text, "soft") == 0                                 ? TDM_STRATEGY_SOFT
                          : strcmp(text, "split") == 0                                ? TDM_STRATEGY_SPLIT
                          : strcmp(text, "green") == 0 || strcmp(text, "signal") == 0 ? TDM_STRATEGY_GREEN
                                                                                      : (tdm_strategy)0;
    arguments->wait_form = strcmp(text, "signal") == 0 ? TDM_WAIT_SIGNAL : TDM_WAIT_EDGE;
    ok = arguments->strategy != 0;
    break;
  case 'n':
    ok = decode_step_parse_number(text, 1, 1024, &arguments->side_sms);
    break;
  case 'e':
    ok = decode_step_parse_moe(text, &arguments->moe_path);
    break;
  case 'm':
    ok = decode_step_parse_number(text, 1, DECODE_STEP_MOST, &arguments->tokens);
    break;
  case 'o':
    arguments->folder = text;
    break;
  case ARGP_KEY_ARG:
    argp_error(state, "'%s' is not expected", text);
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
  if (!ok) argp_error(state, "'%s' cannot be used for -%c", text, key);
  return 0;
}

static int fail(const char* what) {
  const tdm_error* error = tdm_last_error();
  fprintf(stderr, "%s: %s: %s\n", what, tdm_status_name(error->status), error->message);
  return EXIT_TANDEM;
}

static void write_file(void* ctx, const char* text, size_t bytes) {
  (void)fwrite(text, 1, bytes, ctx); /* errors stay with the stream, and fclose tells */
}

static int save(tdm_program* program, tdm_trace_format format, const char* folder, const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* file = fopen(path, "w");
  if (!file) {
    perror(path);
    return EXIT_FILE;
  }
  const tdm_status status = tdm_program_write_trace(program, format, write_file, file);
  const bool written = !ferror(file);
  if (fclose(file) != 0 || !written) {
    perror(path);
    return EXIT_FILE;
  }
  if (status != TDM_OK) return fail("trace");
  printf("%s\n", path);
  return EXIT_SUCCESS;
}

/* The step runs a few times: the trace is of the last replay, with everything warm but the weights. */
static int trace_step(tdm_runtime* runtime, tdm_model* model, const example_arguments* arguments) {
  static decode_step step;
  tdm_graph* graph = NULL;
  tdm_status status = decode_step_begin(model, &arguments->step, arguments->tokens, &step);
  if (status == TDM_OK) status = tdm_graph_capture(step.program, &graph);
  for (int i = 0; i < 5 && status == TDM_OK; i++) status = tdm_graph_replay(graph, NULL);
  if (status == TDM_OK) status = tdm_runtime_synchronize(runtime);
  int code = status == TDM_OK ? EXIT_SUCCESS : fail("decode step");
  if (code == EXIT_SUCCESS) code = save(step.program, TDM_TRACE_SVG, arguments->folder, "trace.svg");
  if (code == EXIT_SUCCESS) code = save(step.program, TDM_TRACE_JSON, arguments->folder, "trace.json");
  tdm_graph_destroy(graph);
  decode_step_end(&step);
  return code;
}

static int run(tdm_runtime* runtime, const example_arguments* arguments) {
  tdm_model_config config;
  tdm_model* model = NULL;
  if (tdm_model_config_init(&config, sizeof config) != TDM_OK) return fail("config");
  config.strategy = arguments->strategy;
  config.wait_form = arguments->wait_form;
  config.side_sms = (int32_t)arguments->side_sms;
  config.moe_path = arguments->moe_path;
  config.trace = true;
  if (decode_step_model(runtime, &arguments->step, arguments->tokens, &config, &model) != TDM_OK) return fail("model");
  const int code = trace_step(runtime, model, arguments);
  return tdm_model_destroy(model) == TDM_OK ? code : fail("model");
}

int main(int argc, char** argv) {
  static const char doc[] =
      "Draws a decode step of DeepSeek-V3 layers with random weights: SMs down, time across."
      "\vExit status: 0 done, 2 wrong usage, 3 tandem refused (the reason is on stderr), 4 a file "
      "could not be written.";
  const struct argp argp = {.options = options, .parser = parse, .doc = doc};
  example_arguments arguments = {.step = {.any_device = true, .layers = 1, .context = 4096},
                                 .tokens = 64,
                                 .side_sms = 16,
                                 .strategy = TDM_STRATEGY_GREEN,
                                 .wait_form = TDM_WAIT_SIGNAL,
                                 .moe_path = TDM_MOE_PATH_AUTO,
                                 .folder = "."};
  tdm_runtime* runtime = NULL;
  argp_err_exit_status = EXIT_BAD_USAGE;
  argp_program_version = tdm_version();
  argp_parse(&argp, argc, argv, 0, NULL, &arguments);
  if (decode_step_open(&arguments.step, &runtime) != TDM_OK) return fail("device");
  const int code = run(runtime, &arguments);
  return tdm_runtime_destroy(runtime) == TDM_OK ? code : fail("runtime");
}

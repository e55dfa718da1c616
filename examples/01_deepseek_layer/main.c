/* Loads a DeepSeek-V3-style model from a hub-style folder, prefills and decodes several sequences of different lengths
 * in one batch, compares every layer with HF transformers where the folder has io.safetensors, and generates tokens. */

#include <argp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

enum { EXIT_OVER_LIMIT = 1, EXIT_BAD_USAGE = 2, EXIT_TANDEM = 3 };

typedef struct example_arguments {
  run_options run;
  bool native, float32, json;
  tdm_device_kind device;
  int32_t ordinal;
  bool any_device;
} example_arguments;

static const struct argp_option options[] = {
    {"device", 'd', "auto|host|cuda:N", 0,
     "where to run (default auto: the first GPU that can be driven, else the host)", 0},
    {"activations", 'a', "native|float32|both", 0,
     "native: bf16 and FP8 as on the GPU; float32: nothing rounded, to judge the maths (default both)", 0},
    {"generate", 'g', "N", 0, "generate N greedy tokens for each sequence (default 16)", 0},
    {"json", 'j', NULL, 0, "print the results as JSON", 0},
    {"program", 'p', NULL, 0, "print the last decode step's program: steps, lanes, waits, buffers", 0},
    {"dot", 'o', "FILE", 0, "write that program as Graphviz to FILE", 0},
    {"quiet", 'q', NULL, 0, "no progress line", 0},
    {0},
};

static error_t parse_device(const char* text, example_arguments* arguments) {
  char* end;
  arguments->any_device = strcmp(text, "auto") == 0;
  arguments->device = TDM_DEVICE_HOST;
  if (arguments->any_device || strcmp(text, "host") == 0) return 0;
  if (strncmp(text, "cuda:", 5) != 0 || text[5] < '0' || text[5] > '9') return EINVAL;
  arguments->device = TDM_DEVICE_CUDA;
  const long ordinal = strtol(text + 5, &end, 10);
  arguments->ordinal = (int32_t)ordinal;
  return *end || ordinal > 1024 ? EINVAL : 0;
}

static error_t parse(int key, char* text, struct argp_state* state) {
  example_arguments* arguments = state->input;
  char* end;
  switch (key) {
  case 'd':
    if (parse_device(text, arguments)) argp_error(state, "'%s' is no device: auto, host or cuda:N", text);
    return 0;
  case 'a':
    arguments->native = strcmp(text, "float32") != 0;
    arguments->float32 = strcmp(text, "native") != 0;
    if (arguments->native && arguments->float32 && strcmp(text, "both") != 0)
      argp_error(state, "'%s' is no activation mode: native, float32 or both", text);
    return 0;
  case 'g':
    arguments->run.generate = strtol(text, &end, 10);
    if (*end || end == text || arguments->run.generate < 0 || arguments->run.generate > 100000)
      argp_error(state, "'%s' is no number of tokens from 0 to 100000", text);
    return 0;
  case 'j':
    arguments->json = true;
    return 0;
  case 'p':
    arguments->run.print_program = true;
    return 0;
  case 'o':
    arguments->run.dot = text;
    return 0;
  case 'q':
    arguments->run.progress = false;
    return 0;
  case ARGP_KEY_ARG:
    if (arguments->run.directory) argp_error(state, "one MODEL_DIR only, not '%s' as well", text);
    arguments->run.directory = text;
    return 0;
  case ARGP_KEY_END:
    if (!arguments->run.directory) argp_error(state, "MODEL_DIR is missing");
    return 0;
  default:
    return ARGP_ERR_UNKNOWN;
  }
}

static void print_log(void* ctx, tdm_log_level level, const char* line) {
  (void)ctx;
  static const char* const names[] = {"", "error", "warning", "info", "debug"};
  fprintf(stderr, "tandem %s: %s\n", names[level], line);
}

static int fail(const char* what) {
  const tdm_error* error = tdm_last_error();
  fprintf(stderr, "%s: %s: %s\n", what, tdm_status_name(error->status), error->message);
  return EXIT_TANDEM;
}

static tdm_status make_runtime(const example_arguments* arguments, tdm_runtime** out_runtime) {
  tdm_runtime_config config;
  const tdm_status status = tdm_runtime_config_init(&config, sizeof config);
  if (status != TDM_OK) return status;
  config.log = print_log;
  config.log_level = TDM_LOG_WARNING;
  config.device_kind = arguments->any_device ? TDM_DEVICE_CUDA : arguments->device;
  config.device_ordinal = arguments->ordinal;
  if (!arguments->any_device || tdm_runtime_create(&config, out_runtime) != TDM_OK) {
    if (arguments->any_device) fprintf(stderr, "running on the host: %s\n", tdm_last_error()->message);
    config.device_kind = arguments->any_device ? TDM_DEVICE_HOST : arguments->device;
    return tdm_runtime_create(&config, out_runtime);
  }
  return TDM_OK;
}

static int run_modes(tdm_runtime* runtime, const example_arguments* arguments) {
  const tdm_activations wanted[] = {TDM_ACTIVATIONS_FLOAT32, TDM_ACTIVATIONS_NATIVE};
  tdm_runtime_info info = {.size = sizeof info};
  if (tdm_runtime_get_info(runtime, &info) != TDM_OK) return fail("device");
  if (!arguments->json)
    printf("tandem %s on %s, model %s\n", tdm_version(), info.device_name, arguments->run.directory);
  static mode_report reports[2];
  int n = 0, code = EXIT_SUCCESS;
  for (int i = 0; i < 2 && code != EXIT_TANDEM; i++) {
    if (!(wanted[i] == TDM_ACTIVATIONS_NATIVE ? arguments->native : arguments->float32)) continue;
    if (arguments->native && wanted[i] == TDM_ACTIVATIONS_FLOAT32 && info.device_kind == TDM_DEVICE_CUDA) {
      fprintf(stderr, "float32 activations are for the host device: not run\n");
      continue;
    }
    mode_report* report = &reports[n++];
    if (run_mode(runtime, &arguments->run, wanted[i], report) != TDM_OK)
      code = fail(report->activations);
    else if (!report_passes(report))
      code = EXIT_OVER_LIMIT;
    if (code != EXIT_TANDEM && !arguments->json) report_print(stdout, report);
  }
  if (code != EXIT_TANDEM && arguments->json &&
      !report_json(stdout, arguments->run.directory, info.device_name, reports, n)) {
    fprintf(stderr, "json: out of memory\n");
    code = EXIT_TANDEM;
  }
  for (int i = 0; i < n; i++) mode_report_free(&reports[i]);
  if (!arguments->json && code != EXIT_TANDEM)
    printf("\n%s\n", code == EXIT_SUCCESS ? "all within limits" : "NOT within limits");
  return code;
}

int main(int argc, char** argv) {
  static const char doc[] = "Runs a DeepSeek-V3-style model end to end: prefill and decode of several sequences in one "
                            "batch, every layer compared "
                            "with HF transformers where MODEL_DIR has io.safetensors, then generation."
                            "\vMODEL_DIR holds config.json and *.safetensors as on the hub.\n"
                            "Exit status: 0 all within limits, 1 something is not, 2 wrong usage, 3 tandem refused "
                            "(the reason is on stderr).";
  const struct argp argp = {.options = options, .parser = parse, .args_doc = "MODEL_DIR", .doc = doc};
  example_arguments arguments = {.run = {.generate = 16, .progress = isatty(STDERR_FILENO)},
                                 .native = true,
                                 .float32 = true,
                                 .device = TDM_DEVICE_HOST,
                                 .any_device = true};
  argp_err_exit_status = EXIT_BAD_USAGE;
  argp_program_version = tdm_version();
  argp_parse(&argp, argc, argv, 0, NULL, &arguments);
  tdm_runtime* runtime;
  if (make_runtime(&arguments, &runtime) != TDM_OK) return fail("device");
  int code = run_modes(runtime, &arguments);
  if (tdm_runtime_destroy(runtime) != TDM_OK) code = fail("runtime");
  return code;
}

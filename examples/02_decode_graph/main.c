/* Decode steps of DeepSeek-V3 layers of real dimensions, random FP8 weights: launched eagerly and replayed as captured
 * graphs, for several batch sizes at a given context. */

#include "decode_step.h"
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EXIT_BAD_USAGE = 2, EXIT_TANDEM = 3, MAX_BATCHES = 16 };

typedef struct example_arguments {
  decode_step_options step;
  int64_t replays, side_sms;
  bool explain, tune;
  const char* tuning;
  tdm_strategy strategy;
  tdm_wait_form wait_form;
  tdm_moe_path moe_path;
  int64_t batches[MAX_BATCHES];
  int n_batches;
} example_arguments;

static const struct argp_option options[] = {
    {"device", 'd', "auto|host|cuda:N", 0, "where to run (default auto)", 0},
    {"whole", 'w', NULL, 0, "the whole layer, 11.3 GB (default: the slice of one of 8 tensor-parallel ranks, 1.4 GB)",
     0},
    {"tiny", 't', NULL, 0, "a layer small enough for the host device, to try the program", 0},
    {"layers", 'l', "N", 0, "layers in a step (default 1)", 0},
    {"context", 'c', "N", 0, "tokens in the cache of each sequence (default 4096)", 0},
    {"strategy", 's', "auto|serial|soft|split|green|signal", 0,
     "on which lanes the steps run (default auto: what --tuning says, else soft); signal: green lanes that wait by "
     "signals",
     0},
    {"moe", 'e', DECODE_STEP_MOE, 0,
     "which experts are computed: all, those that a token chose, or these and each for its tokens alone (default auto)",
     0},
    {"side-sms", 'n', "N", 0, "SMs of the side lane (default 16)", 0},
    {"tokens", 'm', "A,B,...", 0, "sequences in the batch, one token each (default 1,16,64,128)", 0},
    {"tuning", 'f', "FILE", 0,
     "go by what this file says was measured; where it cannot be used the reason is on stderr", 0},
    {"tune", 'T', NULL, 0, "measure first which way is the fastest, and with --tuning add it to that file", 0},
    {"explain", 'x', NULL, 0, "say what runs for each batch and why, instead of timing it", 0},
    {"replays", 'r', "N", 0, "launches timed (default 50)", 0},
    {0},
};

static bool parse_batches(char* text, example_arguments* arguments) {
  arguments->n_batches = 0;
  for (char* item = strtok(text, ","); item; item = strtok(NULL, ",")) {
    if (arguments->n_batches == MAX_BATCHES) return false;
    if (!decode_step_parse_number(item, 1, 1024, &arguments->batches[arguments->n_batches++])) return false;
  }
  return arguments->n_batches > 0;
}

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
    arguments->strategy = strcmp(text, "auto") == 0                                   ? TDM_STRATEGY_AUTO
                          : strcmp(text, "serial") == 0                               ? TDM_STRATEGY_SERIAL
                          : strcmp(text, "soft") == 0                                 ? TDM_STRATEGY_SOFT
                          : strcmp(text, "split") == 0                                ? TDM_STRATEGY_SPLIT
                          : strcmp(text, "green") == 0 || strcmp(text, "signal") == 0 ? TDM_STRATEGY_GREEN
                                                                                      : (tdm_strategy)0;
    arguments->wait_form = strcmp(text, "signal") == 0 ? TDM_WAIT_SIGNAL : TDM_WAIT_EDGE;
    ok = arguments->strategy != 0;
    break;
  case 'e':
    ok = decode_step_parse_moe(text, &arguments->moe_path);
    break;
  case 'n':
    ok = decode_step_parse_number(text, 1, 1024, &arguments->side_sms);
    break;
  case 'm':
    ok = parse_batches(text, arguments);
    break;
  case 'f':
    arguments->tuning = text;
    break;
  case 'T':
    arguments->tune = true;
    break;
  case 'x':
    arguments->explain = true;
    break;
  case 'r':
    ok = decode_step_parse_number(text, 1, 100000, &arguments->replays);
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

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int fail(const char* what) {
  const tdm_error* error = tdm_last_error();
  fprintf(stderr, "%s: %s: %s\n", what, tdm_status_name(error->status), error->message);
  return EXIT_TANDEM;
}

/* Runs the program `n` times, as it is or as the graph; answers microseconds for one. */
static tdm_status time_launches(tdm_runtime* runtime, tdm_program* program, tdm_graph* graph, int64_t n,
                                double* out_us) {
  double start = 0;
  for (int64_t i = -3; i < n; i++) { /* three to warm up */
    if (i == 0) {
      const tdm_status status = tdm_runtime_synchronize(runtime);
      if (status != TDM_OK) return status;
      start = seconds();
    }
    const tdm_status status = graph ? tdm_graph_replay(graph, NULL) : tdm_program_launch(program, NULL);
    if (status != TDM_OK) return status;
  }
  const tdm_status status = tdm_runtime_synchronize(runtime);
  *out_us = 1e6 * (seconds() - start) / (double)n;
  return status;
}

enum { MAX_WORDS = 32 }; /* of the experts' bits */

/* Experts with a bit in some row; -1: not known. */
static int count_chosen(const tdm_view* chosen, int64_t batch) {
  uint32_t row[MAX_WORDS], any[MAX_WORDS] = {0};
  const size_t bytes = (size_t)chosen->shape[1] * sizeof *row;
  int count = 0;
  if (bytes > sizeof row) return -1;
  for (int64_t m = 0; m < batch; m++) {
    const size_t offset = (size_t)(chosen->offset_bytes + m * chosen->stride[0] * (int64_t)sizeof *row);
    if (tdm_buffer_read(chosen->buffer, offset, row, bytes) != TDM_OK) return -1;
    for (int64_t w = 0; w < chosen->shape[1]; w++) any[w] |= row[w];
  }
  for (int w = 0; w < MAX_WORDS; w++)
    for (; any[w]; any[w] &= any[w] - 1) count++;
  return count;
}

/* Experts that the first layer of the last launch computed; -1: all. */
static int experts_hit(tdm_model* model, int64_t batch) {
  tdm_view view;
  int32_t count = -1;
  if (tdm_model_tap(model, "layer0.chosen", &view) == TDM_OK) return count_chosen(&view, batch);
  if (tdm_model_tap(model, "layer0.hits", &view) != TDM_OK) return -1;
  return tdm_buffer_read(view.buffer, (size_t)view.offset_bytes, &count, sizeof count) == TDM_OK ? count : -1;
}

/* "soft 16", "green 8 signal": how a batch's steps are placed, and the SMs of the side lane. */
static const char* name_lanes(const tdm_model* model, int64_t batch, char* text, size_t bytes) {
  static const char* const strategies[] = {"?", "auto", "serial", "soft", "green", "split"};
  tdm_choice_info info = {.size = sizeof info};
  if (tdm_model_get_choice(model, batch, false, &info) != TDM_OK) return "?";
  const tdm_choice* choice = &info.choice;
  if (choice->strategy == TDM_STRATEGY_SERIAL) return strategies[TDM_STRATEGY_SERIAL];
  snprintf(text, bytes, "%s %d%s", strategies[choice->strategy], choice->side_sms,
           choice->wait_form == TDM_WAIT_SIGNAL ? " signal" : "");
  return text;
}

/* One line of the table: a decode step of `batch` sequences. */
static tdm_status measure(tdm_runtime* runtime, tdm_model* model, const example_arguments* arguments, int64_t batch) {
  static decode_step step;
  tdm_graph* graph = NULL;
  double eager = 0, replayed = 0;
  tdm_status status = decode_step_begin(model, &arguments->step, batch, &step);
  if (status == TDM_OK) status = tdm_graph_capture(step.program, &graph);
  if (status == TDM_OK) status = time_launches(runtime, step.program, NULL, arguments->replays, &eager);
  if (status == TDM_OK) status = time_launches(runtime, step.program, graph, arguments->replays, &replayed);
  tdm_program_info info = {.size = sizeof info};
  if (status == TDM_OK) status = tdm_program_get_info(step.program, &info);
  if (status == TDM_OK) {
    const double layers = (double)arguments->step.layers;
    tdm_model_info model_info = {.size = sizeof model_info};
    (void)tdm_model_get_info(model, &model_info);
    /* Weights once, and 576 bf16 values for each cached token: what a step cannot do without. */
    const double bytes = (double)model_info.weight_bytes + layers * (double)(batch * arguments->step.context) * 1152;
    char experts[16] = "all", lanes[32];
    const int hit = experts_hit(model, batch);
    if (hit >= 0) snprintf(experts, sizeof experts, "%d", hit);
    printf("  %-6d %-10.1f %-10.1f %-8.1f %-16s %-8s %-10.2f %.0f\n", (int)batch, eager / layers, replayed / layers,
           (double)info.steps / layers, name_lanes(model, batch, lanes, sizeof lanes), experts, bytes / layers / 1e6,
           bytes / replayed / 1e3);
  }
  tdm_graph_destroy(graph);
  decode_step_end(&step);
  return status;
}

static void print_text(void* ctx, const char* text, size_t bytes) {
  (void)fwrite(text, 1, bytes, ctx);
}

/* What the file says; NULL without one, or where it cannot be used: the reason is printed, and the steps still run. */
static tdm_tuning* read_tuning(tdm_runtime* runtime, const char* path) {
  tdm_tuning* tuning = NULL;
  if (path && tdm_tuning_read(runtime, path, &tuning) != TDM_OK)
    fprintf(stderr, "not used: %s\n", tdm_last_error()->message);
  return tuning;
}

/* The file's findings with these added, back to the file. One that says nothing of use is replaced, with the reason. */
static tdm_status add_to_file(tdm_runtime* runtime, const tdm_tuning* found, const char* path) {
  tdm_tuning* all = NULL;
  tdm_status status = tdm_tuning_read(runtime, path, &all);
  if (status != TDM_OK) {
    if (status != TDM_IO) fprintf(stderr, "replaced: %s\n", tdm_last_error()->message);
    status = tdm_tuning_create(runtime, &all);
  }
  if (status == TDM_OK) status = tdm_tuning_merge(all, found);
  if (status == TDM_OK) status = tdm_tuning_write(all, path);
  tdm_tuning_destroy(all);
  return status;
}

/* Measures, and adds the findings to the file if there is one. */
static tdm_status tune(tdm_runtime* runtime, tdm_model* model, const example_arguments* arguments) {
  tdm_tuning* found = NULL;
  tdm_tune_config config;
  tdm_tune_result result = {.size = sizeof result};
  tdm_status status = tdm_tune_config_init(&config, sizeof config);
  config.context = arguments->step.context;
  config.prefill = false;
  if (status == TDM_OK) status = tdm_tuning_create(runtime, &found);
  if (status == TDM_OK) status = tdm_model_tune(model, &config, found, &result);
  if (status == TDM_OK)
    printf("tuned %d buckets in %.1f s: %d programs; another way than the usual one in %d; %d buckets left\n",
           result.buckets, result.seconds, result.programs, result.changed, result.left);
  if (status == TDM_OK && arguments->tuning) status = add_to_file(runtime, found, arguments->tuning);
  tdm_tuning_destroy(found);
  return status;
}

static void print_title(tdm_runtime* runtime, const tdm_model* model, const example_arguments* arguments) {
  tdm_runtime_info device = {.size = sizeof device};
  tdm_model_info info = {.size = sizeof info};
  (void)tdm_runtime_get_info(runtime, &device);
  (void)tdm_model_get_info(model, &info);
  printf("%s, %d SMs; %d %s layer%s, weights %.2f GB, context %d, %d launches each\n", device.device_name, device.sms,
         (int)arguments->step.layers,
         arguments->step.tiny    ? "tiny"
         : arguments->step.whole ? "whole"
                                 : "TP8",
         arguments->step.layers > 1 ? "s" : "", (double)info.weight_bytes / 1e9, (int)arguments->step.context,
         (int)arguments->replays);
  printf(
      "  tokens eager us   replay us  steps    lanes            experts  MB         GB/s of all weights and the cache "
      "(replay); us, steps and MB per layer\n");
}

static tdm_status run_model(tdm_runtime* runtime, tdm_model* model, const example_arguments* arguments) {
  tdm_status status = arguments->tune ? tune(runtime, model, arguments) : TDM_OK;
  if (status == TDM_OK && !arguments->explain) print_title(runtime, model, arguments);
  for (int i = 0; i < arguments->n_batches && status == TDM_OK; i++)
    status = arguments->explain ? tdm_model_explain(model, arguments->batches[i], false, print_text, stdout)
                                : measure(runtime, model, arguments, arguments->batches[i]);
  return status;
}

static tdm_status run(tdm_runtime* runtime, const example_arguments* arguments) {
  int64_t largest = 1;
  for (int i = 0; i < arguments->n_batches; i++)
    if (arguments->batches[i] > largest) largest = arguments->batches[i];
  tdm_model_config config;
  tdm_status status = tdm_model_config_init(&config, sizeof config);
  if (status != TDM_OK) return status;
  tdm_tuning* tuning = read_tuning(runtime, arguments->tune ? NULL : arguments->tuning);
  config.strategy = arguments->strategy;
  config.wait_form = arguments->wait_form;
  config.moe_path = arguments->moe_path;
  config.tuning = tuning;
  config.taps = true; /* to say how many experts were hit */
  config.side_sms = (int32_t)arguments->side_sms;
  tdm_model* model = NULL;
  status = decode_step_model(runtime, &arguments->step, largest, &config, &model);
  tdm_tuning_destroy(tuning); /* the model has copied what it needs */
  if (status != TDM_OK) return status;
  status = run_model(runtime, model, arguments);
  const tdm_status destroyed = tdm_model_destroy(model);
  return status == TDM_OK ? destroyed : status;
}

int main(int argc, char** argv) {
  static const char doc[] =
      "Measures decode steps of DeepSeek-V3 layers with random weights: eager launches against replayed graphs."
      "\vExit status: 0 done, 2 wrong usage, 3 tandem refused (the reason is on stderr).";
  const struct argp argp = {.options = options, .parser = parse, .doc = doc};
  example_arguments arguments = {.step = {.any_device = true, .layers = 1, .context = 4096},
                                 .side_sms = 16,
                                 .strategy = TDM_STRATEGY_AUTO,
                                 .wait_form = TDM_WAIT_EDGE,
                                 .moe_path = TDM_MOE_PATH_AUTO,
                                 .replays = 50,
                                 .batches = {1, 16, 64, 128},
                                 .n_batches = 4};
  argp_err_exit_status = EXIT_BAD_USAGE;
  argp_program_version = tdm_version();
  argp_parse(&argp, argc, argv, 0, NULL, &arguments);

  tdm_runtime* runtime = NULL;
  if (decode_step_open(&arguments.step, &runtime) != TDM_OK) return fail("device");
  const int code = run(runtime, &arguments) == TDM_OK ? EXIT_SUCCESS : fail("decode");
  return tdm_runtime_destroy(runtime) == TDM_OK ? code : fail("runtime");
}

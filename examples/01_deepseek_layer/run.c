#include "run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The last tokens of every sequence go through decode steps, all sequences in one batch, the others through one
 * prefill. */
enum { DECODE_STEPS = 4 };

#define TRY(call)                                                                                                      \
  do {                                                                                                                 \
    const tdm_status try_status_ = (call);                                                                             \
    if (try_status_ != TDM_OK) return try_status_;                                                                     \
  } while (0)

typedef struct model_run {
  const run_options* options;
  tdm_model* model;
  const tdm_deepseek_v3_config* shape;
  int64_t n_layers;
  reference_set reference;
  tdm_sequence* sequences[MAX_SEQUENCES];
  float* logits[MAX_SEQUENCES]; /* of every token, from the run as a whole; also the drafts of generation */
  float* rows;                  /* room for a batch of rows of anything */
  float* hidden_in;
  mode_report* report;
} model_run;

/* Rows of a batch that belong to one sequence. */
typedef struct row_span {
  int64_t batch_row, first, count;
} row_span;

/* One forward call over all sequences: sequence s takes part with the tokens of spans[s]. */
typedef struct call_phase {
  row_span spans[MAX_SEQUENCES];
  tdm_batch_item items[MAX_SEQUENCES];
  int64_t n_items, n_tokens;
} call_phase;

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int64_t prefill_length(const model_run* run, int s) {
  const int64_t length = run->reference.lengths[s];
  return length > DECODE_STEPS ? length - DECODE_STEPS : 1;
}

/* Step 0 is the prefill, later ones decode a token of each sequence that has one left. False when nobody has. */
static bool next_phase(const model_run* run, int64_t step, call_phase* phase) {
  *phase = (call_phase){0};
  for (int s = 0; s < run->reference.n_sequences; s++) {
    const int64_t first = step ? prefill_length(run, s) + step - 1 : 0, count = step ? 1 : prefill_length(run, s);
    if (first >= run->reference.lengths[s]) continue;
    phase->spans[s] = (row_span){.batch_row = phase->n_tokens, .first = first, .count = count};
    phase->items[phase->n_items++] = (tdm_batch_item){.sequence = run->sequences[s],
                                                      .tokens = run->reference.tokens[s] + first,
                                                      .n_tokens = count,
                                                      .logits = TDM_LOGITS_ALL};
    phase->n_tokens += count;
  }
  return phase->n_items > 0;
}

static void end_sequences(model_run* run) {
  for (int s = 0; s < MAX_SEQUENCES; s++) {
    tdm_sequence_destroy(run->sequences[s]);
    run->sequences[s] = NULL;
  }
}

static tdm_status begin_sequences(model_run* run) {
  end_sequences(run);
  for (int s = 0; s < run->reference.n_sequences; s++) TRY(tdm_sequence_create(run->model, &run->sequences[s]));
  return TDM_OK;
}

static void progress(const model_run* run, const char* what, int64_t done, int64_t total) {
  if (run->options->progress)
    fprintf(stderr, "\r%s: %-24s %d/%d %s", run->report->activations, what, (int)done, (int)total,
            done == total ? "\n" : "");
}

/* ---- judging ---------------------------------------------------------------------------------------------------- */

/* Adds the error of a tapped value, leaving out the rows that `skip` marks. */
static tdm_status judge_view(model_run* run, const call_phase* phase, const tdm_view* view, const char* stored,
                             const bool* skip, error_sum* sum) {
  const int64_t width = view->shape[1];
  TRY(read_rows(view, 0, phase->n_tokens, run->rows));
  for (int s = 0; s < run->reference.n_sequences; s++) {
    const row_span* span = &phase->spans[s];
    const float* expected = reference_rows(&run->reference, s, stored, span->first, width);
    for (int64_t i = 0; expected && i < span->count; i++)
      if (!skip || !skip[span->batch_row + i])
        error_add(sum, run->rows + (span->batch_row + i) * width, expected + i * width, width);
  }
  return TDM_OK;
}

static int compare_ids(const void* a, const void* b) {
  const int32_t x = *(const int32_t*)a, y = *(const int32_t*)b;
  return (x > y) - (x < y);
}

/* Marks the rows whose chosen experts, as a set, are not the stored ones (stored ascending). */
static tdm_status compare_topk(model_run* run, const call_phase* phase, int64_t layer, bool* other) {
  char name[64];
  tdm_view ids;
  tdm_tensor_info stored;
  snprintf(name, sizeof name, "layer%d.topk_ids", (int)layer);
  TRY(tdm_model_tap(run->model, name, &ids));
  const int64_t top_k = ids.shape[1];
  int32_t* found = (int32_t*)(void*)run->rows;
  TRY(tdm_buffer_read(ids.buffer, (size_t)ids.offset_bytes, found, (size_t)(phase->n_tokens * top_k) * sizeof *found));
  for (int s = 0; s < run->reference.n_sequences; s++) {
    const row_span* span = &phase->spans[s];
    snprintf(name, sizeof name, "seq%d.layer%d.topk_ids", s, (int)layer);
    if (!tdm_checkpoint_find(run->reference.checkpoint, name, &stored) || stored.dtype != TDM_I32) continue;
    for (int64_t i = 0; i < span->count; i++) {
      int32_t* row = found + (span->batch_row + i) * top_k;
      qsort(row, (size_t)top_k, sizeof *row, compare_ids);
      const char* expected = (const char*)stored.data + (size_t)((span->first + i) * top_k) * sizeof *row;
      other[span->batch_row + i] = memcmp(row, expected, (size_t)top_k * sizeof *row) != 0;
    }
  }
  return TDM_OK;
}

/* The layer alone, fed with the stored input, prefill and decode steps alike. */
static tdm_status judge_layer_phase(model_run* run, const call_phase* phase, int64_t layer) {
  const int64_t hidden = run->shape->hidden_size;
  layer_row* row = &run->report->layers[layer];
  char in[32], name[32];
  snprintf(in, sizeof in, "layer%d.in", (int)layer);
  for (int s = 0; s < run->reference.n_sequences; s++) {
    const row_span* span = &phase->spans[s];
    const float* stored = reference_rows(&run->reference, s, in, span->first, hidden);
    if (!stored) return TDM_IO; /* the caller says what is missing */
    memcpy(run->hidden_in + span->batch_row * hidden, stored, (size_t)(span->count * hidden) * sizeof *stored);
  }
  const double start = seconds();
  TRY(tdm_model_forward_layers(run->model, phase->items, phase->n_items, layer, 1, run->hidden_in, run->rows));
  row->milliseconds += 1e3 * (seconds() - start);
  bool* other = calloc((size_t)phase->n_tokens, sizeof *other);
  if (!other) return TDM_OUT_OF_MEMORY;
  tdm_status status = row->routed ? compare_topk(run, phase, layer, other) : TDM_OK;
  const struct {
    const char* name;
    error_sum* sum;
  } values[] = {{"attn", &row->attn}, {"mlp", &row->mlp}, {"out", &row->out}};
  for (size_t i = 0; i < 3 && status == TDM_OK; i++) {
    tdm_view view;
    snprintf(name, sizeof name, "layer%d.%s", (int)layer, values[i].name);
    status = tdm_model_tap(run->model, name, &view);
    if (status == TDM_OK) status = judge_view(run, phase, &view, name, i ? other : NULL, values[i].sum);
  }
  for (int64_t i = 0; i < phase->n_tokens; i++) row->rows_other_topk += other[i];
  row->rows += phase->n_tokens;
  free(other);
  return status;
}

static tdm_status judge_layers(model_run* run) {
  call_phase phase;
  for (int64_t layer = 0; layer < run->n_layers; layer++) {
    TRY(begin_sequences(run));
    for (int64_t step = 0; next_phase(run, step, &phase); step++) TRY(judge_layer_phase(run, &phase, layer));
    progress(run, "layers by themselves", layer + 1, run->n_layers);
  }
  return TDM_OK;
}

/* ---- the whole model -------------------------------------------------------------------------------------------- */

static int64_t largest(const float* values, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (values[i] > values[best]) best = i;
  return best;
}

/* Runs the program of the last forward call again, one step after the other: the same cache slots get the same values.
 */
static tdm_status check_serial(model_run* run, const tdm_forward_result* result) {
  const size_t bytes = (size_t)(result->n_logits * run->shape->vocab_size) * sizeof(float);
  tdm_program* program;
  tdm_launch_config config;
  TRY(tdm_model_program(run->model, &program));
  TRY(tdm_launch_config_init(&config, sizeof config));
  config.order = TDM_ORDER_SERIAL;
  TRY(tdm_program_launch(program, &config));
  float* again = malloc(bytes);
  if (!again) return TDM_OUT_OF_MEMORY;
  const tdm_status status = read_rows(&result->logits, 0, result->n_logits, again);
  run->report->serial_same = run->report->serial_same && status == TDM_OK && memcmp(again, run->rows, bytes) == 0;
  free(again);
  return status;
}

static tdm_status keep_logits(model_run* run, const call_phase* phase, const tdm_forward_result* result) {
  const int64_t vocab = run->shape->vocab_size;
  TRY(read_rows(&result->logits, 0, result->n_logits, run->rows));
  for (int s = 0; s < run->reference.n_sequences; s++) {
    const row_span* span = &phase->spans[s];
    const float* rows = run->rows + span->batch_row * vocab;
    if (span->count == 0) continue;
    memcpy(run->logits[s] + span->first * vocab, rows, (size_t)(span->count * vocab) * sizeof *rows);
    const float* expected = reference_rows(&run->reference, s, "logits", span->first, vocab);
    if (!expected) continue;
    error_add(&run->report->logits, rows, expected, span->count * vocab);
    for (int64_t i = 0; i < span->count; i++)
      run->report->greedy_same += largest(rows + i * vocab, vocab) == largest(expected + i * vocab, vocab);
    run->report->greedy_rows += span->count;
  }
  return TDM_OK;
}

static tdm_status judge_chain(model_run* run, const call_phase* phase) {
  for (int64_t layer = 0; run->report->judged && layer < run->n_layers; layer++) {
    char name[32];
    tdm_view view;
    snprintf(name, sizeof name, "layer%d.out", (int)layer);
    TRY(tdm_model_tap(run->model, name, &view));
    TRY(judge_view(run, phase, &view, name, NULL, &run->report->layers[layer].chained));
  }
  return TDM_OK;
}

static tdm_status run_whole(model_run* run) {
  call_phase phase;
  mode_report* report = run->report;
  report->serial_same = true;
  TRY(begin_sequences(run));
  for (int64_t step = 0; next_phase(run, step, &phase); step++) {
    tdm_forward_result result = {.size = sizeof result};
    const double start = seconds();
    TRY(tdm_model_forward(run->model, phase.items, phase.n_items, &result));
    *(step ? &report->decode_seconds : &report->prefill_seconds) += seconds() - start;
    *(step ? &report->decode_tokens : &report->prefill_tokens) += phase.n_tokens;
    TRY(judge_chain(run, &phase));
    TRY(keep_logits(run, &phase, &result));
    TRY(check_serial(run, &result));
    progress(run, "prefill and decode", step + 1, DECODE_STEPS + 1);
  }
  return TDM_OK;
}

/* The last sequence once more, by itself. */
static tdm_status check_alone(model_run* run) {
  const int s = run->reference.n_sequences - 1;
  const int64_t vocab = run->shape->vocab_size;
  run->report->alone_same = true;
  TRY(begin_sequences(run));
  call_phase phase;
  for (int64_t step = 0; next_phase(run, step, &phase); step++) {
    const row_span* span = &phase.spans[s];
    if (span->count == 0) continue;
    tdm_forward_result result = {.size = sizeof result};
    TRY(tdm_model_forward(run->model, &phase.items[phase.n_items - 1], 1, &result));
    TRY(read_rows(&result.logits, 0, span->count, run->rows));
    const float* batched = run->logits[s] + span->first * vocab;
    run->report->alone_same =
        run->report->alone_same && memcmp(run->rows, batched, (size_t)(span->count * vocab) * sizeof *batched) == 0;
  }
  return TDM_OK;
}

/* ---- generating ------------------------------------------------------------------------------------------------- */

static tdm_status generate(model_run* run) {
  mode_report* report = run->report;
  const int n = run->reference.n_sequences;
  tdm_batch_item items[MAX_SEQUENCES] = {0};
  int32_t last[MAX_SEQUENCES];
  TRY(begin_sequences(run));
  for (int s = 0; s < n; s++) {
    report->generated[s] = calloc((size_t)run->options->generate + 1, sizeof *report->generated[s]);
    if (!report->generated[s]) return TDM_OUT_OF_MEMORY;
    items[s] = (tdm_batch_item){
        .sequence = run->sequences[s], .tokens = run->reference.tokens[s], .n_tokens = run->reference.lengths[s]};
  }
  for (int64_t i = 0; i < run->options->generate; i++) {
    tdm_forward_result result = {.size = sizeof result};
    const double start = seconds();
    TRY(tdm_model_forward(run->model, items, n, &result));
    if (i) report->generate_seconds += seconds() - start; /* the first call is the prefill */
    for (int s = 0; s < n; s++) {
      last[s] = report->generated[s][i] = result.tokens[s];
      items[s].tokens = &last[s];
      items[s].n_tokens = 1;
    }
    report->n_generated = i + 1;
    progress(run, "generating", i + 1, run->options->generate);
  }
  return TDM_OK;
}

/* ---- one mode --------------------------------------------------------------------------------------------------- */

static void write_file(void* ctx, const char* text, size_t bytes) {
  fwrite(text, 1, bytes, ctx);
}

static tdm_status show_program(const model_run* run) {
  tdm_program* program;
  TRY(tdm_model_program(run->model, &program));
  if (run->options->print_program) TRY(tdm_program_print(program, TDM_PRINT_TEXT, write_file, stdout));
  FILE* file = run->options->dot ? fopen(run->options->dot, "w") : NULL;
  if (!file) return TDM_OK;
  const tdm_status status = tdm_program_print(program, TDM_PRINT_DOT, write_file, file);
  fclose(file);
  return status;
}

static tdm_status load(model_run* run, tdm_runtime* runtime, tdm_activations activations) {
  tdm_model_config config;
  TRY(tdm_model_config_init(&config, sizeof config));
  config.activations = activations;
  config.taps = true;
  config.max_seqs = MAX_SEQUENCES;
  TRY(tdm_model_load(runtime, run->options->directory, &config, &run->model));
  run->shape = tdm_model_get_config(run->model);
  run->n_layers = run->shape->num_hidden_layers;
  TRY(reference_open(runtime, run->options->directory, run->shape->vocab_size, &run->reference));
  int64_t total = 0, width = run->shape->vocab_size;
  if (width < run->shape->hidden_size) width = run->shape->hidden_size;
  for (int s = 0; s < run->reference.n_sequences; s++) {
    total += run->reference.lengths[s];
    run->logits[s] = calloc((size_t)(run->reference.lengths[s] * run->shape->vocab_size), sizeof(float));
    if (!run->logits[s]) return TDM_OUT_OF_MEMORY;
  }
  run->rows = calloc((size_t)(total * width), sizeof(float));
  run->hidden_in = calloc((size_t)(total * width), sizeof(float));
  return run->rows && run->hidden_in ? TDM_OK : TDM_OUT_OF_MEMORY;
}

static tdm_status run_loaded(model_run* run) {
  mode_report* report = run->report;
  report->n_layers = run->n_layers < MAX_LAYERS ? run->n_layers : MAX_LAYERS;
  report->n_sequences = run->reference.n_sequences;
  report->judged = run->reference.checkpoint != NULL;
  for (int64_t i = 0; i < report->n_layers; i++) report->layers[i].routed = i >= run->shape->first_k_dense_replace;
  TRY(run_whole(run));
  TRY(show_program(run));
  if (report->judged) TRY(judge_layers(run));
  TRY(check_alone(run));
  return run->options->generate ? generate(run) : TDM_OK;
}

tdm_status run_mode(tdm_runtime* runtime, const run_options* options, tdm_activations activations,
                    mode_report* out_report) {
  const bool native = activations == TDM_ACTIVATIONS_NATIVE;
  /* float32 judges the maths. native judges the kernels, layer by layer: FP8 rounding alone is 3e-2 to 8e-2 of a layer,
   * and in a chain it adds up, so there it is shown and not judged. */
  *out_report = (mode_report){.activations = native ? "native" : "float32",
                              .layer_limit = native ? 0.08 : 1e-5,
                              .chain_limit = native ? 0 : 1e-5};
  model_run run = {.options = options, .report = out_report};
  tdm_status status = load(&run, runtime, activations);
  if (status == TDM_OK) status = run_loaded(&run);
  end_sequences(&run);
  for (int s = 0; s < MAX_SEQUENCES; s++) free(run.logits[s]);
  free(run.rows);
  free(run.hidden_in);
  reference_close(&run.reference);
  if (tdm_model_destroy(run.model) != TDM_OK && status == TDM_OK) status = tdm_last_error()->status;
  return status;
}

void mode_report_free(mode_report* report) {
  for (int s = 0; s < MAX_SEQUENCES; s++) free(report->generated[s]);
}

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/common/convert.h"
#include "models/model.h"

/* A forward call: check everything, reserve pages, fill the batch's arrays, run, and only then let sequences grow. */

/* What the items of a call come to. */
typedef struct forward_call {
  tdm_model* model;
  const tdm_batch_item* items;
  int64_t n_items, n_tokens, n_logits;
  bool expanded; /* some sequence is attended to in expanded form */
  int64_t n_new_pages;
  bool ignores_tokens; /* hidden states come in instead */
} forward_call;

static tdm_logits logits_of(const tdm_batch_item* item) {
  return item->logits ? item->logits : TDM_LOGITS_LAST;
}

static int64_t logit_rows(const tdm_batch_item* item) {
  return logits_of(item) == TDM_LOGITS_ALL ? item->n_tokens : logits_of(item) == TDM_LOGITS_LAST ? 1 : 0;
}

static tdm_seq_kind kind_of(const tdm_model* model, const tdm_batch_item* item) {
  const bool expanded = item->sequence->length == 0 && item->n_tokens >= model->config.prefill_threshold;
  return expanded ? TDM_SEQ_EXPANDED : TDM_SEQ_ABSORBED;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static tdm_status check_tokens(const forward_call* call, int64_t index) {
  const tdm_batch_item* item = &call->items[index];
  if (call->ignores_tokens) return TDM_OK;
  if (!item->tokens) return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].tokens must not be NULL", index);
  const int64_t vocab = call->model->weights.config.vocab_size;
  for (int64_t i = 0; i < item->n_tokens; i++)
    if (item->tokens[i] < 0 || item->tokens[i] >= vocab)
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "items[%" PRId64 "].tokens[%" PRId64 "] is %" PRId32 ", must be 0 to %" PRId64, index, i,
                      item->tokens[i], vocab - 1);
  return TDM_OK;
}

static tdm_status check_sampling(const tdm_batch_item* item, int64_t index) {
  if (item->logits && (item->logits < TDM_LOGITS_LAST || item->logits > TDM_LOGITS_NONE))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].logits is %d, no tdm_logits", index, (int)item->logits);
  if (!isfinite(item->temperature) || item->temperature < 0)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].temperature is %g, must be finite and at least 0", index,
                    (double)item->temperature);
  if (!(item->top_p >= 0 && item->top_p <= 1))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].top_p is %g, must be above 0 and at most 1", index,
                    (double)item->top_p);
  return TDM_OK;
}

static tdm_status check_item(forward_call* call, int64_t index) {
  const tdm_batch_item* item = &call->items[index];
  const tdm_model* model = call->model;
  tdm_sequence* sequence = item->sequence;
  if (!sequence) return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].sequence must not be NULL", index);
  if (sequence->model != model)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].sequence belongs to another model", index);
  if (sequence->last_call == model->calls)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].sequence is in the batch twice", index);
  sequence->last_call = model->calls;
  if (item->n_tokens < 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "items[%" PRId64 "].n_tokens is %" PRId64 ", must be at least 1", index,
                    item->n_tokens);
  if (item->n_tokens > model->config.max_tokens - call->n_tokens)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "items[%" PRId64 "] brings %" PRId64 " tokens after %" PRId64 "; the model takes %" PRId64
                    " in a call",
                    index, item->n_tokens, call->n_tokens, model->config.max_tokens);
  if (item->n_tokens > model->config.max_context - sequence->length)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "items[%" PRId64 "] adds %" PRId64 " tokens to a sequence of %" PRId64 "; max_context is %" PRId64,
                    index, item->n_tokens, sequence->length, model->config.max_context);
  TDM_TRY(check_sampling(item, index));
  TDM_TRY(check_tokens(call, index));
  call->n_tokens += item->n_tokens;
  call->n_logits += call->ignores_tokens ? 0 : logit_rows(item);
  call->n_new_pages += tdm_sequence_lacks(sequence, item->n_tokens);
  call->expanded = call->expanded || kind_of(model, item) == TDM_SEQ_EXPANDED;
  return TDM_OK;
}

static tdm_status check_call(forward_call* call) {
  tdm_model* model = call->model;
  if (!call->items || call->n_items < 1 || call->n_items > model->config.max_seqs)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "a forward call with %" PRId64 " items; the model takes 1 to %" PRId64,
                    call->items ? call->n_items : 0, model->config.max_seqs);
  model->calls++;
  for (int64_t i = 0; i < call->n_items; i++) TDM_TRY(check_item(call, i));
  return tdm_kv_cache_check_room(&model->cache, call->n_new_pages);
}

/* ---- pages and arrays ------------------------------------------------------------------------------------------- */

static void reserve_pages(const forward_call* call) {
  for (int64_t i = 0; i < call->n_items; i++) tdm_sequence_reserve(call->items[i].sequence, call->items[i].n_tokens);
}

/* After a failure: back to the pages that the tokens in the cache take. */
static void return_pages(const forward_call* call) {
  for (int64_t i = call->n_items - 1; i >= 0; i--)
    tdm_sequence_shrink(call->items[i].sequence, tdm_kv_cache_pages(call->items[i].sequence->length));
}

static void grow_sequences(const forward_call* call) {
  for (int64_t i = 0; i < call->n_items; i++) call->items[i].sequence->length += call->items[i].n_tokens;
}

/* Rows [first_row, ...) of the per-token arrays, row `index` of the per-sequence arrays, logit rows from `first_logit`
 * on. */
static void fill_item(const forward_call* call, int64_t index, int64_t first_row, int64_t first_logit) {
  const tdm_batch_item* item = &call->items[index];
  const tdm_sequence* sequence = item->sequence;
  tdm_batch* batch = &call->model->batch;
  for (int64_t i = 0; i < item->n_tokens; i++) {
    const int64_t position = sequence->length + i, row = first_row + i;
    tdm_batch_i32(batch, TDM_BATCH_TOKEN_IDS)[row] = call->ignores_tokens ? 0 : item->tokens[i];
    tdm_batch_i32(batch, TDM_BATCH_POSITIONS)[row] = (int32_t)position;
    tdm_batch_i32(batch, TDM_BATCH_SLOTS)[row] =
        sequence->pages[position / TDM_PAGE_TOKENS] * TDM_PAGE_TOKENS + (int32_t)(position % TDM_PAGE_TOKENS);
  }
  tdm_batch_i32(batch, TDM_BATCH_SEQ_START)[index] = (int32_t)first_row;
  tdm_batch_i32(batch, TDM_BATCH_SEQ_START)[index + 1] = (int32_t)(first_row + item->n_tokens);
  tdm_batch_i32(batch, TDM_BATCH_KV_LEN)[index] = (int32_t)(sequence->length + item->n_tokens);
  tdm_batch_i32(batch, TDM_BATCH_SEQ_KIND)[index] = (int32_t)kind_of(call->model, item);
  memcpy(tdm_batch_i32(batch, TDM_BATCH_BLOCK_TABLE) + index * batch->limits.pages_per_seq, sequence->pages,
         (size_t)sequence->n_pages * sizeof *sequence->pages);
  if (call->ignores_tokens) return;
  const int64_t n_logits = logit_rows(item);
  for (int64_t i = 0; i < n_logits; i++) {
    const int64_t token = item->n_tokens - n_logits + i, row = first_logit + i;
    tdm_batch_i32(batch, TDM_BATCH_LOGIT_ROWS)[row] = (int32_t)(first_row + token);
    tdm_batch_f32(batch, TDM_BATCH_TEMPERATURES)[row] = item->temperature;
    tdm_batch_f32(batch, TDM_BATCH_TOP_P)[row] = item->top_p > 0 ? item->top_p : 1;
    memcpy(&tdm_batch_i64(batch, TDM_BATCH_SEEDS)[row], &item->seed, sizeof item->seed);
    tdm_batch_i32(batch, TDM_BATCH_DRAW_POSITIONS)[row] = (int32_t)(sequence->length + token + 1);
  }
}

static tdm_status fill_batch(const forward_call* call) {
  tdm_batch* batch = &call->model->batch;
  int64_t row = 0, logit = 0;
  for (int64_t i = 0; i < call->n_items; i++) {
    fill_item(call, i, row, logit);
    row += call->items[i].n_tokens;
    logit += call->ignores_tokens ? 0 : logit_rows(&call->items[i]);
  }
  *tdm_batch_i32(batch, TDM_BATCH_N_TOKENS) = (int32_t)call->n_tokens;
  *tdm_batch_i32(batch, TDM_BATCH_N_SEQS) = (int32_t)call->n_items;
  *tdm_batch_i32(batch, TDM_BATCH_N_LOGITS) = (int32_t)call->n_logits;
  call->model->staged_tokens = call->n_tokens;
  call->model->staged_expanded = call->expanded;
  return tdm_batch_upload(batch);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static tdm_status launch(const forward_call* call, const tdm_model_graphs* graphs) {
  tdm_model* model = call->model;
  tdm_graph* graph;
  TDM_TRY(tdm_graph_cache_get(call->expanded ? graphs->mixed : graphs->decode, call->n_tokens, &graph));
  tdm_launch_config config;
  TDM_TRY(tdm_launch_config_init(&config, sizeof config));
  config.order = model->config.order;
  config.seed = model->config.order_seed + model->calls;
  tdm_program* program = tdm_graph_program(graph);
  TDM_TRY(model->config.use_graphs ? tdm_graph_replay(graph, &config) : tdm_program_launch(program, &config));
  model->last = program;
  return TDM_OK;
}

static tdm_status read_result(const forward_call* call, tdm_forward_result* result) {
  tdm_model* model = call->model;
  tdm_view tokens;
  TDM_TRY(tdm_program_find(model->last, "next_tokens", &tokens));
  TDM_TRY(tdm_program_find(model->last, "logits", &result->logits));
  result->bucket = tokens.shape[0];
  result->logits.shape[0] = call->n_logits;
  result->n_logits = call->n_logits;
  result->tokens = model->next_tokens;
  tdm_program_info info = {.size = sizeof info};
  TDM_TRY(tdm_program_get_info(model->last, &info));
  result->launched_steps = info.steps;
  return tdm_buffer_read(tokens.buffer, 0, model->next_tokens, (size_t)call->n_logits * sizeof *model->next_tokens);
}

static tdm_status run_whole(const forward_call* call, tdm_forward_result* result) {
  TDM_TRY(fill_batch(call));
  TDM_TRY(launch(call, call->model->whole));
  return read_result(call, result);
}

tdm_status tdm_model_forward(tdm_model* model, const tdm_batch_item* items, int64_t n_items,
                             tdm_forward_result* out_result) {
  if (!model || !out_result)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_forward: model and out_result must not be NULL");
  const size_t size = out_result->size;
  tdm_forward_result result = {.size = sizeof result};
  TDM_TRY(tdm_info_copy("tdm_forward_result", &result, sizeof result, out_result, size));
  forward_call call = {.model = model, .items = items, .n_items = n_items};
  TDM_TRY(check_call(&call));
  reserve_pages(&call);
  const tdm_status status = run_whole(&call, &result);
  if (status != TDM_OK) {
    return_pages(&call);
    return status;
  }
  grow_sequences(&call);
  return tdm_info_copy("tdm_forward_result", &result, sizeof result, out_result, size);
}

/* ---- a range of layers ------------------------------------------------------------------------------------------ */

tdm_status tdm_model_make_hidden(tdm_model* model) {
  if (model->hidden.buffer) return TDM_OK;
  const int64_t shape[] = {model->config.max_tokens, model->weights.config.hidden_size};
  tdm_buffer* buffer;
  TDM_TRY(tdm_buffer_create(model->runtime, (size_t)(shape[0] * shape[1]) * tdm_dtype_bytes(model->weights.activation),
                            &buffer));
  model->hidden = tdm_view_make(buffer, model->weights.activation, 2, shape);
  return TDM_OK;
}

static tdm_status prepare_range(tdm_model* model, int64_t first, int64_t count) {
  if (first < 0 || count < 1 || first > model->config.layers - count)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "layers %" PRId64 " .. %" PRId64 " of a model with %" PRId64, first,
                    first + count - 1, model->config.layers);
  tdm_model_graphs* graphs = &model->layers;
  TDM_TRY(tdm_model_make_hidden(model));
  if (graphs->mixed && graphs->range.first == first && graphs->range.count == count) return TDM_OK;
  if (graphs->model) model->last = NULL; /* it may be one of those that go now */
  tdm_model_graphs_fini(graphs);
  const tdm_status status = tdm_model_graphs_init(model, (tdm_model_range){.first = first, .count = count}, graphs);
  if (status != TDM_OK) tdm_model_graphs_fini(graphs);
  return status;
}

/* Rows of f32 in host memory to and from activations in device memory, through a row-sized piece of the stack. */
static tdm_status copy_rows(const tdm_view* view, int64_t rows, const float* in, float* out) {
  uint8_t piece[4096];
  const tdm_dtype dtype = view->dtype;
  const size_t element = tdm_dtype_bytes(dtype);
  const int64_t total = rows * view->shape[1], step = (int64_t)(sizeof piece / element);
  for (int64_t first = 0; first < total; first += step) {
    const int64_t n = total - first < step ? total - first : step;
    const size_t offset = (size_t)view->offset_bytes + (size_t)first * element, bytes = (size_t)n * element;
    if (in) {
      for (int64_t i = 0; i < n; i++) tdm_store_f32(piece, dtype, i, in[first + i]);
      TDM_TRY(tdm_buffer_write(view->buffer, offset, piece, bytes));
    } else {
      TDM_TRY(tdm_buffer_read(view->buffer, offset, piece, bytes));
      for (int64_t i = 0; i < n; i++) out[first + i] = tdm_load_f32(piece, dtype, i);
    }
  }
  return TDM_OK;
}

tdm_status tdm_model_write_hidden(tdm_model* model, int64_t rows, const float* hidden) {
  return copy_rows(&model->hidden, rows, hidden, NULL);
}

static tdm_status run_layers(const forward_call* call, const float* hidden_in, float* hidden_out) {
  tdm_model* model = call->model;
  char name[32];
  tdm_view out;
  TDM_TRY(fill_batch(call));
  TDM_TRY(tdm_model_write_hidden(model, call->n_tokens, hidden_in));
  TDM_TRY(launch(call, &model->layers));
  snprintf(name, sizeof name, "layer%d.out", (int)(model->layers.range.first + model->layers.range.count - 1));
  TDM_TRY(tdm_program_find(model->last, name, &out));
  return copy_rows(&out, call->n_tokens, NULL, hidden_out);
}

tdm_status tdm_model_forward_layers(tdm_model* model, const tdm_batch_item* items, int64_t n_items, int64_t first,
                                    int64_t count, const float* hidden_in, float* hidden_out) {
  if (!model || !hidden_in || !hidden_out)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_forward_layers: model, hidden_in and hidden_out must not be NULL");
  forward_call call = {.model = model, .items = items, .n_items = n_items, .ignores_tokens = true};
  TDM_TRY(check_call(&call));
  TDM_TRY(prepare_range(model, first, count));
  reserve_pages(&call);
  const tdm_status status = run_layers(&call, hidden_in, hidden_out);
  if (status != TDM_OK) {
    return_pages(&call);
    return status;
  }
  grow_sequences(&call);
  return TDM_OK;
}

/* ---- for graphs by themselves ----------------------------------------------------------------------------------- */

tdm_status tdm_model_stage(tdm_model* model, const tdm_batch_item* items, int64_t n_items) {
  forward_call call = {.model = model, .items = items, .n_items = n_items, .ignores_tokens = true};
  TDM_TRY(check_call(&call));
  reserve_pages(&call);
  const tdm_status status = fill_batch(&call);
  if (status != TDM_OK) return_pages(&call);
  return status;
}

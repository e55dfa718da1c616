#include "report.h"

#include <jansson.h>
#include <math.h>

/* Few rows may choose other experts because FP8 rounding turned a near tie; more than this share is a bug. */
static const double other_topk_share = 0.10;

/* An error is judged only where there is a limit. NaN is never within one. */
static bool within(double error, double limit) {
  return limit == 0 || error <= limit;
}

static bool layer_passes(const mode_report* report, const layer_row* row) {
  return within(error_value(&row->attn), report->layer_limit) && within(error_value(&row->mlp), report->layer_limit) &&
         within(error_value(&row->out), report->layer_limit) &&
         within(error_value(&row->chained), report->chain_limit) &&
         (double)row->rows_other_topk <= other_topk_share * (double)row->rows;
}

bool report_passes(const mode_report* report) {
  if (!report->alone_same || !report->serial_same) return false;
  if (!report->judged) return true;
  for (int64_t i = 0; i < report->n_layers; i++)
    if (!layer_passes(report, &report->layers[i])) return false;
  return within(error_value(&report->logits), report->chain_limit);
}

/* ---- table ------------------------------------------------------------------------------------------------------ */

static void print_layers(FILE* file, const mode_report* report) {
  fprintf(file, "  layer  mlp    attn      mlp       out       out in chain  top-k agrees  ms      verdict\n");
  for (int64_t i = 0; i < report->n_layers; i++) {
    const layer_row* row = &report->layers[i];
    char topk[32] = "-";
    if (row->routed) snprintf(topk, sizeof topk, "%d/%d", (int)(row->rows - row->rows_other_topk), (int)row->rows);
    fprintf(file, "  %-5d  %-5s  %-8.1e  %-8.1e  %-8.1e  %-12.1e  %-12s  %-6.1f  %s\n", (int)i,
            row->routed ? "MoE" : "dense", error_value(&row->attn), error_value(&row->mlp), error_value(&row->out),
            error_value(&row->chained), topk, row->milliseconds, layer_passes(report, row) ? "ok" : "FAIL");
  }
  fprintf(file, "  logits at the end of the chain: %.1e%s; largest logit agrees in %d of %d rows\n",
          error_value(&report->logits), within(error_value(&report->logits), report->chain_limit) ? "" : "  FAIL",
          (int)report->greedy_same, (int)report->greedy_rows);
}

void report_print(FILE* file, const mode_report* report) {
  fprintf(file, "\nactivations %s\n", report->activations);
  if (report->judged) {
    fprintf(file, "  relative error against HF transformers; limit %.0e for a layer fed with the stored input%s\n",
            report->layer_limit,
            report->chain_limit > 0 ? ", and for the chain of layers" : "; the chain is shown only");
    print_layers(file, report);
  } else {
    fprintf(file, "  no io.safetensors in the model's folder: nothing to compare with\n");
  }
  fprintf(file, "  a sequence alone and in the batch: %s\n", report->alone_same ? "same bits" : "DIFFERENT BITS");
  fprintf(file, "  serial steps and overlapped lanes: %s\n", report->serial_same ? "same bits" : "DIFFERENT BITS");
  fprintf(file, "  prefill %d tokens, %.0f tokens/s; decode %d tokens, %.0f tokens/s\n", (int)report->prefill_tokens,
          (double)report->prefill_tokens / report->prefill_seconds, (int)report->decode_tokens,
          (double)report->decode_tokens / report->decode_seconds);
  if (report->n_generated == 0) return;
  fprintf(file, "  greedy tokens, %.0f tokens/s for %d sequences in one batch\n",
          (double)(report->n_generated * report->n_sequences) / report->generate_seconds, report->n_sequences);
  for (int s = 0; s < report->n_sequences; s++) {
    fprintf(file, "    sequence %d:", s);
    for (int64_t i = 0; i < report->n_generated; i++) fprintf(file, " %d", (int)report->generated[s][i]);
    fprintf(file, "\n");
  }
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

/* NaN is no JSON number. */
static json_t* number(double value) {
  return isfinite(value) ? json_real(value) : json_null();
}

static json_t* layer_json(const mode_report* report, const layer_row* row) {
  return json_pack("{s:s, s:o, s:o, s:o, s:o, s:I, s:I, s:f, s:b}", "mlp_kind", row->routed ? "moe" : "dense", "attn",
                   number(error_value(&row->attn)), "mlp", number(error_value(&row->mlp)), "out",
                   number(error_value(&row->out)), "out_in_chain", number(error_value(&row->chained)), "rows",
                   (json_int_t)row->rows, "rows_other_topk", (json_int_t)row->rows_other_topk, "milliseconds",
                   row->milliseconds, "ok", layer_passes(report, row));
}

static json_t* generated_json(const mode_report* report) {
  json_t* sequences = json_array();
  for (int s = 0; s < report->n_sequences && report->n_generated; s++) {
    json_t* tokens = json_array();
    for (int64_t i = 0; i < report->n_generated; i++)
      json_array_append_new(tokens, json_integer(report->generated[s][i]));
    json_array_append_new(sequences, tokens);
  }
  return sequences;
}

static json_t* mode_json(const mode_report* report) {
  json_t* layers = json_array();
  for (int64_t i = 0; report->judged && i < report->n_layers; i++)
    json_array_append_new(layers, layer_json(report, &report->layers[i]));
  return json_pack(
      "{s:s, s:b, s:b, s:f, s:o, s:o, s:o, s:I, s:I, s:b, s:b, s:f, s:f, s:f, s:o}", "activations", report->activations,
      "judged", report->judged, "ok", report_passes(report), "layer_limit", report->layer_limit, "chain_limit",
      report->chain_limit > 0 ? json_real(report->chain_limit) : json_null(), "layers", layers, "logits",
      number(report->judged ? error_value(&report->logits) : NAN), "greedy_rows", (json_int_t)report->greedy_rows,
      "greedy_same", (json_int_t)report->greedy_same, "alone_same_bits", report->alone_same, "serial_same_bits",
      report->serial_same, "prefill_tokens_per_second", (double)report->prefill_tokens / report->prefill_seconds,
      "decode_tokens_per_second", (double)report->decode_tokens / report->decode_seconds, "generate_tokens_per_second",
      report->n_generated ? (double)(report->n_generated * report->n_sequences) / report->generate_seconds : 0.0,
      "generated", generated_json(report));
}

bool report_json(FILE* file, const char* directory, const char* device, const mode_report* reports, int n) {
  json_t* modes = json_array();
  bool ok = true;
  for (int i = 0; i < n; i++) {
    json_array_append_new(modes, mode_json(&reports[i]));
    ok = ok && report_passes(&reports[i]);
  }
  json_t* root = json_pack("{s:s, s:s, s:s, s:b, s:o}", "tandem", tdm_version(), "model", directory, "device", device,
                           "ok", ok, "modes", modes);
  const bool written = root && json_dumpf(root, file, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) == 0;
  json_decref(root);
  if (written) fputc('\n', file);
  return written;
}

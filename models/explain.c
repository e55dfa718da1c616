#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "models/model.h"

typedef struct writer {
  tdm_write_fn write;
  void* ctx;
} writer;

static void say(const writer* out, const char* format, ...) __attribute__((format(printf, 2, 3)));
static void say(const writer* out, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  const int length = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (length > 0) out->write(out->ctx, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

static void say_lanes(const writer* out, const tdm_model* model, const tdm_choice_info* info,
                      const tdm_model_lanes* lanes) {
  static const char* const names[] = {"?", "?", "one lane", "soft lanes", "green lanes", "split lanes"};
  tdm_lane_info main_lane = {.size = sizeof main_lane}, side = {.size = sizeof side};
  (void)tdm_lane_get_info(lanes->main, &main_lane);
  (void)tdm_lane_get_info(lanes->side, &side);
  const bool host = model->runtime->config.device_kind == TDM_DEVICE_HOST;
  say(out, "lanes: %s", names[lanes->strategy]);
  if (!host) say(out, ", the main one has %d SMs", main_lane.granted_sms);
  if (lanes->side != lanes->main) {
    if (!host) say(out, ", the side one %d (%d asked for)", side.granted_sms, side.requested_sms);
    say(out, ", waits by %s", lanes->wait_form == TDM_WAIT_SIGNAL ? "signals" : "edges");
  }
  if (lanes->strategy == TDM_STRATEGY_GREEN && !host)
    say(out, ", work queues %s", main_lane.own_work_queues ? "of their own" : "shared: the driver knows no others");
  say(out, "; %s", info->reason);
  if (*lanes->reason) say(out, "; not what was chosen: %s", lanes->reason);
  if (*model->tuning_reason) say(out, "; the tuning is of no use here: %s", model->tuning_reason);
  say(out, "\n");
}

/* Of one that tdm_moe_choose answers. */
static const char* path_text(tdm_moe_path path) {
  static const char* const texts[] = {"?", "?", "all experts", "hit experts alone",
                                      "hit experts, each for its tokens alone"};
  return texts[path];
}

/* Layers that choose alike are told together. */
static void say_experts(const writer* out, const tdm_model* model, const tdm_choice_info* info) {
  char last[TDM_MOE_REASON_BYTES + 64] = "";
  int64_t first = 0;
  for (int64_t layer = 0; layer <= model->config.layers; layer++) {
    char reason[TDM_MOE_REASON_BYTES], line[TDM_MOE_REASON_BYTES + 64] = "";
    if (layer < model->config.layers) {
      const tdm_moe_path path =
          tdm_moe_choose(&model->weights.layers[layer].moe, info->choice.moe_path, info->bucket, reason);
      snprintf(line, sizeof line, "%s, since %s", path_text(path), reason);
    }
    if (strcmp(line, last) == 0) continue;
    if (layer > first) say(out, "layers %d to %d: %s\n", (int)first, (int)layer - 1, last);
    memcpy(last, line, sizeof last);
    first = layer;
  }
}

tdm_status tdm_model_explain(tdm_model* model, int64_t n_tokens, bool prefill, tdm_write_fn write, void* ctx) {
  if (!model || !write) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_explain: model and write must not be NULL");
  tdm_graph* graph;
  TDM_TRY(tdm_graph_cache_get(prefill ? model->whole->mixed : model->whole->decode, n_tokens, &graph));
  const writer out = {.write = write, .ctx = ctx};
  tdm_choice_info info;
  tdm_model_lanes lanes;
  tdm_model_choose(model, tdm_model_bucket(model, n_tokens), prefill, &info);
  TDM_TRY(tdm_model_get_lanes(model, &info.choice, model->config.strict, &lanes));
  say(&out, "%d tokens%s run in the bucket of %d, %s\n", (int)n_tokens, prefill ? " with prefill" : "",
      (int)info.bucket, model->config.use_graphs ? "as a captured graph" : "launched eagerly");
  say_lanes(&out, model, &info, &lanes);
  say_experts(&out, model, &info);
  return tdm_program_print(tdm_graph_program(graph), TDM_PRINT_TEXT, write, ctx);
}

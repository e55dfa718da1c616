#include "models/choice.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "models/model.h"
#include "runtime/cubins.h"

int64_t tdm_model_bucket(const tdm_model* model, int64_t n_tokens) {
  int32_t i = 0;
  while (i + 1 < model->config.n_buckets && model->buckets[i] < n_tokens) i++;
  return model->buckets[i];
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

static tdm_choice on_lanes(tdm_strategy strategy, tdm_wait_form wait_form, int32_t side_sms) {
  const bool serial = strategy == TDM_STRATEGY_SERIAL;
  return (tdm_choice){.strategy = strategy,
                      .wait_form = serial ? TDM_WAIT_EDGE : wait_form,
                      .side_sms = serial ? 0 : side_sms,
                      .moe_path = TDM_MOE_PATH_AUTO};
}

tdm_choice tdm_model_rule(const tdm_model* model) {
  return on_lanes(TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, model->config.side_sms);
}

void tdm_model_choose(const tdm_model* model, int64_t bucket, bool prefill, tdm_choice_info* out_info) {
  const tdm_model_config* config = &model->config;
  const tdm_tuning_entry* found = tdm_tuning_find(model->tuning, &model->identity, prefill, bucket);
  const bool lanes_set = config->strategy != TDM_STRATEGY_AUTO, path_set = config->moe_path != TDM_MOE_PATH_AUTO;
  *out_info = (tdm_choice_info){.size = sizeof *out_info, .bucket = bucket, .choice = tdm_model_rule(model)};
  if (found) out_info->choice = found->choice;
  if (lanes_set) {
    const tdm_moe_path path = out_info->choice.moe_path;
    out_info->choice = on_lanes(config->strategy, config->wait_form, config->side_sms);
    out_info->choice.moe_path = path;
  }
  if (path_set) out_info->choice.moe_path = config->moe_path;
  char* reason = out_info->reason;
  const size_t bytes = sizeof out_info->reason;
  static const char* const set[2][2] = {{"", "the configuration sets the experts' path, "},
                                        {"the configuration sets the lanes, ", ""}};
  const char* by_hand = set[lanes_set][path_set];
  if (lanes_set && path_set) {
    out_info->source = TDM_CHOICE_CONFIGURED;
    (void)snprintf(reason, bytes, "the configuration says so");
  } else if (found) {
    out_info->source = TDM_CHOICE_TUNING;
    (void)snprintf(reason, bytes, "%sthe tuning measured %d ways: the best took %.1f us and an untuned model's %.1f us",
                   by_hand, found->tried, 1e-3 * (double)found->time_ns, 1e-3 * (double)found->default_ns);
  } else {
    out_info->source = TDM_CHOICE_RULE;
    (void)snprintf(reason, bytes, "%snothing was measured for this bucket", by_hand);
  }
}

tdm_status tdm_model_get_choice(const tdm_model* model, int64_t n_tokens, bool prefill, tdm_choice_info* out_info) {
  if (!model || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_get_choice: model and out_info must not be NULL");
  if (n_tokens < 1 || n_tokens > model->config.max_tokens)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_model_get_choice: %" PRId64 " tokens; the model takes 1 to %" PRId64,
                    n_tokens, model->config.max_tokens);
  tdm_choice_info info;
  tdm_model_choose(model, tdm_model_bucket(model, n_tokens), prefill, &info);
  return tdm_info_copy("tdm_choice_info", &info, sizeof info, out_info, out_info->size);
}

tdm_status tdm_choice_check(const char* who, const tdm_choice* choice) {
  const bool serial = choice->strategy == TDM_STRATEGY_SERIAL;
  if (choice->strategy < TDM_STRATEGY_SERIAL || choice->strategy > TDM_STRATEGY_SPLIT)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: strategy %d is not serial, soft, green or split", who,
                    (int)choice->strategy);
  if (!tdm_wait_form_name(choice->wait_form))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: wait_form %d is no tdm_wait_form", who, (int)choice->wait_form);
  if (!tdm_moe_path_name(choice->moe_path))
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "%s: moe_path %d is no tdm_moe_path", who, (int)choice->moe_path);
  if (serial ? choice->side_sms != 0 || choice->wait_form != TDM_WAIT_EDGE : choice->side_sms < 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "%s: strategy %s with %d side_sms and wait_form %s; serial has 0 and edge, others at least 1", who,
                    tdm_strategy_name(choice->strategy), choice->side_sms, tdm_wait_form_name(choice->wait_form));
  return TDM_OK;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

/* Lanes are named by the size of the side one: buckets and models of one runtime may want different ones. So are
 * partitions, each of which divides the whole device. */
static tdm_status get_lane(const tdm_model* model, const char* name, tdm_lane_kind kind, int32_t sms, int32_t partition,
                           tdm_lane** out_lane) {
  tdm_lane_config config;
  TDM_TRY(tdm_lane_config_init(&config, sizeof config));
  config.name = name;
  config.kind = kind;
  config.sms = sms;
  config.partition = partition;
  return tdm_lane_get(model->runtime, &config, out_lane);
}

/* What a side lane of so many SMs leaves. The host device has no SMs to divide; any number stands for "the others". */
static tdm_status get_others(const tdm_model* model, int32_t side_sms, int32_t granted, int32_t* out_others) {
  tdm_runtime_info device = {.size = sizeof device};
  TDM_TRY(tdm_runtime_get_info(model->runtime, &device));
  if (device.sms && granted >= device.sms)
    return TDM_FAIL(TDM_UNSUPPORTED, "side_sms %d takes all %d SMs and leaves none for the main lane", side_sms,
                    device.sms);
  *out_others = device.sms ? device.sms - granted : 1;
  return TDM_OK;
}

/* The side lane's partition first, then one of all that is left. */
static tdm_status get_green_lanes(const tdm_model* model, int32_t side_sms, tdm_model_lanes* lanes) {
  tdm_lane_info side = {.size = sizeof side};
  int32_t others = 0;
  char name[32];
  (void)snprintf(name, sizeof name, "side.green%d", side_sms);
  TDM_TRY(get_lane(model, name, TDM_LANE_GREEN, side_sms, side_sms, &lanes->side));
  TDM_TRY(tdm_lane_get_info(lanes->side, &side));
  TDM_TRY(get_others(model, side_sms, side.granted_sms, &others));
  (void)snprintf(name, sizeof name, "main.green%d", side_sms);
  return get_lane(model, name, TDM_LANE_GREEN, others, side_sms, &lanes->main);
}

static tdm_status get_soft_lanes(const tdm_model* model, int32_t side_sms, tdm_model_lanes* lanes) {
  char name[32];
  (void)snprintf(name, sizeof name, "side.soft%d", side_sms);
  TDM_TRY(get_lane(model, "main", TDM_LANE_WHOLE, 0, 0, &lanes->main));
  return get_lane(model, name, TDM_LANE_SOFT, side_sms, 0, &lanes->side);
}

static tdm_status get_split_lanes(const tdm_model* model, int32_t side_sms, tdm_model_lanes* lanes) {
  int32_t others = 0;
  char name[32];
  TDM_TRY(get_others(model, side_sms, side_sms, &others));
  (void)snprintf(name, sizeof name, "main.soft%d", others);
  TDM_TRY(get_lane(model, name, TDM_LANE_SOFT, others, 0, &lanes->main));
  (void)snprintf(name, sizeof name, "side.soft%d", side_sms);
  return get_lane(model, name, TDM_LANE_SOFT, side_sms, 0, &lanes->side);
}

tdm_status tdm_model_get_lanes(const tdm_model* model, const tdm_choice* choice, bool strict,
                               tdm_model_lanes* out_lanes) {
  *out_lanes = (tdm_model_lanes){.strategy = choice->strategy, .wait_form = choice->wait_form};
  if (choice->strategy == TDM_STRATEGY_SERIAL) {
    TDM_TRY(get_lane(model, "main", TDM_LANE_WHOLE, 0, 0, &out_lanes->main));
    out_lanes->side = out_lanes->main;
    return TDM_OK;
  }
  if (choice->strategy != TDM_STRATEGY_SOFT) {
    const bool green = choice->strategy == TDM_STRATEGY_GREEN;
    const tdm_status status = green ? get_green_lanes(model, choice->side_sms, out_lanes)
                                    : get_split_lanes(model, choice->side_sms, out_lanes);
    if (status == TDM_OK || status == TDM_OUT_OF_MEMORY || strict) return status;
    (void)snprintf(out_lanes->reason, sizeof out_lanes->reason, "%s", tdm_last_error()->message);
    out_lanes->strategy = TDM_STRATEGY_SOFT;
    out_lanes->wait_form = TDM_WAIT_EDGE;
  }
  return get_soft_lanes(model, choice->side_sms, out_lanes);
}

/* ---- identity --------------------------------------------------------------------------------------------------- */

static void identify_device(const tdm_runtime_info* info, tdm_tuning_identity* identity) {
  if (info->device_kind == TDM_DEVICE_HOST) {
    (void)snprintf(identity->device, sizeof identity->device, "host, %ld processors", sysconf(_SC_NPROCESSORS_ONLN));
    (void)snprintf(identity->library, sizeof identity->library, "tandem %s", tdm_version());
    return;
  }
  (void)snprintf(identity->device, sizeof identity->device, "%s, %d SMs, driver %d.%d", info->device_name, info->sms,
                 info->driver / 1000, info->driver % 1000 / 10);
  (void)snprintf(identity->library, sizeof identity->library, "tandem %s, kernels %016" PRIx64, tdm_version(),
                 tdm_cubins_hash());
}

tdm_status tdm_model_identify(const tdm_model* model, tdm_tuning_identity* out_identity) {
  tdm_runtime_info device = {.size = sizeof device};
  TDM_TRY(tdm_runtime_get_info(model->runtime, &device));
  identify_device(&device, out_identity);
  const tdm_deepseek_v3_config* c = &model->weights.config;
  const tdm_v3_layer* layer = &model->weights.layers[model->weights.n_layers - 1];
  const tdm_moe* moe = &layer->moe;
  const int written = snprintf(
      out_identity->layers, sizeof out_identity->layers,
      "deepseek_v3: hidden %" PRId64 ", %" PRId64 " heads, q_lora %" PRId64 ", %s attention; %" PRId64
      " routed experts of %" PRId64 ", %d of them a token, %d of %d groups, %" PRId64 " shared, %s%s%s",
      c->hidden_size, c->num_attention_heads, c->q_lora_rank, tdm_dtype_name(layer->attention.qkv_a.data.dtype),
      moe->config.n_routed, moe->config.intermediate, moe->config.top_k, moe->config.topk_group, moe->config.n_group,
      moe->config.n_shared, tdm_dtype_name(moe->experts.w13.data.dtype), moe->shared.n ? ", the shared ones " : "",
      moe->shared.n ? tdm_dtype_name(moe->shared.w13.data.dtype) : "");
  if (written < 0 || (size_t)written >= sizeof out_identity->layers)
    return TDM_FAIL(TDM_INTERNAL, "the shape of the layers takes %d characters", written);
  const size_t used = (size_t)written;
  (void)snprintf(out_identity->layers + used, sizeof out_identity->layers - used, ", %s activations",
                 model->config.activations == TDM_ACTIVATIONS_FLOAT32 ? "float32" : "native");
  return TDM_OK;
}

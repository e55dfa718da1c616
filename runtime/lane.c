#include "runtime/lane.h"

#include <string.h>

#include "runtime/device.h"

tdm_runtime* tdm_lane_runtime(const tdm_lane* lane) {
  return lane->runtime;
}

const char* tdm_lane_name(const tdm_lane* lane) {
  return lane->info.name;
}

int32_t tdm_lane_sms(const tdm_lane* lane) {
  return lane->info.granted_sms;
}

tdm_status tdm_lane_config_init(tdm_lane_config* config, size_t size) {
  const tdm_lane_config defaults = {.size = size, .kind = TDM_LANE_WHOLE};
  return tdm_config_init("tdm_lane_config", &defaults, sizeof defaults, config, size);
}

static tdm_status lane_create(tdm_runtime* runtime, const tdm_lane_config* config, tdm_lane** out_lane) {
  tdm_lane* lane = tdm_host_alloc(runtime, sizeof *lane);
  if (!lane) return TDM_OUT_OF_MEMORY;
  lane->runtime = runtime;
  lane->info = (tdm_lane_info){
      .size = sizeof lane->info, .kind = config->kind, .requested_sms = config->sms, .partition = config->partition};
  memcpy(lane->info.name, config->name, strlen(config->name) + 1);
  const tdm_status status = runtime->device->lane_open(lane);
  if (status != TDM_OK) {
    tdm_host_free(runtime, lane, sizeof *lane);
    return status;
  }
  *out_lane = lane;
  return TDM_OK;
}

void tdm_lane_destroy(tdm_lane* lane) {
  lane->runtime->device->lane_close(lane);
  tdm_host_free(lane->runtime, lane, sizeof *lane);
}

static tdm_status lane_find_or_create(tdm_runtime* runtime, const tdm_lane_config* config, tdm_lane** out_lane) {
  for (int32_t i = 0; i < runtime->n_lanes; i++) {
    tdm_lane* lane = runtime->lanes[i];
    if (strcmp(lane->info.name, config->name) != 0) continue;
    if (lane->info.kind != config->kind || lane->info.requested_sms != config->sms ||
        lane->info.partition != config->partition)
      return TDM_FAIL(TDM_INVALID_ARGUMENT,
                      "lane '%s' exists with kind %d, %d SMs and partition %d, now asked for with kind %d, %d SMs and "
                      "partition %d",
                      config->name, (int)lane->info.kind, lane->info.requested_sms, lane->info.partition,
                      (int)config->kind, config->sms, config->partition);
    *out_lane = lane;
    return TDM_OK;
  }
  if (runtime->n_lanes == TDM_MAX_LANES)
    return TDM_FAIL(TDM_UNSUPPORTED, "lane '%s' would be number %d; a runtime has at most %d lanes", config->name,
                    TDM_MAX_LANES + 1, TDM_MAX_LANES);
  TDM_TRY(lane_create(runtime, config, out_lane));
  runtime->lanes[runtime->n_lanes++] = *out_lane;
  return TDM_OK;
}

tdm_status tdm_lane_get(tdm_runtime* runtime, const tdm_lane_config* config, tdm_lane** out_lane) {
  if (out_lane) *out_lane = NULL;
  if (!runtime || !config || !out_lane)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_lane_get: runtime, config and out_lane must not be NULL");
  tdm_lane_config wanted;
  TDM_TRY(tdm_lane_config_init(&wanted, sizeof wanted));
  TDM_TRY(tdm_config_copy("tdm_lane_config", config, sizeof wanted, &wanted));
  if (!wanted.name || !*wanted.name || strlen(wanted.name) >= sizeof((tdm_lane_info*)0)->name)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "lane name '%s' must have 1 to 31 characters",
                    wanted.name ? wanted.name : "(NULL)");
  if (wanted.kind < TDM_LANE_WHOLE || wanted.kind > TDM_LANE_GREEN)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "lane '%s': kind %d is no tdm_lane_kind", wanted.name, (int)wanted.kind);
  if (wanted.kind == TDM_LANE_WHOLE ? wanted.sms != 0 : wanted.sms < 1)
    return TDM_FAIL(TDM_INVALID_ARGUMENT,
                    "lane '%s': %d SMs wanted; a whole lane takes 0, a soft or green one at least 1", wanted.name,
                    wanted.sms);
  pthread_mutex_lock(&runtime->lanes_mutex);
  tdm_status status = lane_find_or_create(runtime, &wanted, out_lane);
  pthread_mutex_unlock(&runtime->lanes_mutex);
  return status;
}

tdm_status tdm_lane_get_info(const tdm_lane* lane, tdm_lane_info* out_info) {
  if (!lane || !out_info)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_lane_get_info: lane and out_info must not be NULL");
  return tdm_info_copy("tdm_lane_info", &lane->info, sizeof lane->info, out_info, out_info->size);
}

#include "runtime/device.h"
#include "runtime/program.h"

tdm_status tdm_launch_config_init(tdm_launch_config* config, size_t size) {
  const tdm_launch_config defaults = {.size = size, .order = TDM_ORDER_LANES};
  return tdm_config_init("tdm_launch_config", &defaults, sizeof defaults, config, size);
}

static tdm_status check_launch(const tdm_program* program, const tdm_launch_config* config,
                               tdm_launch_config* out_config) {
  TDM_TRY(tdm_launch_config_init(out_config, sizeof *out_config));
  if (config) TDM_TRY(tdm_config_copy("tdm_launch_config", config, sizeof *out_config, out_config));
  if (!program->sealed)
    return TDM_FAIL(TDM_INVALID_STATE, "program '%s' must be sealed before it is launched", program->name);
  if (out_config->order < TDM_ORDER_LANES || out_config->order > TDM_ORDER_SHUFFLED)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "program '%s': order %d is no tdm_order", program->name,
                    (int)out_config->order);
  return TDM_OK;
}

tdm_status tdm_program_launch(tdm_program* program, const tdm_launch_config* config) {
  if (!program) return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_launch: program must not be NULL");
  tdm_launch_config wanted;
  TDM_TRY(check_launch(program, config, &wanted));
  tdm_runtime* runtime = program->runtime;
  pthread_mutex_lock(&runtime->launch_mutex);
  const tdm_status status = runtime->device->launch(program, &wanted);
  pthread_mutex_unlock(&runtime->launch_mutex);
  return status;
}

tdm_status tdm_program_capture(tdm_program* program, void** out_state) {
  *out_state = NULL;
  if (!program->sealed)
    return TDM_FAIL(TDM_INVALID_STATE, "program '%s' must be sealed before it is captured", program->name);
  tdm_runtime* runtime = program->runtime;
  pthread_mutex_lock(&runtime->launch_mutex);
  const tdm_status status = runtime->device->capture(program, out_state);
  pthread_mutex_unlock(&runtime->launch_mutex);
  return status;
}

tdm_status tdm_program_replay(tdm_program* program, void* state, const tdm_launch_config* config) {
  tdm_launch_config wanted;
  TDM_TRY(check_launch(program, config, &wanted));
  tdm_runtime* runtime = program->runtime;
  pthread_mutex_lock(&runtime->launch_mutex);
  const tdm_status status = runtime->device->replay(program, state, &wanted);
  pthread_mutex_unlock(&runtime->launch_mutex);
  return status;
}

void tdm_program_release_capture(tdm_program* program, void* state) {
  program->runtime->device->release(program, state);
}

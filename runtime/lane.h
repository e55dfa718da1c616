#ifndef RUNTIME_LANE_H
#define RUNTIME_LANE_H

#include "runtime/runtime.h"

struct tdm_lane {
  tdm_runtime* runtime;
  tdm_lane_info info;
  void* state; /* the device's */
};

tdm_runtime* tdm_lane_runtime(const tdm_lane* lane);
const char* tdm_lane_name(const tdm_lane* lane);
/* SMs that kernels on the lane may use; 0 on the host device. */
int32_t tdm_lane_sms(const tdm_lane* lane);

/* Closes what the lane runs on and frees it. */
void tdm_lane_destroy(tdm_lane* lane);

#endif

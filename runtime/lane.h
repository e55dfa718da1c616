#ifndef RUNTIME_LANE_H
#define RUNTIME_LANE_H

#include "runtime/runtime.h"

/* Work handed to a lane's thread. */
typedef void (*tdm_lane_fn)(void* ctx, int32_t slot);

/* Runs fn(ctx, slot) on the lane's thread. The lane is idle: the launch mutex is held and the last work was awaited. */
void tdm_lane_submit(tdm_lane* lane, tdm_lane_fn fn, void* ctx, int32_t slot);
/* Blocks until the submitted work is done. */
void tdm_lane_await(tdm_lane* lane);

tdm_runtime* tdm_lane_runtime(const tdm_lane* lane);
const char* tdm_lane_name(const tdm_lane* lane);
/* SMs that kernels on the lane may use; 0 on the host device. */
int32_t tdm_lane_sms(const tdm_lane* lane);

/* Stops the thread and frees the lane. */
void tdm_lane_destroy(tdm_lane* lane);

#endif

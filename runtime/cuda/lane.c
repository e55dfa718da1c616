#include <string.h>

#include "runtime/cuda/cuda.h"

/* ---- green contexts --------------------------------------------------------------------------------------------- */

/* The partition of that number; all SMs are free at first. */
static tdm_status find_partition(tdm_cuda* cuda, int32_t number, tdm_cuda_partition** out_partition) {
  for (int32_t i = 0; i < cuda->n_partitions; i++)
    if (cuda->partitions[i].number == number) {
      *out_partition = &cuda->partitions[i];
      return TDM_OK;
    }
  if (cuda->n_partitions == TDM_MAX_LANES)
    return TDM_FAIL(TDM_UNSUPPORTED, "partition %d would be number %d; a runtime has at most %d", number,
                    TDM_MAX_LANES + 1, TDM_MAX_LANES);
  tdm_cuda_partition* made = &cuda->partitions[cuda->n_partitions];
  TDM_TRY_CU(&cuda->driver, cuDeviceGetDevResource, cuda->device, &made->free_sms, CU_DEV_RESOURCE_TYPE_SM);
  made->number = number;
  cuda->n_partitions++;
  *out_partition = made;
  return TDM_OK;
}

/* Splits `wanted` SMs, rounded up to what the hardware can, off those that no lane of the partition has yet. Each split
 * goes on from what the one before left: splitting the whole device twice would give lanes that overlap. */
static tdm_status split_sms(const tdm_cuda* cuda, const CUdevResource* free_sms, int32_t wanted,
                            CUdevResource* out_taken, CUdevResource* out_rest) {
  const int32_t left = (int32_t)free_sms->sm.smCount;
  if (wanted > left)
    return TDM_FAIL(TDM_UNSUPPORTED, "%d SMs wanted, but of the %d SMs of %s only %d are left to split off", wanted,
                    cuda->sms, cuda->name, left);
  *out_taken = *free_sms;
  *out_rest = (CUdevResource){.type = CU_DEV_RESOURCE_TYPE_SM};
  if (wanted == left) return TDM_OK; /* needs no split, and need not be a multiple of the hardware's step */
  /* Partitions are whole groups of SMs that can run clusters, 8 on Hopper; a smaller one can be had without that
   * promise.
   */
  const bool small = wanted < (int32_t)free_sms->sm.minSmPartitionSize;
  unsigned groups = 1;
  TDM_TRY_CU(&cuda->driver, cuDevSmResourceSplitByCount, out_taken, &groups, free_sms, out_rest,
             small ? CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING : 0, (unsigned)wanted);
  return TDM_OK;
}

/* Work queues of a green context, as drivers from CUDA 13.1 on describe them in a resource's open bytes. cuda.h of 13.0
 * does not know them. */
enum { RESOURCE_TYPE_WORK_QUEUES = 1000, WORK_QUEUES_BALANCED = 1, WORK_QUEUES_SINCE = 13010 };
typedef struct work_queues {
  CUdevice device;
  unsigned concurrent_streams;
  int scope;
} work_queues;
_Static_assert(sizeof(work_queues) <= sizeof((CUdevResource*)0)->_oversize, "fits into a resource");

/* Whether the driver can keep work queues apart; then out_queues asks for it. */
static tdm_status find_work_queues(const tdm_cuda* cuda, CUdevResource* out_queues, bool* out_found) {
  work_queues queues;
  *out_queues = (CUdevResource){0};
  *out_found = false;
  if (cuda->version < WORK_QUEUES_SINCE) return TDM_OK;
  const CUresult result =
      cuda->driver.cuDeviceGetDevResource(cuda->device, out_queues, (CUdevResourceType)RESOURCE_TYPE_WORK_QUEUES);
  *out_found = result == CUDA_SUCCESS;
  if (result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_INVALID_RESOURCE_TYPE ||
      result == CUDA_ERROR_NOT_SUPPORTED)
    return TDM_OK;
  if (!*out_found) return tdm_cuda_fail(&cuda->driver, result, "cuDeviceGetDevResource", __FILE__, __LINE__);
  memcpy(&queues, out_queues->_oversize, sizeof queues);
  queues.scope = WORK_QUEUES_BALANCED;
  memcpy(out_queues->_oversize, &queues, sizeof queues);
  return TDM_OK;
}

static tdm_status make_green_context(const tdm_cuda* cuda, CUdevResource* resources, unsigned n,
                                     CUgreenCtx* out_green) {
  const tdm_cuda_driver* driver = &cuda->driver;
  CUdevResourceDesc description;
  TDM_TRY_CU(driver, cuDevResourceGenerateDesc, &description, resources, n);
  TDM_TRY_CU(driver, cuGreenCtxCreate, out_green, description, cuda->device, CU_GREEN_CTX_DEFAULT_STREAM);
  return TDM_OK;
}

static tdm_status make_green(tdm_cuda* cuda, tdm_cuda_lane* lane, int32_t wanted, tdm_lane_info* info) {
  const tdm_cuda_driver* driver = &cuda->driver;
  CUdevResource resources[2], rest; /* SMs, work queues */
  tdm_cuda_partition* partition = NULL;
  TDM_TRY(find_partition(cuda, info->partition, &partition));
  TDM_TRY(split_sms(cuda, &partition->free_sms, wanted, &resources[0], &rest));
  TDM_TRY(find_work_queues(cuda, &resources[1], &info->own_work_queues));
  TDM_TRY(make_green_context(cuda, resources, info->own_work_queues ? 2 : 1, &lane->green));
  TDM_TRY_CU(driver, cuGreenCtxStreamCreate, &lane->stream, lane->green, CU_STREAM_NON_BLOCKING, 0);
  partition->free_sms = rest; /* only now: a lane that cannot be made takes none */
  info->granted_sms = (int32_t)resources[0].sm.smCount;
  return TDM_OK;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

static tdm_status make_lane(tdm_lane* owner, tdm_cuda_lane* lane) {
  tdm_cuda* cuda = tdm_cuda_of(owner->runtime);
  const int32_t wanted = owner->info.requested_sms;
  if (owner->info.kind == TDM_LANE_GREEN) return make_green(cuda, lane, wanted, &owner->info);
  if (wanted > cuda->sms) return TDM_FAIL(TDM_INVALID_ARGUMENT, "%d SMs wanted of a device with %d", wanted, cuda->sms);
  owner->info.granted_sms = owner->info.kind == TDM_LANE_SOFT ? wanted : cuda->sms;
  TDM_TRY_CU(&cuda->driver, cuStreamCreate, &lane->stream, CU_STREAM_NON_BLOCKING);
  return TDM_OK;
}

tdm_status tdm_cuda_lane_open(tdm_lane* owner) {
  const tdm_cuda* cuda = tdm_cuda_of(owner->runtime);
  tdm_cuda_lane* lane = tdm_host_alloc(owner->runtime, sizeof *lane);
  if (!lane) return TDM_OUT_OF_MEMORY;
  owner->state = lane;
  tdm_status status = tdm_cuda_enter(cuda);
  if (status == TDM_OK) {
    status = make_lane(owner, lane);
    tdm_cuda_leave(cuda);
  }
  if (status == TDM_OK) return TDM_OK;
  status = tdm_fail_prefix(status, "lane '%s'", owner->info.name);
  tdm_cuda_lane_close(owner);
  return status;
}

void tdm_cuda_lane_close(tdm_lane* owner) {
  const tdm_cuda* cuda = tdm_cuda_of(owner->runtime);
  tdm_cuda_lane* lane = owner->state;
  const bool entered = tdm_cuda_enter_anyway(cuda);
  if (lane->stream) (void)cuda->driver.cuStreamDestroy(lane->stream);
  if (lane->green) (void)cuda->driver.cuGreenCtxDestroy(lane->green);
  if (entered) tdm_cuda_leave(cuda);
  tdm_host_free(owner->runtime, lane, sizeof *lane);
  owner->state = NULL;
}

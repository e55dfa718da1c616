#ifndef TANDEM_RUNTIME_H
#define TANDEM_RUNTIME_H

/* The runtime (one device) and its lanes. */

#include "tandem/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One device with everything that belongs to it: allocators, log, lane pool, kernel library. No state is shared between
 * two runtimes. Threads: any thread may use a runtime; launches on one host-device runtime run one after the other. It
 * must outlive every object made from it: tdm_runtime_destroy refuses while any is left. */
typedef struct tdm_runtime tdm_runtime;

typedef enum tdm_device_kind {
  TDM_DEVICE_HOST = 1, /* no GPU: reference arithmetic, one thread a lane */
  TDM_DEVICE_CUDA = 2  /* a CUDA device, by ordinal */
} tdm_device_kind;

typedef enum tdm_log_level {
  TDM_LOG_ERROR = 1,
  TDM_LOG_WARNING = 2,
  TDM_LOG_INFO = 3,
  TDM_LOG_DEBUG = 4
} tdm_log_level;

/* Receives one line without a newline, valid during the call only. May be called from any thread that calls tandem, and
 * must not call tandem back. */
typedef void (*tdm_log_fn)(void* ctx, tdm_log_level level, const char* line);

/* Where memory comes from. Both functions are set, or neither (then the C library's). Called from any thread.
 * alloc: `bytes` > 0, `alignment` a power of two of at least 16; NULL means out of memory. free: gets alloc's `bytes`
 * back. Memory of the host device is asked for with an alignment of 256. */
typedef struct tdm_allocator {
  void* (*alloc)(void* ctx, size_t bytes, size_t alignment);
  void (*free)(void* ctx, void* memory, size_t bytes);
  void* ctx;
} tdm_allocator;

typedef struct tdm_runtime_config {
  size_t size;                    /* sizeof(tdm_runtime_config), set by init */
  tdm_device_kind device_kind;    /* default TDM_DEVICE_HOST */
  int32_t device_ordinal;         /* default 0 */
  tdm_allocator host_allocator;   /* tandem's own objects; default the C library */
  tdm_allocator device_allocator; /* buffers, weights, caches, workspaces; default the device's own */
  tdm_log_fn log;                 /* default NULL: silent */
  void* log_ctx;
  tdm_log_level log_level; /* default TDM_LOG_INFO: that and what is graver */
} tdm_runtime_config;

/* Fills in the defaults above. `size` is sizeof(tdm_runtime_config) as the caller was compiled. INVALID_ARGUMENT when
 * NULL or when the size is none that this library knows. */
TDM_API tdm_status tdm_runtime_config_init(tdm_runtime_config* config, size_t size);

/* Makes a runtime. `config` NULL means the defaults. Errors: INVALID_ARGUMENT; UNSUPPORTED where the device is none
 * that this build can drive (the sentence says what is missing); OUT_OF_MEMORY. Allocates; does not block. */
TDM_API tdm_status tdm_runtime_create(const tdm_runtime_config* config, tdm_runtime** out_runtime);

/* Stops the lanes and frees the runtime. NULL is allowed. INVALID_STATE, with nothing changed, while objects made from
 * it are alive; the sentence counts them by kind. Blocks until running launches are done. */
TDM_API tdm_status tdm_runtime_destroy(tdm_runtime* runtime);

typedef struct tdm_runtime_info {
  size_t size; /* set by the caller: sizeof(tdm_runtime_info) */
  tdm_device_kind device_kind;
  int32_t device_ordinal;
  char device_name[64]; /* "host" or the driver's name of the GPU */
  int32_t sms;          /* multiprocessors of the device; 0 on the host device */
  int32_t lanes;        /* lanes in the pool so far */
  int32_t driver;       /* CUDA version of the driver, 13000 for 13.0; 0 on the host device */
} tdm_runtime_info;

TDM_API tdm_status tdm_runtime_get_info(const tdm_runtime* runtime, tdm_runtime_info* out_info);

/* Blocks until all that was launched without a stream of the caller's is done, and reports what went wrong on the way.
 * On the host device launches are done when they return. */
TDM_API tdm_status tdm_runtime_synchronize(tdm_runtime* runtime);

/* A place where steps run one after the other: a set of SMs and a stream; on the host device a thread.
 * Threads: immutable once made; owned by the runtime's pool and gone with it. */
typedef struct tdm_lane tdm_lane;

typedef enum tdm_lane_kind {
  TDM_LANE_WHOLE = 1, /* all SMs */
  TDM_LANE_SOFT = 2,  /* kernels limit their grid to `sms`; nothing keeps others off these SMs */
  TDM_LANE_GREEN = 3  /* a partition that the hardware keeps (a green context) */
} tdm_lane_kind;

typedef struct tdm_lane_config {
  size_t size;
  const char* name;   /* at most 31 characters; shows in prints and traces; copied */
  tdm_lane_kind kind; /* default TDM_LANE_WHOLE */
  int32_t sms;        /* SMs wanted; 0 with TDM_LANE_WHOLE. The hardware rounds green lanes up: to 2 below its smallest
                         partition (8 SMs on an H200), else to 8. The host device records and otherwise ignores it */
  int32_t partition;  /* green lanes of one number have no SM in common and divide the whole device; those of two
                         numbers may overlap, so that ways to divide it can be compared. Default 0 */
} tdm_lane_config;

TDM_API tdm_status tdm_lane_config_init(tdm_lane_config* config, size_t size);

/* The lane of that name from the pool, made on first use. At most 16 lanes a runtime (UNSUPPORTED beyond). Asking again
 * with the same values gives the same lane; the same name with other values is INVALID_ARGUMENT. Allocates and starts a
 * thread or stream the first time; not capture-safe; call it before launching. */
TDM_API tdm_status tdm_lane_get(tdm_runtime* runtime, const tdm_lane_config* config, tdm_lane** out_lane);

typedef struct tdm_lane_info {
  size_t size; /* set by the caller: sizeof(tdm_lane_info) */
  char name[32];
  tdm_lane_kind kind;
  int32_t requested_sms;
  int32_t granted_sms; /* what the hardware gave; 0 on the host device, where a lane is one thread */
  int32_t partition;
  bool
      own_work_queues; /* green lanes: whether the driver keeps the hardware's work queues of this lane apart from other
                          lanes', so that launches elsewhere do not hold up its own. Drivers from CUDA 13.1 on can */
} tdm_lane_info;

TDM_API tdm_status tdm_lane_get_info(const tdm_lane* lane, tdm_lane_info* out_info);

#ifdef __cplusplus
}
#endif
#endif

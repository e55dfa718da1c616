#include "tests/gpu/gpu.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/common/convert.h"
#include "runtime/cubins.h"

gpu_driver gpu;
const int64_t gpu_row_counts[GPU_ROW_COUNTS] = GPU_ROW_COUNT_LIST;

enum { SCRATCHES = 256, MODULES = 64 };
static CUdeviceptr scratches[SCRATCHES];
static int n_scratches;
static CUmodule modules[MODULES];
static int n_modules;

void gpu_try(CUresult result, const char* call, const char* file, int line) {
  if (result == CUDA_SUCCESS) return;
  const char* text = "?";
  (void)gpu.cuGetErrorString(result, &text);
  (void)printf("%s:%d: %s: %s (%d)\n", file, line, call, text, (int)result);
  exit(1);
}

const char* gpu_open(gpu_rig* rig) {
  *rig = (gpu_rig){.random = 1};
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) return "libcuda.so.1 cannot be opened";
#define X(name, symbol)                                                                                                \
  *(void**)&gpu.name = dlsym(library, #symbol);                                                                        \
  if (!gpu.name) return "libcuda.so.1 lacks " #symbol;
  GPU_FUNCTIONS(X)
#undef X
  CUdevice device;
  if (gpu.cuInit(0) != CUDA_SUCCESS || gpu.cuDeviceGet(&device, 0) != CUDA_SUCCESS) return "no CUDA device";
  int major = 0;
  GPU_TRY(gpu.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
  if (major != 9) return "device 0 is no Hopper GPU";
  int sms = 0;
  GPU_TRY(gpu.cuDeviceGetAttribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
  rig->sms = sms;
  CUcontext context;
  GPU_TRY(gpu.cuDevicePrimaryCtxRetain(&context, device));
  GPU_TRY(gpu.cuCtxSetCurrent(context));
  GPU_TRY(gpu.cuStreamCreate(&rig->stream, CU_STREAM_DEFAULT));
  for (int i = 0; i < tdm_cubin_count && i < MODULES; i++) {
    GPU_TRY(gpu.cuModuleLoadData(&modules[i], tdm_cubins[i].data));
    n_modules++;
  }
  char name[64];
  GPU_TRY(gpu.cuDeviceGetName(name, (int)sizeof name, device));
  (void)printf("gpu: %s, %d SMs, %d cubins\n", name, sms, n_modules);
  if (tdm_runtime_create(NULL, &rig->runtime) != TDM_OK) return tdm_last_error()->message;
  return NULL;
}

void gpu_close(gpu_rig* rig) {
  (void)tdm_runtime_destroy(rig->runtime);
}

void gpu_begin(gpu_rig* rig, const char* format, ...) {
  va_list list;
  va_start(list, format);
  (void)vsnprintf(rig->label, sizeof rig->label, format, list);
  va_end(list);
  rig->ok = true;
  rig->random = 0x9e3779b97f4a7c15;
  for (const char* c = rig->label; *c; c++) rig->random = (rig->random ^ (uint64_t)*c) * 0x100000001b3;
}

void gpu_end(gpu_rig* rig) {
  while (n_scratches > 0) GPU_TRY(gpu.cuMemFree(scratches[--n_scratches]));
  if (rig->ok) {
    rig->passed++;
  } else {
    rig->failed++;
  }
}

void gpu_free_one(gpu_tensor* t) {
  tdm_buffer_destroy(t->host_buffer);
  tdm_buffer_destroy(t->device_buffer);
  free(t->host);
  free(t->got);
  GPU_TRY(gpu.cuMemFree(t->device));
}

void gpu_free(gpu_rig* rig) {
  while (rig->n_tensors > 0) gpu_free_one(&rig->tensors[--rig->n_tensors]);
}

void gpu_fail(gpu_rig* rig, const char* format, ...) {
  va_list list;
  va_start(list, format);
  (void)printf("FAIL %s: ", rig->label);
  (void)vprintf(format, list);
  (void)printf("\n");
  va_end(list);
  rig->ok = false;
}

uint64_t gpu_random(gpu_rig* rig) {
  uint64_t z = rig->random += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

static float random_uniform(gpu_rig* rig) {
  return (float)(gpu_random(rig) >> 40) * 0x1p-24f;
}

/* One of 65536 normal numbers: making each anew would take most of the tests' time. */
static float random_normal(gpu_rig* rig) {
  static float table[65536];
  if (table[0] == 0) {
    for (int i = 0; i < 65536; i++) {
      double u = (i + 0.5) / 65536, v = (double)random_uniform(rig);
      table[i] = (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
    }
  }
  return table[gpu_random(rig) & 65535];
}

void gpu_random_e4m3(gpu_rig* rig, uint8_t* bytes, size_t count) {
  static uint8_t table[4096];
  if (table[0] == 0) {
    for (int i = 0; i < 4096; i++) table[i] = tdm_f32_to_e4m3(random_normal(rig) * 32.0f);
    if (table[0] == 0) table[0] = 0x38;
  }
  for (size_t i = 0; i < count; i += 4) {
    uint64_t bits = gpu_random(rig);
    for (size_t j = i; j < i + 4 && j < count; j++, bits >>= 12) bytes[j] = table[bits & 4095];
  }
}

gpu_tensor* gpu_make_strided(gpu_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                             const int64_t* stride) {
  gpu_tensor* t = &rig->tensors[rig->n_tensors++];
  *t = (gpu_tensor){.name = name};
  t->view = (tdm_view){.offset_bytes = GPU_GUARD_BYTES, .dtype = dtype, .rank = rank};
  int64_t span = 1;
  for (int32_t i = 0; i < rank; i++) {
    t->view.shape[i] = shape[i];
    t->view.stride[i] = stride[i];
    span += (shape[i] - 1) * stride[i];
  }
  t->bytes = ((size_t)span * tdm_dtype_bytes(dtype) + 15) / 16 * 16 + 2 * GPU_GUARD_BYTES;
  t->host = aligned_alloc(256, (t->bytes + 255) / 256 * 256);
  t->got = aligned_alloc(256, (t->bytes + 255) / 256 * 256);
  if (!t->host || !t->got) abort();
  GPU_TRY(gpu.cuMemAlloc(&t->device, t->bytes));
  if (tdm_buffer_wrap(rig->runtime, t->host, t->bytes, &t->host_buffer) != TDM_OK ||
      tdm_buffer_wrap(rig->runtime, (void*)(uintptr_t)t->device, t->bytes, &t->device_buffer) != TDM_OK)
    abort();
  t->view.buffer = t->host_buffer;
  gpu_poison(t);
  return t;
}

gpu_tensor* gpu_make(gpu_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape) {
  int64_t stride[TDM_MAX_RANK];
  for (int32_t i = rank - 1; i >= 0; i--) stride[i] = i == rank - 1 ? 1 : stride[i + 1] * shape[i + 1];
  return gpu_make_strided(rig, name, dtype, rank, shape, stride);
}

gpu_tensor* gpu_make_scales(gpu_rig* rig, const char* name, int64_t rows, int64_t cols) {
  return gpu_make_strided(rig, name, TDM_F32, 2, (int64_t[]){cols / 128, rows}, (int64_t[]){(rows + 3) / 4 * 4, 1});
}

gpu_tensor* gpu_make_count(gpu_rig* rig, const char* name, int32_t value) {
  gpu_tensor* t = gpu_make(rig, name, TDM_I32, 1, (int64_t[]){1});
  memcpy(t->host + GPU_GUARD_BYTES, &value, sizeof value);
  return t;
}

void gpu_poison(gpu_tensor* tensor) {
  memset(tensor->host, 0xff, tensor->bytes);
}

/* Element number `index`, counted row-major, in elements from the start. */
static int64_t element_offset(const tdm_view* view, int64_t index) {
  int64_t offset = 0;
  for (int32_t i = view->rank - 1; i >= 0; i--) {
    offset += index % view->shape[i] * view->stride[i];
    index /= view->shape[i];
  }
  return offset;
}

static int64_t element_count(const tdm_view* view) {
  int64_t count = 1;
  for (int32_t i = 0; i < view->rank; i++) count *= view->shape[i];
  return count;
}

/* random(rig) * factor + offset in every element. */
static void fill(gpu_rig* rig, gpu_tensor* tensor, float (*random)(gpu_rig*), float factor, float offset) {
  const tdm_view* view = &tensor->view;
  int64_t cols = view->shape[view->rank - 1], step = view->stride[view->rank - 1], runs = element_count(view) / cols;
  for (int64_t run = 0; run < runs; run++) {
    int64_t start = element_offset(view, run * cols);
    for (int64_t i = 0; i < cols; i++)
      tdm_store_f32(tensor->host + GPU_GUARD_BYTES, view->dtype, start + i * step, random(rig) * factor + offset);
  }
}

/* bf16 in one piece, four numbers a draw: what large weights are. */
static void fill_bf16(gpu_rig* rig, uint16_t* values, int64_t count, float deviation) {
  static uint16_t table[65536];
  for (int i = 0; i < 65536; i++) table[i] = tdm_f32_to_bf16(random_normal(rig) * deviation);
  for (int64_t i = 0; i < count; i += 4) {
    uint64_t bits = gpu_random(rig);
    for (int64_t j = i; j < i + 4 && j < count; j++, bits >>= 16) values[j] = table[bits & 65535];
  }
}

void gpu_fill_normal(gpu_rig* rig, gpu_tensor* tensor, float deviation) {
  const int64_t count = element_count(&tensor->view);
  if (tensor->view.dtype == TDM_BF16 && (size_t)count * 2 == tensor->bytes - 2 * GPU_GUARD_BYTES && count > 65536) {
    fill_bf16(rig, (uint16_t*)(void*)(tensor->host + GPU_GUARD_BYTES), count, deviation);
    return;
  }
  fill(rig, tensor, random_normal, deviation, 0);
}

void gpu_fill_uniform(gpu_rig* rig, gpu_tensor* tensor, float low, float high) {
  fill(rig, tensor, random_uniform, high - low, low);
}

bool gpu_reference(gpu_rig* rig, const tdm_op* op, void* args) {
  tdm_status status = op->check(args);
  tdm_plan plan = {.variant = "ref", .splits = 1};
  void* scratch = NULL;
  if (status == TDM_OK) {
    op->plan(args, 0, &plan);
    scratch = malloc(plan.scratch_bytes + 1);
    status = op->ref(args, &plan, scratch);
    free(scratch);
  }
  if (status != TDM_OK) gpu_fail(rig, "reference: %s", tdm_last_error()->message);
  return status == TDM_OK;
}

/* What the threads of a sliced reference share. */
typedef struct sliced {
  const tdm_op* op;
  const void* args;
  gpu_slice_fn slice;
  int64_t n, granule;
  int32_t splits;
  atomic_llong next;
  atomic_int failed;
} sliced;

static void* run_slices(void* argument) {
  sliced* s = argument;
  uint8_t* args = malloc(s->op->args_bytes);
  if (!args) abort();
  for (int64_t first; (first = atomic_fetch_add(&s->next, s->granule)) < s->n;) {
    memcpy(args, s->args, s->op->args_bytes);
    s->slice(args, first, s->n - first < s->granule ? s->n - first : s->granule);
    tdm_plan plan = {.variant = "ref", .splits = 1};
    s->op->plan(args, 0, &plan);
    plan.splits = s->splits;
    void* scratch = malloc(plan.scratch_bytes + 1);
    if (!scratch || s->op->ref(args, &plan, scratch) != TDM_OK) s->failed = 1;
    free(scratch);
  }
  free(args);
  return NULL;
}

bool gpu_reference_sliced(gpu_rig* rig, const tdm_op* op, void* args, gpu_slice_fn slice, int64_t n, int64_t granule) {
  enum { MOST_THREADS = 64 };
  if (op->check(args) != TDM_OK) {
    gpu_fail(rig, "check: %s", tdm_last_error()->message);
    return false;
  }
  tdm_plan plan = {.variant = "ref", .splits = 1};
  op->plan(args, 0, &plan);
  sliced s = {.op = op, .args = args, .slice = slice, .n = n, .granule = granule, .splits = plan.splits};
  pthread_t threads[MOST_THREADS];
  int64_t cores = sysconf(_SC_NPROCESSORS_ONLN), jobs = (n + granule - 1) / granule;
  int64_t wanted = cores < jobs ? cores : jobs;
  int started = 0;
  while (started + 1 < wanted && started < MOST_THREADS && pthread_create(&threads[started], NULL, run_slices, &s) == 0)
    started++;
  (void)run_slices(&s);
  for (int i = 0; i < started; i++) (void)pthread_join(threads[i], NULL);
  if (s.failed) gpu_fail(rig, "the reference fails");
  return !s.failed;
}

void gpu_to_device(gpu_rig* rig, const tdm_op* op, void* args) {
  for (int32_t i = 0; i < op->n_operands; i++) {
    tdm_view* view = (tdm_view*)((char*)args + op->operands[i].offset);
    for (int32_t j = 0; j < rig->n_tensors; j++)
      if (view->buffer == rig->tensors[j].host_buffer) view->buffer = rig->tensors[j].device_buffer;
  }
}

void gpu_upload_one(gpu_rig* rig, gpu_tensor* tensor) {
  (void)rig;
  GPU_TRY(gpu.cuMemcpyHtoD(tensor->device, tensor->host, tensor->bytes));
}

void gpu_upload(gpu_rig* rig) {
  for (int32_t i = 0; i < rig->n_tensors; i++) gpu_upload_one(rig, &rig->tensors[i]);
}

void gpu_download(gpu_rig* rig) {
  for (int32_t i = 0; i < rig->n_tensors; i++)
    GPU_TRY(gpu.cuMemcpyDtoH(rig->tensors[i].got, rig->tensors[i].device, rig->tensors[i].bytes));
}

void gpu_download_one(gpu_tensor* tensor) {
  GPU_TRY(gpu.cuMemcpyDtoH(tensor->got, tensor->device, tensor->bytes));
}

void gpu_poison_device(gpu_tensor* tensor) {
  GPU_TRY(gpu.cuMemsetD8(tensor->device, 0xff, tensor->bytes));
}

/* On a workspace of its own; false when it cannot be. */
static bool encode_step(gpu_rig* rig, const tdm_op* op, const void* args, int32_t sms, tdm_plan* out_plan,
                        CUdeviceptr* out_state, tdm_encoded_step* out_step) {
  *out_plan = (tdm_plan){.splits = 1};
  op->plan(args, sms, out_plan);
  *out_state = gpu_scratch(rig, out_plan->state_bytes, 0);
  const tdm_encode_env env = {.sms = sms,
                              .scratch = (void*)(uintptr_t)gpu_scratch(rig, out_plan->scratch_bytes, 0xff),
                              .state = (void*)(uintptr_t)*out_state,
                              .tensor_map = gpu_encode,
                              .tensor_map_ctx = rig};
  out_step->n_launches = 0;
  if (op->encode(args, out_plan, &env, out_step) == TDM_OK) return true;
  gpu_fail(rig, "encode: %s", tdm_last_error()->message);
  return false;
}

static void launch_step(gpu_rig* rig, tdm_encoded_step* step) {
  for (int32_t i = 0; i < step->n_launches; i++)
    gpu_launch(rig, &step->launches[i].launch, step->launches[i].params, step->launches[i].params_bytes);
}

bool gpu_run(gpu_rig* rig, const tdm_op* op, const void* args, int32_t sms) {
  static tdm_encoded_step step;
  tdm_plan plan;
  CUdeviceptr state;
  if (!encode_step(rig, op, args, sms, &plan, &state, &step)) return false;
  launch_step(rig, &step);
  return true;
}

static void expect_same_bytes(gpu_rig* rig, int launch, const gpu_tensor* got, const gpu_tensor* want) {
  size_t byte = 0;
  while (byte < got->bytes && got->got[byte] == want->got[byte]) byte++;
  if (byte < got->bytes)
    gpu_fail(rig, "launch %d: %s: byte %lld is 0x%02x, not 0x%02x", launch, got->name,
             (long long)byte - GPU_GUARD_BYTES, got->got[byte], want->got[byte]);
}

void gpu_expect_same_as(gpu_rig* rig, const tdm_op* op, const void* args, int32_t sms, gpu_tensor* const* out,
                        gpu_tensor* const* want, int32_t n) {
  enum { LAUNCHES = 4 };
  static tdm_encoded_step step;
  tdm_plan plan;
  CUdeviceptr state;
  if (!encode_step(rig, op, args, sms, &plan, &state, &step)) return;
  uint8_t* left = malloc(plan.state_bytes + 1); /* never of nothing */
  if (!left) abort();
  for (int launch = 0; launch < LAUNCHES && rig->ok; launch++) {
    for (int32_t i = 0; i < n; i++)
      if (out[i]) gpu_poison_device(out[i]);
    launch_step(rig, &step);
    for (int32_t i = 0; i < n; i++) {
      if (!out[i]) continue;
      gpu_download_one(out[i]);
      expect_same_bytes(rig, launch, out[i], want[i]);
    }
    if (plan.state_bytes) GPU_TRY(gpu.cuMemcpyDtoH(left, state, plan.state_bytes));
    for (size_t byte = 0; byte < plan.state_bytes && rig->ok; byte++)
      if (left[byte] != 0) gpu_fail(rig, "launch %d: byte %zu of the counters is 0x%02x", launch, byte, left[byte]);
  }
  free(left);
}

/* tdm_gemm_fp8_swap_... lives in gemm_fp8_sm90: the cubin with the longest name that the kernel's begins with. */
static bool find_kernel(gpu_rig* rig, const char* name, CUfunction* out_function) {
  int module = -1;
  size_t longest = 0;
  for (int i = 0; i < n_modules; i++) {
    size_t length = strlen(tdm_cubins[i].name) - strlen("_sm90");
    if (length > longest && strncmp(name + strlen("tdm_"), tdm_cubins[i].name, length) == 0) {
      module = i;
      longest = length;
    }
  }
  if (module >= 0 && gpu.cuModuleGetFunction(out_function, modules[module], name) == CUDA_SUCCESS) return true;
  gpu_fail(rig, "no kernel %s", name);
  return false;
}

void gpu_launch(gpu_rig* rig, const tdm_kernel_launch* launch, void* params, size_t params_bytes) {
  (void)params_bytes;
  /* Half of the launches fetch weights ahead, and half of these read ahead, as in a program; which follows no pattern.
   */
  static uint32_t turn;
  const uint32_t draw = turn++ * 0x9e3779b9u;
  tdm_step_sync sync = {
      .publishes = -1, .fetches_ahead = (int16_t)(draw >> 31), .reads_ahead = (int16_t)(draw >> 30 == 3)};
  CUfunction function = NULL;
  /* A copy from pageable memory may still be on its way when its call returns. */
  GPU_TRY(gpu.cuCtxSynchronize());
  if (!find_kernel(rig, launch->kernel, &function)) return;
  GPU_TRY(gpu.cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)launch->shared_bytes));
  CUlaunchConfig config = {.gridDimX = launch->grid,
                           .gridDimY = 1,
                           .gridDimZ = 1,
                           .blockDimX = launch->block,
                           .blockDimY = 1,
                           .blockDimZ = 1,
                           .sharedMemBytes = launch->shared_bytes,
                           .hStream = rig->stream};
  GPU_TRY(gpu.cuLaunchKernelEx(&config, function, (void*[]){params, &sync}, NULL));
  CUresult result = gpu.cuStreamSynchronize(rig->stream);
  if (result != CUDA_SUCCESS) (void)printf("FAIL %s: %s\n", rig->label, launch->kernel);
  GPU_TRY(result);
}

tdm_status gpu_encode(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map) {
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  if (tile->dtype == TDM_BF16) type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (tile->dtype == TDM_F32) type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  CUresult result = gpu.cuTensorMapEncodeTiled(
      (CUtensorMap*)(void*)out_map, type, tile->rank, tile->data, (const cuuint64_t*)tile->dim,
      (const cuuint64_t*)tile->stride_bytes, tile->box, (const cuuint32_t[]){1, 1, 1, 1}, CU_TENSOR_MAP_INTERLEAVE_NONE,
      tile->swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return TDM_OK;
  gpu_fail(ctx, "cuTensorMapEncodeTiled: %d (dims %llu %llu %llu, strides %llu %llu, box %u %u %u)", (int)result,
           (unsigned long long)tile->dim[0], (unsigned long long)tile->dim[1], (unsigned long long)tile->dim[2],
           (unsigned long long)tile->stride_bytes[0], (unsigned long long)tile->stride_bytes[1], tile->box[0],
           tile->box[1], tile->box[2]);
  return TDM_UNSUPPORTED;
}

CUdeviceptr gpu_scratch(gpu_rig* rig, size_t bytes, uint8_t value) {
  (void)rig;
  if (bytes == 0) return 0;
  if (n_scratches == SCRATCHES) abort();
  CUdeviceptr* p = &scratches[n_scratches++];
  GPU_TRY(gpu.cuMemAlloc(p, bytes));
  GPU_TRY(gpu.cuMemsetD8(*p, value, bytes));
  return *p;
}

/* Squared difference and squared magnitudes, and class errors, of a run of values. */
typedef struct sums {
  double difference, magnitude;
  int64_t class_errors, first_class_error;
} sums;

static void add_value(sums* s, double got, double want, int64_t index) {
  if (isfinite(got) && isfinite(want)) {
    s->difference += (got - want) * (got - want);
    s->magnitude += got * got + want * want;
  } else if (!(isnan(got) && isnan(want)) && got != want) {
    if (s->class_errors++ == 0) s->first_class_error = index;
  }
}

static double ratio(const sums* s) {
  return s->magnitude > 0 ? s->difference / s->magnitude : 0;
}

double gpu_difference(const float* got, const float* want, int64_t count) {
  sums s = {0};
  for (int64_t i = 0; i < count; i++) add_value(&s, (double)got[i], (double)want[i], i);
  return s.class_errors ? INFINITY : ratio(&s);
}

void gpu_expect_values(gpu_rig* rig, const char* name, const float* got, const float* want, int64_t rows, int64_t cols,
                       double tolerance) {
  sums all = {0};
  double worst = 0;
  int64_t worst_row = 0, worst_col = 0;
  for (int64_t r = 0; r < rows; r += 128) {
    for (int64_t c = 0; c < cols; c += 128) {
      sums tile = {0};
      for (int64_t i = r; i < rows && i < r + 128; i++)
        for (int64_t j = c; j < cols && j < c + 128; j++)
          add_value(&tile, (double)got[i * cols + j], (double)want[i * cols + j], i * cols + j);
      if (ratio(&tile) > worst) {
        worst = ratio(&tile);
        worst_row = r;
        worst_col = c;
      }
      all.difference += tile.difference;
      all.magnitude += tile.magnitude;
      if (tile.class_errors > 0 && all.class_errors == 0) all.first_class_error = tile.first_class_error;
      all.class_errors += tile.class_errors;
    }
  }
  const double part =
      fmax(ratio(&all), worst / 10) / tolerance; /* NaN and infinity for 0: bits, which need no record */
  if (isfinite(part) && part > rig->worst.part) {
    rig->worst = (gpu_worst){.part = part, .tile = worst, .all = ratio(&all), .tolerance = tolerance};
    memcpy(rig->worst.label, rig->label, sizeof rig->label);
    (void)snprintf(rig->worst.tensor, sizeof rig->worst.tensor, "%s", name);
  }
  if (all.class_errors > 0) {
    int64_t i = all.first_class_error;
    gpu_fail(rig, "%s: %lld elements differ in kind, first at [%lld, %lld]: %g, not %g", name,
             (long long)all.class_errors, (long long)(i / cols), (long long)(i % cols), (double)got[i],
             (double)want[i]);
  }
  if (!(ratio(&all) <= tolerance) || !(worst <= 10 * tolerance))
    gpu_fail(rig, "%s: difference %.2e (bound %.1e), worst tile %.2e at [%lld, %lld]", name, ratio(&all), tolerance,
             worst, (long long)worst_row, (long long)worst_col);
}

/* Bytes of the tensor that are no element's: guards and gaps between rows. */
static void expect_gaps(gpu_rig* rig, const gpu_tensor* t) {
  int32_t last = t->view.rank - 1;
  int64_t run = t->view.stride[last] == 1 ? t->view.shape[last] : 1, runs = element_count(&t->view) / run;
  size_t element = tdm_dtype_bytes(t->view.dtype);
  uint8_t* touched = calloc(t->bytes, 1);
  if (!touched) abort();
  for (int64_t i = 0; i < runs; i++)
    memset(touched + GPU_GUARD_BYTES + (size_t)element_offset(&t->view, i * run) * element, 1, (size_t)run * element);
  for (size_t i = 0; i < t->bytes; i++) {
    if (!touched[i] && t->got[i] != t->host[i]) {
      gpu_fail(rig, "%s: byte %lld outside of the elements changed", t->name, (long long)i - GPU_GUARD_BYTES);
      break;
    }
  }
  free(touched);
}

void gpu_expect_close(gpu_rig* rig, const gpu_tensor* tensor, double tolerance) {
  int64_t count = element_count(&tensor->view), cols = tensor->view.shape[tensor->view.rank - 1];
  float* got = malloc((size_t)count * sizeof *got);
  float* want = malloc((size_t)count * sizeof *want);
  if (!got || !want) abort();
  for (int64_t i = 0, start = 0; i < count; i++) {
    if (i % cols == 0) start = element_offset(&tensor->view, i);
    int64_t offset = start + i % cols * tensor->view.stride[tensor->view.rank - 1];
    got[i] = tdm_load_f32(tensor->got + GPU_GUARD_BYTES, tensor->view.dtype, offset);
    want[i] = tdm_load_f32(tensor->host + GPU_GUARD_BYTES, tensor->view.dtype, offset);
  }
  gpu_expect_values(rig, tensor->name, got, want, count / cols, cols, tolerance);
  expect_gaps(rig, tensor);
  free(got);
  free(want);
}

void gpu_expect_same_bits(gpu_rig* rig, const gpu_tensor* tensor) {
  for (size_t i = 0; i < tensor->bytes; i++) {
    if (tensor->got[i] != tensor->host[i]) {
      gpu_fail(rig, "%s: byte %lld is 0x%02x, not 0x%02x", tensor->name, (long long)i - GPU_GUARD_BYTES, tensor->got[i],
               tensor->host[i]);
      return;
    }
  }
}

void gpu_expect_rows(gpu_rig* rig, const gpu_tensor* tensor, const uint8_t* want, int32_t dim, int64_t rows) {
  const tdm_view* view = &tensor->view;
  int32_t last = view->rank - 1;
  int64_t cols = view->shape[last], runs = element_count(view) / cols, below = 1;
  size_t element = tdm_dtype_bytes(view->dtype);
  static uint8_t* expected; /* kept: fresh pages of large tensors cost more than the comparison */
  static size_t expected_bytes;
  if (tensor->bytes > expected_bytes) {
    free(expected);
    expected = malloc(expected_bytes = tensor->bytes);
  }
  if (!expected || view->stride[last] != 1) abort();
  memset(expected, 0xff, tensor->bytes);
  for (int32_t i = dim + 1; i < last; i++) below *= view->shape[i];
  for (int64_t run = 0; run < runs; run++) {
    if (dim < last && run / below % view->shape[dim] >= rows) continue;
    size_t offset = GPU_GUARD_BYTES + (size_t)element_offset(view, run * cols) * element;
    memcpy(expected + offset, want + offset, (size_t)(dim == last ? rows : cols) * element);
  }
  const bool same = memcmp(tensor->got, expected, tensor->bytes) == 0;
  for (size_t i = 0; !same && i < tensor->bytes; i++) {
    if (tensor->got[i] == expected[i]) continue;
    gpu_fail(rig, "%s: byte %lld (row stride %lld) is 0x%02x, not 0x%02x", tensor->name, (long long)i - GPU_GUARD_BYTES,
             (long long)view->stride[dim], tensor->got[i], expected[i]);
    break;
  }
}

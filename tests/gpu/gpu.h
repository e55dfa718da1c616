#ifndef TESTS_GPU_GPU_H
#define TESTS_GPU_GPU_H

/* Bring-up of the Hopper kernels without the library's CUDA device: the driver by dlopen, the embedded cubins, and
 * tensors that exist twice, in host memory for the op's reference and in device memory for its kernel.
 *
 *   gpu_tensor* x = gpu_make(rig, "x", TDM_BF16, 2, (int64_t[]){m, d});
 *   gpu_fill_normal(rig, x, 1.0f);
 *   tdm_quant_args args = {...views of x->view...};
 *   gpu_reference(rig, &tdm_op_quant, &args);           host side: check, plan, ref
 *   tdm_quant_args device = args; gpu_to_device(rig, &tdm_op_quant, &device);
 *   gpu_upload(rig); gpu_launch(rig, &launch, &params, sizeof params); gpu_download(rig);
 *   gpu_expect_close(rig, out, 1e-6);
 */

#include <cuda.h>

#include "kernels/device/launch.h"
#include "runtime/op.h"
#include "runtime/step_sync.h"

enum { GPU_TENSORS = 24, GPU_GUARD_BYTES = 1024 };

/* The numbers of rows that every op is tested with: one, primes, each token tile and one more, two runs of many tiles.
 */
#define GPU_ROW_COUNT_LIST                                                                                             \
  { 1, 2, 3, 7, 16, 17, 24, 37, 64, 65, 100, 128, 129, 257, 1025, 1500 }
enum { GPU_ROW_COUNTS = 16, GPU_MOST_ROWS = 1500 };
extern const int64_t gpu_row_counts[GPU_ROW_COUNTS];

typedef struct gpu_tensor {
  const char* name;
  tdm_view view; /* over host memory */
  tdm_buffer* host_buffer;
  tdm_buffer* device_buffer;
  size_t bytes; /* guards included */
  uint8_t* host;
  uint8_t* got; /* what gpu_download brought */
  CUdeviceptr device;
} gpu_tensor;

/* The comparison that came closest to its bound. */
typedef struct gpu_worst {
  double part; /* of the bound; 0: none yet */
  double tile, all, tolerance;
  char label[160], tensor[32];
} gpu_worst;

typedef struct gpu_rig {
  tdm_runtime* runtime; /* of the host device */
  CUstream stream;
  int32_t sms;
  int32_t n_tensors;
  gpu_tensor tensors[GPU_TENSORS];
  uint64_t random;
  char label[160]; /* of the running case */
  int32_t passed;
  int32_t failed;
  bool ok;         /* of the running case */
  gpu_worst worst; /* of the running test */
} gpu_rig;

/* Opens driver, device and cubins. Answers NULL, or why there is no GPU to test on. */
const char* gpu_open(gpu_rig* rig);
void gpu_close(gpu_rig* rig);

/* A case: gpu_begin, checks, gpu_end, which counts it. Tensors live until gpu_free and may serve several cases. */
void gpu_begin(gpu_rig* rig, const char* format, ...) __attribute__((format(printf, 2, 3)));
void gpu_end(gpu_rig* rig);
void gpu_free(gpu_rig* rig);
void gpu_free_one(gpu_tensor* tensor);
/* The running case fails; printed with its label. */
void gpu_fail(gpu_rig* rig, const char* format, ...) __attribute__((format(printf, 2, 3)));

/* Tensors start as 0xff bytes, guards included: NaN in every float format. */
gpu_tensor* gpu_make(gpu_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape);
gpu_tensor* gpu_make_strided(gpu_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                             const int64_t* stride);
/* FP8 activation scales of [rows, cols] data. */
gpu_tensor* gpu_make_scales(gpu_rig* rig, const char* name, int64_t rows, int64_t cols);
gpu_tensor* gpu_make_count(gpu_rig* rig, const char* name, int32_t value);
void gpu_fill_normal(gpu_rig* rig, gpu_tensor* tensor, float deviation);
void gpu_fill_uniform(gpu_rig* rig, gpu_tensor* tensor, float low, float high);
uint64_t gpu_random(gpu_rig* rig);
/* Bytes of random e4m3 numbers, about normal with deviation 32. */
void gpu_random_e4m3(gpu_rig* rig, uint8_t* bytes, size_t count);
/* Back to 0xff everywhere. */
void gpu_poison(gpu_tensor* tensor);

/* check, plan and ref on the host views. */
bool gpu_reference(gpu_rig* rig, const tdm_op* op, void* args);
/* The same in threads: slice(args, first, count) narrows a copy of args to `count` of the `n` units that the outputs'
 * columns consist of; a thread takes `granule` at a time. Splits are those of the whole. */
typedef void (*gpu_slice_fn)(void* args, int64_t first, int64_t count);
bool gpu_reference_sliced(gpu_rig* rig, const tdm_op* op, void* args, gpu_slice_fn slice, int64_t n, int64_t granule);
/* Exchanges every host buffer in args for its device buffer. */
void gpu_to_device(gpu_rig* rig, const tdm_op* op, void* args);

void gpu_upload(gpu_rig* rig);
void gpu_upload_one(gpu_rig* rig, gpu_tensor* tensor);
void gpu_download(gpu_rig* rig);
void gpu_download_one(gpu_tensor* tensor);
/* 0xff everywhere, on the device. */
void gpu_poison_device(gpu_tensor* tensor);
/* Plans, encodes and launches an op as a lane of `sms` SMs would, and waits; args has device views and was checked. */
bool gpu_run(gpu_rig* rig, const tdm_op* op, const void* args, int32_t sms);
/* An op, launched some times on one workspace: every output has the bytes, guards included, that want's tensor
 * got, and the state is zeros each time. Absent outputs are NULL. */
void gpu_expect_same_as(gpu_rig* rig, const tdm_op* op, const void* args, int32_t sms, gpu_tensor* const* out,
                        gpu_tensor* const* want, int32_t n);
void gpu_launch(gpu_rig* rig, const tdm_kernel_launch* launch, void* params, size_t params_bytes);
tdm_status gpu_encode(void* ctx, const tdm_tensor_tile* tile, tdm_tensor_map* out_map);
/* Device memory that lives until gpu_end. */
CUdeviceptr gpu_scratch(gpu_rig* rig, size_t bytes, uint8_t value);

/* got against host within `tolerance`: 1 - 2 sum(xy) / sum(x^2 + y^2), whole and per 128 x 128 tile (10 times that),
 * NaN and infinity in the same places; memory outside the view's elements unchanged. */
void gpu_expect_close(gpu_rig* rig, const gpu_tensor* tensor, double tolerance);
/* The same for `rows` x `cols` values that are nowhere in tensors. */
void gpu_expect_values(gpu_rig* rig, const char* name, const float* got, const float* want, int64_t rows, int64_t cols,
                       double tolerance);
void gpu_expect_same_bits(gpu_rig* rig, const gpu_tensor* tensor);
/* Elements below `rows` along `dim` have want's bits; every other byte is 0xff. */
void gpu_expect_rows(gpu_rig* rig, const gpu_tensor* tensor, const uint8_t* want, int32_t dim, int64_t rows);
double gpu_difference(const float* got, const float* want, int64_t count);

/* An op whose rows are apart from each other: a product of activations [M, K] and weights. */
typedef struct gpu_product {
  const tdm_op* op;
  void* args;      /* host views; all rows */
  size_t n_tokens; /* offset of that member */
  struct {
    size_t offset;    /* of a view in args whose dimension `dim` is rows; absent ones are passed over */
    int32_t dim;      /* 1 of 2: FP8 scales */
    double tolerance; /* of an output; 0: an input */
  } rows[6];
  gpu_slice_fn slice; /* for gpu_reference_sliced */
  int64_t slices, granule;
  size_t hits;  /* offset of a list of experts, which is there; 0: none. Without it there must be the same bits */
  bool sampled; /* the reference computes 16 rows (tiles' first and last among them) and all of their columns */
  bool quick;
} gpu_product;

/* All rows against the reference (or the sampled ones); then every number of rows of gpu_row_counts, on all SMs and on
 * a few, and live counts from device memory: each row must have the bits it had among all rows, and nothing else may be
 * written. The inputs are uploaded. Frees the rig's tensors. */
void gpu_test_product(gpu_rig* rig, const gpu_product* product);

/* The driver calls in use. */
typedef struct gpu_driver {
#define GPU_FUNCTIONS(X)                                                                                               \
  X(cuInit, cuInit)                                                                                                    \
  X(cuGetErrorString, cuGetErrorString)                                                                                \
  X(cuDeviceGet, cuDeviceGet)                                                                                          \
  X(cuDeviceGetName, cuDeviceGetName)                                                                                  \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute)                                                                        \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain)                                                                \
  X(cuCtxSetCurrent, cuCtxSetCurrent)                                                                                  \
  X(cuCtxSynchronize, cuCtxSynchronize)                                                                                \
  X(cuMemAlloc, cuMemAlloc_v2)                                                                                         \
  X(cuMemFree, cuMemFree_v2)                                                                                           \
  X(cuMemGetInfo, cuMemGetInfo_v2)                                                                                     \
  X(cuMemcpyHtoD, cuMemcpyHtoD_v2)                                                                                     \
  X(cuMemcpyDtoH, cuMemcpyDtoH_v2)                                                                                     \
  X(cuMemsetD8, cuMemsetD8_v2)                                                                                         \
  X(cuModuleLoadData, cuModuleLoadData)                                                                                \
  X(cuModuleGetFunction, cuModuleGetFunction)                                                                          \
  X(cuFuncSetAttribute, cuFuncSetAttribute)                                                                            \
  X(cuLaunchKernelEx, cuLaunchKernelEx)                                                                                \
  X(cuStreamCreate, cuStreamCreate)                                                                                    \
  X(cuStreamSynchronize, cuStreamSynchronize)                                                                          \
  X(cuTensorMapEncodeTiled, cuTensorMapEncodeTiled)
#define X(name, symbol) __typeof__(symbol)* name;
  GPU_FUNCTIONS(X)
#undef X
} gpu_driver;
extern gpu_driver gpu;

/* Ends the program with the driver's message unless the call succeeded: nothing after it would mean anything. */
#define GPU_TRY(call) gpu_try((call), #call, __FILE__, __LINE__)
void gpu_try(CUresult result, const char* call, const char* file, int line);

/* The tests, one function an op. */
void test_rmsnorm(gpu_rig* rig, bool quick);
void test_quant(gpu_rig* rig, bool quick);
void test_gemm_fp8(gpu_rig* rig, bool quick);
void test_grouped_gemm_fp8(gpu_rig* rig, bool quick);
void test_gemm_bf16(gpu_rig* rig, bool quick);
void test_bmm_quant(gpu_rig* rig, bool quick);
void test_router_gemm(gpu_rig* rig, bool quick);
void test_moe_fc1(gpu_rig* rig, bool quick);
void test_moe_fc2(gpu_rig* rig, bool quick);
void test_rope(gpu_rig* rig, bool quick);
void test_inverse_rope_quant(gpu_rig* rig, bool quick);
void test_bmm_fp8(gpu_rig* rig, bool quick);
void test_mla_kv_write(gpu_rig* rig, bool quick);
void test_mla_norm_write(gpu_rig* rig, bool quick);
void test_mla_qkv_a(gpu_rig* rig, bool quick);
void test_mla_absorb(gpu_rig* rig, bool quick);
void test_moe_route(gpu_rig* rig, bool quick);
void test_moe_gate(gpu_rig* rig, bool quick);
void test_moe_norm_gate(gpu_rig* rig, bool quick);
void test_moe_chosen(gpu_rig* rig, bool quick);
void test_mla_prefill(gpu_rig* rig, bool quick);
void test_embedding(gpu_rig* rig, bool quick);
void test_gather_rows(gpu_rig* rig, bool quick);
void test_argmax(gpu_rig* rig, bool quick);
void test_sample(gpu_rig* rig, bool quick);
void test_sample_edges(gpu_rig* rig, bool quick);
void test_mla_decode(gpu_rig* rig, bool quick);
void test_runtimes(gpu_rig* rig, bool quick);
void test_lanes(gpu_rig* rig, bool quick);
void test_memory(gpu_rig* rig, bool quick);
void test_model(gpu_rig* rig, bool quick);
void test_ways(gpu_rig* rig, bool quick);
void test_soak(gpu_rig* rig, bool quick);
/* What keeps the GPU busy in another process; never ends well. */
int gpu_load_main(void);

#endif

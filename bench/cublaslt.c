/* The peer of the same run: cuBLASLt, found at run time. It sees everything column-major and transposed:
 *
 *   our out [M, N] = a [M, K] w[N, K]^T     its D (N x M, leading out_stride) = op(A) B,  A = w,  B = a (K x M)
 *
 * FP8 on Hopper takes A transposed, 128 x 128 scales for w with K contiguous and its blocks along K a multiple of 4,
 * and 1 x 128 scales for a with M contiguous: tandem's own layouts. M must be a multiple of 4. */

#include "bench/bench.h"

#if defined(__has_include)
#if __has_include(<cublasLt.h>)
#define HAVE_CUBLASLT 1
#endif
#endif

#ifndef HAVE_CUBLASLT

#include <stdio.h>

void bench_cublaslt_open(bench_rig* rig, const char* path) {
  (void)path;
  (void)snprintf(rig->cublaslt_state, sizeof rig->cublaslt_state, "none: built without cublasLt.h");
}

void bench_cublaslt_close(bench_rig* rig) {
  (void)rig;
}

void* bench_cublaslt_graph(bench_rig* rig, const bench_work* work, char* note, size_t note_bytes) {
  (void)rig;
  (void)work;
  (void)note;
  (void)note_bytes;
  return NULL;
}

#else

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE_BYTES = 64 << 20, ALGORITHMS = 8, TRIALS = 5 };

#define LT_FUNCTIONS(X)                                                                                                \
  X(cublasLtCreate)                                                                                                    \
  X(cublasLtDestroy)                                                                                                   \
  X(cublasLtGetVersion)                                                                                                \
  X(cublasLtGetStatusString)                                                                                           \
  X(cublasLtMatmulDescCreate)                                                                                          \
  X(cublasLtMatmulDescDestroy)                                                                                         \
  X(cublasLtMatmulDescSetAttribute)                                                                                    \
  X(cublasLtMatrixLayoutCreate)                                                                                        \
  X(cublasLtMatrixLayoutDestroy)                                                                                       \
  X(cublasLtMatrixLayoutSetAttribute)                                                                                  \
  X(cublasLtMatmulPreferenceCreate)                                                                                    \
  X(cublasLtMatmulPreferenceDestroy)                                                                                   \
  X(cublasLtMatmulPreferenceSetAttribute)                                                                              \
  X(cublasLtMatmulAlgoGetHeuristic)                                                                                    \
  X(cublasLtMatmul)

struct bench_cublaslt {
#define X(name) __typeof__(name)* name;
  LT_FUNCTIONS(X)
#undef X
  void* library;
  cublasLtHandle_t handle;
  tdm_buffer* workspace;
};

static const struct {
  const char* name;
  size_t offset;
} symbols[] = {
#define X(name) {#name, offsetof(bench_cublaslt, name)},
    LT_FUNCTIONS(X)
#undef X
};

#define STRINGIZE_(x) #x
#define STRINGIZE(x)  STRINGIZE_(x)
#define LT_SONAME     "libcublasLt.so." STRINGIZE(CUBLAS_VER_MAJOR)

static void* open_library(const char* path) {
  static const char* const places[] = {LT_SONAME, "/usr/local/cuda/lib64/" LT_SONAME};
  void* library = NULL;
  if (path) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
  for (size_t i = 0; i < sizeof places / sizeof *places && !library; i++)
    library = dlopen(places[i], RTLD_NOW | RTLD_LOCAL);
  return library;
}

void bench_cublaslt_open(bench_rig* rig, const char* path) {
  bench_cublaslt* lt = calloc(1, sizeof *lt);
  if (!lt) bench_die("no memory for cuBLASLt's table");
  lt->library = open_library(path);
  if (!lt->library) {
    const char* problem = dlerror();
    (void)snprintf(rig->cublaslt_state, sizeof rig->cublaslt_state, "none: %s", problem ? problem : LT_SONAME);
    free(lt);
    return;
  }
  const char* missing = NULL;
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
    void* function = dlsym(lt->library, symbols[i].name);
    if (!function) missing = symbols[i].name;
    memcpy((char*)lt + symbols[i].offset, &function, sizeof function);
  }
  if (missing || lt->cublasLtCreate(&lt->handle) != CUBLAS_STATUS_SUCCESS) {
    (void)snprintf(rig->cublaslt_state, sizeof rig->cublaslt_state, "none: %s %s", missing ? "it lacks" : "it fails in",
                   missing ? missing : "cublasLtCreate");
    (void)dlclose(lt->library);
    free(lt);
    return;
  }
  bench_must(tdm_buffer_create(rig->runtime, WORKSPACE_BYTES, &lt->workspace), "cuBLASLt's workspace");
  const size_t version = lt->cublasLtGetVersion();
  (void)snprintf(rig->cublaslt_state, sizeof rig->cublaslt_state, "%zu.%zu.%zu", version / 10000, version / 100 % 100,
                 version % 100);
  rig->cublaslt = lt;
}

/* The library stays: unloading it while the driver has its kernels gains nothing. */
void bench_cublaslt_close(bench_rig* rig) {
  bench_cublaslt* lt = rig->cublaslt;
  if (!lt) return;
  (void)lt->cublasLtDestroy(lt->handle);
  tdm_buffer_destroy(lt->workspace);
  free(lt);
  rig->cublaslt = NULL;
}

/* A product as cuBLASLt has it, and what went wrong on the way. */
typedef struct lt_call {
  bench_rig* rig;
  bench_cublaslt* lt;
  const bench_work* work;
  int64_t m; /* rows, padded for FP8 */
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t w, a, d;
  cublasLtMatmulPreference_t preference;
  const cublasLtMatmulAlgo_t* algo;
  cublasStatus_t status;
  const char* failing;
} lt_call;

/* Keeps the first failure. */
static bool did(lt_call* call, cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return true;
  if (!call->failing) {
    call->status = status;
    call->failing = what;
  }
  return false;
}

static cudaDataType_t type_of(tdm_dtype dtype) {
  return dtype == TDM_E4M3 ? CUDA_R_8F_E4M3 : dtype == TDM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static bool set(lt_call* call, cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes,
                const char* what) {
  return did(call, call->lt->cublasLtMatmulDescSetAttribute(call->desc, attribute, value, bytes), what);
}

static bool describe_product(lt_call* call) {
  const bench_product* p = &call->work->product;
  const cublasOperation_t w_op = p->w_transposed ? CUBLAS_OP_N : CUBLAS_OP_T, a_op = CUBLAS_OP_N;
  const int32_t sms = call->rig->sms;
  bool fine =
      did(call, call->lt->cublasLtMatmulDescCreate(&call->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
  fine = fine && set(call, CUBLASLT_MATMUL_DESC_TRANSA, &w_op, sizeof w_op, "TRANSA");
  fine = fine && set(call, CUBLASLT_MATMUL_DESC_TRANSB, &a_op, sizeof a_op, "TRANSB");
  if (sms != call->rig->device_sms)
    fine = fine && set(call, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &sms, sizeof sms, "SM_COUNT_TARGET");
  if (p->in != TDM_E4M3) return fine;
#if CUBLAS_VERSION >= 120900
  const int32_t w_mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F, a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  const void *w_scale = tdm_view_data(&p->w_scale), *a_scale = tdm_view_data(&p->a_scale);
  fine = fine && set(call, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &w_mode, sizeof w_mode, "A_SCALE_MODE");
  fine = fine && set(call, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &a_mode, sizeof a_mode, "B_SCALE_MODE");
  fine = fine && set(call, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w_scale, sizeof w_scale, "A_SCALE_POINTER");
  return fine && set(call, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &a_scale, sizeof a_scale, "B_SCALE_POINTER");
#else
  return did(call, CUBLAS_STATUS_NOT_SUPPORTED, "block scales, which its headers of before CUDA 12.9 lack");
#endif
}

static bool describe_matrix(lt_call* call, cublasLtMatrixLayout_t* layout, tdm_dtype dtype, int64_t rows, int64_t cols,
                            int64_t leading, int64_t batch_stride) {
  const bench_cublaslt* lt = call->lt;
  const int32_t batch = (int32_t)call->work->product.batch;
  if (!did(call, lt->cublasLtMatrixLayoutCreate(layout, type_of(dtype), (uint64_t)rows, (uint64_t)cols, leading),
           "MatrixLayoutCreate"))
    return false;
  if (batch == 1) return true;
  return did(call,
             lt->cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
             "BATCH_COUNT") &&
         did(call,
             lt->cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                                  sizeof batch_stride),
             "STRIDED_BATCH_OFFSET");
}

static bool describe(lt_call* call) {
  const bench_product* p = &call->work->product;
  const size_t workspace = WORKSPACE_BYTES;
  const int64_t w_rows = p->w_transposed ? p->n : p->k, w_cols = p->w_transposed ? p->k : p->n;
  return describe_product(call) && describe_matrix(call, &call->w, p->in, w_rows, w_cols, p->w_stride, p->w_batch) &&
         describe_matrix(call, &call->a, p->in, p->k, call->m, p->a_stride, p->a_batch) &&
         describe_matrix(call, &call->d, p->out_dtype, p->n, call->m, p->out_stride, p->out_batch) &&
         did(call, call->lt->cublasLtMatmulPreferenceCreate(&call->preference), "PreferenceCreate") &&
         did(call,
             call->lt->cublasLtMatmulPreferenceSetAttribute(call->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                            &workspace, sizeof workspace),
             "MAX_WORKSPACE_BYTES");
}

static void undescribe(lt_call* call) {
  const bench_cublaslt* lt = call->lt;
  if (call->preference) (void)lt->cublasLtMatmulPreferenceDestroy(call->preference);
  if (call->d) (void)lt->cublasLtMatrixLayoutDestroy(call->d);
  if (call->a) (void)lt->cublasLtMatrixLayoutDestroy(call->a);
  if (call->w) (void)lt->cublasLtMatrixLayoutDestroy(call->w);
  if (call->desc) (void)lt->cublasLtMatmulDescDestroy(call->desc);
}

static bool multiply(lt_call* call, int32_t step) {
  const bench_product* p = &call->work->product;
  const float one = 1, zero = 0;
  const size_t offset = (size_t)(step % call->work->copies) * call->work->copy_bytes;
  const void* w = (const uint8_t*)tdm_view_data(&p->w) + offset;
  void* d = tdm_view_data(&p->out);
  return did(call,
             call->lt->cublasLtMatmul(call->lt->handle, call->desc, &one, w, call->w, tdm_view_data(&p->a), call->a,
                                      &zero, d, call->d, d, call->d, call->algo, tdm_buffer_data(call->lt->workspace),
                                      WORKSPACE_BYTES, (cudaStream_t)bench_stream(call->rig)),
             "cublasLtMatmul");
}

static bool multiply_all(void* ctx) {
  lt_call* call = ctx;
  for (int32_t i = 0; i < call->work->steps; i++)
    if (!multiply(call, i)) return false;
  return true;
}

/* One launch loads the kernel, which a capture must not. */
static void* capture(lt_call* call, const cublasLtMatmulAlgo_t* algo) {
  call->algo = algo;
  if (!multiply(call, 0)) return NULL;
  bench_synchronize(call->rig);
  return bench_capture(call->rig, multiply_all, call);
}

/* The quickest of what the heuristic offers, by one replay in turn. */
static void* quickest(lt_call* call, int32_t* out_offered) {
  cublasLtMatmulHeuristicResult_t offers[ALGORITHMS];
  void *best = NULL, *graphs[ALGORITHMS] = {0};
  double least = 0;
  int offered = 0;
  *out_offered = 0;
  if (!did(call,
           call->lt->cublasLtMatmulAlgoGetHeuristic(call->lt->handle, call->desc, call->w, call->a, call->d, call->d,
                                                    call->preference, ALGORITHMS, offers, &offered),
           "the heuristic"))
    return NULL;
  for (int i = 0; i < offered; i++) {
    if (offers[i].state != CUBLAS_STATUS_SUCCESS || !(graphs[i] = capture(call, &offers[i].algo))) continue;
    const double us = bench_time_graph(call->rig, graphs[i], TRIALS);
    *out_offered += 1;
    if (!best || us < least) {
      best = graphs[i];
      least = us;
    }
  }
  for (int i = 0; i < offered; i++)
    if (graphs[i] != best) bench_graph_destroy(call->rig, graphs[i]);
  return best;
}

void* bench_cublaslt_graph(bench_rig* rig, const bench_work* work, char* note, size_t note_bytes) {
  const bench_product* p = &work->product;
  const int64_t padded = p->in == TDM_E4M3 ? (p->m + 3) / 4 * 4 : p->m;
  lt_call call = {.rig = rig, .lt = rig->cublaslt, .work = work, .m = padded};
  int32_t offered = 0;
  void* graph = describe(&call) ? quickest(&call, &offered) : NULL;
  if (!graph) {
    const char* why = call.failing ? call.lt->cublasLtGetStatusString(call.status) : "no algorithm";
    (void)snprintf(note, note_bytes, "cuBLASLt refuses M %lld, N %lld, K %lld: %s%s%s", (long long)padded,
                   (long long)p->n, (long long)p->k, why, call.failing ? " from " : "",
                   call.failing ? call.failing : "");
  } else {
    (void)snprintf(note, note_bytes, "cuBLASLt: algorithms tried: %d%s%s%s", offered, p->note ? ", " : "",
                   p->note ? p->note : "", padded != p->m ? ", with rows added: it takes multiples of 4 alone" : "");
  }
  undescribe(&call);
  return graph;
}

#endif

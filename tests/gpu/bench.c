/* Timings by graph replay: weights rotate through copies that are together several times L2, activations stay warm,
 * median of 21 replays after 3. Percent is of the read bandwidth measured in the same run; bytes are weights,
 * activations, scales and output, once each. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/gemm_bf16/gemm_bf16_sm90.h"
#include "kernels/gemm_fp8/gemm_fp8_sm90.h"
#include "kernels/mla_decode/mla_decode_sm90.h"
#include "kernels/moe_fc1/moe_fc1_sm90.h"
#include "kernels/moe_fc2/moe_fc2_sm90.h"
#include "kernels/router_gemm/router_gemm_sm90.h"
#include "tests/gpu/gpu.h"

enum { REPLAYS = 21, WARM_UPS = 3, MAX_NODES = 32, MAX_ROWS = 4096 };

static int compare_floats(const void* a, const void* b) {
  float x = *(const float*)a, y = *(const float*)b;
  return (x > y) - (x < y);
}

/* Median, microseconds a node, of what was captured on the rig's stream. */
static float end_capture_and_time(gpu_rig* rig, int nodes) {
  CUgraph graph;
  CUgraphExec exec;
  CUevent start, end;
  GPU_TRY(gpu.cuStreamEndCapture(rig->stream, &graph));
  GPU_TRY(gpu.cuGraphInstantiateWithFlags(&exec, graph, 0));
  GPU_TRY(gpu.cuEventCreate(&start, CU_EVENT_DEFAULT));
  GPU_TRY(gpu.cuEventCreate(&end, CU_EVENT_DEFAULT));
  float times[REPLAYS];
  for (int i = -WARM_UPS; i < REPLAYS; i++) {
    float ms;
    GPU_TRY(gpu.cuEventRecord(start, rig->stream));
    GPU_TRY(gpu.cuGraphLaunch(exec, rig->stream));
    GPU_TRY(gpu.cuEventRecord(end, rig->stream));
    GPU_TRY(gpu.cuStreamSynchronize(rig->stream));
    GPU_TRY(gpu.cuEventElapsedTime(&ms, start, end));
    if (i >= 0) times[i] = ms;
  }
  GPU_TRY(gpu.cuGraphExecDestroy(exec));
  GPU_TRY(gpu.cuGraphDestroy(graph));
  qsort(times, REPLAYS, sizeof *times, compare_floats);
  return times[REPLAYS / 2] * 1000.0f / (float)nodes;
}

static void begin_capture(gpu_rig* rig) {
  rig->follows = false;
  GPU_TRY(gpu.cuStreamBeginCapture(rig->stream, CU_STREAM_CAPTURE_MODE_RELAXED));
}

/* Scratch of random e4m3 bytes; as bf16 they are finite numbers too. */
static CUdeviceptr random_memory(gpu_rig* rig, size_t bytes) {
  enum { PIECE = 16 << 20 };
  static uint8_t* piece;
  if (!piece) {
    piece = malloc(PIECE);
    if (!piece) abort();
    gpu_random_e4m3(rig, piece, PIECE);
  }
  CUdeviceptr memory = gpu_scratch(rig, bytes, 0);
  for (size_t done = 0; done < bytes; done += PIECE)
    GPU_TRY(gpu.cuMemcpyHtoD(memory + done, piece, bytes - done < PIECE ? bytes - done : PIECE));
  return memory;
}

static double read_bandwidth(gpu_rig* rig) {
  const uint64_t bytes = UINT64_C(2) << 30, count = bytes / 16;
  CUdeviceptr data = random_memory(rig, bytes), out = gpu_scratch(rig, 4, 0);
  double best = 0;
  for (uint32_t per_sm = 2; per_sm <= 4; per_sm++) {
    tdm_kernel_launch launch = {.kernel = "tdm_bandwidth_read_sm90", .grid = per_sm * (uint32_t)rig->sms, .block = 512};
    void* arguments[] = {&data, (void*)(uintptr_t)&count, &out};
    begin_capture(rig);
    for (int i = 0; i < 2; i++) (void)gpu_enqueue_arguments(rig, rig->stream, &launch, arguments);
    double rate = (double)bytes / (double)end_capture_and_time(rig, 2) * 1e6;
    if (rate > best) best = rate;
  }
  return best;
}

/* A view over device memory. The buffer is a wrapper that owns nothing; there are a few per case, kept until the end.
 */
static tdm_view device_view(gpu_rig* rig, CUdeviceptr data, tdm_dtype dtype, int32_t rank, const int64_t* shape) {
  tdm_buffer* buffer = NULL;
  if (tdm_buffer_wrap(rig->runtime, (void*)(uintptr_t)data, (size_t)1 << 40, &buffer) != TDM_OK) abort();
  return tdm_view_make(buffer, dtype, rank, shape);
}

static tdm_view device_scales(gpu_rig* rig, int64_t rows, int64_t cols) {
  CUdeviceptr data = gpu_scratch(rig, (size_t)(cols / 128 * tdm_scale_stride(rows) * 4), 0x3c);
  tdm_view view = device_view(rig, data, TDM_F32, 2, (int64_t[]){cols / 128, rows});
  view.stride[0] = tdm_scale_stride(rows);
  return view;
}

typedef struct bench_case {
  const char* op;
  const char* name;
  int64_t m, n, k, batch;
  double roof;
  int copies; /* of the weights */
} bench_case;

static int node_count(const bench_case* c, size_t w_bytes) {
  if (w_bytes > (size_t)200 << 20) return 3;
  return c->copies < 8 ? 8 : c->copies;
}

static void report(const bench_case* c, const char* kernel, int32_t segments, float us, double bytes) {
  double rate = bytes / (double)us * 1e6;
  (void)printf("%-11s %-10s %7lld %6lld %5lld  %-34s %2d %9.2f %7.0f %5.1f%% %7.0f\n", c->op, c->name, (long long)c->n,
               (long long)c->k, (long long)c->m, kernel, segments, (double)us, rate * 1e-9, 100 * rate / c->roof,
               2e-6 * (double)c->batch * (double)c->m * (double)c->n * (double)c->k / (double)us);
}

static double fp8_bytes(const bench_case* c, double out_bytes) {
  return (double)(c->n * c->k) + (double)(c->m * c->k) + (double)(c->k / 32 * c->m) + (double)(c->n * c->k / 4096) +
         out_bytes;
}

static void time_gemm_fp8(gpu_rig* rig, const bench_case* c, CUdeviceptr w, const tdm_gemm_fp8_sm90_plan* plan) {
  static tdm_gemm_fp8_params params[MAX_NODES];
  size_t w_bytes = (size_t)(c->n * c->k);
  int nodes = node_count(c, w_bytes);
  void* partials = (void*)(uintptr_t)gpu_scratch(rig, plan->partial_bytes, 0xff);
  void* counters = (void*)(uintptr_t)gpu_scratch(rig, plan->counter_bytes, 0);
  tdm_gemm_fp8_args args = {
      .size = sizeof args,
      .a = device_view(rig, random_memory(rig, (size_t)(c->m * c->k)), TDM_E4M3, 2, (int64_t[]){c->m, c->k}),
      .a_scale = device_scales(rig, c->m, c->k),
      .w_scale = device_view(rig, gpu_scratch(rig, (size_t)((c->n + 127) / 128 * (c->k / 128) * 4), 0x3c), TDM_F32, 2,
                             (int64_t[]){(c->n + 127) / 128, c->k / 128}),
      .out = device_view(rig, gpu_scratch(rig, (size_t)(c->m * c->n * 2), 0), TDM_BF16, 2, (int64_t[]){c->m, c->n})};
  for (int i = 0; i < nodes; i++) {
    args.w = device_view(rig, w + (size_t)(i % c->copies) * w_bytes, TDM_E4M3, 2, (int64_t[]){c->n, c->k});
    if (tdm_gemm_fp8_sm90_params(&args, plan, partials, counters, gpu_encode, rig, &params[i]) != TDM_OK) abort();
  }
  begin_capture(rig);
  for (int i = 0; i < nodes; i++) (void)gpu_enqueue(rig, rig->stream, &plan->launch, &params[i]);
  float us = end_capture_and_time(rig, nodes);
  report(c, plan->launch.kernel, plan->segments, us, fp8_bytes(c, (double)(c->m * c->n) * 2));
}

static void time_fc1(gpu_rig* rig, const bench_case* c, CUdeviceptr w, int64_t experts) {
  static tdm_moe_fc1_params params[MAX_NODES];
  size_t w_bytes = (size_t)(c->n * c->k);
  int nodes = node_count(c, w_bytes);
  tdm_moe_fc1_sm90_plan plan;
  tdm_moe_fc1_sm90_make_plan(c->m, c->n / 2, c->k, rig->sms, &plan);
  void* partials = (void*)(uintptr_t)gpu_scratch(rig, plan.partial_bytes, 0xff);
  void* counters = (void*)(uintptr_t)gpu_scratch(rig, plan.counter_bytes, 0);
  tdm_moe_fc1_args args = {
      .size = sizeof args,
      .quant_eps = 1e-4f,
      .x = device_view(rig, random_memory(rig, (size_t)(c->m * c->k)), TDM_E4M3, 2, (int64_t[]){c->m, c->k}),
      .x_scale = device_scales(rig, c->m, c->k),
      .w13_scale = device_view(rig, gpu_scratch(rig, (size_t)(c->n / 128 * (c->k / 128) * 4), 0x3c), TDM_F32, 3,
                               (int64_t[]){experts, c->n / experts / 128, c->k / 128}),
      .out = device_view(rig, gpu_scratch(rig, (size_t)(c->m * c->n / 2), 0), TDM_E4M3, 2, (int64_t[]){c->m, c->n / 2}),
      .out_scale = device_scales(rig, c->m, c->n / 2)};
  for (int i = 0; i < nodes; i++) {
    args.w13 = device_view(rig, w + (size_t)(i % c->copies) * w_bytes, TDM_E4M3, 3,
                           (int64_t[]){experts, c->n / experts, c->k});
    if (tdm_moe_fc1_sm90_params(&args, &plan, partials, counters, gpu_encode, rig, &params[i]) != TDM_OK) abort();
  }
  begin_capture(rig);
  for (int i = 0; i < nodes; i++) (void)gpu_enqueue(rig, rig->stream, &plan.launch, &params[i]);
  float us = end_capture_and_time(rig, nodes);
  report(c, plan.launch.kernel, plan.segments, us, fp8_bytes(c, (double)(c->m * c->n / 2)));
}

static void time_fc2(gpu_rig* rig, const bench_case* c, CUdeviceptr w, int64_t experts) {
  static tdm_gemm_fp8_params params[MAX_NODES];
  tdm_moe_fc2_fold_params fold;
  size_t w_bytes = (size_t)(c->n * c->k);
  int nodes = node_count(c, w_bytes);
  tdm_moe_fc2_sm90_plan plan;
  tdm_moe_fc2_sm90_make_plan(c->m, c->n, experts, c->k / experts, true, rig->sms, &plan);
  void* scratch = (void*)(uintptr_t)gpu_scratch(rig, plan.scratch_bytes, 0xff);
  void* counters = (void*)(uintptr_t)gpu_scratch(rig, plan.gemm.counter_bytes, 0);
  tdm_moe_fc2_args args = {
      .size = sizeof args,
      .n_experts = (int32_t)experts,
      .x = device_view(rig, random_memory(rig, (size_t)(c->m * c->k)), TDM_E4M3, 2, (int64_t[]){c->m, c->k}),
      .x_scale = device_scales(rig, c->m, c->k),
      .w2_scale = device_view(rig, gpu_scratch(rig, (size_t)(c->n / 128 * (c->k / 128) * 4), 0x3c), TDM_F32, 2,
                              (int64_t[]){c->n / 128, c->k / 128}),
      .alpha = device_view(rig, gpu_scratch(rig, (size_t)(c->m * experts * 4), 0x3e), TDM_F32, 2,
                           (int64_t[]){c->m, experts}),
      .out = device_view(rig, gpu_scratch(rig, (size_t)(c->m * c->n * 2), 0), TDM_BF16, 2, (int64_t[]){c->m, c->n})};
  for (int i = 0; i < nodes; i++) {
    args.w2 = device_view(rig, w + (size_t)(i % c->copies) * w_bytes, TDM_E4M3, 2, (int64_t[]){c->n, c->k});
    if (tdm_moe_fc2_sm90_params(&args, &plan, scratch, counters, gpu_encode, rig, &fold, &params[i]) != TDM_OK) abort();
  }
  begin_capture(rig);
  for (int i = 0; i < nodes; i++) {
    (void)gpu_enqueue(rig, rig->stream, &plan.fold, &fold);
    (void)gpu_enqueue(rig, rig->stream, &plan.gemm.launch, &params[i]);
  }
  float us = end_capture_and_time(rig, nodes);
  report(c, plan.gemm.launch.kernel, plan.gemm.segments, us, fp8_bytes(c, (double)(c->m * c->n) * 2));
}

/* Router where batch is 0, else the k_b absorption: a [M, B, K] by w [B, K, N]. */
static void time_bf16(gpu_rig* rig, const bench_case* c, CUdeviceptr w, bool router) {
  static tdm_gemm_bf16_params params[MAX_NODES];
  size_t w_bytes = (size_t)(c->batch * c->n * c->k * 2);
  int nodes = node_count(c, w_bytes);
  tdm_gemm_bf16_sm90_plan plan;
  if (router) {
    tdm_router_gemm_sm90_make_plan(c->m, c->n, c->k, rig->sms, &plan);
  } else {
    tdm_gemm_bf16_sm90_make_plan(c->batch, c->m, c->n, c->k, c->batch > 1, rig->sms, &plan);
  }
  void* partials = (void*)(uintptr_t)gpu_scratch(rig, plan.partial_bytes, 0xff);
  void* counters = (void*)(uintptr_t)gpu_scratch(rig, plan.counter_bytes, 0);
  CUdeviceptr a = random_memory(rig, (size_t)(c->m * c->batch * c->k * 2));
  CUdeviceptr out = gpu_scratch(rig, (size_t)(c->m * c->batch * c->n * 4), 0);
  for (int i = 0; i < nodes; i++) {
    CUdeviceptr copy = w + (size_t)(i % c->copies) * w_bytes;
    tdm_status status;
    if (router) {
      tdm_router_gemm_args args = {.size = sizeof args,
                                   .x = device_view(rig, a, TDM_BF16, 2, (int64_t[]){c->m, c->k}),
                                   .w = device_view(rig, copy, TDM_BF16, 2, (int64_t[]){c->n, c->k}),
                                   .logits = device_view(rig, out, TDM_F32, 2, (int64_t[]){c->m, c->n})};
      status = tdm_router_gemm_sm90_params(&args, &plan, partials, counters, gpu_encode, rig, &params[i]);
    } else {
      tdm_gemm_bf16_args args = {
          .size = sizeof args,
          .a = tdm_view_transpose(device_view(rig, a, TDM_BF16, 3, (int64_t[]){c->m, c->batch, c->k}), 0, 1),
          .w = tdm_view_transpose(device_view(rig, copy, TDM_BF16, 3, (int64_t[]){c->batch, c->k, c->n}), 1, 2),
          .out = tdm_view_transpose(device_view(rig, out, TDM_BF16, 3, (int64_t[]){c->m, c->batch, c->n}), 0, 1)};
      status = tdm_gemm_bf16_sm90_params(&args, &plan, partials, counters, gpu_encode, rig, &params[i]);
    }
    if (status != TDM_OK) abort();
  }
  begin_capture(rig);
  for (int i = 0; i < nodes; i++) (void)gpu_enqueue(rig, rig->stream, &plan.launch, &params[i]);
  float us = end_capture_and_time(rig, nodes);
  report(c, plan.launch.kernel, plan.segments, us,
         (double)w_bytes + (double)(c->m * c->batch) * (double)(2 * c->k + (router ? 4 : 2) * c->n));
}

/* Decode over n_seqs sequences of `context` tokens: latent cache once as bytes, whatever the head tiles read again from
 * L2. */
static void time_mla_decode(gpu_rig* rig, int64_t heads, int64_t n_seqs, int64_t context, double roof) {
  static tdm_mla_decode_params params;
  tdm_mla_decode_plan plan;
  int64_t pages = context / 64, n_pages = pages * n_seqs;
  int32_t* ints = malloc((size_t)(n_pages + 3 * n_seqs + 2) * sizeof *ints);
  if (!ints) abort();
  int32_t *start = ints + n_pages, *len = start + n_seqs + 1, *kind = len + n_seqs, count = (int32_t)n_seqs;
  for (int64_t i = 0; i < n_pages; i++) ints[i] = (int32_t)i;
  for (int64_t i = 0; i <= n_seqs; i++) start[i] = (int32_t)i;
  for (int64_t i = 0; i < n_seqs; i++) {
    len[i] = (int32_t)context;
    kind[i] = TDM_SEQ_ABSORBED;
  }
  CUdeviceptr table = gpu_scratch(rig, (size_t)n_pages * 4, 0), counts = gpu_scratch(rig, 4, 0);
  CUdeviceptr starts = gpu_scratch(rig, (size_t)(n_seqs + 1) * 4, 0), lens = gpu_scratch(rig, (size_t)n_seqs * 4, 0);
  CUdeviceptr kinds = gpu_scratch(rig, (size_t)n_seqs * 4, 0);
  GPU_TRY(gpu.cuMemcpyHtoD(table, ints, (size_t)n_pages * 4));
  GPU_TRY(gpu.cuMemcpyHtoD(starts, start, (size_t)(n_seqs + 1) * 4));
  GPU_TRY(gpu.cuMemcpyHtoD(lens, len, (size_t)n_seqs * 4));
  GPU_TRY(gpu.cuMemcpyHtoD(kinds, kind, (size_t)n_seqs * 4));
  GPU_TRY(gpu.cuMemcpyHtoD(counts, &count, 4));
  tdm_mla_decode_args args = {.size = sizeof args,
                              .n_seqs = device_view(rig, counts, TDM_I32, 1, (int64_t[]){1}),
                              .q = device_view(rig, random_memory(rig, (size_t)(n_seqs * heads * 576 * 2)), TDM_BF16, 3,
                                               (int64_t[]){n_seqs, heads, 576}),
                              .cache = device_view(rig, random_memory(rig, (size_t)n_pages * 64 * 576 * 2), TDM_BF16, 3,
                                                   (int64_t[]){n_pages, 64, 576}),
                              .block_table = device_view(rig, table, TDM_I32, 2, (int64_t[]){n_seqs, pages}),
                              .seq_start = device_view(rig, starts, TDM_I32, 1, (int64_t[]){n_seqs + 1}),
                              .kv_len = device_view(rig, lens, TDM_I32, 1, (int64_t[]){n_seqs}),
                              .seq_kind = device_view(rig, kinds, TDM_I32, 1, (int64_t[]){n_seqs}),
                              .out = device_view(rig, gpu_scratch(rig, (size_t)(n_seqs * heads * 512 * 2), 0), TDM_BF16,
                                                 3, (int64_t[]){n_seqs, heads, 512}),
                              .scale = 0.07f};
  tdm_mla_decode_sm90_make_plan(&args, rig->sms, &plan);
  void* partials = (void*)(uintptr_t)gpu_scratch(rig, plan.partial_bytes + 256, 0);
  if (tdm_mla_decode_sm90_params(&args, &plan, partials, gpu_encode, rig, &params) != TDM_OK) abort();
  begin_capture(rig);
  for (int i = 0; i < 8; i++) {
    (void)gpu_enqueue(rig, rig->stream, &plan.attend, &params);
    if (plan.max_splits > 1) (void)gpu_enqueue(rig, rig->stream, &plan.merge, &params);
  }
  float us = end_capture_and_time(rig, 8);
  double bytes = (double)n_seqs * (double)(context * 1152 + heads * (576 + 512) * 2), rate = bytes / (double)us * 1e6;
  (void)printf("mla_decode  %3lld heads %3lld sequences of %6lld: %9.2f us %7.0f GB/s %5.1f%% %7.0f TFLOP/s\n",
               (long long)heads, (long long)n_seqs, (long long)context, (double)us, rate * 1e-9, 100 * rate / roof,
               2e-6 * (double)(n_seqs * heads * context) * 1088 / (double)us);
  free(ints);
}

void bench(gpu_rig* rig, const char* only) {
  enum kind { GEMM, FC1, FC2, ROUTER, BMM };
  static const struct {
    enum kind kind;
    const char* op;
    const char* name;
    int64_t n, k, batch; /* batch: experts for fc1 and fc2 */
  } shapes[] = {
      {GEMM, "gemm_fp8", "q_a|kv_a", 2112, 7168, 1},   {GEMM, "gemm_fp8", "q_b", 24576, 1536, 1},
      {GEMM, "gemm_fp8", "o", 7168, 16384, 1},         {GEMM, "gemm_fp8", "o_b", 7168, 8192, 1},
      {GEMM, "gemm_fp8", "shared fc1", 4096, 7168, 1}, {GEMM, "gemm_fp8", "shared fc2", 7168, 2048, 1},
      {FC1, "moe_fc1", "shared", 4096, 7168, 1},       {FC1, "moe_fc1", "256 TP8", 131072, 7168, 256},
      {FC2, "moe_fc2", "256 TP8", 7168, 65536, 256},   {ROUTER, "router", "V3", 256, 7168, 1},
      {BMM, "gemm_bf16", "k_b", 512, 128, 128},
  };
  static const int64_t rows[] = {1, 16, 64, 128, 4096};
  gpu_begin(rig, "bench");
  double roof = read_bandwidth(rig);
  gpu_end(rig);
  (void)printf("read bandwidth %.0f GB/s\n", roof * 1e-9);
  (void)printf("%-11s %-10s %7s %6s %5s  %-34s %2s %9s %7s %6s %7s\n", "op", "case", "N", "K", "M", "kernel", "S", "us",
               "GB/s", "%", "TFLOP/s");
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    if (only && strcmp(only, shapes[s].op) != 0) continue;
    bool bf16 = shapes[s].kind >= ROUTER;
    int64_t batch = bf16 ? shapes[s].batch : 1;
    size_t w_bytes = (size_t)(batch * shapes[s].n * shapes[s].k * (bf16 ? 2 : 1));
    bench_case c = {shapes[s].op, shapes[s].name, 0,    shapes[s].n,
                    shapes[s].k,  batch,          roof, (int)(((size_t)400 << 20) / w_bytes)};
    if (c.copies < 2) c.copies = 1;
    if (c.copies > MAX_NODES) c.copies = MAX_NODES;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
      c.m = rows[r];
      if (c.m > 128 && (shapes[s].kind != GEMM || c.k == 8192)) continue;
      gpu_begin(rig, "bench %s %s %lld", c.op, c.name, (long long)c.m);
      CUdeviceptr w = random_memory(rig, (size_t)c.copies * w_bytes);
      if (shapes[s].kind == GEMM) {
        tdm_gemm_fp8_sm90_plan plan;
        tdm_gemm_fp8_sm90_make_plan(c.m, c.n, c.k, rig->sms, &plan);
        time_gemm_fp8(rig, &c, w, &plan);
        /* What other cuts of K would give, to judge tdm_gemm_segments; printed when gemm_fp8 is asked for by name. */
        for (int32_t segments = 1; c.m <= 128 && segments <= 8; segments++) {
          tdm_gemm_fp8_sm90_plan other = plan;
          int64_t tiles = (c.n + 63) / 64, units = (c.n + plan.rows - 1) / plan.rows * segments;
          other.segments = other.parts = segments;
          other.partial_bytes = (size_t)(tiles * segments * 64 * plan.tokens) * 4;
          other.counter_bytes = (size_t)tiles * 2 * 4;
          other.launch.grid = (uint32_t)(units < rig->sms ? units : rig->sms);
          if (segments != plan.segments && only) time_gemm_fp8(rig, &c, w, &other);
        }
      } else if (shapes[s].kind == FC1) {
        time_fc1(rig, &c, w, shapes[s].batch);
      } else if (shapes[s].kind == FC2) {
        time_fc2(rig, &c, w, shapes[s].batch);
      } else {
        time_bf16(rig, &c, w, shapes[s].kind == ROUTER);
      }
      gpu_end(rig);
    }
  }
  static const int64_t decodes[][3] = {{128, 1, 4096}, {128, 16, 4096}, {128, 64, 4096}, {128, 128, 4096},
                                       {16, 1, 4096},  {16, 64, 4096},  {16, 128, 4096}};
  for (size_t i = 0; i < sizeof decodes / sizeof *decodes && (!only || strcmp(only, "mla_decode") == 0); i++) {
    gpu_begin(rig, "bench mla_decode");
    time_mla_decode(rig, decodes[i][0], decodes[i][1], decodes[i][2], roof);
    gpu_end(rig);
  }
}

#include "bench/make.h"

#include <stdio.h>
#include <stdlib.h>

/* Copies of what rotates are together this large; an operand of half of it or more goes without a second one. L2 of an
 * H200 has 50 MB. */
enum { MAX_COPIES = 64 };
static const size_t rotated_bytes = (size_t)400 << 20, cold_bytes = (size_t)200 << 20;

tdm_buffer* bench_buffer(bench_rig* rig, bench_work* work, size_t bytes) {
  tdm_buffer* buffer = NULL;
  if (work->n_buffers == BENCH_BUFFERS) bench_die("a case has more than %d buffers", BENCH_BUFFERS);
  bench_must(tdm_buffer_create(rig->runtime, bytes, &buffer), "an operand's buffer");
  work->buffers[work->n_buffers++] = buffer;
  return buffer;
}

tdm_status bench_capture_work(bench_rig* rig, bench_work* work, tdm_graph** out_graph) {
  alignas(16) uint8_t args[BENCH_ARGS_BYTES];
  tdm_program* program = NULL;
  tdm_status status = tdm_program_create(rig->runtime, "bench", &program);
  for (int32_t i = 0; i < work->steps && status == TDM_OK; i++) {
    bench_step_args(work, i, args);
    status = tdm_program_append(program, rig->lane, work->op, work->op->name, args);
  }
  if (status == TDM_OK) status = tdm_program_seal(program, NULL);
  if (status == TDM_OK) status = tdm_graph_capture(program, out_graph);
  tdm_program_destroy(program);
  if (status != TDM_OK) return status;
  bench_step_args(work, 0, args);
  if ((status = work->op->check(args)) != TDM_OK) return status;
  work->plan = (tdm_plan){.variant = "-", .splits = 1};
  work->op->plan(args, rig->sms, &work->plan);
  work->plan.bytes -= work->unread;
  return TDM_OK;
}

void bench_work_close(bench_work* work) {
  while (work->n_buffers > 0) tdm_buffer_destroy(work->buffers[--work->n_buffers]);
}

tdm_view bench_tensor(bench_rig* rig, bench_work* work, tdm_dtype dtype, int32_t rank, const int64_t* shape) {
  int64_t count = shape[0] + 3;
  for (int32_t i = 1; i < rank; i++) count *= shape[i];
  return tdm_view_make(bench_buffer(rig, work, (size_t)count * tdm_dtype_bytes(dtype)), dtype, rank, shape);
}

static void fill(bench_rig* rig, const tdm_view* view, float amplitude, float offset) {
  tdm_program* program = NULL;
  const tdm_fill_args args = {
      .size = sizeof args, .out = *view, .seed = bench_random(rig), .amplitude = amplitude, .offset = offset};
  bench_must(tdm_program_create(rig->runtime, "fill", &program), "filling");
  bench_must(tdm_append_fill(program, rig->lane, "fill", &args), "filling");
  bench_must(tdm_program_seal(program, NULL), "filling");
  bench_must(tdm_program_launch(program, NULL), "filling");
  bench_must(tdm_runtime_synchronize(rig->runtime), "filling");
  tdm_program_destroy(program);
}

tdm_view bench_values(bench_rig* rig, bench_work* work, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                      float amplitude, float offset) {
  const tdm_view view = bench_tensor(rig, work, dtype, rank, shape);
  fill(rig, &view, amplitude, offset);
  return view;
}

tdm_view bench_ints(bench_rig* rig, bench_work* work, const int32_t* values, int64_t count) {
  const tdm_view view = bench_tensor(rig, work, TDM_I32, 1, &count);
  bench_must(tdm_buffer_write(view.buffer, 0, values, (size_t)count * 4), "writing integers");
  return view;
}

tdm_view bench_empty_scales(bench_rig* rig, bench_work* work, int64_t rows, int64_t cols) {
  const int64_t blocks = cols / 128, stride = tdm_scale_stride(rows);
  tdm_view view = tdm_view_make(bench_buffer(rig, work, (size_t)(blocks * stride) * 4), TDM_F32, 2,
                                (const int64_t[]){blocks, rows});
  view.stride[0] = stride;
  return view;
}

/* With e4m3 values in the hundreds and weight scales of 2e-4 to 4e-4 a sum over thousands comes out at about 1. */
tdm_view bench_scales(bench_rig* rig, bench_work* work, int64_t rows, int64_t cols) {
  const tdm_view view = bench_empty_scales(rig, work, rows, cols);
  const int64_t count = view.shape[0] * view.stride[0];
  float* values = calloc((size_t)count, sizeof *values);
  if (!values) bench_die("no memory for %lld scales", (long long)count);
  for (int64_t i = 0; i < count; i++)
    if (i % view.stride[0] < rows) values[i] = 0.003f + 0.006f * (float)(bench_random(rig) >> 40) * 0x1p-24f;
  bench_must(tdm_buffer_write(view.buffer, 0, values, (size_t)count * 4), "writing scales");
  free(values);
  return view;
}

tdm_buffer* bench_pool(bench_rig* rig, tdm_dtype dtype, size_t bytes) {
  tdm_buffer** pool = &rig->pools[dtype == TDM_BF16];
  if (*pool && tdm_buffer_bytes(*pool) >= bytes) return *pool;
  tdm_buffer_destroy(*pool);
  *pool = NULL;
  bench_must(tdm_buffer_create(rig->runtime, bytes, pool), "the pool of random values");
  const tdm_view all = tdm_view_make(*pool, dtype, 1, (const int64_t[]){(int64_t)(bytes / tdm_dtype_bytes(dtype))});
  fill(rig, &all, dtype == TDM_E4M3 ? 240.0f : 1.0f, 0);
  return *pool;
}

static void plan_copies(bench_work* work, size_t bytes) {
  const size_t wanted = bytes ? (rotated_bytes + bytes - 1) / bytes : 1;
  work->copy_bytes = bytes;
  work->copies = bytes == 0 || bytes >= cold_bytes ? 1 : wanted > MAX_COPIES ? MAX_COPIES : (int32_t)wanted;
  work->steps = (work->least_steps + work->copies - 1) / work->copies * work->copies;
  work->warm = bytes * (size_t)work->copies < cold_bytes;
}

tdm_view bench_rotate(bench_rig* rig, bench_work* work, size_t view, tdm_dtype dtype, int32_t rank,
                      const int64_t* shape) {
  size_t bytes = tdm_dtype_bytes(dtype);
  for (int32_t i = 0; i < rank; i++) bytes *= (size_t)shape[i];
  bytes = (bytes + 255) / 256 * 256;
  plan_copies(work, bytes);
  work->rotated = view;
  return tdm_view_make(bench_pool(rig, dtype, bytes * (size_t)work->copies), dtype, rank, shape);
}

void bench_rotate_copies(bench_work* work, size_t view, size_t bytes, int32_t copies) {
  work->copy_bytes = bytes;
  work->copies = copies;
  work->steps = (work->least_steps + copies - 1) / copies * copies;
  work->rotated = view;
}

void bench_warm(bench_work* work) {
  plan_copies(work, 0);
}

void bench_axis(bench_check* check, int32_t axis, int64_t units) {
  check->units[axis] = units;
}

void bench_cut_view(bench_check* check, int32_t axis, size_t view, int32_t dim, int64_t at, int64_t step,
                    int64_t count) {
  if (check->n_cuts == BENCH_CUTS) bench_die("a check has more than %d cuts", BENCH_CUTS);
  check->cuts[check->n_cuts++] =
      (bench_cut){.axis = axis, .view = view, .dim = dim, .at = at, .step = step, .count = count};
}

static void copy_args(const tdm_op* op, const void* args, void* out_args) {
  if (op->args_bytes > BENCH_ARGS_BYTES) bench_die("%s: args of %zu bytes", op->name, op->args_bytes);
  memcpy(out_args, args, op->args_bytes);
}

void bench_step_args(const bench_work* work, int32_t index, void* out_args) {
  copy_args(work->op, work->args, out_args);
  if (!work->rotated) return;
  tdm_view* view = (tdm_view*)(void*)((uint8_t*)out_args + work->rotated);
  view->offset_bytes += (int64_t)(index % work->copies) * (int64_t)work->copy_bytes;
}

/* What lies in the outputs after a replay is the last step's. */
void bench_make_done(bench_work* work, const tdm_op* op, const void* args, double bound) {
  work->op = op;
  copy_args(op, args, work->args);
  work->check.op = op;
  work->check.bound = bound;
  bench_step_args(work, work->steps - 1, work->check.args);
}

/* The first weight view of both gemm args has the same place: what rotates is moved in the check's args as well. */
void bench_product_done(bench_work* work, const bench_product* product, const tdm_op* check_op,
                        const void* check_args) {
  work->has_product = true;
  work->product = *product;
  work->product_check.op = check_op;
  work->product_check.bound = 1e-5;
  copy_args(check_op, check_args, work->product_check.args);
  for (int32_t i = 0; i < check_op->n_operands; i++) {
    tdm_view* view = (tdm_view*)(void*)(work->product_check.args + check_op->operands[i].offset);
    if (view->buffer == product->w.buffer)
      view->offset_bytes += (int64_t)((work->steps - 1) % work->copies) * (int64_t)work->copy_bytes;
  }
}

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/program.h"

typedef struct printer {
  const tdm_program* program;
  tdm_write_fn write;
  void* ctx;
} printer;

static void print(const printer* out, const char* format, ...) __attribute__((format(printf, 2, 3)));
static void print(const printer* out, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  const int length = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (length > 0) out->write(out->ctx, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

static void print_bytes(const printer* out, double bytes) {
  static const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < sizeof units / sizeof *units; unit++) bytes /= 1024;
  print(out, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
}

static const char* access_name(tdm_access access) {
  return access == TDM_READ ? "reads " : access == TDM_WRITE ? "writes" : "both  ";
}

static void print_view(const printer* out, const tdm_view* view) {
  print(out, "%s [", tdm_dtype_name(view->dtype));
  for (int32_t dim = 0; dim < view->rank; dim++) print(out, "%s%" PRId64, dim ? ", " : "", view->shape[dim]);
  print(out, "]");
  int64_t packed = 1;
  bool contiguous = true;
  for (int32_t dim = view->rank - 1; dim >= 0; packed *= view->shape[dim--])
    contiguous = contiguous && (view->shape[dim] == 1 || view->stride[dim] == packed);
  if (!contiguous) {
    print(out, " strides [");
    for (int32_t dim = 0; dim < view->rank; dim++) print(out, "%s%" PRId64, dim ? ", " : "", view->stride[dim]);
    print(out, "]");
  }
  if (view->buffer->temp >= 0)
    print(out, " in '%s'", out->program->temps[view->buffer->temp].label);
  else
    print(out, " in %p", (void*)view->buffer);
  if (view->offset_bytes) print(out, " + %" PRId64, view->offset_bytes);
}

static void print_step(const printer* out, int32_t index) {
  const tdm_program* program = out->program;
  const tdm_step* step = &program->steps[index];
  print(out, "%4d  %-10s %-28s %-12s", index, tdm_lane_name(program->lanes[step->lane]), step->label, step->op->name);
  if (program->sealed) {
    print(out, " %s, splits %d, %.3g flops, ", step->plan.variant, step->plan.splits, step->plan.flops);
    print_bytes(out, step->plan.bytes);
    if (step->plan.scratch_bytes) {
      print(out, ", scratch ");
      print_bytes(out, (double)step->plan.scratch_bytes);
      print(out, " at %zu", step->scratch_offset);
    }
    const tdm_schedule* schedule = &program->schedule;
    for (int32_t i = schedule->wait_begin[index]; i < schedule->wait_begin[index + 1]; i++)
      print(out, "%s%d", i == schedule->wait_begin[index] ? ", waits for " : " ", schedule->signalers[i]);
  }
  print(out, "\n");
  for (int32_t i = 0; i < step->op->n_operands; i++) {
    const tdm_view* view = tdm_step_operand(step, i);
    if (!tdm_view_present(view)) continue;
    print(out, "        %s %-14s ", access_name(step->op->operands[i].access), step->op->operands[i].name);
    print_view(out, view);
    print(out, "\n");
  }
}

/* First and last step that touches a temporary; false when none does. */
static bool temp_life(const tdm_program* program, int32_t temp, int32_t* first, int32_t* last) {
  *first = -1;
  for (int32_t index = 0; index < program->n_steps; index++)
    for (int32_t i = 0; i < program->steps[index].op->n_operands; i++) {
      const tdm_view* view = tdm_step_operand(&program->steps[index], i);
      if (!tdm_view_present(view) || view->buffer->temp != temp) continue;
      if (*first < 0) *first = index;
      *last = index;
    }
  return *first >= 0;
}

static void print_temp(const printer* out, int32_t index) {
  const tdm_program* program = out->program;
  const tdm_temp* temp = &program->temps[index];
  print(out, "  %-28s %s [", temp->label, tdm_dtype_name(temp->view.dtype));
  for (int32_t dim = 0; dim < temp->view.rank; dim++) print(out, "%s%" PRId64, dim ? ", " : "", temp->view.shape[dim]);
  print(out, "] ");
  print_bytes(out, (double)temp->buffer->bytes);
  if (program->sealed) print(out, " at %zu", temp->offset);
  int32_t first, last;
  if (temp_life(program, index, &first, &last)) print(out, ", steps %d .. %d", first, last);
  print(out, "%s\n", temp->keep ? ", kept" : "");
}

static void print_text(const printer* out) {
  const tdm_program* program = out->program;
  tdm_program_info info = {.size = sizeof info};
  (void)tdm_program_get_info(program, &info);
  print(out, "program '%s': %d steps on %d lanes", program->name, info.steps, info.lanes);
  if (program->sealed) {
    print(out, ", %d waits, %d temporaries of ", info.waits, info.temps);
    print_bytes(out, (double)info.temp_bytes);
    print(out, " in a workspace of ");
    print_bytes(out, (double)info.workspace_bytes);
    print(out, ", %.3g flops, ", info.flops);
    print_bytes(out, info.bytes);
  } else {
    print(out, ", not sealed");
  }
  print(out, "\n");
  for (int32_t lane = 0; lane < program->n_lanes; lane++) {
    tdm_lane_info lane_info = {.size = sizeof lane_info};
    (void)tdm_lane_get_info(program->lanes[lane], &lane_info);
    static const char* const kinds[] = {"?", "whole", "soft", "green"};
    print(out, "lane '%s': %s, %d SMs requested, %d granted\n", lane_info.name, kinds[lane_info.kind],
          lane_info.requested_sms, lane_info.granted_sms);
  }
  print(out, "step  lane       label                        op           plan\n");
  for (int32_t i = 0; i < program->n_steps; i++) print_step(out, i);
  print(out, "temporaries\n");
  for (int32_t i = 0; i < program->n_temps; i++) print_temp(out, i);
}

/* A string inside a Graphviz quoted string. */
static void print_escaped(const printer* out, const char* text) {
  for (; *text; text++) print(out, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
}

static void print_dot(const printer* out) {
  const tdm_program* program = out->program;
  print(out, "digraph \"");
  print_escaped(out, program->name);
  print(out, "\" {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
  for (int32_t lane = 0; lane < program->n_lanes; lane++) {
    print(out, "  subgraph cluster_%d {\n    label=\"", lane);
    print_escaped(out, tdm_lane_name(program->lanes[lane]));
    print(out, "\";\n");
    int32_t previous = -1;
    for (int32_t i = 0; i < program->n_steps; i++) {
      if (program->steps[i].lane != lane) continue;
      print(out, "    s%d [label=\"%d ", i, i);
      print_escaped(out, program->steps[i].label);
      print(out, "\\n%s\"];\n", program->steps[i].op->name);
      if (previous >= 0) print(out, "    s%d -> s%d [style=bold];\n", previous, i);
      previous = i;
    }
    print(out, "  }\n");
  }
  const tdm_schedule* schedule = &program->schedule;
  for (int32_t step = 0; step < schedule->n_steps; step++)
    for (int32_t i = schedule->wait_begin[step]; i < schedule->wait_begin[step + 1]; i++)
      print(out, "  s%d -> s%d [color=red];\n", schedule->signalers[i], step);
  print(out, "}\n");
}

tdm_status tdm_program_print(const tdm_program* program, tdm_print_format format, tdm_write_fn write, void* ctx) {
  if (!program || !write)
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_print: program and write must not be NULL");
  const printer out = {.program = program, .write = write, .ctx = ctx};
  if (format == TDM_PRINT_TEXT)
    print_text(&out);
  else if (format == TDM_PRINT_DOT)
    print_dot(&out);
  else
    return TDM_FAIL(TDM_INVALID_ARGUMENT, "tdm_program_print: format %d is no tdm_print_format", (int)format);
  return TDM_OK;
}

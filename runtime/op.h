#ifndef RUNTIME_OP_H
#define RUNTIME_OP_H

/* What an operation is: one const table. The runtime knows operations by this table only. */

#include "runtime/kernel.h"
#include "tandem/ops.h"

/* How a step uses an operand. Program derives the waits between lanes from nothing but this. */
typedef enum tdm_access { TDM_READ = 1, TDM_WRITE = 2, TDM_READ_WRITE = 3 } tdm_access;

/* A view inside the args struct. */
typedef struct tdm_operand {
  const char* name;
  size_t offset; /* offsetof(args, name) */
  tdm_access access;
  bool optional;
  bool early; /* CUDA kernels may read it before the steps before theirs are done, unless a step of the program writes
                 it */
  bool ahead; /* read: likewise while the step before theirs runs, if that one admits them late and does not write it
                 any more; written: not by the step's last launch */
} tdm_operand;

#define TDM_OPERAND(args_type, member, access)                                                                         \
  { #member, offsetof(args_type, member), access, false, false, false }
/* Weights, which kernels fetch ahead. */
#define TDM_WEIGHT_OPERAND(args_type, member)                                                                          \
  { #member, offsetof(args_type, member), TDM_READ, false, true, false }
#define TDM_OPTIONAL_WEIGHT_OPERAND(args_type, member)                                                                 \
  { #member, offsetof(args_type, member), TDM_READ, true, true, false }
#define TDM_OPTIONAL_OPERAND(args_type, member, access)                                                                \
  { #member, offsetof(args_type, member), access, true, false, false }
/* What kernels look at while the step before theirs runs: activations during routing, routing during FC1. */
#define TDM_AHEAD_OPERAND(args_type, member)                                                                           \
  { #member, offsetof(args_type, member), TDM_READ, false, false, true }
#define TDM_OPTIONAL_AHEAD_OPERAND(args_type, member)                                                                  \
  { #member, offsetof(args_type, member), TDM_READ, true, false, true }
/* Written by the first of several launches, so that a step behind may read it during the last. */
#define TDM_OPTIONAL_SETTLED_OPERAND(args_type, member)                                                                \
  { #member, offsetof(args_type, member), TDM_WRITE, true, false, true }

/* What `plan` decides from shapes and the SM budget, before anything runs. Pure data, printable. */
typedef struct tdm_plan {
  char variant[48];     /* kernel; "ref" on the host device */
  int32_t splits;       /* pieces a sum is cut into: a function of the shape, never of the SM budget */
  double flops;         /* floating-point operations (a multiply-add is two) */
  double bytes;         /* least traffic: inputs read once, outputs written once */
  size_t scratch_bytes; /* of the workspace, for this step alone, 256-byte aligned */
  size_t state_bytes; /* of memory that is the step's alone for good, zero before the first launch; CUDA devices only */
} tdm_plan;

/* Every function gets args whose `size` was checked and whose views are in bounds, with absent optionals zeroed and no
 * required operand absent. */
typedef struct tdm_op {
  const char* name;
  size_t args_bytes;
  const tdm_operand* operands;
  int32_t n_operands;
  /* Fills defaults into `args` (a private copy), then checks shapes, dtypes, alignment and values. */
  tdm_status (*check)(void* args);
  /* From shapes and the lane's SMs (0 on the host device) only. `out_plan` comes zeroed with variant "ref", splits 1.
   */
  void (*plan)(const void* args, int32_t sms, tdm_plan* out_plan);
  /* The reference: plain C on host memory. `scratch` has plan->scratch_bytes. */
  tdm_status (*ref)(const void* args, const tdm_plan* plan, void* scratch);
  /* The launches for a CUDA device, with all addresses known. Needs no GPU. NULL: no kernel yet. UNSUPPORTED for what
   * the kernels cannot do, such as f32 activations. */
  tdm_status (*encode)(const void* args, const tdm_plan* plan, const tdm_encode_env* env, tdm_encoded_step* out_step);
} tdm_op;

/* Address of a view's first element. */
void* tdm_view_data(const tdm_view* view);
static inline bool tdm_view_present(const tdm_view* view) {
  return view->buffer != NULL;
}
/* Of an optional operand, for a kernel: NULL and 0 where it is absent. */
static inline void* tdm_view_data_or_null(const tdm_view* view) {
  return tdm_view_present(view) ? tdm_view_data(view) : NULL;
}
static inline int64_t tdm_view_stride_or_zero(const tdm_view* view) {
  return tdm_view_present(view) ? view->stride[0] : 0;
}
/* Bytes from the first to past the last element that the view can reach. The view's shape was checked. */
size_t tdm_view_span_bytes(const tdm_view* view);

/* Appends `op` with a copy of `args` (args_bytes long, `size` first) to the program. Behind every tdm_append_x. */
tdm_status tdm_program_append(tdm_program* program, tdm_lane* lane, const tdm_op* op, const char* label,
                              const void* args);

#endif

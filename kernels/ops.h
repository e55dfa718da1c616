#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include "runtime/op.h"

#define X(name) extern const tdm_op tdm_op_##name;
#include "kernels/ops.inc"
#undef X

/* All of them, TDM_OP_COUNT long. */
extern const tdm_op* const tdm_ops[];
enum {
#define X(name) TDM_OP_INDEX_##name,
#include "kernels/ops.inc"
#undef X
  TDM_OP_COUNT
};

#endif

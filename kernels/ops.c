#include "kernels/ops.h"

const tdm_op* const tdm_ops[] = {
#define X(name) &tdm_op_##name,
#include "kernels/ops.inc"
#undef X
};

#define X(name)                                                                                                        \
  tdm_status tdm_append_##name(tdm_program* program, tdm_lane* lane, const char* label,                                \
                               const tdm_##name##_args* args) {                                                        \
    return tdm_program_append(program, lane, &tdm_op_##name, label, args);                                             \
  }
#include "kernels/ops.inc"
#undef X

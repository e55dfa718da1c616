#ifndef RUNTIME_BUFFER_H
#define RUNTIME_BUFFER_H

#include "runtime/runtime.h"
#include "tandem/program.h"

struct tdm_buffer {
  tdm_runtime* runtime;
  uint8_t* data; /* NULL for a temporary that has no place yet */
  size_t bytes;
  atomic_int references;
  bool owns_data;
  int32_t temp;               /* number among its program's temporaries, -1 for any other buffer */
  const tdm_program* program; /* of a temporary */
};

void tdm_buffer_retain(tdm_buffer* buffer);

/* A buffer without memory, for a program's temporary. */
tdm_status tdm_buffer_create_temp(tdm_runtime* runtime, const tdm_program* program, int32_t temp, size_t bytes,
                                  tdm_buffer** out_buffer);

/* Checks what can be checked of a view without knowing its use: dtype, rank 1..4, extents >= 1, strides >= 0, offset
 * aligned to the element, every element inside the buffer. `name` is for the sentence. */
tdm_status tdm_view_check(const char* name, const tdm_view* view);

#endif

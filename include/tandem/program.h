#ifndef TANDEM_PROGRAM_H
#define TANDEM_PROGRAM_H

/* Programs: a straight line of steps on lanes, with the waits between lanes derived from what each step reads and
 * writes. */

#include "tandem/buffer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A list of steps in program order. Life: create, make temporaries and append steps (tandem/ops.h), seal, then launch
 * as often as wanted. Serial execution in program order is always legal; seal derives the fewest waits that make
 * running the lanes side by side give the same bits. Threads: one thread at a time until sealed; then any thread may
 * launch or print. */
typedef struct tdm_program tdm_program;

/* `name` is copied (at most 63 characters). Allocates. */
TDM_API tdm_status tdm_program_create(tdm_runtime* runtime, const char* name, tdm_program** out_program);
/* Gives up the caller's reference; graphs made from the program keep it. NULL is allowed. */
TDM_API void tdm_program_destroy(tdm_program* program);

/* A temporary of the program, contiguous, 256-byte aligned in its workspace, with undefined contents at every launch.
 * Two temporaries share memory when every use of one is ordered before every use of the other without further waits.
 * `label` is copied. INVALID_STATE after seal. Allocates. */
TDM_API tdm_status tdm_program_temp(tdm_program* program, const char* label, tdm_dtype dtype, int32_t rank,
                                    const int64_t* shape, tdm_view* out_view);
/* FP8 activation scales for [n_rows, n_cols] data: f32 [n_cols/128, n_rows] with row stride tdm_scale_stride(n_rows).
 */
TDM_API tdm_status tdm_program_temp_scales(tdm_program* program, const char* label, int64_t n_rows, int64_t n_cols,
                                           tdm_view* out_view);
/* Keeps the temporary's memory to itself, so that it can be read after a launch. INVALID_STATE after seal. */
TDM_API tdm_status tdm_program_keep(tdm_program* program, const tdm_view* temp);
/* The view that a temporary of that label has (the first made, if several). INVALID_ARGUMENT when there is none. */
TDM_API tdm_status tdm_program_find(const tdm_program* program, const char* label, tdm_view* out_view);

/* How a step on a CUDA device waits for a step of another lane. The bits are the same; host lanes know one way only. */
typedef enum tdm_wait_form {
  TDM_WAIT_EDGE = 1,  /* an event, in a graph an edge: always possible; 1.6 us between green lanes */
  TDM_WAIT_SIGNAL = 2 /* a word in device memory that the signaler's last CTA sets and the waiter's CTAs poll, beside
                         their first weight loads where they have some. Needs green lanes: on SMs of its own a waiting
                         kernel cannot keep the one that it waits for from running. The lanes fork once at the head of a
                         launch and join once at its tail, however many steps there are */
} tdm_wait_form;

typedef struct tdm_seal_config {
  size_t size;
  tdm_buffer* workspace;    /* lay temporaries out in this buffer; default NULL: a buffer of the program's own. Programs
                               that share a workspace must not run at the same time */
  bool may_take_own;        /* default false. true: a buffer of its own when the given one is too small */
  tdm_wait_form wait_form;  /* default TDM_WAIT_EDGE */
  bool trace;               /* default false. true: every launch leaves what tandem/trace.h reads */
  uint32_t signal_limit_ms; /* how long a wait by signal may take; 1 .. 600000, default 10000. Beyond it the launch goes
                               on without the signal, its results are void, and the next tdm_runtime_synchronize,
                               tdm_buffer_read, launch or replay of the program answers TDM_TIMEOUT with the step's
                               name, once */
} tdm_seal_config;

TDM_API tdm_status tdm_seal_config_init(tdm_seal_config* config, size_t size);

/* Checks and plans every step, derives the waits, lays out the workspace. `config` NULL means the defaults. All errors
 * of the steps' checks come from append already; here: INVALID_STATE when sealed before or without steps,
 * INVALID_ARGUMENT when a given workspace is too small (the sentence has both sizes), UNSUPPORTED for waits by signal
 * between lanes that are not green (CUDA device), OUT_OF_MEMORY. On failure the
 * program is as before. Nothing is allocated after this call. */
TDM_API tdm_status tdm_program_seal(tdm_program* program, const tdm_seal_config* config);

typedef enum tdm_order {
  TDM_ORDER_LANES = 1,   /* lanes side by side, held together by the derived waits */
  TDM_ORDER_SERIAL = 2,  /* one step after the other, in program order */
  TDM_ORDER_SHUFFLED = 3 /* host device only: one step after the other, in an order drawn from `seed` among those that
                            the waits allow. A dependency that a step does not declare shows as a different result */
} tdm_order;

typedef struct tdm_launch_config {
  size_t size;
  void* stream; /* the caller's CUstream, or NULL; always NULL on the host device */
  tdm_order order;
  uint64_t seed; /* for TDM_ORDER_SHUFFLED */
} tdm_launch_config;

TDM_API tdm_status tdm_launch_config_init(tdm_launch_config* config, size_t size);

/* Runs the program once. `config` NULL means the defaults: lanes, no stream.
 * Host device: blocks until the program is done and reports the first failing step in program order (its label is in
 * the sentence); later steps that wait for it are not run. CUDA device: answers once everything is issued, ordered
 * after what is on `stream` and before what comes on it next; without a stream on one of the runtime's own, for which
 * tdm_buffer_read, tdm_buffer_write and tdm_runtime_synchronize wait. Launches of one program must not overlap on the
 * device. Allocates nothing. */
TDM_API tdm_status tdm_program_launch(tdm_program* program, const tdm_launch_config* config);

typedef struct tdm_program_info {
  size_t size; /* set by the caller: sizeof(tdm_program_info) */
  bool sealed;
  int32_t steps;
  int32_t lanes;
  int32_t waits;          /* cross-lane waits, after removing all that are implied */
  int32_t temps;          /* temporaries made */
  size_t temp_bytes;      /* their sizes added up */
  size_t workspace_bytes; /* what they and the steps' scratch take once laid out */
  double flops;           /* added up over the steps */
  double bytes;           /* least traffic: every input read once, every output written once, added up over the steps */
  tdm_wait_form wait_form; /* as sealed */
} tdm_program_info;

TDM_API tdm_status tdm_program_get_info(const tdm_program* program, tdm_program_info* out_info);

/* The buffer that holds the temporaries, to be handed to another program's seal. NULL before seal. Borrowed. */
TDM_API tdm_buffer* tdm_program_workspace(const tdm_program* program);

typedef enum tdm_print_format {
  TDM_PRINT_TEXT = 1, /* steps, lanes, waits, operands, plans; then temporaries with their place and life */
  TDM_PRINT_DOT = 2   /* Graphviz: a cluster a lane, an edge a wait */
} tdm_print_format;

/* Receives a piece of text that is not 0-terminated. */
typedef void (*tdm_write_fn)(void* ctx, const char* text, size_t bytes);

/* Describes the program through `write`. Works before and after seal (waits and places are known after). */
TDM_API tdm_status tdm_program_print(const tdm_program* program, tdm_print_format format, tdm_write_fn write,
                                     void* ctx);

/* One cross-lane wait: step `waiter` starts after step `signaler` is done. Steps count from 0 in program order. */
typedef struct tdm_wait {
  int32_t signaler;
  int32_t waiter;
} tdm_wait;

/* Copies up to `capacity` waits, ascending by waiter, and says how many there are. INVALID_STATE before seal. */
TDM_API tdm_status tdm_program_get_waits(const tdm_program* program, tdm_wait* waits, int32_t capacity,
                                         int32_t* out_count);

#ifdef __cplusplus
}
#endif
#endif

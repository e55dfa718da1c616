#ifndef TANDEM_BASE_H
#define TANDEM_BASE_H

/* Version, export macro, status codes, errors and dtypes. Everything else includes this. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TDM_VERSION_MAJOR 0
#define TDM_VERSION_MINOR 1
#define TDM_VERSION_PATCH 0

#if defined(__GNUC__)
#define TDM_API __attribute__((visibility("default")))
#else
#define TDM_API
#endif

/* "0.1.0": the version of the library that is running, not of the header. Any thread; never fails. */
TDM_API const char* tdm_version(void);

/* What a call can answer. Anything but TDM_OK also fills the calling thread's tdm_last_error(). */
typedef enum tdm_status {
  TDM_OK = 0,
  TDM_INVALID_ARGUMENT = 1, /* the caller's bug: a value, shape, dtype, alignment or name that can never be right */
  TDM_INVALID_STATE = 2,    /* the right call at the wrong time: append after seal, launch before seal, ... */
  TDM_UNSUPPORTED = 3,      /* our limit: legal, but this build, device or version cannot do it */
  TDM_OUT_OF_MEMORY = 4,    /* host memory, device memory or cache pages; nothing was changed */
  TDM_IO = 5,               /* a file could not be opened, mapped or read; raw_code is errno */
  TDM_CORRUPT = 6,          /* a file was read and is wrong: lying header, missing tensor, absurd config */
  TDM_CUDA = 7,             /* a driver call failed; raw_code is the CUresult */
  TDM_NCCL = 8,             /* an NCCL call failed; raw_code is the ncclResult_t */
  TDM_TIMEOUT = 9,          /* a wait ran into its limit; the message names the step */
  TDM_INTERNAL = 10         /* our bug */
} tdm_status;

/* "INVALID_ARGUMENT" and so on; "UNKNOWN" for a number that is no tdm_status. Any thread; never fails. */
TDM_API const char* tdm_status_name(tdm_status status);

/* The last failure of the calling thread. Kept per thread rather than per runtime, so that two threads using one
 * runtime never see each other's message and a failing constructor, which leaves no runtime behind, can still say why.
 * Threads: belongs to the thread that asks; the strings stay valid until that thread's next failing tandem call. */
typedef struct tdm_error {
  tdm_status status;   /* TDM_OK when this thread has seen no failure */
  int32_t raw_code;    /* errno, CUresult or ncclResult_t; 0 when the failure is tandem's own finding */
  const char* message; /* one sentence with names and values, never NULL */
  const char* file;    /* where in tandem's source; "" when status is TDM_OK */
  int32_t line;
} tdm_error;

/* Never fails, never NULL. A call that succeeds leaves it unchanged. */
TDM_API const tdm_error* tdm_last_error(void);

/* Element types. Bit layouts: docs/formulas.md, section 0. */
typedef enum tdm_dtype {
  TDM_F32 = 1,
  TDM_BF16 = 2,
  TDM_E4M3 = 3,  /* FP8: 1 sign, 4 exponent, 3 mantissa bits, largest 448, no infinity, NaN 0x7f and 0xff */
  TDM_UE8M0 = 4, /* a scale: 2^(byte - 127), 255 is NaN */
  TDM_I8 = 5,
  TDM_I32 = 6,
  TDM_I64 = 7,
  TDM_U8 = 8,
  TDM_F16 = 9,
  TDM_F64 = 10
} tdm_dtype;

/* Size of one element in bytes, 0 for a value that is no tdm_dtype. */
TDM_API size_t tdm_dtype_bytes(tdm_dtype dtype);
/* "f32", "bf16", "e4m3", ...; "?" for a value that is no tdm_dtype. */
TDM_API const char* tdm_dtype_name(tdm_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif

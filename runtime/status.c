#include "runtime/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define STRINGIZE_(x) #x
#define STRINGIZE(x)  STRINGIZE_(x)

typedef struct thread_error {
  tdm_error error;
  char message[8192];
} thread_error;

static _Thread_local thread_error last_error = {.error = {.message = "", .file = ""}};

const char* tdm_version(void) {
  return STRINGIZE(TDM_VERSION_MAJOR) "." STRINGIZE(TDM_VERSION_MINOR) "." STRINGIZE(TDM_VERSION_PATCH);
}

const tdm_error* tdm_last_error(void) {
  return &last_error.error;
}

tdm_status tdm_fail(tdm_status status, int32_t raw_code, const char* file, int32_t line, const char* format, ...) {
  /* Formatted aside first: an argument may be the last message itself. */
  char message[sizeof last_error.message];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  memcpy(last_error.message, message, sizeof message);
  last_error.error =
      (tdm_error){.status = status, .raw_code = raw_code, .message = last_error.message, .file = file, .line = line};
  return status;
}

tdm_status tdm_fail_prefix(tdm_status status, const char* format, ...) {
  char prefix[256];
  va_list args;
  va_start(args, format);
  vsnprintf(prefix, sizeof prefix, format, args);
  va_end(args);
  const tdm_error* error = &last_error.error;
  return tdm_fail(status, error->raw_code, error->file, error->line, "%s: %s", prefix, error->message);
}

const char* tdm_status_name(tdm_status status) {
  static const char* const names[] = {"OK",      "INVALID_ARGUMENT", "INVALID_STATE", "UNSUPPORTED", "OUT_OF_MEMORY",
                                      "IO",      "CORRUPT",          "CUDA",          "NCCL",        "TIMEOUT",
                                      "INTERNAL"};
  size_t index = (size_t)status;
  return index < sizeof names / sizeof *names ? names[index] : "UNKNOWN";
}

typedef struct dtype_row {
  const char* name;
  size_t bytes;
} dtype_row;

static const dtype_row dtypes[] = {
    [TDM_F32] = {"f32", 4}, [TDM_BF16] = {"bf16", 2}, [TDM_E4M3] = {"e4m3", 1}, [TDM_UE8M0] = {"ue8m0", 1},
    [TDM_I8] = {"i8", 1},   [TDM_I32] = {"i32", 4},   [TDM_I64] = {"i64", 8},   [TDM_U8] = {"u8", 1},
    [TDM_F16] = {"f16", 2}, [TDM_F64] = {"f64", 8},
};

static bool dtype_known(tdm_dtype dtype) {
  return (size_t)dtype < sizeof dtypes / sizeof *dtypes && dtypes[dtype].name;
}

size_t tdm_dtype_bytes(tdm_dtype dtype) {
  return dtype_known(dtype) ? dtypes[dtype].bytes : 0;
}

const char* tdm_dtype_name(tdm_dtype dtype) {
  return dtype_known(dtype) ? dtypes[dtype].name : "?";
}

#ifndef RUNTIME_STATUS_H
#define RUNTIME_STATUS_H

#include "tandem/base.h"

/* Records a failure for the calling thread and answers `status`. Use TDM_FAIL, which adds file and line. */
tdm_status tdm_fail(tdm_status status, int32_t raw_code, const char* file, int32_t line, const char* format, ...)
    __attribute__((format(printf, 5, 6)));

/* return TDM_FAIL(TDM_INVALID_ARGUMENT, "rmsnorm: x has %lld columns, weight %lld", ...); */
#define TDM_FAIL(status, ...)               tdm_fail((status), 0, __FILE__, __LINE__, __VA_ARGS__)
#define TDM_FAIL_RAW(status, raw_code, ...) tdm_fail((status), (raw_code), __FILE__, __LINE__, __VA_ARGS__)

/* Leaves the function with the status of a failing call, whose message stands. */
#define TDM_TRY(call)                                                                                                  \
  do {                                                                                                                 \
    tdm_status try_status_ = (call);                                                                                   \
    if (try_status_ != TDM_OK) return try_status_;                                                                     \
  } while (0)

/* Puts "prefix: " in front of the calling thread's last message, e.g. with the step's label. Answers `status`. */
tdm_status tdm_fail_prefix(tdm_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

#endif

#ifndef RUNTIME_FINDINGS_H
#define RUNTIME_FINDINGS_H

/* Everything that is wrong with an input, collected: each finding is logged at once, one a line, and all of them make
 * up the sentence at the end. */

#include "runtime/runtime.h"

typedef struct tdm_findings {
  tdm_runtime* runtime;
  const char* subject; /* what is being checked, a path; in front of every line */
  tdm_status status;   /* TDM_OK while there is none; CORRUPT outweighs UNSUPPORTED */
  int64_t count;
  int64_t joined; /* how many of them `text` holds */
  size_t length;
  char text[4096];
} tdm_findings;

/* `subject` is borrowed. Allocates nothing; a tdm_findings may be dropped at any time. */
void tdm_findings_init(tdm_findings* findings, tdm_runtime* runtime, const char* subject);
void tdm_findings_add(tdm_findings* findings, tdm_status status, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
/* Adds the last error's sentence if `status`, what a call answered, is not TDM_OK. Answers whether it was TDM_OK. */
bool tdm_findings_collect(tdm_findings* findings, tdm_status status);
/* TDM_OK when there was no finding; else fails with all of them, as far as a sentence holds. */
tdm_status tdm_findings_result(const tdm_findings* findings);

#endif

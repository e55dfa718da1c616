#include "runtime/findings.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void tdm_findings_init(tdm_findings* findings, tdm_runtime* runtime, const char* subject) {
  findings->runtime = runtime;
  findings->subject = subject;
  findings->status = TDM_OK;
  findings->count = 0;
  findings->joined = 0;
  findings->length = 0;
  findings->text[0] = '\0';
}

void tdm_findings_add(tdm_findings* findings, tdm_status status, const char* format, ...) {
  char sentence[512];
  va_list args;
  va_start(args, format);
  vsnprintf(sentence, sizeof sentence, format, args);
  va_end(args);
  tdm_log(findings->runtime, TDM_LOG_ERROR, "%s: %s", findings->subject, sentence);
  if (findings->status == TDM_OK || status == TDM_CORRUPT) findings->status = status;
  findings->count++;
  size_t bytes = strlen(sentence) + (findings->length ? 2 : 0);
  if (findings->joined + 1 < findings->count || findings->length + bytes >= sizeof findings->text) return;
  findings->length += (size_t)snprintf(findings->text + findings->length, sizeof findings->text - findings->length,
                                       "%s%s", findings->length ? "; " : "", sentence);
  findings->joined++;
}

bool tdm_findings_collect(tdm_findings* findings, tdm_status status) {
  if (status != TDM_OK) tdm_findings_add(findings, status, "%s", tdm_last_error()->message);
  return status == TDM_OK;
}

tdm_status tdm_findings_result(const tdm_findings* findings) {
  if (findings->count == 0) return TDM_OK;
  if (findings->count == 1) return TDM_FAIL(findings->status, "%s: %s", findings->subject, findings->text);
  if (findings->joined == findings->count)
    return TDM_FAIL(findings->status, "%s: %lld findings: %s", findings->subject, (long long)findings->count,
                    findings->text);
  return TDM_FAIL(findings->status, "%s: %lld findings: %s; and %lld more, see the log", findings->subject,
                  (long long)findings->count, findings->text, (long long)(findings->count - findings->joined));
}

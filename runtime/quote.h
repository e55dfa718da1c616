#ifndef RUNTIME_QUOTE_H
#define RUNTIME_QUOTE_H

/* Strangers' text inside of our sentences. */

/* A short text to print inside a sentence, in the expression that calls: TDM_FAIL(..., "%s", tdm_quote(name).text). */
typedef struct tdm_quoted {
  char text[224];
} tdm_quoted;

/* `text` in double quotes, control characters as \xNN, cut with "..." when long: what a stranger wrote must not forge
 * log lines nor reach a terminal. */
tdm_quoted tdm_quote(const char* text);
/* The same without quotes. */
tdm_quoted tdm_printable(const char* text);

#endif

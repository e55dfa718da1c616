#include "runtime/quote.h"

#include <stdbool.h>
#include <string.h>

static bool continues_utf8(unsigned char c) {
  return (c & 0xc0) == 0x80;
}

/* Appends `text` to out[length], escaped; leaves room for `reserve` more bytes and the NUL. Answers the new length. */
static size_t append_escaped(char* out, size_t capacity, size_t length, size_t reserve, const char* text) {
  static const char hex[] = "0123456789abcdef";
  static const char cut[] = "...";
  const size_t end = capacity - 1 - reserve - (sizeof cut - 1);
  const unsigned char* begin = (const unsigned char*)text;
  for (const unsigned char* c = begin; *c; c++) {
    /* U+0080 to U+009F, c2 80 to c2 9f, are control characters as well. */
    const bool c1 = (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) || (c > begin && c[-1] == 0xc2 && *c < 0xa0);
    const bool control = *c < 0x20 || *c == 0x7f || c1;
    size_t width = control ? 4 : 1;
    if (length + width > end) {
      if (continues_utf8(*c)) {
        while (length > 0 && continues_utf8((unsigned char)out[length - 1])) length--;
        if (length > 0 && (unsigned char)out[length - 1] >= 0xc0) length--;
      }
      memcpy(out + length, cut, sizeof cut - 1);
      return length + sizeof cut - 1;
    }
    if (control) {
      memcpy(out + length, "\\x", 2);
      out[length + 2] = hex[*c >> 4];
      out[length + 3] = hex[*c & 15];
    } else {
      out[length] = (char)*c;
    }
    length += width;
  }
  return length;
}

tdm_quoted tdm_quote(const char* text) {
  tdm_quoted quoted = {.text = "\""};
  size_t length = append_escaped(quoted.text, sizeof quoted.text, 1, 1, text);
  memcpy(quoted.text + length, "\"", 2);
  return quoted;
}

tdm_quoted tdm_printable(const char* text) {
  tdm_quoted quoted = {.text = ""};
  size_t length = append_escaped(quoted.text, sizeof quoted.text, 0, 0, text);
  quoted.text[length] = '\0';
  return quoted;
}

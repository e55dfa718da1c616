/* The header of one safetensors file, in memory of exactly the file's size, so that AddressSanitizer sees a step too
 * far. */

#include "runtime/safetensors.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkpoint/fixture.h"

static tdm_status parse(fixture* f, const char* bytes, size_t n_bytes) {
  tdm_safetensors content;
  tdm_status status = tdm_safetensors_parse(f->runtime, "a.safetensors", bytes, n_bytes, &content);
  if (status != TDM_OK) {
    cr_expect_null(content.tensors);
    cr_expect_eq(content.n_tensors, 0);
  }
  tdm_safetensors_clear(&content);
  return status;
}

#define TENSOR(name, dtype, shape, offsets)                                                                            \
  "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"
#define A TENSOR("a", "F32", "2", "0,8")

typedef struct bad_case {
  const char* name;
  const char* header;
  int64_t length; /* what the file says of its header; -1: the truth */
  size_t n_data;
  const char* words; /* all of them in the sentence, separated by '|' */
} bad_case;

static const bad_case bad_cases[] = {
    /* the header's length */
    {"length zero", "{" A "}", 0, 8, "begin with '{'"},
    {"length of 2^63 - 1", "{" A "}", INT64_MAX, 8, "9223372036854775807|only "},
    {"length one beyond the file", "{" A "}", 63, 8, "63|62 bytes follow"},
    {"length one too short", "{" A "}", 53, 8, "header|line 1"},
    {"length into the data", "{" A "}", 58, 8, "control character 0x00"},

    /* the text */
    {"header is an array", "[" A "]", -1, 8, "begin with '{'"},
    {"header begins with a space", " {" A "}", -1, 8, "begin with '{'"},
    {"header is no JSON", "{a}", -1, 0, "line 1|string"},
    {"header without end", "{" A, -1, 8, "'}' expected"},
    {"text behind the header", "{" A "}x", -1, 8, "end of file expected"},
    {"second object", "{" A "}{}", -1, 8, "end of file expected"},
    {"trailing comma", "{" A ",}", -1, 8, "string or '}' expected"},
    {"single quotes", "{'a':1}", -1, 0, "string or '}' expected"},
    {"comment", "{/**/" A "}", -1, 8, "string or '}' expected"},
    {"broken UTF-8 in a name", "{" TENSOR("\xff", "F32", "2", "0,8") "}", -1, 8, "unable to decode byte 0xff"},
    {"overlong UTF-8", "{" TENSOR("\xc0\x80", "F32", "2", "0,8") "}", -1, 8, "unable to decode byte 0xc0"},
    {"half of a surrogate pair", "{" TENSOR("\\ud800", "F32", "2", "0,8") "}", -1, 8, "\\uD800"},
    {"NUL in a name", "{" TENSOR("a\\u0000b", "F32", "2", "0,8") "}", -1, 8, "NUL byte in object key"},
    {"newline in a string", "{" TENSOR("a\nb", "F32", "2", "0,8") "}", -1, 8, "byte 3|0x0a"},
    {"form feed between tokens", "{\f" A "}", -1, 8, "byte 1|0x0c"},
    {"escaped newline in a name", "{" TENSOR("a\\nb", "F32", "2", "0,8") "}", -1, 8, "\"a\\x0ab\"|byte 1|0x0a"},
    {"terminal escape in a name", "{" TENSOR("\\u001b[2J", "F32", "2", "0,8") "}", -1, 8, "\\x1b[2J|0x1b"},
    {"delete in a name", "{" TENSOR("\x7f", "F32", "2", "0,8") "}", -1, 8, "\"\\x7f\"|0x7f"},
    {"invalid escape", "{" TENSOR("a\\x", "F32", "2", "0,8") "}", -1, 8, "invalid escape"},
    {"nested too deep", "{\"a\":{\"shape\":[[1]]}}", -1, 0, "nested deeper than 3"},
    {"tensor twice", "{" A "," A "}", -1, 8, "duplicate object key|\"a\""},
    {"tensor twice, spelled differently", "{" A "," TENSOR("\\u0061", "F32", "2", "0,8") "}", -1, 8, "duplicate"},
    {"member twice", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8,
     "duplicate object key|\"dtype\""},
    {"NaN", "{" TENSOR("a", "F32", "NaN", "0,8") "}", -1, 8, "invalid token|NaN"},
    {"Infinity", "{" TENSOR("a", "F32", "2", "0,Infinity") "}", -1, 8, "invalid token|Infinity"},

    /* __metadata__ */
    {"metadata is a string", "{\"__metadata__\":\"x\"}", -1, 0, "__metadata__|\"x\"|expected an object"},
    {"metadata holds a number", "{\"__metadata__\":{\"step\":7}}", -1, 0, "__metadata__|\"step\"|7|expected a string"},
    {"metadata holds an object", "{\"__metadata__\":{\"x\":{}}}", -1, 0, "__metadata__|\"x\"|an object"},
    {"metadata is null", "{\"__metadata__\":null}", -1, 0, "__metadata__|null"},

    /* a tensor's members */
    {"tensor is a number", "{\"a\":5}", -1, 0, "\"a\"|5|expected an object"},
    {"tensor is null", "{\"a\":null}", -1, 0, "\"a\"|null"},
    {"tensor is empty", "{\"a\":{}}", -1, 0, "\"a\"|dtype is missing"},
    {"dtype missing", "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8, "\"a\"|dtype is missing"},
    {"shape missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", -1, 8, "\"a\"|shape is missing"},
    {"offsets missing", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", -1, 8, "\"a\"|data_offsets is missing"},
    {"member too many", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", -1, 8,
     "\"a\"|4 members"},
    {"dtype is a number", "{\"a\":{\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8, "dtype is 32"},
    {"dtype is unknown", "{" TENSOR("a", "F33", "2", "0,8") "}", -1, 8, "\"a\"|\"F33\""},
    {"dtype in lower case", "{" TENSOR("a", "f32", "2", "0,8") "}", -1, 8, "\"f32\""},
    {"dtype is empty", "{" TENSOR("a", "", "2", "0,8") "}", -1, 8, "dtype is \"\""},
    {"shape is a number", "{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", -1, 8, "shape is 2"},
    {"shape is an object", "{\"a\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,8]}}", -1, 8,
     "shape is an object"},
    {"rank 9", "{" TENSOR("a", "F32", "1,1,1,1,1,1,1,1,2", "0,8") "}", -1, 8, "9 dimensions|at most 8"},
    {"negative extent", "{" TENSOR("a", "F32", "2,-1", "0,8") "}", -1, 8, "shape[1] is -1"},
    {"two negative extents", "{" TENSOR("a", "F32", "-2,-1", "0,8") "}", -1, 8, "shape[0] is -2"},
    {"extent is a float", "{" TENSOR("a", "F32", "2.0", "0,8") "}", -1, 8, "shape[0] is 2.0"},
    {"extent with an exponent", "{" TENSOR("a", "F32", "2e0", "0,8") "}", -1, 8, "shape[0] is 2.0"},
    {"extent is a string", "{" TENSOR("a", "F32", "\"2\"", "0,8") "}", -1, 8, "shape[0] is \"2\""},
    {"extent is true", "{" TENSOR("a", "F32", "true", "0,8") "}", -1, 8, "shape[0] is true"},
    {"extent beyond int64", "{" TENSOR("a", "F32", "9223372036854775808", "0,8") "}", -1, 8, "too big integer"},
    {"extent with a leading zero", "{" TENSOR("a", "F32", "02", "0,8") "}", -1, 8, "line 1"},
    {"extents whose product overflows", "{" TENSOR("a", "F32", "4294967296,4294967296", "0,8") "}", -1, 8,
     "shape[1]|4294967296|overflows"},
    {"product wraps to the right size", "{" TENSOR("a", "F32", "4294967297,4294967296,2", "0,8") "}", -1, 8,
     "overflows"},
    {"overflow behind a zero", "{" TENSOR("a", "F32", "0,4294967296,4294967296", "0,0") "}", -1, 0, "overflows"},
    {"size in bytes overflows", "{" TENSOR("a", "F32", "4611686018427387904", "0,0") "}", -1, 0,
     "4611686018427387904|F32|overflows"},

    /* a tensor's data */
    {"one offset", "{" TENSOR("a", "F32", "2", "8") "}", -1, 8, "data_offsets has 1"},
    {"three offsets", "{" TENSOR("a", "F32", "2", "0,8,8") "}", -1, 8, "data_offsets has 3"},
    {"offsets are an object", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{}}}", -1, 8,
     "data_offsets is an object"},
    {"reversed offsets", "{" TENSOR("a", "F32", "2", "8,0") "}", -1, 8, "[8, 0]"},
    {"negative offset", "{" TENSOR("a", "F32", "2", "-8,0") "}", -1, 8, "data_offsets[0] is -8"},
    {"offset is a float", "{" TENSOR("a", "F32", "2", "0,8.0") "}", -1, 8, "data_offsets[1] is 8.0"},
    {"offset is a string", "{" TENSOR("a", "F32", "2", "0,\"8\"") "}", -1, 8, "data_offsets[1] is \"8\""},
    {"offset beyond int64", "{" TENSOR("a", "F32", "2", "0,18446744073709551616") "}", -1, 8, "too big integer"},
    {"offset beyond the data", "{" TENSOR("a", "F32", "2", "0,8") "}", -1, 7, "[0, 8]|7 bytes"},
    {"offsets far beyond the data", "{" TENSOR("a", "F32", "2", "9223372036854775799,9223372036854775807") "}", -1, 8,
     "9223372036854775807|8 bytes"},
    {"data smaller than the shape", "{" TENSOR("a", "F32", "2", "0,4") "}", -1, 4, "F32|8 bytes|hold 4"},
    {"data larger than the shape", "{" TENSOR("a", "BF16", "2", "0,8") "}", -1, 8, "BF16|4 bytes|hold 8"},
    {"scalar with no data", "{" TENSOR("a", "I64", "", "0,0") "}", -1, 0, "I64|8 bytes|hold 0"},
    {"empty shape with data", "{" TENSOR("a", "F32", "0,2", "0,8") "}", -1, 8, "0 bytes|hold 8"},
    {"odd number of nibbles", "{" TENSOR("a", "F4", "3", "0,2") "}", -1, 2, "3 elements of F4"},

    /* all tensors */
    {"overlap by four", "{" A "," TENSOR("b", "F32", "2", "4,12") "}", -1, 12, "\"a\"|\"b\"|overlap|at 8|at 4"},
    {"one inside of another", "{" TENSOR("a", "U8", "8", "0,8") "," TENSOR("b", "U8", "2", "2,4") "}", -1, 8,
     "\"a\"|\"b\"|overlap"},
    {"two at one place", "{" A "," TENSOR("b", "F32", "2", "0,8") "}", -1, 8, "overlap"},
    {"empty one inside of another", "{" A "," TENSOR("b", "U8", "0", "4,4") "}", -1, 8, "\"a\"|\"b\"|overlap"},
    {"gap at the front", "{" TENSOR("a", "F32", "2", "4,12") "}", -1, 12, "[0, 4)|\"a\""},
    {"gap between two", "{" A "," TENSOR("b", "F32", "1", "12,16") "}", -1, 16, "[8, 12)|\"b\""},
    {"gap at the end", "{" A "}", -1, 9, "[8, 9)"},
    {"data of no tensor", "{}", -1, 3, "[0, 3)"},
};

Test(safetensors, bad_headers) {
  fixture f;
  fixture_open(&f);
  for (size_t i = 0; i < sizeof bad_cases / sizeof *bad_cases; i++) {
    const bad_case* c = &bad_cases[i];
    size_t n_bytes;
    char* bytes = fixture_safetensors(c->header, c->length, c->n_data, &n_bytes);
    fixture_expect_failure(c->name, parse(&f, bytes, n_bytes), TDM_CORRUPT, c->words);
    cr_expect_not_null(strstr(tdm_last_error()->message, "a.safetensors"), "%s: no file name", c->name);
    free(bytes);
  }
  fixture_close(&f);
}

static const char good_header[] = "{\"__metadata__\":{\"format\":\"pt\"}," TENSOR(
    "b", "BF16", "2,3", "8,20") "," A "," TENSOR("s", "I64", "", "20,28") "," TENSOR("e", "F32", "0,7", "8,8") "}  ";

Test(safetensors, truncated_everywhere) {
  fixture f;
  fixture_open(&f);
  size_t n_bytes;
  char* whole = fixture_safetensors(good_header, -1, 28, &n_bytes);
  cr_assert_eq(parse(&f, whole, n_bytes), TDM_OK, "%s", tdm_last_error()->message);
  for (size_t n = 0; n < n_bytes; n++) {
    char* part = n ? malloc(n) : NULL;
    if (n) memcpy(part, whole, n);
    char what[64], words[64];
    snprintf(what, sizeof what, "the first %zu of %zu bytes", n, n_bytes);
    snprintf(words, sizeof words,
             n < 8                         ? "%zu bytes|too few"
             : n < 8 + strlen(good_header) ? "only %zu bytes"
                                           : "data",
             n < 8 ? n : n - 8);
    fixture_expect_failure(what, parse(&f, part, n), TDM_CORRUPT, words);
    free(part);
  }
  free(whole);
  fixture_close(&f);
}

/* Whatever one byte becomes, parsing ends in OK or CORRUPT and leaves nothing behind. */
Test(safetensors, any_byte_changed) {
  fixture f;
  fixture_open(&f);
  size_t n_bytes;
  char* bytes = fixture_safetensors(good_header, -1, 28, &n_bytes);
  for (size_t i = 0; i < 8 + strlen(good_header); i++) {
    const char kept = bytes[i];
    for (int value = 0; value < 256; value += i < 8 ? 1 : 5) {
      bytes[i] = (char)value;
      const tdm_status status = parse(&f, bytes, n_bytes);
      cr_expect(status == TDM_OK || status == TDM_CORRUPT, "byte %zu = %d: %s", i, value, tdm_status_name(status));
    }
    bytes[i] = kept;
  }
  free(bytes);
  fixture_close(&f);
}

/* Headers too big to write down. */
Test(safetensors, bad_generated_headers) {
  fixture f;
  fixture_open(&f);
  fixture_expect_failure("length of 2^64 - 1", parse(&f, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), TDM_CORRUPT,
                         "18446744073709551615|only 2 bytes");

  const size_t size = (size_t)24 << 20;
  char* header = malloc(size);
  size_t n_bytes;

  snprintf(header, size, "{\"%0*d\":%s", TDM_SAFETENSORS_MAX_NAME + 1, 0, strchr("{" A "}", ':') + 1);
  char* bytes = fixture_safetensors(header, -1, 8, &n_bytes);
  fixture_expect_failure("name of 513 bytes", parse(&f, bytes, n_bytes), TDM_CORRUPT, "513 bytes|at most 512|0000...");
  free(bytes);

  snprintf(header, size, "{\"__metadata__\":{\"x\":\"%0*d\"}}", (1 << 20) + 1, 0);
  bytes = fixture_safetensors(header, -1, 0, &n_bytes);
  fixture_expect_failure("string of a megabyte", parse(&f, bytes, n_bytes), TDM_CORRUPT, "longer than 1048576");
  free(bytes);

  size_t length = (size_t)snprintf(header, size, "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1],\"shape\":[1");
  for (int i = 0; i < 1 << 22; i++) {
    memcpy(header + length, ",1", 2);
    length += 2;
  }
  memcpy(header + length, "]}}", 4);
  bytes = fixture_safetensors(header, -1, 1, &n_bytes);
  fixture_expect_failure("4 million extents", parse(&f, bytes, n_bytes), TDM_CORRUPT, "more than 4194304 values");
  free(bytes);

  memset(header, '[', 100000);
  memcpy(header, "{\"a\":", 5);
  header[100000] = '\0';
  bytes = fixture_safetensors(header, -1, 0, &n_bytes);
  fixture_expect_failure("100,000 brackets", parse(&f, bytes, n_bytes), TDM_CORRUPT, "nested deeper");
  free(bytes);

  free(header);
  fixture_close(&f);
}

typedef struct dtype_case {
  const char* name;
  tdm_dtype dtype;
  int bytes_of_8; /* that 8 elements take */
} dtype_case;

static const dtype_case dtype_cases[] = {
    {"F32", TDM_F32, 32},  {"BF16", TDM_BF16, 16}, {"F8_E4M3", TDM_E4M3, 8}, {"F8_E8M0", TDM_UE8M0, 8},
    {"I8", TDM_I8, 8},     {"I32", TDM_I32, 32},   {"I64", TDM_I64, 64},     {"U8", TDM_U8, 8},
    {"F16", TDM_F16, 16},  {"F64", TDM_F64, 64},   {"BOOL", 0, 8},           {"I16", 0, 16},
    {"U16", 0, 16},        {"U32", 0, 32},         {"U64", 0, 64},           {"F8_E5M2", 0, 8},
    {"F8_E4M3FNUZ", 0, 8}, {"F8_E5M2FNUZ", 0, 8},  {"F6_E2M3", 0, 6},        {"F6_E3M2", 0, 6},
    {"F4", 0, 4},          {"C64", 0, 64},
};

Test(safetensors, dtypes) {
  fixture f;
  fixture_open(&f);
  for (size_t i = 0; i < sizeof dtype_cases / sizeof *dtype_cases; i++) {
    const dtype_case* c = &dtype_cases[i];
    char header[256];
    snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%d]}}", c->name,
             c->bytes_of_8);
    size_t n_bytes;
    char* bytes = fixture_safetensors(header, -1, (size_t)c->bytes_of_8, &n_bytes);
    tdm_safetensors content;
    const tdm_status status = tdm_safetensors_parse(f.runtime, "a.safetensors", bytes, n_bytes, &content);
    cr_assert_eq(status, TDM_OK, "%s: %s", c->name, tdm_last_error()->message);
    cr_expect_eq(content.tensors[0].dtype, c->dtype, "%s", c->name);
    cr_expect_eq(content.tensors[0].bytes, (size_t)c->bytes_of_8, "%s", c->name);
    if (c->dtype) cr_expect_eq(tdm_dtype_bytes(c->dtype) * 8, (size_t)c->bytes_of_8, "%s", c->name);
    tdm_safetensors_clear(&content);
    free(bytes);
  }
  fixture_close(&f);
}

Test(safetensors, good_header) {
  fixture f;
  fixture_open(&f);
  size_t n_bytes;
  char* bytes = fixture_safetensors(good_header, -1, 28, &n_bytes);
  tdm_safetensors content;
  cr_assert_eq(tdm_safetensors_parse(f.runtime, "a.safetensors", bytes, n_bytes, &content), TDM_OK, "%s",
               tdm_last_error()->message);
  const char* data = bytes + n_bytes - 28;
  cr_assert_eq(content.n_tensors, 4);
  const tdm_tensor_info expected[] = {
      {"a", "a.safetensors", TDM_F32, 1, {2}, data, 8},
      {"e", "a.safetensors", TDM_F32, 2, {0, 7}, NULL, 0},
      {"b", "a.safetensors", TDM_BF16, 2, {2, 3}, data + 8, 12},
      {"s", "a.safetensors", TDM_I64, 0, {0}, data + 20, 8},
  };
  for (int i = 0; i < 4; i++) {
    const tdm_tensor_info *want = &expected[i], *got = &content.tensors[i];
    cr_expect_str_eq(got->name, want->name);
    cr_expect_str_eq(got->file, want->file);
    cr_expect_eq(got->dtype, want->dtype, "%s", want->name);
    cr_expect_eq(got->rank, want->rank, "%s", want->name);
    cr_expect_arr_eq(got->shape, want->shape, sizeof want->shape, "%s", want->name);
    cr_expect_eq(got->data, want->data, "%s", want->name);
    cr_expect_eq(got->bytes, want->bytes, "%s", want->name);
  }
  tdm_safetensors_clear(&content);
  tdm_safetensors_clear(&content);
  free(bytes);

  static const char* const also_good[] = {
      "{}",
      "{}     ",
      "{\"__metadata__\":{}}",
      "{" A ",\"\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]}}",
      "{" TENSOR("\xc3\xa9", "U8", "1,1,1,1,1,1,1,9", "0,9") "}",
      "{\n\t" TENSOR("x", "U8", "9", "0,9") "\r\n}\n",
  };
  static const size_t n_data[] = {0, 0, 0, 9, 9, 9};
  for (size_t i = 0; i < sizeof also_good / sizeof *also_good; i++) {
    bytes = fixture_safetensors(also_good[i], -1, n_data[i], &n_bytes);
    cr_expect_eq(parse(&f, bytes, n_bytes), TDM_OK, "%s: %s", also_good[i], tdm_last_error()->message);
    free(bytes);
  }
  fixture_close(&f);
}

#include "runtime/json.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/checkpoint/fixture.h"

static const tdm_json_limits limits = {.bytes = 1000, .depth = 4, .string_bytes = 20, .values = 10};

static tdm_status parse(const char* text, json_t** out) {
  return tdm_json_parse(text, strlen(text), &limits, out);
}

/* Each limit is reached without complaint, and exceeded by one with it. */
Test(json, limits) {
  json_t* root = NULL;
  char text[1100];
  static const char* const fitting[] = {
      "{\"a\":[[[1]]]}",
      "{\"12345678901234567890\":\"1234567890123456789\\n\"}",
      "{\"a\":[1,2,3,4,5,6,7,8,9]}",
      "{\"a\":\"]]]]{{{{,,,,,,,,,,\"}",
      "{\"a\":12345678901234567}",
  };
  for (size_t i = 0; i < sizeof fitting / sizeof *fitting; i++) {
    /* the second one's string is 21 bytes as written */
    const tdm_status status = parse(fitting[i], &root);
    if (i == 1)
      fixture_expect_failure(fitting[i], status, TDM_CORRUPT, "longer than 20");
    else
      cr_expect_eq(status, TDM_OK, "%s: %s", fitting[i], tdm_last_error()->message);
    json_decref(root);
  }
  fixture_expect_failure("depth", parse("{\"a\":[[[[1]]]]}", &root), TDM_CORRUPT, "byte 8|deeper than 4");
  fixture_expect_failure("string", parse("{\"a\":\"123456789012345678901\"}", &root), TDM_CORRUPT, "longer than 20");
  fixture_expect_failure("key", parse("{\"123456789012345678901\":1}", &root), TDM_CORRUPT, "longer than 20");
  fixture_expect_failure("number", parse("{\"a\":0.12345678901234567890}", &root), TDM_CORRUPT, "longer than 20");
  fixture_expect_failure("values", parse("{\"a\":[1,2,3,4,5,6,7,8,9,10]}", &root), TDM_CORRUPT, "more than 10");
  snprintf(text, sizeof text, "{%998s}", "");
  cr_expect_eq(parse(text, &root), TDM_OK);
  json_decref(root);
  snprintf(text, sizeof text, "{%999s}", "");
  fixture_expect_failure("bytes", parse(text, &root), TDM_CORRUPT, "1001 bytes|1000");
  cr_expect_null(root);
}

/* jansson 2.14 overruns a buffer or aborts when its lexer cannot grow for a long token, which a stranger can make long.
 */
Test(json, long_token_without_memory) {
  test_heap* heap = test_heap_watch_json();
  const tdm_json_limits wide = {.bytes = 100000, .depth = 4, .string_bytes = 50000, .values = 20};
  static char text[40000];
  for (int i = 0; i < 4; i++)
    for (int length = 100; length <= 30000; length = length * 3 / 2) {
      snprintf(text, sizeof text,
               i == 0   ? "{\"a\":\"%0*d\"}"
               : i == 1 ? "{\"%0*d\":1}"
               : i == 2 ? "{\"a\":1%0*d}"
                        : "{\"a\":0.%0*d}",
               length, 0);
      json_t* root = NULL;
      *heap = (test_heap){.largest = length * 3 / 4};
      const tdm_status status = tdm_json_parse(text, strlen(text), &wide, &root);
      fixture_expect_failure("no memory for the token", status, TDM_OUT_OF_MEMORY, "JSON token");
      cr_assert_eq(heap->outstanding, 0);
    }
}

typedef struct quote_case {
  const char* text;
  const char* quoted;
} quote_case;

Test(json, quote) {
  static const quote_case cases[] = {
      {"", "\"\""},
      {"model.layers.0", "\"model.layers.0\""},
      {"a\nb\x1b[0m\x7f", "\"a\\x0ab\\x1b[0m\\x7f\""},
      {"\xc3\xa9\xe2\x82\xac", "\"\xc3\xa9\xe2\x82\xac\""},
      {"\302\23331m\302\240", "\"\\xc2\\x9b31m\302\240\""}, /* U+009B: a terminal's escape in one character */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    cr_expect_str_eq(tdm_quote(cases[i].text).text, cases[i].quoted);

  /* cut between characters, whatever the offset */
  for (int shift = 0; shift < 4; shift++) {
    char text[1024] = "aaaa";
    for (int i = 0; i < 200; i++) memcpy(text + shift + 3 * i, "\xe2\x82\xac", 4);
    const tdm_quoted quoted = tdm_quote(text);
    const size_t length = strlen(quoted.text);
    cr_expect(length < sizeof quoted.text && length > sizeof quoted.text - 8, "%zu bytes", length);
    cr_expect_str_eq(quoted.text + length - 4, "...\"");
    cr_expect_eq((length - 5 - (size_t)shift) % 3, 0, "shift %d: cut inside of a character", shift);
  }
}

Test(json, describe) {
  json_t* root = NULL;
  cr_assert_eq(parse("{\"v\":[1,-2.5,4.0,1e300,\"x\",true,false,null]}", &root), TDM_OK);
  const json_t* values = json_object_get(root, "v");
  static const char* const expected[] = {"1", "-2.5", "4.0", "1e+300", "\"x\"", "true", "false", "null"};
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    cr_expect_str_eq(tdm_json_describe(json_array_get(values, i)).text, expected[i]);
  cr_expect_str_eq(tdm_json_describe(values).text, "an array of 8");
  cr_expect_str_eq(tdm_json_describe(root).text, "an object");
  cr_expect_str_eq(tdm_json_describe(NULL).text, "missing");
  json_decref(root);
}

/* Integers are exact to the ends of int64; a real is never taken for one. */
Test(json, integers) {
  json_t* root = NULL;
  const tdm_json_limits wide = {.bytes = 1000, .depth = 4, .string_bytes = 40, .values = 20};
  const char* text = "{\"max\":9223372036854775807,\"min\":-9223372036854775808,\"minus_zero\":-0,\"real\":1.0}";
  cr_assert_eq(tdm_json_parse(text, strlen(text), &wide, &root), TDM_OK, "%s", tdm_last_error()->message);
  const tdm_json_object object = {root, "at."};
  int64_t value = 0;
  cr_expect_eq(tdm_json_get_int(object, "max", INT64_MIN, INT64_MAX, &value), TDM_OK);
  cr_expect_eq(value, INT64_MAX);
  cr_expect_eq(tdm_json_get_int(object, "min", INT64_MIN, INT64_MAX, &value), TDM_OK);
  cr_expect_eq(value, INT64_MIN);
  cr_expect_eq(tdm_json_get_int(object, "minus_zero", 0, 0, &value), TDM_OK);
  cr_expect_eq(value, 0);
  value = 7;
  fixture_expect_failure("real", tdm_json_get_int(object, "real", 0, 5, &value), TDM_CORRUPT, "at.real is 1.0|integer");
  fixture_expect_failure("absent", tdm_json_get_int(object, "x", 0, 5, &value), TDM_CORRUPT, "at.x is missing");
  cr_expect_eq(value, 7);
  json_decref(root);
}

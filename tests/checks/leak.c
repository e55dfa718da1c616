/* Leaks on purpose. Criterion runs a test in a child process and takes its verdict before LeakSanitizer speaks, so
 * ctest judges by the output (tests/CMakeLists.txt); this test, expected to fail, shows that it does. */

#include <criterion/criterion.h>
#include <stdlib.h>

static void* volatile lost;

Test(sanitizer, leak_is_found) {
  lost = malloc(77);
  lost = NULL;
  cr_assert(true);
}

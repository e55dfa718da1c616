#ifndef TESTS_SUPPORT_RIG_H
#define TESTS_SUPPORT_RIG_H

/* Runs one op through a program, with its operands in watched tensors:
 *
 *   test_rig rig;
 *   test_rig_open(&rig);
 *   test_tensor* x = test_rig_tensor(&rig, "x", TDM_BF16, 2, (int64_t[]){m, d});
 *   test_tensor* out = test_rig_tensor(&rig, "out", TDM_BF16, 2, (int64_t[]){m, d});
 *   test_view_set_normal(&x->view, &rig.random, 1.0f);
 *   test_tensor_allow(out, &out->view);
 *   tdm_rmsnorm_args args = {.size = sizeof args, .x = x->view, .out = out->view};
 *   cr_assert_eq(TEST_RUN(&rig, rmsnorm, &args), TDM_OK, "%s", tdm_last_error()->message);
 *   ... look at out ...
 *   test_rig_close(&rig);
 */

#include "runtime/op.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

enum { TEST_RIG_TENSORS = 24 };

typedef struct test_rig {
  tdm_runtime* runtime; /* of the host device */
  tdm_lane* lane;
  test_random random;
  tdm_program* program; /* the last one made */
  int32_t n_tensors;
  test_tensor tensors[TEST_RIG_TENSORS];
  const char* names[TEST_RIG_TENSORS];
  char label[128]; /* of the case, put in front of what fails; set it with test_rig_label */
} test_rig;

void test_rig_open(test_rig* rig);
void test_rig_close(test_rig* rig);
void test_rig_label(test_rig* rig, const char* format, ...) __attribute__((format(printf, 2, 3)));

/* A tensor of the rig's, contiguous, of all 0xff bytes. */
test_tensor* test_rig_tensor(test_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape);
test_tensor* test_rig_strided(test_rig* rig, const char* name, tdm_dtype dtype, int32_t rank, const int64_t* shape,
                              const int64_t* stride);
/* FP8 activation scales [cols/128, rows], rows `extra` columns (a multiple of 4) wider than tdm_scale_stride(rows). */
test_tensor* test_rig_scales(test_rig* rig, const char* name, int64_t rows, int64_t cols, int64_t extra);
/* A live count: i32 [1]. */
test_tensor* test_rig_count(test_rig* rig, const char* name, int32_t value);
/* The experts that each of the first `live` rows chose, a bit each as moe_route writes them; all are set in the others.
 * has(ctx, row, expert) says which. */
test_tensor* test_rig_chosen(test_rig* rig, int64_t rows, int64_t live, int64_t experts,
                             bool (*has)(const void* ctx, int64_t row, int64_t expert), const void* ctx);
/* An activation [rows, cols]: normal values times `deviation` from the rig's random numbers in bf16 or f32; or in e4m3
 * with its scales, which must exist. Rows are `stride` elements apart (0: cols). */
test_tensor* test_rig_activation(test_rig* rig, const char* name, tdm_dtype dtype, int64_t rows, int64_t cols,
                                 int64_t stride, float deviation, test_tensor* scales);

/* What an op may write of scales when `live` rows are: their columns, and the pads to the next multiple of 4. */
void test_allow_scales(test_tensor* scales, int64_t live);
/* Fails unless those pads are zero. */
void test_expect_zero_pads(const test_rig* rig, const test_tensor* scales, int64_t live);

/* Appends by tdm_append_<op>, seals, launches, and checks that no tensor of the rig changed where it was not allowed
 * to. Answers the first status that is not TDM_OK. */
#define TEST_RUN(rig, op, args) test_rig_run((rig), tdm_append_##op(test_rig_program(rig), (rig)->lane, #op, (args)))
tdm_program* test_rig_program(test_rig* rig);
tdm_status test_rig_run(test_rig* rig, tdm_status appended);

/* check, plan and ref of an op without a program, in scratch memory of exactly plan's size (for AddressSanitizer). */
tdm_status test_rig_run_direct(test_rig* rig, const tdm_op* op, const void* args);

/* One change to an args struct: a member gets an integer, a float, or another member's value. */
typedef struct test_patch {
  size_t offset;
  size_t bytes; /* 0 ends a list */
  int64_t integer;
  float number;
  size_t from; /* offset of the member to copy */
  enum { TEST_PATCH_INTEGER, TEST_PATCH_FLOAT, TEST_PATCH_COPY } kind;
} test_patch;

#define TEST_MEMBER(type, member) .offset = offsetof(type, member), .bytes = sizeof(((type*)0)->member)
#define TEST_SET(type, member, value)                                                                                  \
  { TEST_MEMBER(type, member), .integer = (value), .kind = TEST_PATCH_INTEGER }
#define TEST_SET_FLOAT(type, member, value)                                                                            \
  { TEST_MEMBER(type, member), .number = (value), .kind = TEST_PATCH_FLOAT }
#define TEST_COPY(type, member, from_member)                                                                           \
  { TEST_MEMBER(type, member), .from = offsetof(type, from_member), .kind = TEST_PATCH_COPY }
#define TEST_ABSENT(type, view) TEST_SET(type, view.buffer, 0)

/* A call that must be refused: good args with up to six changes. */
typedef struct test_refusal {
  const char* name;
  const char* words; /* as for test_expect_failure */
  test_patch patches[6];
} test_refusal;

/* Appends `good`, which must succeed, and then each broken copy of it, which must answer `expected` with a sentence
 * that names the op and has the words. */
void test_rig_refusals(test_rig* rig, const tdm_op* op, const void* good, tdm_status expected,
                       const test_refusal* refusals, size_t count);

/* The thread's last failure is `expected` and its sentence has all of `words`, separated by '|' ("gemm_fp8|7040"). */
void test_expect_failure(const char* what, tdm_status status, tdm_status expected, const char* words);
/* `text` has each of `words`, which `|` separates. */
void test_expect_words(const char* what, const char* text, const char* words);

#endif

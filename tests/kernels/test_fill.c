#include <criterion/criterion.h>
#include <math.h>

#include "kernels/ops.h"
#include "tests/support/rig.h"

static const tdm_dtype dtypes[] = {TDM_F32, TDM_BF16, TDM_E4M3};

/* Uniform around the offset: in bounds, with the mean and the variance of the distribution, and as the seed says. */
Test(fill, is_uniform_and_a_function_of_the_seed) {
  enum { COUNT = 40000 };
  static float values[3][COUNT];
  for (size_t d = 0; d < 3; d++) {
    for (int run = 0; run < 3; run++) { /* twice the same seed, then another */
      test_rig rig;
      test_rig_open(&rig);
      test_rig_label(&rig, "%s, run %d", tdm_dtype_name(dtypes[d]), run);
      test_tensor* out = test_rig_tensor(&rig, "out", dtypes[d], 2, (int64_t[]){COUNT / 100, 100});
      test_tensor_allow(out, &out->view);
      const tdm_fill_args args = {
          .size = sizeof args, .out = out->view, .seed = run == 2 ? 8 : 7, .amplitude = 4, .offset = 1};
      cr_assert_eq(TEST_RUN(&rig, fill, &args), TDM_OK, "%s", tdm_last_error()->message);
      test_view_get(&out->view, values[run]);
      test_rig_close(&rig);
    }
    double mean = 0, square = 0;
    for (int i = 0; i < COUNT; i++) {
      cr_assert(values[0][i] >= -3 && values[0][i] <= 5, "element %d is %g", i, (double)values[0][i]);
      mean += (double)values[0][i] / COUNT;
      square += (double)values[0][i] * (double)values[0][i] / COUNT;
    }
    cr_expect_lt(fabs(mean - 1), 0.05, "mean %g", mean); /* deviation of the mean: 0.012 */
    cr_expect_lt(fabs(square - mean * mean - 16.0 / 3), 0.1, "variance %g", square - mean * mean);
    cr_expect_arr_eq(values[0], values[1], sizeof values[0]);
    cr_expect_arr_neq(values[0], values[2], sizeof values[0]);
  }
}

Test(fill, refuses_bad_arguments) {
  test_rig rig;
  test_rig_open(&rig);
  test_tensor* out = test_rig_tensor(&rig, "out", TDM_F32, 2, (int64_t[]){4, 8});
  test_tensor_allow(out, &out->view);
  const tdm_fill_args good = {.size = sizeof good, .out = out->view, .amplitude = 1};
  static const test_refusal refusals[] = {
      {"integers", "out|i32", {TEST_SET(tdm_fill_args, out.dtype, TDM_I32)}},
      {"absent", "out|absent", {TEST_ABSENT(tdm_fill_args, out)}},
      {"infinite amplitude", "amplitude inf", {TEST_SET_FLOAT(tdm_fill_args, amplitude, INFINITY)}},
      {"offset NaN", "offset nan", {TEST_SET_FLOAT(tdm_fill_args, offset, NAN)}},
  };
  static const test_refusal limits[] = {
      {"rows apart", "stride 8|contiguous", {TEST_SET(tdm_fill_args, out.shape[1], 7)}},
  };
  test_rig_refusals(&rig, &tdm_op_fill, &good, TDM_INVALID_ARGUMENT, refusals, sizeof refusals / sizeof *refusals);
  test_rig_refusals(&rig, &tdm_op_fill, &good, TDM_UNSUPPORTED, limits, sizeof limits / sizeof *limits);
  test_rig_close(&rig);
}

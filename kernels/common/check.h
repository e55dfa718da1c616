#ifndef KERNELS_COMMON_CHECK_H
#define KERNELS_COMMON_CHECK_H

/* The vocabulary of the ops' checks: each answers TDM_OK or fails with a sentence that names op, operand and values. */

#include "runtime/op.h"
#include "runtime/status.h"

/* A set of dtypes: TDM_DTYPES(TDM_BF16) | TDM_DTYPES(TDM_F32). */
#define TDM_DTYPES(dtype) (1u << (dtype))
#define TDM_BF16_OR_F32   (TDM_DTYPES(TDM_BF16) | TDM_DTYPES(TDM_F32))

#define TDM_ANY (-1) /* any extent */

/* `view` has one of the dtypes and the rank and extents given (TDM_ANY: any extent >= 1), last stride 1 and strides
 * that do not let rows overlap, and starts 16-byte aligned. The stride of a dimension of extent 1 does not matter. */
tdm_status tdm_check_tensor(const char* op, const char* name, const tdm_view* view, unsigned dtypes, int32_t rank,
                            const int64_t* shape);
/* The same, with any positive strides. */
tdm_status tdm_check_strided(const char* op, const char* name, const tdm_view* view, unsigned dtypes, int32_t rank,
                             const int64_t* shape);
/* A strided view to be written: no two of its elements share memory. After tdm_check_strided. Sufficient, not
 * necessary: from the smallest stride up, each must step over all that the smaller ones reach. */
tdm_status tdm_check_distinct(const char* op, const char* name, const tdm_view* view);
/* A live count: absent, or i32 [1] at a multiple of 4 bytes. */
tdm_status tdm_check_count(const char* op, const char* name, const tdm_view* view);
/* A list of experts: i32 [1 + n_experts] at a multiple of 4 bytes. UNSUPPORTED above TDM_MAX_HITS experts. */
enum { TDM_MAX_HITS = 1024 };
tdm_status tdm_check_hits(const char* op, const tdm_view* view, int64_t n_experts);
/* A bit an expert for each row: i32 [rows, tdm_chosen_words(n_experts)], as tdm_check_tensor. The same limit. */
static inline int64_t tdm_chosen_words(int64_t n_experts) {
  return (n_experts + 31) / 32;
}
tdm_status tdm_check_chosen(const char* op, const tdm_view* view, int64_t rows, int64_t n_experts);
/* What a step that takes either was given: one of the two, or none. */
tdm_status tdm_check_selection(const char* op, const tdm_view* hits, const tdm_view* chosen, int64_t rows,
                               int64_t n_experts);
/* UNSUPPORTED where it is there, for the encode functions of kernels that do not know it. */
tdm_status tdm_refuse_chosen(const char* op, const tdm_view* view);
/* FP8 activation scales [n_cols/128, n_rows] of data [n_rows, n_cols], or with a leading dimension of groups in both:
 * f32, row stride a multiple of 4 and >= tdm_scale_stride(n_rows), group stride a multiple of 4 too, pad columns of the
 * last row inside the buffer. Present exactly when `data` is e4m3. n_cols must divide by 128 when it is. */
tdm_status tdm_check_act_scale(const char* op, const char* name, const tdm_view* scale, const char* data_name,
                               const tdm_view* data);
/* FP8 weight scales: f32 [.., ceil(N/128), ceil(K/128)] for the last two dimensions of `w` (leading ones equal).
 * Present exactly when `w` is e4m3. */
tdm_status tdm_check_weight_scale(const char* op, const char* name, const tdm_view* scale, const char* w_name,
                                  const tdm_view* w);
/* `value` is 0, which becomes `fallback`, or finite and at least TDM_MIN_EPS. */
tdm_status tdm_check_eps(const char* op, const char* name, float* value, float fallback);
#define TDM_MIN_EPS 1e-30f /* keeps the scale of a block of zeros (eps / 448) a normal number */

/* Optional rows of any dtype that a kernel asks for into L2: addresses and sizes multiples of 16 bytes. */
tdm_status tdm_check_prefetch(const char* op, const char* name, const tdm_view* view);

/* No operand that is written overlaps another one, but for `output` and `input` (names, or both NULL), which may be the
 * very same view. Views of one buffer that interleave, such as two column ranges of a tensor, do not overlap. */
tdm_status tdm_check_overlap(const tdm_op* op, const void* args, const char* output, const char* input);
/* Whether two views may have a byte in common: exact for column ranges of one tensor, pessimistic for odder pairs. */
bool tdm_views_overlap(const tdm_view* a, const tdm_view* b);

/* Live rows at run time: the count's value, or `rows` when absent. Fails when outside [0, rows]. */
tdm_status tdm_live_rows(const char* op, const tdm_view* count, int64_t rows, int64_t* out_rows);

/* The experts that an op works on: all of them where the view is absent. */
typedef struct tdm_hits {
  const int32_t* list; /* NULL: all */
  int64_t n;
} tdm_hits;
/* Reads the list. INVALID_ARGUMENT unless it ascends within the experts. */
tdm_status tdm_read_hits(const char* op, const tdm_view* view, int64_t n_experts, tdm_hits* out_hits);
static inline int64_t tdm_hit(const tdm_hits* hits, int64_t i) {
  return hits->list ? hits->list[i] : i;
}

/* Which experts each row chose: all of them where the view is absent. */
typedef struct tdm_chosen {
  const int32_t* words; /* NULL: all */
  int64_t stride;
} tdm_chosen;
/* Reads the bits of so many rows. INVALID_ARGUMENT where one is set that no expert has. */
tdm_status tdm_read_chosen(const char* op, const tdm_view* view, int64_t rows, int64_t n_experts,
                           tdm_chosen* out_chosen);
static inline bool tdm_chose(const tdm_chosen* chosen, int64_t row, int64_t expert) {
  return !chosen->words || ((uint32_t)chosen->words[row * chosen->stride + expert / 32] >> expert % 32 & 1);
}
/* Whether any of the first `rows` did. */
bool tdm_any_chose(const tdm_chosen* chosen, int64_t rows, int64_t expert);

/* Bytes of all elements of a view, 0 when absent: the least traffic. */
double tdm_traffic(const tdm_view* view);
/* tdm_traffic of all operands, twice for one that is read and written. */
double tdm_traffic_all(const tdm_op* op, const void* args);

#endif

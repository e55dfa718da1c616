#include <math.h>
#include <string.h>

#include "kernels/common/check.h"
#include "kernels/moe_route/moe_route.h"

/* One row's choice. */
typedef struct choice {
  int32_t ids[TDM_ROUTE_MAX_TOP_K];
  float weights[TDM_ROUTE_MAX_TOP_K];
} choice;

/* Index of the largest of values[0..n) that is not yet taken, the lowest among equals; -1 when all are taken. */
static int64_t largest(const float* values, const bool* taken, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; i++) {
    if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
  }
  return best;
}

static float group_score(const float* biased, int64_t n) {
  float first = -INFINITY, second = -INFINITY;
  for (int64_t e = 0; e < n; e++) {
    if (biased[e] > first) {
      second = first;
      first = biased[e];
    } else if (biased[e] > second) {
      second = biased[e];
    }
  }
  float score = n == 1 ? first : first + second;
  return isnan(score) ? -INFINITY : score;
}

/* Marks as taken the experts outside the topk_group best groups. */
static void mask_groups(const tdm_moe_route_args* args, const float* biased, bool* taken) {
  int64_t experts = args->logits.shape[1];
  if (args->topk_group == args->n_group) return;
  int64_t size = experts / args->n_group;
  float scores[TDM_ROUTE_MAX_EXPERTS];
  bool kept[TDM_ROUTE_MAX_EXPERTS] = {false};
  for (int64_t g = 0; g < args->n_group; g++) scores[g] = group_score(biased + g * size, size);
  for (int32_t j = 0; j < args->topk_group; j++) kept[largest(scores, kept, args->n_group)] = true;
  for (int64_t e = 0; e < experts; e++) taken[e] = !kept[e / size];
}

static void choose(const tdm_moe_route_args* args, const float* logits, const float* bias, choice* out) {
  int64_t experts = args->logits.shape[1];
  float scores[TDM_ROUTE_MAX_EXPERTS], biased[TDM_ROUTE_MAX_EXPERTS];
  bool taken[TDM_ROUTE_MAX_EXPERTS] = {false};
  bool spoilt = false;
  for (int64_t e = 0; e < experts; e++) {
    scores[e] = (float)(1.0 / (1.0 + exp(-(double)logits[e])));
    biased[e] = bias != NULL ? scores[e] + bias[e] : scores[e];
    if (isnan(biased[e])) biased[e] = -INFINITY;
    if (isnan(logits[e])) spoilt = true;
  }
  mask_groups(args, biased, taken);
  float sum = 0;
  for (int32_t j = 0; j < args->top_k; j++) {
    int64_t e = largest(biased, taken, experts);
    taken[e] = true;
    out->ids[j] = (int32_t)e;
    out->weights[j] = scores[e];
    sum += scores[e];
  }
  for (int32_t j = 0; j < args->top_k; j++) {
    float weight = args->norm_topk_prob ? out->weights[j] / (sum + 1e-20f) : out->weights[j];
    out->weights[j] = spoilt ? NAN : weight * args->routed_scaling_factor;
  }
}

static void fill_alpha(const tdm_moe_route_args* args, const choice* c, float* alpha) {
  int64_t experts = args->logits.shape[1];
  for (int64_t e = 0; e < experts; e++) alpha[e] = 0.0f;
  for (int32_t j = 0; j < args->top_k; j++) alpha[c->ids[j]] = c->weights[j];
  for (int32_t j = 0; j < args->n_shared; j++) alpha[experts + j] = 1.0f;
}

/* The bits of a row's experts that have a weight. */
static void mark_chosen(const tdm_moe_route_args* args, const float* alpha, int32_t* words) {
  const int64_t experts = args->alpha.shape[1];
  for (int64_t w = 0; w < tdm_chosen_words(experts); w++) {
    uint32_t word = 0;
    for (int64_t e = 32 * w; e < experts && e < 32 * w + 32; e++) word |= (uint32_t)(alpha[e] != 0.0f) << e % 32;
    words[w] = (int32_t)word;
  }
}

/* Experts with a weight in a live row, ascending. */
static void list_hits(const tdm_moe_route_args* args, int64_t rows, const float* alpha, int32_t* hits) {
  int32_t n = 0;
  for (int64_t e = 0; e < args->alpha.shape[1]; e++) {
    bool hit = false;
    for (int64_t m = 0; m < rows; m++) hit = hit || alpha[m * args->alpha.stride[0] + e] != 0.0f;
    if (hit) hits[1 + n++] = (int32_t)e;
  }
  hits[0] = n;
}

tdm_status tdm_moe_route_ref(const void* void_args, const tdm_plan* plan, void* scratch) {
  const tdm_moe_route_args* args = void_args;
  (void)plan, (void)scratch;
  int64_t rows;
  TDM_TRY(tdm_live_rows("moe_route", &args->n_tokens, args->logits.shape[0], &rows));
  const float* logits = tdm_view_data(&args->logits);
  const float* bias = tdm_view_data_or_null(&args->bias);
  int32_t* ids = tdm_view_data_or_null(&args->ids);
  float* weights = tdm_view_data_or_null(&args->weights);
  float* alpha = tdm_view_data_or_null(&args->alpha);
  int32_t* chosen = tdm_view_data_or_null(&args->chosen);
  size_t k = (size_t)args->top_k;
  for (int64_t m = 0; m < rows; m++) {
    choice c;
    choose(args, logits + m * args->logits.stride[0], bias, &c);
    if (ids != NULL) memcpy(ids + m * args->ids.stride[0], c.ids, k * sizeof *ids);
    if (weights != NULL) memcpy(weights + m * args->weights.stride[0], c.weights, k * sizeof *weights);
    if (alpha != NULL) fill_alpha(args, &c, alpha + m * args->alpha.stride[0]);
    if (chosen != NULL) mark_chosen(args, alpha + m * args->alpha.stride[0], chosen + m * args->chosen.stride[0]);
  }
  if (tdm_view_present(&args->hits)) list_hits(args, rows, alpha, tdm_view_data(&args->hits));
  return TDM_OK;
}

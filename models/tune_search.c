#include "models/tune_search.h"

#include "runtime/status.h"

/* Side lanes of other sizes are tried where the usual one comes this close to the best. */
static const double near_best = 1.10;
enum { ROUNDS = 3 /* of the last comparison */ };

typedef struct search {
  const tdm_tune_space* space;
  tdm_tune_time_fn time;
  void* ctx;
  tdm_choice best;
  int64_t best_ns;
  int32_t tried;
  bool refused[TDM_MOE_PATH_GROUPED + 1]; /* paths that cannot be had on the usual lanes, nor then on others */
} search;

static bool same_lanes(const tdm_choice* a, const tdm_choice* b) {
  return a->strategy == b->strategy && a->wait_form == b->wait_form && a->side_sms == b->side_sms;
}

static bool same(const tdm_choice* a, const tdm_choice* b) {
  return same_lanes(a, b) && a->moe_path == b->moe_path;
}

/* Measures a way, and keeps it if it is the best so far. */
static tdm_status try_choice(search* s, const tdm_choice* choice, int64_t* out_ns) {
  TDM_TRY(s->time(s->ctx, choice, s->best_ns, out_ns));
  if (*out_ns == TDM_TUNE_NONE) return TDM_OK;
  s->tried++;
  if (s->best_ns == 0 || *out_ns < s->best_ns) {
    s->best_ns = *out_ns;
    s->best = *choice;
  }
  return TDM_OK;
}

/* The other paths on the lanes of `base`, whose own was measured. */
static tdm_status try_paths(search* s, tdm_choice base) {
  for (tdm_moe_path path = TDM_MOE_PATH_DENSE; s->space->routes && path <= TDM_MOE_PATH_GROUPED; path++) {
    tdm_choice choice = base;
    int64_t ns = 0;
    choice.moe_path = path;
    if (path == base.moe_path || s->refused[path]) continue;
    TDM_TRY(try_choice(s, &choice, &ns));
    s->refused[path] = ns == TDM_TUNE_NONE;
  }
  return TDM_OK;
}

/* One kind of lanes with side lanes of 16 SMs, then of 8 and 32 if that was not far off. Split lanes have fewer: what
 * they give the side lane is lost to the main one. */
static tdm_status try_sizes(search* s, tdm_strategy strategy, tdm_wait_form form, tdm_moe_path path) {
  static const int32_t usual_sizes[] = {16, 8, 32}, split_sizes[] = {4, 8, 16};
  const int32_t* sizes = strategy == TDM_STRATEGY_SPLIT ? split_sizes : usual_sizes;
  for (int32_t i = 0; i < 3; i++) {
    const tdm_choice choice = {.strategy = strategy, .wait_form = form, .side_sms = sizes[i], .moe_path = path};
    int64_t ns = 0;
    if (s->space->sms && sizes[i] >= s->space->sms) continue;
    if (same_lanes(&choice, &s->space->usual)) continue; /* measured with all paths */
    TDM_TRY(try_choice(s, &choice, &ns));
    if (i == 0 && (double)ns > near_best * (double)s->best_ns) break;
  }
  return TDM_OK;
}

static tdm_status try_lanes(search* s) {
  const tdm_moe_path path = s->best.moe_path;
  const tdm_choice serial = {.strategy = TDM_STRATEGY_SERIAL, .wait_form = TDM_WAIT_EDGE, .moe_path = path};
  int64_t ns = 0;
  TDM_TRY(try_choice(s, &serial, &ns));
  if (!s->space->green) return TDM_OK; /* lanes are threads: size and kind change nothing */
  TDM_TRY(try_sizes(s, TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, path));
  TDM_TRY(try_sizes(s, TDM_STRATEGY_SPLIT, TDM_WAIT_EDGE, path));
  TDM_TRY(try_sizes(s, TDM_STRATEGY_GREEN, TDM_WAIT_EDGE, path));
  return try_sizes(s, TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, path);
}

/* The least of several turns each: what disturbs a measurement only ever makes it slower. */
static tdm_status compare_again(search* s, int64_t* usual_ns) {
  for (int i = 0; i < ROUNDS; i++) {
    int64_t usual = 0, best = 0;
    TDM_TRY(s->time(s->ctx, &s->space->usual, 0, &usual));
    TDM_TRY(s->time(s->ctx, &s->best, 0, &best));
    *usual_ns = i == 0 || usual < *usual_ns ? usual : *usual_ns;
    s->best_ns = i == 0 || best < s->best_ns ? best : s->best_ns;
  }
  return TDM_OK;
}

static bool gains(const search* s, int64_t usual_ns) {
  return (double)s->best_ns <= (1 - s->space->gain) * (double)usual_ns;
}

tdm_status tdm_tune_search(const tdm_tune_space* space, tdm_tune_time_fn time, void* ctx, tdm_tuning_entry* out_entry) {
  search s = {.space = space, .time = time, .ctx = ctx, .best = space->usual};
  int64_t usual_ns = 0;
  TDM_TRY(try_choice(&s, &space->usual, &usual_ns));
  if (usual_ns == TDM_TUNE_NONE)
    return TDM_FAIL(TDM_INTERNAL, "the way that an untuned model runs in cannot be measured");
  TDM_TRY(try_paths(&s, space->usual));
  TDM_TRY(try_lanes(&s));
  if (!same_lanes(&s.best, &space->usual)) TDM_TRY(try_paths(&s, s.best));
  if (!same(&s.best, &space->usual) && gains(&s, usual_ns)) TDM_TRY(compare_again(&s, &usual_ns));
  const bool wins = !same(&s.best, &space->usual) && gains(&s, usual_ns);
  out_entry->choice = wins ? s.best : space->usual;
  out_entry->time_ns = wins ? s.best_ns : usual_ns;
  out_entry->default_ns = usual_ns;
  out_entry->tried = s.tried;
  return TDM_OK;
}

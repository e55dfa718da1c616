/* Which way wins when every way takes what a script says. */

#include <criterion/criterion.h>
#include <string.h>

#include "models/tune_search.h"
#include "runtime/status.h"
#include "tests/support/rig.h"

enum { MOST_CALLS = 64 };

/* Microseconds by strategy, size and path; where there is none, the way cannot be had. */
typedef struct script {
  int64_t serial, soft[3], edge[3], signal[3]; /* with side lanes of 8, 16 and 32 SMs, all experts */
  int64_t split[3];                            /* of 4, 8 and 16 */
  int64_t hits, grouped;                       /* added for these paths; negative: gained */
  bool no_grouped;                             /* that path cannot be had */
  int64_t once_more;                           /* added to soft lanes of 8 SMs from their second time on */
  tdm_choice calls[MOST_CALLS];
  int n_calls;
} script;

static int place(int32_t sms) {
  return sms == 8 ? 0 : sms == 16 ? 1 : 2;
}

static tdm_status read_script(void* ctx, const tdm_choice* choice, int64_t best_ns, int64_t* out_ns) {
  script* s = ctx;
  int64_t us = 0;
  cr_assert_lt(s->n_calls, MOST_CALLS);
  cr_assert(best_ns == 0 || best_ns < TDM_TUNE_NONE);
  if (choice->strategy == TDM_STRATEGY_SERIAL) us = s->serial;
  if (choice->strategy == TDM_STRATEGY_SOFT) us = s->soft[place(choice->side_sms)];
  if (choice->strategy == TDM_STRATEGY_SPLIT) us = s->split[choice->side_sms == 4 ? 0 : place(choice->side_sms) + 1];
  if (choice->strategy == TDM_STRATEGY_GREEN)
    us = (choice->wait_form == TDM_WAIT_SIGNAL ? s->signal : s->edge)[place(choice->side_sms)];
  bool again = false;
  for (int i = 0; i < s->n_calls; i++) again = again || memcmp(&s->calls[i], choice, sizeof *choice) == 0;
  if (again && choice->strategy == TDM_STRATEGY_SOFT && choice->side_sms == 8) us += s->once_more;
  if (us && choice->moe_path == TDM_MOE_PATH_HITS) us += s->hits;
  if (us && choice->moe_path == TDM_MOE_PATH_GROUPED) us = s->no_grouped ? 0 : us + s->grouped;
  s->calls[s->n_calls++] = *choice;
  *out_ns = us ? us * 1000 : TDM_TUNE_NONE;
  return TDM_OK;
}

static const tdm_choice usual = {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE};

static tdm_tuning_entry search(script* s, bool green, double gain) {
  const tdm_tune_space space = {.usual = usual, .routes = true, .green = green, .sms = green ? 132 : 0, .gain = gain};
  tdm_tuning_entry entry = {.size = sizeof entry};
  cr_assert_eq(tdm_tune_search(&space, read_script, s, &entry), TDM_OK, "%s", tdm_last_error()->message);
  return entry;
}

Test(tune_search, the_fastest_way_wins) {
  static const struct {
    const char* name;
    script script;
    tdm_choice best;
    int64_t best_us, usual_us;
  } cases[] = {
      {"nothing is faster",
       {.serial = 110, .soft = {105, 100, 104}, .edge = {120, 115, 118}, .signal = {112, 111, 113}, .hits = 30},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE},
       100,
       100},
      {"hit experts", /* the other lanes are measured with them */
       {.serial = 110, .soft = {105, 100, 104}, .edge = {120, 115, 118}, .signal = {112, 111, 113}, .hits = -30},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_HITS},
       70,
       100},
      {"each expert for its tokens alone",
       {.serial = 110, .soft = {105, 100, 104}, .edge = {120, 115, 118}, .hits = -30, .grouped = -40},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_GROUPED},
       60,
       100},
      {"a path that cannot be had",
       {.serial = 110, .soft = {92, 100, 104}, .hits = -30, .grouped = -40, .no_grouped = true},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 8, TDM_MOE_PATH_HITS},
       62,
       100},
      {"one lane",
       {.serial = 90, .soft = {105, 100, 104}, .edge = {120, 115, 118}, .signal = {112, 111, 113}},
       {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE},
       90,
       100},
      {"split lanes",
       {.serial = 110, .soft = {105, 100, 104}, .split = {95, 91, 93}, .edge = {120, 115, 118}, .hits = 5},
       {TDM_STRATEGY_SPLIT, TDM_WAIT_EDGE, 8, TDM_MOE_PATH_DENSE},
       91,
       100},
      {"a smaller side lane",
       {.serial = 110, .soft = {92, 100, 104}, .edge = {120, 115, 118}, .signal = {112, 111, 113}, .hits = 5},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 8, TDM_MOE_PATH_DENSE},
       92,
       100},
      {"signals with 32 SMs and hit experts",
       {.serial = 110, .soft = {105, 100, 104}, .edge = {100, 99, 98}, .signal = {97, 96, 80}, .hits = -1},
       {TDM_STRATEGY_GREEN, TDM_WAIT_SIGNAL, 32, TDM_MOE_PATH_HITS},
       79,
       100},
      {"a gain too small to count",
       {.serial = 99, .soft = {100, 100, 104}, .edge = {120, 115, 118}, .signal = {112, 111, 113}, .hits = 30},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE},
       100,
       100},
      {"a gain that does not come again",
       {.serial = 110,
        .soft = {80, 100, 104},
        .edge = {120, 115, 118},
        .signal = {112, 111, 113},
        .hits = 30,
        .once_more = 19},
       {TDM_STRATEGY_SOFT, TDM_WAIT_EDGE, 16, TDM_MOE_PATH_DENSE},
       100,
       100},
      {"green lanes cannot be had",
       {.serial = 95, .soft = {105, 100, 104}, .hits = 30},
       {TDM_STRATEGY_SERIAL, TDM_WAIT_EDGE, 0, TDM_MOE_PATH_DENSE},
       95,
       100},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    script s = cases[i].script;
    const tdm_tuning_entry entry = search(&s, true, 0.02);
    cr_expect_arr_eq(&entry.choice, &cases[i].best, sizeof entry.choice, "%s: strategy %d, form %d, %d SMs, path %d",
                     cases[i].name, (int)entry.choice.strategy, (int)entry.choice.wait_form, entry.choice.side_sms,
                     (int)entry.choice.moe_path);
    cr_expect_eq(entry.time_ns, cases[i].best_us * 1000, "%s: %lld ns", cases[i].name, (long long)entry.time_ns);
    cr_expect_eq(entry.default_ns, cases[i].usual_us * 1000, "%s: %lld ns", cases[i].name, (long long)entry.default_ns);
    cr_expect(entry.tried > 0 && entry.tried <= s.n_calls, "%s: %d tried", cases[i].name, entry.tried);
  }
}

/* Sizes of a kind of lanes that is far off are not measured; nor is any way twice, but for the last comparison. */
Test(tune_search, hopeless_lanes_are_passed_over) {
  script s = {.serial = 110,
              .soft = {105, 100, 104},
              .split = {101, 102, 103},
              .edge = {10, 115, 10},
              .signal = {107, 106, 107},
              .hits = 30};
  const tdm_tuning_entry entry = search(&s, true, 0.02);
  cr_assert_eq(entry.tried, s.n_calls);
  for (int i = 0; i < s.n_calls; i++) {
    const tdm_choice* one = &s.calls[i];
    cr_assert(one->strategy != TDM_STRATEGY_GREEN || one->wait_form != TDM_WAIT_EDGE || one->side_sms == 16);
    for (int k = 0; k < i; k++) cr_assert_arr_neq(one, &s.calls[k], sizeof *one, "call %d is call %d again", i, k);
  }
}

/* The host device has threads for lanes: neither their size nor their kind is looked at. */
Test(tune_search, without_sms_there_are_six_ways) {
  script s = {
      .serial = 90, .soft = {105, 100, 104}, .edge = {1, 1, 1}, .signal = {1, 1, 1}, .hits = -10, .grouped = -5};
  const tdm_tuning_entry entry = search(&s, false, 0.02);
  cr_assert_eq(entry.choice.strategy, TDM_STRATEGY_SERIAL);
  cr_assert_eq(entry.choice.moe_path, TDM_MOE_PATH_HITS);
  cr_assert_eq(entry.time_ns, 80000);
  cr_assert_eq(entry.tried, 6);
}

/* The lanes are measured with the best path; the others once on the usual lanes, once on the best ones if these are
 * not the same. */
Test(tune_search, paths_are_measured_first_and_last) {
  static const struct {
    int64_t serial;
    bool no_grouped;
    int calls[TDM_MOE_PATH_GROUPED + 1], tried;
  } cases[] = {{110, false, {0, 0, 1, 2, 1}, 4},
               {90, false, {0, 0, 2 + 3, 2 + 3, 2}, 6}, /* and the last comparison */
               {90, true, {0, 0, 2 + 3, 2 + 3, 1}, 4}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    script s = {.serial = cases[i].serial, .soft = {0, 100, 0}, .hits = -1, .no_grouped = cases[i].no_grouped};
    const tdm_tuning_entry entry = search(&s, false, 0.02);
    int calls[TDM_MOE_PATH_GROUPED + 1] = {0};
    for (int k = 0; k < s.n_calls; k++) calls[s.calls[k].moe_path]++;
    cr_expect_arr_eq(calls, cases[i].calls, sizeof calls, "case %d: %d dense, %d hits, %d grouped", (int)i,
                     calls[TDM_MOE_PATH_DENSE], calls[TDM_MOE_PATH_HITS], calls[TDM_MOE_PATH_GROUPED]);
    cr_expect_eq(entry.tried, cases[i].tried, "case %d: %d", (int)i, entry.tried);
  }
}

/* A layer without a router has one path. */
Test(tune_search, without_a_router_the_path_stays) {
  script s = {.serial = 90, .soft = {105, 100, 104}, .hits = -10, .grouped = -20};
  const tdm_tune_space space = {.usual = usual, .gain = 0.02};
  tdm_tuning_entry entry = {.size = sizeof entry};
  cr_assert_eq(tdm_tune_search(&space, read_script, &s, &entry), TDM_OK, "%s", tdm_last_error()->message);
  cr_assert_eq(entry.choice.strategy, TDM_STRATEGY_SERIAL);
  cr_assert_eq(entry.choice.moe_path, TDM_MOE_PATH_DENSE);
  cr_assert_eq(entry.tried, 2);
}

static tdm_status fail(void* ctx, const tdm_choice* choice, int64_t best_ns, int64_t* out_ns) {
  (void)ctx, (void)best_ns;
  *out_ns = 1000;
  if (choice->strategy == TDM_STRATEGY_SERIAL) return TDM_FAIL(TDM_TIMEOUT, "stuck");
  return TDM_OK;
}

Test(tune_search, failures_end_it) {
  const tdm_tune_space space = {.usual = usual, .routes = false};
  tdm_tuning_entry entry = {.size = sizeof entry};
  test_expect_failure("a failing way", tdm_tune_search(&space, fail, NULL, &entry), TDM_TIMEOUT, "stuck");
  script none = {0};
  test_expect_failure("the usual way cannot be had", tdm_tune_search(&space, read_script, &none, &entry), TDM_INTERNAL,
                      "untuned model");
}

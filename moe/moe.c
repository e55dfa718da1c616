#include "moe/moe.h"
#include "runtime/program.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/common/check.h"
#include "kernels/moe_experts/moe_experts.h"
#include "kernels/moe_gate/moe_gate.h"
#include "kernels/moe_norm_gate/moe_norm_gate.h"

enum { BLOCK = 128 };

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Where an expert's three linears are in the checkpoint: `name` with gate_proj, up_proj, down_proj below it; of a
 * linear that is `width` wide, the slice of `intermediate` from `first` on. */
typedef struct expert_source {
  char name[160];
  int64_t width, first;
} expert_source;

static tdm_status add_gate_and_up(tdm_loader* loader, const tdm_moe_config* config, const expert_source* source,
                                  int64_t index, tdm_experts* experts) {
  static const char* const halves[] = {"gate_proj", "up_proj"};
  const int64_t hidden = config->hidden, intermediate = config->intermediate;
  char name[192];
  for (int64_t half = 0; half < 2; half++) {
    snprintf(name, sizeof name, "%s.%s", source->name, halves[half]);
    for (int64_t row = 0; row < intermediate; row += BLOCK) {
      const tdm_weight_piece piece = {.name = name,
                                      .n = source->width,
                                      .k = hidden,
                                      .from_row = source->first + row,
                                      .n_rows = BLOCK,
                                      .n_cols = hidden,
                                      .to_row = index * 2 * intermediate + 2 * row + half * BLOCK};
      TDM_TRY(tdm_loader_piece(loader, &experts->w13, experts->n * 2 * intermediate, hidden, &piece));
    }
  }
  return TDM_OK;
}

static tdm_status add_down(tdm_loader* loader, const tdm_moe_config* config, const expert_source* source, int64_t index,
                           tdm_experts* experts) {
  char name[192];
  snprintf(name, sizeof name, "%s.down_proj", source->name);
  const tdm_weight_piece down = {.name = name,
                                 .n = config->hidden,
                                 .k = source->width,
                                 .n_rows = config->hidden,
                                 .from_col = source->first,
                                 .n_cols = config->intermediate,
                                 .to_col = index * config->intermediate};
  return tdm_loader_piece(loader, &experts->w2, config->hidden, experts->n * config->intermediate, &down);
}

/* A matrix [n * rows, k] seen as a stack [n, rows, k]. */
static void stack(tdm_view* view, int64_t n) {
  if (!view->buffer) return;
  view->rank = 3;
  view->shape[2] = view->shape[1];
  view->stride[2] = 1;
  view->shape[1] = view->shape[0] / n;
  view->stride[1] = view->shape[2];
  view->shape[0] = n;
  view->stride[0] = view->shape[1] * view->shape[2];
}

/* Whether the shared experts' weights have the dtype of the routed ones and so can stand in one stack with them. */
static bool same_dtype(const tdm_loader* loader, const char* prefix) {
  char name[192];
  tdm_tensor_info routed, shared;
  if (!loader->checkpoint) return true;
  snprintf(name, sizeof name, "%s.experts.0.gate_proj.weight", prefix);
  if (!tdm_checkpoint_find(loader->checkpoint, name, &routed)) return true;
  snprintf(name, sizeof name, "%s.shared_experts.gate_proj.weight", prefix);
  return !tdm_checkpoint_find(loader->checkpoint, name, &shared) || routed.dtype == shared.dtype;
}

static expert_source source_of(const char* prefix, const tdm_moe_config* config, int64_t n_routed, int64_t e) {
  const bool shared = e >= n_routed;
  expert_source source = {.width = shared ? config->n_shared * config->intermediate : config->intermediate,
                          .first = shared ? (e - n_routed) * config->intermediate : 0};
  if (config->n_routed == 0)
    snprintf(source.name, sizeof source.name, "%s", prefix);
  else if (shared)
    snprintf(source.name, sizeof source.name, "%s.shared_experts", prefix);
  else
    snprintf(source.name, sizeof source.name, "%s.experts.%d", prefix, (int)e);
  return source;
}

/* The first `n_routed` experts are routed ones, then come `n_shared` slices of the shared one. */
static tdm_status load_stack(tdm_loader* loader, const char* prefix, const tdm_moe_config* config, int64_t n_routed,
                             int64_t n_shared, tdm_experts* experts) {
  *experts = (tdm_experts){.n = n_routed + n_shared};
  for (int64_t e = 0; e < experts->n; e++) {
    const expert_source source = source_of(prefix, config, n_routed, e);
    TDM_TRY(add_gate_and_up(loader, config, &source, e, experts));
  }
  TDM_TRY(tdm_loader_end(loader, &experts->w13));
  for (int64_t e = 0; e < experts->n; e++) {
    const expert_source source = source_of(prefix, config, n_routed, e);
    TDM_TRY(add_down(loader, config, &source, e, experts));
  }
  TDM_TRY(tdm_loader_end(loader, &experts->w2));
  stack(&experts->w13.data, experts->n);
  stack(&experts->w13.scale, experts->n);
  return TDM_OK;
}

tdm_status tdm_moe_load(tdm_loader* loader, const char* prefix, const tdm_moe_config* config, tdm_moe* moe) {
  moe->config = *config;
  if (config->n_routed == 0) return load_stack(loader, prefix, config, 1, 0, &moe->experts);
  char name[192];
  snprintf(name, sizeof name, "%s.gate", prefix);
  TDM_TRY(tdm_loader_plain(loader, name, config->n_routed, config->hidden, &moe->router));
  snprintf(name, sizeof name, "%s.gate.e_score_correction_bias", prefix);
  /* Small when random: one as large as scores differ would send all tokens to the same few experts. */
  TDM_TRY(tdm_loader_f32(loader, name, config->n_routed, 0.01f, &moe->bias));
  if (config->n_shared == 0 || same_dtype(loader, prefix))
    return load_stack(loader, prefix, config, config->n_routed, config->n_shared, &moe->experts);
  TDM_TRY(load_stack(loader, prefix, config, config->n_routed, 0, &moe->experts));
  return load_stack(loader, prefix, config, 0, config->n_shared, &moe->shared);
}

void tdm_moe_release(tdm_moe* moe) {
  tdm_buffer_destroy(moe->router.buffer);
  tdm_buffer_destroy(moe->bias.buffer);
  tdm_weight_release(&moe->experts.w13);
  tdm_weight_release(&moe->experts.w2);
  tdm_weight_release(&moe->shared.w13);
  tdm_weight_release(&moe->shared.w2);
  *moe = (tdm_moe){0};
}

bool tdm_moe_routes(const tdm_moe* moe) {
  return tdm_view_present(&moe->router);
}

const tdm_weight* tdm_moe_input_weight(const tdm_moe* moe) {
  /* Stacks of two dtypes come with a router, which has the plain form made: so the quantised stack decides. */
  return moe->shared.n && moe->shared.w13.data.dtype == TDM_E4M3 ? &moe->shared.w13 : &moe->experts.w13;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

enum {
  NORM_GATE_ROWS = 2,  /* each further row costs the step 1 us or more */
  BF16_MOST_HITS = 90, /* percent of the experts: beyond, a list is slower than all of them */
  PREFETCH_LEAST_HITS = 80,
  PREFETCH_BYTES = 24 << 20
};

/* Of the experts, were choices uniform and independent: m tokens with k of E each would hit E (1 - (1 - k/E)^m). */
static double hit_share(const tdm_moe_config* config, int64_t rows) {
  return 1.0 - pow(1.0 - (double)config->top_k / (double)config->n_routed, (double)rows);
}

static bool fp8(const tdm_moe* moe) {
  return moe->experts.w13.data.dtype == TDM_E4M3 && (moe->shared.n == 0 || moe->shared.w13.data.dtype == TDM_E4M3);
}

tdm_moe_path tdm_moe_choose(const tdm_moe* moe, tdm_moe_path wanted, int64_t rows, char reason[TDM_MOE_REASON_BYTES]) {
  const tdm_moe_config* config = &moe->config;
  if (!tdm_moe_routes(moe)) {
    snprintf(reason, TDM_MOE_REASON_BYTES, "there is no router: one MLP");
    return TDM_MOE_PATH_DENSE;
  }
  if (wanted != TDM_MOE_PATH_AUTO) {
    snprintf(reason, TDM_MOE_REASON_BYTES, "the bucket's choice says so");
    return wanted;
  }
  /* Measured on an H200 for one of 8 ranks of DeepSeek-V3 (docs/overlap.md): with FP8 grouped is the quickest from 1 to
   * 256 tokens. bf16 has no kernels for it. */
  if (fp8(moe)) {
    snprintf(reason, TDM_MOE_REASON_BYTES, "the experts are FP8");
    return TDM_MOE_PATH_GROUPED;
  }
  const double hit = hit_share(config, rows);
  const bool most = 100 * hit > BF16_MOST_HITS;
  snprintf(
      reason, TDM_MOE_REASON_BYTES,
      "grouped needs FP8 experts; %d of %d for each of %d tokens hit %.0f %% of them if choices are uniform, %s %d",
      (int)config->top_k, (int)config->n_routed, (int)rows, 100 * hit, most ? "more than" : "at most", BF16_MOST_HITS);
  return most ? TDM_MOE_PATH_DENSE : TDM_MOE_PATH_HITS;
}

/* Which experts count for which rows, and how much. Absent: all of them, each with weight 1. */
typedef struct selection {
  tdm_view alpha;  /* [M, experts.n] */
  tdm_view hits;   /* of the path hits */
  tdm_view chosen; /* of the path grouped */
} selection;

/* What is read whatever is chosen: the weights of the shared experts, as rows of bytes for a step before to bring to
 * L2. Absent where they are not among the routed ones, or are none. */
static tdm_view shared_w13(const tdm_moe* moe) {
  const int64_t routed = moe->config.n_routed, shared = moe->experts.n - routed;
  if (shared == 0) return (tdm_view){0};
  tdm_view view = tdm_view_slice(moe->experts.w13.data, 0, routed, shared);
  view.rank = 2;
  view.shape[1] *= view.shape[2];
  view.stride[1] = 1;
  return view;
}

static tdm_view shared_w2(const tdm_moe* moe) {
  const int64_t routed = moe->config.n_routed, shared = moe->experts.n - routed;
  const int64_t width = moe->experts.w2.data.shape[1] / moe->experts.n;
  return shared == 0 ? (tdm_view){0} : tdm_view_slice(moe->experts.w2.data, 1, routed * width, shared * width);
}

/* What FC1 will read, for the router to bring to L2: where most experts are hit the first rows of each, so that all
 * CTAs gain. From 16 to 32 MB it is all the same (docs/overlap.md); where fewer are hit, what is brought in vain costs
 * more than the rest gains. */
static tdm_view first_rows(const tdm_builder* builder, const tdm_moe* moe, tdm_moe_path path) {
  tdm_view view = moe->experts.w13.data;
  const int64_t columns = view.shape[2], most = PREFETCH_BYTES / (view.shape[0] * columns);
  const int64_t rows = most < view.shape[1] ? most : view.shape[1];
  if (path != TDM_MOE_PATH_GROUPED || view.dtype != TDM_E4M3 || rows < 1 ||
      100 * hit_share(&moe->config, builder->rows) < PREFETCH_LEAST_HITS)
    return (tdm_view){0};
  view.rank = 2;
  view.shape[1] = rows * columns;
  view.stride[1] = 1;
  return view;
}

/* Logits and routing: one step on the main lane. Beside FC1, where everything is on few SMs, the two ops are quicker
 * (docs/kernels/small_ops.md). */
static tdm_status append_gate(tdm_builder* builder, tdm_lane* lane, const tdm_moe_gate_args* gate, tdm_moe_path path) {
  char label[TDM_LABEL_BYTES];
  if (path != TDM_MOE_PATH_DENSE &&
      tdm_moe_gate_supported(builder->rows, gate->w.shape[0], gate->n_group, gate->topk_group))
    return tdm_append_moe_gate(builder->program, lane, tdm_builder_label(builder, "gate", label), gate);
  const tdm_router_gemm_args router = tdm_moe_gate_router(gate);
  TDM_TRY(tdm_append_router_gemm(builder->program, lane, tdm_builder_label(builder, "router", label), &router));
  const tdm_moe_route_args route = tdm_moe_gate_route(gate);
  return tdm_append_moe_route(builder->program, lane, tdm_builder_label(builder, "route", label), &route);
}

static tdm_status append_norm(tdm_builder* builder, const tdm_rmsnorm_args* norm) {
  char label[TDM_LABEL_BYTES];
  return tdm_append_rmsnorm(builder->program, builder->main_lane, tdm_builder_label(builder, "post_norm", label), norm);
}

/* Norm, logits and routing as one step: quicker up to so many rows, where nothing runs beside them
 * (docs/kernels/small_ops.md). */
static bool joins_norm(const tdm_builder* builder, const tdm_moe_gate_args* gate, tdm_moe_path path) {
  return path == TDM_MOE_PATH_GROUPED && builder->rows <= NORM_GATE_ROWS &&
         tdm_moe_norm_gate_supported(builder->rows, gate->w.shape[1], gate->w.shape[0], gate->n_group,
                                     gate->topk_group);
}

static tdm_status append_norm_gate(tdm_builder* builder, const tdm_moe* moe, const tdm_rmsnorm_args* norm,
                                   const tdm_moe_gate_args* gate) {
  char label[TDM_LABEL_BYTES];
  const tdm_moe_norm_gate_args args = {.size = sizeof args,
                                       .n_tokens = norm->n_tokens,
                                       .x = norm->x,
                                       .delta = norm->delta,
                                       .residual_out = norm->residual_out,
                                       .weight = norm->weight,
                                       .out = norm->out,
                                       .out_q = norm->out_q,
                                       .out_scale = norm->out_scale,
                                       .w = gate->w,
                                       .bias = gate->bias,
                                       .logits = gate->logits,
                                       .ids = gate->ids,
                                       .weights = gate->weights,
                                       .alpha = gate->alpha,
                                       .chosen = gate->chosen,
                                       .prefetch = {shared_w13(moe), shared_w2(moe)},
                                       .top_k = gate->top_k,
                                       .n_group = gate->n_group,
                                       .topk_group = gate->topk_group,
                                       .n_shared = gate->n_shared,
                                       .norm_topk_prob = gate->norm_topk_prob,
                                       .routed_scaling_factor = gate->routed_scaling_factor,
                                       .eps = norm->eps,
                                       .quant_eps = norm->quant_eps,
                                       .pow2_scale = norm->pow2_scale};
  return tdm_append_moe_norm_gate(builder->program, builder->main_lane, tdm_builder_label(builder, "norm_gate", label),
                                  &args);
}

/* Logits and routing of `x`, without what is prefetched. */
static tdm_status make_gate(tdm_builder* builder, const tdm_moe* moe, const tdm_view* x, tdm_moe_path path,
                            selection* out_selection, tdm_moe_gate_args* out_gate) {
  const tdm_moe_config* config = &moe->config;
  tdm_view logits, ids, weights;
  TDM_TRY(tdm_builder_rows(builder, "router_logits", TDM_F32, config->n_routed, &logits));
  TDM_TRY(tdm_builder_tap(builder, "topk_ids", TDM_I32, config->top_k, &ids));
  TDM_TRY(tdm_builder_tap(builder, "topk_weights", TDM_F32, config->top_k, &weights));
  TDM_TRY(tdm_builder_rows(builder, "alpha", TDM_F32, moe->experts.n, &out_selection->alpha));
  if (path == TDM_MOE_PATH_HITS) {
    TDM_TRY(tdm_builder_temp(builder, "hits", TDM_I32, 1, (int64_t[]){1 + moe->experts.n}, &out_selection->hits));
    if (builder->keep) TDM_TRY(tdm_program_keep(builder->program, &out_selection->hits));
  }
  if (path == TDM_MOE_PATH_GROUPED)
    TDM_TRY(tdm_builder_tap(builder, "chosen", TDM_I32, tdm_chosen_words(moe->experts.n), &out_selection->chosen));
  *out_gate = (tdm_moe_gate_args){.size = sizeof *out_gate,
                                  .n_tokens = builder->n_tokens,
                                  .x = *x,
                                  .w = moe->router,
                                  .bias = moe->bias,
                                  .logits = logits,
                                  .ids = ids,
                                  .weights = weights,
                                  .alpha = out_selection->alpha,
                                  .hits = out_selection->hits,
                                  .chosen = out_selection->chosen,
                                  .top_k = config->top_k,
                                  .n_group = config->n_group,
                                  .topk_group = config->topk_group,
                                  .n_shared = (int32_t)(moe->experts.n - config->n_routed),
                                  .norm_topk_prob = config->norm_topk_prob,
                                  .routed_scaling_factor = config->routed_scaling_factor};
  return TDM_OK;
}

/* FC1 of a stack of experts on `lane`; answers FC2's input. */
static tdm_status append_fc1(tdm_builder* builder, tdm_lane* lane, const char* name, const tdm_experts* experts,
                             const tdm_activation* x, const selection* selected, tdm_activation* out_c) {
  char label[TDM_LABEL_BYTES], c_name[32];
  const bool quantises = tdm_builder_quantises(builder, &experts->w13);
  snprintf(c_name, sizeof c_name, "%s_out", name);
  TDM_TRY(tdm_builder_activation(builder, c_name, experts->w2.data.shape[1], &experts->w13, false, out_c));
  const tdm_moe_fc1_args args = {.size = sizeof args,
                                 .n_tokens = builder->n_tokens,
                                 .x = quantises ? x->q : x->plain,
                                 .x_scale = quantises ? x->scale : (tdm_view){0},
                                 .w13 = experts->w13.data,
                                 .w13_scale = experts->w13.scale,
                                 .hits = selected->hits,
                                 .chosen = selected->chosen,
                                 .out = quantises ? out_c->q : out_c->plain,
                                 .out_scale = out_c->scale,
                                 .pow2_scale = builder->pow2_scale};
  return tdm_append_moe_fc1(builder->program, lane, tdm_builder_label(builder, name, label), &args);
}

static tdm_status append_fc2(tdm_builder* builder, tdm_lane* lane, const char* name, const tdm_experts* experts,
                             const tdm_activation* c, const selection* selected, const tdm_view* addend,
                             const tdm_view* out) {
  char label[TDM_LABEL_BYTES];
  const tdm_moe_fc2_args args = {.size = sizeof args,
                                 .n_tokens = builder->n_tokens,
                                 .x = tdm_view_present(&c->q) ? c->q : c->plain,
                                 .x_scale = c->scale,
                                 .w2 = experts->w2.data,
                                 .w2_scale = experts->w2.scale,
                                 .alpha = selected->alpha,
                                 .hits = selected->hits,
                                 .chosen = selected->chosen,
                                 .addend = *addend,
                                 .out = *out,
                                 .n_experts = (int32_t)experts->n};
  return tdm_append_moe_fc2(builder->program, lane, tdm_builder_label(builder, name, label), &args);
}

/* FC1 and FC2 in one launch: quicker than two up to two rows, where a layer's two steps of 36.7 us become one of 31.2
 * (H200, 2026-11-23), and expected to be from nine (docs/kernels/moe_experts.md). */
static bool joins(const tdm_builder* builder, const tdm_experts* experts, tdm_moe_path path) {
  return path == TDM_MOE_PATH_GROUPED && (builder->rows <= 2 || builder->rows > 8) &&
         tdm_builder_quantises(builder, &experts->w13) &&
         tdm_moe_experts_supported(builder->rows, experts->n, experts->w13.data.shape[1] / 2,
                                   experts->w13.data.shape[2]);
}

static tdm_status append_experts(tdm_builder* builder, const tdm_experts* experts, const tdm_activation* x,
                                 const selection* selected, const tdm_view* addend, const tdm_view* out) {
  char label[TDM_LABEL_BYTES];
  const tdm_moe_experts_args args = {.size = sizeof args,
                                     .n_tokens = builder->n_tokens,
                                     .x = x->q,
                                     .x_scale = x->scale,
                                     .w13 = experts->w13.data,
                                     .w13_scale = experts->w13.scale,
                                     .w2 = experts->w2.data,
                                     .w2_scale = experts->w2.scale,
                                     .alpha = selected->alpha,
                                     .chosen = selected->chosen,
                                     .addend = *addend,
                                     .out = *out,
                                     .pow2_scale = builder->pow2_scale};
  return tdm_append_moe_experts(builder->program, builder->main_lane, tdm_builder_label(builder, "experts", label),
                                &args);
}

tdm_status tdm_moe_append(tdm_builder* builder, const tdm_moe* moe, const tdm_rmsnorm_args* norm,
                          const tdm_activation* x, tdm_view* out_mlp) {
  const selection all = {0};
  selection routed = {0};
  tdm_view shared = {0};
  tdm_activation c, shared_c;
  char reason[TDM_MOE_REASON_BYTES];
  const tdm_moe_path path = tdm_moe_choose(moe, builder->moe_path, builder->rows, reason);
  TDM_TRY(tdm_builder_tap(builder, "mlp", builder->activation, moe->config.hidden, out_mlp));
  tdm_moe_gate_args gate;
  if (tdm_moe_routes(moe)) TDM_TRY(make_gate(builder, moe, &x->plain, path, &routed, &gate));
  const bool joined = tdm_moe_routes(moe) && joins_norm(builder, &gate, path);
  TDM_TRY(joined ? append_norm_gate(builder, moe, norm, &gate) : append_norm(builder, norm));
  const int64_t router = builder->program->n_steps;
  if (tdm_moe_routes(moe) && !joined) {
    tdm_lane* lane = path == TDM_MOE_PATH_DENSE ? builder->side_lane : builder->main_lane;
    gate.prefetch = first_rows(builder, moe, path);
    TDM_TRY(append_gate(builder, lane, &gate, path));
  }
  if (moe->shared.n) {
    TDM_TRY(tdm_builder_rows(builder, "shared", TDM_F32, moe->config.hidden, &shared));
    TDM_TRY(append_fc1(builder, builder->side_lane, "shared_fc1", &moe->shared, x, &all, &shared_c));
    TDM_TRY(
        append_fc2(builder, builder->side_lane, "shared_fc2", &moe->shared, &shared_c, &all, &(tdm_view){0}, &shared));
  }
  if (joins(builder, &moe->experts, path)) return append_experts(builder, &moe->experts, x, &routed, &shared, out_mlp);
  TDM_TRY(append_fc1(builder, builder->main_lane, "fc1", &moe->experts, x, &routed, &c));
  /* FC1 takes every SM and all the bandwidth. Up to 128 tokens the router is as quick at FC1's end, where some SMs have
   * a tile less than others; with more it has to come first, or everything waits for it. */
  if (tdm_moe_routes(moe) && path == TDM_MOE_PATH_DENSE && builder->rows > 128)
    tdm_program_start_after(builder->program, builder->program->n_steps - 1, router);
  return append_fc2(builder, builder->main_lane, "fc2", &moe->experts, &c, &routed, &shared, out_mlp);
}

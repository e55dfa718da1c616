#include "attention/mla.h"

#include <stdio.h>

enum { HEAD_Q = TDM_MLA_NOPE + TDM_MLA_ROPE, HEAD_KV = TDM_MLA_NOPE + TDM_MLA_VALUE };

/* ---- weights ---------------------------------------------------------------------------------------------------- */

tdm_status tdm_mla_load(tdm_loader* loader, const char* prefix, const tdm_mla_config* config, tdm_dtype activation,
                        tdm_mla* mla) {
  mla->config = *config;
  const int64_t q_lora = config->q_lora, hidden = config->hidden, heads = config->heads;
  char name[192];
  const tdm_weight_piece q_a = {.name = name, .n = q_lora, .k = hidden, .n_rows = q_lora, .n_cols = hidden};
  const tdm_weight_piece kv_a = {
      .name = name, .n = TDM_MLA_CACHED, .k = hidden, .n_rows = TDM_MLA_CACHED, .n_cols = hidden, .to_row = q_lora};
  mla->qkv_a = (tdm_weight){0};
  snprintf(name, sizeof name, "%s.q_a_proj", prefix);
  TDM_TRY(tdm_loader_piece(loader, &mla->qkv_a, q_lora + TDM_MLA_CACHED, hidden, &q_a));
  snprintf(name, sizeof name, "%s.kv_a_proj_with_mqa", prefix);
  TDM_TRY(tdm_loader_piece(loader, &mla->qkv_a, q_lora + TDM_MLA_CACHED, hidden, &kv_a));
  TDM_TRY(tdm_loader_end(loader, &mla->qkv_a));
  snprintf(name, sizeof name, "%s.q_a_layernorm", prefix);
  TDM_TRY(tdm_loader_plain(loader, name, q_lora, 0, &mla->q_norm));
  snprintf(name, sizeof name, "%s.q_b_proj", prefix);
  TDM_TRY(tdm_loader_linear(loader, name, heads * HEAD_Q, q_lora, &mla->q_b));
  snprintf(name, sizeof name, "%s.kv_a_layernorm", prefix);
  TDM_TRY(tdm_loader_plain(loader, name, TDM_MLA_LATENT, 0, &mla->kv_norm));
  snprintf(name, sizeof name, "%s.kv_b_proj", prefix);
  TDM_TRY(tdm_loader_dequantised(loader, name, heads * HEAD_KV, TDM_MLA_LATENT, activation, &mla->kv_b));
  snprintf(name, sizeof name, "%s.o_proj", prefix);
  return tdm_loader_linear(loader, name, hidden, heads * TDM_MLA_VALUE, &mla->o);
}

void tdm_mla_release(tdm_mla* mla) {
  tdm_weight_release(&mla->qkv_a);
  tdm_buffer_destroy(mla->q_norm.buffer);
  tdm_weight_release(&mla->q_b);
  tdm_buffer_destroy(mla->kv_norm.buffer);
  tdm_buffer_destroy(mla->kv_b.buffer);
  tdm_weight_release(&mla->o);
  *mla = (tdm_mla){0};
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* Temporaries that several steps share. */
typedef struct mla_temps {
  tdm_view q;          /* [M, heads, 192] */
  tdm_view q_absorbed; /* [M, heads, 576] */
  tdm_view latent;     /* [M, 576], prefill only */
  tdm_view kv;         /* [M, heads, 256], prefill only */
  tdm_view latent_out; /* [M, heads, 512] */
  tdm_view heads_out;  /* [M, heads, 128], unless v_b quantises */
} mla_temps;

/* Whether v_b quantises its own output: the output projection wants it so, and no prefill writes other rows of it. */
static bool quantises_heads(const tdm_builder* builder, const tdm_mla* mla, bool prefills) {
  return !prefills && tdm_builder_quantises(builder, &mla->o);
}

static tdm_status make_temps(tdm_builder* builder, const tdm_mla* mla, bool prefills, mla_temps* temps) {
  const int64_t heads = mla->config.heads;
  const tdm_dtype dtype = builder->activation;
  const int64_t q[] = {builder->rows, heads, HEAD_Q}, q_absorbed[] = {builder->rows, heads, TDM_MLA_CACHED};
  const int64_t kv[] = {builder->rows, heads, HEAD_KV}, latent_out[] = {builder->rows, heads, TDM_MLA_LATENT};
  const int64_t heads_out[] = {builder->rows, heads, TDM_MLA_VALUE};
  *temps = (mla_temps){0};
  TDM_TRY(tdm_builder_temp(builder, "q", dtype, 3, q, &temps->q));
  TDM_TRY(tdm_builder_temp(builder, "q_absorbed", dtype, 3, q_absorbed, &temps->q_absorbed));
  TDM_TRY(tdm_builder_temp(builder, "latent_out", dtype, 3, latent_out, &temps->latent_out));
  if (!quantises_heads(builder, mla, prefills))
    TDM_TRY(tdm_builder_temp(builder, "heads_out", dtype, 3, heads_out, &temps->heads_out));
  if (!prefills) return TDM_OK;
  TDM_TRY(tdm_builder_rows(builder, "latent", dtype, TDM_MLA_CACHED, &temps->latent));
  return tdm_builder_temp(builder, "kv", dtype, 3, kv, &temps->kv);
}

/* A view [rows, heads, d] of a matrix [rows, heads * d], and back. */
static tdm_view flatten_heads(tdm_view view) {
  view.rank = 2;
  view.shape[1] *= view.shape[2];
  view.stride[1] = 1;
  return view;
}

/* One half (k or v rows) of every head's part of kv_b: [heads, 128, 512]. */
static tdm_view kv_b_half(const tdm_mla* mla, int64_t first_row) {
  tdm_view view = mla->kv_b;
  view.rank = 3;
  view.shape[0] = mla->config.heads;
  view.shape[1] = TDM_MLA_NOPE;
  view.shape[2] = TDM_MLA_LATENT;
  view.stride[0] = (int64_t)HEAD_KV * TDM_MLA_LATENT;
  view.stride[1] = TDM_MLA_LATENT;
  view.stride[2] = 1;
  view.offset_bytes += first_row * TDM_MLA_LATENT * (int64_t)tdm_dtype_bytes(view.dtype);
  return view;
}

/* Whether projections and norms are one step. */
static bool joins_norms(const tdm_builder* builder, const tdm_mla* mla) {
  return tdm_builder_quantises(builder, &mla->qkv_a) && builder->activation == TDM_BF16;
}

static tdm_status append_joined(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                                const tdm_view* cache, const tdm_activation* x, const mla_temps* temps,
                                const tdm_activation* q_a) {
  char label[TDM_LABEL_BYTES];
  const tdm_mla_qkv_a_args args = {.size = sizeof args,
                                   .n_tokens = builder->n_tokens,
                                   .a = x->q,
                                   .a_scale = x->scale,
                                   .w = mla->qkv_a.data,
                                   .w_scale = mla->qkv_a.scale,
                                   .q_weight = mla->q_norm,
                                   .out = q_a->plain,
                                   .out_q = q_a->q,
                                   .out_scale = q_a->scale,
                                   .kv_weight = mla->kv_norm,
                                   .positions = batch->positions,
                                   .cos_sin = batch->cos_sin,
                                   .slots = batch->slots,
                                   .cache = *cache,
                                   .out_kv = temps->latent,
                                   .eps = mla->config.eps,
                                   .pow2_scale = builder->pow2_scale,
                                   .style = mla->config.rope};
  return tdm_append_mla_qkv_a(builder->program, builder->main_lane, tdm_builder_label(builder, "qkv_a", label), &args);
}

/* Projections and both norms: the queries' into `q_a`, the latent's, with the rotated key, to the cache. */
static tdm_status append_apart(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                               const tdm_view* cache, const tdm_activation* x, const mla_temps* temps,
                               const tdm_activation* q_a) {
  char label[TDM_LABEL_BYTES];
  const int64_t q_lora = mla->config.q_lora;
  tdm_view qkv_a;
  TDM_TRY(tdm_builder_rows(builder, "qkv_a", builder->activation, q_lora + TDM_MLA_CACHED, &qkv_a));
  TDM_TRY(tdm_builder_linear(builder, builder->main_lane, "qkv_a", x, &mla->qkv_a, &qkv_a));
  const tdm_mla_norm_write_args norms = {.size = sizeof norms,
                                         .n_tokens = builder->n_tokens,
                                         .q = tdm_view_slice(qkv_a, 1, 0, q_lora),
                                         .q_weight = mla->q_norm,
                                         .out = q_a->plain,
                                         .out_q = q_a->q,
                                         .out_scale = q_a->scale,
                                         .kv = tdm_view_slice(qkv_a, 1, q_lora, TDM_MLA_CACHED),
                                         .kv_weight = mla->kv_norm,
                                         .positions = batch->positions,
                                         .cos_sin = batch->cos_sin,
                                         .slots = batch->slots,
                                         .cache = *cache,
                                         .out_kv = temps->latent,
                                         .eps = mla->config.eps,
                                         .pow2_scale = builder->pow2_scale,
                                         .style = mla->config.rope};
  return tdm_append_mla_norm_write(builder->program, builder->main_lane, tdm_builder_label(builder, "qkv_norm", label),
                                   &norms);
}

/* What both make, and for prefill expanded keys and values too. */
static tdm_status append_latents(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                                 const tdm_view* cache, const tdm_activation* x, const mla_temps* temps,
                                 const tdm_activation* q_a) {
  char label[TDM_LABEL_BYTES];
  TDM_TRY(joins_norms(builder, mla) ? append_joined(builder, mla, batch, cache, x, temps, q_a)
                                    : append_apart(builder, mla, batch, cache, x, temps, q_a));
  if (!batch->prefills) return TDM_OK;
  const tdm_gemm_bf16_args expand = {.size = sizeof expand,
                                     .n_tokens = builder->n_tokens,
                                     .a = tdm_view_slice(temps->latent, 1, 0, TDM_MLA_LATENT),
                                     .w = mla->kv_b,
                                     .out = flatten_heads(temps->kv)};
  return tdm_append_gemm_bf16(builder->program, builder->side_lane, tdm_builder_label(builder, "kv_b", label), &expand);
}

/* Queries: projected, and per head absorbed into the latent space (first 512) and rotated (last 64). */
static tdm_status append_queries(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                                 const mla_temps* temps, const tdm_activation* q_a) {
  char label[TDM_LABEL_BYTES];
  const tdm_view q_flat = flatten_heads(temps->q);
  TDM_TRY(tdm_builder_linear(builder, builder->main_lane, "q_b", q_a, &mla->q_b, &q_flat));
  const tdm_mla_absorb_args absorb = {.size = sizeof absorb,
                                      .n_tokens = builder->n_tokens,
                                      .q = temps->q,
                                      .w = kv_b_half(mla, 0),
                                      .positions = batch->positions,
                                      .cos_sin = batch->cos_sin,
                                      .out = temps->q_absorbed,
                                      .style = mla->config.rope};
  return tdm_append_mla_absorb(builder->program, builder->main_lane, tdm_builder_label(builder, "k_b", label), &absorb);
}

/* Absorbed sequences, in the latent space. */
static tdm_status append_decode(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                                const tdm_view* cache, const mla_temps* temps) {
  char label[TDM_LABEL_BYTES];
  const tdm_mla_decode_args decode = {.size = sizeof decode,
                                      .n_seqs = batch->n_seqs,
                                      .q = temps->q_absorbed,
                                      .cache = *cache,
                                      .block_table = batch->block_table,
                                      .seq_start = batch->seq_start,
                                      .kv_len = batch->kv_len,
                                      .seq_kind = batch->seq_kind,
                                      .out = temps->latent_out,
                                      .scale = mla->config.scale};
  return tdm_append_mla_decode(builder->program, builder->main_lane, tdm_builder_label(builder, "mla_decode", label),
                               &decode);
}

/* The heads' outputs out of the latent space, and those of expanded sequences beside them. */
static tdm_status append_values(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                                const mla_temps* temps) {
  char label[TDM_LABEL_BYTES];
  const tdm_gemm_bf16_args v_b = {.size = sizeof v_b,
                                  .n_tokens = builder->n_tokens,
                                  .a = tdm_view_transpose(temps->latent_out, 0, 1),
                                  .w = kv_b_half(mla, TDM_MLA_NOPE),
                                  .out = tdm_view_transpose(temps->heads_out, 0, 1)};
  TDM_TRY(tdm_append_gemm_bf16(builder->program, builder->main_lane, tdm_builder_label(builder, "v_b", label), &v_b));
  if (!batch->prefills) return TDM_OK;
  const tdm_mla_prefill_args prefill = {.size = sizeof prefill,
                                        .n_seqs = batch->n_seqs,
                                        .q_nope = tdm_view_slice(temps->q, 2, 0, TDM_MLA_NOPE),
                                        .q_rope = tdm_view_slice(temps->q_absorbed, 2, TDM_MLA_LATENT, TDM_MLA_ROPE),
                                        .kv = temps->kv,
                                        .k_rope = tdm_view_slice(temps->latent, 1, TDM_MLA_LATENT, TDM_MLA_ROPE),
                                        .seq_start = batch->seq_start,
                                        .seq_kind = batch->seq_kind,
                                        .out = temps->heads_out,
                                        .scale = mla->config.scale};
  return tdm_append_mla_prefill(builder->program, builder->main_lane, tdm_builder_label(builder, "mla_prefill", label),
                                &prefill);
}

/* The heads' outputs as the output projection wants them. */
static tdm_status append_heads(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch,
                               const mla_temps* temps, tdm_activation* heads) {
  char label[TDM_LABEL_BYTES];
  const int64_t cols = mla->config.heads * TDM_MLA_VALUE;
  if (quantises_heads(builder, mla, batch->prefills)) {
    TDM_TRY(tdm_builder_activation(builder, "heads", cols, &mla->o, false, heads));
    const tdm_bmm_quant_args v_b = {.size = sizeof v_b,
                                    .n_tokens = builder->n_tokens,
                                    .a = tdm_view_transpose(temps->latent_out, 0, 1),
                                    .w = kv_b_half(mla, TDM_MLA_NOPE),
                                    .out_q = heads->q,
                                    .out_scale = heads->scale,
                                    .pow2_scale = builder->pow2_scale};
    return tdm_append_bmm_quant(builder->program, builder->main_lane, tdm_builder_label(builder, "v_b_quant", label),
                                &v_b);
  }
  TDM_TRY(append_values(builder, mla, batch, temps));
  const tdm_view plain = flatten_heads(temps->heads_out);
  *heads = (tdm_activation){.plain = plain};
  if (!tdm_builder_quantises(builder, &mla->o)) return TDM_OK;
  TDM_TRY(tdm_builder_activation(builder, "heads", cols, &mla->o, false, heads));
  const tdm_quant_args quant = {.size = sizeof quant,
                                .n_tokens = builder->n_tokens,
                                .x = plain,
                                .out_q = heads->q,
                                .out_scale = heads->scale,
                                .pow2_scale = builder->pow2_scale};
  return tdm_append_quant(builder->program, builder->main_lane, tdm_builder_label(builder, "heads_quant", label),
                          &quant);
}

tdm_status tdm_mla_append(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch, const tdm_view* cache,
                          const tdm_activation* x, tdm_view* out_attn) {
  mla_temps temps;
  tdm_activation q_a, heads;
  TDM_TRY(make_temps(builder, mla, batch->prefills, &temps));
  TDM_TRY(tdm_builder_tap(builder, "attn", builder->activation, mla->config.hidden, out_attn));
  TDM_TRY(tdm_builder_activation(builder, "q_a", mla->config.q_lora, &mla->q_b, false, &q_a));
  TDM_TRY(append_latents(builder, mla, batch, cache, x, &temps, &q_a));
  TDM_TRY(append_queries(builder, mla, batch, &temps, &q_a));
  TDM_TRY(append_decode(builder, mla, batch, cache, &temps));
  TDM_TRY(append_heads(builder, mla, batch, &temps, &heads));
  return tdm_builder_linear(builder, builder->main_lane, "o", &heads, &mla->o, out_attn);
}

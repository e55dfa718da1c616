#ifndef ATTENTION_MLA_H
#define ATTENTION_MLA_H

/* Multi-head latent attention of DeepSeek-V3 (docs/formulas.md, section 6), between the input norm and the residual.
 *
 *   main lane   qkv_a ─ qkv_norm ─┬─ q_b ─ k_b ─ decode ─ v_b ─┬─ prefill* ─ quant ─ o
 *   side lane                     └─ kv_b* ────────────────────┘          (* only in programs that prefill) */

#include "attention/kv_cache.h"
#include "kernels/common/builder.h"

typedef struct tdm_mla_config {
  int64_t hidden, heads, q_lora;
  float eps;   /* of both norms */
  float scale; /* softmax */
  tdm_rope_style rope;
} tdm_mla_config;

/* Weights of one layer. Immutable once loaded. */
typedef struct tdm_mla {
  tdm_mla_config config;
  tdm_weight qkv_a; /* [q_lora + 576, hidden] */
  tdm_view q_norm;  /* [q_lora] */
  tdm_weight q_b;   /* [heads * 192, q_lora] */
  tdm_view kv_norm; /* [512] */
  tdm_view kv_b;    /* [heads * 256, 512] bf16 or f32: of each head 128 rows of k, then 128 of v */
  tdm_weight o;     /* [hidden, heads * 128] */
} tdm_mla;

/* What a step's batch looks like, in device memory, and the layer's cache. */
typedef struct tdm_mla_batch {
  tdm_view positions;   /* [M] i32 */
  tdm_view slots;       /* [M] i32 */
  tdm_view cos_sin;     /* [P, 64] f32 */
  tdm_view n_seqs;      /* [1] i32 */
  tdm_view seq_start;   /* [S + 1] i32 */
  tdm_view kv_len;      /* [S] i32 */
  tdm_view seq_kind;    /* [S] i32 */
  tdm_view block_table; /* [S, max_pages] i32 */
  bool prefills;        /* sequences of kind TDM_SEQ_EXPANDED can occur */
} tdm_mla_batch;

/* `prefix` is "model.layers.3.self_attn". Called in both passes of the loader; `mla` starts zeroed. */
tdm_status tdm_mla_load(tdm_loader* loader, const char* prefix, const tdm_mla_config* config, tdm_dtype activation,
                        tdm_mla* mla);
void tdm_mla_release(tdm_mla* mla);

/* Appends attention over `x` (in the forms that qkv_a wants); its result is the temporary "<prefix>attn" [M, hidden].
 */
tdm_status tdm_mla_append(tdm_builder* builder, const tdm_mla* mla, const tdm_mla_batch* batch, const tdm_view* cache,
                          const tdm_activation* x, tdm_view* out_attn);

#endif

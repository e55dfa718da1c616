#ifndef MOE_MOE_H
#define MOE_MOE_H

/* The MLP half of a layer, in the dense formulation (docs/formulas.md, section 13): FC1 over all experts as one GEMM,
 * FC2 with the routing weights folded in. A plain MLP is the case of one expert and no router. Shared experts are
 * experts at the end with weight 1; a shared expert n times as wide as a routed one counts as n.
 *
 *   dense:    main lane   ─┬─ FC1 ────────────┬─ FC2 ─     FC1 needs no routing, so the router runs beside it
 *             side lane    └─ router ─ route ─┘
 *   hits:     main lane   ─ router ─ route ─ FC1 ─ FC2 ─   of the experts that a token chose: fewer weights to read
 *   grouped:  the same steps, each expert for the tokens alone that chose it: less to multiply as well
 *
 * Where the shared expert has another dtype than the routed ones it gets a FC1 and FC2 of its own on the side lane, and
 * its result is added at the end of the routed FC2. */

#include "kernels/common/builder.h"

typedef struct tdm_moe_config {
  int64_t hidden;
  int64_t intermediate; /* of one expert */
  int64_t n_routed;     /* 0: a plain MLP */
  int64_t n_shared;     /* shared width / intermediate */
  int32_t top_k, n_group, topk_group;
  bool norm_topk_prob;
  float routed_scaling_factor;
} tdm_moe_config;

/* A stack of experts as FC1 and FC2 want them. */
typedef struct tdm_experts {
  int64_t n;
  tdm_weight w13; /* data [n, 2*I, H], scale [n, 2*I/128, H/128]: gate and up rows interleaved in blocks of 128 */
  tdm_weight w2;  /* data [H, n*I], scale [ceil(H/128), n*I/128] */
} tdm_experts;

/* Weights of one layer. Immutable once loaded. */
typedef struct tdm_moe {
  tdm_moe_config config;
  tdm_view router; /* [E, H]; absent: a plain MLP */
  tdm_view bias;   /* [E] f32 */
  tdm_experts experts;
  tdm_experts shared; /* n 0 when the shared experts are among `experts` */
} tdm_moe;

/* `prefix` is "model.layers.3.mlp". Called in both passes of the loader; `moe` starts zeroed. */
tdm_status tdm_moe_load(tdm_loader* loader, const char* prefix, const tdm_moe_config* config, tdm_moe* moe);
void tdm_moe_release(tdm_moe* moe);

/* Whether the block reads x.plain besides what its experts' weights want. */
bool tdm_moe_routes(const tdm_moe* moe);

/* The weight that decides in which forms the block's input is wanted, x.plain for the router aside. */
const tdm_weight* tdm_moe_input_weight(const tdm_moe* moe);

/* Dense, hits or grouped, and why, in a clause. */
enum { TDM_MOE_REASON_BYTES = 160 };
tdm_moe_path tdm_moe_choose(const tdm_moe* moe, tdm_moe_path wanted, int64_t rows, char reason[TDM_MOE_REASON_BYTES]);

/* Appends the norm and the block over its outputs, which are `x`; the block's result is the temporary "<prefix>mlp"
 * [M, hidden]. Of few rows norm, router and routing are one step. */
tdm_status tdm_moe_append(tdm_builder* builder, const tdm_moe* moe, const tdm_rmsnorm_args* norm,
                          const tdm_activation* x, tdm_view* out_mlp);

#endif

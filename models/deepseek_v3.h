#ifndef MODELS_DEEPSEEK_V3_H
#define MODELS_DEEPSEEK_V3_H

/* A DeepSeek-V3 model: its weights, and the steps of its layers. */

#include "attention/mla.h"
#include "moe/moe.h"
#include "tandem/model.h"

typedef struct tdm_v3_layer {
  tdm_view input_norm; /* [hidden] */
  tdm_mla attention;
  tdm_view post_norm; /* [hidden] */
  tdm_moe moe;
} tdm_v3_layer;

/* Immutable once loaded. */
typedef struct tdm_v3_weights {
  tdm_runtime* runtime;
  tdm_deepseek_v3_config config;
  tdm_dtype activation;
  int64_t n_layers; /* loaded: at most config.num_hidden_layers */
  tdm_v3_layer* layers;
  tdm_view embedding; /* [vocab, hidden] */
  tdm_view norm;      /* [hidden] */
  tdm_view head;      /* [vocab, hidden]; the embedding's buffer when tied */
  size_t bytes;
} tdm_v3_weights;

/* `path` is for sentences. A NULL checkpoint means random weights drawn from `seed`. Loads the first `n_layers` layers,
 * embedding, final norm and head. `out_weights` is to be released also after a failure. */
tdm_status tdm_v3_weights_load(tdm_runtime* runtime, const tdm_checkpoint* checkpoint, const char* path,
                               const tdm_deepseek_v3_config* config, tdm_dtype activation, int64_t n_layers,
                               uint64_t seed, tdm_v3_weights* out_weights);
void tdm_v3_weights_release(tdm_v3_weights* weights);

/* The residual stream between layers: what is in it, and the last sublayer's output that is yet to be added. */
typedef struct tdm_v3_stream {
  tdm_view residual; /* [M, hidden] */
  tdm_view delta;    /* [M, hidden]; absent at the start */
} tdm_v3_stream;

/* Appends layer `index`; sets builder->prefix. */
tdm_status tdm_v3_layer_append(tdm_builder* builder, const tdm_v3_weights* weights, int64_t index,
                               const tdm_mla_batch* batch, const tdm_view* cache, tdm_v3_stream* stream);

/* Its second half alone: the norm after attention, and what follows. */
tdm_status tdm_v3_mlp_append(tdm_builder* builder, const tdm_v3_weights* weights, int64_t index, tdm_v3_stream* stream);

/* Adds what is left to add: the output of the layer before, as the temporary `name`. With `norm` also its RMSNorm as
 * "final". */
tdm_status tdm_v3_stream_finish(tdm_builder* builder, const char* name, const tdm_view* norm, float eps,
                                const tdm_v3_stream* stream, tdm_view* out_hidden, tdm_view* out_normed);

#endif

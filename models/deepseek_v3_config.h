#ifndef MODELS_DEEPSEEK_V3_CONFIG_H
#define MODELS_DEEPSEEK_V3_CONFIG_H

#include "tandem/model.h"

/* The text of a config.json that lies in memory; `source` names it in sentences. Behind tdm_deepseek_v3_config_read. */
tdm_status tdm_deepseek_v3_config_parse(tdm_runtime* runtime, const char* source, const char* text, size_t n_bytes,
                                        tdm_deepseek_v3_config* out_config);

#endif

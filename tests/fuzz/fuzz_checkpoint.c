/* Fuzzes what reads strangers' files. The first byte of an input says what the rest is:
 *   s  a safetensors file
 *   h  a byte N, then the header of a safetensors file whose length is right and whose data section has N bytes
 *   c  a config.json
 *   i  a model.safetensors.index.json beside two good files
 *   t  a tuning
 *   e  the entries of a tuning whose checksum is right
 * Traps when something is accepted that is not as promised, or when a sentence holds a control character.
 *
 *   cmake --preset fuzz && cmake --build --preset fuzz
 *   build/fuzz/tests/fuzz_checkpoint -max_total_time=60 -max_len=4096 -dict=tests/fuzz/fuzz_checkpoint.dict \
 *       build/corpus tests/fuzz/seeds/fuzz_checkpoint      (new inputs go to the first directory, which must exist)
 *   build/fuzz/tests/fuzz_checkpoint crash-...             (once more, one input) */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/deepseek_v3_config.h"
#include "models/rope_table.h"
#include "models/tuning.h"
#include "runtime/safetensors.h"

int LLVMFuzzerInitialize(int* argc, char*** argv);
int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t n_bytes);

#define REQUIRE(condition)                                                                                             \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                                  \
      __builtin_trap();                                                                                                \
    }                                                                                                                  \
  } while (0)

static tdm_runtime* runtime;
static char directory[] = "/tmp/fuzz_checkpoint_XXXXXX";

/* ---- surroundings ----------------------------------------------------------------------------------------------- */

static void require_printable(const char* text) {
  for (; *text; text++) REQUIRE((unsigned char)*text >= 0x20 && *text != 0x7f);
}

static void check_line(void* ctx, tdm_log_level level, const char* line) {
  (void)ctx;
  REQUIRE(level >= TDM_LOG_ERROR && level <= TDM_LOG_DEBUG);
  require_printable(line);
}

static void write_file(const char* name, const void* bytes, size_t n_bytes) {
  char path[128];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE* file = fopen(path, "wb");
  REQUIRE(file && fwrite(bytes, 1, n_bytes, file) == n_bytes && fclose(file) == 0);
}

static const char* const file_names[] = {"a.safetensors", "b.safetensors", "model.safetensors.index.json",
                                         "tuning.json", "again.json"};

static void remove_directory(void) {
  char path[128];
  for (size_t i = 0; i < sizeof file_names / sizeof *file_names; i++) {
    snprintf(path, sizeof path, "%s/%s", directory, file_names[i]);
    unlink(path);
  }
  rmdir(directory);
  tdm_runtime_destroy(runtime);
}

static void write_shard(const char* file, const char* tensor) {
  char bytes[256];
  const int length =
      snprintf(bytes + 8, sizeof bytes - 9, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", tensor);
  REQUIRE(length > 0 && length < 240);
  memset(bytes, 0, 8);
  bytes[0] = (char)length;
  bytes[8 + length] = 7;
  write_file(file, bytes, (size_t)length + 9);
}

int LLVMFuzzerInitialize(int* argc, char*** argv) {
  (void)argc;
  (void)argv;
  tdm_runtime_config config;
  REQUIRE(tdm_runtime_config_init(&config, sizeof config) == TDM_OK);
  config.log = check_line;
  config.log_level = TDM_LOG_DEBUG;
  REQUIRE(tdm_runtime_create(&config, &runtime) == TDM_OK);
  REQUIRE(mkdtemp(directory));
  write_shard("a.safetensors", "a");
  write_shard("b.safetensors", "b");
  atexit(remove_directory);
  return 0;
}

/* ---- what is promised ------------------------------------------------------------------------------------------- */

static void require_failure(tdm_status status) {
  REQUIRE(status == TDM_CORRUPT || status == TDM_UNSUPPORTED || status == TDM_IO);
  REQUIRE(tdm_last_error()->status == status);
  require_printable(tdm_last_error()->message);
}

static void require_tensor(const tdm_tensor_info* info) {
  require_printable(info->name);
  REQUIRE(strlen(info->name) <= TDM_SAFETENSORS_MAX_NAME);
  REQUIRE(info->rank >= 0 && info->rank <= TDM_TENSOR_MAX_RANK);
  REQUIRE((info->data == NULL) == (info->bytes == 0));
  int64_t elements = 1;
  for (int32_t i = 0; i < info->rank; i++) {
    REQUIRE(info->shape[i] >= 0);
    REQUIRE(!__builtin_mul_overflow(elements, info->shape[i], &elements));
  }
  if (info->dtype) REQUIRE((size_t)elements * tdm_dtype_bytes(info->dtype) == info->bytes);
}

static void fuzz_safetensors(const char* bytes, size_t n_bytes) {
  tdm_safetensors content;
  const tdm_status status = tdm_safetensors_parse(runtime, "x.safetensors", bytes, n_bytes, &content);
  if (status != TDM_OK) {
    REQUIRE(content.n_tensors == 0 && !content.tensors && !content.names);
    require_failure(status);
    return;
  }
  size_t covered = 0;
  unsigned sum = 0;
  for (int64_t i = 0; i < content.n_tensors; i++) {
    const tdm_tensor_info* info = &content.tensors[i];
    require_tensor(info);
    const char* data = info->data;
    for (size_t k = 0; k < info->bytes; k++) sum += (unsigned char)data[k]; /* AddressSanitizer: inside of the file */
    REQUIRE(info->bytes == 0 || data + info->bytes <= bytes + n_bytes);
    covered += info->bytes;
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)bytes[i];
  REQUIRE(covered == n_bytes - 8 - length);
  REQUIRE(sum <= 255 * covered);
  tdm_safetensors_clear(&content);
}

static void fuzz_header(const uint8_t* bytes, size_t n_bytes) {
  if (n_bytes < 1) return;
  const size_t n_data = bytes[0], length = n_bytes - 1;
  char* file = malloc(8 + length + n_data);
  REQUIRE(file);
  for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)length >> (8 * i) & 255);
  memcpy(file + 8, bytes + 1, length);
  memset(file + 8 + length, 1, n_data);
  fuzz_safetensors(file, 8 + length + n_data);
  free(file);
}

static void fuzz_config(const char* text, size_t n_bytes) {
  tdm_deepseek_v3_config config;
  const tdm_status status = tdm_deepseek_v3_config_parse(runtime, "config.json", text, n_bytes, &config);
  if (status != TDM_OK) {
    require_failure(status);
    return;
  }
  REQUIRE(config.hidden_size > 0 && config.hidden_size % 128 == 0 && config.q_lora_rank % 128 == 0);
  REQUIRE(config.n_group > 0 && config.n_routed_experts % config.n_group == 0);
  REQUIRE(config.topk_group > 0 && config.topk_group <= config.n_group);
  REQUIRE(config.num_experts_per_tok <= config.topk_group * (config.n_routed_experts / config.n_group));
  REQUIRE(config.first_k_dense_replace <= config.num_hidden_layers);
  REQUIRE(config.bos_token_id >= -1 && config.bos_token_id < config.vocab_size);
  REQUIRE(config.eos_token_id >= -1 && config.eos_token_id < config.vocab_size);
  REQUIRE(isfinite(config.rms_norm_eps) && config.rms_norm_eps > 0 && isfinite(config.routed_scaling_factor));
  float table[3 * TDM_ROPE_DIM];
  tdm_rope_table_fill(&config.rope, 3, table);
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) REQUIRE(isfinite(table[i]));
  const float scale = tdm_rope_softmax_scale(&config.rope, config.qk_nope_head_dim + config.qk_rope_head_dim);
  REQUIRE(isfinite(scale) && scale > 0);
}

static void fuzz_index(const uint8_t* text, size_t n_bytes) {
  write_file("model.safetensors.index.json", text, n_bytes);
  tdm_checkpoint* checkpoint = NULL;
  const tdm_status status = tdm_checkpoint_open(runtime, directory, &checkpoint);
  REQUIRE((checkpoint != NULL) == (status == TDM_OK));
  if (status != TDM_OK) {
    require_failure(status);
    return;
  }
  const int64_t n = tdm_checkpoint_count(checkpoint);
  REQUIRE(n == 1 || n == 2);
  for (int64_t i = 0; i < n; i++) {
    tdm_tensor_info info, found;
    REQUIRE(tdm_checkpoint_get(checkpoint, i, &info) == TDM_OK);
    require_tensor(&info);
    REQUIRE(tdm_checkpoint_find(checkpoint, info.name, &found) && found.data == info.data);
    REQUIRE(*(const uint8_t*)info.data == 7);
  }
  tdm_checkpoint_close(checkpoint);
}

/* What was accepted makes sense, can be written, and is then read as it was; and the words for what does not fit are
 * printable. */
static void require_tuning(tdm_tuning* tuning) {
  char path[128], why[320];
  snprintf(path, sizeof path, "%s/again.json", directory);
  for (int32_t i = 0; i < tdm_tuning_count(tuning); i++) {
    tdm_tuning_entry entry = {.size = sizeof entry};
    REQUIRE(tdm_tuning_get(tuning, i, &entry) == TDM_OK);
    REQUIRE(entry.n_tokens >= 1 && entry.time_ns >= 1 && entry.default_ns >= 1 && entry.tried >= 1);
    REQUIRE(entry.choice.strategy >= TDM_STRATEGY_SERIAL && entry.choice.strategy <= TDM_STRATEGY_SPLIT);
    REQUIRE((entry.choice.strategy == TDM_STRATEGY_SERIAL) == (entry.choice.side_sms == 0));
    REQUIRE(entry.choice.side_sms >= 0 && entry.choice.side_sms <= 1024);
  }
  const tdm_tuning_identity identity = {"a device", "a library", "layers"};
  tdm_tuning_difference(tuning, &identity, why, sizeof why);
  require_printable(why);
  tdm_tuning* again;
  REQUIRE(tdm_tuning_write(tuning, path) == TDM_OK);
  REQUIRE(tdm_tuning_read(runtime, path, &again) == TDM_OK);
  REQUIRE(tdm_tuning_count(again) == tdm_tuning_count(tuning));
  tdm_tuning_destroy(again);
}

static void fuzz_tuning(const void* text, size_t n_bytes) {
  char path[128];
  snprintf(path, sizeof path, "%s/tuning.json", directory);
  write_file("tuning.json", text, n_bytes);
  tdm_tuning* tuning;
  const tdm_status status = tdm_tuning_read(runtime, path, &tuning);
  REQUIRE((tuning != NULL) == (status == TDM_OK));
  if (status == TDM_OK)
    require_tuning(tuning);
  else
    require_failure(status);
  tdm_tuning_destroy(tuning);
}

/* The refusal of a wrong checksum names the right one. */
static void fuzz_entries(const char* entries, size_t n_bytes) {
  static char text[8192];
  if (n_bytes == 0 || n_bytes > 7000) return;
  const int length =
      snprintf(text, sizeof text,
               "{\"format\":\"tandem tuning\",\"version\":1,\"checksum\":\"fnv1a64:0000000000000000\",\"entries\":");
  REQUIRE(length > 0);
  memcpy(text + length, entries, n_bytes);
  text[(size_t)length + n_bytes] = '}';
  fuzz_tuning(text, (size_t)length + n_bytes + 1);
  const tdm_error* error = tdm_last_error();
  const char* right = error->status == TDM_CORRUPT ? strstr(error->message, "and \"fnv1a64:") : NULL;
  if (!right) return;
  memcpy(strstr(text, "fnv1a64:"), right + 5, 24);
  fuzz_tuning(text, (size_t)length + n_bytes + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t n_bytes) {
  if (n_bytes < 1) return 0;
  const uint8_t kind = bytes[0];
  /* A copy without the first byte, so that what is read lies at the start of a block and ends with it. */
  n_bytes--;
  uint8_t* copy = n_bytes ? malloc(n_bytes) : NULL;
  if (n_bytes) memcpy(copy, bytes + 1, n_bytes);
  switch (kind) {
  case 's':
    fuzz_safetensors((const char*)copy, n_bytes);
    break;
  case 'h':
    fuzz_header(copy, n_bytes);
    break;
  case 'c':
    fuzz_config((const char*)copy, n_bytes);
    break;
  case 'i':
    fuzz_index(copy, n_bytes);
    break;
  case 't':
    fuzz_tuning(copy, n_bytes);
    break;
  case 'e':
    fuzz_entries((const char*)copy, n_bytes);
    break;
  default:
    break;
  }
  free(copy);
  return 0;
}

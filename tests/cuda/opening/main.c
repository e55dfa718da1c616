/* cuda_opening WORDS: making a runtime on cuda:0 answers UNSUPPORTED with these words; the host device can be used all
 * the same. Skipped where a driver is found. */

#include <stdio.h>
#include <string.h>

#include "tandem/tandem.h"

static int try(tdm_device_kind kind, tdm_status expected, const char* words) {
  tdm_runtime_config config;
  tdm_runtime* runtime;
  (void)tdm_runtime_config_init(&config, sizeof config);
  config.device_kind = kind;
  const tdm_status status = tdm_runtime_create(&config, &runtime);
  const char* message = status == TDM_OK ? "" : tdm_last_error()->message;
  (void)tdm_runtime_destroy(runtime);
  if (status == TDM_OK && expected != TDM_OK) {
    printf("skipped: this machine has a CUDA driver\n");
    return 77;
  }
  printf("%s: %s\n", tdm_status_name(status), message);
  return status == expected && strstr(message, words) && (status == TDM_OK || strstr(message, "cuda:0")) ? 0 : 1;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int result = try(TDM_DEVICE_CUDA, TDM_UNSUPPORTED, argv[1]);
  return result ? result : try(TDM_DEVICE_HOST, TDM_OK, "");
}

/* Hopper kernels against the references.  gpu_test [test | quick | load] [op...]
 *   test (default): everything but soak, which runs when it is named;  quick: small sizes only, for compute-sanitizer;
 *   load: keeps the GPU busy until it is killed (soak starts it). */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/gpu/gpu.h"

static const struct {
  const char* name;
  void (*run)(gpu_rig* rig, bool quick);
} tests[] = {{"rmsnorm", test_rmsnorm},
             {"quant", test_quant},
             {"gemm_fp8", test_gemm_fp8},
             {"bmm_fp8", test_bmm_fp8},
             {"gemm_bf16", test_gemm_bf16},
             {"bmm_quant", test_bmm_quant},
             {"router_gemm", test_router_gemm},
             {"moe_fc1", test_moe_fc1},
             {"moe_fc2", test_moe_fc2},
             {"rope", test_rope},
             {"inverse_rope_quant", test_inverse_rope_quant},
             {"mla_kv_write", test_mla_kv_write},
             {"mla_norm_write", test_mla_norm_write},
             {"mla_qkv_a", test_mla_qkv_a},
             {"mla_absorb", test_mla_absorb},
             {"moe_route", test_moe_route},
             {"moe_gate", test_moe_gate},
             {"moe_norm_gate", test_moe_norm_gate},
             {"moe_chosen", test_moe_chosen},
             {"mla_decode", test_mla_decode},
             {"mla_prefill", test_mla_prefill},
             {"embedding", test_embedding},
             {"gather_rows", test_gather_rows},
             {"argmax", test_argmax},
             {"sample", test_sample},
             {"sample_edges", test_sample_edges},
             {"runtimes", test_runtimes},
             {"lanes", test_lanes},
             {"memory", test_memory},
             {"model", test_model},
             {"grouped_gemm_fp8", test_grouped_gemm_fp8},
             {"ways", test_ways},
             {"soak", test_soak}};

static bool wanted(int argc, char** argv, const char* name) {
  for (int i = 2; i < argc; i++)
    if (strcmp(argv[i], name) == 0) return true;
  return argc <= 2 && strcmp(name, "soak") != 0;
}

static double seconds(void) {
  struct timespec now;
  (void)clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char** argv) {
  (void)setvbuf(stdout, NULL, _IOLBF, 0);
  const char* mode = argc > 1 ? argv[1] : "test";
  if (strcmp(mode, "load") == 0) return gpu_load_main();
  gpu_rig rig;
  const char* problem = gpu_open(&rig);
  int count = (int)(sizeof tests / sizeof *tests);
  if (problem) {
    (void)printf("%s\ngpu: 0 passed, 0 failed, %d skipped\n", problem, count);
    return 77;
  }
  int skipped = 0;
  for (int i = 0; i < count; i++) {
    if (!wanted(argc, argv, tests[i].name)) {
      skipped++;
      continue;
    }
    int passed = rig.passed, failed = rig.failed;
    const double start = seconds();
    rig.worst = (gpu_worst){0};
    tests[i].run(&rig, strcmp(mode, "quick") == 0);
    (void)printf("%-16s %d passed, %d failed, %.1f s\n", tests[i].name, rig.passed - passed, rig.failed - failed,
                 seconds() - start);
    if (rig.worst.part > 0)
      (void)printf("  worst: tile %.1e of %.1e, all %.1e of %.1e: %s in %s\n", rig.worst.tile, 10 * rig.worst.tolerance,
                   rig.worst.all, rig.worst.tolerance, rig.worst.tensor, rig.worst.label);
  }
  gpu_close(&rig);
  (void)printf("gpu: %d passed, %d failed, %d skipped\n", rig.passed, rig.failed, skipped);
  return rig.failed > 0;
}

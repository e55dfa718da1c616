#include "kernels/mla_norm_write/mla_norm_write_sm90.h"

#include <stdio.h>

#include "kernels/mla_kv_write/mla_kv_write_sm90.h"
#include "kernels/mla_norm_write/mla_norm_write.h"
#include "kernels/rmsnorm/rmsnorm_sm90.h"

void tdm_mla_norm_write_sm90_launch(const tdm_mla_norm_write_args* args, int32_t sms,
                                    tdm_mla_norm_write_params* out_params, tdm_kernel_launch* out_launch) {
  const tdm_rmsnorm_args norm = tdm_mla_norm_write_norm(args);
  const tdm_mla_kv_write_args write = tdm_mla_norm_write_write(args);
  tdm_mla_norm_write_params params = {0};
  tdm_kernel_launch launch;
  tdm_rmsnorm_sm90_params(&norm, &params.norm);
  tdm_mla_kv_write_sm90_params(&write, &params.write);
  tdm_rmsnorm_sm90_plan(&params.norm, sms, &launch);
  (void)snprintf(launch.kernel, sizeof launch.kernel, "tdm_mla_norm_write_sm90");
  /* Of what fits at once, a row of the norm takes a CTA, a row of the write a warp. */
  const int32_t warps = (int32_t)launch.block / 32, resident = sms * (2048 / (int32_t)launch.block);
  const int32_t wanted = (params.write.rows + warps - 1) / warps, most = (resident + warps) / (warps + 1);
  const int32_t writes = wanted < most ? wanted : most;
  params.norm_ctas = (int32_t)launch.grid < resident - writes ? (int32_t)launch.grid : resident - writes;
  launch.grid = (uint32_t)(params.norm_ctas + writes);
  *out_params = params;
  *out_launch = launch;
}

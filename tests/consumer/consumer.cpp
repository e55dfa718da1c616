// A C++17 user of the installed library: a row is RMS-normalised, on the host device.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <tandem/tandem.h>
#include <vector>

static void check(tdm_status status) {
  if (status != TDM_OK)
    throw std::runtime_error(std::string(tdm_status_name(status)) + ": " + tdm_last_error()->message);
}

template <auto destroy> struct deleter {
  template <typename T> void operator()(T* object) const {
    destroy(object);
  }
};
using runtime_ptr = std::unique_ptr<tdm_runtime, deleter<tdm_runtime_destroy>>;
using buffer_ptr = std::unique_ptr<tdm_buffer, deleter<tdm_buffer_destroy>>;
using program_ptr = std::unique_ptr<tdm_program, deleter<tdm_program_destroy>>;

static buffer_ptr make_buffer(tdm_runtime* runtime, std::size_t bytes) {
  tdm_buffer* buffer = nullptr;
  check(tdm_buffer_create(runtime, bytes, &buffer));
  return buffer_ptr(buffer);
}

static int run() {
  tdm_runtime* raw_runtime = nullptr;
  check(tdm_runtime_create(nullptr, &raw_runtime));
  runtime_ptr runtime(raw_runtime);

  tdm_lane_config lane_config;
  check(tdm_lane_config_init(&lane_config, sizeof lane_config));
  lane_config.name = "main";
  tdm_lane* lane = nullptr;
  check(tdm_lane_get(runtime.get(), &lane_config, &lane));

  const std::vector<float> row{3.0f, -4.0f, 0.0f, 5.0f};
  const std::size_t bytes = row.size() * sizeof(float);
  const std::int64_t shape[] = {1, static_cast<std::int64_t>(row.size())};
  buffer_ptr in = make_buffer(runtime.get(), bytes);
  buffer_ptr out = make_buffer(runtime.get(), bytes);
  check(tdm_buffer_write(in.get(), 0, row.data(), bytes));

  tdm_program* raw_program = nullptr;
  check(tdm_program_create(runtime.get(), "consumer", &raw_program));
  program_ptr program(raw_program);
  tdm_rmsnorm_args args{};
  args.size = sizeof args;
  args.x = tdm_view_make(in.get(), TDM_F32, 2, shape);
  args.out = tdm_view_make(out.get(), TDM_F32, 2, shape);
  check(tdm_append_rmsnorm(program.get(), lane, "norm", &args));
  check(tdm_program_seal(program.get(), nullptr));
  check(tdm_program_launch(program.get(), nullptr));

  std::vector<float> result(row.size());
  check(tdm_buffer_read(out.get(), 0, result.data(), bytes));
  double worst = 0.0;
  for (std::size_t i = 0; i < row.size(); i++) {
    worst = std::fmax(worst, std::fabs(result[i] - row[i] / std::sqrt(12.5 + 1e-6)));
  }
  std::printf("tandem %s: off by %.1e\n", tdm_version(), worst);
  return worst < 1e-6 ? 0 : 1;
}

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

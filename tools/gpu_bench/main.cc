// gpu_bench: what a GPU is, whether its functions and ops have the CPU's bits, and how fast they
// are.
//
//   gpu_bench device | functions | ops GROUP... [--tensor] [--brief]
//
// Bits are compared with the CPU's; those of tensor cores, by --tensor, with what fewer rows give.
// The last line of `device` and `ops` is JSON. Exit codes: 0; 1 where bits differ or there is no
// GPU; 2 for a wrong command line. One of the emulation is for trying it out.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/command_line.h"
#include "common/machine.h"
#include "tools/gpu_bench/device.h"
#include "tools/gpu_bench/functions.h"
#include "tools/gpu_bench/op_cases.h"

namespace tandem::gpu_bench {
namespace {

using Clock = std::chrono::steady_clock;
using kernels::DeviceTensor;

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "gpu_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}

Ceilings PrintCeilings(bool is_brief) {
  const Ceilings c = MeasureCeilings(is_brief);
  std::printf(
      "ceilings: read %.0f GB/s, copy %.0f GB/s read and written, f32 %.2f TFLOP/s, bf16 by tensor "
      "cores %.1f\n",
      c.read_bytes_per_s * 1e-9, c.copied_bytes_per_s * 1e-9, c.multiply_adds_per_s * 2e-12,
      c.tensor_multiply_adds_per_s * 2e-12);
  return c;
}

int RunDevice(bool is_brief) {
  const absl::StatusOr<std::string> facts = DescribeGpu();
  if (!facts.ok()) return Fail(facts.status());
  std::printf("%s", facts->c_str());
  const Ceilings c = PrintCeilings(is_brief);
  std::printf(
      "{\"read_gb_per_s\": %.1f, \"copy_gb_per_s\": %.1f, \"f32_tflop_per_s\": %.3f, "
      "\"tensor_tflop_per_s\": %.3f}\n",
      c.read_bytes_per_s * 1e-9, c.copied_bytes_per_s * 1e-9, c.multiply_adds_per_s * 2e-12,
      c.tensor_multiply_adds_per_s * 2e-12);
  return 0;
}

std::vector<std::byte> ReadAll(Kit& kit, const DeviceTensor& tensor) {
  std::vector<std::byte> bytes(tensor.bytes());
  kit.backend().Read(tensor, bytes.data())->Wait();
  return bytes;
}

struct Times {
  double median_s, least_s, most_s;  // of a call
};

// Calls that follow each other, since their starts are not what is measured, in batches of 20 ms.
template <typename Run>
Times Measure(Kit& kit, bool is_brief, const Run& run) {
  constexpr double kBatchSeconds = 0.02;
  int64_t turn = 0;
  const auto batch = [&](int64_t calls) {
    kit.Wait();
    const auto begin = Clock::now();
    for (int64_t i = 0; i < calls; ++i) run(turn++);
    kit.Wait();
    return std::chrono::duration<double>(Clock::now() - begin).count() / static_cast<double>(calls);
  };
  if (is_brief) {
    const double once = batch(1);
    return {once, once, once};
  }
  batch(2);
  const auto calls = static_cast<int64_t>(std::clamp(kBatchSeconds / batch(4), 2.0, 2000.0));
  std::vector<double> times(5);
  for (double& time : times) time = batch(calls);
  std::sort(times.begin(), times.end());
  return {times[2], times.front(), times.back()};
}

int RunOps(const std::vector<std::string>& groups, bool is_tensor, bool is_brief) {
  const absl::StatusOr<std::string> facts = DescribeGpu();
  if (!facts.ok()) return Fail(facts.status());
  std::printf("%s\n", facts->substr(0, facts->find('\n')).c_str());
  const Ceilings ceilings = PrintCeilings(is_brief);
  auto gpu_backend = kernels::CreateCudaBackend(
      {0, is_tensor ? kernels::Numerics::kAuto : kernels::Numerics::kPortable});
  if (!gpu_backend.ok()) return Fail(gpu_backend.status());
  auto cpu_backend =
      kernels::CreateCpuBackend(ReadMachineLimits().cpus, kernels::Numerics::kPortable);
  if (!cpu_backend.ok()) return Fail(cpu_backend.status());
  Kit gpu(*std::move(gpu_backend), is_brief ? 1 : size_t{256} << 20);
  Kit cpu(*std::move(cpu_backend), 1);
  Kit& compared = is_tensor ? gpu : cpu;
  const char* const same = is_tensor ? "those of fewer rows" : "the CPU's";
  const double multiply_adds_per_s =
      is_tensor ? ceilings.tensor_multiply_adds_per_s : ceilings.multiply_adds_per_s;

  std::string json;
  bool all_equal = true;
  std::printf(
      "| op | rows | us | least to most | GB/s | floor, us | share of it | bits |\n"
      "|---|---|---|---|---|---|---|---|\n");
  for (const std::string& group : groups) {
    for (const OpCase& c : OpCases(group, is_brief ? BriefWidths() : Widths())) {
      if (is_brief && c.rows > 70) continue;
      const auto run = c.make(gpu, c.rows);
      const std::vector<std::byte> got = ReadAll(gpu, run(0));
      const std::vector<std::byte> want = ReadAll(compared, c.make(compared, c.checked_rows)(0));
      const bool is_equal = std::equal(want.begin(), want.end(), got.begin());
      all_equal = all_equal && is_equal;
      const Times times = Measure(gpu, is_brief, run);
      const double floor_s =
          std::max(c.bytes / ceilings.read_bytes_per_s, c.multiply_adds / multiply_adds_per_s);
      std::printf("| %s | %lld | %.2f | %.2f to %.2f | %.0f | %.2f | %.1f%% | %s |\n",
                  c.name.c_str(), static_cast<long long>(c.rows), times.median_s * 1e6,
                  times.least_s * 1e6, times.most_s * 1e6, c.bytes / times.median_s * 1e-9,
                  floor_s * 1e6, 100 * floor_s / times.median_s, is_equal ? same : "DIFFER");
      std::fflush(stdout);
      absl::StrAppendFormat(
          &json,
          "%s{\"op\": \"%s\", \"rows\": %d, \"us\": %.3f, \"floor_us\": %.3f, \"same_bits\": %s}",
          json.empty() ? "" : ", ", c.name, c.rows, times.median_s * 1e6, floor_s * 1e6,
          is_equal ? "true" : "false");
      gpu.Clear();
      cpu.Clear();
    }
  }
  std::printf("[%s]\n", json.c_str());
  return all_equal ? 0 : 1;
}

}  // namespace
}  // namespace tandem::gpu_bench

int main(int argc, char** argv) {
  tandem::CommandLine app("Measures a GPU and the ops that run on it.");
  app.RequireSubcommand();
  app.TakeFlagsAfterSubcommand();  // --brief may come last
  bool is_brief = false, is_tensor = false;
  std::vector<std::string> groups;
  const auto* const device = app.AddSubcommand("device", "what it is, and what it can do at most");
  const auto* const functions =
      app.AddSubcommand("functions", "its functions beside the CPU's, bit by bit");
  tandem::CommandLine* const ops =
      app.AddSubcommand("ops", "each op at the sizes of V2-Lite: bits, time, share of its floor");
  ops->AddOption("groups", groups, "dense, mla, experts, rest")
      .Required()
      .OneOf({"dense", "mla", "experts", "rest"});
  ops->AddFlag("--tensor", is_tensor, "bf16 by tensor cores, in their own order of additions");
  app.AddFlag("--brief", is_brief, "small sizes, each once: for an emulation");
  if (const auto code = app.Parse(argc, argv)) return *code;
  if (device->given()) return tandem::gpu_bench::RunDevice(is_brief);
  if (functions->given()) return tandem::gpu_bench::CompareFunctions(is_brief) ? 0 : 1;
  return tandem::gpu_bench::RunOps(groups, is_tensor, is_brief);
}

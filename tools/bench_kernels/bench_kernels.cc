// Times the products of bf16 that bound a step, beside what the machine can do at most, measured in
// the same run: stream bandwidth for one row, the fastest instructions for floats for many. Each
// result is checked first.
//
//   bench_kernels [threads]        0 or nothing: one per core

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "common/machine.h"
#include "kernels/backend.h"
#include "kernels/cpu/bf16.h"
#include "tools/ceilings/ceilings.h"

namespace tandem::kernels {
namespace {

struct Timing {
  double median_s;
  double spread;  // (third quartile - first) / median
};

template <typename Fn>
Timing Measure(Fn fn) {
  constexpr int kRuns = 15;
  fn();
  std::vector<double> seconds;
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    seconds.push_back(time.count());
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[kRuns / 2];
  return {median, (seconds[kRuns * 3 / 4] - seconds[kRuns / 4]) / median};
}

// The operands of a bf16 product [rows, k] x [n, k], of values that repeat.
struct Product {
  Product(int64_t rows, int64_t n, int64_t k) : x(rows * k), weight(n * k), rows(rows), n(n), k(k) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = Value(i);
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = Value(i * 7);
  }
  static BF16 Value(size_t i) {
    return cpu::RoundToBF16(static_cast<float>(i % 251) / 251.0f - 0.5f);
  }
  // Looks at some of the outputs `out`, [rows, n].
  bool IsRight(const std::vector<float>& out) const {
    for (int64_t row : {int64_t{0}, rows - 1}) {
      for (int64_t j = 0; j < n; j += 97) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          sum += static_cast<double>(cpu::WidenBF16(x[row * k + i])) *
                 cpu::WidenBF16(weight[j * k + i]);
        }
        if (std::abs(out[row * n + j] - sum) > 1e-5 * static_cast<double>(k)) return false;
      }
    }
    return true;
  }

  std::vector<BF16> x, weight;
  const int64_t rows, n, k;
};

// Of the machine, per second.
struct Ceilings {
  double bandwidth;  // bytes read
  double flop_rate;
};

// Prints one line. INTERNAL: the result is wrong.
absl::Status Bench(Backend& backend, const char* name, int64_t rows, int64_t n, int64_t k,
                   const Ceilings& ceilings) {
  const auto product = std::make_shared<Product>(rows, n, k);
  auto x_memory = backend.Allocate(product->x.size() * sizeof(BF16));
  if (!x_memory.ok()) return x_memory.status();
  auto out_memory = backend.Allocate(rows * n * sizeof(float));
  if (!out_memory.ok()) return out_memory.status();
  auto weight = backend.PrepareLinear(
      {TensorView(product->weight.data(), Dtype::kBF16, {n, k}), product}, WeightFormat::kBF16);
  if (!weight.ok()) return weight.status();
  const LinearArgs args = {(*x_memory)->Tensor(Dtype::kBF16, {rows, k}), **weight,
                           (*out_memory)->Tensor(Dtype::kF32, {rows, n})};
  backend.Write(product->x.data(), args.x);
  backend.Linear(args);
  std::vector<float> out(rows * n);
  backend.Read(args.out, out.data())->Wait();
  if (!product->IsRight(out)) return absl::InternalError("The result is wrong");
  const Timing timing = Measure([&] { backend.Linear(args); });
  const double bytes_rate = 2.0 * static_cast<double>(n * k) / timing.median_s;
  const double rate = 2.0 * static_cast<double>(rows * n * k) / timing.median_s;
  std::printf("%-22s %8.3f ms +-%3.0f%%  %6.1f GB/s (%3.0f%%)  %7.1f GFLOP/s (%3.0f%%)\n", name,
              timing.median_s * 1e3, timing.spread * 50, bytes_rate * 1e-9,
              100 * bytes_rate / ceilings.bandwidth, rate * 1e-9, 100 * rate / ceilings.flop_rate);
  return absl::OkStatus();
}

int Main(int num_threads) {
  auto backend = CreateCpuBackend(num_threads);
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 1;
  }
  const int threads = num_threads > 0 ? num_threads : ReadMachineLimits().cpus;
  const std::vector<ReadRate> reads = MeasureReadRates(threads);
  if (reads.empty()) {
    std::fprintf(stderr, "There is no memory to measure reads in\n");
    return 1;
  }
  const Ceilings ceilings = {reads.front().bytes_per_s, FloatPeakRate(MeasurePeakRates(threads))};
  std::printf("%s; ceilings: %.1f GB/s read, %.1f GFLOP/s\n", (*backend)->Description().c_str(),
              ceilings.bandwidth * 1e-9, ceilings.flop_rate * 1e-9);
  bool succeeded = true;
  const auto bench = [&](const char* name, int64_t rows, int64_t n, int64_t k) {
    const absl::Status status = Bench(**backend, name, rows, n, k, ceilings);
    if (!status.ok()) std::fprintf(stderr, "%s: %s\n", name, status.ToString().c_str());
    succeeded &= status.ok();
  };
  bench("gate_proj, 1 row", 1, 10944, 2048);
  bench("gate_proj, 4 rows", 4, 10944, 2048);
  bench("gate_proj, 64 rows", 64, 10944, 2048);
  bench("down_proj, 64 rows", 64, 2048, 10944);
  bench("gate_proj, 512 rows", 512, 10944, 2048);
  bench("down_proj, 512 rows", 512, 2048, 10944);
  bench("lm_head, 1 row", 1, 102400, 2048);
  bench("lm_head, 2 rows", 2, 102400, 2048);
  bench("lm_head, 4 rows", 4, 102400, 2048);
  return succeeded ? 0 : 1;
}

}  // namespace
}  // namespace tandem::kernels

int main(int argc, char** argv) {
  int num_threads = 0;
  if (argc > 2 || (argc == 2 && !absl::SimpleAtoi(argv[1], &num_threads))) {
    std::fprintf(stderr, "Usage: %s [threads]\n", argv[0]);
    return 2;
  }
  return tandem::kernels::Main(num_threads);
}

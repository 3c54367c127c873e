#include "tools/gpu_bench/functions.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/cpu/flushed.h"
#include "kernels/cpu/row_ops.h"
#include "tools/gpu_bench/device.h"

namespace tandem::gpu_bench {
namespace {

bool SameBits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

// Every `step`th of all floats.
bool CompareExp(uint64_t step) {
  constexpr uint64_t kAtOnce = 1 << 24;
  int64_t all = 0, different = 0;
  float example = 0;
  std::vector<float> x;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += step) {
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
    if (x.size() < kAtOnce && bits + step < uint64_t{1} << 32) continue;
    std::vector<float> want(x.size());
    kernels::cpu::ExpRow(x.data(), static_cast<int64_t>(x.size()), want.data());
    const std::vector<float> got = DeviceExp(x);
    for (size_t i = 0; i < x.size(); ++i) {
      if (SameBits(got[i], want[i])) continue;
      example = x[i];
      ++different;
    }
    all += static_cast<int64_t>(x.size());
    x.clear();
  }
  std::printf("exp of %lld floats of all kinds: %lld differ", static_cast<long long>(all),
              static_cast<long long>(different));
  if (different > 0) std::printf(", such as exp(%a)", example);
  std::printf("\n");
  return different == 0;
}

// Products and sums around the smallest normal number, 2^-126. `rounded_up`: those that are below
// it before they are rounded, which is where CUDA's documents leave open what is flushed.
bool CompareFlushedFma(int64_t count) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> near_one(1 - 0x1p-22, 1 + 0x1p-22), wide(0.25, 4);
  std::vector<float> a(count), b(count), c(count);
  for (int64_t i = 0; i < count; ++i) {
    const bool is_near = i % 2 == 0;
    const int exponent = static_cast<int>(random() % 100) - 50;
    const double factor = wide(random), product = is_near ? near_one(random) : wide(random);
    a[i] = std::ldexp(static_cast<float>(factor), -63 + exponent);
    b[i] = std::ldexp(static_cast<float>(product / factor), -63 - exponent);
    // Nothing; a denormal, which counts as nothing; a normal number that is nearly taken away.
    const float addends[] = {0.0f, std::ldexp(static_cast<float>(wide(random)), -130),
                             -std::ldexp(static_cast<float>(wide(random)), -126)};
    c[i] = addends[i / 2 % 3];
    if (i / 6 % 2 == 1) a[i] = -a[i];
  }
  const std::vector<float> got = DeviceFlushedFma(a, b, c);
  int64_t different = 0, rounded_up = 0, rounded_up_different = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float want = kernels::cpu::FlushedFma(a[i], b[i], c[i]);
    // Exact in double: 48 bits of product, of an exponent that the sum is near.
    const double exact = static_cast<double>(a[i]) * b[i] + kernels::cpu::Flushed(c[i]);
    const bool is_rounded_up =
        std::abs(exact) < 0x1p-126 && std::abs(static_cast<float>(exact)) == 0x1p-126f;
    const bool is_different = !SameBits(got[i], want);
    rounded_up += is_rounded_up ? 1 : 0;
    rounded_up_different += is_rounded_up && is_different ? 1 : 0;
    if (is_different && different++ == 0) {
      std::printf("fma.ftz(%a, %a, %a) is %a, the CPU's %a\n", a[i], b[i], c[i], got[i], want);
    }
  }
  std::printf("fma.ftz of %lld near 2^-126: %lld differ; of %lld that round up to it, %lld\n",
              static_cast<long long>(count), static_cast<long long>(different),
              static_cast<long long>(rounded_up), static_cast<long long>(rounded_up_different));
  return different == 0;
}

// Of sums of weights, as a log-probability has them: 1 to 2^17.
bool CompareLog(int64_t count) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> exponent(0, 17);
  std::vector<double> x(count);
  for (double& value : x) value = std::exp2(exponent(random));
  const std::vector<double> got = DeviceLog(x);
  int64_t different = 0, far = 0, different_float = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double want = std::log(x[i]);
    const int64_t places = std::bit_cast<int64_t>(got[i]) - std::bit_cast<int64_t>(want);
    different += places != 0 ? 1 : 0;
    far += std::abs(places) > 1 ? 1 : 0;
    different_float += static_cast<float>(got[i]) != static_cast<float>(want) ? 1 : 0;
  }
  std::printf(
      "log of %lld doubles: %lld differ, %lld of them by more than the last place; as floats "
      "%lld differ\n",
      static_cast<long long>(count), static_cast<long long>(different), static_cast<long long>(far),
      static_cast<long long>(different_float));
  return far == 0;
}

}  // namespace

bool CompareFunctions(bool is_brief) {
  const bool exp = CompareExp(is_brief ? 100'003 : 29);
  const bool fma = CompareFlushedFma(is_brief ? 20'000 : 20'000'000);
  const bool log = CompareLog(is_brief ? 20'000 : 20'000'000);
  return exp && fma && log;
}

}  // namespace tandem::gpu_bench

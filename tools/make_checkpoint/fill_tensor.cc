#include "tools/make_checkpoint/fill_tensor.h"

#include <bit>
#include <cstddef>

#include "absl/strings/match.h"

namespace tandem {
namespace {

constexpr float kDeviation = 0.02f;

uint64_t HashName(absl::string_view name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

uint64_t Mix(uint64_t z) {  // splitmix64's
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

int SumOfBytes(uint64_t word) {
  constexpr uint64_t kEven = 0x00ff00ff00ff00ff, kOnes = 0x0001000100010001;
  const uint64_t pairs = (word & kEven) + ((word >> 8) & kEven);
  return static_cast<int>(pairs * kOnes >> 48);
}

BF16 RoundToBF16(float value) {  // to nearest even; finite
  const auto bits = std::bit_cast<uint32_t>(value);
  return BF16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace

void FillTensor(uint64_t seed, absl::string_view name, absl::Span<BF16> values, int64_t first) {
  constexpr int kMean = 1020;               // of the sum of eight bytes
  constexpr float kSumDeviation = 209.02f;  // sqrt(8 * (256^2 - 1) / 12)
  constexpr float kScale = kDeviation / kSumDeviation;
  const float center = absl::EndsWith(name, "norm.weight") ? 1.0f : 0.0f;
  const uint64_t key = Mix(seed ^ Mix(HashName(name)));
  for (size_t i = 0; i < values.size(); ++i) {
    constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
    const uint64_t random = Mix(key + (static_cast<uint64_t>(first) + i) * kStep);
    const auto offset = static_cast<float>(SumOfBytes(random) - kMean);
    values[i] = RoundToBF16(center + kScale * offset);
  }
}

}  // namespace tandem

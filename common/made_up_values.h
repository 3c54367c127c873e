// Weights that lie in no file: a value is computed from its tensor's key and its position. They are
// those that tools/make_checkpoint writes, so a device may make them where it wants them. For
// benchmarks: a model of them answers nonsense.
#ifndef TANDEM_COMMON_MADE_UP_VALUES_H_
#define TANDEM_COMMON_MADE_UP_VALUES_H_

#include <stdint.h>
#include <string.h>

#include <string_view>

#if defined(__CUDACC__)
#define TANDEM_HOST_DEVICE __host__ __device__
#else
#define TANDEM_HOST_DEVICE
#endif

namespace tandem {

// What decides the values of a tensor.
struct MadeUpTensor {
  uint64_t key;
  float center;  // their mean
};

TANDEM_HOST_DEVICE inline uint64_t MixBits(uint64_t z) {  // splitmix64's
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Of the tensor `name` of the model that `seed` makes: around 1 for norms ("...norm.weight"), 0 for
// all others.
inline MadeUpTensor MakeUpTensor(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  constexpr std::string_view kNorm = "norm.weight";
  const bool is_norm =
      name.size() >= kNorm.size() && name.substr(name.size() - kNorm.size()) == kNorm;
  return {MixBits(seed ^ MixBits(hash)), is_norm ? 1.0f : 0.0f};
}

// The bf16 bits of the value at `index`, rounded to nearest even. Normal with a standard deviation
// of 0.02 as far as the sum of eight uniform bytes is normal: to 4.9 standard deviations.
TANDEM_HOST_DEVICE inline uint16_t MadeUpBits(const MadeUpTensor& tensor, uint64_t index) {
  constexpr int kMean = 1020;               // of the sum of eight bytes
  constexpr float kSumDeviation = 209.02f;  // sqrt(8 * (256^2 - 1) / 12)
  constexpr float kScale = 0.02f / kSumDeviation;
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
  constexpr uint64_t kEven = 0x00ff00ff00ff00ff, kOnes = 0x0001000100010001;
  const uint64_t random = MixBits(tensor.key + index * kStep);
  const uint64_t pairs = (random & kEven) + ((random >> 8) & kEven);
  const int sum = static_cast<int>(pairs * kOnes >> 48);
  const float value = tensor.center + kScale * static_cast<float>(sum - kMean);
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace tandem

#endif  // TANDEM_COMMON_MADE_UP_VALUES_H_

#include <xxhash.h>

#include "kernels/ops/sample.h"

namespace tandem::kernels {
namespace {

uint64_t RandomBits(uint64_t seed, uint32_t choice, int32_t position) {
  unsigned char bytes[12];
  const auto wide_position = static_cast<uint64_t>(static_cast<int64_t>(position));
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<unsigned char>(choice >> (8 * i));
  for (int i = 0; i < 8; ++i) bytes[4 + i] = static_cast<unsigned char>(wide_position >> (8 * i));
  return XXH3_64bits_withSeed(bytes, sizeof(bytes), seed);
}

}  // namespace

SampleRow MakeSampleRow(const SamplingParams& params, int32_t position) {
  return {params.temperature, params.top_k, params.top_p,
          RandomBits(params.seed, params.choice, position), params.min_p};
}

}  // namespace tandem::kernels

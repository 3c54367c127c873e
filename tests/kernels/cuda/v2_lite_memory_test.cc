// The arithmetic of DeepSeek-V2-Lite in bf16 on one card of 40 GB, with the real shapes through the
// arena that the backend uses: all weights, 200,000 tokens of latent cache, and what passes need.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/pages.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/expert_mlp.h"
#include "kernels/cuda/mla_absorbed.h"
#include "kernels/cuda/mla_expanded.h"
#include "kernels/device_access.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int64_t kVocab = 102400, kHidden = 2048, kLayers = 27, kHeads = 16;
constexpr int64_t kNope = 128, kRope = 64, kValue = 128, kLatent = 512;
constexpr int64_t kDense = 10944, kExpertWidth = 1408, kExperts = 64, kShared = 2, kTopK = 6;
constexpr size_t kBf16 = 2;
constexpr int64_t kTokens = 200000;
constexpr int64_t kRows = 2048 + 64;  // of the largest pass: --max-batch-rows and decoding streams
// What a card sold as 40 GB has free is above 39 GiB; --gpu-memory 38GiB.
constexpr size_t kBudget = size_t{38} << 30;

// Elements of each tensor, in the order of loading.
std::vector<int64_t> Weights() {
  std::vector<int64_t> elements = {kVocab * kHidden};
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    elements.insert(
        elements.end(),
        {kHidden, kHeads * (kNope + kRope) * kHidden, (kLatent + kRope) * kHidden, kLatent,
         kHeads * (kNope + kValue) * kLatent, kHidden * kHeads * kValue, kHidden});
    const int64_t width = layer == 0 ? kDense : kShared * kExpertWidth;
    elements.insert(elements.end(), 3, width * kHidden);
    if (layer == 0) continue;
    elements.push_back(kExperts * kHidden);
    elements.insert(elements.end(), 3 * kExperts, kExpertWidth * kHidden);
  }
  elements.insert(elements.end(), {kHidden, kVocab * kHidden});
  return elements;
}

TEST(V2LiteMemoryTest, FortyGigabytesHoldTheBf16ModelAndTwoHundredThousandTokens) {
  Arena arena(kBudget);
  int64_t weights = 0;
  for (const int64_t elements : Weights()) {
    ASSERT_TRUE(arena.Take(static_cast<size_t>(elements) * kBf16).has_value());
    weights += elements;
  }
  EXPECT_EQ(weights, 15706484224);  // the checkpoint's 31.4 GB

  const int64_t pages = PagesFor(kTokens);
  size_t cache_bytes = 0;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const size_t bytes = static_cast<size_t>(pages * kPageTokens * (kLatent + kRope)) * kBf16;
    ASSERT_TRUE(arena.Take(bytes).has_value()) << "layer " << layer;
    cache_bytes += bytes;
  }
  EXPECT_EQ(cache_bytes, static_cast<size_t>(pages * kPageTokens) * 31104);

  // A pass's tensors, none of them reused: residual stream, norms, queries, latents, attention's
  // result, routes' rows, the dense layer's gate and up; then what single ops take.
  const int64_t row = 4 * kHidden + kHeads * (kNope + kRope) + (kLatent + kRope) + kHeads * kValue +
                      kTopK * kHidden + 2 * kDense;
  ASSERT_TRUE(arena.Take(static_cast<size_t>(kRows * row) * kBf16).has_value());
  const int64_t absorbed_row = 2 * kHeads * kLatent;  // f32
  ASSERT_TRUE(arena.Take(static_cast<size_t>(kRows * absorbed_row) * sizeof(float)).has_value());
  ASSERT_TRUE(arena.Take(static_cast<size_t>(64 * kVocab) * sizeof(float)).has_value());  // logits
  ASSERT_TRUE(arena.Take(ExpertMlpScratchBytes(kRows * kTopK, kExperts, kExpertWidth, Dtype::kBF16))
                  .has_value());
  MlaExpandedTensors expanded;
  expanded.q =
      DeviceAccess::Tensor(nullptr, TensorLayout(Dtype::kBF16, {kRows, kHeads, kNope + kRope}));
  expanded.shape = {kHeads, kNope, kValue, kLatent};
  ASSERT_TRUE(arena.Take(MlaExpandedScratchBytes(expanded)).has_value());
  MlaAbsorbedTensors absorbed;  // the rows that the model asks for at once, of the longest context
  absorbed.q =
      DeviceAccess::Tensor(nullptr, TensorLayout(Dtype::kBF16, {512, kHeads, kNope + kRope}));
  absorbed.lengths = DeviceAccess::Tensor(nullptr, TensorLayout(Dtype::kI32, {512}));
  absorbed.page_tables = DeviceAccess::Tensor(nullptr, TensorLayout(Dtype::kI32, {512, 4096}));
  ASSERT_TRUE(
      arena.Take(MlaAbsorbedScratchBytes(absorbed, SplitMlaAbsorbed(absorbed))).has_value());
  // As much again may be fragmented or forgotten above.
  EXPECT_GE(arena.largest_bytes(), size_t{1} << 30);
}

}  // namespace
}  // namespace tandem::kernels::cuda

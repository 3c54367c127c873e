#include "deployment/memory_needs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

// Of kv_b_proj, half of which are the keys: those are kept in two orders.
int64_t KeyElements(const Checkpoint& checkpoint) {
  int64_t elements = 0;
  for (const auto& [name, location] : checkpoint.tensors()) {
    if (!absl::EndsWith(name, "kv_b_proj.weight")) continue;
    elements += location.entry.shape[0] * location.entry.shape[1] / 2;
  }
  return elements;
}

TEST(MemoryNeedsTest, CountsWeightsAsTheirFormatHasThem) {
  const auto checkpoint = Checkpoint::Open(std::string(TANDEM_SOURCE_DIR) + "/tests/golden/tiny");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto& all = [](const std::string&) { return true; };
  const int64_t in_files = TensorBytes(**checkpoint, all);
  int64_t elements = 0;
  for (const auto& [name, location] : (*checkpoint)->tensors()) {
    int64_t count = 1;
    for (const int64_t dim : location.entry.shape) count *= dim;
    elements += count;
  }
  const auto bytes = [&](WeightFormat format) {
    return ExpertBytes(**checkpoint, format) + OtherBytes(**checkpoint, format);
  };
  EXPECT_EQ(bytes(WeightFormat::kF32), in_files + 2 * KeyElements(**checkpoint));
  EXPECT_EQ(bytes(WeightFormat::kBF16), 2 * (elements + KeyElements(**checkpoint)));
  EXPECT_EQ(ExpertBytes(**checkpoint, WeightFormat::kF32),
            TensorBytes(**checkpoint, IsRoutedExpert));
}

TEST(MemoryNeedsTest, CountsWhatLoadingLeavesInMemoryForEveryDtypeAndFormat) {
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF16, Dtype::kF32}) {
    ScratchDir dir;
    WriteRandomCheckpoint(dir.path(), kSmallConfig, 1, dtype);
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16}) {
      const bool narrow = format == WeightFormat::kBF16 || dtype == Dtype::kBF16;
      int64_t loaded = KeyElements(**checkpoint) * (narrow ? 2 : 4);
      for (const auto& [name, location] : (*checkpoint)->tensors()) {
        loaded += static_cast<int64_t>((*checkpoint)->Load(name, format)->view.bytes());
      }
      EXPECT_EQ(ExpertBytes(**checkpoint, format) + OtherBytes(**checkpoint, format), loaded)
          << DtypeName(dtype) << " as " << WeightFormatName(format);
    }
  }
}

TEST(MemoryNeedsTest, AConfigAloneSaysWhatItsCheckpointOfBf16Needs) {
  std::string tied = kSmallConfig;
  const std::string flag = "\"tie_word_embeddings\": ";
  tied.replace(tied.find(flag + "false"), flag.size() + 5, flag + "true");
  for (const std::string& config : {std::string(kSmallConfig), tied}) {
    ScratchDir dir;
    WriteRandomCheckpoint(dir.path(), config, 1, Dtype::kBF16);
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8, WeightFormat::kInt4}) {
      EXPECT_EQ(ExpertBytes((*checkpoint)->config(), format), ExpertBytes(**checkpoint, format));
      EXPECT_EQ(OtherBytes((*checkpoint)->config(), format), OtherBytes(**checkpoint, format));
    }
  }
}

TEST(MemoryNeedsTest, CountsAnEmbeddingThatIsAlsoTheLastMatrixTwice) {
  std::string tied = kSmallConfig;
  const std::string flag = "\"tie_word_embeddings\": ";
  tied.replace(tied.find(flag + "false"), flag.size() + 5, flag + "true");
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
    int64_t bytes[2];
    for (const bool is_tied : {false, true}) {
      ScratchDir dir;
      WriteRandomCheckpoint(dir.path(), is_tied ? tied : kSmallConfig, 1);
      const auto checkpoint = Checkpoint::Open(dir.path());
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      bytes[is_tied] = OtherBytes(**checkpoint, format);
    }
    EXPECT_EQ(bytes[true], bytes[false]) << WeightFormatName(format);
  }
}

TEST(MemoryNeedsTest, TheRealModelsCacheIs31104BytesAToken) {
  ModelConfig config;
  config.num_layers = 27;
  config.kv_lora_rank = 512;
  config.qk_rope_head_dim = 64;
  EXPECT_EQ(CacheBytes(config, Dtype::kBF16, 6400), 6400 * 31104);
  EXPECT_EQ(CacheBytes(config, Dtype::kBF16, 1), 64 * 31104);
}

TEST(MemoryNeedsTest, AutoIsTheBestFormatThatFits) {
  ScratchDir dir;
  WriteRandomCheckpoint(dir.path(), kSmallConfig, 1);
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto with = [&](WeightFormat format) {
    return ExpertBytes(**checkpoint, format) + OtherBytes(**checkpoint, format);
  };
  MachineLimits limits;
  limits.memory_from = "the machine";
  const auto choose = [&](Dtype mode, int64_t cache, int64_t memory) {
    limits.memory_bytes = memory;
    return ChooseWeights(**checkpoint, mode, cache, limits, [](WeightFormat) { return true; });
  };
  const int64_t cache = 100'000;
  const auto all = [&](WeightFormat format) { return (with(format) + cache) * 21 / 20 + 1; };
  const auto format = [&](int64_t memory) { return choose(Dtype::kBF16, cache, memory).format; };
  EXPECT_EQ(format(all(WeightFormat::kBF16)), WeightFormat::kBF16);
  EXPECT_EQ(format(all(WeightFormat::kBF16) - 100), WeightFormat::kInt8);
  EXPECT_EQ(format(all(WeightFormat::kInt8)), WeightFormat::kInt8);
  EXPECT_EQ(format(all(WeightFormat::kInt8) - 100), WeightFormat::kInt4);
  EXPECT_EQ(format(0), WeightFormat::kInt4);  // CheckMemory refuses it
  EXPECT_EQ(choose(Dtype::kF32, 0, kGiB).format, WeightFormat::kF32);
  EXPECT_THAT(choose(Dtype::kBF16, 2 * kGiB, kGiB).why,
              HasSubstr("int4 needs 2.00 GiB and does not fit into 1.00 GiB (the machine)"));
  EXPECT_THAT(choose(Dtype::kBF16, 0, kGiB).why, HasSubstr(" MiB and fits into 1.00 GiB"));
}

TEST(MemoryNeedsTest, WhatDoesNotFitIsRefusedAndSaysWhatWould) {
  MachineLimits limits;
  limits.memory_bytes = 24 * kGiB;
  limits.memory_from = "cgroup memory limit";
  EXPECT_TRUE(CheckMemory({20 * kGiB, 4 * kGiB}, limits).ok());
  EXPECT_FALSE(CheckMemory({20 * kGiB, 4 * kGiB, 1}, limits).ok());
  const absl::Status cache = CheckMemory({20 * kGiB, 4 * kGiB + 1}, limits);
  EXPECT_EQ(cache.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(cache.message()),
              HasSubstr("weights need 20.00 GiB and the latent cache 4.00 GiB of 24.00 GiB (cgroup "
                        "memory limit); a smaller --cache-tokens would fit"));
  const absl::Status weights = CheckMemory({30 * kGiB, 0}, limits);
  EXPECT_THAT(std::string(weights.message()), HasSubstr("--weights"));
}

}  // namespace
}  // namespace tandem

#include "common/checkpoint/digest.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::MatchesRegex;

class DigestTest : public testing::Test {
 protected:
  static std::string Digest(const std::vector<RawTensor>& tensors, int num_files = 1,
                            const std::string& config = kSmallConfig) {
    const ScratchDir dir;
    WriteCheckpoint(dir.path(), config, tensors, num_files);
    return DigestOf(dir);
  }

  static std::string DigestOf(const ScratchDir& dir) {
    const auto checkpoint = Checkpoint::Open(dir.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto digest = CheckpointDigest(**checkpoint);
    EXPECT_TRUE(digest.ok()) << digest.status();
    return *digest;
  }

  static std::vector<RawTensor> Tensors(uint64_t seed, Dtype dtype = Dtype::kBF16) {
    return RandomTensors(*ParseModelConfig(kSmallConfig, "small"), seed, dtype);
  }

  static std::string Replace(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }
};

TEST_F(DigestTest, IsThirtyTwoHexadecimalDigitsAndStable) {
  const std::string digest = Digest(Tensors(1));
  EXPECT_THAT(digest, MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(digest, Digest(Tensors(1)));
}

TEST_F(DigestTest, DoesNotDependOnFilesOrderOrAlignment) {
  std::vector<RawTensor> tensors = Tensors(1);
  const std::string digest = Digest(tensors);
  EXPECT_EQ(digest, Digest(tensors, /*num_files=*/3));
  std::reverse(tensors.begin(), tensors.end());
  EXPECT_EQ(digest, Digest(tensors));
  const ScratchDir dir;
  WriteFile(dir.File("config.json"), kSmallConfig);
  WriteFile(dir.File("model.safetensors"), SafetensorsBytes(tensors, /*padding=*/5));
  EXPECT_EQ(digest, DigestOf(dir));
}

TEST_F(DigestTest, DoesNotDependOnHowTheConfigIsWritten) {
  const std::string digest = Digest(Tensors(1));
  EXPECT_EQ(digest, Digest(Tensors(1), 1,
                           Replace(kSmallConfig, "\"rope_theta\": 10000",
                                   "\"rope_theta\": 10000.0, \"use_cache\": true")));
}

TEST_F(DigestTest, TellsWeightsOfEqualShapesApart) {
  EXPECT_NE(Digest(Tensors(1)), Digest(Tensors(2)));
}

TEST_F(DigestTest, TellsDtypesApart) {
  EXPECT_NE(Digest(Tensors(1)), Digest(Tensors(1, Dtype::kF16)));
}

TEST_F(DigestTest, SeesAChangeOfAnySingleTensor) {
  std::vector<RawTensor> tensors = Tensors(1);
  std::set<std::string> digests = {Digest(tensors)};
  for (RawTensor& tensor : tensors) {
    tensor.bytes.back() = static_cast<char>(tensor.bytes.back() ^ 1);  // the tail is sampled
    digests.insert(Digest(tensors));
  }
  EXPECT_EQ(digests.size(), tensors.size() + 1);
}

TEST_F(DigestTest, SeesTensorsThatChangedPlaces) {
  std::vector<RawTensor> tensors = Tensors(1);
  const std::string digest = Digest(tensors);
  const auto find = [&](const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const RawTensor& tensor) { return tensor.name == name; });
  };
  std::swap(find("model.layers.1.mlp.experts.0.up_proj.weight")->bytes,
            find("model.layers.1.mlp.experts.1.up_proj.weight")->bytes);
  EXPECT_NE(digest, Digest(tensors));
}

TEST_F(DigestTest, SeesEachSwitchOfTheConfig) {
  const std::string config = kSmallConfig;
  const std::vector<std::string> configs = {
      config,
      Replace(config, "\"mscale\": 0.707", "\"mscale\": 0.708"),
      Replace(config, "\"factor\": 40", "\"factor\": 41"),
      Replace(config, "\"rope_theta\": 10000", "\"rope_theta\": 10001"),
      Replace(config, "1e-06", "1e-05"),
      Replace(config, "\"eos_token_id\": 1", "\"eos_token_id\": [1, 2]"),
      Replace(config, "\"norm_topk_prob\": false", "\"norm_topk_prob\": true"),
      Replace(config, "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 3"),
      Replace(config, "\"routed_scaling_factor\": 1.0", "\"routed_scaling_factor\": 2.0"),
      Replace(config, "\"max_position_embeddings\": 163840", "\"max_position_embeddings\": 4096"),
  };
  std::set<std::string> digests;
  for (const std::string& variant : configs) digests.insert(Digest(Tensors(1), 1, variant));
  EXPECT_EQ(digests.size(), configs.size());
}

TEST_F(DigestTest, ReportsAFileThatHasShrunk) {
  const ScratchDir dir;
  WriteCheckpoint(dir.path(), kSmallConfig, Tensors(1));
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok());
  const std::string path = dir.File("model.safetensors");
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_EQ(CheckpointDigest(**checkpoint).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace tandem

#include "tools/make_checkpoint/synthetic_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>

#include "common/checkpoint/checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;

constexpr char kTinyDir[] = TANDEM_SOURCE_DIR "/tests/golden/tiny";

SyntheticOptions TinyOptions(const ScratchDir& dir) {
  SyntheticOptions options;
  options.config_path = std::string(kTinyDir) + "/config.json";
  options.out_dir = dir.File("model");
  return options;
}

std::map<std::string, std::string> FilesIn(const std::string& dir) {
  std::map<std::string, std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir)) {
    files[entry.path().filename()] = ReadFile(entry.path());
  }
  return files;
}

TEST(SyntheticCheckpointTest, OpensAsOneFile) {
  const ScratchDir dir;
  const SyntheticOptions options = TinyOptions(dir);
  const auto summary = WriteSyntheticCheckpoint(options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->num_files, 1);
  const auto checkpoint = Checkpoint::Open(options.out_dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(summary->bytes, 2 * static_cast<int64_t>((*checkpoint)->num_parameters()));
  EXPECT_TRUE(fs::exists(options.out_dir + "/tokenizer.json"));
}

TEST(SyntheticCheckpointTest, OpensAsSeveralFilesOfFewerLayers) {
  const ScratchDir dir;
  SyntheticOptions options = TinyOptions(dir);
  options.layers = 2;
  options.file_bytes = 100'000;
  const auto summary = WriteSyntheticCheckpoint(options);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_GT(summary->num_files, 2);
  const auto checkpoint = Checkpoint::Open(options.out_dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config().num_layers, 2);
  EXPECT_EQ(summary->bytes, 2 * static_cast<int64_t>((*checkpoint)->num_parameters()));
}

TEST(SyntheticCheckpointTest, ThreadsDoNotMatter) {
  const ScratchDir one_dir, many_dir;
  SyntheticOptions one = TinyOptions(one_dir), many = TinyOptions(many_dir);
  one.file_bytes = many.file_bytes = 100'000;
  many.threads = 5;
  ASSERT_TRUE(WriteSyntheticCheckpoint(one).ok());
  ASSERT_TRUE(WriteSyntheticCheckpoint(many).ok());
  // Not compared by EXPECT_EQ, which would print them.
  EXPECT_TRUE(FilesIn(one.out_dir) == FilesIn(many.out_dir));
}

TEST(SyntheticCheckpointTest, HollowMatricesAreZerosAndRoutersAreNot) {
  const ScratchDir dir;
  SyntheticOptions options = TinyOptions(dir);
  options.hollow = true;
  ASSERT_TRUE(WriteSyntheticCheckpoint(options).ok());
  const auto checkpoint = *Checkpoint::Open(options.out_dir);
  const auto is_zero = [&](const std::string& name) {
    const OwnedTensor tensor = *checkpoint->Load(name, WeightFormat::kBF16);
    const auto* bytes = tensor.view.as<const char>();
    return std::all_of(bytes, bytes + tensor.view.bytes(), [](char c) { return c == 0; });
  };
  EXPECT_TRUE(is_zero("lm_head.weight"));
  EXPECT_TRUE(is_zero("model.layers.1.mlp.experts.0.down_proj.weight"));
  EXPECT_FALSE(is_zero("model.layers.1.mlp.gate.weight"));
  EXPECT_FALSE(is_zero("model.embed_tokens.weight"));
}

TEST(SyntheticCheckpointTest, RefusesAFolderWithWeights) {
  const ScratchDir dir;
  const SyntheticOptions options = TinyOptions(dir);
  ASSERT_TRUE(WriteSyntheticCheckpoint(options).ok());
  EXPECT_EQ(WriteSyntheticCheckpoint(options).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(SyntheticCheckpointTest, NamesABrokenConfig) {
  const ScratchDir dir;
  SyntheticOptions options = TinyOptions(dir);
  options.config_path = dir.File("broken.json");
  options.layers = 2;
  WriteFile(options.config_path, "[1, 2");
  const absl::Status status = WriteSyntheticCheckpoint(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("broken.json"));
}

}  // namespace
}  // namespace tandem

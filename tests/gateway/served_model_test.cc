#include "gateway/served_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/checkpoint/checkpoint.h"
#include "gateway/validate.h"
#include "nlohmann/json.hpp"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string TinyModel() { return std::string(TANDEM_SOURCE_DIR) + "/tests/golden/tiny"; }

absl::StatusOr<ServedModel> LoadTiny(const std::string& served_name) {
  const auto checkpoint = Checkpoint::Open(TinyModel());
  if (!checkpoint.ok()) return checkpoint.status();
  return LoadServedModel(**checkpoint, TinyModel(), Dtype::kF32, served_name, nullptr);
}

TEST(ServedModelTest, CallsAModelByItsFolderOrItsHubRepository) {
  struct Case {
    const char* dir;
    const char* name;
  };
  const Case cases[] = {
      {"/models/V2-Lite", "V2-Lite"},
      {"/models/V2-Lite/", "V2-Lite"},
      {"/models/other/../V2-Lite/.", "V2-Lite"},
      {"V2-Lite", "V2-Lite"},
      {"/", "/"},
      {"/hub/models--deepseek-ai--DeepSeek-V2-Lite/snapshots/604d5664", "DeepSeek-V2-Lite"},
      {"/hub/models--deepseek-ai--DeepSeek-V2-Lite/snapshots/604d5664/", "DeepSeek-V2-Lite"},
      {"/hub/models--tiny/snapshots/604d5664", "tiny"},  // a repository without an organisation
      {"/hub/models--deepseek-ai--DeepSeek-V2-Lite/refs/main", "main"},
      {"/backups/snapshots/monday", "monday"},
  };
  for (const Case& c : cases) EXPECT_EQ(DefaultServedName(c.dir), c.name) << c.dir;
}

TEST(ServedModelTest, AGivenNameReplacesTheFolders) {
  const auto by_folder = LoadTiny("");
  ASSERT_TRUE(by_folder.ok()) << by_folder.status();
  EXPECT_EQ(by_folder->name, "tiny");
  const auto named = LoadTiny("my-model");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(named->name, "my-model");
  EXPECT_EQ(named->digest, by_folder->digest);
}

TEST(ServedModelTest, TellsHowMuchOfTheDigestIsRead) {
  const auto checkpoint = Checkpoint::Open(TinyModel());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::vector<float> shares;
  ASSERT_TRUE(LoadServedModel(**checkpoint, TinyModel(), Dtype::kF32, "", [&](float share) {
                shares.push_back(share);
              }).ok());
  ASSERT_GT(shares.size(), 1u);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1);
}

// A copy of the tiny model, loaded with other files, or none, in the place of its own.
absl::StatusOr<ServedModel> LoadWith(
    const std::vector<std::pair<std::string, std::optional<std::string>>>& files) {
  const ScratchDir dir;
  std::filesystem::copy(TinyModel(), dir.path());
  for (const auto& [name, content] : files) {
    std::filesystem::remove(dir.File(name));
    if (content.has_value()) WriteFile(dir.File(name), *content);
  }
  const auto checkpoint = Checkpoint::Open(dir.path());
  if (!checkpoint.ok()) return checkpoint.status();
  return LoadServedModel(**checkpoint, dir.path(), Dtype::kF32, "", nullptr);
}

TEST(ServedModelTest, EndsAtTheIdsOfBothConfigs) {
  const auto ends = [](const char* generation_config) {
    const auto model = LoadWith({{"generation_config.json", generation_config}});
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? model->eos_ids : std::vector<int32_t>();
  };
  EXPECT_THAT(ends(R"({"eos_token_id": [7, 1023, 9]})"), ElementsAre(1023, 7, 9));
  EXPECT_THAT(ends(R"({"eos_token_id": 7})"), ElementsAre(1023, 7));
  EXPECT_THAT(ends("{}"), ElementsAre(1023));
  const auto outside = LoadWith({{"generation_config.json", R"({"eos_token_id": 1040})"}});
  EXPECT_THAT(std::string(outside.status().message()), HasSubstr("eos_token_id is 1040"));
}

TEST(ServedModelTest, ATokenizerOfAnotherKindCostsTextOnly) {
  const auto model = LoadWith({{"tokenizer.json", R"({"normalizer": {"type": "NFC"}})"}});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto tokenizer = NeedTokenizer(*model);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              HasSubstr("serves no text (tokenizer.json: normalizer is NFC"));
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  EXPECT_TRUE(ValidateGenerate(request, *model).ok());
  request.set_text("a");
  EXPECT_EQ(ValidateGenerate(request, *model).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ServedModelTest, NoTokenizerCostsTextOnly) {
  const auto model = LoadWith({{"tokenizer.json", std::nullopt}});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(std::string(NeedTokenizer(*model).status().message()),
              HasSubstr("serves no text (no tokenizer.json)"));
}

TEST(ServedModelTest, ATokenToAddThatNoFileNamesCostsTextOnly) {
  for (const std::string name : {"bos_token", "eos_token"}) {
    nlohmann::json config = nlohmann::json::parse(std::ifstream(TinyModel() + "/config.json"));
    config.erase("bos_token_id");
    const auto model = LoadWith({{"config.json", config.dump()},
                                 {"tokenizer_config.json", "{\"add_" + name + "\": true}"}});
    ASSERT_TRUE(model.ok()) << model.status();
    const auto tokenizer = NeedTokenizer(*model);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(tokenizer.status().message()),
                HasSubstr("add_" + name + " is true, but there is no " + name));
    v1::GenerateRequest request;
    request.mutable_token_ids()->add_ids(5);
    EXPECT_TRUE(ValidateGenerate(request, *model).ok());
  }
}

TEST(ServedModelTest, RequestsMayAskForTheServedNameOrForNone) {
  const auto model = LoadTiny("my-model");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(ValidateModelName("", *model).ok());
  EXPECT_TRUE(ValidateModelName("my-model", *model).ok());
  EXPECT_EQ(ValidateModelName("tiny", *model).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace tandem

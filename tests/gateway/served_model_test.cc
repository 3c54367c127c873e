#include "gateway/served_model.h"

#include <gtest/gtest.h>

#include <string>

#include "common/checkpoint/checkpoint.h"
#include "gateway/validate.h"

namespace tandem {
namespace {

std::string TinyModel() { return std::string(TANDEM_SOURCE_DIR) + "/tests/golden/tiny"; }

absl::StatusOr<ServedModel> LoadTiny(const std::string& served_name) {
  const auto checkpoint = Checkpoint::Open(TinyModel());
  if (!checkpoint.ok()) return checkpoint.status();
  return LoadServedModel(**checkpoint, TinyModel(), Dtype::kF32, served_name);
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

TEST(ServedModelTest, RequestsMayAskForTheServedNameOrForNone) {
  const auto model = LoadTiny("my-model");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(ValidateModelName("", *model).ok());
  EXPECT_TRUE(ValidateModelName("my-model", *model).ok());
  EXPECT_EQ(ValidateModelName("tiny", *model).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace tandem

#include "gateway/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace tandem {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int32_t kVocabSize = 1000;

class GenerationConfigTest : public testing::Test {
 protected:
  GenerationConfigTest() {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~GenerationConfigTest() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path path() const { return folder_ / "generation_config.json"; }
  absl::StatusOr<GenerationConfig> Load() const {
    return LoadGenerationConfig(folder_.string(), kVocabSize);
  }
  absl::StatusOr<GenerationConfig> Load(const std::string& json) const {
    std::ofstream(path(), std::ios::binary) << json;
    return Load();
  }

  std::filesystem::path folder_;
};

TEST_F(GenerationConfigTest, TakesWhatHasOneSensibleMeaning) {
  struct Case {
    const char* json;
    float temperature;
    int32_t top_k;
    float top_p;
  };
  const Case cases[] = {
      {"", 1, 0, 1},
      {" \n", 1, 0, 1},
      {"{}", 1, 0, 1},
      {R"({"temperature": null, "top_k": null, "top_p": null, "do_sample": null})", 1, 0, 1},
      {R"({"do_sample": true, "temperature": 0.3, "top_p": 0.95, "top_k": 50})", 0.3f, 50, 0.95f},
      {R"({"temperature": 0.3})", 0.3f, 0, 1},
      {R"({"do_sample": false, "temperature": 0.7})", 0, 0, 1},
      {R"({"temperature": 0})", 0, 0, 1},
      {R"({"top_k": -1})", 1, 0, 1},
      {R"({"top_k": 0})", 1, 0, 1},
      {R"({"top_k": 20.0})", 1, 20, 1},
      {R"({"top_p": 0})", 1, 0, 1e-6f},  // the best alone
      {R"({"top_p": 1})", 1, 0, 1},
      {R"({"_from_model_config": true, "transformers_version": "4.39.3"})", 1, 0, 1},
  };
  for (const Case& c : cases) {
    const auto config = Load(c.json);
    ASSERT_TRUE(config.ok()) << c.json << config.status();
    EXPECT_EQ(config->sampling.temperature, c.temperature) << c.json;
    EXPECT_EQ(config->sampling.top_k, c.top_k) << c.json;
    EXPECT_EQ(config->sampling.top_p, c.top_p) << c.json;
    EXPECT_THAT(config->ignored, IsEmpty()) << c.json;
    EXPECT_THAT(config->eos_ids, IsEmpty()) << c.json;
  }
}

TEST_F(GenerationConfigTest, ReadsOneEndIdOrSeveral) {
  EXPECT_THAT(Load(R"({"eos_token_id": 7})")->eos_ids, ElementsAre(7));
  EXPECT_THAT(Load(R"({"eos_token_id": [999, 0, 999]})")->eos_ids, ElementsAre(999, 0));
  EXPECT_THAT(Load(R"({"eos_token_id": []})")->eos_ids, IsEmpty());
  EXPECT_THAT(Load(R"({"eos_token_id": null})")->eos_ids, IsEmpty());
}

TEST_F(GenerationConfigTest, RefusesWhatHasNoSensibleMeaningAndNamesIt) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"eos_token_id": 1000})", "eos_token_id is 1000"},
      {R"({"eos_token_id": [5, -1]})", "eos_token_id is -1"},
      {R"({"eos_token_id": "5"})", "eos_token_id is \"5\""},
      {R"({"eos_token_id": [[5]]})", "eos_token_id is an array"},
      {R"({"eos_token_id": 1e30})", "eos_token_id"},
      {R"({"temperature": -1})", "temperature is -1"},
      {R"({"temperature": "0.5"})", "temperature"},
      {R"({"top_k": -2})", "top_k is -2"},
      {R"({"top_k": 1.5})", "top_k is 1.5"},
      {R"({"top_p": 1.5})", "top_p is 1.5"},
      {R"({"top_p": -0.1})", "top_p is -0.1"},
      {R"({"min_p": 1.1})", "min_p is 1.1, expected 0 to 1"},
      {R"({"repetition_penalty": 0})", "repetition_penalty is 0, expected 0.01 to 100"},
      {R"({"repetition_penalty": "1"})", "repetition_penalty"},
      {R"({"do_sample": "no"})", "do_sample"},
      {R"([1])", "is not a JSON object"},
      {R"({"top_p": )", "is not a JSON object"},
  };
  for (const auto& [json, message] : cases) {
    const auto config = Load(json);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(message)) << json;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("generation_config.json"));
  }
  EXPECT_FALSE(
      Load("{\"top_k\":" + std::string(100000, '[') + std::string(100000, ']') + "}").ok());
}

TEST_F(GenerationConfigTest, TakesMinPAndRepetitionPenalty) {
  const auto neutral = Load("{}");
  ASSERT_TRUE(neutral.ok()) << neutral.status();
  EXPECT_EQ(neutral->sampling.min_p, 0.0f);
  EXPECT_EQ(neutral->sampling.repetition_penalty, 1.0f);
  const auto config = Load(R"({"min_p": 0.05, "repetition_penalty": 1.1})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->sampling.min_p, 0.05f);
  EXPECT_EQ(config->sampling.repetition_penalty, 1.1f);
  EXPECT_THAT(config->ignored, IsEmpty());
}

TEST_F(GenerationConfigTest, NamesWhatItIgnores) {
  const auto config = Load(R"({"no_repeat_ngram_size": 3, "guidance_scale": 1, "num_beams": 4,
                               "typical_p": 1.0, "suppress_tokens": [], "bad_words_ids": null})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->ignored, ElementsAre("no_repeat_ngram_size", "num_beams"));
}

TEST_F(GenerationConfigTest, NamesALinkToNothing) {
  std::filesystem::create_symlink("nowhere.json", path());
  EXPECT_THAT(std::string(Load().status().message()),
              HasSubstr("generation_config.json is a link to a file that is missing"));
}

TEST_F(GenerationConfigTest, NeitherPipeNorFolderHangsTheStart) {
  ASSERT_TRUE(Load().ok());  // there is none
  ASSERT_EQ(mkfifo(path().c_str(), 0600), 0);
  EXPECT_THAT(std::string(Load().status().message()), HasSubstr("is not a regular file"));
  std::filesystem::remove(path());
  std::filesystem::create_directory(path());
  EXPECT_THAT(std::string(Load().status().message()), HasSubstr("is not a regular file"));
}

}  // namespace
}  // namespace tandem

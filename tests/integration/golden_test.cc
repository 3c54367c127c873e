// The tool against the Hugging Face implementation: logits in f32 and bf16 by every path, greedy
// ids. The project's own checkpoint always; those of ../shared/golden where that folder is.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/bf16_errors.h"
#include "tests/integration/deployment.h"

namespace tandem::test {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kCommandLimit = absl::Seconds(500);
constexpr double kF32Error = 1e-5;
// Of the longest prompt, where TANDEM_TEST_GPU does not say that there is a GPU: of more an
// emulation takes minutes.
constexpr size_t kEmulatedTokens = 300;
// Relative, over all prompts. Random weights, which these models have, lose most.
constexpr double kInt8Error = 0.1;
constexpr double kInt4Error = 0.5;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// Runs the tool; its output, or a failure. On one thread: in models as small as these, threads wait
// for each other most of the time, and for the tests that run meanwhile. That their number changes
// no bits is shown by the tests of kernels.
std::string Run(const std::vector<std::string>& arguments, const TempDir& dir) {
  std::vector<std::string> command = {Binary("tandem")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.insert(command.end(), {"--device", TestDevice(), "--threads", "1"});
  Process process(command, dir.path() + "/output");
  EXPECT_EQ(process.Wait(kCommandLimit), 0) << absl::StrJoin(command, " ") << "\n"
                                            << process.Output();
  return process.Output();
}

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

std::vector<float> ReadNpy(const std::string& path) {
  const std::string bytes = Read(path);
  if (bytes.size() < 10) return {};
  const size_t header = static_cast<uint8_t>(bytes[8]) | static_cast<uint8_t>(bytes[9]) << 8;
  return Floats(bytes.substr(10 + header));
}

// A golden folder: a checkpoint and what the reference answered.
class Golden {
 public:
  Golden(const std::string& folder, const std::string& checkpoint) : checkpoint_(checkpoint) {
    const Json json = Json::parse(Read(folder + "/expected.json"), nullptr, false);
    const bool is_emulated = TestDevice() == "cuda" && std::getenv("TANDEM_TEST_GPU") == nullptr;
    for (const Json& prompt : json["prompts"]) {
      if (!is_emulated || prompt["ids"].size() <= kEmulatedTokens) {
        prompts_.push_back(prompt);
      }
    }
    EXPECT_FALSE(prompts_.empty());
    auto file = SafetensorsFile::Open(folder + "/expected.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    logits_ = *file;
  }

  const Json& prompts() const { return prompts_; }
  const std::string& checkpoint() const { return checkpoint_; }

  std::vector<float> ExpectedLogits(const std::string& prompt) const {
    const SafetensorsEntry& entry = logits_->entries().at(prompt + ".logits");
    std::vector<float> values((entry.end - entry.begin) / sizeof(float));
    EXPECT_TRUE(logits_->Read(entry.begin, entry.end - entry.begin, values.data()).ok());
    return values;
  }

  // `flags`: more of the command's.
  double Error(const Json& prompt, const std::string& dtype,
               const std::vector<std::string>& flags) const {
    return RelativeError(Logits(prompt, dtype, flags), ExpectedLogits(prompt["name"]));
  }

  std::vector<float> Logits(const Json& prompt, const std::string& dtype,
                            const std::vector<std::string>& flags) const {
    TempDir dir;
    std::ofstream(dir.path() + "/ids") << absl::StrJoin(prompt["ids"].get<std::vector<int>>(), " ");
    std::vector<std::string> command = {
        "score",
        "--model",
        checkpoint_,
        "--dtype",
        dtype,
        "--ids-file",
        dir.path() + "/ids",
        "--json",
        "--positions",
        absl::StrJoin(prompt["positions"].get<std::vector<int>>(), ","),
        "--logits",
        dir.path() + "/logits.npy"};
    command.insert(command.end(), flags.begin(), flags.end());
    Run(command, dir);
    return ReadNpy(dir.path() + "/logits.npy");
  }

  std::vector<int> Greedy(const Json& prompt) const {
    TempDir dir;
    std::ofstream(dir.path() + "/ids") << absl::StrJoin(prompt["ids"].get<std::vector<int>>(), " ");
    const std::string output =
        Run({"generate", "--model", checkpoint_, "--dtype", "f32", "--ids-file",
             dir.path() + "/ids", "--max-tokens", std::to_string(prompt["greedy_ids"].size()),
             "--temperature", "0", "--ignore-eos", "--json"},
            dir);
    const Json json = Json::parse(output, nullptr, false);
    return json.is_object() ? json.value("ids", std::vector<int>()) : std::vector<int>();
  }

 private:
  const std::string checkpoint_;
  Json prompts_ = Json::array();
  std::shared_ptr<const SafetensorsFile> logits_;
};

// The checkpoint of the real widths is 2.2 GB: made once per build folder by its generator. Tests
// that run at once may both make it; the first to be done gives it its name.
std::string WideCheckpoint(const std::string& folder) {
  const std::string made = absl::StrCat(TANDEM_BINARY_DIR, "/../golden/hf_wide_2_layers");
  if (std::filesystem::exists(made)) return made;
  const std::string making = absl::StrCat(made, ".", getpid());
  std::filesystem::create_directories(making);
  Process process({"/usr/bin/python3", SourcePath("../shared/tools/make_checkpoint.py"),
                   absl::StrCat(folder, "/config.json"), making, "--seed", "7"},
                  absl::StrCat(making, "/log"));
  EXPECT_EQ(process.Wait(kCommandLimit), 0) << process.Output();
  std::error_code taken;
  std::filesystem::rename(making, made, taken);
  if (taken) std::filesystem::remove_all(making);
  return made;
}

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    std::string folder = SourcePath("tests/golden/tiny");
    if (name != "tiny") {
      folder = SourcePath("../shared/golden/" + name);
      if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
    }
    golden_.emplace(folder, name == "hf_wide_2_layers" ? WideCheckpoint(folder) : folder);
    ASSERT_TRUE(golden_->prompts().is_array());
  }

  void ExpectF32(const std::vector<std::string>& flags) {
    for (const Json& prompt : golden_->prompts()) {
      const double error = golden_->Error(prompt, "f32", flags);
      EXPECT_LE(error, kF32Error) << prompt["name"];
      RecordProperty(prompt["name"].get<std::string>(), absl::StrCat(error));
    }
  }

  std::optional<Golden> golden_;
};

TEST_P(GoldenTest, F32LogitsAsARequest) { ExpectF32({}); }
TEST_P(GoldenTest, F32LogitsByPrefill) { ExpectF32({"--path", "prefill"}); }
TEST_P(GoldenTest, F32LogitsByDecode) { ExpectF32({"--path", "decode"}); }
TEST_P(GoldenTest, F32LogitsByChunks) { ExpectF32({"--path", "chunk=100"}); }

TEST_P(GoldenTest, BF16IsNoFurtherFromF32ThanTheReferenceIs) {
  std::vector<std::string> names;
  std::vector<double> errors;
  for (const Json& prompt : golden_->prompts()) {
    names.push_back(prompt["name"]);
    const std::vector<double> of_prompt =
        PositionErrors(golden_->Logits(prompt, "bf16", {}), golden_->ExpectedLogits(names.back()),
                       prompt["positions"].size());
    errors.insert(errors.end(), of_prompt.begin(), of_prompt.end());
  }
  // Of few positions the median wanders.
  ExpectNearAsTheReference(errors, GetParam(), names, TestDevice() == "cpu" ? 1.06 : 1.25);
}

TEST_P(GoldenTest, IntegerFormatsStayNear) {
  const std::pair<const char*, double> limits[] = {{"int8", kInt8Error}, {"int4", kInt4Error}};
  for (const auto& [format, limit] : limits) {
    double squares = 0;
    for (const Json& prompt : golden_->prompts()) {
      squares += std::pow(golden_->Error(prompt, "bf16", {"--weights", format}), 2);
    }
    const double error = std::sqrt(squares / static_cast<double>(golden_->prompts().size()));
    EXPECT_LE(error, limit) << format;
    RecordProperty(format, absl::StrCat(error));
  }
}

TEST_P(GoldenTest, GreedyIds) {
  for (const Json& prompt : golden_->prompts()) {
    if (!prompt.contains("greedy_ids")) continue;
    EXPECT_EQ(golden_->Greedy(prompt), prompt["greedy_ids"].get<std::vector<int>>())
        << prompt["name"];
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         testing::Values("tiny", "hf_tiny_plain", "hf_tiny_q_lora",
                                         "hf_tiny_two_mscales", "hf_tiny_v2lite",
                                         "hf_wide_2_layers"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem::test

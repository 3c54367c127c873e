// The engine against logits and greedy continuations of the reference implementation.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/attention_worker/engine_harness.h"
#include "tests/bf16_errors.h"

namespace tandem {
namespace {

constexpr int kPages = 512;
// Longer prompts are the integration test's.
constexpr size_t kMaxPromptTokens = 6000;

struct Prompt {
  std::string name;
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;  // with expected logits
  std::vector<int32_t> greedy_ids;
  std::vector<float> logits;  // [positions, vocab]
};

std::vector<Prompt> ReadPrompts(const std::string& dir) {
  std::ifstream file(dir + "/expected.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  const auto tensors = SafetensorsFile::Open(dir + "/expected.safetensors");
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  std::vector<Prompt> prompts;
  for (const auto& p : json.at("prompts")) {
    Prompt prompt;
    prompt.name = p.at("name");
    prompt.ids = p.at("ids").get<std::vector<int32_t>>();
    prompt.positions = p.at("positions").get<std::vector<int32_t>>();
    prompt.greedy_ids = p.at("greedy_ids").get<std::vector<int32_t>>();
    const SafetensorsEntry& entry = (*tensors)->entries().at(prompt.name + ".logits");
    prompt.logits.resize((entry.end - entry.begin) / sizeof(float));
    EXPECT_TRUE((*tensors)->Read(entry.begin, entry.end - entry.begin, prompt.logits.data()).ok());
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

// Logits at the prompt's positions, and as many greedy ids as expected.
struct Answer {
  std::vector<float> logits;
  std::vector<int32_t> ids;
};
Answer RunPrompt(TestGateway& gateway, const Prompt& prompt, int32_t expanded_length) {
  const SequenceId sequence = gateway.Open(prompt.ids, expanded_length);
  const auto count = static_cast<int32_t>(prompt.ids.size());
  NewBatch batch = Rows(sequence, 0, count);
  for (int32_t position : prompt.positions) {
    batch.outputs.push_back({position, RowOutputKind::kLogits, 0});
  }
  batch.outputs.push_back({count - 1, RowOutputKind::kSample, 0});
  Answer answer;
  for (const RowResult& row : gateway.RunOk(gateway.WholeStep({batch})).rows) {
    if (row.kind == RowOutputKind::kSample) answer.ids.push_back(row.token);
    answer.logits.insert(answer.logits.end(), row.logits.begin(), row.logits.end());
  }
  while (answer.ids.size() < prompt.greedy_ids.size()) {
    const auto position = static_cast<int32_t>(count + answer.ids.size() - 1);
    answer.ids.push_back(gateway.Decode({{sequence, position}})[0]);
  }
  gateway.link().Release(sequence);
  return answer;
}

class GoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    dir_ = std::string(TANDEM_SOURCE_DIR) + GetParam();
    if (!std::filesystem::exists(dir_ + "/model.safetensors")) {
      GTEST_SKIP() << dir_ << " is missing";
    }
  }
  std::string dir_;
};

TEST_P(GoldenTest, F32LogitsAndGreedyIdsMatchTheReferenceInBothForms) {
  TestWorkerOptions options;
  options.total_pages = kPages;
  TestWorker worker(dir_, options);
  for (const Prompt& prompt : ReadPrompts(dir_)) {
    if (prompt.ids.size() > kMaxPromptTokens) continue;
    SCOPED_TRACE(prompt.name);
    TestGateway gateway(&worker);
    const Answer answer = RunPrompt(gateway, prompt, -1);
    const double error = test::RelativeError(answer.logits, prompt.logits);
    EXPECT_LE(error, 1e-5);
    EXPECT_EQ(answer.ids, prompt.greedy_ids);
    const Answer absorbed = RunPrompt(gateway, prompt, 0);
    const double absorbed_error = test::RelativeError(absorbed.logits, prompt.logits);
    const double between_forms = test::RelativeError(absorbed.logits, answer.logits);
    EXPECT_LE(absorbed_error, 1e-5);
    EXPECT_LE(between_forms, 1e-5);
    EXPECT_EQ(absorbed.ids, prompt.greedy_ids);
    std::printf("%s %s (%zu tokens): error %.2g, all absorbed %.2g, between the forms %.2g\n",
                GetParam(), prompt.name.c_str(), prompt.ids.size(), error, absorbed_error,
                between_forms);
  }
  EXPECT_TRUE(worker.WaitForCount("pages_free", kPages));
}

TEST_P(GoldenTest, Bf16IsAboutAsFarFromF32AsTheReferencesOwnBf16Run) {
  TestWorkerOptions options;
  options.dtype = Dtype::kBF16;
  options.total_pages = kPages;
  TestWorker worker(dir_, options);
  std::vector<std::string> names;
  std::vector<double> errors;
  for (const Prompt& prompt : ReadPrompts(dir_)) {
    if (prompt.ids.size() > kMaxPromptTokens) continue;
    TestGateway gateway(&worker);
    const std::vector<float> logits = RunPrompt(gateway, prompt, -1).logits;
    const auto of_prompt = test::PositionErrors(logits, prompt.logits, prompt.positions.size());
    names.push_back(prompt.name);
    errors.insert(errors.end(), of_prompt.begin(), of_prompt.end());
  }
  test::ExpectNearAsTheReference(errors, std::filesystem::path(dir_).filename(), names);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenTest,
                         ::testing::Values("/tests/golden/tiny", "/../shared/golden/hf_tiny_v2lite",
                                           "/../shared/golden/hf_tiny_q_lora",
                                           "/../shared/golden/hf_tiny_plain",
                                           "/../shared/golden/hf_tiny_two_mscales"));

}  // namespace
}  // namespace tandem

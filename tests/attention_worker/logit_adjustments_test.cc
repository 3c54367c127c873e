#include "attention_worker/logit_adjustments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/kernels/oracle.h"

namespace tandem {
namespace {

using testing::IsEmpty;

constexpr int32_t kVocab = 20;

SequenceSpec Spec(std::vector<int32_t> prompt) {
  SequenceSpec spec;
  spec.num_prompt_tokens = static_cast<int32_t>(prompt.size());
  spec.token_ids = std::move(prompt);
  return spec;
}

std::vector<int32_t> Part(const SequenceSpec& spec, bool of_prompt) {
  const auto middle = spec.token_ids.begin() + spec.num_prompt_tokens;
  if (of_prompt) return {spec.token_ids.begin(), middle};
  return {middle, spec.token_ids.end()};
}

// What the adjustments make of some logits, against the oracle. Returns how many they change.
int ExpectTheOracles(const SequenceSpec& spec, LogitAdjustments* adjustments) {
  std::vector<double> before(kVocab);
  for (int32_t id = 0; id < kVocab; ++id) before[id] = std::sin(id * 1.7) * 4;
  const std::vector<double> want =
      kernels::oracle::Adjusted(before, Part(spec, true), Part(spec, false), spec.sampling);
  std::vector<double> got = before;
  std::vector<int> named(kVocab);
  for (const kernels::LogitAdjustment& adjustment : adjustments->Next(spec)) {
    EXPECT_EQ(adjustment.row, 0);
    EXPECT_EQ(named.at(adjustment.id)++, 0);
    double& logit = got[adjustment.id];
    logit += adjustment.bias;
    logit = logit > 0 ? logit / adjustment.repetition : logit * adjustment.repetition;
    logit -= adjustment.penalty;
  }
  int changed = 0;
  for (int32_t id = 0; id < kVocab; ++id) {
    changed += got[id] != before[id] ? 1 : 0;
    if (std::isinf(want[id])) {
      EXPECT_EQ(got[id], want[id]) << "id " << id;
    } else {
      EXPECT_NEAR(got[id], want[id], 1e-5) << "id " << id;
    }
  }
  return changed;
}

TEST(LogitAdjustmentsTest, WithoutParametersThereAreNone) {
  LogitAdjustments adjustments;
  SequenceSpec spec = Spec({1, 2, 3});
  spec.sampling.min_tokens = 1;  // but nothing that it would hold back
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(adjustments.Next(spec), IsEmpty());
    spec.token_ids.push_back(1);
  }
}

TEST(LogitAdjustmentsTest, RepetitionIsOfPromptAndAnswerTheOthersOfTheAnswer) {
  LogitAdjustments adjustments;
  SequenceSpec spec = Spec({1, 2, 2});
  spec.sampling.repetition_penalty = 2.0f;
  EXPECT_EQ(ExpectTheOracles(spec, &adjustments), 2);
  spec.sampling.repetition_penalty = 1.0f;
  spec.sampling.frequency_penalty = 0.5f;
  LogitAdjustments of_answer;
  EXPECT_EQ(ExpectTheOracles(spec, &of_answer), 0);
  spec.token_ids.insert(spec.token_ids.end(), {2, 7, 2});
  EXPECT_EQ(ExpectTheOracles(spec, &of_answer), 2);
}

TEST(LogitAdjustmentsTest, UntilMinTokensWhatEndsIsHeldBackAndThenAsItWouldBe) {
  LogitAdjustments adjustments;
  SequenceSpec spec = Spec({1, 2, 3});
  spec.sampling.min_tokens = 2;
  spec.sampling.end_ids = {5, 9};
  EXPECT_EQ(ExpectTheOracles(spec, &adjustments), 2);
  spec.token_ids.push_back(4);
  EXPECT_EQ(ExpectTheOracles(spec, &adjustments), 2);
  spec.token_ids.push_back(4);
  EXPECT_THAT(adjustments.Next(spec), IsEmpty());

  LogitAdjustments with_bias;
  spec = Spec({1, 2, 3});
  spec.sampling.min_tokens = 1;
  spec.sampling.end_ids = {5, 9};
  spec.sampling.logit_bias = {{4, 1.0f}, {5, 3.0f}};
  EXPECT_EQ(ExpectTheOracles(spec, &with_bias), 3);
  spec.token_ids.push_back(4);
  EXPECT_EQ(ExpectTheOracles(spec, &with_bias), 2);
}

// Sequences with all parameters: followed token by token, opened again in between, and with several
// tokens from one call to the next.
TEST(LogitAdjustmentsTest, AreTheOraclesHoweverTheSequenceCame) {
  std::mt19937 random(7);
  const auto draw = [&](int most) { return static_cast<int>(random() % (most + 1)); };
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> prompt(1 + draw(10));
    for (int32_t& id : prompt) id = draw(kVocab - 1);
    SequenceSpec spec = Spec(prompt);
    SamplingParams& sampling = spec.sampling;
    sampling.min_tokens = draw(6);
    for (int i = draw(2); i > 0; --i) sampling.end_ids.push_back(draw(kVocab - 1));
    for (int32_t id = 0; id < kVocab; ++id) {
      if (draw(5) == 0) sampling.logit_bias.push_back({id, static_cast<float>(draw(8) - 4)});
    }
    if (draw(1) == 0) sampling.repetition_penalty = static_cast<float>(1 + draw(3)) / 2;
    if (draw(1) == 0) sampling.frequency_penalty = static_cast<float>(draw(8) - 4) / 4;
    if (draw(1) == 0) sampling.presence_penalty = static_cast<float>(draw(8) - 4) / 4;
    LogitAdjustments followed;
    for (int i = 0; i < 12; ++i) {
      if (draw(3) > 0) ExpectTheOracles(spec, &followed);
      LogitAdjustments anew;
      ExpectTheOracles(spec, &anew);
      if (HasFailure()) return;
      spec.token_ids.push_back(draw(kVocab - 1));
    }
  }
}

}  // namespace
}  // namespace tandem

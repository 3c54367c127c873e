#include "gateway/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/checkpoint.h"
#include "tests/common/tokenizer/stop_at.h"

namespace tandem {
namespace {

using testing::HasSubstr;

class ValidateTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string dir = std::string(TANDEM_SOURCE_DIR) + "/tests/golden/tiny";
    const auto checkpoint = Checkpoint::Open(dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto model = LoadServedModel(**checkpoint, dir, Dtype::kF32, "", nullptr);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    longest_ = static_cast<size_t>(model_.config.max_position_embeddings) *
               model_.tokenizer->max_token_bytes();
  }

  ServedModel model_;
  size_t longest_ = 0;  // text that the context may have
};

TEST_F(ValidateTest, TextIsRefusedByBytesFromTheFirstThatCannotFit) {
  v1::GenerateRequest text;
  text.set_text(std::string(longest_, 'a'));
  EXPECT_TRUE(ValidateTextBytes(text, model_).ok());
  text.mutable_text()->push_back('a');
  const absl::Status refused = ValidateTextBytes(text, model_);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("bytes of text"));

  v1::ScoreRequest score;
  score.set_text(text.text());
  EXPECT_EQ(ValidateTextBytes(score, model_), refused);

  v1::GenerateRequest chat;
  for (int i = 0; i < 2; ++i) {
    v1::ChatMessage& message = *chat.mutable_chat()->add_messages();
    message.set_role("user");
    message.set_content(std::string(longest_ / 2, 'a'));
  }
  EXPECT_TRUE(ValidateTextBytes(chat, model_).ok());
  chat.mutable_chat()->mutable_messages(0)->set_content(text.text());
  EXPECT_EQ(ValidateTextBytes(chat, model_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ValidateTest, AChatsWorkCountsItsMessagesAndRolesToo) {
  v1::GenerateRequest chat;
  for (int i = 0; i < 10000; ++i) chat.mutable_chat()->add_messages();
  EXPECT_GE(TextBytes(chat), 2u * 10000);
  chat.mutable_chat()->mutable_messages(0)->set_role(std::string(100000, 'u'));
  EXPECT_GT(TextBytes(chat), 120000u);
  v1::TokenizeRequest tokenize;
  *tokenize.mutable_chat() = chat.chat();
  EXPECT_EQ(TextBytes(tokenize), TextBytes(chat));
  v1::DetokenizeRequest detokenize;
  for (int i = 0; i < 10000; ++i) detokenize.add_ids(i);
  EXPECT_GE(TextBytes(detokenize), 10000u);
}

TEST_F(ValidateTest, WithoutMaxTokensAnAnswerIsAsLongAsFits) {
  const int context = static_cast<int>(model_.config.max_position_embeddings);
  v1::GenerateRequest request;
  for (int i = 0; i < context - 10; ++i) request.mutable_token_ids()->add_ids(7);
  const auto valid = ValidateGenerate(request, model_);
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_EQ(valid->job.max_new_tokens, 10);
  EXPECT_TRUE(valid->job.may_be_shorter);
  request.set_max_tokens(10);
  EXPECT_FALSE(ValidateGenerate(request, model_)->job.may_be_shorter);
  request.clear_max_tokens();
  for (int i = 0; i < 10; ++i) request.mutable_token_ids()->add_ids(7);
  const absl::Status full = ValidateGenerate(request, model_).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(full.message()), HasSubstr("fills the model's context"));
}

TEST_F(ValidateTest, PrioritiesHaveLimits) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(7);
  EXPECT_EQ(ValidateGenerate(request, model_)->job.priority, 0);
  for (const int32_t priority : {-1000, 1000}) {
    request.set_priority(priority);
    EXPECT_EQ(ValidateGenerate(request, model_)->job.priority, priority);
    request.set_priority(priority + (priority < 0 ? -1 : 1));
    EXPECT_THAT(std::string(ValidateGenerate(request, model_).status().message()),
                HasSubstr("must be -1000 to 1000"));
  }
}

TEST_F(ValidateTest, WhatARequestAsksOfSamplingIsTakenAsItIs) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(7);
  const auto plain = ValidateGenerate(request, model_);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_FALSE(plain->job.sampling.AdjustsLogits(0));
  EXPECT_EQ(plain->job.sampling.min_p, 0.0f);

  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_min_p(0.1f);
  sampling.set_repetition_penalty(1.2f);
  sampling.set_frequency_penalty(-0.5f);
  sampling.set_presence_penalty(2);
  (*sampling.mutable_logit_bias())[900] = -100;
  (*sampling.mutable_logit_bias())[3] = 0.5f;
  request.set_min_tokens(4);
  request.set_max_tokens(4);
  request.add_stop_token_ids(8);
  const auto valid = ValidateGenerate(request, model_);
  ASSERT_TRUE(valid.ok()) << valid.status();
  const SamplingParams& params = valid->job.sampling;
  EXPECT_EQ(params.min_p, 0.1f);
  EXPECT_EQ(params.repetition_penalty, 1.2f);
  EXPECT_EQ(params.frequency_penalty, -0.5f);
  EXPECT_EQ(params.presence_penalty, 2.0f);
  EXPECT_THAT(params.logit_bias, testing::ElementsAre(LogitBias{3, 0.5f}, LogitBias{900, -100.0f}));
  EXPECT_EQ(params.min_tokens, 4);
  std::vector<int32_t> ends = model_.eos_ids;
  ends.push_back(8);
  EXPECT_EQ(params.end_ids, ends);
  request.set_ignore_eos(true);
  EXPECT_THAT(ValidateGenerate(request, model_)->job.sampling.end_ids, testing::ElementsAre(8));
}

TEST_F(ValidateTest, ModelsDefaultsAreOfMinPAndRepetitionToo) {
  model_.default_sampling.min_p = 0.25f;
  model_.default_sampling.repetition_penalty = 1.5f;
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(7);
  EXPECT_EQ(ValidateGenerate(request, model_)->job.sampling.min_p, 0.25f);
  EXPECT_EQ(ValidateGenerate(request, model_)->job.sampling.repetition_penalty, 1.5f);
  request.mutable_sampling()->set_min_p(0);
  request.mutable_sampling()->set_repetition_penalty(1);
  EXPECT_EQ(ValidateGenerate(request, model_)->job.sampling.min_p, 0.0f);
  EXPECT_EQ(ValidateGenerate(request, model_)->job.sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(DefaultsToProto(model_.default_sampling).min_p(), 0.25f);
  EXPECT_EQ(DefaultsToProto(model_.default_sampling).repetition_penalty(), 1.5f);
}

TEST_F(ValidateTest, AScoreWhoseAnswerCouldNotWaitForItsClientIsRefused) {
  v1::ScoreRequest score;
  for (int i = 0; i < 10; ++i) score.mutable_token_ids()->add_ids(i);
  const int64_t logits = int64_t{4} * model_.config.vocab_size * 10;
  score.set_logits(true);
  EXPECT_TRUE(ValidateScore(score, model_, logits + 1000).ok());
  const auto refused = ValidateScore(score, model_, logits);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr(absl::StrCat("at most ", logits, " are answered")));
  score.set_logits(false);
  EXPECT_TRUE(ValidateScore(score, model_, logits).ok());
  // However much may wait, one answer is bounded.
  score.set_logits(true);
  for (int i = 10; i < 150'000; ++i) score.mutable_token_ids()->add_ids(7);
  EXPECT_EQ(ValidateScore(score, model_, int64_t{1} << 40).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// With the next turn nothing changes for the pages that the turn before it has computed.
TEST_F(ValidateTest, PagesOfAnAssistantsTurnStayAbsorbed) {
  v1::GenerateRequest request;
  const auto add = [&](const char* role, int words) {
    v1::ChatMessage& message = *request.mutable_chat()->add_messages();
    message.set_role(role);
    for (int i = 0; i < words; ++i) absl::StrAppend(message.mutable_content(), "a", i % 10, " ");
  };
  std::vector<Job> turns;
  for (const int words : {300, 90, 7, 500, 40, 200}) {
    add("user", words);
    const auto valid = ValidateGenerate(request, model_);
    ASSERT_TRUE(valid.ok()) << valid.status();
    turns.push_back(valid->job);
    add("assistant", words / 2);
  }
  EXPECT_THAT(turns[0].absorbed_pages, testing::IsEmpty());
  for (size_t i = 1; i < turns.size(); ++i) {
    SCOPED_TRACE(i);
    const Job& now = turns[i];
    const Job& before = turns[i - 1];
    ASSERT_THAT(now.absorbed_pages, testing::Not(testing::IsEmpty()));
    const auto prompt = static_cast<int32_t>(before.prompt.size());
    ASSERT_TRUE(std::equal(before.prompt.begin(), before.prompt.end(), now.prompt.begin()));
    const int32_t eos = *model_.tokenizer->eos_id();
    const auto end = static_cast<int32_t>(
        std::find(now.prompt.begin() + prompt, now.prompt.end(), eos) - now.prompt.begin() + 1);
    int32_t absorbed_behind = 0;
    for (int32_t position = 0; position < now.expanded_length; ++position) {
      const bool expanded = IsInExpandedForm(position, now.expanded_length, now.absorbed_pages);
      if (position < end) {
        ASSERT_EQ(expanded,
                  IsInExpandedForm(position, before.expanded_length, before.absorbed_pages))
            << position;
      } else if (!expanded) {
        ++absorbed_behind;
      }
    }
    EXPECT_LT(absorbed_behind, kPageTokens);
    int32_t last_end = -1;
    for (const PageRange& range : now.absorbed_pages) {
      EXPECT_LT(last_end, range.first);
      EXPECT_LT(range.first, range.end);
      last_end = range.end;
    }
    EXPECT_LE(last_end, now.expanded_length / kPageTokens);
  }
}

TEST_F(ValidateTest, LongTextIsGivenUpOnceNobodyWaitsForIt) {
  std::string text;
  while (text.size() < 8 * StopCheck::kBytes) text += "one two ";
  v1::GenerateRequest generate;
  generate.set_text(text);
  v1::GenerateRequest chat;
  v1::ChatMessage& message = *chat.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content(text);
  for (const v1::GenerateRequest& request : {generate, chat}) {
    StopAt stop(2);
    EXPECT_EQ(ValidateGenerate(request, model_, stop.Function()).status().code(),
              absl::StatusCode::kCancelled);
    EXPECT_EQ(stop.asked(), 2);
  }
  v1::ScoreRequest score;
  score.set_text(text);
  StopAt stop(2);
  EXPECT_EQ(ValidateScore(score, model_, int64_t{1} << 40, stop.Function()).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(stop.asked(), 2);
}

}  // namespace
}  // namespace tandem

#include "tools/tandem/load_report.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem::tool {
namespace {

using ::testing::HasSubstr;

v1::GenerateResponse Started() {
  v1::GenerateResponse response;
  response.mutable_started();
  return response;
}
v1::GenerateResponse Chunk(int tokens) {
  v1::GenerateResponse response;
  response.mutable_chunk()->set_text("a");
  for (int i = 0; i < tokens; ++i) response.mutable_chunk()->add_token_ids(i);
  return response;
}
v1::GenerateResponse Finished(uint32_t prompt_tokens, uint32_t tokens) {
  v1::GenerateResponse response;
  response.mutable_finished()->set_prompt_tokens(prompt_tokens);
  response.mutable_finished()->set_completion_tokens(tokens);
  response.mutable_finished()->set_reason(v1::GenerateResponse::FINISH_REASON_LENGTH);
  return response;
}

// Ten tokens sent at `due_s`, three asked for: the first after 1 s, two together 0.5 s later.
LoadRecord Answered(double due_s) {
  LoadRecord record;
  record.prompt_tokens = 10;
  record.max_tokens = 3;
  record.measured = true;
  record.due_s = due_s;
  record.Take(Started(), due_s + 0.1);
  record.Take(Chunk(1), due_s + 1);
  record.Take(Chunk(0), due_s + 1.1);  // text alone
  record.Take(Chunk(2), due_s + 1.5);
  record.Take(Finished(10, 3), due_s + 1.5);
  record.end_s = due_s + 2;
  return record;
}

TEST(LoadReportTest, AWholeAnswerIsComplete) { EXPECT_TRUE(CheckComplete(Answered(0)).ok()); }

TEST(LoadReportTest, WhatLacksSomethingIsNot) {
  std::vector<LoadRecord> broken(7, Answered(0));
  broken[0].token_s.pop_back();
  broken[1].num_finished = 0;
  broken[2].finished.set_completion_tokens(2);
  broken[3].finished.set_prompt_tokens(11);
  broken[4].finished.set_reason(v1::GenerateResponse::FINISH_REASON_EOS);
  broken[5].Take(Chunk(0), 3);  // after the end
  broken[6].num_started = 0;
  for (size_t i = 0; i < broken.size(); ++i) {
    EXPECT_EQ(CheckComplete(broken[i]).code(), absl::StatusCode::kDataLoss) << i;
  }
  LoadRecord failed = Answered(0);
  failed.status = absl::UnavailableError("gone");
  EXPECT_EQ(CheckComplete(failed), failed.status);
}

TEST(LoadReportTest, OrderMatters) {
  LoadRecord record;
  record.Take(Chunk(1), 0);
  record.Take(Started(), 0);
  EXPECT_FALSE(record.in_order);
  LoadRecord twice;
  twice.Take(Started(), 0);
  twice.Take(Started(), 0);
  EXPECT_FALSE(twice.in_order);
}

TEST(LoadReportTest, TimesAreOfMeasuredCompleteAnswers) {
  std::vector<LoadRecord> records = {Answered(0), Answered(10), Answered(12), Answered(13),
                                     Answered(14)};
  records[0].measured = false;
  records[2].status = absl::ResourceExhaustedError("the queue is full");
  records[3].token_s.clear();
  const LoadReport report = Report(records);
  EXPECT_EQ(report.sent, 5);
  EXPECT_EQ(report.complete, 2);
  EXPECT_EQ(report.refused, 1);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.errors.size(), 2u);
  EXPECT_DOUBLE_EQ(report.seconds, 6);  // from 10 to 16
  EXPECT_DOUBLE_EQ(report.tokens_per_s, 1);
  EXPECT_DOUBLE_EQ(report.prompt_tokens_per_s, 20.0 / 6);
  EXPECT_EQ(report.first_token.count, 2u);
  EXPECT_NEAR(report.first_token.p50, 1000, 1e-6);
  EXPECT_EQ(report.between_tokens.count, 2u);  // two that come together have one gap
  EXPECT_NEAR(report.between_tokens.max, 500, 1e-6);
  EXPECT_NEAR(report.per_token.mean, 250, 1e-6);
  EXPECT_NEAR(report.whole.p99, 2000, 1e-6);
  EXPECT_THAT(ToText(report), HasSubstr("2 complete, 1 refused, 1 failed in 6.0 s; 5 sent"));
  EXPECT_THAT(ToText(report), HasSubstr("1 times RESOURCE_EXHAUSTED: the queue is full"));
  EXPECT_EQ(ToJson(report)["ttft_ms"]["count"], 2);
}

TEST(LoadReportTest, NothingMeasuredIsNothing) {
  const LoadReport report = Report({});
  EXPECT_EQ(report.sent, 0);
  EXPECT_EQ(report.seconds, 0);
  EXPECT_EQ(report.tokens_per_s, 0);
}

}  // namespace
}  // namespace tandem::tool

#include "client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tandem::tool {
namespace {

using testing::HasSubstr;

TEST(ClientTest, SaysHowToStartAServerOnlyWhereNoneAnswers) {
  ConnectOptions options;
  options.server = "127.0.0.1:1";
  const auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok()) << client.status();
  const auto explain = [&](const char* message) {
    return std::string((*client)->Explain(grpc::Status(grpc::UNAVAILABLE, message)).message());
  };
  EXPECT_THAT(explain("failed to connect to all addresses; last error: refused"),
              HasSubstr("no server answers at 127.0.0.1:1"));
  const char* const expert_lost = "the connection to 127.0.0.1:2 broke";
  EXPECT_EQ(explain(expert_lost), expert_lost);
}

Completion FinishedAfter(uint32_t tokens, uint64_t decode_us) {
  Completion completion;
  completion.started.set_seed(9);
  completion.finished.set_reason(v1::GenerateResponse::FINISH_REASON_EOS);
  completion.finished.set_prompt_tokens(12);
  completion.finished.set_completion_tokens(tokens);
  completion.finished.set_queue_us(500'000);
  completion.finished.set_prefill_us(250'000);
  completion.finished.set_decode_us(decode_us);
  return completion;
}

TEST(ClientTest, SpeedIsOfTheTokensAfterTheFirst) {
  EXPECT_EQ(DescribeSpeed(FinishedAfter(5, 2'000'000)),
            "[12 prompt tokens; first token after 0.750 s; 5 tokens, 2.0 per second; "
            "ended by eos; seed 9]");
}

TEST(ClientTest, SaysHowMuchOfThePromptWasCached) {
  Completion completion = FinishedAfter(1, 0);
  completion.finished.set_cached_tokens(8);
  EXPECT_EQ(DescribeSpeed(completion),
            "[12 prompt tokens, 8 of them cached; first token after 0.750 s; 1 tokens; ended by "
            "eos; seed 9]");
}

TEST(ClientTest, OneTokenHasNoSpeed) {
  EXPECT_EQ(DescribeSpeed(FinishedAfter(1, 0)),
            "[12 prompt tokens; first token after 0.750 s; 1 tokens; ended by eos; seed 9]");
}

}  // namespace
}  // namespace tandem::tool

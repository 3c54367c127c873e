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

}  // namespace
}  // namespace tandem::tool

#include "common/service/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

using testing::EndsWith;
using testing::StartsWith;

TEST(GrpcStatusTest, StatusesCrossUnchanged) {
  const absl::Status status = absl::NotFoundError("no model \"modèle\"");
  EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  EXPECT_TRUE(FromGrpc(ToGrpc(absl::OkStatus())).ok());
}

TEST(GrpcStatusTest, LongMessagesAreCutBetweenCharacters) {
  std::string name;
  for (int i = 0; i < 100'000; ++i) name += "é";
  for (const char* begin : {"", "x"}) {
    const grpc::Status status = ToGrpc(absl::NotFoundError(absl::StrCat(begin, name)));
    EXPECT_EQ(status.error_code(), grpc::NOT_FOUND);
    const std::string message = status.error_message();
    EXPECT_LT(message.size(), 1100u);
    EXPECT_THAT(message, StartsWith(absl::StrCat(begin, "é")));
    EXPECT_THAT(message, EndsWith("é..."));
  }
}

}  // namespace
}  // namespace tandem

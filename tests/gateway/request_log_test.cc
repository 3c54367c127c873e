#include "gateway/request_log.h"

#include <algorithm>
#include <map>
#include <string>

#include "common/service/log_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/log_lines.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kTraceparent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(RequestLogTest, ACallIsWhoseItsMetadataSay) {
  const RequestTag tag = TagOf({{"x-request-id", "7f31"},
                                {"traceparent", kTraceparent},
                                {"tracestate", "a=1"},
                                {"tracestate", "b=2"}});
  EXPECT_EQ(tag.request_id, "7f31");
  EXPECT_EQ(tag.traceparent, kTraceparent);
  EXPECT_EQ(tag.tracestate, "a=1,b=2");
}

TEST(RequestLogTest, AnIdThatIsNoneIsReplacedAndATraceThatIsNoneIgnored) {
  const RequestTag tag =
      TagOf({{"x-request-id", "two\nlines"}, {"traceparent", "00-broken"}, {"tracestate", "a=1"}});
  EXPECT_EQ(tag.request_id.size(), 32u);
  EXPECT_TRUE(IsRequestId(tag.request_id));
  EXPECT_EQ(tag.traceparent, "");
  EXPECT_EQ(tag.tracestate, "");
  EXPECT_NE(TagOf({}).request_id, TagOf({}).request_id);
  EXPECT_EQ(TagOf({{"traceparent", kTraceparent}, {"traceparent", kTraceparent}}).traceparent, "");
}

class EndedTest : public ::testing::Test {
 protected:
  std::string Logged(RequestLogLevel level, const grpc::Status& status) {
    LogLines lines(MakeTextLogFormatter());
    RequestLog log(level);
    const LogScope scope(LogFields{{"request_id", "7f31"}});
    log.Ended("Generate", status, {{"total_ms", "12"}});
    return lines.Text();
  }
};

const grpc::Status kWrong(grpc::StatusCode::INVALID_ARGUMENT, "the role \"secret\" is none");
const grpc::Status kLost(grpc::StatusCode::UNAVAILABLE, "no worker");

TEST_F(EndedTest, OnlyWhatTheDeploymentFailedIsLoggedUnlessAllAre) {
  EXPECT_THAT(Logged(RequestLogLevel::kFailed, kLost),
              AllOf(HasSubstr("[warning] Generate failed: no worker request_id=7f31 total_ms=12 "
                              "status=UNAVAILABLE\n")));
  for (const auto& status : {grpc::Status::OK, kWrong, grpc::Status::CANCELLED}) {
    EXPECT_THAT(Logged(RequestLogLevel::kFailed, status), IsEmpty());
  }
  EXPECT_THAT(Logged(RequestLogLevel::kNone, kLost), IsEmpty());
  EXPECT_THAT(Logged(RequestLogLevel::kAll, grpc::Status::OK),
              HasSubstr("[info] Generate ended request_id=7f31 total_ms=12 status=OK\n"));
}

TEST_F(EndedTest, WhatAClientGotWrongIsNotQuoted) {
  EXPECT_THAT(Logged(RequestLogLevel::kAll, kWrong),
              AllOf(HasSubstr("status=INVALID_ARGUMENT"), Not(HasSubstr("secret"))));
}

TEST_F(EndedTest, FailuresAreLoggedNoOftenerThanIsUseful) {
  LogLines lines(MakeTextLogFormatter());
  RequestLog log(RequestLogLevel::kFailed);
  for (int i = 0; i < 1000; ++i) log.Ended("Generate", kLost, {});
  const std::string text = lines.Text();
  EXPECT_LE(std::count(text.begin(), text.end(), '\n'), LogRate::kBurst + 60);
}

}  // namespace
}  // namespace tandem

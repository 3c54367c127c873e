#include "common/request_tag.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::StrEq;

// The specification's own example.
const std::string kTraceId = "0af7651916cd43dd8448eb211c80319c";
const std::string kTraceparent = "00-" + kTraceId + "-b7ad6b7169203331-01";

TEST(RequestTagTest, RequestIdsAreWhatCanStandInALogLineAsItIs) {
  EXPECT_TRUE(IsRequestId("7f31"));
  EXPECT_TRUE(IsRequestId("req_8c6a1f2e-4b.9:3/x+y=@"));
  EXPECT_TRUE(IsRequestId(std::string(128, 'a')));
  EXPECT_FALSE(IsRequestId(std::string(129, 'a')));
  for (const char* bad : {"", "a b", "a\nb", "\"a\"", "a\\b", "{a}", "a,b", "\xC3\xA9"}) {
    EXPECT_FALSE(IsRequestId(bad)) << bad;
  }
  const std::string made = NewRequestId();
  EXPECT_TRUE(IsRequestId(made));
  EXPECT_EQ(made.size(), 32u);
  EXPECT_NE(made, NewRequestId());
}

TEST(RequestTagTest, TraceparentsAreTakenAsTheSpecificationSays) {
  EXPECT_TRUE(IsTraceparent(kTraceparent));
  EXPECT_EQ(TraceIdOf(kTraceparent), kTraceId);
  // A later version may go on behind a dash, this one may not.
  EXPECT_TRUE(IsTraceparent("cc" + kTraceparent.substr(2)));
  EXPECT_TRUE(IsTraceparent("cc" + kTraceparent.substr(2) + "-what-the-future-holds"));
  EXPECT_FALSE(IsTraceparent("cc" + kTraceparent.substr(2) + ".what"));
  EXPECT_FALSE(IsTraceparent("cc" + kTraceparent.substr(2) + "-a\nb"));
  EXPECT_FALSE(IsTraceparent(kTraceparent + "-01"));
  EXPECT_FALSE(IsTraceparent("ff" + kTraceparent.substr(2)));
  for (const size_t length : {size_t{0}, size_t{2}, size_t{54}}) {
    EXPECT_FALSE(IsTraceparent(kTraceparent.substr(0, length)));
  }
  EXPECT_FALSE(IsTraceparent("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"));
  EXPECT_FALSE(IsTraceparent("00-" + std::string(32, '0') + "-b7ad6b7169203331-01"));
  EXPECT_FALSE(IsTraceparent("00-" + kTraceId + "-" + std::string(16, '0') + "-01"));
  for (const size_t dash : {2, 35, 52}) {
    std::string without = kTraceparent;
    without[dash] = '0';
    EXPECT_FALSE(IsTraceparent(without));
  }
}

TEST(RequestTagTest, OnlyTheLastBitOfTheFlagsSaysThatATraceIsRecorded) {
  const std::string begin = kTraceparent.substr(0, 53);
  for (const char* flags : {"01", "03", "0b", "ff"}) EXPECT_TRUE(IsSampled(begin + flags)) << flags;
  for (const char* flags : {"00", "02", "10", "fe"}) {
    EXPECT_FALSE(IsSampled(begin + flags)) << flags;
  }
}

TEST(RequestTagTest, TracestatesAreTakenWholeOrNotAtAll) {
  EXPECT_TRUE(IsTracestate("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
  EXPECT_TRUE(IsTracestate("a=1, b=2 ,,\tfw529a3039@dt=x y"));
  EXPECT_TRUE(IsTracestate("0ab=1"));
  EXPECT_FALSE(IsTracestate(""));
  EXPECT_FALSE(IsTracestate(" , "));
  EXPECT_FALSE(IsTracestate("Rojo=1"));
  EXPECT_FALSE(IsTracestate("rojo"));
  EXPECT_FALSE(IsTracestate("rojo="));
  EXPECT_FALSE(IsTracestate("rojo=a=b"));
  EXPECT_FALSE(IsTracestate("a=1,b=\x01"));
  std::string members;
  for (int i = 0; i < 32; ++i) absl::StrAppend(&members, i == 0 ? "" : ",", "k", i, "=v");
  EXPECT_TRUE(IsTracestate(members));
  EXPECT_FALSE(IsTracestate(members + ",one=more"));
  EXPECT_TRUE(IsTracestate("a=" + std::string(256, 'x') + ",b=" + std::string(251, 'x')));
  EXPECT_FALSE(IsTracestate("a=" + std::string(257, 'x')));
  EXPECT_FALSE(IsTracestate("a=" + std::string(256, 'x') + ",b=" + std::string(252, 'x')));
}

TEST(RequestTagTest, WhatIsNotValidIsLeftOutAndAStateWithoutAParentAsWell) {
  const RequestTag kept = Sanitized({"id", kTraceparent, "a=1"});
  EXPECT_EQ(kept.request_id, "id");
  EXPECT_EQ(kept.traceparent, kTraceparent);
  EXPECT_EQ(kept.tracestate, "a=1");
  const RequestTag without = Sanitized({"no id", "00-broken", "a=1"});
  EXPECT_EQ(without.request_id, "");
  EXPECT_EQ(without.traceparent, "");
  EXPECT_EQ(without.tracestate, "");
  EXPECT_EQ(Sanitized({"id", kTraceparent, "A=1"}).tracestate, "");
}

TEST(RequestTagTest, FieldsAreThoseThatThereAre) {
  EXPECT_THAT(FieldsOf(RequestTag{"id", kTraceparent, ""}),
              ElementsAre(Pair(StrEq("request_id"), LogValue("id")),
                          Pair(StrEq("trace_id"), LogValue(kTraceId))));
  EXPECT_THAT(FieldsOf(RequestTag{}), IsEmpty());
}

TEST(RequestTagTest, APartNamesFewTracesThoseThatAreRecordedFirst) {
  const auto traceparent = [](char digit, const char* flags) {
    return "00-" + std::string(32, digit) + "-b7ad6b7169203331-" + flags;
  };
  std::vector<RequestTag> tags = {{"no trace", "", ""}};
  for (const char digit : {'1', '2', '2', '3'}) tags.push_back({"", traceparent(digit, "00"), ""});
  for (const char digit : {'4', '5'}) tags.push_back({"", traceparent(digit, "01"), ""});
  std::vector<const RequestTag*> pointers;
  for (const RequestTag& tag : tags) pointers.push_back(&tag);
  const TracesOfPart traces = ChooseTraces(pointers);
  ASSERT_NE(traces, nullptr);
  EXPECT_THAT(*traces, ElementsAre(traceparent('4', "01"), traceparent('5', "01"),
                                   traceparent('1', "00"), traceparent('2', "00")));
  EXPECT_THAT(FieldsOf(ChooseTraces({&tags[5], &tags[1]})),
              ElementsAre(Pair(StrEq("trace_id"),
                               LogValue(std::string(32, '4') + "," + std::string(32, '1')))));
  EXPECT_EQ(ChooseTraces({&tags[0]}), nullptr);
  EXPECT_THAT(FieldsOf(TracesOfPart()), IsEmpty());
}

}  // namespace
}  // namespace tandem

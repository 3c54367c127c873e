#include "common/service/bearer_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "tests/common/service/test_certificates.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(BearerTokensTest, KnowsWhoseEachTokenIs) {
  const auto tokens = BearerTokens::Parse(
      "# who may ask\n"
      "\n"
      "alice  0123456789abcdef\r\n"
      "alice\tfedcba9876543210\n"  // while one replaces the other
      "0000000000000000");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->NameOf("0123456789abcdef"), "alice");
  EXPECT_EQ(tokens->NameOf("fedcba9876543210"), "alice");
  EXPECT_EQ(tokens->NameOf("0000000000000000"), "token");
  EXPECT_EQ(tokens->first(), "0123456789abcdef");
  for (const char* nobodys : {"", "alice", "0123456789abcde", "0123456789abcdefg",
                              "alice  0123456789abcdef", "0123456789ABCDEF"}) {
    EXPECT_EQ(tokens->NameOf(nobodys), std::nullopt) << nobodys;
  }
}

TEST(BearerTokensTest, NamesTheLineThatIsNoneAndNoToken) {
  const std::string secret = "tooshortsecret";
  for (const std::string& text : std::vector<std::string>{
           secret, "name " + secret, "a b 0123456789abcdef", "0123456789abcde\x01",
           "name 0123 456789", std::string(513, 'a'), std::string(65, 'n') + " 0123456789abcdef"}) {
    const auto tokens = BearerTokens::Parse("good 0123456789abcdef\n" + text);
    EXPECT_EQ(tokens.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(tokens.status().message()), HasSubstr("line 2"));
    EXPECT_THAT(std::string(tokens.status().message()), Not(HasSubstr(secret)));
  }
  for (const char* text : {"", "\n\n", "# only this\n"}) {
    EXPECT_EQ(BearerTokens::Parse(text).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(BearerTokensTest, HasABound) {
  std::string text;
  for (int i = 0; i < 1024; ++i) absl::StrAppend(&text, "0123456789abcdef", i, "\n");
  EXPECT_TRUE(BearerTokens::Parse(text).ok());
  EXPECT_FALSE(BearerTokens::Parse(text + "onemoretokenthan1024").ok());
}

TEST(BearerTokensTest, ReadsAFile) {
  const test::TestCertificates folder;
  const auto tokens = BearerTokens::ReadFile(folder.Write("tokens", "0123456789abcdef\n"));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->NameOf("0123456789abcdef"), "token");
  EXPECT_EQ(BearerTokens::ReadFile(folder.file("none")).status().code(),
            absl::StatusCode::kNotFound);
  const auto bad = BearerTokens::ReadFile(folder.Write("short", "secret\n"));
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr(folder.file("short")));
}

TEST(BearerTokensTest, TakesATokenOutOfItsHeader) {
  EXPECT_EQ(TokenOf("Bearer abc"), "abc");
  EXPECT_EQ(TokenOf("bearer  abc "), "abc");
  for (const char* other : {"", "abc", "Basic abc", "Bearer", "Bearerabc"}) {
    EXPECT_EQ(TokenOf(other), std::nullopt) << other;
  }
}

}  // namespace
}  // namespace tandem

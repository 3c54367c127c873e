#include "common/service/certificates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/service/reloaded.h"
#include "tests/common/service/test_certificates.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(CertificatesTest, ReadsWhatAServerNeeds) {
  const test::TestCertificates made;
  const auto read = ReadCertificates(made.Of("expert"));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->uris, ElementsAre("spiffe://tandem/expert"));
  EXPECT_EQ(read->ca, test::ReadAll(made.ca()));
  const absl::Duration left = read->expires - absl::Now();
  EXPECT_GT(left, absl::Hours(24 * 29));
  EXPECT_LE(left, absl::Hours(24 * 30));
  // A client needs none of its own, a server maybe no CA.
  EXPECT_TRUE(ReadCertificates({"", "", made.ca()}).ok());
  EXPECT_TRUE(ReadCertificates({made.file("expert.pem"), made.file("expert.key"), ""}).ok());
}

TEST(CertificatesTest, SaysWhichFileIsNoGood) {
  const test::TestCertificates made;
  const auto why = [](const CertificateFiles& files) {
    return std::string(ReadCertificates(files).status().message());
  };
  const CertificateFiles good = made.Of("expert");
  EXPECT_THAT(why({good.chain, made.file("attention.key"), good.ca}),
              HasSubstr("is not that of the certificate"));
  EXPECT_THAT(why({good.chain, good.chain, good.ca}), HasSubstr("has no private key"));
  EXPECT_THAT(why({good.key, good.key, good.ca}), HasSubstr("has no certificate"));
  EXPECT_THAT(why({good.chain, good.key, good.key}), HasSubstr("has no certificate"));
  EXPECT_THAT(why({good.chain, "", good.ca}), HasSubstr("go together"));
  EXPECT_THAT(why({made.file("none"), good.key, good.ca}), HasSubstr(made.file("none")));
  EXPECT_EQ(ReadCertificates({good.chain, made.file("none"), ""}).status().code(),
            absl::StatusCode::kNotFound);
  // One that is being written.
  const std::string whole = test::ReadAll(good.chain);
  const std::string half = made.Write("half.pem", whole.substr(0, whole.size() / 2));
  EXPECT_EQ(ReadCertificates({half, good.key, ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::string one_and_half =
      made.Write("more.pem", whole + whole.substr(0, whole.size() / 2));
  EXPECT_THAT(why({one_and_half, good.key, ""}), HasSubstr("cannot be read"));
}

TEST(CertificatesTest, AreReadAgainOnceTheyAreWholeAndTheirKeyFits) {
  const test::TestCertificates made;
  const test::TestCertificates next;
  const CertificateFiles files = made.Of("expert");
  const auto watched = Reloaded<Certificates>::Create(
      "certificates", [files] { return ReadCertificates(files); }, std::chrono::milliseconds(5));
  ASSERT_TRUE(watched.ok()) << watched.status();
  const auto before = (*watched)->Get();
  EXPECT_EQ(before, (*watched)->Get());
  // First the certificate, whose key is missing; then its key.
  made.Write("expert.pem", test::ReadAll(next.file("expert.pem")));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // it must not be read in this time
  EXPECT_EQ(before, (*watched)->Get());
  made.Write("expert.key", test::ReadAll(next.file("expert.key")));
  const absl::Time end = absl::Now() + absl::Seconds(20);
  while ((*watched)->Get() == before && absl::Now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ((*watched)->Get()->key, test::ReadAll(next.file("expert.key")));
  EXPECT_EQ((*watched)->Get()->chain, test::ReadAll(next.file("expert.pem")));
}

}  // namespace
}  // namespace tandem

// Certificates for tests, made anew in a folder of their own.
#ifndef TANDEM_TESTS_COMMON_SERVICE_TEST_CERTIFICATES_H_
#define TANDEM_TESTS_COMMON_SERVICE_TEST_CERTIFICATES_H_

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/service/certificates.h"
#include "tests/source_path.h"

namespace tandem::test {

// A CA with a certificate of each role, by scripts/make-certificates. Removed at the end.
class TestCertificates {
 public:
  // From `issuer`'s CA; null: from its own.
  explicit TestCertificates(const TestCertificates* issuer = nullptr,
                            const std::string& flags = "") {
    std::string path = (std::filesystem::temp_directory_path() / "tandem-certs-XXXXXX").string();
    path_ = mkdtemp(path.data());
    if (issuer != nullptr) {
      for (const char* name : {"ca.pem", "ca.key"}) {
        std::filesystem::copy_file(issuer->file(name), file(name));
      }
    }
    Make(flags);
  }
  ~TestCertificates() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestCertificates(const TestCertificates&) = delete;
  TestCertificates& operator=(const TestCertificates&) = delete;

  // Makes all of them anew, from the same CA.
  void Make(const std::string& flags = "") const {
    const std::string command =
        absl::StrCat(SourcePath("scripts/make-certificates"), " ", path_, " ", flags);
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
  std::string file(const std::string& name) const { return absl::StrCat(path_, "/", name); }
  std::string ca() const { return file("ca.pem"); }
  CertificateFiles Of(const std::string& role) const {
    return {file(absl::StrCat(role, ".pem")), file(absl::StrCat(role, ".key")), ca()};
  }
  // A file with this content.
  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(file(name)) << content;
    return file(name);
  }

 private:
  std::string path_;
};

inline std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

}  // namespace tandem::test

#endif  // TANDEM_TESTS_COMMON_SERVICE_TEST_CERTIFICATES_H_

// Where tests find the files of the checkout.
#ifndef TANDEM_TESTS_SOURCE_PATH_H_
#define TANDEM_TESTS_SOURCE_PATH_H_

#include <cstdlib>
#include <string>

namespace tandem::test {

// In the checkout that the tests were built from, or in the folder TANDEM_TEST_SOURCES.
inline std::string SourcePath(const std::string& relative) {
  const char* const dir = std::getenv("TANDEM_TEST_SOURCES");
  return std::string(dir == nullptr ? TANDEM_SOURCE_DIR : dir) + "/" + relative;
}

}  // namespace tandem::test

#endif  // TANDEM_TESTS_SOURCE_PATH_H_

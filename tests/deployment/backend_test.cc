#include "deployment/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace tandem {
namespace {

using testing::HasSubstr;

TEST(BackendTest, AnUnknownDeviceIsRefusedWithWhatThereIs) {
  for (const char* device : {"abacus", "CPU", ""}) {
    BackendOptions options;
    options.device = device;
    const absl::Status status = MakeBackend(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << device;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("\"" + options.device + "\", but this build has only: cpu"));
  }
}

TEST(BackendTest, FlagsChooseDeviceAndThreads) {
  CLI::App app;
  BackendOptions options;
  options.AddTo(app);
  app.parse("--device cpu --threads 3");
  const auto backend = MakeBackend(options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->Description(), HasSubstr("cpu"));
  EXPECT_THAT((*backend)->Description(), HasSubstr("3 threads"));
  EXPECT_THROW(app.parse("--threads 1025"), CLI::ValidationError);
}

}  // namespace
}  // namespace tandem

#include "deployment/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "common/command_line.h"

namespace tandem {
namespace {

using testing::HasSubstr;

// What `flags` set, or nothing if they are refused.
std::optional<BackendOptions> Parse(const std::vector<const char*>& flags) {
  CommandLine app("test");
  BackendOptions options;
  options.AddTo(app);
  std::vector<const char*> argv = {"test"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  if (app.Parse(static_cast<int>(argv.size()), argv.data())) return std::nullopt;
  return options;
}

TEST(BackendTest, AnUnknownDeviceIsRefusedWithWhatThereIs) {
  for (const char* device : {"abacus", "CPU", ""}) {
    BackendOptions options;
    options.device = device;
    const absl::Status status = MakeBackend(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << device;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("\"" + options.device + "\", but must be cpu, cuda or auto"));
  }
}

TEST(BackendTest, FlagsChooseDeviceAndThreads) {
  const auto options = Parse({"--device", "cpu", "--threads", "3"});
  ASSERT_TRUE(options.has_value());
  const auto backend = MakeBackend(*options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->Description(), HasSubstr("cpu"));
  EXPECT_THAT((*backend)->Description(), HasSubstr("3 threads"));
  EXPECT_FALSE(Parse({"--threads", "1025"}).has_value());
}

// Workers whose weights are in another format compute other bits: their classes must not mix.
TEST(BackendTest, TheNumericsClassNamesAFormatOfWeightsThatIsNotTheModes) {
  const auto backend = MakeBackend({});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (const Dtype mode : {Dtype::kF32, Dtype::kBF16}) {
    const WeightFormat of_mode = DefaultWeightFormat(mode);
    EXPECT_EQ(NumericsClass(**backend, mode, of_mode), (*backend)->NumericsClass(mode, of_mode));
  }
  EXPECT_EQ(NumericsClass(**backend, Dtype::kF32, WeightFormat::kBF16),
            "portable-1 with bf16 weights");
  EXPECT_EQ(NumericsClass(**backend, Dtype::kBF16, WeightFormat::kInt4),
            "portable-1 with int4 weights");
}

TEST(BackendTest, PortableNumericsAreOneClassOnEveryMachine) {
  const auto options = Parse({"--numerics", "portable"});
  ASSERT_TRUE(options.has_value());
  const auto backend = MakeBackend(*options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ(NumericsClass(**backend, Dtype::kBF16, WeightFormat::kBF16), "portable-1");

  BackendOptions fast;
  fast.numerics = "fast";
  EXPECT_THAT(std::string(MakeBackend(fast).status().message()),
              HasSubstr("--numerics is \"fast\", but must be auto or portable"));
}

}  // namespace
}  // namespace tandem

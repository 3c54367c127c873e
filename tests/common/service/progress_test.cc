#include "common/service/progress.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace tandem {
namespace {

// What is logged of `shares` where standard error is no terminal.
std::string LogOf(LoadProgress& progress, const std::vector<float>& shares) {
  std::ostringstream out;
  const auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(out);
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  spdlog::set_pattern("%v");
  testing::internal::CaptureStderr();
  for (const float share : shares) progress.Report(share);
  testing::internal::GetCapturedStderr();
  spdlog::set_default_logger(before);
  return out.str();
}

TEST(LoadProgressTest, LogsEveryTenthOnce) {
  LoadProgress progress("weights");
  EXPECT_EQ(LogOf(progress, {0.11f, 0.19f, 0.2f, 1.0f}),
            "weights: 10%\nweights: 20%\nweights: 100%\n");
}

TEST(LoadProgressTest, IsQuietAtFirstButKnowsTheShare) {
  LoadProgress progress("digest", absl::Hours(1));
  EXPECT_EQ(LogOf(progress, {0.1f, 0.5f}), "");
  EXPECT_EQ(progress.share(), 0.5f);
  // The first report begins the quiet time, not the making.
  LoadProgress soon("digest", absl::Nanoseconds(1));
  EXPECT_EQ(LogOf(soon, {0.1f, 0.5f, 1.0f}).substr(0, 12), "digest: 50%\n");
}

}  // namespace
}  // namespace tandem

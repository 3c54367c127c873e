#include "attention_worker/layer_times.h"

#include <prometheus/text_serializer.h>

#include <chrono>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

class LayerTimesTest : public ::testing::Test {
 protected:
  void Pass(milliseconds time) { now_ += time; }
  std::string Scrape() const {
    return prometheus::TextSerializer().Serialize(times_.registry()->Collect());
  }
  static auto HasLine(const std::string& line) { return HasSubstr("\n" + line + "\n"); }
  static std::string Sum(const std::string& part) {
    return "tandem_attention_layer_part_seconds_sum{part=\"" + part + "\"} ";
  }

  LayerClock::Clock::time_point now_{seconds(1000)};
  LayerTimes times_{3};
  LayerClock clock_{&times_, [this] { return now_; }};
};

TEST_F(LayerTimesTest, PartsFollowEachOtherWithoutGaps) {
  clock_.Begin(2);
  Pass(seconds(1));
  clock_.End(LayerPart::kAttention);
  Pass(seconds(2));
  clock_.End(LayerPart::kDispatch);
  Pass(seconds(4));
  clock_.End(LayerPart::kMlp);
  Pass(seconds(8));
  clock_.End(LayerPart::kExpertWait);
  Pass(seconds(16));
  clock_.End(LayerPart::kCombine);
  const std::string text = Scrape();
  EXPECT_THAT(text, HasLine(Sum("attention") + "1"));
  EXPECT_THAT(text, HasLine(Sum("dispatch") + "2"));
  EXPECT_THAT(text, HasLine(Sum("mlp") + "4"));
  EXPECT_THAT(text, HasLine(Sum("expert_wait") + "8"));
  EXPECT_THAT(text, HasLine(Sum("combine") + "16"));
  const std::string by_layer = "tandem_attention_layer_seconds_total";
  EXPECT_THAT(text, HasLine(by_layer + "{layer=\"2\",part=\"expert_wait\"} 8"));
  EXPECT_THAT(text, HasLine(by_layer + "{layer=\"1\",part=\"expert_wait\"} 0"));
  EXPECT_EQ(times_.Sums(), (CounterSnapshot{{"layer_attention_us_total", 1'000'000},
                                            {"layer_dispatch_us_total", 2'000'000},
                                            {"layer_mlp_us_total", 4'000'000},
                                            {"layer_expert_wait_us_total", 8'000'000},
                                            {"layer_combine_us_total", 16'000'000}}));
}

// As on a GPU: the shared experts are queued long before the router's choice is there.
TEST_F(LayerTimesTest, WhatIsCalledBeforeAttentionHasEndedIsInItsTime) {
  clock_.Begin(0);
  Pass(seconds(1));
  clock_.End(LayerPart::kMlp);
  Pass(seconds(2));
  clock_.End(LayerPart::kAttention);
  const std::string text = Scrape();
  EXPECT_THAT(text, HasLine(Sum("attention") + "3"));
  EXPECT_THAT(text, HasLine("tandem_attention_layer_part_seconds_count{part=\"mlp\"} 0"));
}

TEST_F(LayerTimesTest, ALayerThatIsGivenUpLeavesNothingToTheNext) {
  clock_.Begin(1);
  Pass(seconds(1));
  clock_.End(LayerPart::kAttention);
  Pass(seconds(60));
  clock_.Begin(1);
  clock_.End(LayerPart::kMlp);  // not of this layer: its attention has not ended
  Pass(seconds(2));
  clock_.End(LayerPart::kAttention);
  EXPECT_THAT(Scrape(), HasLine(Sum("attention") + "3"));
  EXPECT_THAT(Scrape(), HasLine(Sum("mlp") + "0"));
}

TEST_F(LayerTimesTest, WithoutTimesTheClockIsNeverAsked) {
  LayerClock clock(nullptr, []() -> LayerClock::Clock::time_point {
    ADD_FAILURE();
    return {};
  });
  clock.Begin(0);
  clock.End(LayerPart::kAttention);
}

}  // namespace
}  // namespace tandem

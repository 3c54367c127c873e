#include "tools/simulate/simulation.h"

#include <algorithm>
#include <string>

#include "gtest/gtest.h"
#include "tests/tools/simulate/small_model.h"
#include "tools/simulate/report.h"

namespace tandem::simulate {
namespace {

SimulationOptions Small() {
  SimulationOptions options;
  options.model = SmallModel();
  options.constants = OnlyWeights();
  options.load.streams = 1;
  options.load.prompt = LengthDistribution::Fixed(20);
  options.load.output = LengthDistribution::Fixed(30);
  options.tokens_per_stream = 100;
  return options;
}

SimulationReport Simulated(const SimulationOptions& options) {
  const absl::StatusOr<SimulationReport> report = Simulate(options);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : SimulationReport{};
}

// Milliseconds of one stream's step: a dense layer, two with four experts each (the shared ones are
// done meanwhile), logits.
constexpr double kAttentionMs = 0.2896;
constexpr double kStepMs = kAttentionMs + 12 + 2 * (kAttentionMs + 0.016 + 12) + 1;

TEST(SimulationTest, OneStreamTakesTheSumOfItsParts) {
  SimulationOptions options = Small();
  options.load.prompt = LengthDistribution::Fixed(1);  // the same step as any other
  const SimulationReport report = Simulated(options);
  EXPECT_NEAR(report.step_ms.p50, kStepMs, 0.001);
  EXPECT_NEAR(report.between_tokens_ms.p99, kStepMs, 0.001);
  EXPECT_NEAR(report.first_token_ms.p99, kStepMs, 0.001);
  EXPECT_NEAR(report.tokens_per_s, 1000 / kStepMs, 0.1);
  EXPECT_NEAR(report.in_attention, (kStepMs - 2 * 9) / kStepMs, 0.001);
  EXPECT_NEAR(report.in_experts, 2 * 9 / kStepMs, 0.001);
  EXPECT_NEAR(report.experts.max, 24 / kStepMs, 0.01);
  EXPECT_EQ(report.calls_per_layer, 1);
  EXPECT_EQ(report.experts_per_computation, 4);
  EXPECT_EQ(report.failed, 0);
  EXPECT_EQ(report.bound, "latency");
}

TEST(SimulationTest, LinksCostLatencyAndMessages) {
  SimulationOptions options = Small();
  options.constants.latency_us = 500;
  options.constants.message_us = 100;
  // A call and an answer in each of two layers, each through two ports.
  EXPECT_NEAR(Simulated(options).step_ms.p50, kStepMs + 2 * (2 * 0.5 + 4 * 0.1), 0.01);
}

TEST(SimulationTest, WorkersShareTheExpertsOfALayer) {
  SimulationOptions options = Small();
  options.expert_workers = 16;
  options.copies = 1;
  const SimulationReport report = Simulated(options);
  EXPECT_NEAR(report.step_ms.p50, kStepMs - 2 * 9,
              0.01);                            // one expert each: as long as shared ones
  EXPECT_NEAR(report.calls_per_layer, 4, 1.5);  // prompts ask more
  EXPECT_EQ(report.experts_per_computation, 1);
}

TEST(SimulationTest, SendersOfOneLayerAreServedTogether) {
  SimulationOptions options = Small();
  options.attention_workers = 8;
  options.load.streams = 8;
  const SimulationReport report = Simulated(options);
  EXPECT_GT(report.calls_per_computation, 1.2);
  EXPECT_GT(report.tokens_per_s, 2 * Simulated(Small()).tokens_per_s);
  EXPECT_EQ(report.bound, "experts");
}

TEST(SimulationTest, NamesTheGatewayThatHasNoTimeLeft) {
  SimulationOptions options = Small();
  options.attention_workers = 4;
  options.load.streams = 4;
  options.constants.gateway_step_us = 200'000;
  EXPECT_EQ(Simulated(options).bound, "gateway");
}

TEST(SimulationTest, TheSeedDecidesEverything) {
  SimulationOptions options = Small();
  options.attention_workers = 2;
  options.expert_workers = 3;
  options.load.streams = 8;
  options.load.prompt = *LengthDistribution::Parse("lognormal:100:1:1000");
  options.load.output = *LengthDistribution::Parse("uniform:10:50");
  options.skew = 0.5;
  const std::string line = CsvLine(options, Simulated(options));
  EXPECT_EQ(CsvLine(options, Simulated(options)), line);
  SimulationOptions other = options;
  other.seed = 2;
  EXPECT_NE(CsvLine(options, Simulated(other)), line);
}

TEST(SimulationTest, PoissonLoadBelowAndAboveWhatItCanDo) {
  SimulationOptions options = Small();
  options.load.streams = 0;
  options.load.output = LengthDistribution::Fixed(5);
  options.open_loop_requests = 300;
  options.policy.max_waiting = 20;
  options.load.requests_per_s = 1;
  const SimulationReport calm = Simulated(options);
  EXPECT_EQ(calm.refused, 0);
  EXPECT_EQ(calm.waiting, 0);
  EXPECT_NEAR(calm.requests_per_s, 1, 0.2);
  options.load.requests_per_s = 1000;
  options.policy.max_running_per_worker = 4;
  const SimulationReport crowded = Simulated(options);
  EXPECT_GT(crowded.refused, 100);
  EXPECT_EQ(crowded.waiting, 20);
}

TEST(SimulationTest, ASmallCacheIsPreemptedAndStillServes) {
  SimulationOptions options = Small();
  options.load.streams = 8;
  options.load.output = LengthDistribution::Fixed(200);
  options.tokens_per_stream = 300;
  options.cache_pages = 10;  // of 64 tokens; each needs 4 in the end
  const SimulationReport report = Simulated(options);
  EXPECT_GT(report.preemptions, 0);
  EXPECT_EQ(report.failed, 0);
  EXPECT_GT(report.requests_per_s, 0);
}

TEST(SimulationTest, AllWaysOfPlanningStepsServe) {
  SimulationOptions options = Small();
  options.load.streams = 8;
  for (const int layers : {0, 1}) {
    for (const int groups : {1, 2}) {
      options.policy.max_layers_per_step = layers;
      options.policy.decode_groups = groups;
      options.policy.max_batch_rows = 30;
      const SimulationReport report = Simulated(options);
      EXPECT_GT(report.requests_per_s, 0) << layers << " layers, " << groups << " groups";
      EXPECT_EQ(report.failed, 0);
    }
  }
}

TEST(SimulationTest, GivesUp) {
  SimulationOptions options = Small();
  options.max_simulated_s = 0.01;
  EXPECT_EQ(Simulate(options).status().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace tandem::simulate

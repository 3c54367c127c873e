#include "gateway/request_metrics.h"

#include <prometheus/text_serializer.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Scrape(const prometheus::Collectable& collectable) {
  return prometheus::TextSerializer().Serialize(collectable.Collect());
}

std::string Scrape(const RequestMetrics& metrics) { return Scrape(*metrics.registry()); }

// A line of the exposition format.
auto HasLine(const std::string& line) { return HasSubstr("\n" + line + "\n"); }

TEST(RequestMetricsTest, AnUpperBoundBelongsToItsBucket) {
  RequestMetrics metrics;
  metrics.ObserveFirstToken(absl::Milliseconds(1));
  metrics.ObserveFirstToken(absl::Seconds(3000));
  const std::string text = Scrape(metrics);
  const std::string name = "tandem_gateway_time_to_first_token_seconds";
  EXPECT_THAT(text, HasLine(name + "_bucket{le=\"0.001\"} 1"));
  EXPECT_THAT(text, HasLine(name + "_bucket{le=\"2560\"} 1"));
  EXPECT_THAT(text, HasLine(name + "_bucket{le=\"+Inf\"} 2"));
  EXPECT_THAT(text, HasLine(name + "_count 2"));
}

TEST(RequestMetricsTest, ARequestIsObservedOnceInEachOfItsMetrics) {
  RequestMetrics metrics;
  metrics.ObserveGenerated({v1::GenerateResponse::FINISH_REASON_LENGTH, 7, 5, absl::Seconds(11),
                            absl::Seconds(1), absl::Seconds(2), absl::Seconds(8)});
  const std::string text = Scrape(metrics);
  const std::string prefix = "tandem_gateway_";
  EXPECT_THAT(text, AllOf(HasLine(prefix + "request_success_total{finished_reason=\"length\"} 1"),
                          HasLine(prefix + "request_success_total{finished_reason=\"eos\"} 0"),
                          HasLine(prefix + "request_success_total{finished_reason=\"stop\"} 0"),
                          HasLine(prefix + "request_success_total{finished_reason=\"scored\"} 0")));
  EXPECT_THAT(text, AllOf(HasLine(prefix + "e2e_request_latency_seconds_sum 11"),
                          HasLine(prefix + "request_queue_time_seconds_sum 1"),
                          HasLine(prefix + "request_prefill_time_seconds_sum 2"),
                          HasLine(prefix + "request_decode_time_seconds_sum 8"),
                          HasLine(prefix + "request_time_per_output_token_seconds_sum 2"),
                          HasLine(prefix + "request_prompt_tokens_sum 7"),
                          HasLine(prefix + "request_generation_tokens_sum 5")));
}

// Times that there were none of would be zeros, which pull every percentile down.
TEST(RequestMetricsTest, AnAnswerOfNoTokenOrOneHasNoTimesBetweenTokens) {
  RequestMetrics metrics;
  metrics.ObserveGenerated({v1::GenerateResponse::FINISH_REASON_EOS, 7, 0, absl::Seconds(1)});
  metrics.ObserveGenerated({v1::GenerateResponse::FINISH_REASON_EOS, 7, 1, absl::Seconds(1)});
  const std::string text = Scrape(metrics);
  EXPECT_THAT(text, HasLine("tandem_gateway_e2e_request_latency_seconds_count 2"));
  EXPECT_THAT(text, HasLine("tandem_gateway_request_prefill_time_seconds_count 1"));
  EXPECT_THAT(text, HasLine("tandem_gateway_request_time_per_output_token_seconds_count 0"));
}

TEST(RequestMetricsTest, ErrorsAreCountedByStatusAndUnknownOnesAsSuch) {
  RequestMetrics metrics;
  metrics.CountError(absl::StatusCode::kCancelled);
  metrics.CountError(static_cast<absl::StatusCode>(77));
  const std::string text = Scrape(metrics);
  EXPECT_THAT(text, HasLine("tandem_gateway_request_errors_total{status=\"CANCELLED\"} 1"));
  EXPECT_THAT(text, HasLine("tandem_gateway_request_errors_total{status=\"UNKNOWN\"} 1"));
  EXPECT_THAT(text, HasLine("tandem_gateway_request_errors_total{status=\"UNAVAILABLE\"} 0"));
  EXPECT_THAT(text, Not(HasSubstr("status=\"OK\"")));
}

TEST(RequestMetricsTest, TheCachesUseIsAShare) {
  CounterSnapshot counters;
  const auto gauge = CacheUsageGauge([&counters] { return counters; });
  EXPECT_THAT(Scrape(*gauge), HasLine("tandem_gateway_cache_usage_ratio 0"));  // no worker yet
  counters = {{"pages_capacity", 8}, {"pages_held", 2}};
  EXPECT_THAT(Scrape(*gauge), HasLine("tandem_gateway_cache_usage_ratio 0.25"));
}

}  // namespace
}  // namespace tandem

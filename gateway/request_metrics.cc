#include "gateway/request_metrics.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// Upper bounds. vLLM's; what they lack for small models comes first: tokens within a millisecond,
// queues and prefills that take less than 0.3 s.
const Buckets kFirstTokenSeconds = {0.001, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08, 0.1,
                                    0.25,  0.5,   0.75, 1.0,   2.5,   5.0,   7.5,  10.0,
                                    20.0,  40.0,  80.0, 160.0, 640.0, 2560.0};
const Buckets kTokenSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                               0.15,  0.2,    0.3,   0.4,  0.5,   0.75, 1.0,   2.5,
                               5.0,   7.5,    10.0,  20.0, 40.0,  80.0};
const Buckets kRequestSeconds = {0.001, 0.005, 0.01, 0.05, 0.1,  0.2,   0.3,   0.5,    0.8,
                                 1.0,   1.5,   2.0,  2.5,  5.0,  10.0,  15.0,  20.0,   30.0,
                                 40.0,  50.0,  60.0, 120., 240., 480.0, 960.0, 1920.0, 7680.0};
// To the longest context.
const Buckets kTokens = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                         1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

std::string Named(const char* name) { return absl::StrCat("tandem_gateway_", name); }

prometheus::Histogram* MakeHistogram(prometheus::Registry* registry, const char* name,
                                     const char* help, const Buckets& buckets) {
  return &prometheus::BuildHistogram()
              .Name(Named(name))
              .Help(help)
              .Register(*registry)
              .Add({}, buckets);
}

// A clock that was set back gives no negative time.
double Seconds(absl::Duration time) { return std::max(absl::ToDoubleSeconds(time), 0.0); }

}  // namespace

const char* FinishReasonLabel(v1::GenerateResponse::FinishReason reason) {
  switch (reason) {
    case v1::GenerateResponse::FINISH_REASON_EOS:
      return "eos";
    case v1::GenerateResponse::FINISH_REASON_LENGTH:
      return "length";
    case v1::GenerateResponse::FINISH_REASON_STOP:
      return "stop";
    default:
      return nullptr;
  }
}

RequestMetrics::RequestMetrics() : registry_(std::make_shared<prometheus::Registry>()) {
  prometheus::Registry* const all = registry_.get();
  time_to_first_token_ =
      MakeHistogram(all, "time_to_first_token_seconds", "From a call's arrival to its first token",
                    kFirstTokenSeconds);
  inter_token_latency_ =
      MakeHistogram(all, "inter_token_latency_seconds",
                    "From a token to the next one of the same request", kTokenSeconds);
  time_per_output_token_ = MakeHistogram(
      all, "request_time_per_output_token_seconds",
      "Mean time from token to token of a request that gave its whole answer", kTokenSeconds);
  e2e_latency_ = MakeHistogram(all, "e2e_request_latency_seconds",
                               "From a call's arrival to the end of its answer", kRequestSeconds);
  queue_time_ =
      MakeHistogram(all, "request_queue_time_seconds",
                    "From a request's prompt being tokenized to its admission", kRequestSeconds);
  prefill_time_ = MakeHistogram(all, "request_prefill_time_seconds",
                                "From a request's admission to its first token", kRequestSeconds);
  decode_time_ = MakeHistogram(all, "request_decode_time_seconds",
                               "From a request's first token to its last", kRequestSeconds);
  prompt_tokens_ =
      MakeHistogram(all, "request_prompt_tokens", "Tokens of a request's prompt", kTokens);
  generation_tokens_ = MakeHistogram(all, "request_generation_tokens",
                                     "Tokens that a request was answered with", kTokens);
  auto& success = prometheus::BuildCounter()
                      .Name(Named("request_success_total"))
                      .Help("Requests that gave their whole answer, by why it ended")
                      .Register(*all);
  for (size_t reason = 0; reason < success_.size(); ++reason) {
    const char* label = FinishReasonLabel(static_cast<v1::GenerateResponse::FinishReason>(reason));
    if (label != nullptr) success_[reason] = &success.Add({{"finished_reason", label}});
  }
  scored_ = &success.Add({{"finished_reason", "scored"}});
  auto& errors = prometheus::BuildCounter()
                     .Name(Named("request_errors_total"))
                     .Help("Requests that ended with an error, by its status")
                     .Register(*all);
  for (size_t code = 1; code < errors_.size(); ++code) {
    const auto name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
    errors_[code] = &errors.Add({{"status", std::string(name)}});
  }
}

void RequestMetrics::ObserveFirstToken(absl::Duration since_arrival) {
  time_to_first_token_->Observe(Seconds(since_arrival));
}

void RequestMetrics::ObserveNextToken(absl::Duration since_last) {
  inter_token_latency_->Observe(Seconds(since_last));
}

void RequestMetrics::ObserveGenerated(const Generated& generated) {
  if (success_[generated.reason] != nullptr) success_[generated.reason]->Increment();
  e2e_latency_->Observe(Seconds(generated.e2e));
  queue_time_->Observe(Seconds(generated.queue));
  prompt_tokens_->Observe(static_cast<double>(generated.prompt_tokens));
  generation_tokens_->Observe(static_cast<double>(generated.generation_tokens));
  if (generated.generation_tokens == 0) return;  // the first token ended it
  prefill_time_->Observe(Seconds(generated.prefill));
  decode_time_->Observe(Seconds(generated.decode));
  if (generated.generation_tokens == 1) return;
  time_per_output_token_->Observe(Seconds(generated.decode) /
                                  static_cast<double>(generated.generation_tokens - 1));
}

void RequestMetrics::CountError(absl::StatusCode code) {
  auto index = static_cast<size_t>(code);
  if (index == 0 || index >= errors_.size())
    index = static_cast<size_t>(absl::StatusCode::kUnknown);
  errors_[index]->Increment();
}

namespace {

class CacheUsage : public prometheus::Collectable {
 public:
  explicit CacheUsage(std::function<CounterSnapshot()> counters) : counters_(std::move(counters)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    double held = 0;
    double capacity = 0;
    for (const auto& [name, value] : counters_()) {
      if (name == "pages_held") held = static_cast<double>(value);
      if (name == "pages_capacity") capacity = static_cast<double>(value);
    }
    prometheus::MetricFamily family;
    family.name = Named("cache_usage_ratio");
    family.help = "Share of the attention workers' pages that sequences hold, 0 to 1";
    family.type = prometheus::MetricType::Gauge;
    family.metric.emplace_back().gauge.value = capacity > 0 ? held / capacity : 0;
    return {std::move(family)};
  }

 private:
  const std::function<CounterSnapshot()> counters_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> CacheUsageGauge(
    std::function<CounterSnapshot()> counters) {
  return std::make_shared<CacheUsage>(std::move(counters));
}

}  // namespace tandem

// What a gateway measures of its requests, for Prometheus and for `tandem status`. Names, meanings
// and buckets are vLLM's, with our prefix, so that dashboards and rules of one fit the other.
#ifndef TANDEM_GATEWAY_REQUEST_METRICS_H_
#define TANDEM_GATEWAY_REQUEST_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "proto/inference.pb.h"

namespace tandem {

// What a finish reason is called in labels and logs; null for none.
const char* FinishReasonLabel(v1::GenerateResponse::FinishReason reason);

// Thread-safe. An observation takes a lock of its metric's own, which else only a scrape takes, for
// as long as copying some twenty counters does: some tens of nanoseconds for a generated token.
class RequestMetrics {
 public:
  RequestMetrics();
  RequestMetrics(const RequestMetrics&) = delete;
  RequestMetrics& operator=(const RequestMetrics&) = delete;

  // Everything here, each named tandem_gateway_...
  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

  // Of Generate: from the call's arrival, text included that is tokenized first.
  void ObserveFirstToken(absl::Duration since_arrival);
  // From one token to the next of the same request.
  void ObserveNextToken(absl::Duration since_last);

  struct Generated {
    v1::GenerateResponse::FinishReason reason = v1::GenerateResponse::FINISH_REASON_UNSPECIFIED;
    int64_t prompt_tokens = 0;
    int64_t generation_tokens = 0;
    absl::Duration e2e = absl::ZeroDuration();      // from the call's arrival to its last message
    absl::Duration queue = absl::ZeroDuration();    // from tokenized to admitted
    absl::Duration prefill = absl::ZeroDuration();  // from admitted to the first token
    absl::Duration decode = absl::ZeroDuration();   // from the first token to the last
  };
  // A Generate that gave its whole answer.
  void ObserveGenerated(const Generated& generated);
  void CountScored() { scored_->Increment(); }
  // A Generate or Score that ended with an error, its client's going away (CANCELLED) included.
  void CountError(absl::StatusCode code);

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Histogram* time_to_first_token_;
  prometheus::Histogram* inter_token_latency_;
  prometheus::Histogram* time_per_output_token_;
  prometheus::Histogram* e2e_latency_;
  prometheus::Histogram* queue_time_;
  prometheus::Histogram* prefill_time_;
  prometheus::Histogram* decode_time_;
  prometheus::Histogram* prompt_tokens_;
  prometheus::Histogram* generation_tokens_;
  std::array<prometheus::Counter*, v1::GenerateResponse::FinishReason_ARRAYSIZE> success_{};
  prometheus::Counter* scored_;
  // By code; those that nobody has seen are there as well, so that a rate sees the first one.
  std::array<prometheus::Counter*, static_cast<size_t>(absl::StatusCode::kUnauthenticated) + 1>
      errors_{};
};

// tandem_gateway_cache_usage_ratio: the share, 0 to 1, of all attention workers' pages that
// sequences hold, by pages_held and pages_capacity of `counters`, which is asked at each scrape.
std::shared_ptr<prometheus::Collectable> CacheUsageGauge(std::function<CounterSnapshot()> counters);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_REQUEST_METRICS_H_

// What an expert worker measures of its parts and calls, for Prometheus.
#ifndef TANDEM_EXPERT_WORKER_ENGINE_TIMES_H_
#define TANDEM_EXPERT_WORKER_ENGINE_TIMES_H_

#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"

namespace tandem {

// A part is one attention worker's share of a layer; parts that wait for the same layer are
// computed in one call. Thread-safe. An observation costs some tens of nanoseconds.
class ExpertEngineTimes {
 public:
  ExpertEngineTimes();
  ExpertEngineTimes(const ExpertEngineTimes&) = delete;
  ExpertEngineTimes& operator=(const ExpertEngineTimes&) = delete;

  // Everything here, each named tandem_expert_...
  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

  // A part was taken up, or dropped, so long after it had come.
  void ObserveQueue(std::chrono::nanoseconds time);
  // A call has so many rows; `tokens` by expert, of which those with none do not count.
  void ObserveRows(int64_t rows, absl::Span<const int32_t> tokens);
  // It was computed, and its parts answered, in so much time.
  void ObserveCall(std::chrono::nanoseconds time);
  // A part was answered, with rows or an error, so long after it had come.
  void ObservePart(std::chrono::nanoseconds time);

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Histogram* queue_;
  prometheus::Histogram* rows_;
  prometheus::Histogram* tokens_;
  prometheus::Histogram* call_;
  prometheus::Histogram* part_;
};

}  // namespace tandem

#endif  // TANDEM_EXPERT_WORKER_ENGINE_TIMES_H_

#include "expert_worker/engine_times.h"

namespace tandem {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets kSeconds = {0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001,
                          0.0025,  0.005,    0.01,    0.025,  0.05,    0.1,    0.25,
                          0.5,     1.0,      2.5,     5.0,    10.0,    60.0};
// Rows and tokens: powers of two, as batches are, to the most that is merged.
const Buckets kCounts = {1,   2,    4,    8,    16,   32,    64,    128,  256,
                         512, 1024, 2048, 4096, 8192, 16384, 32768, 65536};

prometheus::Histogram* MakeHistogram(prometheus::Registry* registry, const char* name,
                                     const char* help, const Buckets& buckets) {
  return &prometheus::BuildHistogram().Name(name).Help(help).Register(*registry).Add({}, buckets);
}

double Seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

ExpertEngineTimes::ExpertEngineTimes() : registry_(std::make_shared<prometheus::Registry>()) {
  prometheus::Registry* const all = registry_.get();
  queue_ = MakeHistogram(all, "tandem_expert_part_queue_seconds",
                         "From a part's arrival until it was taken up or dropped", kSeconds);
  part_ = MakeHistogram(all, "tandem_expert_part_seconds",
                        "From a part's arrival until it was answered", kSeconds);
  call_ =
      MakeHistogram(all, "tandem_expert_call_seconds",
                    "Time to compute and answer the parts of one layer that were merged", kSeconds);
  rows_ = MakeHistogram(all, "tandem_expert_call_rows", "Rows of such a call", kCounts);
  tokens_ = MakeHistogram(all, "tandem_expert_tokens_per_expert",
                          "Rows that one expert has in a call, of experts that have any", kCounts);
}

void ExpertEngineTimes::ObserveQueue(std::chrono::nanoseconds time) {
  queue_->Observe(Seconds(time));
}

void ExpertEngineTimes::ObserveRows(int64_t rows, absl::Span<const int32_t> tokens) {
  rows_->Observe(static_cast<double>(rows));
  for (const int32_t count : tokens) {
    if (count > 0) tokens_->Observe(count);
  }
}

void ExpertEngineTimes::ObserveCall(std::chrono::nanoseconds time) {
  call_->Observe(Seconds(time));
}

void ExpertEngineTimes::ObservePart(std::chrono::nanoseconds time) {
  part_->Observe(Seconds(time));
}

}  // namespace tandem

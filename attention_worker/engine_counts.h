// What the engine counts: written by its thread (cancels_total also by callers), read by any.
#ifndef TANDEM_ATTENTION_WORKER_ENGINE_COUNTS_H_
#define TANDEM_ATTENTION_WORKER_ENGINE_COUNTS_H_

#include <atomic>
#include <cstdint>

namespace tandem {

// Meanings: AttentionEngine::Counters.
struct EngineCounts {
  std::atomic<int64_t> sequences_live = 0;
  std::atomic<int64_t> batches_live = 0;
  std::atomic<int64_t> rows_live = 0;
  std::atomic<int64_t> pages_free = 0;
  std::atomic<int64_t> sessions_live = 0;
  std::atomic<int64_t> steps_total = 0;
  std::atomic<int64_t> layers_total = 0;
  std::atomic<int64_t> expanded_row_layers_total = 0;
  std::atomic<int64_t> absorbed_row_layers_total = 0;
  std::atomic<int64_t> sampled_total = 0;
  std::atomic<int64_t> scored_total = 0;
  std::atomic<int64_t> cancels_total = 0;
  std::atomic<int64_t> cancel_layers_max = 0;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ENGINE_COUNTS_H_

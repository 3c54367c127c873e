// What a dispatcher counts.
#ifndef TANDEM_COMMON_TRANSPORT_DISPATCH_COUNTS_H_
#define TANDEM_COMMON_TRANSPORT_DISPATCH_COUNTS_H_

#include <atomic>
#include <cstdint>

#include "common/counters.h"

namespace tandem {

// Thread-safe. ExpertDispatcher::Counters says what each means.
struct DispatchCounts {
  std::atomic<int64_t> dispatches{0};
  std::atomic<int64_t> parts{0};
  std::atomic<int64_t> retries{0};
  std::atomic<int64_t> hedged_parts{0};
  std::atomic<int64_t> probes{0};
  std::atomic<int64_t> rows_sent{0};
  std::atomic<int64_t> rows_received{0};
  std::atomic<int64_t> late_replies{0};
  std::atomic<int64_t> parts_live{0};
  std::atomic<int64_t> workers_aside{0};

  CounterSnapshot Snapshot() const {
    return {{"dispatches_total", dispatches.load()},
            {"parts_total", parts.load()},
            {"retries_total", retries.load()},
            {"hedged_parts_total", hedged_parts.load()},
            {"probes_total", probes.load()},
            {"rows_sent_total", rows_sent.load()},
            {"rows_received_total", rows_received.load()},
            {"late_replies_total", late_replies.load()},
            {"parts_live", parts_live.load()},
            {"workers_aside", workers_aside.load()}};
  }
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_DISPATCH_COUNTS_H_

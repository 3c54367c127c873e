// Splits a layer's routed rows over expert workers by the placement, retries, and combines.
#ifndef TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_
#define TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/placement.h"
#include "common/tensor.h"
#include "common/transport/expert_link.h"

namespace tandem {

// One layer's rows and routes, as the router left them.
struct RowBatch {
  uint64_t step = 0;
  int layer = 0;
  TensorView rows;                         // [num_rows, hidden] act; unchanged until Wait returns
  std::shared_ptr<const void> rows_owner;  // keeps `rows` alive for attempts that come to nothing;
                                           // null: rows are always copied before they are sent
  const int32_t* expert_ids = nullptr;     // [num_rows, top_k], best first
  const float* weights = nullptr;          // [num_rows, top_k]
  int top_k = 0;
};

// Sums weighted expert rows: kernels::Backend::Combine, handed in so that this stays free of
// kernels.
//   (expert_rows [routes, hidden], offsets [rows + 1], weights [routes], out [rows, hidden])
using CombineFunction = std::function<void(const TensorView& expert_rows, const int32_t* offsets,
                                           const float* weights, const TensorView& out)>;
// Makes the link to a worker that a placement names.
using ExpertLinkFactory = std::function<std::shared_ptr<ExpertLink>(const Placement::Worker&)>;

// Time limits grow with what was measured: an attempt at n routes gets attempt_timeout plus 8 n
// times the least time per route of any earlier part, twice that after each attempt that timed out;
// a layer of n routes gets layer_timeout, or 24 n times that least time if that is more.
struct DispatcherOptions {
  absl::Duration attempt_timeout = absl::Seconds(10);   // one attempt at one part
  absl::Duration layer_timeout = absl::Seconds(60);     // all attempts of a layer together
  absl::Duration retry_delay = absl::Milliseconds(20);  // before asking the same worker again
  absl::Duration reply_grace = absl::Seconds(1);   // a link that is later than this has lost a part
  absl::Duration avoid_failed = absl::Seconds(2);  // other holders are preferred for so long
};

// Thread-safe: SetPlacement may come from any thread at any time; Dispatch and Wait belong to the
// engine thread. The result of a row does not depend on how its routes are split: a worker that
// holds all of a row's experts combines them itself with the same function.
class ExpertDispatcher {
 private:
  struct Layer;

 public:
  ExpertDispatcher(uint64_t incarnation, DispatcherOptions options, ExpertLinkFactory make_link,
                   CombineFunction combine);
  ~ExpertDispatcher();

  // Takes effect at the next attempt. Links to workers that stay are kept.
  void SetPlacement(Placement placement);
  bool HasPlacement() const;

  // A dispatched layer. Belongs to the engine thread; may be destroyed unanswered.
  class Pending {
   public:
    ~Pending();
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;

   private:
    friend class ExpertDispatcher;
    explicit Pending(std::unique_ptr<Layer> layer);
    std::unique_ptr<Layer> layer_;
  };

  // Sends the rows out and returns at once; the shared experts can run meanwhile.
  std::unique_ptr<Pending> Dispatch(const RowBatch& batch);

  // Waits until every row is answered and writes the combined, rounded rows to `out`
  // [num_rows, hidden] act. Retries a failed part with another holder, or with the same one after
  // retry_delay, under the newest placement. Returns early with CANCELLED when `cancelled()` turns
  // true (asked every few milliseconds), and UNAVAILABLE, naming worker and layer, when
  // layer_timeout has passed. At most once per Pending.
  absl::Status Wait(Pending& pending, const std::function<bool()>& cancelled,
                    const TensorView& out);

  // dispatches_total, parts_total, retries_total (parts that failed), rows_sent_total,
  // rows_received_total, late_replies_total, parts_live
  CounterSnapshot Counters() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_

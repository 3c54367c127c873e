// Splits a layer's routed rows over expert workers by the placement, retries, and gathers the
// answers.
#ifndef TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_
#define TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/counters.h"
#include "common/placement.h"
#include "common/tensor.h"
#include "common/transport/expert_link.h"

namespace tandem {

// One layer's rows and routes, as the router left them, in host memory.
struct RowBatch {
  uint64_t step = 0;  // of the step that they belong to, as the gateway counts
  int layer = 0;
  TensorView rows;                         // [num_rows, hidden] act
  std::shared_ptr<const void> rows_owner;  // keeps `rows` alive, also for attempts that come to
                                           // nothing; null: rows are copied before they are sent
  const int32_t* expert_ids = nullptr;     // [num_rows, top_k], best first; copied
  const float* weights = nullptr;          // [num_rows, top_k]; copied
  int top_k = 0;
};

// What came back for a layer's rows: a worker that holds all of a row's experts has combined them,
// otherwise there is one row per route, to be combined in the router's order.
struct ExpertRows {
  absl::Span<const uint8_t> combined;  // [num_rows]
  TensorView combined_rows;            // [num_rows, hidden] act; of those with combined[i]
  TensorView expert_rows;              // [num_rows * top_k, hidden] act; of the others
};

// Makes the link to a worker that a placement names. Called, and links let go, on any thread, which
// neither may block.
using ExpertLinkFactory = std::function<std::shared_ptr<ExpertLink>(const Placement::Worker&)>;

// Everything that the dispatcher decides follows from what it is told, in the order in which it is
// told, and from the times that `now` gives: with a clock and links of a simulation it does the
// same again. Time limits grow with what was measured: an attempt at n routes gets attempt_timeout
// plus 8 n times the least time per route of any earlier part, twice that after each attempt that
// timed out; a layer of n routes gets layer_timeout, or 24 n times that least time if that is more.
struct DispatcherOptions {
  using Clock = std::chrono::steady_clock;

  std::function<Clock::time_point()> now = &Clock::now;  // called from any thread
  absl::Duration attempt_timeout = absl::Seconds(10);    // one attempt at one part
  absl::Duration layer_timeout = absl::Seconds(60);      // all attempts of a layer together
  absl::Duration retry_delay = absl::Milliseconds(20);   // before asking the same worker again
  absl::Duration reply_grace = absl::Seconds(1);   // a link that is later than this has lost a part
  absl::Duration avoid_failed = absl::Seconds(2);  // other holders are preferred for so long
};

// Thread-safe: SetPlacement and Counters may come from any thread at any time; Dispatch and what it
// returns belong to one thread, which none of it ever blocks.
class ExpertDispatcher {
 private:
  struct Layer;
  struct State;

 public:
  using Clock = DispatcherOptions::Clock;

  ExpertDispatcher(uint64_t incarnation, DispatcherOptions options, ExpertLinkFactory make_link);
  ~ExpertDispatcher();

  // Takes effect at the next attempt. Links to workers that stay are kept.
  void SetPlacement(Placement placement);
  // The oldest version under which a part is still out, or the newest that was set.
  PlacementVersion oldest_in_use() const;

  // A dispatched layer; may be destroyed unanswered. Several may be under way at once.
  class Pending {
   public:
    ~Pending();
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;

    // Takes what has arrived, and sends a failed part again: to another holder, or to the same one
    // after retry_delay, under the newest placement. Nothing yet: rows are still unanswered.
    //   UNAVAILABLE  layer_timeout has passed; names worker and layer
    std::optional<absl::Status> Poll();
    // When Poll has something to do although nothing has changed.
    Clock::time_point wake_time() const;
    // Valid once Poll has said OK, until this is destroyed.
    ExpertRows rows() const;

   private:
    friend class ExpertDispatcher;
    Pending(std::shared_ptr<State> state, std::unique_ptr<Layer> layer);
    const std::shared_ptr<State> state_;
    const std::unique_ptr<Layer> layer_;
  };

  // Sends the rows out and returns at once: each expert's to the holder with the least work out,
  // which is what this dispatcher's layers have out there. `changed` is called whenever Poll may
  // have news: from any thread, also within Dispatch, until the result is destroyed. It must not
  // block.
  std::unique_ptr<Pending> Dispatch(const RowBatch& batch, std::function<void()> changed);

  // dispatches_total, parts_total, retries_total (parts that failed), rows_sent_total,
  // rows_received_total, late_replies_total, parts_live
  CounterSnapshot Counters() const;

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_

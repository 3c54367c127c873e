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
#include "common/request_tag.h"
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
  TracesOfPart traces;  // sent with each part
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

// An attempt at a part has two limits. *Patience* is how long other holders are left alone: 4 times
// what such a part is measured to take at most, nearly always, at the middle one of the workers
// that are well, and never less than least_patience. Then the part is asked of others as well, and
// the first answer is taken; so a worker that stops costs the layers then under way, at the same
// time, their patience and the time of the others, and later ones nothing, since it is put aside.
// One that is slow costs at most 4 answers within patience before it is. That holds while another
// holder of what it has is well. Without another holder, patience has no effect.
//
// The *limit* ends the attempt: attempt_timeout plus 8 n times the least time per route of any
// earlier part, for n routes. Each of the two is twice as long after it has run out in the layer,
// so that a machine which is slow as a whole gets there. A layer of n routes gets layer_timeout, or
// 24 n times that least time if that is more; with no holder left it waits for a placement so long.
struct DispatcherOptions {
  using Clock = std::chrono::steady_clock;

  std::function<Clock::time_point()> now = &Clock::now;  // called from any thread
  absl::Duration attempt_timeout = absl::Seconds(10);    // one attempt at one part
  absl::Duration layer_timeout = absl::Seconds(60);      // all attempts of a layer together
  absl::Duration retry_delay = absl::Milliseconds(20);   // before asking the same worker again
  absl::Duration reply_grace = absl::Seconds(1);  // a link that is later than this has lost a part
  absl::Duration first_patience = absl::Milliseconds(500);  // before anything has been answered
  absl::Duration least_patience = absl::Milliseconds(100);
  absl::Duration first_aside = absl::Milliseconds(500);  // twice that after each further failure
  absl::Duration longest_aside = absl::Seconds(16);
};

class DispatchedLayer;

// Which holder is asked: of an expert's holders those that have failed least in the layer; of these
// those that are well, or, with none, those that have been put aside least often in a row; of these
// the one with the least work out (holder_choice.h). The choice never shows in a result's bits.
//
// A worker is put aside (holder_health.h) when it, or the link to it, answers with an error or with
// what is no answer, or is late, or slow four times in a row. When its time is up, a copy of a few
// of the next layer's rows is sent there as a probe, while a worker that is well is asked for them;
// only a good answer in time, to that or to what nobody else could do, brings it back. A worker
// that has left the placement, or has let go of an expert (NOT_FOUND, FAILED_PRECONDITION), is not
// put aside.
//
// Everything here follows from what the dispatcher is told, in the order in which it is told, and
// from the times that `now` gives: with a clock and links of a simulation it happens again.
//
// Thread-safe: SetPlacement and Counters may come from any thread at any time; Dispatch and what it
// returns belong to one thread, which none of it ever blocks.
class ExpertDispatcher {
 private:
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

    // Takes what has arrived, sends a failed part again, to another holder, or to the same one
    // after retry_delay, and asks others for what is late, under the newest placement. Nothing yet:
    // rows are still unanswered.
    //   UNAVAILABLE  layer_timeout has passed; names worker and layer
    std::optional<absl::Status> Poll();
    // When Poll has something to do although nothing has changed.
    Clock::time_point wake_time() const;
    // Valid once Poll has said OK, until this is destroyed.
    ExpertRows rows() const;

   private:
    friend class ExpertDispatcher;
    Pending(std::shared_ptr<State> state, std::unique_ptr<DispatchedLayer> layer);
    const std::shared_ptr<State> state_;
    const std::unique_ptr<DispatchedLayer> layer_;
  };

  // Sends the rows out and returns at once. `changed` is called whenever Poll may have news: from
  // any thread, also within Dispatch, until the result is destroyed. It must not block.
  std::unique_ptr<Pending> Dispatch(const RowBatch& batch, std::function<void()> changed);

  // dispatches_total    layers
  // parts_total         requests sent, probes aside
  // retries_total       of these, failed: error, no answer, its limit, or a placement without it
  // hedged_parts_total  of these, asked of others as well when its patience had run out
  // probes_total        requests sent to see whether a worker that was put aside is well again
  // rows_sent_total, rows_received_total  rows of parts; of answers, those that were still missing
  // late_replies_total  answers that nobody waited for any more, errors among them
  // parts_live          parts that are out now
  // workers_aside       workers that are put aside now, as of the last layer that was looked at
  CounterSnapshot Counters() const;

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_EXPERT_DISPATCHER_H_

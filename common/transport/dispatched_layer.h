// One layer's rows on their way through the expert workers: what is out where, what waits to be
// sent, what has failed, and what has come back. Keeps the books; the dispatcher decides.
#ifndef TANDEM_COMMON_TRANSPORT_DISPATCHED_LAYER_H_
#define TANDEM_COMMON_TRANSPORT_DISPATCHED_LAYER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/placement.h"
#include "common/transport/dispatch_counts.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_link.h"
#include "common/transport/expert_split.h"
#include "common/transport/gathered_rows.h"
#include "common/transport/holder_health.h"
#include "common/transport/host_rows.h"
#include "common/transport/reply_mailbox.h"

namespace tandem {

// A route is missing until a part that has it is answered. A missing one is out, in one part or, if
// that is late, in several at different workers; or it waits. All routes of an expert are in the
// same of these states, since they are sent, and asked for again, together.
class DispatchedLayer {
 public:
  using TimePoint = HolderHealth::TimePoint;

  struct Sent {
    ExpertPart part;
    std::vector<int32_t> experts;  // of its routes, ascending
    std::shared_ptr<const Placement> placement;
    std::shared_ptr<ExpertLink> link;  // kept, like the placement, until it is answered or given up
    WorkOut work;
    TimePoint start;
    absl::Duration patience;  // while others could be asked as well
    TimePoint ask_others_at;  // max: nobody else can be asked
    TimePoint give_up_at;
    int num_timeouts = 0;     // of the layer, when it was sent
    bool noted_late = false;  // others were asked as well

    const Placement::Worker& worker() const { return work.holder().worker(); }
  };
  struct Failures {
    int count = 0;
    TimePoint last;
  };

  // Copies the batch's ids and weights.
  DispatchedLayer(const RowBatch& batch, std::shared_ptr<DispatchCounts> counts,
                  std::shared_ptr<ReplyMailbox> mailbox);
  ~DispatchedLayer();
  DispatchedLayer(const DispatchedLayer&) = delete;
  DispatchedLayer& operator=(const DispatchedLayer&) = delete;

  const RowBatch& batch() const { return batch_; }
  const std::shared_ptr<ReplyMailbox>& mailbox() const { return mailbox_; }
  const std::map<uint32_t, Sent>& sent() const { return sent_; }
  Sent* Find(uint32_t number);
  std::vector<int32_t> MissingRoutes(const Sent& sent) const;
  bool IsAsked(WorkerId worker, int32_t expert) const;
  Failures FailuresOf(WorkerId worker) const;

  void Add(uint32_t number, Sent sent);
  // Takes a part's answer, and drops parts of which nothing is missing any more.
  void Accept(uint32_t number, const ExpertReply& reply, HostRowsPool* pool);
  // Takes a part that failed back. What is out nowhere else waits.
  void Fail(uint32_t number, const absl::Status& status, TimePoint now, absl::Duration retry_delay);
  // Others are asked for a part's routes as well.
  void NoteLate(Sent& sent, TimePoint now);
  // Parts for which nobody else could be asked may find somebody from `when` on.
  void AskOthersFrom(TimePoint when);

  bool done() const { return gathered_.complete(); }
  ExpertRows rows() const { return gathered_.rows(); }
  // When something is to be done although nothing has come.
  TimePoint wake_time() const;
  // How a worker is called in sentences.
  static std::string NameOf(const Placement::Worker& worker);
  // Why it is not done.
  std::string Reason() const;

  absl::Duration timeout;  // of the layer
  TimePoint deadline;
  std::vector<int32_t> waiting;             // routes, ascending
  TimePoint next_retry = TimePoint::max();  // of these
  PlacementVersion placement;               // which was looked at last
  uint32_t next_attempt = 0;
  // How often a limit, and patience, have run out: each doubles those of what is sent later.
  int num_timeouts = 0;
  int num_late = 0;
  static constexpr int kMaxDoublings = 10;

 private:
  void Forget(uint32_t number);

  RowBatch batch_;  // its ids and weights are the vectors below
  const std::vector<int32_t> expert_ids_;
  const std::vector<float> weights_;
  const std::shared_ptr<DispatchCounts> counts_;
  const std::shared_ptr<ReplyMailbox> mailbox_;
  GatheredRows gathered_;
  std::map<uint32_t, Sent> sent_;
  std::vector<int32_t> num_out_;  // [routes], parts that have it
  std::map<WorkerId, Failures> failures_;
  std::string last_error_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_DISPATCHED_LAYER_H_

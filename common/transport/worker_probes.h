// Probes of workers that were put aside: copies of a few rows, whose answers nobody waits for.
#ifndef TANDEM_COMMON_TRANSPORT_WORKER_PROBES_H_
#define TANDEM_COMMON_TRANSPORT_WORKER_PROBES_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/time/time.h"
#include "common/placement.h"
#include "common/transport/dispatch_counts.h"
#include "common/transport/expert_link.h"
#include "common/transport/holder_health.h"
#include "common/transport/reply_mailbox.h"

namespace tandem {

// Of the dispatcher's thread. What an answer says of the worker is looked at by the next Collect.
class WorkerProbes {
 public:
  using TimePoint = HolderHealth::TimePoint;

  WorkerProbes(std::function<TimePoint()> now, HolderTable* holders,
               std::shared_ptr<DispatchCounts> counts);

  // The request is complete, all for one expert. The placement is in use until the link has
  // answered.
  void Send(ExpertLink& link, std::shared_ptr<const ExpertRequest> request,
            std::shared_ptr<HolderHealth> holder, std::shared_ptr<const Placement> placement,
            TimePoint now);
  // A good answer within the request's time brings the worker back; an error, and none by then, is
  // a failure; one that has let go of the expert is asked again later.
  void Collect(TimePoint now);

 private:
  struct Probe {
    std::shared_ptr<HolderHealth> holder;
    std::shared_ptr<const ExpertRequest> request;
    TimePoint start;
    TimePoint in_time;  // until then
  };

  HolderTable& holders_;
  const std::shared_ptr<DispatchCounts> counts_;
  const std::shared_ptr<ReplyMailbox> mailbox_;
  std::map<uint32_t, Probe> probes_;  // by part
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_WORKER_PROBES_H_

#include "common/transport/worker_probes.h"

#include <utility>

#include "common/transport/holder_choice.h"
#include "common/transport/reply_check.h"

namespace tandem {

WorkerProbes::WorkerProbes(std::function<TimePoint()> now, HolderTable* holders,
                           std::shared_ptr<DispatchCounts> counts)
    : holders_(*holders),
      counts_(std::move(counts)),
      mailbox_(std::make_shared<ReplyMailbox>(
          std::move(now), [] {}, counts_)) {}

void WorkerProbes::Send(ExpertLink& link, std::shared_ptr<const ExpertRequest> request,
                        std::shared_ptr<HolderHealth> holder,
                        std::shared_ptr<const Placement> placement, TimePoint now) {
  const uint32_t number = request->id.part;
  holder->set_probing(true);
  probes_.emplace(number, Probe{std::move(holder), request, now,
                                now + absl::ToChronoNanoseconds(request->time_left)});
  ++counts_->probes;
  link.Send(std::move(request), [mailbox = mailbox_, number, in_use = std::move(placement)](
                                    ExpertReply reply) { mailbox->Put(number, std::move(reply)); });
}

void WorkerProbes::Collect(TimePoint now) {
  for (ReplyMailbox::Arrival& arrival : mailbox_->Take()) {
    const auto it = probes_.find(arrival.part);
    if (it == probes_.end()) {
      ++counts_->late_replies;
      continue;
    }
    const Probe probe = std::move(it->second);
    probes_.erase(it);
    probe.holder->set_probing(false);
    const absl::Status status = CheckReply(arrival.reply, *probe.request);
    if (HasLetGo(status)) {
      probe.holder->ProbeLater(arrival.when);
    } else if (!status.ok() || arrival.when > probe.in_time) {
      probe.holder->Failed(probe.start, arrival.when);
    } else {
      holders_.Answered(*probe.holder, PartWork(probe.request->num_routes(), 1), probe.start,
                        arrival.when);
    }
  }
  for (auto it = probes_.begin(); it != probes_.end();) {
    if (now <= it->second.in_time) {
      ++it;
      continue;
    }
    it->second.holder->set_probing(false);
    it->second.holder->Failed(it->second.start, now);
    it = probes_.erase(it);
  }
}

}  // namespace tandem

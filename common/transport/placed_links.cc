#include "common/transport/placed_links.h"

namespace tandem {

void PlacedLinks::Set(Placement placement) {
  auto shared = std::make_shared<const Placement>(std::move(placement));
  std::vector<std::shared_ptr<ReplyMailbox>> waiting;
  {
    MutexLock lock(mutex_);
    std::map<WorkerId, Peer> peers;
    for (const Placement::Worker& worker : shared->workers) {
      Peer peer{worker, nullptr};
      const auto it = peers_.find(worker.id);
      if (it != peers_.end() && it->second.worker == worker) peer.link = std::move(it->second.link);
      peers.emplace(worker.id, std::move(peer));
    }
    peers_ = std::move(peers);
    std::erase_if(in_use_, [](const auto& used) { return used.expired(); });
    in_use_.push_back(shared);
    placement_ = std::move(shared);
    for (const auto& mailbox : mailboxes_) {
      if (auto alive = mailbox.lock()) waiting.push_back(std::move(alive));
    }
  }
  for (const auto& mailbox : waiting) mailbox->Notify();
}

std::shared_ptr<const Placement> PlacedLinks::Current() const {
  MutexLock lock(mutex_);
  return placement_;
}

PlacementVersion PlacedLinks::OldestInUse() const {
  MutexLock lock(mutex_);
  for (const auto& used : in_use_) {
    if (const auto placement = used.lock()) return placement->version;
  }
  return {};
}

std::shared_ptr<ExpertLink> PlacedLinks::LinkTo(WorkerId id) {
  MutexLock lock(mutex_);
  const auto it = peers_.find(id);
  if (it == peers_.end()) return nullptr;
  Peer& peer = it->second;
  if (peer.link == nullptr) peer.link = make_link_(peer.worker);
  return peer.link;
}

void PlacedLinks::Tell(const std::shared_ptr<ReplyMailbox>& mailbox) {
  MutexLock lock(mutex_);
  std::erase_if(mailboxes_, [](const auto& other) { return other.expired(); });
  mailboxes_.push_back(mailbox);
}

}  // namespace tandem

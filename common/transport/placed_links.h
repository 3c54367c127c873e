// The newest placement, the links to its workers, and which placements are still in use.
#ifndef TANDEM_COMMON_TRANSPORT_PLACED_LINKS_H_
#define TANDEM_COMMON_TRANSPORT_PLACED_LINKS_H_

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/placement.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_link.h"
#include "common/transport/reply_mailbox.h"

namespace tandem {

// Thread-safe.
class PlacedLinks {
 public:
  explicit PlacedLinks(ExpertLinkFactory make_link) : make_link_(std::move(make_link)) {}

  // Keeps links to workers that stay, and tells the mailboxes.
  void Set(Placement placement);
  // Null until set. In use for as long as it is held.
  std::shared_ptr<const Placement> Current() const;
  // The oldest that is in use, or the newest; {} before there is one.
  PlacementVersion OldestInUse() const;
  // Makes the link if there is none yet; null if there can be none.
  std::shared_ptr<ExpertLink> LinkTo(WorkerId id);
  // Tells the mailbox of new placements for as long as it is held by somebody.
  void Tell(const std::shared_ptr<ReplyMailbox>& mailbox);

 private:
  struct Peer {
    Placement::Worker worker;
    std::shared_ptr<ExpertLink> link;  // null until first needed
  };

  const ExpertLinkFactory make_link_;
  mutable Mutex mutex_;
  std::shared_ptr<const Placement> placement_ ABSL_GUARDED_BY(mutex_);
  std::map<WorkerId, Peer> peers_ ABSL_GUARDED_BY(mutex_);
  // All that were set and may be in use, oldest first.
  std::vector<std::weak_ptr<const Placement>> in_use_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::weak_ptr<ReplyMailbox>> mailboxes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_PLACED_LINKS_H_

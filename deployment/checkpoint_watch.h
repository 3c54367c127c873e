// Says what is odd about a checkpoint's files, and sees that they are changed while they are
// served.
#ifndef TANDEM_DEPLOYMENT_CHECKPOINT_WATCH_H_
#define TANDEM_DEPLOYMENT_CHECKPOINT_WATCH_H_

#include <mutex>
#include <string>

#include "common/checkpoint/checkpoint.h"
#include "common/counters.h"
#include "spdlog/spdlog.h"

namespace tandem {

// Thread-safe.
class CheckpointWatch {
 public:
  // `checkpoint` must outlive this.
  explicit CheckpointWatch(const Checkpoint* checkpoint) : checkpoint_(*checkpoint) {
    for (const std::string& warning : checkpoint_.warnings()) spdlog::warn("{}", warning);
  }

  // Looks now, a few system calls; logs the first change. checkpoint_changed: 1 once there was one.
  CounterSnapshot Counters() const {
    const absl::Status unchanged = checkpoint_.CheckUnchanged();
    if (!unchanged.ok()) {
      std::call_once(said_, [&] {
        spdlog::error("{}: answers may be wrong until this process is started again",
                      std::string(unchanged.message()));
      });
    }
    return {{"checkpoint_changed", unchanged.ok() ? 0 : 1}};
  }

 private:
  const Checkpoint& checkpoint_;
  mutable std::once_flag said_;
};

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_CHECKPOINT_WATCH_H_

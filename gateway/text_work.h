// Threads for long texts: gRPC answers everybody, health checks included, with a few threads, which
// a text of megabytes would hold for seconds.
#ifndef TANDEM_GATEWAY_TEXT_WORK_H_
#define TANDEM_GATEWAY_TEXT_WORK_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/mutex.h"

namespace tandem {

// Thread-safe.
class TextWork {
 public:
  static constexpr size_t kShortBytes = 16 << 10;  // done where it comes: a few milliseconds
  static constexpr size_t kMediumBytes = 1 << 20;  // has a thread that no longer text holds
  static constexpr size_t kMaxWaitingBytes = 64 << 20;

  TextWork();
  // Does what still waits.
  ~TextWork();

  // Does `work`, which costs as much as `bytes` of text: at once if they are few, otherwise on
  // another thread. Not done at all:
  //   RESOURCE_EXHAUSTED  so much waits already that this would be too much
  absl::Status Do(size_t bytes, std::function<void()> work);

 private:
  struct Waiting {
    size_t bytes = 0;
    std::function<void()> work;
  };
  // Does what waits and costs no more than `max_bytes`, until the end.
  void Run(size_t max_bytes);

  Mutex mutex_;
  CondVar changed_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of those that are being done as well
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_TEXT_WORK_H_

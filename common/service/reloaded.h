// What is read from files while a server runs, and read again as the files change: certificates,
// tokens.
#ifndef TANDEM_COMMON_SERVICE_RELOADED_H_
#define TANDEM_COMMON_SERVICE_RELOADED_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace tandem {

// Reads every second, on a thread of its own, and keeps what it had where it cannot: half a pair of
// files, or a file that is being written, never takes effect. `T` can be compared. Thread-safe.
template <typename T>
class Reloaded {
 public:
  using Read = std::function<absl::StatusOr<T>()>;
  static constexpr std::chrono::milliseconds kInterval{1000};

  // Errors of the first read. `what` is named in the log when it changes or cannot be read.
  static absl::StatusOr<std::shared_ptr<const Reloaded>> Create(
      std::string what, Read read, std::chrono::milliseconds interval = kInterval) {
    TANDEM_ASSIGN_OR_RETURN(T first, read());
    return std::shared_ptr<const Reloaded>(
        new Reloaded(std::move(what), std::move(read), std::move(first), interval));
  }
  ~Reloaded() {
    {
      MutexLock lock(mutex_);
      ended_ = true;
    }
    wake_.NotifyAll();
    thread_.join();
  }

  // What was read last. Two calls give the same pointer unless it has changed meanwhile.
  std::shared_ptr<const T> Get() const {
    MutexLock lock(mutex_);
    return value_;
  }

 private:
  Reloaded(std::string what, Read read, T first, std::chrono::milliseconds interval)
      : what_(std::move(what)),
        read_(std::move(read)),
        interval_(interval),
        value_(std::make_shared<const T>(std::move(first))),
        thread_([this] { Run(); }) {}

  void Run() {
    std::string last_error;
    while (true) {
      {
        MutexLock lock(mutex_);
        if (wake_.WaitFor(lock, interval_,
                          [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_; })) {
          return;
        }
      }
      absl::StatusOr<T> read = read_();
      const std::string error(read.status().message());
      if (!read.ok() && error != last_error) {
        spdlog::warn("{} stay as they are: {}", what_, error);
      }
      last_error = error;
      if (!read.ok() || *read == *Get()) continue;
      spdlog::info("{} have changed and were read again", what_);
      MutexLock lock(mutex_);
      value_ = std::make_shared<const T>(*std::move(read));
    }
  }

  const std::string what_;
  const Read read_;
  const std::chrono::milliseconds interval_;
  mutable Mutex mutex_;
  CondVar wake_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<const T> value_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_RELOADED_H_

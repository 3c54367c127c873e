// Ctrl-C as an event instead of the process's end.
#ifndef TANDEM_TOOLS_TANDEM_INTERRUPT_H_
#define TANDEM_TOOLS_TANDEM_INTERRUPT_H_

#include <signal.h>

#include <atomic>
#include <functional>
#include <thread>

namespace tandem::tool {

// While it lives, each SIGINT calls `on_interrupt`, on a thread of its own; afterwards SIGINT does
// what it did before. At most one at a time in a process.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<void()> on_interrupt);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  std::atomic<bool> ended_ = false;
  struct sigaction before_ = {};
  std::thread thread_;
};

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_INTERRUPT_H_

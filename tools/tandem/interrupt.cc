#include "interrupt.h"

#include <semaphore.h>

#include <utility>

namespace tandem::tool {
namespace {

// Of the process, and never destroyed: a handler may still run on another thread when its scope has
// ended. A semaphore, because posting one is among the few things that a handler may do.
sem_t* Wakeups() {
  static sem_t wakeups;
  static const int initialized = sem_init(&wakeups, /*pshared=*/0, /*value=*/0);
  static_cast<void>(initialized);
  return &wakeups;
}

void OnSignal(int) { sem_post(Wakeups()); }

}  // namespace

InterruptScope::InterruptScope(std::function<void()> on_interrupt) {
  while (sem_trywait(Wakeups()) == 0) {
    // A wake-up that the scope before did not use.
  }
  thread_ = std::thread([this, call = std::move(on_interrupt)] {
    for (;;) {
      if (sem_wait(Wakeups()) != 0) continue;  // EINTR
      if (ended_) return;
      call();
    }
  });
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &before_);
}

InterruptScope::~InterruptScope() {
  sigaction(SIGINT, &before_, nullptr);
  ended_ = true;
  sem_post(Wakeups());
  thread_.join();
}

}  // namespace tandem::tool

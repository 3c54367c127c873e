#include "attention_worker/engine.h"

#include <pthread.h>

#include <optional>
#include <utility>

#include "common/status.h"

namespace tandem {

absl::StatusOr<std::unique_ptr<AttentionEngine>> AttentionEngine::Create(
    kernels::Backend* backend, const AttentionModel* model, RoutedExperts* experts,
    AttentionEngineOptions options) {
  std::unique_ptr<AttentionEngine> engine(new AttentionEngine);
  TANDEM_ASSIGN_OR_RETURN(engine->core_,
                          AttentionEngineCore::Create(backend, model, experts, std::move(options),
                                                      [engine = engine.get()] { engine->Wake(); }));
  engine->thread_ = std::thread([engine = engine.get()] { engine->RunThread(); });
  pthread_setname_np(engine->thread_.native_handle(), "engine");
  return engine;
}

AttentionEngine::~AttentionEngine() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.NotifyOne();
  if (thread_.joinable()) thread_.join();
}

void AttentionEngine::Wake() {
  {
    MutexLock lock(mutex_);
    woken_ = true;
  }
  changed_.NotifyOne();
}

void AttentionEngine::RunThread() {
  while (true) {
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      woken_ = false;
    }
    if (core_->Turn()) continue;
    // For a message, a cancel, experts, or the time at which a walk must look.
    const auto news = [this]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return woken_ || stopping_; };
    const std::optional<AttentionEngineCore::Clock::time_point> until = core_->wake_time();
    MutexLock lock(mutex_);
    if (until.has_value()) {
      changed_.WaitUntil(lock, *until, news);
    } else {
      changed_.Wait(lock, news);
    }
  }
}

std::unique_ptr<AttentionLink> AttentionEngine::Connect(AttentionLink::Observer* observer) {
  return core_->Connect(observer);
}
CounterSnapshot AttentionEngine::Counters() const { return core_->Counters(); }
absl::Duration AttentionEngine::busy_for() const { return core_->busy_for(); }

}  // namespace tandem

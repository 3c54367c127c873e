#include "expert_worker/engine.h"

#include <pthread.h>

#include <utility>

namespace tandem {

ExpertEngine::ExpertEngine(kernels::Backend* backend, const ModelConfig* config,
                           const LoadedExperts* experts, ExpertEngineOptions options)
    : core_(backend, config, experts, options,
            [this] {
              {
                MutexLock lock(mutex_);
                woken_ = true;
              }
              changed_.NotifyOne();
            }),
      thread_([this] { RunThread(); }) {
  pthread_setname_np(thread_.native_handle(), "engine");
}

ExpertEngine::~ExpertEngine() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.NotifyOne();
  thread_.join();
}

void ExpertEngine::RunThread() {
  while (true) {
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      woken_ = false;
    }
    if (core_.Turn()) continue;
    MutexLock lock(mutex_);
    changed_.Wait(lock,
                  [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return woken_ || stopping_; });
  }
}

void ExpertEngine::Send(std::shared_ptr<const ExpertRequest> request, Done done) {
  core_.Send(std::move(request), std::move(done));
}

CounterSnapshot ExpertEngine::Counters() const { return core_.Counters(); }
std::vector<int64_t> ExpertEngine::TakeExpertTokens() { return core_.TakeExpertTokens(); }
absl::Duration ExpertEngine::busy_for() const { return core_.busy_for(); }

}  // namespace tandem

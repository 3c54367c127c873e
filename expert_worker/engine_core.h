// What the expert worker's engine does, turn by turn, without the thread that does it.
#ifndef TANDEM_EXPERT_WORKER_ENGINE_CORE_H_
#define TANDEM_EXPERT_WORKER_ENGINE_CORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "common/counters.h"
#include "common/model_config.h"
#include "common/transport/expert_link.h"
#include "expert_worker/engine_times.h"
#include "expert_worker/loaded_experts.h"
#include "kernels/backend.h"

namespace tandem {

struct ExpertEngineOptions {
  Dtype dtype = Dtype::kBF16;  // mode
  int64_t max_waiting_bytes = int64_t{1} << 30;
  ExpertEngineTimes* times = nullptr;  // must outlive the engine; null: nothing is measured
};

// The requests that wait, and one call of an op after the other for them. What it does follows from
// what it is told and from the times that `now` gives: a thread turns it (ExpertEngine), or a
// simulation, in which the same happens again. All but Turn is for any thread; Turn is for one.
class ExpertEngineCore : public ExpertLink {
 public:
  using Clock = std::chrono::steady_clock;

  // All pointers must outlive the core. `wake` is called whenever there is something to do: from
  // any thread. It must not block, nor call the core.
  ExpertEngineCore(kernels::Backend* backend, const ModelConfig* config,
                   const LoadedExperts* experts, ExpertEngineOptions options,
                   std::function<void()> wake,
                   std::function<Clock::time_point()> now = &Clock::now);
  // What still waits is answered with UNAVAILABLE.
  ~ExpertEngineCore() override;

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override;
  // Answers the oldest request, and what waits for the same layer. False: nothing waits.
  bool Turn();

  // As ExpertEngine's.
  CounterSnapshot Counters() const;
  std::vector<int64_t> TakeExpertTokens();
  absl::Duration busy_for() const;
  absl::Duration busy_total() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_EXPERT_WORKER_ENGINE_CORE_H_

// What the attention worker's engine does, turn by turn, without the thread that does it.
#ifndef TANDEM_ATTENTION_WORKER_ENGINE_CORE_H_
#define TANDEM_ATTENTION_WORKER_ENGINE_CORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/counters.h"
#include "common/transport/attention_link.h"
#include "kernels/backend.h"

namespace tandem {

class LayerTimes;      // attention_worker/layer_times.h
class AttentionModel;  // attention_worker/model.h: weights and the forward pass
class RoutedExperts;   // attention_worker/routed_experts.h

struct AttentionEngineOptions {
  int total_pages = 1024;               // of kPageTokens tokens, over all layers
  std::vector<uint8_t> ids_with_token;  // [vocab], 1: the tokenizer has a token; empty: all
  // How long a step waits for pages that other sessions hold: longer than a silent connection
  // lasts.
  absl::Duration page_wait = absl::Seconds(15);
  LayerTimes* layer_times = nullptr;  // must outlive the engine; null: layers are not measured
};

// A state machine that owns the latent cache, the sessions and their steps. What it does follows
// from what it is told and from the times that `now` gives: a thread turns it (AttentionEngine), or
// a simulation, in which the same happens again. Sessions, counters and busy_for are for any
// thread; Turn and wake_time are for one, which nothing here blocks but the device's own work.
class AttentionEngineCore {
 public:
  using Clock = std::chrono::steady_clock;

  // All pointers must outlive the core. `wake` is called whenever there may be something to do:
  // from any thread, also within Turn. It must not block, nor call the core.
  //   RESOURCE_EXHAUSTED  the cache does not fit into memory
  static absl::StatusOr<std::unique_ptr<AttentionEngineCore>> Create(
      kernels::Backend* backend, const AttentionModel* model, RoutedExperts* experts,
      AttentionEngineOptions options, std::function<void()> wake,
      std::function<Clock::time_point()> now = &Clock::now);
  // Requires that every session is closed.
  ~AttentionEngineCore();

  // As AttentionEngine's.
  std::unique_ptr<AttentionLink> Connect(AttentionLink::Observer* observer);
  CounterSnapshot Counters() const;
  absl::Duration busy_for() const;

  // One piece of work: half a layer, the end of a step, or what sessions have asked for. False:
  // there is nothing to do until `wake` is called, or it is wake_time.
  bool Turn();
  // When experts that are waited for have something to do although nothing has come; none: never.
  std::optional<Clock::time_point> wake_time() const;

 private:
  class Impl;
  class Link;
  explicit AttentionEngineCore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ENGINE_CORE_H_

// The attention worker's engine: one thread that owns the model and the latent cache and runs
// steps. It never blocks on experts: it waits for whichever comes first, a reply, a cancel, a
// message, a placement or a time limit, and runs another step, whose sequences are others, while
// one waits.
#ifndef TANDEM_ATTENTION_WORKER_ENGINE_H_
#define TANDEM_ATTENTION_WORKER_ENGINE_H_

#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention_worker/engine_core.h"
#include "common/counters.h"
#include "common/mutex.h"
#include "common/transport/attention_link.h"
#include "kernels/backend.h"

namespace tandem {

// Thread-safe. Several sessions may be open at once; their rows share GEMMs.
class AttentionEngine {
 public:
  // All arguments but options must outlive the engine.
  //   RESOURCE_EXHAUSTED  the cache does not fit into memory
  static absl::StatusOr<std::unique_ptr<AttentionEngine>> Create(kernels::Backend* backend,
                                                                 const AttentionModel* model,
                                                                 RoutedExperts* experts,
                                                                 AttentionEngineOptions options);
  // Requires that every session is closed.
  ~AttentionEngine();

  // Opens a session. `observer` must outlive the link.
  std::unique_ptr<AttentionLink> Connect(AttentionLink::Observer* observer);

  // sequences_live, batches_live, rows_live, pages_total, pages_free, sessions_live, steps_total,
  // layers_total (layer passes run), expanded_row_layers_total, absorbed_row_layers_total,
  // sampled_total, scored_total, cancels_total, cancel_layers_max (most layer passes that were
  // still run over a row after its cancel arrived), busy_ms
  CounterSnapshot Counters() const;
  // How long the engine's thread has been at one layer, message or answer; zero while it waits.
  absl::Duration busy_for() const;

 private:
  AttentionEngine() = default;
  void Wake();
  void RunThread();

  Mutex mutex_;
  CondVar changed_;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<AttentionEngineCore> core_;
  std::thread thread_;  // turns the core
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ENGINE_H_

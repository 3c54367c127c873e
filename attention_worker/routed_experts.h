// The routed experts as a layer sees them: one interface, whether they run on this process's device
// or at workers elsewhere. Same contract, same roundings, same bits.
#ifndef TANDEM_ATTENTION_WORKER_ROUTED_EXPERTS_H_
#define TANDEM_ATTENTION_WORKER_ROUTED_EXPERTS_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "attention_worker/layer_times.h"
#include "attention_worker/workspace.h"
#include "common/counters.h"
#include "common/request_tag.h"
#include "common/transport/attention_link.h"
#include "kernels/device_tensor.h"

namespace tandem {

// The rows of one layer, as the router left them.
struct ExpertBatch {
  StepId step = 0;  // of the gateway, for logs and dispatches
  int layer = 0;
  kernels::DeviceTensor rows;        // [num_rows, hidden] act
  kernels::DeviceTensor expert_ids;  // [num_rows, top_k] i32, best first
  kernels::DeviceTensor weights;     // [num_rows, top_k] f32
  kernels::DeviceTensor out;         // [num_rows, hidden] act
  Workspace* workspace = nullptr;    // for what is needed until `out` is written
  LayerClock* clock = nullptr;       // to be told of attention's end, dispatch and the wait
  TracesOfPart traces;               // of whoever has rows in it, for logs
};

// out[i] = round(sum over k of weights[i, k] * round(expert expert_ids[i, k] of rows[i])), summed
// as kernels::CombineArgs says. Belongs to the engine's thread, which nothing here blocks.
class RoutedExperts {
 public:
  using Clock = std::chrono::steady_clock;

  // A layer under way; may be destroyed at any time, and nothing is written to `out` afterwards.
  class Pending {
   public:
    virtual ~Pending() = default;
    // Nothing: some rows are still away. OK: what writes `out` is done, or called on the device, so
    // that ops called from now on may read it.
    //   UNAVAILABLE  nobody answered within the limit; names worker and layer
    virtual std::optional<absl::Status> Poll() = 0;
    // When Poll has something to do although nothing has changed.
    virtual Clock::time_point wake_time() const = 0;
  };

  virtual ~RoutedExperts() = default;

  // The batch's tensors must stay until the result is destroyed. `changed` is called whenever Poll
  // may have news: from any thread, also within Begin, until the result is destroyed. It must not
  // block.
  virtual std::unique_ptr<Pending> Begin(const ExpertBatch& batch,
                                         std::function<void()> changed) = 0;

  virtual CounterSnapshot Counters() const = 0;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ROUTED_EXPERTS_H_

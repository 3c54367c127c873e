// Gives the dispatcher the one function by which expert rows are summed.
#ifndef TANDEM_ATTENTION_WORKER_COMBINE_H_
#define TANDEM_ATTENTION_WORKER_COMBINE_H_

#include "common/transport/expert_dispatcher.h"
#include "kernels/backend.h"

namespace tandem {

// `backend` must outlive the function.
inline CombineFunction MakeCombine(kernels::Backend* backend) {
  return [backend](const TensorView& expert_rows, const int32_t* offsets, const float* weights,
                   const TensorView& out) {
    kernels::CombineArgs args;
    args.expert_rows = expert_rows;
    args.offsets = absl::MakeConstSpan(offsets, out.dim(0) + 1);
    args.weights = absl::MakeConstSpan(weights, offsets[out.dim(0)]);
    args.out = out;
    backend->Combine(args);
    backend->Synchronize();
  };
}

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_COMBINE_H_

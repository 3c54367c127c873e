// The choice of experts on a GPU. Contract: RouteArgs in kernels/ops/moe.h.
#ifndef TANDEM_KERNELS_CUDA_ROUTE_H_
#define TANDEM_KERNELS_CUDA_ROUTE_H_

#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// Of RouteArgs.
struct RouteChoice {
  int top_k = 0;
  int num_groups = 0;
  int top_groups = 0;
  bool normalize = false;
  float scaling = 1.0f;
};

// From the router's logits [rows, experts] f32, which Linear makes: expert_ids [rows, top_k] i32
// and weights [rows, top_k] f32. The exponential is the device's; all else has the contract's
// order. A warp per row. Starts one kernel in the stream and returns.
void ChooseExperts(Stream stream, const DeviceTensor& logits, const RouteChoice& choice,
                   const DeviceTensor& expert_ids, const DeviceTensor& weights);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_ROUTE_H_

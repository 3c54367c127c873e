// The routed experts on a GPU. Contract: ExpertMlpArgs in kernels/ops/moe.h. In block order it has
// the CPU's bits, in tensor order those of the GPU's tensor cores, as Linear
// (kernels/cuda/linear.h).
//
// The device groups routes by expert; the host never sees which experts were chosen, and starts as
// many blocks of threads as any choice of them may need.
#ifndef TANDEM_KERNELS_CUDA_EXPERT_MLP_H_
#define TANDEM_KERNELS_CUDA_EXPERT_MLP_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/cuda/sum_order.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// An expert's matrices in the device's memory, rows side by side, each f32 or bf16.
struct ExpertPointers {
  struct Matrix {
    const void* data = nullptr;
    int64_t is_f32 = 0;
  };
  Matrix gate, up;  // [intermediate, hidden]
  Matrix down;      // [hidden, intermediate]
};

struct ExpertMlpTensors {
  DeviceTensor x;              // [rows, hidden] act
  DeviceTensor experts;        // [num_experts, sizeof(ExpertPointers)] u8: ExpertPointers
  int64_t intermediate = 0;    // of one expert
  DeviceTensor route_experts;  // [routes] i32, each of an expert that has matrices
  DeviceTensor route_rows;     // [routes] i32
  DeviceTensor out;            // [routes, hidden] act
};

// Bytes of scratch that a call with `routes` routes needs.
size_t ExpertMlpScratchBytes(int64_t routes, int64_t num_experts, int64_t intermediate, Dtype act);

// Starts three kernels in the stream and returns: routes are grouped, gate and up with SiLU in one
// pass, down. `scratch`, aligned to 256 bytes, is theirs until they are done. Reads an expert's
// weights once per 16 of its routes, in tensor order once per 16, 64 or 128. Tensor order requires
// that all is bf16.
void ExpertMlp(Stream stream, const ExpertMlpTensors& tensors, SumOrder order, std::byte* scratch);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_EXPERT_MLP_H_

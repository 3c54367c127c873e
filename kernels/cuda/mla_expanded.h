// Attention of a prompt's rows in the expanded form, on a GPU. Contract: MlaExpandedArgs in
// kernels/ops/mla.h, whose order of additions it keeps: the CPU's bits.
#ifndef TANDEM_KERNELS_CUDA_MLA_EXPANDED_H_
#define TANDEM_KERNELS_CUDA_MLA_EXPANDED_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/cuda/sum_order.h"
#include "kernels/device_tensor.h"
#include "kernels/weights.h"

namespace tandem::kernels::cuda {

// Of MlaExpandedArgs, with kv_b_proj [heads * (dn + dv), r] as a checkpoint has it.
struct MlaExpandedTensors {
  DeviceTensor q, kv_up, pages, page_table, positions, out;
  KvUpShape shape;
  int64_t num_tokens = 0;
  float scale = 0.0f;
  SumOrder order = SumOrder::kBlock;  // of keys and values; tensor order requires that all is bf16
};

// Bytes of scratch that a call needs: heads * rows * (dv + 2) f32 of running sums, and keys and
// values of 512 tokens.
size_t MlaExpandedScratchBytes(const MlaExpandedTensors& tensors);

// Starts three kernels for each 512 tokens and two more, in the stream, and returns. `scratch`,
// aligned to 256 bytes, is theirs until they are done.
void MlaExpanded(Stream stream, const MlaExpandedTensors& tensors, std::byte* scratch);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_MLA_EXPANDED_H_

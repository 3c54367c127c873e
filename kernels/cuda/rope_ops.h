// Rotary embedding and the write side of the latent cache, on a GPU. Contracts: kernels/ops/mla.h,
// whose roundings they keep: the CPU's bits, but for RopeTable, whose cosine is the device's.
//
// Tensors lie in the device's memory and are checked (kernels/check_args.h). Each starts one kernel
// in the stream and returns.
#ifndef TANDEM_KERNELS_CUDA_ROPE_OPS_H_
#define TANDEM_KERNELS_CUDA_ROPE_OPS_H_

#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

void RopeTable(Stream stream, const DeviceTensor& positions, const DeviceTensor& frequencies,
               float factor, const DeviceTensor& out);
void Rope(Stream stream, const DeviceTensor& x, const DeviceTensor& cos_sin);

// What LatentAppendArgs has, with the norm's factors as a tensor [r] of either dtype.
struct LatentAppendTensors {
  DeviceTensor kv_a, norm, cos_sin, pages, page_ids, slots;
};
// Norm, rotation and the write to the page in one pass over kv_a.
void LatentAppend(Stream stream, const LatentAppendTensors& tensors, float eps);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_ROPE_OPS_H_

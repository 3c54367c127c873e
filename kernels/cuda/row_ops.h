// The dense ops that go row by row, and Combine, on a GPU. Contracts: kernels/ops/dense.h, whose
// orders of additions they keep, so that all but SiluMul, whose exponential is the device's, give
// the CPU's bits.
//
// Tensors lie in the device's memory and are checked (kernels/check_args.h). Each starts one kernel
// in the stream and returns.
#ifndef TANDEM_KERNELS_CUDA_ROW_OPS_H_
#define TANDEM_KERNELS_CUDA_ROW_OPS_H_

#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// `table` [any, width] of either dtype.
void Embed(Stream stream, const DeviceTensor& table, const DeviceTensor& ids,
           const DeviceTensor& out);
void GatherRows(Stream stream, const DeviceTensor& x, const DeviceTensor& rows,
                const DeviceTensor& out);
// `weight` [width] of either dtype. A row is summed by sixteen threads, one per lane of lane order.
void RmsNorm(Stream stream, const DeviceTensor& x, const DeviceTensor& weight, float eps,
             const DeviceTensor& out);
void SiluMul(Stream stream, const DeviceTensor& gate, const DeviceTensor& up,
             const DeviceTensor& out);
void Add(Stream stream, const DeviceTensor& a, const DeviceTensor& b, const DeviceTensor& out);
// Contract: kernels/ops/moe.h.
void Combine(Stream stream, const DeviceTensor& expert_rows, const DeviceTensor& offsets,
             const DeviceTensor& weights, const DeviceTensor& out);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_ROW_OPS_H_

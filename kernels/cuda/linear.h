// Linear maps on a GPU, each sum in block order (kernels/ops/dense.h): the CPU's bits, whatever the
// number of rows. By fused multiply-adds, not by tensor cores, whose order is their own.
#ifndef TANDEM_KERNELS_CUDA_LINEAR_H_
#define TANDEM_KERNELS_CUDA_LINEAR_H_

#include "kernels/cuda/launch.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// out[i, n] = round(sum_k x[i, k] * weight[n, k]). x [rows, k] and weight [n, k], either f32 or
// bf16; out [rows, n] of x's dtype or f32. Checked (kernels/check_args.h), in the device's memory.
// Starts one kernel in the stream and returns. Cost: reads the weight once per 16 rows, through
// shared memory; rows * n * k fused multiply-adds.
void LinearInBlockOrder(Stream stream, const DeviceTensor& x, const DeviceTensor& weight,
                        const DeviceTensor& out);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_LINEAR_H_

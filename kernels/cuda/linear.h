// Linear maps on a GPU. Contracts: kernels/ops/dense.h and mla.h. In block order they have the
// CPU's bits (kernels/cuda/product.h); in tensor order those of the GPU's tensor cores
// (kernels/cuda/tensor_product.h). Tensors lie in the device's memory and are checked
// (kernels/check_args.h); rows and weights are each f32 or bf16. Each starts one kernel in the
// stream and returns. Cost: rows * outputs * inputs fused multiply-adds; reads the weight once per
// 16 rows in block order, once per 16, 64 or 128 in tensor order.
#ifndef TANDEM_KERNELS_CUDA_LINEAR_H_
#define TANDEM_KERNELS_CUDA_LINEAR_H_

#include "kernels/cuda/stream.h"
#include "kernels/cuda/sum_order.h"
#include "kernels/device_tensor.h"
#include "kernels/weights.h"

namespace tandem::kernels::cuda {

// out[i, n] = round(sum_k x[i, k] * weight[n, k]). x [rows, k], weight [n, k]; out [rows, n] of x's
// dtype or f32. Tensor order requires that both are bf16.
void Linear(Stream stream, const DeviceTensor& x, const DeviceTensor& weight,
            const DeviceTensor& out, SumOrder order = SumOrder::kBlock);

// Both sides of weight absorption, in block order, with kv_b_proj [heads * (dn + dv), r] as a
// checkpoint has it.
void MlaAbsorbQuery(Stream stream, const DeviceTensor& q, const DeviceTensor& kv_up,
                    const KvUpShape& shape, const DeviceTensor& q_latent);
void MlaProjectValue(Stream stream, const DeviceTensor& latent, const DeviceTensor& kv_up,
                     const KvUpShape& shape, const DeviceTensor& out);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_LINEAR_H_

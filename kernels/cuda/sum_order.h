// In which order a GPU adds the products of a linear map (kernels/ops/dense.h).
#ifndef TANDEM_KERNELS_CUDA_SUM_ORDER_H_
#define TANDEM_KERNELS_CUDA_SUM_ORDER_H_

namespace tandem::kernels::cuda {

// Tensor order is for bf16 with bf16 alone.
enum class SumOrder { kBlock, kTensor };

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_SUM_ORDER_H_

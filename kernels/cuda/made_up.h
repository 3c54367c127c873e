// Weights that are made where they will be used (common/made_up_values.h).
#ifndef TANDEM_KERNELS_CUDA_MADE_UP_H_
#define TANDEM_KERNELS_CUDA_MADE_UP_H_

#include "common/made_up_values.h"
#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// Fills `out`, bf16 with its rows side by side, with the values of `tensor`.
void MakeUpValues(Stream stream, const MadeUpTensor& tensor, const DeviceTensor& out);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_MADE_UP_H_

// RMSNorm of a row by sixteen threads, one for each of the partial sums of lane order
// (kernels/ops/dense.h). Sixteen that follow each other in a block have one row.
#ifndef TANDEM_KERNELS_CUDA_RMS_NORM_H_
#define TANDEM_KERNELS_CUDA_RMS_NORM_H_

#include <cstdint>

#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {

inline constexpr int kSumLanes = 16;

inline int64_t BlocksForRows(int64_t rows) {
  constexpr int64_t kRowsPerBlock = kThreads / kSumLanes;
  return (rows + kRowsPerBlock - 1) / kRowsPerBlock;
}

// out = round(weight * round(x / root mean square)), [width]; out may be x. Called by all threads
// of the block: those beyond the last row, which are not `active`, only go along, since a warp's
// sums need all its lanes.
template <typename T, typename W>
__device__ void NormRow(bool active, const T* x, const W* weight, float eps, int64_t width,
                        T* out) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  float squares = 0.0f;
  if (active) {
    for (int64_t k = lane; k < width; k += kSumLanes) {
      const float value = ToFloat(x[k]);
      squares = FusedMultiplyAdd(value, value, squares);
    }
  }
  for (int lanes = kSumLanes / 2; lanes > 0; lanes /= 2) {
    squares += TANDEM_SHUFFLE_XOR(squares, lanes);
  }
  if (!active) return;
  const float root = SquareRoot(Divide(squares, static_cast<float>(width)) + eps);
  for (int64_t k = lane; k < width; k += kSumLanes) {
    const T normed = Round<T>(Divide(ToFloat(x[k]), root));
    out[k] = Round<T>(ToFloat(weight[k]) * ToFloat(normed));
  }
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_RMS_NORM_H_

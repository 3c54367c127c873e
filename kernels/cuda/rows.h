// Tensors as kernels take them, and launches with a thread per element.
#ifndef TANDEM_KERNELS_CUDA_ROWS_H_
#define TANDEM_KERNELS_CUDA_ROWS_H_

#include <cstdint>

#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/device_access.h"

namespace tandem::kernels::cuda {

inline constexpr int kThreads = 256;  // of a block

// Rows of a tensor; of one of rank 3 each [i, j] is a row.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;  // elements from one row to the next

  __device__ T* operator[](int64_t row) const { return data + row * stride; }
  // Those from `row` on.
  __device__ Rows From(int64_t row) const { return {data + row * stride, stride}; }
};

template <typename T>
T* DataOf(const DeviceTensor& tensor) {
  return reinterpret_cast<T*>(DeviceAccess::Address(tensor));
}
template <typename T>
Rows<T> RowsOf(const DeviceTensor& tensor) {
  return {DataOf<T>(tensor), tensor.row_stride};
}

template <typename T>
struct Type {
  using type = T;
};

// Calls run(Type<T>()) with the type of the elements of `dtype`, one of floats.
template <typename Run>
void WithType(Dtype dtype, const Run& run) {
  if (dtype == Dtype::kF32) {
    run(Type<float>());
  } else {
    run(Type<Bf16>());
  }
}

// The number of this thread among all of the launch.
__device__ inline int64_t ThreadOfAll() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <typename Op>
__global__ void ElementsKernel(int64_t elements, int64_t width, Op op) {
  const int64_t i = ThreadOfAll();
  if (i < elements) op(i / width, i % width);
}

// Calls op(row, column) for each element of [rows, width], by a thread each.
template <typename Op>
void LaunchForElements(Stream stream, int64_t rows, int64_t width, const Op& op) {
  const int64_t elements = rows * width;
  if (elements == 0) return;
  Launch(stream, ElementsKernel<Op>, (elements + kThreads - 1) / kThreads, kThreads, 0, elements,
         width, op);
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_ROWS_H_

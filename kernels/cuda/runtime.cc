#include "kernels/cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability of the A100, for which the kernels are built

void Require(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
  std::abort();
}

void Copy(Stream stream, const RowsToCopy& copy) {
  Require(cudaMemcpy2DAsync(copy.to, copy.to_stride, copy.from, copy.from_stride, copy.row_bytes,
                            copy.rows, cudaMemcpyDefault, stream),
          "cudaMemcpy2DAsync");
}

}  // namespace

absl::StatusOr<Gpu> OpenGpu() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("The cuda backend finds no GPU: ",
                     error == cudaSuccess ? "CUDA knows of none" : cudaGetErrorString(error)));
  }
  cudaDeviceProp properties;
  Require(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  if (properties.major < kOldestMajor) {
    return absl::FailedPreconditionError(absl::StrCat(
        "The cuda backend needs a GPU of compute capability ", kOldestMajor, ".0 or above, but ",
        properties.name, " has ", properties.major, ".", properties.minor));
  }
  Require(cudaSetDevice(0), "cudaSetDevice");
  size_t free_bytes = 0, total_bytes = 0;
  Require(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return Gpu{properties.name, free_bytes};
}

std::byte* AllocateDeviceMemory(size_t bytes) {
  void* memory = nullptr;
  return cudaMalloc(&memory, bytes) == cudaSuccess ? static_cast<std::byte*>(memory) : nullptr;
}
void FreeDeviceMemory(std::byte* memory, size_t) { Require(cudaFree(memory), "cudaFree"); }

std::byte* AllocatePinnedMemory(size_t bytes) {
  void* memory = nullptr;
  return cudaMallocHost(&memory, bytes) == cudaSuccess ? static_cast<std::byte*>(memory) : nullptr;
}
void FreePinnedMemory(std::byte* memory, size_t) { Require(cudaFreeHost(memory), "cudaFreeHost"); }

Stream CreateStream() {
  Stream stream = nullptr;
  Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return stream;
}
void DestroyStream(Stream stream) {
  Require(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  Require(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

void CopyRows(Stream stream, const RowsToCopy& copy) { Copy(stream, copy); }
// CUDA reads pageable memory before it returns.
void CopyRowsFromHost(Stream stream, const RowsToCopy& copy) { Copy(stream, copy); }

void MarkInUse(Stream, std::byte*, size_t) {}
void MarkUnused(Stream, std::byte*, size_t) {}
void FillZero(Stream stream, std::byte* memory, size_t bytes) {
  Require(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
}

void CallAfter(Stream stream, std::function<void()> then) {
  const auto call = [](void* function) {
    const std::unique_ptr<std::function<void()>> owned(
        static_cast<std::function<void()>*>(function));
    (*owned)();
  };
  auto function = std::make_unique<std::function<void()>>(std::move(then));
  Require(cudaLaunchHostFunc(stream, call, function.release()), "cudaLaunchHostFunc");
}

}  // namespace tandem::kernels::cuda

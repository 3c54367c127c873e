#include "kernels/cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/require.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability of the A100, for which the kernels are built

absl::Status NoGpu(const std::string& why) {
  cudaGetLastError();  // said here: the next launch need not say it again
  return absl::FailedPreconditionError(absl::StrCat("The cuda backend finds no GPU: ", why));
}

}  // namespace

absl::StatusOr<Gpu> OpenGpu() {
  int count = 0, major = 0, minor = 0, shared_bytes = 0;
  size_t free_bytes = 0, total_bytes = 0;
  cudaDeviceProp properties{};
  // Other threads compute on the first device without being told.
  for (const auto& call : std::initializer_list<std::function<cudaError_t()>>{
           [&] { return cudaGetDeviceCount(&count); },
           [&] { return count > 0 ? cudaSetDevice(0) : cudaErrorNoDevice; },
           [&] { return cudaGetDeviceProperties(&properties, 0); },
           [&] { return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0); },
           [&] { return cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0); },
           [&] {
             return cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                           0);
           },
           [&] { return cudaMemGetInfo(&free_bytes, &total_bytes); }}) {
    if (const cudaError_t error = call(); error != cudaSuccess) {
      return NoGpu(cudaGetErrorString(error));
    }
  }
  if (major < kOldestMajor) {
    return NoGpu(absl::StrCat(properties.name, " has compute capability ", major, ".", minor,
                              ", and kernels are built for ", kOldestMajor, ".0 and above"));
  }
  return Gpu{properties.name, absl::StrCat("sm", major, minor), free_bytes,
             static_cast<size_t>(shared_bytes)};
}

std::byte* AllocateDeviceMemory(size_t bytes) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes) == cudaSuccess) return static_cast<std::byte*>(memory);
  cudaGetLastError();
  return nullptr;
}
void FreeDeviceMemory(std::byte* memory, size_t) { Require(cudaFree(memory), "cudaFree"); }

std::byte* AllocatePinnedMemory(size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocHost(&memory, bytes) == cudaSuccess) return static_cast<std::byte*>(memory);
  cudaGetLastError();
  return nullptr;
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

void CopyRows(Stream stream, const RowsToCopy& copy) {
  if (copy.rows == 1) {  // of any size, where a pitch has a limit
    Require(cudaMemcpyAsync(copy.to, copy.from, copy.row_bytes, cudaMemcpyDefault, stream),
            "cudaMemcpyAsync");
  } else {
    Require(cudaMemcpy2DAsync(copy.to, copy.to_stride, copy.from, copy.from_stride, copy.row_bytes,
                              copy.rows, cudaMemcpyDefault, stream),
            "cudaMemcpy2DAsync");
  }
}

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

void RequireNoError(Stream stream) {
  const cudaError_t error = cudaStreamQuery(stream);
  if (error != cudaErrorNotReady) Require(error, "the GPU's work");
}

}  // namespace tandem::kernels::cuda

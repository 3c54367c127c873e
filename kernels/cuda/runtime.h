// What the backend uses of CUDA's runtime, each call by one name with two bodies: CUDA's
// (runtime.cc) and the emulation's (emulation/runtime.cc). A call that fails ends the process, with
// CUDA's own words, unless it has another way to say so: after an error of a kernel nothing on the
// device can be trusted.
#ifndef TANDEM_KERNELS_CUDA_RUNTIME_H_
#define TANDEM_KERNELS_CUDA_RUNTIME_H_

#include <cstddef>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"

namespace tandem::kernels::cuda {

struct Gpu {
  std::string name;
  std::string architecture;  // "sm90": what decides how its tensor cores add
  size_t free_bytes = 0;     // of its memory, as of now
  size_t shared_bytes = 0;   // that a block of threads may have
};

// The GPU that this process computes on: the first of those that it sees. Any thread may call it.
//   FAILED_PRECONDITION  there is none that these kernels run on, or it takes no process now
absl::StatusOr<Gpu> OpenGpu();

// Device memory; null if there is not as much. The memory's contents are anything.
std::byte* AllocateDeviceMemory(size_t bytes);
void FreeDeviceMemory(std::byte* memory, size_t bytes);
// Host memory that the device copies from and to at full speed; null if there is not as much.
std::byte* AllocatePinnedMemory(size_t bytes);
void FreePinnedMemory(std::byte* memory, size_t bytes);

Stream CreateStream();
// Waits for what was started in it.
void DestroyStream(Stream stream);

// `rows` rows of `row_bytes`, whose beginnings lie `to_stride` and `from_stride` bytes apart, at
// least row_bytes.
struct RowsToCopy {
  std::byte* to;
  size_t to_stride;
  const std::byte* from;
  size_t from_stride;
  size_t row_bytes;
  size_t rows;
};
// Copies in the stream, between device memory and pinned memory or device memory.
void CopyRows(Stream stream, const RowsToCopy& copy);
// A part of device memory is given out or taken back: an emulation knows from then on, in the
// stream, whether it may be read.
void MarkInUse(Stream stream, std::byte* memory, size_t bytes);
void MarkUnused(Stream stream, std::byte* memory, size_t bytes);
void FillZero(Stream stream, std::byte* memory, size_t bytes);
// Calls `then` once all that was started before is done, from another thread. It must not block,
// nor call anything of this header.
// After an error it is never called.
void CallAfter(Stream stream, std::function<void()> then);
// Ends the process if anything that was started in the stream has failed. Waits for nothing.
void RequireNoError(Stream stream);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_RUNTIME_H_

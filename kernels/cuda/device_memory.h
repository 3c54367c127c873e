// The backend's device memory: one block, taken at the start, of which buffers are parts; and the
// one stream in which all its work is done, in order. So a part may be given out again as soon as
// it is given back: what the next owner asks for is done after what the last one asked for.
#ifndef TANDEM_KERNELS_CUDA_DEVICE_MEMORY_H_
#define TANDEM_KERNELS_CUDA_DEVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "kernels/backend.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/pinned_memory.h"
#include "kernels/cuda/runtime.h"

namespace tandem::kernels::cuda {

// Any number of threads may call it.
class DeviceMemory {
 public:
  // FAILED_PRECONDITION  there is no GPU, or it does not have as many bytes free
  // `bytes` 0: all that is free but a sixteenth.
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Open(size_t bytes);
  ~DeviceMemory();

  const Gpu& gpu() const { return gpu_; }
  size_t bytes() const { return bytes_; }
  Stream stream() const { return stream_; }

  // A part with any contents. RESOURCE_EXHAUSTED where there is none as large.
  absl::StatusOr<std::unique_ptr<Buffer>> Take(size_t bytes);
  // Zero-filled.
  absl::StatusOr<std::unique_ptr<Buffer>> TakeZeroed(size_t bytes);

  // What Backend's methods of these names promise.
  void Write(const void* from, const DeviceTensor& to);
  std::unique_ptr<DeviceEvent> Read(const DeviceTensor& from, void* to);
  void Copy(const DeviceTensor& from, const DeviceTensor& to);

 private:
  class Part;

  DeviceMemory(Gpu gpu, std::byte* memory, size_t bytes, std::unique_ptr<PinnedMemory> pinned);
  void GiveBack(const Part& part);
  void Watch();
  template <typename CopyPiece>
  void ForEachPiece(const DeviceTensor& tensor, std::byte* host, const CopyPiece& copy);

  const Gpu gpu_;
  std::byte* const memory_;
  const size_t bytes_;
  const std::unique_ptr<PinnedMemory> pinned_;  // which the stream's last work gives back
  const Stream stream_;
  Mutex mutex_;
  Arena arena_ ABSL_GUARDED_BY(mutex_);
  bool ends_ ABSL_GUARDED_BY(mutex_) = false;
  CondVar ended_;
  std::thread watch_;  // whether the device's work fails: then nobody would be told of its end
};

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_DEVICE_MEMORY_H_

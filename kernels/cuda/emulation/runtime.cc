// The calls of kernels/cuda/runtime.h on the host: device memory is the host's, and a stream is a
// thread that does one thing after the other.
#include "kernels/cuda/runtime.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/base/config.h"
#include "absl/strings/numbers.h"
#include "common/check.h"
#include "kernels/cuda/emulation/block.h"
#include "kernels/cuda/emulation/work_queue.h"

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#endif

namespace tandem::kernels::cuda {
namespace {

constexpr size_t kMemoryBytes = size_t{1} << 30;
constexpr char kSeedVariable[] = "TANDEM_CUDA_SEED";  // of the orders in which threads take turns

void Copy(const RowsToCopy& copy) {
  for (size_t i = 0; i < copy.rows; ++i) {
    std::memcpy(copy.to + i * copy.to_stride, copy.from + i * copy.from_stride, copy.row_bytes);
  }
}

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
void AllowReading(std::byte* memory, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
void ForbidReading(std::byte* memory, size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
#else
void AllowReading(std::byte*, size_t) {}
void ForbidReading(std::byte*, size_t) {}
#endif

// Pages that take no memory until they are touched.
std::byte* Map(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

}  // namespace

absl::StatusOr<Gpu> OpenGpu() {
  return Gpu{"an emulated GPU", "emulated", kMemoryBytes, emulation::kMostSharedBytes};
}

std::byte* AllocateDeviceMemory(size_t bytes) {
  return bytes > kMemoryBytes ? nullptr : Map(bytes);
}
void FreeDeviceMemory(std::byte* memory, size_t bytes) {
  AllowReading(memory, bytes);  // of whatever is mapped there next
  munmap(memory, bytes);
}

std::byte* AllocatePinnedMemory(size_t bytes) { return Map(bytes); }
void FreePinnedMemory(std::byte* memory, size_t bytes) { munmap(memory, bytes); }

Stream CreateStream() {
  uint64_t seed = 0;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): no thread of a program changes its environment
  if (const char* const value = std::getenv(kSeedVariable)) {
    TANDEM_CHECK(absl::SimpleAtoi(value, &seed));
  }
  return {seed, new emulation::WorkQueue()};
}
void DestroyStream(Stream stream) { delete stream.queue; }

void CopyRows(Stream stream, const RowsToCopy& copy) {
  stream.queue->Add([copy] { Copy(copy); });
}

// What is given out begins as bytes of 0xFF: NaNs, and indices of nothing.
void MarkInUse(Stream stream, std::byte* memory, size_t bytes) {
  stream.queue->Add([=] {
    AllowReading(memory, bytes);
    std::memset(memory, 0xFF, bytes);
  });
}
void MarkUnused(Stream stream, std::byte* memory, size_t bytes) {
  stream.queue->Add([=] { ForbidReading(memory, bytes); });
}
void FillZero(Stream stream, std::byte* memory, size_t bytes) {
  stream.queue->Add([=] { std::memset(memory, 0, bytes); });
}

void CallAfter(Stream stream, std::function<void()> then) { stream.queue->Add(std::move(then)); }
void RequireNoError(Stream) {}  // a kernel that goes wrong ends the process itself

}  // namespace tandem::kernels::cuda

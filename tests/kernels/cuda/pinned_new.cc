// The heap of tests on a GPU: what `new` gives is pinned memory, which the device reads and writes
// at the host's addresses. So a test whose tensors are vectors is the same there as on the
// emulation.
//
// One block of it, taken when the tests begin, in parts of sizes that are powers of two. A part
// that is given back keeps its contents until it is given out again. What was given out before the
// tests began, and what asks for more alignment, is malloc's.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>

#include "kernels/cuda/runtime.h"

namespace {

constexpr size_t kBlockBytes = size_t{2} << 30;
constexpr size_t kHeaderBytes = 64;  // before a part: its size's logarithm, and the next free one

struct Header {
  int log_bytes;
  Header* next;
};

std::mutex mutex;  // constant-initialised, as all here: `new` comes before any constructor
std::byte* block = nullptr;
size_t used_bytes = 0;
std::array<Header*, 64> free_parts{};

void* TakePart(size_t bytes) {
  const int log_bytes = std::bit_width(std::max<size_t>(bytes + kHeaderBytes, 128) - 1);
  const std::lock_guard lock(mutex);
  Header*& free_part = free_parts[log_bytes];
  if (Header* const part = free_part; part != nullptr) {
    free_part = part->next;
    return reinterpret_cast<std::byte*>(part) + kHeaderBytes;
  }
  const size_t part_bytes = size_t{1} << log_bytes;
  if (part_bytes > kBlockBytes - used_bytes) {
    std::fprintf(stderr, "pinned_new.cc: the tests have used up %zu bytes\n", kBlockBytes);
    std::abort();
  }
  auto* const part = reinterpret_cast<Header*>(block + used_bytes);
  used_bytes += part_bytes;
  part->log_bytes = log_bytes;
  return reinterpret_cast<std::byte*>(part) + kHeaderBytes;
}

class PinnedHeap : public testing::Environment {
  void SetUp() override {
    const auto gpu = tandem::kernels::cuda::OpenGpu();
    std::byte* const memory =
        gpu.ok() ? tandem::kernels::cuda::AllocatePinnedMemory(kBlockBytes) : nullptr;
    if (memory == nullptr) {
      std::fprintf(stderr, "%s\n",
                   gpu.ok() ? "The tests get no 2 GiB of pinned memory"
                            : std::string(gpu.status().message()).c_str());
      std::exit(1);
    }
    std::printf("on %s\n", gpu->name.c_str());
    block = memory;
  }
};

const auto* const environment = testing::AddGlobalTestEnvironment(new PinnedHeap);

}  // namespace

void* operator new(size_t bytes) {
  if (block != nullptr) return TakePart(bytes);
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}

void operator delete(void* memory) noexcept {
  auto* const at = static_cast<std::byte*>(memory);
  if (block == nullptr || at < block || at >= block + kBlockBytes) {
    std::free(memory);
    return;
  }
  auto* const part = reinterpret_cast<Header*>(at - kHeaderBytes);
  const std::lock_guard lock(mutex);
  part->next = free_parts[part->log_bytes];
  free_parts[part->log_bytes] = part;
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

// CUDA's device side on the host, for machines without a GPU and for what a GPU does not check:
// each block's threads are fibers of the calling thread, which take turns where they synchronise,
// in an order drawn from a seed. So a kernel that lacks a barrier gives different results for
// different seeds, and one whose threads do not all come to a barrier is refused instead of
// hanging.
//
// Kernels use kernels/cuda/ptx.h and launch.h, which are this or CUDA; tests of the emulation this.
#ifndef TANDEM_KERNELS_CUDA_EMULATION_BLOCK_H_
#define TANDEM_KERNELS_CUDA_EMULATION_BLOCK_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace tandem::kernels::cuda::emulation {

inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kMostThreads = 1024;         // of a block
inline constexpr size_t kMostSharedBytes = 163 << 10;  // of a block, on sm_80

// Of CUDA's uint3 and dim3.
struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
struct Extent3 {
  unsigned x = 1, y = 1, z = 1;
};

struct LaunchShape {
  Extent3 grid, block;
  size_t shared_bytes = 0;
};

// Runs `kernel` for each thread of each block, the blocks one after the other, in an order that
// `seed` draws. A block's shared memory begins as bytes of 0xFF: NaNs, and indices of nothing.
//   INVALID_ARGUMENT  what CUDA would not start: no blocks, no threads or more than kMostThreads in a
//                     block, more than 65,535 blocks by y or z or 64 threads by z, or more than
//                     kMostSharedBytes
//   INTERNAL          threads wait where the others do not come to: at another barrier, or for a lane
//                     that has ended; says who and where. The other blocks do not run.
// Cost: a switch of context per thread and synchronisation, some 20 ns, and 4 ns per thread
// besides. The calling thread keeps the stacks of the threads that waited, those of the largest
// block so far: at most kMostThreads, of 64 KB each where all of it was touched. A kernel that
// needs a larger stack ends the process.
absl::Status RunKernel(const LaunchShape& shape, uint64_t seed, absl::FunctionRef<void()> kernel);

// ---- for the code of a kernel, while RunKernel runs it ----

const Index3& ThreadIndex();
const Index3& BlockIndex();
const Extent3& BlockExtent();
const Extent3& GridExtent();
std::byte* SharedMemory();
unsigned LaneIndex();  // in the warp

// Returns when all threads of the block have called it from one line of one file.
void SyncThreads(const char* file, int line);

// Returns when all lanes of `mask`, which must have the caller's, have called it from one line with
// this mask; then it has the value that each gave, until the caller next waits. What it has of
// other lanes means nothing.
using LaneValues = std::array<uint64_t, kWarpLanes>;
const LaneValues& Exchange(uint32_t mask, uint64_t value, const char* file, int line);

// Where `address` lies in the block's shared memory. Ends the process if it does not lie there, or
// not at a multiple of `alignment`, which a GPU asks for.
uint64_t SharedAddress(const void* address, size_t alignment);

// cp.async: `bytes`, aligned to as many, come to shared memory only when the thread that started
// the copy waits for it; until then bytes of 0xFF are there, since a GPU may write there from the
// start on. Copies that were started since the last CommitCopies are a group.
void StartCopy(void* to, const void* from, size_t bytes);
void CommitCopies();
// Does the copies of all groups but the last `left`.
void WaitForCopies(size_t left);

}  // namespace tandem::kernels::cuda::emulation

#endif  // TANDEM_KERNELS_CUDA_EMULATION_BLOCK_H_

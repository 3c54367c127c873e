#include "kernels/cuda/emulation/block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace tandem::kernels::cuda::emulation {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr int kSeeds = 8;

TEST(BlockTest, EachThreadOfEachBlockRunsOnce) {
  const LaunchShape shape = {{3, 2, 2}, {5, 3, 2}, 0};
  for (int seed = 0; seed < kSeeds; ++seed) {
    std::vector<int> runs(3 * 2 * 2 * 5 * 3 * 2);
    ASSERT_TRUE(RunKernel(shape, seed, [&] {
                  const Index3 &t = ThreadIndex(), &b = BlockIndex();
                  const Extent3 &threads = BlockExtent(), &blocks = GridExtent();
                  const unsigned block = b.x + blocks.x * (b.y + blocks.y * b.z);
                  const unsigned thread = t.x + threads.x * (t.y + threads.y * t.z);
                  ++runs[block * 30 + thread];
                }).ok());
    EXPECT_THAT(runs, Each(1));
  }
}

// Each thread writes its number into shared memory and reads its neighbour's.
std::vector<int> NeighboursOf64(uint64_t seed, bool with_barrier) {
  std::vector<int> read(64);
  const absl::Status status = RunKernel({{}, {64}, 64 * sizeof(int)}, seed, [&] {
    const unsigned i = ThreadIndex().x;
    auto* const shared = reinterpret_cast<int*>(SharedMemory());
    shared[i] = static_cast<int>(i);
    if (with_barrier) SyncThreads(__FILE__, __LINE__);
    read[i] = shared[(i + 1) % 64];
  });
  EXPECT_TRUE(status.ok()) << status;
  return read;
}

TEST(BlockTest, WhatWasWrittenBeforeABarrierIsReadAfterIt) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    const std::vector<int> read = NeighboursOf64(seed, true);
    for (int i = 0; i < 64; ++i) ASSERT_EQ(read[i], (i + 1) % 64);
  }
}

TEST(BlockTest, AMissingBarrierShowsInDifferentResults) {
  std::set<std::vector<int>> results;
  for (int seed = 0; seed < kSeeds; ++seed) results.insert(NeighboursOf64(seed, false));
  EXPECT_GT(results.size(), 1u);
  for (const std::vector<int>& read : results) {
    EXPECT_THAT(read, testing::Contains(-1));  // never written
  }
}

TEST(BlockTest, OneSeedGivesOneOrder) {
  EXPECT_EQ(NeighboursOf64(3, false), NeighboursOf64(3, false));
}

TEST(BlockTest, EachRoundOfTurnsHasAnOrderOfItsOwn) {
  std::set<std::vector<unsigned>> orders;
  for (int seed = 0; seed < kSeeds; ++seed) {
    std::vector<unsigned> ran;
    ASSERT_TRUE(RunKernel({{2}, {64}, 0}, seed, [&] {
                  ran.push_back(ThreadIndex().x);
                  SyncThreads("kernel.cu", 12);
                  ran.push_back(ThreadIndex().x);
                }).ok());
    ASSERT_EQ(ran.size(), 4 * 64u);
    for (int round = 0; round < 4; ++round) {
      orders.emplace(ran.begin() + round * 64, ran.begin() + (round + 1) * 64);
    }
  }
  EXPECT_EQ(orders.size(), 4u * kSeeds);
}

TEST(BlockTest, SharedMemoryOfABlockIsNotThatOfTheLast) {
  int found = 0;
  ASSERT_TRUE(RunKernel({{4}, {1}, sizeof(uint32_t)}, 1, [&] {
                auto* const shared = reinterpret_cast<uint32_t*>(SharedMemory());
                if (*shared != 0xFFFFFFFF) ++found;
                *shared = 7;
              }).ok());
  EXPECT_EQ(found, 0);
}

TEST(BlockTest, ABarrierThatNotAllComeToIsRefused) {
  const absl::Status status = RunKernel({{2}, {40}, 0}, 1, [] {
    if (ThreadIndex().x < 39) SyncThreads("kernel.cu", 12);
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("39 of 40 threads wait at kernel.cu:12, 1 have ended"));
}

TEST(BlockTest, BarriersOfTwoPlacesAreTwo) {
  const absl::Status status = RunKernel({{1}, {8}, 0}, 1, [] {
    if (ThreadIndex().x < 3) {
      SyncThreads("kernel.cu", 12);
    } else {
      SyncThreads("kernel.cu", 14);
    }
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("3 of 8 threads wait at kernel.cu:12"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("5 wait elsewhere"));
}

TEST(BlockTest, LanesExchangeWithinTheirWarp) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    std::vector<uint64_t> sums(72);  // two warps and a quarter
    ASSERT_TRUE(RunKernel({{1}, {72}, 0}, seed, [&] {
                  const unsigned i = ThreadIndex().x;
                  uint64_t sum = i;
                  const uint32_t mask = i < 64 ? 0xFFFFFFFF : 0xFF;
                  for (int round = 0; round < 3; ++round) {
                    const LaneValues values = Exchange(mask, i + 100 * round, "kernel.cu", 5);
                    for (unsigned lane = 0; lane < 8; ++lane) sum += values[lane];
                  }
                  sums[i] = sum;
                }).ok());
    for (unsigned i = 0; i < 72; ++i) {
      const unsigned first = i / 32 * 32;
      EXPECT_EQ(sums[i], i + 3 * (8 * first + 28) + 8 * 300) << i;
    }
  }
}

TEST(BlockTest, ACopyIsThereWhenItIsWaitedForAndNotBefore) {
  alignas(16) const uint32_t from[3][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};
  std::vector<std::vector<uint32_t>> seen;
  ASSERT_TRUE(RunKernel({{}, {1}, sizeof(from)}, 1, [&] {
                auto* const shared = reinterpret_cast<uint32_t*>(SharedMemory());
                const auto see = [&] { seen.push_back({shared[0], shared[4], shared[8]}); };
                shared[0] = 77;  // may be written over from the start of the copy on
                for (int i = 0; i < 3; ++i) {
                  StartCopy(shared + 4 * i, from[i], 16);
                  if (i != 1) CommitCopies();  // the second belongs to the third's group
                }
                see();
                WaitForCopies(1);
                see();
                WaitForCopies(0);
                see();
              }).ok());
  constexpr uint32_t kNothing = 0xFFFFFFFF;
  EXPECT_THAT(seen, testing::ElementsAre(testing::ElementsAre(kNothing, kNothing, kNothing),
                                         testing::ElementsAre(1, kNothing, kNothing),
                                         testing::ElementsAre(1, 5, 9)));
}

TEST(BlockDeathTest, WhatAGpuWantsAlignedAndInSharedMemoryIs) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  alignas(16) const uint32_t from[8] = {};
  const auto copy = [&](size_t to, size_t at) {
    (void)RunKernel({{}, {1}, 64}, 1, [&] {
      StartCopy(SharedMemory() + to, reinterpret_cast<const std::byte*>(from) + at, 16);
    });
  };
  copy(48, 16);
  EXPECT_DEATH(copy(8, 0), "alignment");
  EXPECT_DEATH(copy(64, 0), "shared_bytes");
  EXPECT_DEATH(copy(0, 8), "bytes");
}

// Warps that wait for none but themselves are rounds apart, each of two ahead of the other at
// times.
TEST(BlockTest, WarpsDoNotKeepStepWithEachOther) {
  std::set<int> leads;
  for (int seed = 0; seed < kSeeds; ++seed) {
    int rounds[2] = {};
    ASSERT_TRUE(RunKernel({{}, {64}, 0}, seed, [&] {
                  const unsigned warp = ThreadIndex().x / 32;
                  for (int round = 0; round < 20; ++round) {
                    Exchange(0xFFFFFFFF, 0, "kernel.cu", 1);
                    if (LaneIndex() == 0) ++rounds[warp];
                    leads.insert(rounds[0] - rounds[1]);
                  }
                }).ok());
  }
  EXPECT_LT(*leads.begin(), -2);
  EXPECT_GT(*leads.rbegin(), 2);
}

TEST(BlockTest, HalvesOfAWarpExchangeApart) {
  std::vector<uint64_t> got(32);
  ASSERT_TRUE(RunKernel({{1}, {32}, 0}, 5, [&] {
                const unsigned i = ThreadIndex().x;
                const uint32_t mask = i < 16 ? 0x0000FFFF : 0xFFFF0000;
                for (unsigned round = 0; round < (i < 16 ? 1u : 4u); ++round) {
                  got[i] = Exchange(mask, i, "kernel.cu", 5)[i ^ 1];
                }
              }).ok());
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(got[i], i ^ 1);
}

TEST(BlockTest, ALaneThatHasEndedIsNotWaitedForInVain) {
  const absl::Status status = RunKernel({{1}, {32}, 0}, 1, [] {
    if (ThreadIndex().x != 7) Exchange(0xFFFFFFFF, 0, "kernel.cu", 5);
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("31 of 32 threads wait at kernel.cu:5 for lanes ffffffff"));
  EXPECT_EQ(RunKernel({{1}, {20}, 0}, 1, [] { Exchange(0xFFFFFFFF, 0, "kernel.cu", 5); }).code(),
            absl::StatusCode::kInternal);
}

TEST(BlockTest, ALaunchAfterARefusedOneIsWhole) {
  const absl::Status status = RunKernel({{1}, {1024}, 0}, 1, [] {
    volatile int left[100] = {};  // on a stack that nothing goes on with
    if (ThreadIndex().x != 7 && left[99] == 0) SyncThreads("kernel.cu", 12);
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  int ran = 0;
  ASSERT_TRUE(RunKernel({{2}, {1024}, 0}, 1, [&] {
                volatile char frame[1000] = {};
                SyncThreads("kernel.cu", 12);
                ran += 1 + frame[999];
              }).ok());
  EXPECT_EQ(ran, 2 * 1024);
}

// Uses some 4 KB of stack per call.
int Recurse(int depth) {
  volatile char page[4096];
  page[0] = static_cast<char>(depth);
  return depth == 0 ? 0 : Recurse(depth - 1) + page[0];
}

TEST(BlockDeathTest, AKernelThatOverflowsItsStackEndsTheProcess) {
  volatile int depth = 8, result = 0;
  const auto recurse = [&] { result = Recurse(depth); };
  EXPECT_TRUE(RunKernel({{1}, {32}, 0}, 1, recurse).ok());
  depth = 1000;
  EXPECT_DEATH((void)RunKernel({{1}, {32}, 0}, 1, recurse), "");
}

TEST(BlockTest, ABlockHasOneToAThousandThreads) {
  const auto nothing = [] {};
  EXPECT_EQ(RunKernel({{1}, {0}, 0}, 1, nothing).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RunKernel({{1}, {1025}, 0}, 1, nothing).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(RunKernel({{1}, {1024}, 0}, 1, nothing).ok());
}

TEST(BlockTest, WhatCudaWouldNotStartIsRefused) {
  for (const LaunchShape& shape :
       {LaunchShape{{0}, {32}, 0}, LaunchShape{{1, 65536}, {32}, 0},
        LaunchShape{{1}, {1, 1, 65}, 0}, LaunchShape{{1}, {32}, kMostSharedBytes + 1}}) {
    EXPECT_EQ(RunKernel(shape, 1, [] {}).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(RunKernel({{1}, {32}, kMostSharedBytes}, 1, [] {}).ok());
}

}  // namespace
}  // namespace tandem::kernels::cuda::emulation

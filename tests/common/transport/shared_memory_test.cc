#include "common/transport/shared_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <vector>

namespace tandem {
namespace {

std::shared_ptr<SharedMemory> Create(size_t bytes) {
  auto memory = SharedMemory::Create(bytes);
  EXPECT_TRUE(memory.ok()) << memory.status();
  return *std::move(memory);
}

TEST(SharedMemoryTest, IsTheSameAtBothSidesAndKeepsItsSize) {
  const auto ours = Create(8192);
  const auto theirs = SharedMemory::Open(Descriptor(dup(ours->fd())));
  ASSERT_TRUE(theirs.ok()) << theirs.status();
  EXPECT_EQ((*theirs)->bytes(), 8192u);
  EXPECT_NE((*theirs)->data(), ours->data());
  std::memcpy(ours->data() + 5000, "rows", 4);
  EXPECT_EQ(std::memcmp((*theirs)->data() + 5000, "rows", 4), 0);
  EXPECT_NE(ftruncate((*theirs)->fd(), 0), 0);
  EXPECT_NE(ftruncate((*theirs)->fd(), 1 << 20), 0);
}

TEST(SharedBlocksTest, BlocksNeverOverlapAndAllOfTheMemoryComesBack) {
  constexpr size_t kBytes = 1 << 16;
  const auto memory = Create(kBytes);
  SharedBlocks blocks(memory);
  struct Held {
    std::shared_ptr<std::byte> block;
    size_t bytes;
    std::byte mark;
  };
  std::vector<Held> held;
  std::mt19937 random(7);
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    if (random() % 2 == 0 && !held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      for (size_t k = 0; k < held.back().bytes; ++k)
        ASSERT_EQ(held.back().block.get()[k], held.back().mark);
      held.pop_back();
      continue;
    }
    const size_t bytes = 1 + random() % 9000;
    auto block = blocks.Take(bytes);
    if (block == nullptr) {
      ++refused;
      continue;
    }
    const size_t begin = block.get() - memory->data();
    ASSERT_EQ(begin % SharedBlocks::kAlign, 0u);
    ASSERT_LE(begin + bytes, kBytes);
    const auto mark = static_cast<std::byte>(i);
    std::memset(block.get(), i, bytes);
    held.push_back({std::move(block), bytes, mark});
  }
  EXPECT_GT(refused, 0);
  held.clear();
  EXPECT_EQ(blocks.bytes_in_use(), 0u);
  EXPECT_NE(blocks.Take(kBytes), nullptr);
  EXPECT_EQ(blocks.Take(kBytes + 1), nullptr);
  EXPECT_EQ(blocks.Take(0), nullptr);
}

TEST(SharedBlocksTest, TheLowestPlaceIsTakenFirst) {
  const auto memory = Create(1 << 16);
  SharedBlocks blocks(memory);
  auto first = blocks.Take(100);
  const auto second = blocks.Take(100);
  EXPECT_EQ(first.get(), memory->data());
  EXPECT_EQ(second.get(), memory->data() + 128);
  first.reset();
  EXPECT_EQ(blocks.Take(128).get(), memory->data());
  EXPECT_EQ(blocks.Take(129).get(), memory->data() + 256);
}

TEST(SharedBlocksTest, ABlockOutlivesWhatDealtIt) {
  std::shared_ptr<std::byte> block;
  {
    SharedBlocks blocks(Create(4096));
    block = blocks.Take(4096);
  }
  std::memset(block.get(), 1, 4096);
}

}  // namespace
}  // namespace tandem

#include "kernels/cuda/arena.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

namespace tandem::kernels::cuda {
namespace {

constexpr size_t kA = Arena::kAlignment;

TEST(ArenaTest, GivesAlignedPartsUntilNoneIsLeft) {
  Arena arena(4 * kA + 17);
  EXPECT_EQ(arena.bytes(), 4 * kA);
  EXPECT_EQ(arena.Take(1), 0u);
  EXPECT_EQ(arena.Take(0), kA);
  EXPECT_EQ(arena.Take(kA + 1), 2 * kA);
  EXPECT_EQ(arena.free_bytes(), 0u);
  EXPECT_FALSE(arena.Take(0).has_value());
  EXPECT_FALSE(arena.Take(SIZE_MAX).has_value());
}

TEST(ArenaTest, WhatIsGivenBackJoinsItsNeighbours) {
  Arena arena(6 * kA);
  for (size_t i = 0; i < 6; ++i) ASSERT_EQ(arena.Take(kA), i * kA);
  for (size_t i : {0, 2, 4}) arena.GiveBack(i * kA, kA);
  EXPECT_EQ(arena.largest_bytes(), kA);
  arena.GiveBack(kA, 1);  // rounded as it was taken
  EXPECT_EQ(arena.largest_bytes(), 3 * kA);
  arena.GiveBack(3 * kA, kA);
  arena.GiveBack(5 * kA, kA);
  EXPECT_EQ(arena.largest_bytes(), 6 * kA);
  EXPECT_EQ(arena.Take(6 * kA), 0u);
}

TEST(ArenaTest, TakesTheSmallestPartThatWillDo) {
  Arena arena(10 * kA);
  for (size_t i = 0; i < 10; ++i) ASSERT_TRUE(arena.Take(kA).has_value());
  for (size_t i : {1, 2, 3, 6, 7}) arena.GiveBack(i * kA, kA);
  EXPECT_EQ(arena.Take(2 * kA), 6 * kA);
  EXPECT_EQ(arena.Take(2 * kA), kA);
  EXPECT_EQ(arena.Take(kA), 3 * kA);
}

TEST(ArenaTest, PartsNeverOverlapAndNothingIsLost) {
  Arena arena(1000 * kA);
  std::map<size_t, size_t> taken;
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0 || taken.empty()) {
      const size_t bytes = random() % (30 * kA);
      const std::optional<size_t> offset = arena.Take(bytes);
      if (!offset.has_value()) continue;
      const auto next = taken.lower_bound(*offset);
      if (next != taken.end()) {
        ASSERT_LE(*offset + bytes, next->first);
      }
      if (next != taken.begin()) {
        ASSERT_LE(std::prev(next)->first + std::prev(next)->second, *offset);
      }
      ASSERT_LE(*offset + bytes, arena.bytes());
      taken[*offset] = bytes;
    } else {
      const auto part = std::next(taken.begin(), random() % taken.size());
      arena.GiveBack(part->first, part->second);
      taken.erase(part);
    }
  }
  for (const auto& [offset, bytes] : taken) arena.GiveBack(offset, bytes);
  EXPECT_EQ(arena.free_bytes(), arena.bytes());
  EXPECT_EQ(arena.largest_bytes(), arena.bytes());
}

}  // namespace
}  // namespace tandem::kernels::cuda

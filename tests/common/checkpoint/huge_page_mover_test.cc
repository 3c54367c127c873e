#include "common/checkpoint/huge_page_mover.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/checkpoint/mapped_pages.h"
#include "common/machine.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

// As much as fills huge pages, and a little.
constexpr int64_t kBytes = 5 * kHugePageBytes + 12345;

bool SystemGivesHugePages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

std::vector<std::byte> RandomBytes(int64_t bytes) {
  std::vector<std::byte> all(static_cast<size_t>(bytes));
  std::mt19937_64 random(1);
  for (std::byte& byte : all) byte = static_cast<std::byte>(random());
  return all;
}

class HugePageMoverTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!SystemGivesHugePages()) GTEST_SKIP() << "the system gives no huge pages";
  }

  // A mapping of a file with these bytes, which was written piece by piece from its end, so that no
  // huge page can hold it.
  std::shared_ptr<const std::byte> MapFile(const std::vector<std::byte>& bytes) {
    const std::string path = dir_.File("weights");
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
    EXPECT_GE(fd, 0);
    constexpr int64_t kPieceBytes = 4096;
    const auto size = static_cast<int64_t>(bytes.size());
    for (int64_t at = (size - 1) / kPieceBytes * kPieceBytes; at >= 0; at -= kPieceBytes) {
      const auto count = static_cast<size_t>(std::min(kPieceBytes, size - at));
      EXPECT_EQ(pwrite(fd, bytes.data() + at, count, at), static_cast<ssize_t>(count));
    }
    auto pages = MapPages(fd, path, 0, bytes.size());
    EXPECT_TRUE(pages.ok()) << pages.status();
    close(fd);
    unlink(path.c_str());  // the mapping keeps it
    return {*pages, static_cast<const std::byte*>(pages->get())};
  }

  // Whether nothing waits any more; the mover tries again each minute.
  static bool WaitUntilMoved(const HugePageMover& mover) {
    const absl::Time deadline = absl::Now() + absl::Minutes(4);
    while (mover.waiting_bytes() > 0 && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    return mover.waiting_bytes() == 0;
  }

  const ScratchDir dir_;
};

TEST_F(HugePageMoverTest, KeepsWhatIsReadMeanwhile) {
  const std::vector<std::byte> bytes = RandomBytes(kBytes);
  const auto memory = MapFile(bytes);
  std::atomic<bool> ending = false;
  std::atomic<int64_t> differences = 0, rounds = 0;
  std::thread reader([&] {
    for (; !ending; ++rounds) {
      if (std::memcmp(memory.get(), bytes.data(), bytes.size()) != 0) ++differences;
    }
  });
  while (rounds == 0) absl::SleepFor(absl::Milliseconds(1));
  {
    HugePageMover mover;
    mover.Move(memory, kBytes);
    EXPECT_TRUE(WaitUntilMoved(mover));
    constexpr auto whole = static_cast<int64_t>(5 * kHugePageBytes);
    EXPECT_EQ(mover.moved_bytes(), whole);
    mover.Move(memory, kBytes);  // all of it is in huge pages, if the system can tell
    EXPECT_TRUE(WaitUntilMoved(mover));
    EXPECT_TRUE(mover.moved_bytes() == whole || mover.moved_bytes() == 2 * whole);
  }
  ending = true;
  reader.join();
  EXPECT_EQ(differences, 0);
  EXPECT_EQ(std::memcmp(memory.get(), bytes.data(), bytes.size()), 0);
}

TEST_F(HugePageMoverTest, WhatIsGoneIsLeftOut) {
  std::vector<std::shared_ptr<const std::byte>> kept;
  HugePageMover mover;
  for (int i = 0; i < 20; ++i) {
    auto memory = MapFile(RandomBytes(kHugePageBytes));
    mover.Move(memory, kHugePageBytes);
    if (i % 2 == 0) {
      memory.reset();  // before, while or after it is moved
    } else {
      kept.push_back(memory);
    }
  }
  EXPECT_TRUE(WaitUntilMoved(mover));
  EXPECT_GE(mover.moved_bytes(), static_cast<int64_t>(10 * kHugePageBytes));
  EXPECT_LE(mover.moved_bytes(), static_cast<int64_t>(20 * kHugePageBytes));
}

TEST_F(HugePageMoverTest, TouchesNothingElse) {
  const std::vector<std::byte> bytes = RandomBytes(kBytes);
  std::vector<std::shared_ptr<const std::byte>> all;
  for (int i = 0; i < 6; ++i) all.push_back(MapFile(bytes));
  HugePageMover mover;
  for (size_t i = 0; i < all.size(); i += 2) mover.Move(all[i], kBytes);
  EXPECT_TRUE(WaitUntilMoved(mover));
  for (const auto& memory : all) {
    EXPECT_EQ(std::memcmp(memory.get(), bytes.data(), bytes.size()), 0);
  }
}

TEST_F(HugePageMoverTest, EndsWhileThereIsMuchToMove) {
  const std::vector<std::byte> bytes = RandomBytes(kBytes);
  std::vector<std::shared_ptr<const std::byte>> all;
  for (int i = 0; i < 20; ++i) all.push_back(MapFile(bytes));
  {
    HugePageMover mover;
    for (const auto& memory : all) mover.Move(memory, kBytes);
  }
  for (const auto& memory : all) {
    EXPECT_EQ(std::memcmp(memory.get(), bytes.data(), bytes.size()), 0);
  }
}

}  // namespace
}  // namespace tandem

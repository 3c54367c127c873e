#include "common/checkpoint/packed_weights.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kUnit[] = "model.layers.1.mlp.experts.2";
constexpr char kLayout[] = "int4 1 [48, 32]";
constexpr int64_t kBytes = (5 << 19) + 192;  // some sums and a little

std::shared_ptr<const std::byte> RandomBytes(int64_t bytes, uint64_t seed) {
  auto memory = std::shared_ptr<std::byte[]>(new std::byte[bytes]);
  std::mt19937_64 random(seed);
  for (int64_t i = 0; i < bytes; ++i) memory[i] = static_cast<std::byte>(random());
  return {memory, memory.get()};
}

void InTurn(int64_t count, absl::FunctionRef<void(int64_t)> fn) {
  for (int64_t i = 0; i < count; ++i) fn(i);
}

int64_t Counter(const PackedWeights& weights, const std::string& name) {
  for (const auto& [counter, value] : weights.Counters()) {
    if (counter == name) return value;
  }
  ADD_FAILURE() << name;
  return -1;
}

// Whether so many files are written, within half a minute.
bool WaitForWritten(const PackedWeights& weights, int64_t count) {
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (Counter(weights, "packed_written") < count) {
    if (!weights.status().ok() || absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

class PackedWeightsTest : public testing::Test {
 protected:
  PackedWeights::Options Options(const std::string& source = "a checkpoint") const {
    PackedWeights::Options options;
    options.dir = dir_.File("packed");
    options.source = source;
    options.wait = true;
    options.spare_bytes = 0;
    return options;
  }
  std::string Path(const std::string& unit = kUnit) const { return dir_.File("packed/" + unit); }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    if (!std::filesystem::exists(dir_.File("packed"))) return names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.File("packed"))) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }
  void Keep(PackedWeights& weights, const std::string& unit = kUnit) const {
    weights.Unit(unit)->Keep(kLayout, bytes_, kBytes);
  }
  std::shared_ptr<const std::byte> Find(PackedWeights& weights, const std::string& layout = kLayout,
                                        int64_t bytes = kBytes) const {
    return weights.Unit(kUnit)->Find(layout, bytes, InTurn);
  }
  bool Finds(PackedWeights& weights) const {
    const auto found = Find(weights);
    return found != nullptr && std::memcmp(found.get(), bytes_.get(), kBytes) == 0;
  }

  const ScratchDir dir_;
  const std::shared_ptr<const std::byte> bytes_ = RandomBytes(kBytes, 1);
};

TEST_F(PackedWeightsTest, FindsWhatAnEarlierStartKept) {
  {
    PackedWeights first(Options());
    EXPECT_FALSE(first.Unit(kUnit)->is_kept());
    EXPECT_EQ(Find(first), nullptr);
    Keep(first);
    EXPECT_EQ(Counter(first, "packed_written"), 1);
    EXPECT_EQ(Counter(first, "packed_refused"), 0);
  }
  EXPECT_THAT(Files(), ElementsAre(kUnit));
  std::shared_ptr<const std::byte> found;
  {
    PackedWeights second(Options());
    EXPECT_TRUE(second.Unit(kUnit)->is_kept());
    EXPECT_FALSE(second.Unit("model.layers.1.mlp.experts.3")->is_kept());
    EXPECT_TRUE(second.Has(kUnit));
    EXPECT_FALSE(second.Has("model.layers.1.mlp.experts.3"));
    EXPECT_FALSE(PackedWeights(Options("another checkpoint")).Has(kUnit));
    EXPECT_TRUE(Finds(second));
    found = Find(second);
    EXPECT_EQ(Counter(second, "packed_mapped"), 2);
    EXPECT_EQ(Counter(second, "packed_mapped_bytes"), 2 * kBytes);
    Keep(second);  // is there
    EXPECT_EQ(Counter(second, "packed_written"), 0);
  }
  EXPECT_EQ(std::memcmp(found.get(), bytes_.get(), kBytes), 0);  // outlives all
}

TEST_F(PackedWeightsTest, AThreadWritesWhileTheWeightsAreInUse) {
  PackedWeights::Options options = Options();
  options.wait = false;
  {
    PackedWeights weights(options);
    for (int i = 0; i < 20; ++i) Keep(weights, absl::StrCat("unit", i));
    EXPECT_TRUE(WaitForWritten(weights, 2));
  }  // ends in the middle, or not
  EXPECT_GE(Files().size(), 2);
  PackedWeights second(options);
  for (const std::string& name : Files()) {
    EXPECT_NE(second.Unit(name)->Find(kLayout, kBytes, InTurn), nullptr) << name;
  }
}

TEST_F(PackedWeightsTest, WhatIsInUseNoMoreIsNeitherHeldNorWritten) {
  PackedWeights::Options options = Options();
  options.wait = false;
  absl::Notification go_on;
  options.check_source = [&] {
    go_on.WaitForNotification();
    return absl::OkStatus();
  };
  PackedWeights weights(options);
  Keep(weights, "first");
  std::shared_ptr<const std::byte> memory = RandomBytes(kBytes, 2);
  const std::weak_ptr<const std::byte> held = memory;
  weights.Unit("second")->Keep(kLayout, std::move(memory), kBytes);
  EXPECT_TRUE(held.expired());
  Keep(weights, "third");
  go_on.Notify();
  EXPECT_TRUE(WaitForWritten(weights, 2));
  EXPECT_THAT(Files(), testing::UnorderedElementsAre("first", "third"));
}

// What makes a file another one, or none, and what is said of it.
struct Spoiled {
  const char* name;
  std::function<void(const std::string& path)> spoil;
};

void ChangeByte(const std::string& path, int64_t at) {
  std::string content = ReadFile(path);
  content[at < 0 ? content.size() + at : at] ^= 1;
  WriteFile(path, content);
}

const Spoiled kSpoiled[] = {
    {"first_byte", [](const std::string& path) { ChangeByte(path, 0); }},
    {"last_byte_of_the_data", [](const std::string& path) { ChangeByte(path, kBytes - 1); }},
    {"label", [](const std::string& path) { ChangeByte(path, kBytes + 10); }},
    {"magic", [](const std::string& path) { ChangeByte(path, -32); }},
    {"version", [](const std::string& path) { ChangeByte(path, -24); }},
    {"label_length", [](const std::string& path) { ChangeByte(path, -16); }},
    {"label_longer_than_the_file", [](const std::string& path) { ChangeByte(path, -10); }},
    {"cut_by_a_byte",
     [](const std::string& path) {
       std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
     }},
    {"cut_in_the_data", [](const std::string& path) { std::filesystem::resize_file(path, 4096); }},
    {"empty", [](const std::string& path) { std::filesystem::resize_file(path, 0); }},
    {"a_byte_lost_in_the_middle",
     [](const std::string& path) { WriteFile(path, ReadFile(path).erase(1000, 1)); }},
    {"longer",
     [](const std::string& path) { WriteFile(path, ReadFile(path).insert(1000, 1, 'x')); }},
    {"foreign", [](const std::string& path) { WriteFile(path, std::string(100'000, 'x')); }},
    {"of_another_unit",
     [](const std::string& path) {
       // Whole, but renamed by hand.
       PackedWeights::Options options;
       options.dir = std::filesystem::path(path).parent_path().string();
       options.source = "a checkpoint";
       options.wait = true;
       options.spare_bytes = 0;
       PackedWeights(options).Unit("other")->Keep(kLayout, RandomBytes(kBytes, 2), kBytes);
       std::filesystem::rename(options.dir + "/other", path);
     }},
};

class SpoiledTest : public PackedWeightsTest, public testing::WithParamInterface<Spoiled> {};

TEST_P(SpoiledTest, FileCountsAsNoneAndIsReplaced) {
  {
    PackedWeights weights(Options());
    Keep(weights);
  }
  GetParam().spoil(Path());
  PackedWeights weights(Options());
  const auto unit = weights.Unit(kUnit);
  EXPECT_EQ(unit->Find(kLayout, kBytes, InTurn), nullptr);
  EXPECT_EQ(Counter(weights, "packed_refused"), 1);
  EXPECT_EQ(Counter(weights, "packed_mapped"), 0);
  unit->Keep(kLayout, bytes_, kBytes);
  EXPECT_EQ(Counter(weights, "packed_written"), 1);
  EXPECT_TRUE(Finds(weights));
}

INSTANTIATE_TEST_SUITE_P(Files, SpoiledTest, testing::ValuesIn(kSpoiled),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_F(PackedWeightsTest, AnotherSourceLayoutOrLengthIsNotTaken) {
  {
    PackedWeights weights(Options());
    Keep(weights);
  }
  PackedWeights weights(Options());
  EXPECT_EQ(Find(weights, "int4 2 [48, 32]"), nullptr);
  EXPECT_EQ(Find(weights, kLayout, kBytes - 64), nullptr);
  EXPECT_EQ(Counter(weights, "packed_refused"), 2);
  EXPECT_TRUE(Finds(weights));

  PackedWeights changed(Options("a checkpoint that was changed"));
  EXPECT_FALSE(changed.Unit(kUnit)->is_kept());
  EXPECT_EQ(Find(changed), nullptr);
  Keep(changed);
  EXPECT_TRUE(Finds(changed));
  EXPECT_EQ(Find(weights), nullptr);  // replaced
}

TEST_F(PackedWeightsTest, WhatChangesWhileItIsPackedIsNotKept) {
  PackedWeights::Options options = Options();
  int asked = 0;
  options.check_source = [&] {
    return ++asked < 2 ? absl::OkStatus() : absl::DataLossError("it has been written to");
  };
  PackedWeights weights(options);
  Keep(weights);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("has been written to"));
  EXPECT_EQ(Counter(weights, "packed_failed"), 1);
  EXPECT_THAT(Files(), IsEmpty());
  Keep(weights, "another");  // not even tried
  EXPECT_EQ(asked, 2);
}

TEST_F(PackedWeightsTest, AFolderThatCannotBeMadeCostsTheCacheOnly) {
  WriteFile(dir_.File("packed"), "no folder");
  PackedWeights weights(Options());
  EXPECT_EQ(Find(weights), nullptr);
  Keep(weights);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("cannot make " + dir_.path()));
  EXPECT_EQ(Counter(weights, "packed_failed"), 1);
}

TEST_F(PackedWeightsTest, LeavesOthersTheirShareOfTheDisk) {
  PackedWeights::Options options = Options();
  options.spare_bytes = int64_t{1} << 60;
  PackedWeights weights(options);
  Keep(weights);
  EXPECT_EQ(weights.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Files(), IsEmpty());
}

// The system takes a part of what is written: as on a full disk.
TEST_F(PackedWeightsTest, AFullDiskLeavesNothingUnfinished) {
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit { 2'200'000, before.rlim_max };
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  PackedWeights weights(Options());
  Keep(weights);
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr("File too large"));
  EXPECT_THAT(Files(), IsEmpty());
}

// A process that was killed leaves a part, and no lock.
TEST_F(PackedWeightsTest, AnUnfinishedFileIsNotReadAndIsTakenOver) {
  std::filesystem::create_directory(dir_.File("packed"));
  WriteFile(Path() + ".new", std::string(3 * kBytes, 'x'));
  PackedWeights weights(Options());
  EXPECT_FALSE(weights.Unit(kUnit)->is_kept());
  Keep(weights);
  EXPECT_TRUE(Finds(weights));
  EXPECT_THAT(Files(), ElementsAre(kUnit));
}

TEST_F(PackedWeightsTest, WhatAnotherProcessWritesIsLeftToIt) {
  std::filesystem::create_directory(dir_.File("packed"));
  WriteFile(Path() + ".new", "its beginning");
  const int other = open((Path() + ".new").c_str(), O_RDWR);
  ASSERT_EQ(flock(other, LOCK_EX), 0);
  PackedWeights::Options options = Options();
  PackedWeights waits(options);
  Keep(waits);
  EXPECT_EQ(waits.status().code(), absl::StatusCode::kUnavailable);
  options.wait = false;
  {
    PackedWeights weights(options);
    Keep(weights);
    Keep(weights, "another");
    EXPECT_TRUE(WaitForWritten(weights, 1));
    EXPECT_TRUE(weights.status().ok());
  }
  EXPECT_EQ(ReadFile(Path() + ".new"), "its beginning");
  EXPECT_FALSE(std::filesystem::exists(Path()));
  close(other);
}

TEST_F(PackedWeightsTest, ProcessesThatKeepTheSameAtOnceLeaveAllOfItWhole) {
  constexpr int kProcesses = 4, kUnits = 12;
  std::vector<pid_t> children;
  for (int child = 0; child < kProcesses; ++child) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    PackedWeights::Options options = Options();
    for (int i = 0; i < kUnits; ++i) {
      PackedWeights weights(options);  // anew, as what another writes is an error here
      Keep(weights, absl::StrCat("unit", (i + child) % kUnits));
      if (!weights.status().ok() && !absl::IsUnavailable(weights.status())) _exit(1);
    }
    _exit(0);
  }
  for (const pid_t child : children) {
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  PackedWeights weights(Options());
  for (int i = 0; i < kUnits; ++i) {
    const auto found = weights.Unit(absl::StrCat("unit", i))->Find(kLayout, kBytes, InTurn);
    ASSERT_NE(found, nullptr) << i;
    EXPECT_EQ(std::memcmp(found.get(), bytes_.get(), kBytes), 0);
  }
  EXPECT_EQ(Files().size(), kUnits);
}

}  // namespace
}  // namespace tandem

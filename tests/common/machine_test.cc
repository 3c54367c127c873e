#include "common/machine.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace tandem {
namespace {

namespace fs = std::filesystem;

class MachineTest : public ::testing::Test {
 protected:
  MachineTest() {
    fs::remove_all(root_);
    Write("proc/meminfo", "MemTotal:       1000000 kB\nMemFree:          100 kB\n");
  }
  ~MachineTest() override { fs::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  MachineLimits Read() const { return ReadMachineLimits(root_.string()); }

  const fs::path root_ =
      fs::temp_directory_path() /
      ("machine-test-" + std::to_string(std::hash<std::thread::id>()(std::this_thread::get_id())) +
       ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

int Affinity() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof(set), &set);
  return CPU_COUNT(&set);
}

TEST_F(MachineTest, WithoutGroupsTheMachineAndTheAffinityLimit) {
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.cpus, Affinity());
  EXPECT_EQ(limits.cpus_from, "affinity");
  EXPECT_EQ(limits.memory_bytes, 1'024'000'000);
  EXPECT_EQ(limits.memory_from, "the machine");
}

TEST_F(MachineTest, TheAffinityMaskCounts) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before)) {
      CPU_SET(cpu, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(Read().cpus, 1);
  sched_setaffinity(0, sizeof(before), &before);
}

TEST_F(MachineTest, GroupsOfV2) {
  Write("proc/self/cgroup", "0::/kubepods/pod1/container\n");
  Write("sys/fs/cgroup/kubepods/pod1/container/cpu.max", "max 100000\n");
  Write("sys/fs/cgroup/kubepods/pod1/container/memory.max", "max\n");
  Write("sys/fs/cgroup/kubepods/pod1/cpu.max", "50000 100000\n");  // half a core counts as one
  Write("sys/fs/cgroup/kubepods/pod1/memory.max", "500000000\n");
  Write("sys/fs/cgroup/kubepods/memory.max", "600000000\n");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.cpus, 1);
  EXPECT_EQ(limits.cpus_from, Affinity() == 1 ? "affinity" : "cgroup cpu quota");
  EXPECT_EQ(limits.memory_bytes, 500'000'000);
  EXPECT_EQ(limits.memory_from, "cgroup memory limit");
}

TEST_F(MachineTest, GroupsOfV1AndAContainerThatSeesItsOwnGroupAtTheTop) {
  Write("proc/self/cgroup", "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000\n");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.cpus, 1);
  EXPECT_EQ(limits.memory_bytes, 300'000'000);
}

TEST_F(MachineTest, AQuotaIsRoundedUpAndNeverRaisesTheNumber) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/cpu.max", "100001 100000\n");
  EXPECT_EQ(Read().cpus, std::min(2, Affinity()));
  Write("sys/fs/cgroup/cpu.max", "100000000 100000\n");
  EXPECT_EQ(Read().cpus, Affinity());
  Write("sys/fs/cgroup/memory.max", "9223372036854775807\n");
  EXPECT_EQ(Read().memory_bytes, 1'024'000'000);
}

TEST_F(MachineTest, WhatCannotBeReadDoesNotLimit) {
  Write("proc/meminfo", "");
  Write("proc/self/cgroup", "nonsense\n0::\n7:cpu:/a\n6:memory:/../../x\n");
  Write("sys/fs/cgroup/cpu.max", "-1 x\n");
  Write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "18446744073709551615\n");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.cpus, Affinity());
  EXPECT_EQ(limits.memory_bytes, std::numeric_limits<int64_t>::max());
}

TEST_F(MachineTest, PagesOfFilesAreAvailable) {
  const auto available = [this] { return ReadAvailableMemory(root_.string()); };
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 700000 kB\n");
  EXPECT_EQ(available(), 716'800'000);
  Write("sys/fs/cgroup/a/b/memory.max", "max\n");
  Write("sys/fs/cgroup/a/b/memory.current", "900000000\n");
  EXPECT_EQ(available(), 716'800'000);
  Write("sys/fs/cgroup/a/memory.max", "500000000\n");
  EXPECT_EQ(available(), 716'800'000);  // what is in use cannot be read
  Write("sys/fs/cgroup/a/memory.current", "400000000\n");
  EXPECT_EQ(available(), 100'000'000);
  Write("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 30000000\nactive_file 20000000\n");
  EXPECT_EQ(available(), 150'000'000);
  // v1: a group's own numbers lie beside those of it and the groups in it.
  Write("proc/self/cgroup", "5:memory:/\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000000\n");
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "200000000\n");
  Write("sys/fs/cgroup/memory/memory.stat",
        "inactive_file 1\nactive_file 2\ntotal_inactive_file 50000000\ntotal_active_file 7\n");
  EXPECT_EQ(available(), 150'000'007);
  Write("proc/meminfo", "");
  Write("proc/self/cgroup", "");
  EXPECT_EQ(available(), std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace tandem

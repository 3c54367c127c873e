#include "common/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> Words(const fs::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(std::move(word));
  return words;
}

// Nothing for "max" and what is no number.
std::optional<int64_t> Number(const std::string& word) {
  int64_t number = 0;
  if (!absl::SimpleAtoi(word, &number)) return std::nullopt;
  return number;
}

std::optional<int64_t> NumberIn(const fs::path& file) {
  const std::vector<std::string> words = Words(file);
  return words.empty() ? std::nullopt : Number(words[0]);
}

// Folders of this process's group of a controller ("cpu", "memory") and of all groups that it is
// in, innermost first. Where a container shows only its own group, that is the topmost folder.
std::vector<fs::path> GroupFolders(const fs::path& root, const std::string& controller) {
  std::vector<fs::path> folders;
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const bool unified = parts[0] == "0" && parts[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    if (!unified && !absl::c_linear_search(controllers, controller)) continue;
    const fs::path top = unified ? root / "sys/fs/cgroup" : root / "sys/fs/cgroup" / controller;
    fs::path group = fs::path(parts[2]).relative_path();
    for (; !group.empty(); group = group.parent_path()) folders.push_back(top / group);
    folders.push_back(top);
  }
  return folders;
}

// Cores that a group may use, in whole ones.
std::optional<int> CpuQuota(const fs::path& group) {
  std::optional<int64_t> quota, period;
  if (const auto words = Words(group / "cpu.max"); words.size() == 2) {  // v2
    quota = Number(words[0]);
    period = Number(words[1]);
  } else {
    quota = NumberIn(group / "cpu.cfs_quota_us");
    period = NumberIn(group / "cpu.cfs_period_us");
  }
  if (!quota || !period || *quota <= 0 || *period <= 0) return std::nullopt;
  return static_cast<int>(std::clamp<int64_t>((*quota - 1) / *period + 1, 1, 1 << 20));
}

std::optional<int64_t> MemoryLimit(const fs::path& group) {
  const auto limit = NumberIn(group / "memory.max");  // v2
  return limit.has_value() ? limit : NumberIn(group / "memory.limit_in_bytes");
}

int AffinityCpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::thread::hardware_concurrency());  // more than 1,024
}

// A line of a file of such lines: "MemTotal:", "123", or "active_file", "123".
std::optional<int64_t> NumberAfter(const fs::path& file, const std::string& word) {
  const std::vector<std::string> words = Words(file);
  const auto at = absl::c_find(words, word);
  return words.end() - at < 2 ? std::nullopt : Number(at[1]);
}

std::optional<int64_t> MachineMemory(const fs::path& root, const std::string& what) {
  const std::optional<int64_t> kib = NumberAfter(root / "proc/meminfo", what);
  if (!kib.has_value()) return std::nullopt;
  return *kib * 1024;
}

// What a group has used of its limit, but for pages of files.
std::optional<int64_t> MemoryInUse(const fs::path& group) {
  auto used = NumberIn(group / "memory.current");  // v2
  if (!used.has_value()) used = NumberIn(group / "memory.usage_in_bytes");
  if (!used.has_value()) return std::nullopt;
  for (const char* pages : {"active_file", "inactive_file"}) {
    // v1 has numbers of the group alone beside those of it and the groups in it.
    auto bytes = NumberAfter(group / "memory.stat", absl::StrCat("total_", pages));
    if (!bytes.has_value()) bytes = NumberAfter(group / "memory.stat", pages);
    *used -= bytes.value_or(0);
  }
  return used;
}

}  // namespace

MachineLimits ReadMachineLimits(const std::string& root) {
  MachineLimits limits;
  limits.cpus = std::max(AffinityCpus(), 1);
  limits.cpus_from = "affinity";
  for (const fs::path& group : GroupFolders(root, "cpu")) {
    const std::optional<int> quota = CpuQuota(group);
    if (!quota.has_value() || *quota >= limits.cpus) continue;
    limits.cpus = *quota;
    limits.cpus_from = "cgroup cpu quota";
  }
  limits.memory_from = kWholeMachine;
  if (const auto memory = MachineMemory(root, "MemTotal:")) limits.memory_bytes = *memory;
  for (const fs::path& group : GroupFolders(root, "memory")) {
    const std::optional<int64_t> limit = MemoryLimit(group);
    if (!limit.has_value() || *limit >= limits.memory_bytes) continue;
    limits.memory_bytes = *limit;
    limits.memory_from = "cgroup memory limit";
  }
  return limits;
}

std::string ReadBootId(const std::string& root) {
  std::string id;
  std::ifstream file(fs::path(root) / "proc/sys/kernel/random/boot_id");
  std::getline(file, id);
  return id;
}

int64_t ReadAvailableMemory(const std::string& root) {
  int64_t available =
      MachineMemory(root, "MemAvailable:").value_or(std::numeric_limits<int64_t>::max());
  for (const fs::path& group : GroupFolders(root, "memory")) {
    const std::optional<int64_t> limit = MemoryLimit(group), used = MemoryInUse(group);
    if (limit.has_value() && used.has_value()) available = std::min(available, *limit - *used);
  }
  return available;
}

int64_t ReadResidentMemory(const std::string& root) {
  const std::vector<std::string> words = Words(fs::path(root) / "proc/self/statm");
  return words.size() < 2 ? 0 : Number(words[1]).value_or(0) * sysconf(_SC_PAGESIZE);
}

}  // namespace tandem

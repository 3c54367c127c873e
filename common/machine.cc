#include "common/machine.h"

#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/numbers.h"
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

std::optional<int64_t> MachineMemory(const fs::path& root) {
  const std::vector<std::string> words = Words(root / "proc/meminfo");  // "MemTotal:", "123", "kB"
  const auto total = absl::c_find(words, "MemTotal:");
  if (words.end() - total < 2) return std::nullopt;
  const std::optional<int64_t> kib = Number(total[1]);
  if (!kib.has_value()) return std::nullopt;
  return *kib * 1024;
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
  limits.memory_from = "the machine";
  if (const auto memory = MachineMemory(root)) limits.memory_bytes = *memory;
  for (const fs::path& group : GroupFolders(root, "memory")) {
    const std::optional<int64_t> limit = MemoryLimit(group);
    if (!limit.has_value() || *limit >= limits.memory_bytes) continue;
    limits.memory_bytes = *limit;
    limits.memory_from = "cgroup memory limit";
  }
  return limits;
}

}  // namespace tandem

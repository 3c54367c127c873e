// What this process may use of its machine, by its affinity and its control groups (cgroups v1 and
// v2): a container sees all cores and all memory of its host otherwise.
#ifndef TANDEM_COMMON_MACHINE_H_
#define TANDEM_COMMON_MACHINE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

namespace tandem {

// What a huge page of x86-64 holds, and where it may begin.
inline constexpr size_t kHugePageBytes = 2 << 20;

inline constexpr char kWholeMachine[] = "the machine";

struct MachineLimits {
  int cpus = 1;  // the least of: those in the affinity mask; the CPU quota, rounded up
  int64_t memory_bytes = std::numeric_limits<int64_t>::max();  // the machine's, or a group's limit
  // What sets them, for people: "affinity", "cgroup cpu quota"; kWholeMachine, "cgroup memory
  // limit".
  std::string cpus_from;
  std::string memory_from;
};

// What cannot be read does not limit. `root` is the folder below which proc/ and sys/ lie, for
// tests.
MachineLimits ReadMachineLimits(const std::string& root = "/");

// The same for all processes of a machine from its start to its end; empty if it cannot be read.
std::string ReadBootId(const std::string& root = "/");

// Bytes that can be had now, within all limits, without swapping: what is free, and pages of files,
// which the system would give up.
int64_t ReadAvailableMemory(const std::string& root = "/");

// Bytes that this process has in memory, mapped files' included; 0 if it cannot be read.
int64_t ReadResidentMemory(const std::string& root = "/");

}  // namespace tandem

#endif  // TANDEM_COMMON_MACHINE_H_

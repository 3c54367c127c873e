// Lets a test run the CPU kernels as a lesser processor would.
#ifndef TANDEM_TESTS_KERNELS_TARGETS_H_
#define TANDEM_TESTS_KERNELS_TARGETS_H_

#include <cstdint>
#include <vector>

#include "hwy/targets.h"

namespace tandem::kernels {

// The instruction sets that the kernels are built for and this machine has, one bit each.
inline std::vector<int64_t> AvailableTargets() { return hwy::SupportedAndGeneratedTargets(); }

// While it lives, kernels use `target` only. Not for several threads.
class ScopedTarget {
 public:
  explicit ScopedTarget(int64_t target) { Use(target); }
  ~ScopedTarget() { Use(0); }
  ScopedTarget(const ScopedTarget&) = delete;
  ScopedTarget& operator=(const ScopedTarget&) = delete;

 private:
  static void Use(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_TARGETS_H_

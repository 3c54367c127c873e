#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_backend.h"

namespace tandem::kernels {

// Each with another order of threads.
std::unique_ptr<Backend> MakeTestBackend(int) {
  static uint64_t seed = 0;
  return MakeCudaBackend(seed++);
}
// The host's own, once: it makes no difference.
std::vector<int64_t> TargetsOfBackend() { return {AvailableTargets().front()}; }
bool HasIntegerWeights() { return false; }

}  // namespace tandem::kernels

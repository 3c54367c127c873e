#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/targets.h"
#include "tests/kernels/test_backend.h"

namespace tandem::kernels {

// Each with another order of threads. TANDEM_TEST_NUMERICS=auto: by tensor cores.
std::unique_ptr<Backend> MakeTestBackend(int) {
  static uint64_t seed = 0;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): no thread of a test changes its environment
  const char* const numerics = std::getenv("TANDEM_TEST_NUMERICS");
  const bool is_auto = numerics != nullptr && std::string(numerics) == "auto";
  return MakeCudaBackend(seed++, is_auto ? Numerics::kAuto : Numerics::kPortable);
}
// The host's own, once: it makes no difference.
std::vector<int64_t> TargetsOfBackend() { return {AvailableTargets().front()}; }
bool HasIntegerWeights() { return false; }

}  // namespace tandem::kernels

#include "tests/kernels/targets.h"
#include "tests/kernels/test_backend.h"

namespace tandem::kernels {

std::unique_ptr<Backend> MakeTestBackend(int num_threads) { return *CreateCpuBackend(num_threads); }
std::vector<int64_t> TargetsOfBackend() { return AvailableTargets(); }
bool HasIntegerWeights() { return true; }

}  // namespace tandem::kernels

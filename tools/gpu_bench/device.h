// What a GPU is and what it can do at most, so that every figure has a ceiling of the same run; and
// its functions one by one. Each call is done when it returns. For one thread.
#ifndef TANDEM_TOOLS_GPU_BENCH_DEVICE_H_
#define TANDEM_TOOLS_GPU_BENCH_DEVICE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::gpu_bench {

// Name, compute capability, processors, clocks, memory, driver: a line each. FAILED_PRECONDITION
// where there is no GPU that will do.
absl::StatusOr<std::string> DescribeGpu();

struct Ceilings {
  double read_bytes_per_s = 0;
  double copied_bytes_per_s = 0;          // read and written
  double multiply_adds_per_s = 0;         // of f32
  double tensor_multiply_adds_per_s = 0;  // of bf16, by tensor cores
};
// The best of some runs. `is_brief`: for an emulation, whose figures mean nothing.
Ceilings MeasureCeilings(bool is_brief);

// PortableExp, FlushedMultiplyAdd and Logarithm of each element, as kernels have them.
std::vector<float> DeviceExp(const std::vector<float>& x);
std::vector<float> DeviceFlushedFma(const std::vector<float>& a, const std::vector<float>& b,
                                    const std::vector<float>& c);
std::vector<double> DeviceLog(const std::vector<double>& x);

}  // namespace tandem::gpu_bench

#endif  // TANDEM_TOOLS_GPU_BENCH_DEVICE_H_

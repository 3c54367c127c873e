// The backend that a test of ops is for. A test is built once for each, with one of the two files
// that define this.
#ifndef TANDEM_TESTS_KERNELS_TEST_BACKEND_H_
#define TANDEM_TESTS_KERNELS_TEST_BACKEND_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace tandem::kernels {

// With `num_threads`, where it has threads. Its ops are done when they return, and take tensors in
// the host's memory.
std::unique_ptr<Backend> MakeTestBackend(int num_threads = 2);

// Instruction sets that it may run with, for ScopedTarget (tests/kernels/targets.h).
std::vector<int64_t> TargetsOfBackend();

// Whether it has integer weights, too.
bool HasIntegerWeights();

}  // namespace tandem::kernels

#endif  // TANDEM_TESTS_KERNELS_TEST_BACKEND_H_

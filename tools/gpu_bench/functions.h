// Whether functions of the device have the CPU's bits: exp, whose own it is; the fused multiply-add
// that flushes denormals, where a product rounds up to the smallest normal number; and CUDA's
// logarithm.
#ifndef TANDEM_TOOLS_GPU_BENCH_FUNCTIONS_H_
#define TANDEM_TOOLS_GPU_BENCH_FUNCTIONS_H_

namespace tandem::gpu_bench {

// Prints what differs, and how often. False where a result differs that decides a model's bits: a
// logarithm that differs in its last place does not count.
bool CompareFunctions(bool is_brief);

}  // namespace tandem::gpu_bench

#endif  // TANDEM_TOOLS_GPU_BENCH_FUNCTIONS_H_

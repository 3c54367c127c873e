// Sampling and log-probabilities on a GPU. Contracts: kernels/ops/sample.h. The exponential is the
// CPU's and weights are integers, so draws have the CPU's bits; the logarithm of a log_prob is the
// device's.
//
// A block of threads per row, which goes through the logits a few times: once for the largest and
// once for the sum of weights; then at most nine times for each cut and for the draw, since running
// sums are searched by the digits of keys and nothing is sorted. Of the most probable candidates
// each is a search through the logits. Each starts one kernel in the stream and returns. Shared
// memory: 5 KB.
#ifndef TANDEM_KERNELS_CUDA_SAMPLE_H_
#define TANDEM_KERNELS_CUDA_SAMPLE_H_

#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"
#include "kernels/ops/sample.h"

namespace tandem::kernels::cuda {

// Rows of `rows` and `out` lie as their structs must in memory.
void AdjustLogits(Stream stream, const AdjustLogitsArgs& args);
void Sample(Stream stream, const SampleArgs& args);
void TopLogProbs(Stream stream, const TopLogProbsArgs& args);
void LogProb(Stream stream, const LogProbArgs& args);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_SAMPLE_H_

// The softmax that attention takes up page by page (kernels/ops/mla.h), of one row or head by
// sixteen threads that follow each other in a block.
#ifndef TANDEM_KERNELS_CUDA_RUNNING_SOFTMAX_H_
#define TANDEM_KERNELS_CUDA_RUNNING_SOFTMAX_H_

#include "kernels/cuda/exp.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/rms_norm.h"

namespace tandem::kernels::cuda {

// Before any key: -infinity and 0.
struct SoftmaxState {
  float largest;
  float denominator;
};

// Scores of a page's first `keys` keys become their exponentials, in place, and `state`, the same
// in the sixteen threads, takes them in. Returns by what earlier sums shrink. Called by all threads
// of the warp; where `active` is not set, which is so for all sixteen, nothing is read or changed.
// Each thread takes up the scores of keys lane, lane + 16, ...; the others' exponentials are there
// for it after the next TANDEM_SYNC_WARP.
__device__ inline float TakeUpScores(bool active, int keys, float* scores, SoftmaxState* state) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  const float before = state->largest;
  float largest = before;
  if (active) {
    for (int key = lane; key < keys; key += kSumLanes) largest = Larger(scores[key], largest);
  }
  for (int lanes = kSumLanes / 2; lanes > 0; lanes /= 2) {
    largest = Larger(TANDEM_SHUFFLE_XOR(largest, lanes), largest);
  }
  float sum = 0.0f;
  if (active) {
    for (int key = lane; key < keys; key += kSumLanes) {
      scores[key] = PortableExp(scores[key] - largest);
      sum += scores[key];
    }
  }
  for (int lanes = kSumLanes / 2; lanes > 0; lanes /= 2) sum += TANDEM_SHUFFLE_XOR(sum, lanes);
  if (!active) return 1.0f;
  const float shrink = largest == before ? 1.0f : PortableExp(before - largest);
  state->denominator = FusedMultiplyAdd(state->denominator, shrink, sum);
  state->largest = largest;
  return shrink;
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_RUNNING_SOFTMAX_H_

#include "kernels/cuda/route.h"

#include <cstdint>

#include "kernels/cuda/exp.h"
#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr float kTaken = -1.0f;  // a score that no expert has

struct Best {
  float score;
  int index;
};

// Whether `other` comes before `best`, whose index is `count` if there is none yet: the higher
// score, of equals the lower index. Of NaNs, which a row with a NaN consists of, too: ids stay ids.
__device__ inline bool ComesBefore(const Best& other, const Best& best, int count) {
  if (other.index == count || best.index == count) return other.index < best.index;
  if (other.score > best.score) return true;
  return !(best.score > other.score) && other.index < best.index;
}

// The best of scores[0, count) that are not taken, which must be some, to all lanes.
__device__ inline Best BestOf(const float* scores, int count, int lane) {
  Best best = {kTaken, count};
  for (int i = lane; i < count; i += kLanes) {
    const Best here = {scores[i], i};
    if (here.score != kTaken && ComesBefore(here, best, count)) best = here;
  }
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    const Best other = {TANDEM_SHUFFLE_XOR(best.score, lanes),
                        TANDEM_SHUFFLE_XOR(best.index, lanes)};
    if (ComesBefore(other, best, count)) best = other;
  }
  TANDEM_SYNC_WARP();  // a shuffle orders no memory: all have read the scores
  return best;
}

// Scores outside of the groups whose best are highest become 0. `group_best`: memory for
// num_groups.
__device__ inline void KeepBestGroups(const RouteChoice& choice, float* scores, int experts,
                                      int lane, float* group_best) {
  const int size = experts / choice.num_groups;
  for (int group = lane; group < choice.num_groups; group += kLanes) {
    float best = scores[group * size];
    for (int i = 1; i < size; ++i) best = Larger(best, scores[group * size + i]);
    group_best[group] = best;
  }
  TANDEM_SYNC_WARP();
  for (int i = 0; i < choice.top_groups; ++i) {
    const Best best = BestOf(group_best, choice.num_groups, lane);
    if (lane == 0) group_best[best.index] = kTaken;
    TANDEM_SYNC_WARP();
  }
  for (int e = lane; e < experts; e += kLanes) {
    if (group_best[e / size] != kTaken) scores[e] = 0.0f;
  }
  TANDEM_SYNC_WARP();
}

// A block is a warp and has a row. Shared memory: a float per expert, then one per group.
__global__ void ChooseExpertsKernel(int experts, RouteChoice choice, Rows<const float> logits,
                                    Rows<int32_t> expert_ids, Rows<float> weights) {
  auto* const scores = reinterpret_cast<float*>(SharedMemory());
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  float largest = logits[row][0];
  for (int e = lane; e < experts; e += kLanes) largest = Larger(largest, logits[row][e]);
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    largest = Larger(largest, TANDEM_SHUFFLE_XOR(largest, lanes));
  }
  for (int e = lane; e < experts; e += kLanes) scores[e] = PortableExp(logits[row][e] - largest);
  TANDEM_SYNC_WARP();
  float sum = 0.0f;  // by each lane, in the one order
  for (int e = 0; e < experts; ++e) sum += scores[e];
  TANDEM_SYNC_WARP();
  for (int e = lane; e < experts; e += kLanes) scores[e] = Divide(scores[e], sum);
  TANDEM_SYNC_WARP();
  if (choice.num_groups > 0) KeepBestGroups(choice, scores, experts, lane, scores + experts);
  float chosen = 0.0f;
  for (int i = 0; i < choice.top_k; ++i) {
    const Best best = BestOf(scores, experts, lane);
    chosen += best.score;
    if (lane == 0) {
      expert_ids[row][i] = best.index;
      weights[row][i] = best.score;
      scores[best.index] = kTaken;
    }
    TANDEM_SYNC_WARP();
  }
  if (lane != 0) return;
  for (int i = 0; i < choice.top_k; ++i) {
    float& weight = weights[row][i];
    weight = choice.normalize ? Divide(weight, chosen + 1e-20f) : weight * choice.scaling;
  }
}

}  // namespace

void ChooseExperts(Stream stream, const DeviceTensor& logits, const RouteChoice& choice,
                   const DeviceTensor& expert_ids, const DeviceTensor& weights) {
  if (logits.rows() == 0) return;
  const auto experts = static_cast<int>(logits.width());
  const auto shared_bytes = static_cast<size_t>(experts + choice.num_groups) * sizeof(float);
  Launch(stream, ChooseExpertsKernel, logits.rows(), kLanes, shared_bytes, experts, choice,
         RowsOf<const float>(logits), RowsOf<int32_t>(expert_ids), RowsOf<float>(weights));
}

}  // namespace tandem::kernels::cuda

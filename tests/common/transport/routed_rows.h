// Routed rows of one layer, placements for them, and what must come of them, for tests of the
// dispatcher.
#ifndef TANDEM_TESTS_COMMON_TRANSPORT_ROUTED_ROWS_H_
#define TANDEM_TESTS_COMMON_TRANSPORT_ROUTED_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "common/placement.h"
#include "common/transport/expert_dispatcher.h"
#include "tests/common/transport/fake_expert.h"
#include "tests/common/transport/link_checks.h"

namespace tandem {

inline constexpr int kExperts = 16;
inline constexpr int kTopK = 6;
inline constexpr int64_t kHidden = 24;
inline constexpr int kLayer = 2;

// Experts dealt out to workers first, first + 1, ...; `copies` holders each.
inline Placement MakePlacement(int num_workers, int copies = 1, WorkerId first = 1,
                               uint64_t counter = 1) {
  Placement placement;
  placement.version = {1, counter};
  placement.num_layers = kLayer + 1;
  placement.num_experts = kExperts;
  placement.holders.resize(placement.num_layers * kExperts);
  for (int w = 0; w < num_workers; ++w) placement.workers.push_back({first + w, ""});
  for (int e = 0; e < kExperts; ++e) {
    for (int c = 0; c < copies; ++c) {
      placement.holders[kLayer * kExperts + e].push_back(first + (e + c) % num_workers);
    }
  }
  return placement;
}

// Rows with routes to different experts, as a router leaves them.
struct Routed {
  explicit Routed(int num_rows, uint64_t seed = 1)
      : values(std::make_shared<std::vector<float>>(num_rows * kHidden)),
        ids(num_rows * kTopK),
        weights(num_rows * kTopK) {
    std::mt19937_64 random(seed);
    for (float& value : *values) value = static_cast<float>(random() % 10000) / 7;
    for (float& weight : weights) weight = static_cast<float>(random() % 10000) / 10007;
    std::vector<int32_t> all(kExperts);
    for (int e = 0; e < kExperts; ++e) all[e] = e;
    for (int i = 0; i < num_rows; ++i) {
      std::shuffle(all.begin(), all.end(), random);
      // Every fourth row takes even experts only, so that two workers combine some rows.
      std::stable_sort(all.begin(), all.end(),
                       [i](int a, int b) { return i % 4 == 0 && a % 2 < b % 2; });
      std::copy_n(all.begin(), kTopK, ids.begin() + i * kTopK);
    }
  }
  RowBatch batch(uint64_t step = 1) const {
    RowBatch batch;
    batch.step = step;
    batch.layer = kLayer;
    batch.rows = TensorView(values->data(), Dtype::kF32,
                            {static_cast<int64_t>(values->size()) / kHidden, kHidden});
    batch.rows_owner = values;
    batch.expert_ids = ids.data();
    batch.weights = weights.data();
    batch.top_k = kTopK;
    batch.traces = traces;
    return batch;
  }
  // The same rows through one combined request.
  std::vector<float> Expected() const {
    ExpertRequest request;
    const RowBatch rows = batch();
    request.id.layer = kLayer;
    request.rows = rows.rows;
    for (int64_t i = 0; i <= rows.rows.rows(); ++i) request.route_offsets.push_back(i * kTopK);
    request.route_experts = ids;
    request.route_weights = weights;
    request.combined.assign(rows.rows.rows(), 1);
    const ExpertReply reply = ComputeFakeReply(request);
    return std::vector<float>(reply.rows.as<float>(),
                              reply.rows.as<float>() + reply.rows.elements());
  }

  std::shared_ptr<std::vector<float>> values;
  std::vector<int32_t> ids;
  std::vector<float> weights;
  TracesOfPart traces;
};

// Where the combined rows go.
struct Output {
  explicit Output(const Routed& routed) : values(routed.values->size(), -1.0f) {}
  TensorView view() {
    return TensorView(values.data(), Dtype::kF32,
                      {static_cast<int64_t>(values.size()) / kHidden, kHidden});
  }
  std::vector<float> values;
};

// FakeCombine for one row.
inline void CombineOne(const TensorView& expert_rows, const float* weights, const TensorView& out) {
  const int32_t offsets[] = {0, kTopK};
  FakeCombine(expert_rows, offsets, weights, out);
}

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_ROUTED_ROWS_H_

#include "tools/simulate/routing.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace tandem::simulate {

Routing::Routing(const ModelConfig& model, double skew, WorkloadRandom& random)
    : num_experts_(model.num_experts), experts_per_token_(model.experts_per_token) {
  const size_t size = static_cast<size_t>(model.num_layers) * model.num_experts;
  popularity_.assign(size, 0);
  cumulative_.assign(size, 0);
  for (int layer = 0; layer < model.num_layers; ++layer) {
    if (!model.IsMoeLayer(layer)) continue;
    double* const popularity = &popularity_[static_cast<size_t>(layer) * num_experts_];
    double sum = 0;
    for (int rank = 0; rank < num_experts_; ++rank) {
      popularity[rank] = std::pow(rank + 1, -skew);
      sum += popularity[rank];
    }
    for (int expert = num_experts_ - 1; expert > 0; --expert) {
      const double other = DrawUniform(random) * (expert + 1);
      std::swap(popularity[expert], popularity[static_cast<int>(other)]);
    }
    double* const cumulative = &cumulative_[static_cast<size_t>(layer) * num_experts_];
    double so_far = 0;
    for (int expert = 0; expert < num_experts_; ++expert) {
      so_far += popularity[expert] / sum;
      cumulative[expert] = so_far;
    }
  }
}

void Routing::Draw(int layer, WorkloadRandom& random, std::vector<int32_t>& experts) const {
  const double* const begin = &cumulative_[static_cast<size_t>(layer) * num_experts_];
  const double* const end = begin + num_experts_ - 1;  // whatever is above its sum: the last one
  const size_t first = experts.size();
  while (experts.size() < first + experts_per_token_) {
    const auto expert =
        static_cast<int32_t>(std::upper_bound(begin, end, DrawUniform(random)) - begin);
    const auto mine = experts.begin() + static_cast<ptrdiff_t>(first);
    if (std::find(mine, experts.end(), expert) == experts.end()) experts.push_back(expert);
  }
}

}  // namespace tandem::simulate

// Makes an attention worker's engine, for a process of its own or among others.
#ifndef TANDEM_DEPLOYMENT_LOAD_ATTENTION_H_
#define TANDEM_DEPLOYMENT_LOAD_ATTENTION_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "attention_worker/engine.h"
#include "attention_worker/layer_times.h"
#include "attention_worker/model.h"
#include "attention_worker/routed_experts.h"
#include "common/checkpoint/checkpoint.h"
#include "common/mode.h"
#include "common/tensor.h"
#include "common/tokenizer/tokenizer.h"
#include "kernels/backend.h"

namespace tandem {

// All must outlive what is loaded, but the tokenizer.
struct AttentionParts {
  kernels::Backend* backend = nullptr;
  const Checkpoint* checkpoint = nullptr;
  const Tokenizer* tokenizer = nullptr;  // null: any id may be drawn
  RoutedExperts* experts = nullptr;
  Dtype dtype = Dtype::kBF16;  // mode
  WeightFormat format = WeightFormat::kBF16;
  int64_t cache_tokens = 0;           // rounded up to pages
  LayerTimes* layer_times = nullptr;  // null: layers are not measured
};

struct LoadedAttention {
  std::unique_ptr<AttentionModel> model;
  std::unique_ptr<AttentionEngine> engine;  // uses the model
};

// Blocks; reports the share of the weights that is loaded. Errors: those of AttentionModel::Load
// and AttentionEngine::Create.
absl::StatusOr<LoadedAttention> LoadAttention(const AttentionParts& parts,
                                              const std::function<void(float)>& progress);

}  // namespace tandem

#endif  // TANDEM_DEPLOYMENT_LOAD_ATTENTION_H_

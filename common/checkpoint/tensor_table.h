// The tensors that a DeepSeek-V2 model is made of: names and shapes in the Hugging Face layout.
#ifndef TANDEM_COMMON_CHECKPOINT_TENSOR_TABLE_H_
#define TANDEM_COMMON_CHECKPOINT_TENSOR_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "common/model_config.h"

namespace tandem {

using TensorShape = std::vector<int64_t>;

// Calls `visit` for every tensor that `config` needs, in the order in which the layers use them,
// and stops at its first error, which is returned. A linear layer's weight is
// [out_features, in_features]. With tied embeddings there is no lm_head.weight.
absl::Status ForEachNeededTensor(
    const ModelConfig& config,
    absl::FunctionRef<absl::Status(const std::string& name, const TensorShape& shape)> visit);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_TENSOR_TABLE_H_

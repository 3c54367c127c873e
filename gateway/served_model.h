// What a gateway knows of the model that it serves: everything but the weights.
#ifndef TANDEM_GATEWAY_SERVED_MODEL_H_
#define TANDEM_GATEWAY_SERVED_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/model_config.h"
#include "common/sampling_params.h"
#include "common/tokenizer/tokenizer.h"

namespace tandem {

// Immutable once loaded; any thread may use it.
struct ServedModel {
  std::string name;  // the last component of the checkpoint's folder
  ModelConfig config;
  Dtype dtype = Dtype::kBF16;
  std::string digest;
  uint64_t parameters = 0;
  std::unique_ptr<const Tokenizer> tokenizer;  // null: the model serves token ids only
  SamplingParams default_sampling;             // from generation_config.json where there is one
  std::vector<int32_t> eos_ids;
};

// Reads tokenizer and generation_config.json beside an opened checkpoint.
//   INVALID_ARGUMENT, UNIMPLEMENTED  a file is broken or asks for what is not supported; named
absl::StatusOr<ServedModel> LoadServedModel(const Checkpoint& checkpoint, const std::string& dir,
                                            Dtype dtype);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_SERVED_MODEL_H_

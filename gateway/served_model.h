// What a gateway knows of the model that it serves: everything but the weights.
#ifndef TANDEM_GATEWAY_SERVED_MODEL_H_
#define TANDEM_GATEWAY_SERVED_MODEL_H_

#include <cstdint>
#include <functional>
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
  std::string name;  // what GetModel and GetStatus call it, and what requests may ask for
  ModelConfig config;
  Dtype dtype = Dtype::kBF16;
  std::string digest;
  uint64_t parameters = 0;
  std::unique_ptr<const Tokenizer> tokenizer;  // null: the model serves token ids only,
  std::string no_tokenizer;                    // for this reason
  SamplingParams default_sampling;             // GenerationConfig's
  std::vector<int32_t> eos_ids;  // of config.json and generation_config.json, else the tokenizer's
};

// What a model is called if nobody names it: its folder's last component. A snapshot of the Hugging
// Face hub's cache, .../models--ORG--NAME/snapshots/REVISION, is called NAME.
std::string DefaultServedName(const std::string& dir);

// Reads tokenizer and generation_config.json beside an opened checkpoint. An empty `served_name` is
// DefaultServedName(dir).
// `digest_progress`: the share of the digest that is read, as CheckpointDigest reports it.
// A tokenizer of another kind than Tokenizer's costs text, not the model: the log and no_tokenizer
// say what it is.
//   INVALID_ARGUMENT  a file is broken; named
absl::StatusOr<ServedModel> LoadServedModel(const Checkpoint& checkpoint, const std::string& dir,
                                            Dtype dtype, const std::string& served_name,
                                            const std::function<void(float)>& digest_progress);

}  // namespace tandem

#endif  // TANDEM_GATEWAY_SERVED_MODEL_H_

// Writes a checkpoint of synthetic weights (fill_tensor.h) in the Hugging Face layout.
#ifndef TANDEM_TOOLS_MAKE_CHECKPOINT_SYNTHETIC_CHECKPOINT_H_
#define TANDEM_TOOLS_MAKE_CHECKPOINT_SYNTHETIC_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace tandem {

struct SyntheticOptions {
  std::string config_path;
  std::string out_dir;  // made if it is not there
  int layers = 0;       // 0: the config's
  uint64_t seed = 1;
  int threads = 1;
  // The experts' matrices, lm_head and a dense layer's are holes in the files, which read as zeros
  // and take no disk: for the time of a model of full depth. Rows are routed as with other weights.
  bool hollow = false;
  bool empty = false;                  // all weights are holes
  int64_t file_bytes = 4'000'000'000;  // of weights in a file; a larger tensor has its own
};

struct SyntheticSummary {
  int64_t bytes = 0;  // of all weights
  int num_files = 0;
  int num_layers = 0;
};

// Writes bf16 weights and, where one file is not enough, their index; copies the tokenizer's files
// and generation_config.json that lie beside the config; and last writes config.json with as many
// layers as asked for. The same config, layers, seed and file size give the same bytes whatever the
// threads.
//   FAILED_PRECONDITION                         the folder has weights already
//   UNAVAILABLE                                 a file cannot be written; named
//   NOT_FOUND, INVALID_ARGUMENT, UNIMPLEMENTED  ParseModelConfig's, of the config
absl::StatusOr<SyntheticSummary> WriteSyntheticCheckpoint(const SyntheticOptions& options);

}  // namespace tandem

#endif  // TANDEM_TOOLS_MAKE_CHECKPOINT_SYNTHETIC_CHECKPOINT_H_

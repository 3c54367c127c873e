// Writes checkpoints for tests: safetensors files, valid and broken, and whole small models.
//
//   ScratchDir dir;
//   WriteRandomCheckpoint(dir.path(), kSmallConfig, /*seed=*/1);
//   auto checkpoint = Checkpoint::Open(dir.path());
#ifndef TANDEM_TESTS_COMMON_CHECKPOINT_SAFETENSORS_WRITER_H_
#define TANDEM_TESTS_COMMON_CHECKPOINT_SAFETENSORS_WRITER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/model_config.h"
#include "common/tensor.h"

namespace tandem {

// A new folder, removed with all that is in it when the object goes.
class ScratchDir {
 public:
  ScratchDir();
  ~ScratchDir();
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

void WriteFile(const std::string& path, const std::string& content);
// Empty where the file cannot be read.
std::string ReadFile(const std::string& path);

// A tensor as it will lie in a file. The bytes need not fit dtype and shape: tests of broken files
// want that too.
struct RawTensor {
  std::string name;
  std::string dtype;  // as safetensors name it: "BF16"
  std::vector<int64_t> shape;
  std::string bytes;
};

// A file: length of the header, header, data. The header is taken as it is.
std::string SafetensorsBytes(const std::string& header, const std::string& data);
// A file of these tensors in this order, packed. `padding` spaces follow the header; any number
// that leaves the data unaligned is legal.
std::string SafetensorsBytes(const std::vector<RawTensor>& tensors, int padding = 0);

// `value` in the bytes of BF16, F16 or F32. The value must be exact in the dtype.
std::string EncodeElement(float value, Dtype dtype);

// Every tensor that the config needs, with weights that depend on the seed and the tensor's name
// alone. Each value is a small integer times a power of two, exact in BF16, F16 and F32 alike, so
// that checkpoints of different dtypes hold the same model. Scaled as a freshly initialised model:
// norms lie around 1, other weights have a variance of about 1 / fan_in.
std::vector<RawTensor> RandomTensors(const ModelConfig& config, uint64_t seed,
                                     Dtype dtype = Dtype::kBF16);

// Writes config.json and `tensors`: model.safetensors, or with num_files > 1 shards and their
// index, the tensors dealt out in turn.
void WriteCheckpoint(const std::string& dir, const std::string& config_json,
                     const std::vector<RawTensor>& tensors, int num_files = 1);

// A complete checkpoint of RandomTensors, without tokenizer. `config_json` must be valid. The same
// config, seed and dtype give the same bytes everywhere.
void WriteRandomCheckpoint(const std::string& dir, const std::string& config_json, uint64_t seed,
                           Dtype dtype = Dtype::kBF16, int num_files = 1);

// The V2-Lite layout at its smallest: a dense layer, two MoE layers, YaRN.
inline constexpr char kSmallConfig[] = R"({
  "model_type": "deepseek_v2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
  "moe_intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
  "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
  "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
  "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_method": "greedy", "n_group": 1,
  "topk_group": 1, "norm_topk_prob": false, "scoring_func": "softmax",
  "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-06, "rope_theta": 10000,
  "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
                   "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
  "max_position_embeddings": 163840, "tie_word_embeddings": false, "attention_bias": false,
  "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"})";

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_CHECKPOINT_SAFETENSORS_WRITER_H_

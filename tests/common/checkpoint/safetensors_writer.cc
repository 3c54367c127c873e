#include "tests/common/checkpoint/safetensors_writer.h"

#include <stdlib.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "nlohmann/json.hpp"

namespace tandem {
namespace {

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

void AddMlp(const std::string& prefix, int64_t hidden, int64_t intermediate, Shapes* shapes) {
  shapes->push_back({prefix + "gate_proj.weight", {intermediate, hidden}});
  shapes->push_back({prefix + "up_proj.weight", {intermediate, hidden}});
  shapes->push_back({prefix + "down_proj.weight", {hidden, intermediate}});
}

// Written from the format itself, apart from the code that is tested with it.
Shapes TensorShapes(const ModelConfig& c) {
  Shapes shapes;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    shapes.push_back({std::move(name), std::move(shape)});
  };
  const int64_t hidden = c.hidden_size;
  const int64_t heads = c.num_heads;
  add("model.embed_tokens.weight", {c.vocab_size, hidden});
  for (int layer = 0; layer < c.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string attention = prefix + "self_attn.";
    const int64_t query = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
    add(prefix + "input_layernorm.weight", {hidden});
    if (c.q_lora_rank > 0) {
      add(attention + "q_a_proj.weight", {c.q_lora_rank, hidden});
      add(attention + "q_a_layernorm.weight", {c.q_lora_rank});
      add(attention + "q_b_proj.weight", {query, c.q_lora_rank});
    } else {
      add(attention + "q_proj.weight", {query, hidden});
    }
    add(attention + "kv_a_proj_with_mqa.weight", {c.kv_lora_rank + c.qk_rope_head_dim, hidden});
    add(attention + "kv_a_layernorm.weight", {c.kv_lora_rank});
    add(attention + "kv_b_proj.weight",
        {heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank});
    add(attention + "o_proj.weight", {hidden, heads * c.v_head_dim});
    add(prefix + "post_attention_layernorm.weight", {hidden});
    if (!c.IsMoeLayer(layer)) {
      AddMlp(prefix + "mlp.", hidden, c.intermediate_size, &shapes);
      continue;
    }
    add(prefix + "mlp.gate.weight", {c.num_experts, hidden});
    for (int e = 0; e < c.num_experts; ++e) {
      AddMlp(absl::StrCat(prefix, "mlp.experts.", e, "."), hidden, c.moe_intermediate_size,
             &shapes);
    }
    if (c.num_shared_experts > 0) {
      AddMlp(prefix + "mlp.shared_experts.", hidden, c.num_shared_experts * c.moe_intermediate_size,
             &shapes);
    }
  }
  add("model.norm.weight", {hidden});
  if (!c.tie_word_embeddings) add("lm_head.weight", {c.vocab_size, hidden});
  return shapes;
}

uint64_t HashName(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

uint64_t NextRandom(uint64_t* state) {  // splitmix64
  uint64_t z = *state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::string RandomBytes(const std::string& name, const std::vector<int64_t>& shape, uint64_t seed,
                        Dtype dtype) {
  int64_t elements = 1;
  for (const int64_t n : shape) elements *= n;
  const bool norm = shape.size() == 1;
  // The power of two nearest to sqrt(3 / fan_in): uniform in [-a, a] has the variance a^2 / 3.
  const bool embedding = absl::StrContains(name, "embed_tokens");
  const double fan_in = embedding ? 1.0 : static_cast<double>(shape.back());
  const int exponent = static_cast<int>(std::lround(std::log2(std::sqrt(3.0 / fan_in))));
  uint64_t state = seed * 0x2545f4914f6cdd1d ^ HashName(name);
  std::string bytes;
  bytes.reserve(static_cast<size_t>(elements) * DtypeBytes(dtype));
  for (int64_t i = 0; i < elements; ++i) {
    const auto random = static_cast<int>(NextRandom(&state) >> 56) - 128;  // [-128, 128)
    const float value = norm ? 1.0f + static_cast<float>(random / 8) / 128.0f
                             : std::ldexp(static_cast<float>(random), exponent - 7);
    bytes += EncodeElement(value, dtype);
  }
  return bytes;
}

std::string DtypeNameOf(Dtype dtype) {
  return dtype == Dtype::kBF16 ? "BF16" : dtype == Dtype::kF16 ? "F16" : "F32";
}

}  // namespace

ScratchDir::ScratchDir() {
  std::string path = (std::filesystem::temp_directory_path() / "tandem_XXXXXX").string();
  TANDEM_CHECK(mkdtemp(path.data()) != nullptr);
  path_ = path;
}

ScratchDir::~ScratchDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  TANDEM_CHECK(file.good());
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + data;
}

std::string SafetensorsBytes(const std::vector<RawTensor>& tensors, int padding) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::string data;
  for (const RawTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.bytes;
    absl::StrAppendFormat(&header, R"(,"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]})",
                          tensor.name, tensor.dtype, absl::StrJoin(tensor.shape, ","), begin,
                          data.size());
  }
  return SafetensorsBytes(header + "}" + std::string(padding, ' '), data);
}

std::string EncodeElement(float value, Dtype dtype) {
  const auto bits = std::bit_cast<uint32_t>(value);
  std::string bytes(DtypeBytes(dtype), '\0');
  if (dtype == Dtype::kF32) {
    std::memcpy(bytes.data(), &bits, sizeof(bits));
    return bytes;
  }
  uint16_t half = 0;
  if (dtype == Dtype::kBF16) {
    TANDEM_CHECK((bits & 0xffff) == 0);
    half = static_cast<uint16_t>(bits >> 16);
  } else {
    half = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (value != 0) {
      const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127 + 15;
      TANDEM_CHECK(exponent > 0 && exponent < 31 && (bits & 0x1fff) == 0);  // normal, exact
      half = static_cast<uint16_t>(half | exponent << 10 | (bits >> 13 & 0x3ff));
    }
  }
  std::memcpy(bytes.data(), &half, sizeof(half));
  return bytes;
}

std::vector<RawTensor> RandomTensors(const ModelConfig& config, uint64_t seed, Dtype dtype) {
  std::vector<RawTensor> tensors;
  for (const auto& [name, shape] : TensorShapes(config)) {
    tensors.push_back({name, DtypeNameOf(dtype), shape, RandomBytes(name, shape, seed, dtype)});
  }
  return tensors;
}

void WriteCheckpoint(const std::string& dir, const std::string& config_json,
                     const std::vector<RawTensor>& tensors, int num_files) {
  WriteFile(dir + "/config.json", config_json);
  if (num_files == 1) {
    WriteFile(dir + "/model.safetensors", SafetensorsBytes(tensors));
    return;
  }
  std::map<std::string, std::vector<RawTensor>> files;
  nlohmann::json index = {{"metadata", {{"total_size", 0}}}};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string file =
        absl::StrFormat("model-%05d-of-%06d.safetensors", i % num_files + 1, num_files);
    files[file].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] = file;
  }
  for (const auto& [file, shard] : files) {
    WriteFile(dir + "/" + file, SafetensorsBytes(shard));
  }
  WriteFile(dir + "/model.safetensors.index.json", index.dump());
}

void WriteRandomCheckpoint(const std::string& dir, const std::string& config_json, uint64_t seed,
                           Dtype dtype, int num_files) {
  const auto config = ParseModelConfig(config_json, "the test's config");
  TANDEM_CHECK(config.ok());
  WriteCheckpoint(dir, config_json, RandomTensors(*config, seed, dtype), num_files);
}

}  // namespace tandem

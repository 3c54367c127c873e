#include "deployment/memory_needs.h"

#include <algorithm>
#include <functional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checkpoint/tensor_table.h"
#include "common/pages.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

// As Checkpoint::Load leaves it, mapped as it lies or converted, and kernels pack it, of floats or
// of integers, but for what pads its dimensions.
int64_t LoadedBytes(const SafetensorsEntry& entry, WeightFormat format) {
  const auto in_file = static_cast<int64_t>(entry.end - entry.begin);
  if (IsInteger(format)) {
    const int64_t values = in_file / (entry.dtype == "F32" ? 4 : 2);
    return format == WeightFormat::kInt8 ? values : values / 2 + values / 64;
  }
  if (entry.dtype == "F32" && format == WeightFormat::kBF16) return in_file / 2;
  if (entry.dtype == "F16" && format == WeightFormat::kF32) return in_file * 2;
  return in_file;
}

// What weights take, the routed experts apart from the others.
struct WeightBytes {
  int64_t experts = 0;
  int64_t others = 0;

  void Add(const std::string& name, const SafetensorsEntry& entry, WeightFormat format) {
    const int64_t bytes = LoadedBytes(entry, FormatOf(name, format));
    (IsRoutedExpert(name) ? experts : others) += bytes;
    // The maps of kv_b_proj (kernels/cpu/head_maps.h) have its keys twice.
    if (absl::EndsWith(name, "kv_b_proj.weight")) others += bytes / 2;
  }
  // The embedding that is lm_head as well: a table of rows and a matrix, of which only the matrix
  // is packed.
  void AddTied(const SafetensorsEntry& embedding, WeightFormat format) {
    others += LoadedBytes(embedding, FormatOf("lm_head.weight", format));
  }
};

constexpr char kEmbedding[] = "model.embed_tokens.weight";

WeightBytes Sum(const Checkpoint& checkpoint, WeightFormat format) {
  WeightBytes bytes;
  for (const auto& [name, location] : checkpoint.tensors()) {
    bytes.Add(name, location.entry, format);
  }
  if (checkpoint.config().tie_word_embeddings) {
    bytes.AddTied(checkpoint.tensors().at(kEmbedding).entry, format);
  }
  return bytes;
}

WeightBytes Sum(const ModelConfig& config, WeightFormat format) {
  WeightBytes bytes;
  const auto add = [&](const std::string& name, const TensorShape& shape) {
    SafetensorsEntry entry{"BF16", shape, 0, 2};
    for (const int64_t size : shape) entry.end *= static_cast<uint64_t>(size);
    bytes.Add(name, entry, format);
    if (config.tie_word_embeddings && name == kEmbedding) bytes.AddTied(entry, format);
    return absl::OkStatus();
  };
  ForEachNeededTensor(config, add).IgnoreError();  // there is none
  return bytes;
}

std::string GiB(int64_t bytes) {
  if (bytes < int64_t{1} << 30) {
    return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  }
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

int64_t ExpertBytes(const Checkpoint& checkpoint, WeightFormat format) {
  return Sum(checkpoint, format).experts;
}
int64_t OtherBytes(const Checkpoint& checkpoint, WeightFormat format) {
  return Sum(checkpoint, format).others;
}
int64_t ExpertBytes(const ModelConfig& config, WeightFormat format) {
  return Sum(config, format).experts;
}
int64_t OtherBytes(const ModelConfig& config, WeightFormat format) {
  return Sum(config, format).others;
}

int64_t CacheBytes(const ModelConfig& config, Dtype mode, int64_t tokens) {
  return PagesFor(tokens) * kPageTokens * config.num_layers * config.cache_row_width() *
         static_cast<int64_t>(DtypeBytes(mode));
}

int64_t WorkBytes(const kernels::Backend& backend, const ModelConfig& config, Dtype mode) {
  return backend.MemoryBytes().has_value() ? PassBytes(config, mode) : 0;
}

int64_t PassBytes(const ModelConfig& config, Dtype mode) {
  constexpr int64_t kRows = 2048 + 64;  // --max-batch-rows of a prompt, --max-running that decode
  constexpr int64_t kPasses = 2;        // under way at once
  constexpr int64_t kLogitRows = 64;    // at once
  const int64_t act = static_cast<int64_t>(DtypeBytes(mode));
  const int64_t hidden = config.hidden_size, heads = config.num_heads;
  const int64_t query = heads * config.qk_head_dim(), value = heads * config.v_head_dim;
  const int64_t widest = std::max(config.intermediate_size, config.shared_intermediate_size());
  const int64_t routes = config.experts_per_token;
  const int64_t row =
      act * (8 * hidden + 2 * query + config.q_lora_rank + 2 * config.cache_row_width() +
             2 * value + 3 * widest + routes * (hidden + 2 * config.moe_intermediate_size));
  const int64_t absorbed = 4 * 2 * heads * config.kv_lora_rank;
  const int64_t expanded = 4 * heads * (config.v_head_dim + 2);
  const int64_t expanded_keys = act * 512 * (query + value);
  return kPasses * (kRows * (row + absorbed + expanded) + expanded_keys +
                    kLogitRows * (2 * 4 * config.vocab_size + act * hidden)) +  // and adjusted
         (8 << 20);  // what is small, rounded up
}

WeightChoice ChooseWeights(const Checkpoint& checkpoint, Dtype mode, int64_t cache_bytes,
                           const MachineLimits& limits,
                           const std::function<bool(WeightFormat)>& has) {
  WeightChoice choice;
  for (const WeightFormat format :
       {DefaultWeightFormat(mode), WeightFormat::kInt8, WeightFormat::kInt4}) {
    if (!has(format)) continue;
    choice.format = format;
    const int64_t needs =
        ExpertBytes(checkpoint, format) + OtherBytes(checkpoint, format) + cache_bytes;
    const bool fits = needs <= limits.memory_bytes - needs / kOtherShare;
    absl::StrAppend(&choice.why, choice.why.empty() ? "" : ", ", WeightFormatName(format),
                    " needs ", GiB(needs), fits ? " and fits" : " and does not fit");
    if (fits) break;
  }
  absl::StrAppend(&choice.why, " into ", GiB(limits.memory_bytes), " (", limits.memory_from,
                  "), the latent cache counted");
  return choice;
}

absl::Status CheckMemory(const MemoryNeeds& needs, const MachineLimits& limits) {
  std::string what = absl::StrCat("weights need ", GiB(needs.weights));
  if (needs.cache > 0) absl::StrAppend(&what, " and the latent cache ", GiB(needs.cache));
  if (needs.work > 0) absl::StrAppend(&what, ", passes ", GiB(needs.work));
  absl::StrAppend(&what, " of ", GiB(limits.memory_bytes), " (", limits.memory_from, ")");
  if (needs.weights + needs.cache + needs.work <= limits.memory_bytes) {
    spdlog::info("memory: {}", what);
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("not enough memory: ", what, "; ",
                   needs.cache > 0 && needs.weights + needs.work < limits.memory_bytes
                       ? "a smaller --cache-tokens would fit"
                       : "a smaller --weights format or more expert workers would need less here"));
}

}  // namespace tandem

#include "deployment/quantize.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention_worker/weights.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/digest.h"
#include "common/mode.h"
#include "common/placement.h"
#include "common/status.h"
#include "deployment/keep_packed.h"
#include "expert_worker/loaded_experts.h"
#include "kernels/backend.h"

namespace tandem {
namespace {

constexpr WorkerId kSelf = 1;

// The experts of one layer; `step` counts the placements.
Placement LayerAlone(const ModelConfig& config, int layer, uint64_t step) {
  Placement placement;
  placement.version = {1, step};
  placement.num_layers = config.num_layers;
  placement.num_experts = config.num_experts;
  placement.holders.resize(static_cast<size_t>(config.num_layers) * config.num_experts);
  const auto first = placement.holders.begin() + static_cast<ptrdiff_t>(layer) * config.num_experts;
  std::fill_n(first, config.num_experts, std::vector<WorkerId>{kSelf});
  return placement;
}

}  // namespace

absl::StatusOr<QuantizedWeights> Quantize(const QuantizeOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(const WeightFormat format,
                          ParseWeightFormat(options.backend.weights, Dtype::kBF16));
  if (!IsInteger(format)) {
    return absl::InvalidArgumentError(absl::StrCat("--weights is \"", options.backend.weights,
                                                   "\", but what is kept is int8 or int4"));
  }
  if (options.backend.packed_weights == kKeepNothing) {
    return absl::InvalidArgumentError("--packed-weights off leaves no place for packed weights");
  }
  const auto progress = options.progress ? options.progress : [](float) {};
  TANDEM_ASSIGN_OR_RETURN(const auto backend, MakeBackend(options.backend));
  TANDEM_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model_dir));
  TANDEM_ASSIGN_OR_RETURN(const std::string digest, CheckpointDigest(*checkpoint));
  KeepPacked({options.model_dir, options.backend.packed_weights, format, digest, /*wait=*/true},
             checkpoint.get());
  const PackedWeights& packed = *checkpoint->packed();

  const ModelConfig& config = checkpoint->config();
  const auto experts_bytes = static_cast<float>(TensorBytes(*checkpoint, IsRoutedExpert));
  const auto all_bytes =
      static_cast<float>(TensorBytes(*checkpoint, [](const std::string&) { return true; }));
  const float expert_share = experts_bytes / all_bytes;
  // Whole once it is made, though nothing computes with it.
  TANDEM_RETURN_IF_ERROR(LoadAttentionWeights(*checkpoint, backend.get(), format, [&](float share) {
                           progress(share * (1 - expert_share));
                         }).status());
  TANDEM_RETURN_IF_ERROR(packed.status());
  TANDEM_ASSIGN_OR_RETURN(const auto experts,
                          LoadedExperts::Create(checkpoint.get(), backend.get(), format));
  const int num_layers = config.num_layers;
  for (int layer = 0; layer < num_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) continue;
    const auto step = static_cast<uint64_t>(layer) + 1;
    TANDEM_RETURN_IF_ERROR(experts->Load(LayerAlone(config, layer, step), kSelf, [&](float share) {
      progress(1 - expert_share +
               expert_share * (static_cast<float>(layer) + share) / static_cast<float>(num_layers));
    }));
    TANDEM_RETURN_IF_ERROR(packed.status());
    experts->Retire({1, step});  // those of the layer before
  }
  progress(1);
  QuantizedWeights done;
  done.dir = packed.dir();
  for (const auto& [name, value] : packed.Counters()) {
    if (name == "packed_written") done.written = value;
    if (name == "packed_mapped") done.were_kept = value;
  }
  return done;
}

}  // namespace tandem

// The attention worker's share of DeepSeek-V2: embedding, MLA, norms, router, shared experts, dense
// layers, lm_head. The routed experts are behind RoutedExperts.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.
#ifndef TANDEM_ATTENTION_WORKER_MODEL_H_
#define TANDEM_ATTENTION_WORKER_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "attention_worker/latent_cache.h"
#include "attention_worker/layer_times.h"
#include "attention_worker/pass_inputs.h"
#include "attention_worker/routed_experts.h"
#include "attention_worker/weights.h"
#include "attention_worker/workspace.h"
#include "common/checkpoint/checkpoint.h"
#include "common/model_config.h"
#include "common/request_tag.h"
#include "kernels/backend.h"

namespace tandem {

// What a model computes with; one for an engine's life.
struct ModelContext {
  kernels::Backend* backend = nullptr;
  RoutedExperts* experts = nullptr;
  const LatentCache* cache = nullptr;
};

// One set of rows on its way through consecutive layers.
struct ModelPass {
  const PassRows* rows = nullptr;
  const PassInputs* inputs = nullptr;
  kernels::DeviceTensor x;        // [rows, hidden] act: the residual stream, in and out
  kernels::DeviceTensor cos_sin;  // [rows, dr] f32, by AttentionModel::RopeTable
  Workspace* workspace = nullptr;
  StepId step = 0;                        // the gateway's name for it
  std::function<void()> experts_changed;  // see RoutedExperts::Begin
  LayerClock* clock = nullptr;            // of the pass's present layer
  TracesOfPart traces;                    // of whoever has rows in it
};

// A layer between its two halves.
struct LayerInFlight {
  kernels::DeviceTensor h;       // [rows, hidden] act: x + attention
  kernels::DeviceTensor ffn;     // [rows, hidden] act: the dense MLP or the routed experts
  kernels::DeviceTensor shared;  // [rows, hidden] act; empty without
  std::unique_ptr<RoutedExperts::Pending> experts;  // null in a dense layer
  Workspace::Mark mark;                             // of the workspace before the layer
};

// Immutable, so any number of threads may use it; a ModelPass belongs to one.
class AttentionModel {
 public:
  // Prepares all weights but the routed experts' and tells `progress` the share of bytes that is
  // done. `mode` is the dtype of activations, cache and wire. Errors: those of
  // LoadAttentionWeights.
  static absl::StatusOr<std::unique_ptr<AttentionModel>> Load(
      const Checkpoint& checkpoint, kernels::Backend* backend, Dtype mode, WeightFormat format,
      const std::function<void(float)>& progress);

  const ModelConfig& config() const { return config_; }
  Dtype dtype() const { return dtype_; }

  // x[i] = embed_tokens[ids[i]]
  void Embed(const ModelContext& context, const kernels::DeviceTensor& ids,
             const kernels::DeviceTensor& x) const;

  // Cosines and sines of the rows' positions, the same in every layer: [rows, dr] f32.
  void RopeTable(const ModelContext& context, const kernels::DeviceTensor& positions,
                 const kernels::DeviceTensor& out) const;

  // A layer in two halves, so that nobody waits while its experts are away:
  //   h = x + Attention(RmsNorm(x));  x = h + FeedForward(RmsNorm(h)),  each sum rounded.
  // BeginLayer computes h, sends the routed rows off and runs what needs no answer. All rows'
  // latents are in the cache before any row attends. Until FinishLayer, which takes the
  // feed-forward part once `experts` (if there are any) has answered OK, x is as before: a layer
  // that was not finished can be begun again, and what it appended to the cache it appends again.
  LayerInFlight BeginLayer(const ModelContext& context, const ModelPass& pass, int layer) const;
  void FinishLayer(const ModelContext& context, const ModelPass& pass,
                   const LayerInFlight& in_flight) const;

  // logits[i] = lm_head RmsNorm(x[i]), in f32. x [rows, hidden] act, logits [rows, vocab] f32.
  void Logits(const ModelContext& context, Workspace* workspace, const kernels::DeviceTensor& x,
              const kernels::DeviceTensor& logits) const;

 private:
  AttentionModel(const ModelConfig& config, Dtype dtype, AttentionWeights weights,
                 std::unique_ptr<kernels::Buffer> rope_frequencies);

  void Attend(const ModelContext& context, const ModelPass& pass, int layer,
              const kernels::DeviceTensor& n, const kernels::DeviceTensor& out) const;
  void AttendAbsorbed(const ModelContext& context, const ModelPass& pass, int layer,
                      const kernels::DeviceTensor& q, const kernels::DeviceTensor& out) const;
  void AttendExpanded(const ModelContext& context, const ModelPass& pass, int layer,
                      const kernels::DeviceTensor& q, const kernels::DeviceTensor& out) const;
  void BeginExperts(const ModelContext& context, const ModelPass& pass, int layer,
                    LayerInFlight* in_flight) const;

  const ModelConfig config_;
  const Dtype dtype_;
  const AttentionWeights weights_;
  const float softmax_scale_;
  const float rope_factor_;
  const std::unique_ptr<kernels::Buffer> rope_frequencies_;  // [dr / 2] f32
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_MODEL_H_

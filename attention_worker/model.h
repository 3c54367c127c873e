// The attention worker's share of DeepSeek-V2: embedding, MLA, norms, router, shared experts, dense
// layers, lm_head. The routed experts are reached through an ExpertDispatcher.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.
#ifndef TANDEM_ATTENTION_WORKER_MODEL_H_
#define TANDEM_ATTENTION_WORKER_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention_worker/latent_cache.h"
#include "attention_worker/weights.h"
#include "attention_worker/workspace.h"
#include "common/checkpoint/checkpoint.h"
#include "common/model_config.h"
#include "common/transport/expert_dispatcher.h"
#include "kernels/backend.h"

namespace tandem {

// What a model computes with; one for an engine's life.
struct ModelContext {
  kernels::Backend* backend = nullptr;
  ExpertDispatcher* dispatcher = nullptr;
  const LatentCache* cache = nullptr;
  Workspace* workspace = nullptr;
  SharedRows* expert_rows = nullptr;
};

// The rows that travel some layers together, and what they see: those in the absorbed form first,
// then those in the expanded form, sequence by sequence (DESIGN.md section 6, rule 1).
struct ModelRows {
  struct ExpandedRun {  // the expanded rows of one sequence, positions ascending
    int32_t first_row = 0;
    int32_t num_rows = 0;
    absl::Span<const int32_t> page_table;
  };

  std::vector<int32_t> positions;           // [rows]
  std::vector<int32_t> page_ids;            // [rows] where the row's latent is kept
  std::vector<int32_t> slots;               // [rows]
  std::vector<const int32_t*> page_tables;  // [absorbed rows]
  std::vector<int32_t> lengths;             // [absorbed rows] keys that the row sees
  std::vector<ExpandedRun> expanded;

  int64_t num_rows() const { return static_cast<int64_t>(positions.size()); }
  int64_t num_absorbed() const { return static_cast<int64_t>(lengths.size()); }
  int64_t num_expanded() const { return num_rows() - num_absorbed(); }
};

// One set of rows on its way through consecutive layers.
struct ModelPass {
  const ModelRows* rows = nullptr;
  TensorView x;                     // [rows, hidden] act: the residual stream, in and out
  TensorView cos_sin;               // [rows, dr] f32, by AttentionModel::RopeTable
  uint64_t step = 0;                // names the pass to expert workers
  std::function<bool()> cancelled;  // true: nobody wants any row any more
};

// Immutable, so any number of threads may use it; a ModelContext belongs to one.
class AttentionModel {
 public:
  // Maps all weights but the routed experts' and tells `progress` the share of bytes that is done.
  // `mode` is the dtype of activations, cache and wire. Errors: those of Checkpoint::Load.
  static absl::StatusOr<std::unique_ptr<AttentionModel>> Load(
      const Checkpoint& checkpoint, Dtype mode, const std::function<void(float)>& progress);

  const ModelConfig& config() const { return config_; }
  Dtype dtype() const { return dtype_; }

  // x[i] = embed_tokens[ids[i]]
  void Embed(const ModelContext& context, absl::Span<const int32_t> ids, const TensorView& x) const;

  // Cosines and sines of the rows' positions, the same in every layer: [rows, dr] f32.
  void RopeTable(const ModelContext& context, const ModelRows& rows, const TensorView& out) const;

  // h = x + Attention(RmsNorm(x));  x = h + FeedForward(RmsNorm(h)), each sum rounded. All rows'
  // latents are in the cache before any row attends. If it fails, x is as before and the layer can
  // be run again: what it appended to the cache it would append again.
  //   UNAVAILABLE  no expert worker answered in time    CANCELLED  pass.cancelled turned true
  absl::Status RunLayer(const ModelContext& context, const ModelPass& pass, int layer) const;

  // logits[i] = lm_head RmsNorm(x[i]), in f32. x [rows, hidden] act, logits [rows, vocab] f32.
  void Logits(const ModelContext& context, const TensorView& x, const TensorView& logits) const;

 private:
  AttentionModel(const ModelConfig& config, Dtype dtype, AttentionWeights weights);

  void Attend(const ModelContext& context, const ModelPass& pass, int layer, const TensorView& n,
              const TensorView& out) const;
  void AttendAbsorbed(const ModelContext& context, const ModelPass& pass, int layer,
                      const TensorView& q, const TensorView& out) const;
  void AttendExpanded(const ModelContext& context, const ModelPass& pass, int layer,
                      const TensorView& q, const TensorView& out) const;
  absl::Status MixExperts(const ModelContext& context, const ModelPass& pass, int layer,
                          const TensorView& h, const TensorView& out) const;

  const ModelConfig config_;
  const Dtype dtype_;
  const AttentionWeights weights_;
  const float softmax_scale_;
  const float rope_factor_;
  const std::vector<float> rope_frequencies_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_MODEL_H_

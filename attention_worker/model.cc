#include "attention_worker/model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/status.h"

namespace tandem {
namespace {

using kernels::DeviceTensor;

// Absorbed queries are as wide as the latent, heads times over, in f32; so many rows at once bound
// their memory. No result depends on it.
constexpr int64_t kAbsorbedRowsAtOnce = 512;

// Rows [first, first + count) of q [rows, heads, width].
DeviceTensor RowsOfHeads(const DeviceTensor& q, int64_t first, int64_t count) {
  const int64_t heads = q.dim(1);
  return q.slice_rows(first * heads, count * heads).reshaped({count, heads, q.width()});
}

// The ops of one layer, each result in fresh workspace.
class Ops {
 public:
  Ops(const ModelContext& context, Workspace* workspace, Dtype dtype)
      : backend_(*context.backend), workspace_(*workspace), dtype_(dtype) {}

  DeviceTensor Take(int64_t rows, int64_t width) { return workspace_.Take(dtype_, {rows, width}); }

  DeviceTensor RmsNorm(const DeviceTensor& x, const kernels::NormWeight& weight, float eps) {
    const DeviceTensor out = Take(x.dim(0), x.width());
    backend_.RmsNorm({x, weight, out, eps});
    return out;
  }
  DeviceTensor Linear(const DeviceTensor& x, const kernels::LinearWeight& weight) {
    const DeviceTensor out = Take(x.dim(0), weight.outputs());
    backend_.Linear({x, weight, out});
    return out;
  }
  // down(silu(gate x) * (up x))
  DeviceTensor Mlp(const DeviceTensor& x, const MlpWeights& weights) {
    const DeviceTensor out = Take(x.dim(0), weights.down_proj->outputs());
    Workspace::Scope scope(&workspace_);
    const DeviceTensor gate = Linear(x, *weights.gate_proj);
    const DeviceTensor up = Linear(x, *weights.up_proj);
    backend_.SiluMul({gate, up, gate});
    backend_.Linear({gate, *weights.down_proj, out});
    return out;
  }

 private:
  kernels::Backend& backend_;
  Workspace& workspace_;
  const Dtype dtype_;
};

}  // namespace

AttentionModel::AttentionModel(const ModelConfig& config, Dtype dtype, AttentionWeights weights,
                               std::unique_ptr<kernels::Buffer> rope_frequencies)
    : config_(config),
      dtype_(dtype),
      weights_(std::move(weights)),
      softmax_scale_(config.SoftmaxScale()),
      rope_factor_(config.RopeFactor()),
      rope_frequencies_(std::move(rope_frequencies)) {}

absl::StatusOr<std::unique_ptr<AttentionModel>> AttentionModel::Load(
    const Checkpoint& checkpoint, kernels::Backend* backend, Dtype mode, WeightFormat format,
    const std::function<void(float)>& progress) {
  TANDEM_ASSIGN_OR_RETURN(AttentionWeights weights,
                          LoadAttentionWeights(checkpoint, backend, format, progress));
  const std::vector<float> frequencies = checkpoint.config().RopeFrequencies();
  TANDEM_ASSIGN_OR_RETURN(auto buffer, backend->Allocate(frequencies.size() * sizeof(float)));
  const auto size = static_cast<int64_t>(frequencies.size());
  backend->Write(frequencies.data(), buffer->Tensor(Dtype::kF32, {size}));
  return std::unique_ptr<AttentionModel>(
      new AttentionModel(checkpoint.config(), mode, std::move(weights), std::move(buffer)));
}

void AttentionModel::Embed(const ModelContext& context, const DeviceTensor& ids,
                           const DeviceTensor& x) const {
  context.backend->Embed({*weights_.embed_tokens, ids, x});
}

void AttentionModel::RopeTable(const ModelContext& context, const DeviceTensor& positions,
                               const DeviceTensor& out) const {
  const auto frequencies = rope_frequencies_->Tensor(Dtype::kF32, {config_.qk_rope_head_dim / 2});
  context.backend->RopeTable({positions, frequencies, rope_factor_, out});
}

LayerInFlight AttentionModel::BeginLayer(const ModelContext& context, const ModelPass& pass,
                                         int layer) const {
  const LayerWeights& w = weights_.layers[layer];
  const DeviceTensor& x = pass.x;
  Ops ops(context, pass.workspace, dtype_);
  LayerInFlight in_flight;
  in_flight.mark = pass.workspace->mark();

  const DeviceTensor h = in_flight.h = ops.Take(x.dim(0), x.width());
  {
    Workspace::Scope scope(pass.workspace);
    Attend(context, pass, layer, ops.RmsNorm(x, *w.input_layernorm, config_.rms_norm_eps), h);
  }
  context.backend->Add({x, h, h});

  if (config_.IsMoeLayer(layer)) {
    BeginExperts(context, pass, layer, &in_flight);
  } else {
    pass.clock->End(LayerPart::kAttention);
    in_flight.ffn =
        ops.Mlp(ops.RmsNorm(h, *w.post_attention_layernorm, config_.rms_norm_eps), w.mlp);
  }
  pass.clock->End(LayerPart::kMlp);
  return in_flight;
}

void AttentionModel::FinishLayer(const ModelContext& context, const ModelPass& pass,
                                 const LayerInFlight& in_flight) const {
  if (!in_flight.shared.empty()) {
    context.backend->Add({in_flight.ffn, in_flight.shared, in_flight.ffn});
  }
  context.backend->Add({in_flight.h, in_flight.ffn, pass.x});
  pass.workspace->ReturnTo(in_flight.mark);
  pass.clock->End(LayerPart::kCombine);
}

// Multi-head latent attention (section 2.1): out = W^O [softmax(q k) v of every head].
void AttentionModel::Attend(const ModelContext& context, const ModelPass& pass, int layer,
                            const DeviceTensor& n, const DeviceTensor& out) const {
  const LayerWeights& w = weights_.layers[layer];
  kernels::Backend& backend = *context.backend;
  Ops ops(context, pass.workspace, dtype_);

  // Queries, compressed or not; then the last dr values of every head are rotated.
  DeviceTensor q;
  if (config_.q_lora_rank == 0) {
    q = ops.Linear(n, *w.q_proj);
  } else {
    const DeviceTensor q_a = ops.Linear(n, *w.q_a_proj);
    q = ops.Linear(ops.RmsNorm(q_a, *w.q_a_layernorm, ModelConfig::kLatentNormEps), *w.q_b_proj);
  }
  q = q.reshaped({q.dim(0), config_.num_heads, config_.qk_head_dim()});
  backend.Rope({q, pass.cos_sin});

  // Keys and values, as one latent and one rotated key for all heads, into the cache.
  const DeviceTensor kv_a = ops.Linear(n, *w.kv_a_proj_with_mqa);
  backend.LatentAppend({kv_a, *w.kv_a_layernorm, pass.cos_sin, context.cache->layer(layer),
                        pass.inputs->page_ids, pass.inputs->slots, ModelConfig::kLatentNormEps});

  const DeviceTensor heads_out =
      ops.Take(n.dim(0), static_cast<int64_t>(config_.num_heads) * config_.v_head_dim);
  AttendAbsorbed(context, pass, layer, q, heads_out);
  AttendExpanded(context, pass, layer, q, heads_out);
  backend.Linear({heads_out, *w.o_proj, out});
}

// Keys and values stay latent: W^UK goes into the query, W^UV behind the weighted sum.
void AttentionModel::AttendAbsorbed(const ModelContext& context, const ModelPass& pass, int layer,
                                    const DeviceTensor& q, const DeviceTensor& out) const {
  const kernels::KvUpWeight& kv_up = *weights_.layers[layer].kv_b_proj;
  const PassInputs& inputs = *pass.inputs;
  kernels::Backend& backend = *context.backend;
  const int64_t heads = config_.num_heads;
  const int64_t num_absorbed = pass.rows->num_absorbed();

  for (int64_t begin = 0; begin < num_absorbed; begin += kAbsorbedRowsAtOnce) {
    const int64_t count = std::min(kAbsorbedRowsAtOnce, num_absorbed - begin);
    Workspace::Scope scope(pass.workspace);
    const DeviceTensor q_here = RowsOfHeads(q, begin, count);
    const DeviceTensor q_latent =
        pass.workspace->Take(Dtype::kF32, {count, heads, config_.kv_lora_rank});
    const DeviceTensor latent =
        pass.workspace->Take(Dtype::kF32, {count, heads, config_.kv_lora_rank});
    backend.MlaAbsorbQuery({q_here, kv_up, q_latent});
    backend.MlaAbsorbed({q_latent, q_here, context.cache->layer(layer), inputs.page_tables,
                         inputs.table_of_row.slice(begin, count),
                         inputs.lengths.slice(begin, count), latent, softmax_scale_});
    backend.MlaProjectValue({latent, kv_up, out.slice_rows(begin, count)});
  }
}

// Keys and values are made from the latents, once for all rows of a sequence.
void AttentionModel::AttendExpanded(const ModelContext& context, const ModelPass& pass, int layer,
                                    const DeviceTensor& q, const DeviceTensor& out) const {
  const PassInputs& inputs = *pass.inputs;
  const int64_t table_width = inputs.page_tables.width();
  for (const PassRows::Expanded& rows : pass.rows->expanded) {
    const int64_t num_tokens = pass.rows->positions[rows.first_row + rows.num_rows - 1] + 1;
    context.backend->MlaExpanded(
        {RowsOfHeads(q, rows.first_row, rows.num_rows), *weights_.layers[layer].kv_b_proj,
         context.cache->layer(layer),
         inputs.page_tables.slice_rows(rows.table, 1).reshaped({table_width}),
         inputs.positions.slice(rows.first_row, rows.num_rows), num_tokens,
         out.slice_rows(rows.first_row, rows.num_rows), softmax_scale_});
  }
}

// The mixture of experts (section 2.2): ffn = round(sum of routed experts) of n = RmsNorm(h), to
// which the shared experts' share is added. They run while the routed ones are away.
void AttentionModel::BeginExperts(const ModelContext& context, const ModelPass& pass, int layer,
                                  LayerInFlight* in_flight) const {
  const LayerWeights& w = weights_.layers[layer];
  const int64_t num_rows = in_flight->h.dim(0);
  const int top_k = config_.experts_per_token;
  Workspace& workspace = *pass.workspace;
  Ops ops(context, pass.workspace, dtype_);

  in_flight->ffn = ops.Take(num_rows, in_flight->h.width());
  const DeviceTensor n =
      ops.RmsNorm(in_flight->h, *w.post_attention_layernorm, config_.rms_norm_eps);
  const bool grouped = config_.topk_method == TopkMethod::kGroupLimitedGreedy;
  const kernels::RouteArgs route = {
      .x = n,
      .weight = *w.router,
      .top_k = top_k,
      .num_groups = grouped ? config_.num_groups : 0,
      .top_groups = grouped ? config_.top_groups : 0,
      .normalize = config_.norm_topk_prob,
      .scaling = config_.routed_scaling_factor,
      .expert_ids = workspace.Take(Dtype::kI32, {num_rows, top_k}),
      .weights = workspace.Take(Dtype::kF32, {num_rows, top_k}),
  };
  context.backend->Route(route);
  in_flight->experts = context.experts->Begin({pass.step, layer, n, route.expert_ids, route.weights,
                                               in_flight->ffn, &workspace, pass.clock, pass.traces},
                                              pass.experts_changed);
  if (!w.shared_experts.empty()) in_flight->shared = ops.Mlp(n, w.shared_experts);
}

void AttentionModel::Logits(const ModelContext& context, Workspace* workspace,
                            const DeviceTensor& x, const DeviceTensor& logits) const {
  Workspace::Scope scope(workspace);
  Ops ops(context, workspace, dtype_);
  context.backend->Linear(
      {ops.RmsNorm(x, *weights_.norm, config_.rms_norm_eps), *weights_.lm_head, logits});
}

}  // namespace tandem

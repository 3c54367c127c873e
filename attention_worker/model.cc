#include "attention_worker/model.h"

#include <algorithm>
#include <utility>

#include "common/status.h"

namespace tandem {
namespace {

// Absorbed queries are as wide as the latent, heads times over, in f32; so many rows at once bound
// their memory. No result depends on it.
constexpr int64_t kAbsorbedRowsAtOnce = 512;

// The same rows as heads: [rows, heads, width / heads].
TensorView AsHeads(const TensorView& rows, int64_t heads) {
  return TensorView(rows.data, rows.dtype, {rows.dim(0), heads, rows.width() / heads});
}

// The ops of one layer, each result in fresh workspace.
class Ops {
 public:
  Ops(const ModelContext& context, Dtype dtype)
      : backend_(*context.backend), workspace_(*context.workspace), dtype_(dtype) {}

  TensorView Take(int64_t rows, int64_t width) { return workspace_.Take(dtype_, {rows, width}); }

  TensorView RmsNorm(const TensorView& x, const Weight& weight, float eps) {
    const TensorView out = Take(x.dim(0), x.width());
    backend_.RmsNorm({x, weight.view, out, eps});
    return out;
  }
  TensorView Linear(const TensorView& x, const Weight& weight) {
    const TensorView out = Take(x.dim(0), weight.view.dim(0));
    backend_.Linear({x, weight.view, out});
    return out;
  }
  // down(silu(gate x) * (up x))
  TensorView Mlp(const TensorView& x, const MlpWeights& weights) {
    const TensorView out = Take(x.dim(0), weights.down_proj.view.dim(0));
    Workspace::Scope scope(&workspace_);
    const TensorView gate = Linear(x, weights.gate_proj);
    const TensorView up = Linear(x, weights.up_proj);
    backend_.SiluMul({gate, up, gate});
    backend_.Linear({gate, weights.down_proj.view, out});
    return out;
  }

 private:
  kernels::Backend& backend_;
  Workspace& workspace_;
  const Dtype dtype_;
};

}  // namespace

AttentionModel::AttentionModel(const ModelConfig& config, Dtype dtype, AttentionWeights weights)
    : config_(config),
      dtype_(dtype),
      weights_(std::move(weights)),
      softmax_scale_(config.SoftmaxScale()),
      rope_factor_(config.RopeFactor()),
      rope_frequencies_(config.RopeFrequencies()) {}

absl::StatusOr<std::unique_ptr<AttentionModel>> AttentionModel::Load(
    const Checkpoint& checkpoint, Dtype mode, const std::function<void(float)>& progress) {
  TANDEM_ASSIGN_OR_RETURN(AttentionWeights weights,
                          LoadAttentionWeights(checkpoint, mode, progress));
  return std::unique_ptr<AttentionModel>(
      new AttentionModel(checkpoint.config(), mode, std::move(weights)));
}

void AttentionModel::Embed(const ModelContext& context, absl::Span<const int32_t> ids,
                           const TensorView& x) const {
  context.backend->Embed({weights_.embed_tokens.view, ids, x});
}

void AttentionModel::RopeTable(const ModelContext& context, const ModelRows& rows,
                               const TensorView& out) const {
  context.backend->RopeTable({rows.positions, rope_frequencies_, rope_factor_, out});
}

absl::Status AttentionModel::RunLayer(const ModelContext& context, const ModelPass& pass,
                                      int layer) const {
  const LayerWeights& w = weights_.layers[layer];
  const TensorView& x = pass.x;
  Workspace::Scope scope(context.workspace);
  Ops ops(context, dtype_);

  const TensorView h = ops.Take(x.dim(0), x.width());
  {
    Workspace::Scope attention_scope(context.workspace);
    Attend(context, pass, layer, ops.RmsNorm(x, w.input_layernorm, config_.rms_norm_eps), h);
  }
  context.backend->Add({x, h, h});

  TensorView ffn;
  if (config_.IsMoeLayer(layer)) {
    ffn = ops.Take(x.dim(0), x.width());
    TANDEM_RETURN_IF_ERROR(MixExperts(context, pass, layer, h, ffn));
  } else {
    ffn = ops.Mlp(ops.RmsNorm(h, w.post_attention_layernorm, config_.rms_norm_eps), w.mlp);
  }
  context.backend->Add({h, ffn, x});
  return absl::OkStatus();
}

// Multi-head latent attention (section 2.1): out = W^O [softmax(q k) v of every head].
void AttentionModel::Attend(const ModelContext& context, const ModelPass& pass, int layer,
                            const TensorView& n, const TensorView& out) const {
  const LayerWeights& w = weights_.layers[layer];
  kernels::Backend& backend = *context.backend;
  Ops ops(context, dtype_);

  // Queries, compressed or not; then the last dr values of every head are rotated.
  TensorView q;
  if (config_.q_lora_rank == 0) {
    q = ops.Linear(n, w.q_proj);
  } else {
    const TensorView q_a = ops.Linear(n, w.q_a_proj);
    q = ops.Linear(ops.RmsNorm(q_a, w.q_a_layernorm, ModelConfig::kLatentNormEps), w.q_b_proj);
  }
  q = AsHeads(q, config_.num_heads);
  backend.Rope({q, pass.cos_sin});

  // Keys and values, as one latent and one rotated key for all heads, into the cache.
  const TensorView kv_a = ops.Linear(n, w.kv_a_proj_with_mqa);
  backend.LatentAppend({kv_a, w.kv_a_layernorm.view, pass.cos_sin, context.cache->layer(layer),
                        pass.rows->page_ids, pass.rows->slots, ModelConfig::kLatentNormEps});

  const TensorView heads_out =
      ops.Take(n.dim(0), static_cast<int64_t>(config_.num_heads) * config_.v_head_dim);
  AttendAbsorbed(context, pass, layer, q, heads_out);
  AttendExpanded(context, pass, layer, q, heads_out);
  backend.Linear({heads_out, w.o_proj.view, out});
}

// Keys and values stay latent: W^UK goes into the query, W^UV behind the weighted sum.
void AttentionModel::AttendAbsorbed(const ModelContext& context, const ModelPass& pass, int layer,
                                    const TensorView& q, const TensorView& out) const {
  const ModelRows& rows = *pass.rows;
  const Weight& kv_b = weights_.layers[layer].kv_b_proj;
  kernels::Backend& backend = *context.backend;
  const int64_t heads = config_.num_heads;
  const TensorView q_rows(q.data, q.dtype, {q.dim(0), heads * q.dim(2)});
  const TensorView& pages = context.cache->layer(layer);

  for (int64_t begin = 0; begin < rows.num_absorbed(); begin += kAbsorbedRowsAtOnce) {
    const int64_t count = std::min(kAbsorbedRowsAtOnce, rows.num_absorbed() - begin);
    Workspace::Scope scope(context.workspace);
    const TensorView q_here = AsHeads(q_rows.slice_rows(begin, count), heads);
    const TensorView q_latent =
        context.workspace->Take(Dtype::kF32, {count, heads, config_.kv_lora_rank});
    const TensorView latent =
        context.workspace->Take(Dtype::kF32, {count, heads, config_.kv_lora_rank});
    backend.MlaAbsorbQuery({q_here, kv_b.view, q_latent, config_.qk_nope_head_dim});
    backend.MlaDecode(
        {q_latent, q_here, pages, absl::MakeConstSpan(rows.page_tables).subspan(begin, count),
         absl::MakeConstSpan(rows.lengths).subspan(begin, count), latent, softmax_scale_});
    backend.MlaProjectValue({latent, kv_b.view, out.slice_rows(begin, count)});
  }
}

// Keys and values are made from the latents, once for all rows of a sequence.
void AttentionModel::AttendExpanded(const ModelContext& context, const ModelPass& pass, int layer,
                                    const TensorView& q, const TensorView& out) const {
  const int64_t heads = config_.num_heads;
  const TensorView q_rows(q.data, q.dtype, {q.dim(0), heads * q.dim(2)});
  for (const ModelRows::ExpandedRun& run : pass.rows->expanded) {
    context.backend->MlaPrefill(
        {AsHeads(q_rows.slice_rows(run.first_row, run.num_rows), heads),
         weights_.layers[layer].kv_b_proj.view, context.cache->layer(layer), run.page_table,
         absl::MakeConstSpan(pass.rows->positions).subspan(run.first_row, run.num_rows),
         out.slice_rows(run.first_row, run.num_rows), softmax_scale_});
  }
}

// The mixture of experts (section 2.2): out = round(sum of routed experts) + shared experts of
// n = RmsNorm(h). The shared experts run while the routed ones are away.
absl::Status AttentionModel::MixExperts(const ModelContext& context, const ModelPass& pass,
                                        int layer, const TensorView& h,
                                        const TensorView& out) const {
  const LayerWeights& w = weights_.layers[layer];
  kernels::Backend& backend = *context.backend;
  const int64_t num_rows = h.dim(0);
  const int top_k = config_.experts_per_token;

  const auto [n, owner] = context.expert_rows->Take(dtype_, {num_rows, h.width()});
  backend.RmsNorm({h, w.post_attention_layernorm.view, n, config_.rms_norm_eps});

  const bool grouped = config_.topk_method == TopkMethod::kGroupLimitedGreedy;
  kernels::RouteArgs route;
  route.x = n;
  route.weight = w.router.view;
  route.top_k = top_k;
  route.num_groups = grouped ? config_.num_groups : 0;
  route.top_groups = grouped ? config_.top_groups : 0;
  route.normalize = config_.norm_topk_prob;
  route.scaling = config_.routed_scaling_factor;
  route.expert_ids = context.workspace->Take(Dtype::kI32, {num_rows, top_k});
  route.weights = context.workspace->Take(Dtype::kF32, {num_rows, top_k});
  backend.Route(route);

  backend.Synchronize();
  RowBatch batch;
  batch.step = pass.step;
  batch.layer = layer;
  batch.rows = n;
  batch.rows_owner = owner;
  batch.expert_ids = route.expert_ids.as<int32_t>();
  batch.weights = route.weights.as<float>();
  batch.top_k = top_k;
  const auto pending = context.dispatcher->Dispatch(batch);

  TensorView shared;
  if (!w.shared_experts.empty()) {
    shared = Ops(context, dtype_).Mlp(n, w.shared_experts);
    backend.Synchronize();
  }
  TANDEM_RETURN_IF_ERROR(context.dispatcher->Wait(*pending, pass.cancelled, out));
  if (!w.shared_experts.empty()) backend.Add({out, shared, out});
  return absl::OkStatus();
}

void AttentionModel::Logits(const ModelContext& context, const TensorView& x,
                            const TensorView& logits) const {
  Workspace::Scope scope(context.workspace);
  Ops ops(context, dtype_);
  context.backend->Linear(
      {ops.RmsNorm(x, weights_.norm, config_.rms_norm_eps), weights_.lm_head.view, logits});
}

}  // namespace tandem

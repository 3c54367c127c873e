#include "kernels/check_args.h"

#include <cstdint>

#include "common/check.h"

namespace tandem::kernels {
namespace {

bool IsAct(Dtype dtype) { return dtype == Dtype::kF32 || dtype == Dtype::kBF16; }
bool IsAct(const TensorLayout& t) { return IsAct(t.dtype); }

bool HasShape(const TensorLayout& t, int64_t rows, int64_t width) {
  return t.rank == 2 && t.dim(0) == rows && t.dim(1) == width && t.row_stride >= width;
}
bool HasShape(const TensorLayout& t, int64_t a, int64_t b, int64_t c) {
  return t.rank == 3 && t.dim(0) == a && t.dim(1) == b && t.dim(2) == c && t.row_stride >= c;
}
bool SameShape(const TensorLayout& a, const TensorLayout& b) {
  return a.rank == b.rank && a.shape == b.shape && a.dtype == b.dtype;
}
bool IsVector(const TensorLayout& t, Dtype dtype, int64_t width) {
  return t.rank == 1 && t.dim(0) == width && t.dtype == dtype;
}
bool AreIndices(const TensorLayout& t, int64_t count) { return IsVector(t, Dtype::kI32, count); }

// A checkpoint's tensor, dense, in a dtype whose values are those of the format or, of integers,
// what they are made of.
void CheckSource(const TensorView& tensor, WeightFormat format) {
  TANDEM_CHECK(tensor.row_stride == tensor.width());
  TANDEM_CHECK(tensor.dtype == Dtype::kBF16 ||
               (tensor.dtype == Dtype::kF32 && format != WeightFormat::kBF16) ||
               (tensor.dtype == Dtype::kF16 && IsInteger(format)));
}

}  // namespace

void CheckCopy(const DeviceTensor& from, const DeviceTensor& to) {
  TANDEM_CHECK(SameShape(from, to));
}

void CheckLinearTensor(const TensorView& tensor, WeightFormat format) {
  CheckSource(tensor, format);
  TANDEM_CHECK(tensor.rank == 2 && tensor.dim(1) % 8 == 0);
}

void CheckKvUpTensor(const TensorView& tensor, const KvUpShape& shape, WeightFormat format) {
  CheckSource(tensor, format);
  TANDEM_CHECK(shape.heads > 0 && shape.nope_width > 0 && shape.value_width > 0);
  TANDEM_CHECK(shape.nope_width % 8 == 0 && shape.latent_width % 8 == 0);
  TANDEM_CHECK(
      HasShape(tensor, shape.heads * (shape.nope_width + shape.value_width), shape.latent_width));
}

void CheckEmbeddingTensor(const TensorView& tensor, WeightFormat format) {
  CheckSource(tensor, format);
  TANDEM_CHECK(tensor.rank == 2);
}

void CheckNormTensor(const TensorView& tensor, WeightFormat format) {
  CheckSource(tensor, format);
  TANDEM_CHECK(tensor.rank == 1);
}

void CheckExpertLayerShape(const ExpertLayerShape& shape) {
  TANDEM_CHECK(shape.num_experts > 0 && shape.hidden > 0 && shape.intermediate > 0);
  TANDEM_CHECK(shape.hidden % 8 == 0 && shape.intermediate % 8 == 0);
}

void CheckExpertTensors(const ExpertTensors& tensors, const ExpertLayerShape& shape,
                        WeightFormat format) {
  CheckSource(tensors.gate.view, format);
  CheckSource(tensors.up.view, format);
  CheckSource(tensors.down.view, format);
  TANDEM_CHECK(HasShape(tensors.gate.view, shape.intermediate, shape.hidden));
  TANDEM_CHECK(HasShape(tensors.up.view, shape.intermediate, shape.hidden));
  TANDEM_CHECK(HasShape(tensors.down.view, shape.hidden, shape.intermediate));
}

void CheckArgs(const EmbedArgs& args) {
  TANDEM_CHECK(args.out.rank == 2 && IsAct(args.out) && args.out.width() == args.table.width());
  TANDEM_CHECK(AreIndices(args.ids, args.out.dim(0)));
}

void CheckArgs(const GatherRowsArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && args.x.dtype == args.out.dtype);
  TANDEM_CHECK(HasShape(args.out, args.out.dim(0), args.x.width()));
  TANDEM_CHECK(AreIndices(args.rows, args.out.dim(0)));
}

void CheckArgs(const RmsNormArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && IsAct(args.x) && args.weight.width() == args.x.width());
  TANDEM_CHECK(SameShape(args.x, args.out));
}

void CheckArgs(const LinearArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && IsAct(args.x) && args.weight.inputs() == args.x.width());
  TANDEM_CHECK(HasShape(args.out, args.x.dim(0), args.weight.outputs()));
  TANDEM_CHECK(args.out.dtype == args.x.dtype || args.out.dtype == Dtype::kF32);
}

void CheckArgs(const SiluMulArgs& args) {
  TANDEM_CHECK(args.gate.rank == 2 && IsAct(args.gate));
  TANDEM_CHECK(SameShape(args.gate, args.up) && SameShape(args.gate, args.out));
}

void CheckArgs(const AddArgs& args) {
  TANDEM_CHECK(args.a.rank == 2 && IsAct(args.a));
  TANDEM_CHECK(SameShape(args.a, args.b) && SameShape(args.a, args.out));
}

void CheckArgs(const RopeTableArgs& args) {
  TANDEM_CHECK(args.out.rank == 2 && args.out.dtype == Dtype::kF32);
  TANDEM_CHECK(AreIndices(args.positions, args.out.dim(0)) && args.out.width() % 2 == 0);
  TANDEM_CHECK(IsVector(args.frequencies, Dtype::kF32, args.out.width() / 2));
}

void CheckArgs(const RopeArgs& args) {
  TANDEM_CHECK(args.x.rank == 3 && IsAct(args.x) && args.cos_sin.dtype == Dtype::kF32);
  TANDEM_CHECK(args.cos_sin.rank == 2 && args.cos_sin.dim(0) == args.x.dim(0));
  TANDEM_CHECK(args.cos_sin.width() % 2 == 0 && args.cos_sin.width() <= args.x.width());
}

void CheckArgs(const LatentAppendArgs& args) {
  const int64_t rows = args.kv_a.rows();
  const int64_t width = args.kv_a.width();
  TANDEM_CHECK(args.kv_a.rank == 2 && IsAct(args.kv_a) && args.cos_sin.dtype == Dtype::kF32);
  TANDEM_CHECK(HasShape(args.cos_sin, rows, width - args.norm_weight.width()));
  TANDEM_CHECK(args.cos_sin.width() % 2 == 0 && args.pages.dtype == args.kv_a.dtype);
  TANDEM_CHECK(HasShape(args.pages, args.pages.dim(0), kPageTokens, width));
  TANDEM_CHECK(AreIndices(args.page_ids, rows) && AreIndices(args.slots, rows));
}

void CheckArgs(const MlaAbsorbQueryArgs& args) {
  const KvUpShape& shape = args.kv_up.shape();
  TANDEM_CHECK(args.q.rank == 3 && IsAct(args.q) && args.q_latent.dtype == Dtype::kF32);
  TANDEM_CHECK(args.q.dim(1) == shape.heads && args.q.dim(2) > shape.nope_width);
  TANDEM_CHECK(HasShape(args.q_latent, args.q.dim(0), shape.heads, shape.latent_width));
}

void CheckArgs(const MlaAbsorbedArgs& args) {
  TANDEM_CHECK(args.q.rank == 3 && args.q_latent.rank == 3 && args.pages.rank == 3);
  const int64_t rows = args.q.dim(0);
  const int64_t r = args.q_latent.dim(2);
  const int64_t dr = args.pages.dim(2) - r;
  TANDEM_CHECK(IsAct(args.q) && args.pages.dtype == args.q.dtype);
  TANDEM_CHECK(args.q_latent.dtype == Dtype::kF32 && args.out.dtype == Dtype::kF32);
  TANDEM_CHECK(SameShape(args.q_latent, args.out) && args.pages.dim(1) == kPageTokens);
  TANDEM_CHECK(args.q_latent.dim(0) == rows && args.q_latent.dim(1) == args.q.dim(1));
  TANDEM_CHECK(dr > 0 && dr <= args.q.dim(2) && r % 8 == 0 && dr % 8 == 0);
  TANDEM_CHECK(args.page_tables.rank == 2 && args.page_tables.dtype == Dtype::kI32);
  TANDEM_CHECK(AreIndices(args.table_of_row, rows) && AreIndices(args.lengths, rows));
}

void CheckArgs(const MlaProjectValueArgs& args) {
  const KvUpShape& shape = args.kv_up.shape();
  TANDEM_CHECK(args.latent.rank == 3 && args.latent.dtype == Dtype::kF32 && IsAct(args.out));
  TANDEM_CHECK(HasShape(args.latent, args.latent.dim(0), shape.heads, shape.latent_width));
  TANDEM_CHECK(HasShape(args.out, args.latent.dim(0), shape.heads * shape.value_width));
}

void CheckArgs(const MlaExpandedArgs& args) {
  const KvUpShape& shape = args.kv_up.shape();
  TANDEM_CHECK(args.q.rank == 3 && IsAct(args.q) && args.pages.rank == 3);
  const int64_t rows = args.q.dim(0);
  const int64_t dr = args.pages.dim(2) - shape.latent_width;
  TANDEM_CHECK(args.pages.dtype == args.q.dtype && args.pages.dim(1) == kPageTokens);
  TANDEM_CHECK(dr > 0 && dr % 8 == 0);
  TANDEM_CHECK(HasShape(args.q, rows, shape.heads, shape.nope_width + dr));
  TANDEM_CHECK(args.out.dtype == args.q.dtype);
  TANDEM_CHECK(HasShape(args.out, rows, shape.heads * shape.value_width));
  TANDEM_CHECK(AreIndices(args.positions, rows) && args.num_tokens >= 0);
  TANDEM_CHECK(AreIndices(args.page_table, args.page_table.width()));
  TANDEM_CHECK(args.num_tokens <= args.page_table.width() * kPageTokens);
}

void CheckArgs(const RouteArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && IsAct(args.x) && args.weight.inputs() == args.x.width());
  const int64_t num_experts = args.weight.outputs();
  TANDEM_CHECK(args.top_k >= 1 && args.top_k <= num_experts && args.num_groups >= 0);
  if (args.num_groups > 0) {
    TANDEM_CHECK(num_experts % args.num_groups == 0);
    TANDEM_CHECK(args.top_groups >= 1 && args.top_groups <= args.num_groups);
  }
  TANDEM_CHECK(args.expert_ids.dtype == Dtype::kI32 && args.weights.dtype == Dtype::kF32);
  TANDEM_CHECK(HasShape(args.expert_ids, args.x.dim(0), args.top_k));
  TANDEM_CHECK(HasShape(args.weights, args.x.dim(0), args.top_k));
}

void CheckArgs(const ExpertMlpArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && IsAct(args.x) && args.out.dtype == args.x.dtype);
  TANDEM_CHECK(args.x.width() == args.experts.shape().hidden);
  TANDEM_CHECK(HasShape(args.out, args.out.dim(0), args.x.width()));
  TANDEM_CHECK(AreIndices(args.route_experts, args.out.dim(0)));
  TANDEM_CHECK(AreIndices(args.route_rows, args.out.dim(0)));
}

void CheckArgs(const CombineArgs& args) {
  TANDEM_CHECK(args.out.rank == 2 && IsAct(args.out) && args.expert_rows.rank == 2);
  TANDEM_CHECK(args.expert_rows.dtype == args.out.dtype);
  TANDEM_CHECK(HasShape(args.expert_rows, args.expert_rows.dim(0), args.out.width()));
  TANDEM_CHECK(AreIndices(args.offsets, args.out.dim(0) + 1));
  TANDEM_CHECK(IsVector(args.weights, Dtype::kF32, args.expert_rows.dim(0)));
}

void CheckArgs(const AdjustLogitsArgs& args) {
  TANDEM_CHECK(args.logits.rank == 2 && args.logits.dtype == Dtype::kF32);
  TANDEM_CHECK(args.adjustments.dtype == Dtype::kU8);
  TANDEM_CHECK(HasShape(args.adjustments, args.adjustments.dim(0), sizeof(LogitAdjustment)));
}

void CheckArgs(const SampleArgs& args) {
  TANDEM_CHECK(args.logits.rank == 2 && args.logits.dtype == Dtype::kF32);
  TANDEM_CHECK(args.rows.dtype == Dtype::kU8 && args.out.dtype == Dtype::kU8);
  TANDEM_CHECK(HasShape(args.rows, args.logits.dim(0), sizeof(SampleRow)));
  TANDEM_CHECK(HasShape(args.out, args.logits.dim(0), sizeof(SampledToken)));
  TANDEM_CHECK(args.allowed.empty() || IsVector(args.allowed, Dtype::kU8, args.logits.width()));
  TANDEM_CHECK(args.raw.empty() || SameShape(args.raw, args.logits));
}

void CheckArgs(const TopLogProbsArgs& args) {
  const int64_t rows = args.logits.dim(0);
  TANDEM_CHECK(args.logits.rank == 2 && args.logits.dtype == Dtype::kF32);
  TANDEM_CHECK(args.allowed.empty() || IsVector(args.allowed, Dtype::kU8, args.logits.width()));
  TANDEM_CHECK(args.ids.dtype == Dtype::kI32 && args.log_probs.dtype == Dtype::kF32);
  TANDEM_CHECK(HasShape(args.ids, rows, args.ids.width()));
  TANDEM_CHECK(HasShape(args.log_probs, rows, args.ids.width()));
}

void CheckArgs(const LogProbArgs& args) {
  TANDEM_CHECK(args.logits.rank == 2 && args.logits.dtype == Dtype::kF32);
  TANDEM_CHECK(AreIndices(args.targets, args.logits.dim(0)));
  TANDEM_CHECK(IsVector(args.out, Dtype::kF32, args.logits.dim(0)));
}

}  // namespace tandem::kernels

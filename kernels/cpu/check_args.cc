#include "kernels/cpu/check_args.h"

#include <cstdint>

#include "common/check.h"

namespace tandem::kernels::cpu {
namespace {

bool IsFloat(Dtype dtype) { return dtype == Dtype::kF32 || dtype == Dtype::kBF16; }
bool IsFloat(const TensorView& t) { return IsFloat(t.dtype); }

bool HasShape(const TensorView& t, int64_t rows, int64_t width) {
  return t.rank == 2 && t.dim(0) == rows && t.dim(1) == width && t.row_stride >= width;
}
bool HasShape(const TensorView& t, int64_t a, int64_t b, int64_t c) {
  return t.rank == 3 && t.dim(0) == a && t.dim(1) == b && t.dim(2) == c && t.row_stride >= c;
}
bool SameShape(const TensorView& a, const TensorView& b) {
  return a.rank == b.rank && a.shape == b.shape && a.dtype == b.dtype;
}
bool IsVector(const TensorView& t, int64_t width) { return t.rank == 1 && t.dim(0) == width; }

// All of `ids` in [0, end).
bool AllBelow(absl::Span<const int32_t> ids, int64_t end) {
  for (int32_t id : ids) {
    if (id < 0 || id >= end) return false;
  }
  return true;
}

int64_t Size(absl::Span<const int32_t> span) { return static_cast<int64_t>(span.size()); }

// kv_b: [heads * (dn + dv), r] with dv >= 1.
void CheckKvB(const TensorView& kv_b, int64_t heads, int64_t dn) {
  TANDEM_CHECK(kv_b.rank == 2 && IsFloat(kv_b) && heads > 0 && kv_b.dim(0) % heads == 0);
  TANDEM_CHECK(kv_b.dim(0) / heads > dn && kv_b.dim(1) % 8 == 0);
}

}  // namespace

void CheckArgs(const EmbedArgs& args) {
  TANDEM_CHECK(args.table.rank == 2 && IsFloat(args.table) && IsFloat(args.out));
  TANDEM_CHECK(HasShape(args.out, Size(args.ids), args.table.width()));
  TANDEM_CHECK(AllBelow(args.ids, args.table.dim(0)));
}

void CheckArgs(const RmsNormArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && IsFloat(args.x) && IsFloat(args.weight));
  TANDEM_CHECK(IsVector(args.weight, args.x.width()) && SameShape(args.x, args.out));
}

void CheckArgs(const LinearArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && args.weight.rank == 2 && args.x.width() % 8 == 0);
  TANDEM_CHECK(IsFloat(args.x) && IsFloat(args.weight));
  TANDEM_CHECK(args.weight.width() == args.x.width());
  TANDEM_CHECK(HasShape(args.out, args.x.dim(0), args.weight.dim(0)));
  TANDEM_CHECK(args.out.dtype == args.x.dtype || args.out.dtype == Dtype::kF32);
}

void CheckArgs(const SiluMulArgs& args) {
  TANDEM_CHECK(args.gate.rank == 2 && IsFloat(args.gate));
  TANDEM_CHECK(SameShape(args.gate, args.up) && SameShape(args.gate, args.out));
}

void CheckArgs(const AddArgs& args) {
  TANDEM_CHECK(args.a.rank == 2 && IsFloat(args.a));
  TANDEM_CHECK(SameShape(args.a, args.b) && SameShape(args.a, args.out));
}

void CheckArgs(const RopeTableArgs& args) {
  TANDEM_CHECK(args.out.dtype == Dtype::kF32);
  TANDEM_CHECK(
      HasShape(args.out, Size(args.positions), 2 * static_cast<int64_t>(args.frequencies.size())));
  for (int32_t position : args.positions) TANDEM_CHECK(position >= 0);
}

void CheckArgs(const RopeArgs& args) {
  TANDEM_CHECK(args.x.rank == 3 && IsFloat(args.x) && args.cos_sin.dtype == Dtype::kF32);
  TANDEM_CHECK(args.cos_sin.rank == 2 && args.cos_sin.dim(0) == args.x.dim(0));
  TANDEM_CHECK(args.cos_sin.width() % 2 == 0 && args.cos_sin.width() <= args.x.width());
}

void CheckArgs(const LatentAppendArgs& args) {
  const int64_t rows = args.kv_a.rows();
  const int64_t width = args.kv_a.width();
  TANDEM_CHECK(args.kv_a.rank == 2 && IsFloat(args.kv_a) && IsFloat(args.norm_weight));
  TANDEM_CHECK(args.cos_sin.rank == 2 && args.cos_sin.dtype == Dtype::kF32);
  TANDEM_CHECK(args.cos_sin.dim(0) == rows && args.cos_sin.width() % 2 == 0);
  TANDEM_CHECK(IsVector(args.norm_weight, width - args.cos_sin.width()));
  TANDEM_CHECK(args.pages.dtype == args.kv_a.dtype);
  TANDEM_CHECK(HasShape(args.pages, args.pages.dim(0), kPageTokens, width));
  TANDEM_CHECK(Size(args.page_ids) == rows && AllBelow(args.page_ids, args.pages.dim(0)));
  TANDEM_CHECK(Size(args.slots) == rows && AllBelow(args.slots, kPageTokens));
}

void CheckArgs(const MlaAbsorbQueryArgs& args) {
  TANDEM_CHECK(args.q.rank == 3 && IsFloat(args.q) && args.q_latent.dtype == Dtype::kF32);
  CheckKvB(args.kv_b, args.q.dim(1), 0);
  TANDEM_CHECK(HasShape(args.q_latent, args.q.dim(0), args.q.dim(1), args.kv_b.dim(1)));
  const int64_t dn = args.nope_width;
  TANDEM_CHECK(dn > 0 && dn < args.q.dim(2) && dn < args.kv_b.dim(0) / args.q.dim(1));
}

void CheckArgs(const MlaDecodeArgs& args) {
  TANDEM_CHECK(args.q.rank == 3 && args.q_latent.rank == 3 && args.pages.rank == 3);
  const int64_t rows = args.q.dim(0);
  const int64_t r = args.q_latent.dim(2);
  const int64_t dr = args.pages.dim(2) - r;
  TANDEM_CHECK(IsFloat(args.q) && args.pages.dtype == args.q.dtype);
  TANDEM_CHECK(args.q_latent.dtype == Dtype::kF32 && args.out.dtype == Dtype::kF32);
  TANDEM_CHECK(SameShape(args.q_latent, args.out) && args.pages.dim(1) == kPageTokens);
  TANDEM_CHECK(args.q_latent.dim(0) == rows && args.q_latent.dim(1) == args.q.dim(1));
  TANDEM_CHECK(dr > 0 && dr <= args.q.dim(2) && r % 8 == 0 && dr % 8 == 0);
  TANDEM_CHECK(Size(args.lengths) == rows && args.page_tables.size() == args.lengths.size());
  for (int64_t i = 0; i < rows; ++i) {
    TANDEM_CHECK(args.lengths[i] >= 1);
    const int64_t num_pages = (args.lengths[i] + kPageTokens - 1) / kPageTokens;
    TANDEM_CHECK(
        AllBelow({args.page_tables[i], static_cast<size_t>(num_pages)}, args.pages.dim(0)));
  }
}

void CheckArgs(const MlaProjectValueArgs& args) {
  TANDEM_CHECK(args.latent.rank == 3 && args.latent.dtype == Dtype::kF32 && IsFloat(args.out));
  const int64_t heads = args.latent.dim(1);
  CheckKvB(args.kv_b, heads, 0);
  TANDEM_CHECK(args.kv_b.dim(1) == args.latent.dim(2) && args.out.rank == 2);
  TANDEM_CHECK(args.out.dim(0) == args.latent.dim(0) && args.out.dim(1) % heads == 0);
  TANDEM_CHECK(args.out.dim(1) <= args.kv_b.dim(0));
}

void CheckArgs(const MlaPrefillArgs& args) {
  TANDEM_CHECK(args.q.rank == 3 && IsFloat(args.q) && args.pages.rank == 3);
  const int64_t rows = args.q.dim(0);
  const int64_t heads = args.q.dim(1);
  CheckKvB(args.kv_b, heads, 0);
  const int64_t dr = args.pages.dim(2) - args.kv_b.dim(1);
  const int64_t dn = args.q.dim(2) - dr;
  TANDEM_CHECK(args.pages.dtype == args.q.dtype && args.pages.dim(1) == kPageTokens);
  TANDEM_CHECK(dr > 0 && dn > 0 && dr % 8 == 0 && dn % 8 == 0);
  TANDEM_CHECK(args.out.dtype == args.q.dtype);
  TANDEM_CHECK(HasShape(args.out, rows, args.kv_b.dim(0) - heads * dn));
  TANDEM_CHECK(Size(args.positions) == rows && AllBelow(args.page_table, args.pages.dim(0)));
  const int64_t num_positions = Size(args.page_table) * kPageTokens;
  TANDEM_CHECK(AllBelow(args.positions, num_positions));
  for (int64_t i = 1; i < rows; ++i) TANDEM_CHECK(args.positions[i - 1] <= args.positions[i]);
}

void CheckArgs(const RouteArgs& args) {
  TANDEM_CHECK(args.x.rank == 2 && args.weight.rank == 2 && args.x.width() % 8 == 0);
  TANDEM_CHECK(IsFloat(args.x) && IsFloat(args.weight) && args.weight.dim(1) == args.x.width());
  const int64_t num_experts = args.weight.dim(0);
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
  TANDEM_CHECK(args.x.rank == 2 && IsFloat(args.x) && args.x.width() % 8 == 0);
  TANDEM_CHECK(args.out.dtype == args.x.dtype);
  TANDEM_CHECK(HasShape(args.out, Size(args.route_experts), args.x.width()));
  TANDEM_CHECK(args.route_rows.size() == args.route_experts.size());
  TANDEM_CHECK(AllBelow(args.route_rows, args.x.dim(0)));
  TANDEM_CHECK(AllBelow(args.route_experts, static_cast<int64_t>(args.experts.size())));
  if (args.route_experts.empty()) return;
  const int64_t intermediate = args.experts[args.route_experts[0]].gate.dim(0);
  TANDEM_CHECK(intermediate % 8 == 0);
  for (int32_t expert : args.route_experts) {
    const ExpertWeights& weights = args.experts[expert];
    TANDEM_CHECK(HasShape(weights.gate, intermediate, args.x.width()) && IsFloat(weights.gate));
    TANDEM_CHECK(HasShape(weights.up, intermediate, args.x.width()) && IsFloat(weights.up));
    TANDEM_CHECK(HasShape(weights.down, args.x.width(), intermediate) && IsFloat(weights.down));
  }
}

void CheckArgs(const CombineArgs& args) {
  TANDEM_CHECK(args.out.rank == 2 && IsFloat(args.out));
  TANDEM_CHECK(args.expert_rows.dtype == args.out.dtype);
  TANDEM_CHECK(
      HasShape(args.expert_rows, static_cast<int64_t>(args.weights.size()), args.out.width()));
  TANDEM_CHECK(Size(args.offsets) == args.out.dim(0) + 1);
  TANDEM_CHECK(args.offsets.front() >= 0);
  for (size_t i = 1; i < args.offsets.size(); ++i) {
    TANDEM_CHECK(args.offsets[i - 1] <= args.offsets[i]);
  }
  TANDEM_CHECK(args.offsets.back() <= static_cast<int64_t>(args.weights.size()));
}

void CheckArgs(const SampleArgs& args) {
  TANDEM_CHECK(args.logits.rank == 2 && args.logits.dtype == Dtype::kF32);
  const auto rows = static_cast<size_t>(args.logits.dim(0));
  TANDEM_CHECK(args.rows.size() == rows && args.out.size() == rows);
  TANDEM_CHECK(args.allowed.empty() ||
               static_cast<int64_t>(args.allowed.size()) == args.logits.width());
  for (const SampleRow& row : args.rows) {
    TANDEM_CHECK(row.params.temperature >= 0.0f && row.params.top_k >= 0);
    TANDEM_CHECK(row.params.top_p > 0.0f && row.params.top_p <= 1.0f);
  }
}

void CheckArgs(const LogProbArgs& args) {
  TANDEM_CHECK(args.logits.rank == 2 && args.logits.dtype == Dtype::kF32);
  const auto rows = static_cast<size_t>(args.logits.dim(0));
  TANDEM_CHECK(args.targets.size() == rows && args.out.size() == rows);
  TANDEM_CHECK(AllBelow(args.targets, args.logits.width()));
}

}  // namespace tandem::kernels::cpu

#include "attention_worker/row_outputs.h"

#include <algorithm>
#include <tuple>

namespace tandem {
namespace {

constexpr size_t kSlabRows = 64;

bool SameKind(const WantedOutput& a, const WantedOutput& b) {
  return a.kind == b.kind && a.masked == b.masked;
}

void Sample(kernels::Backend& backend, absl::Span<const WantedOutput> wanted,
            const TensorView& logits, absl::Span<const uint8_t> allowed) {
  std::vector<kernels::SampleRow> rows;
  for (const WantedOutput& output : wanted) {
    rows.push_back({output.sampling, output.result->position + 1});
  }
  std::vector<kernels::SampledToken> tokens(wanted.size());
  backend.Sample({logits, rows, allowed, absl::MakeSpan(tokens)});
  for (size_t i = 0; i < wanted.size(); ++i) {
    wanted[i].result->token = tokens[i].id;
    wanted[i].result->log_prob = tokens[i].log_prob;
  }
}

void LogProb(kernels::Backend& backend, absl::Span<const WantedOutput> wanted,
             const TensorView& logits) {
  std::vector<int32_t> targets;
  for (const WantedOutput& output : wanted) targets.push_back(output.target);
  std::vector<float> log_probs(wanted.size());
  backend.LogProb({logits, targets, absl::MakeSpan(log_probs)});
  for (size_t i = 0; i < wanted.size(); ++i) {
    wanted[i].result->token = targets[i];
    wanted[i].result->log_prob = log_probs[i];
  }
}

void CopyLogits(kernels::Backend& backend, absl::Span<const WantedOutput> wanted,
                const TensorView& logits) {
  backend.Synchronize();
  for (size_t i = 0; i < wanted.size(); ++i) {
    std::vector<float>& out = wanted[i].result->logits;
    out.resize(logits.width());
    backend.CopyToHost(logits.slice_rows(static_cast<int64_t>(i), 1), out.data());
  }
}

// Outputs of one kind.
void Compute(kernels::Backend& backend, absl::Span<const WantedOutput> wanted,
             const TensorView& logits, absl::Span<const uint8_t> ids_with_token) {
  switch (wanted[0].kind) {
    case RowOutputKind::kSample:
      return Sample(backend, wanted, logits,
                    wanted[0].masked ? ids_with_token : absl::Span<const uint8_t>());
    case RowOutputKind::kLogProb:
      return LogProb(backend, wanted, logits);
    case RowOutputKind::kLogits:
      return CopyLogits(backend, wanted, logits);
  }
}

}  // namespace

void ComputeOutputs(const AttentionModel& model, const ModelContext& context, const TensorView& x,
                    absl::Span<const uint8_t> ids_with_token, std::vector<WantedOutput> wanted) {
  // Outputs of one kind side by side: each slab needs few calls, whatever is mixed in it.
  std::stable_sort(wanted.begin(), wanted.end(), [](const auto& a, const auto& b) {
    return std::tuple(a.kind, a.masked) < std::tuple(b.kind, b.masked);
  });
  for (size_t next = 0; next < wanted.size();) {
    std::vector<WantedOutput> slab;
    std::vector<int32_t> pass_rows;
    for (; next < wanted.size() && slab.size() < kSlabRows; ++next) {
      if (wanted[next].cancelled->load()) continue;
      slab.push_back(wanted[next]);
      pass_rows.push_back(wanted[next].pass_row);
    }
    if (slab.empty()) return;
    const auto num_rows = static_cast<int64_t>(slab.size());
    Workspace::Scope scope(context.workspace);
    const TensorView rows = context.workspace->Take(x.dtype, {num_rows, x.width()});
    context.backend->Embed({x, pass_rows, rows});
    const TensorView logits =
        context.workspace->Take(Dtype::kF32, {num_rows, model.config().vocab_size});
    model.Logits(context, rows, logits);
    for (size_t first = 0; first < slab.size();) {
      size_t end = first + 1;
      while (end < slab.size() && SameKind(slab[first], slab[end])) ++end;
      Compute(*context.backend, absl::MakeConstSpan(slab).subspan(first, end - first),
              logits.slice_rows(first, end - first), ids_with_token);
      first = end;
    }
  }
}

}  // namespace tandem

#include "attention_worker/row_outputs.h"

#include <algorithm>
#include <tuple>

namespace tandem {
namespace {

using kernels::DeviceTensor;

constexpr size_t kSlabRows = 64;
constexpr size_t kAdjustmentsAtOnce = 1 << 16;  // 1.3 MB of the device's memory

// Outputs of one kind are computed by one call of each op.
auto Kind(const WantedOutput& output) {
  const bool wants_top = output.spec != nullptr && output.spec->top_logprobs > 0;
  return std::tuple(output.kind, output.masked(), !output.adjustments.empty(), wants_top);
}

// Computes one kind of outputs, whose logits are the rows of `logits`.
class OutputReader {
 public:
  OutputReader(kernels::Backend* backend, Workspace* workspace,
               absl::Span<const WantedOutput> wanted, const DeviceTensor& logits)
      : backend_(*backend),
        workspace_(*workspace),
        wanted_(wanted),
        num_rows_(static_cast<int64_t>(wanted.size())),
        logits_(logits) {}

  void Sample(const DeviceTensor& allowed) {
    std::vector<kernels::SampleRow> rows(wanted_.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i] = kernels::MakeSampleRow(wanted_[i].spec->sampling, wanted_[i].result->position + 1);
    }
    const auto device_rows = Put(rows.data(), Dtype::kU8, sizeof(kernels::SampleRow));
    const DeviceTensor adjusted = Adjusted();
    const auto out = workspace_.Take(
        Dtype::kU8, {num_rows_, static_cast<int64_t>(sizeof(kernels::SampledToken))});
    if (adjusted.empty()) {
      backend_.Sample({logits_, device_rows, allowed, out});
    } else {
      backend_.Sample({adjusted, device_rows, allowed, out, logits_});
    }
    std::vector<kernels::SampledToken> tokens(wanted_.size());
    backend_.Read(out, tokens.data())->Wait();
    for (size_t i = 0; i < tokens.size(); ++i) {
      wanted_[i].result->token = tokens[i].id;
      wanted_[i].result->log_prob = tokens[i].log_prob;
    }
  }

  void TopLogProbs(const DeviceTensor& allowed) {
    int64_t count = 0;
    for (const WantedOutput& output : wanted_) {
      count = std::max<int64_t>(count, output.spec->top_logprobs);
    }
    if (count == 0) return;
    const auto device_ids = workspace_.Take(Dtype::kI32, {num_rows_, count});
    const auto device_log_probs = workspace_.Take(Dtype::kF32, {num_rows_, count});
    backend_.TopLogProbs({logits_, allowed, device_ids, device_log_probs});
    std::vector<int32_t> ids(static_cast<size_t>(num_rows_ * count));
    std::vector<float> log_probs(ids.size());
    const auto ids_read = backend_.Read(device_ids, ids.data());
    backend_.Read(device_log_probs, log_probs.data())->Wait();
    ids_read->Wait();
    for (size_t i = 0; i < wanted_.size(); ++i) {
      for (int32_t k = 0; k < wanted_[i].spec->top_logprobs; ++k) {
        const size_t place = i * static_cast<size_t>(count) + static_cast<size_t>(k);
        if (ids[place] < 0) break;
        wanted_[i].result->top.push_back({ids[place], log_probs[place]});
      }
    }
  }

  void LogProb() {
    std::vector<int32_t> targets;
    for (const WantedOutput& output : wanted_) targets.push_back(output.target);
    const auto out = workspace_.Take(Dtype::kF32, {num_rows_});
    backend_.LogProb({logits_, Put(targets.data(), Dtype::kI32, 1).reshaped({num_rows_}), out});
    std::vector<float> log_probs(wanted_.size());
    backend_.Read(out, log_probs.data())->Wait();
    for (size_t i = 0; i < log_probs.size(); ++i) {
      wanted_[i].result->token = targets[i];
      wanted_[i].result->log_prob = log_probs[i];
    }
  }

  void Logits() {
    std::unique_ptr<kernels::DeviceEvent> last;
    for (int64_t i = 0; i < num_rows_; ++i) {
      std::vector<float>& out = wanted_[i].result->logits;
      out.resize(logits_.width());
      last = backend_.Read(logits_.slice_rows(i, 1), out.data());
    }
    last->Wait();
  }

 private:
  // The logits that are drawn from; empty: the model's own.
  DeviceTensor Adjusted() {
    std::vector<kernels::LogitAdjustment> adjustments;
    for (size_t i = 0; i < wanted_.size(); ++i) {
      for (const kernels::LogitAdjustment& adjustment : wanted_[i].adjustments) {
        adjustments.push_back(adjustment);
        adjustments.back().row = static_cast<int32_t>(i);
      }
    }
    if (adjustments.empty()) return {};
    const auto adjusted = workspace_.Take(Dtype::kF32, {num_rows_, logits_.width()});
    backend_.Copy(logits_, adjusted);
    const size_t most = std::min(adjustments.size(), kAdjustmentsAtOnce);
    const auto device_adjustments = workspace_.Take(
        Dtype::kU8,
        {static_cast<int64_t>(most), static_cast<int64_t>(sizeof(kernels::LogitAdjustment))});
    for (size_t first = 0; first < adjustments.size(); first += most) {
      const size_t count = std::min(most, adjustments.size() - first);
      const auto part = device_adjustments.slice_rows(0, static_cast<int64_t>(count));
      backend_.Write(&adjustments[first], part);
      backend_.AdjustLogits({adjusted, part});
    }
    return adjusted;
  }

  // [rows, width], from the host.
  DeviceTensor Put(const void* values, Dtype dtype, size_t width) {
    const auto tensor = workspace_.Take(dtype, {num_rows_, static_cast<int64_t>(width)});
    backend_.Write(values, tensor);
    return tensor;
  }

  kernels::Backend& backend_;
  Workspace& workspace_;
  const absl::Span<const WantedOutput> wanted_;
  const int64_t num_rows_;
  const DeviceTensor& logits_;
};

}  // namespace

void ComputeOutputs(const AttentionModel& model, const ModelContext& context, Workspace* workspace,
                    const DeviceTensor& x, const DeviceTensor& ids_with_token,
                    std::vector<WantedOutput> wanted) {
  kernels::Backend& backend = *context.backend;
  // Outputs of one kind side by side: each slab needs few calls, whatever is mixed in it.
  std::stable_sort(wanted.begin(), wanted.end(),
                   [](const auto& a, const auto& b) { return Kind(a) < Kind(b); });
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
    Workspace::Scope scope(workspace);
    const DeviceTensor row_ids = workspace->Take(Dtype::kI32, {num_rows});
    backend.Write(pass_rows.data(), row_ids);
    const DeviceTensor rows = workspace->Take(x.dtype, {num_rows, x.width()});
    backend.GatherRows({x, row_ids, rows});
    const DeviceTensor logits = workspace->Take(Dtype::kF32, {num_rows, model.config().vocab_size});
    model.Logits(context, workspace, rows, logits);
    for (size_t first = 0; first < slab.size();) {
      size_t end = first + 1;
      while (end < slab.size() && Kind(slab[first]) == Kind(slab[end])) ++end;
      const DeviceTensor slab_logits =
          logits.slice_rows(static_cast<int64_t>(first), static_cast<int64_t>(end - first));
      OutputReader reader(&backend, workspace,
                          absl::MakeConstSpan(slab).subspan(first, end - first), slab_logits);
      switch (slab[first].kind) {
        case RowOutputKind::kSample: {
          const DeviceTensor allowed = slab[first].masked() ? ids_with_token : DeviceTensor();
          reader.Sample(allowed);
          reader.TopLogProbs(allowed);
          break;
        }
        case RowOutputKind::kLogProb:
          reader.LogProb();
          break;
        case RowOutputKind::kLogits:
          reader.Logits();
          break;
      }
      first = end;
    }
  }
}

}  // namespace tandem

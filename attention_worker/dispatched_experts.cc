#include "attention_worker/dispatched_experts.h"

#include <utility>
#include <vector>

namespace tandem {

class DispatchedExperts::OneLayer final : public Pending {
 public:
  OneLayer(DispatchedExperts* experts, const ExpertBatch& batch, std::function<void()> changed)
      : experts_(*experts),
        batch_(batch),
        changed_(std::move(changed)),
        rows_(experts_.rows_pool_.Take(batch.rows.dtype, {batch.rows.dim(0), batch.rows.width()})),
        expert_ids_(batch.expert_ids.elements()),
        weights_(batch.weights.elements()) {
    kernels::Backend& backend = experts_.backend_;
    events_.push_back(backend.Read(batch.rows, rows_.view.data));
    events_.push_back(backend.Read(batch.expert_ids, expert_ids_.data()));
    events_.push_back(backend.Read(batch.weights, weights_.data()));
    if (events_.back()->Reached()) {
      Dispatch();
    } else {
      events_.back()->WhenReached(changed_);
    }
  }
  ~OneLayer() override {
    for (const auto& event : events_) event->Wait();  // it reads into this
  }

  std::optional<absl::Status> Poll() override {
    if (pending_ == nullptr) {
      if (!events_.back()->Reached()) return std::nullopt;
      Dispatch();
    }
    std::optional<absl::Status> status = pending_->Poll();
    if (!status.has_value() || !status->ok()) return status;
    batch_.clock->End(LayerPart::kExpertWait);
    PutRows(pending_->rows());
    return status;
  }

  Clock::time_point wake_time() const override {
    return pending_ == nullptr ? Clock::time_point::max() : pending_->wake_time();
  }

 private:
  void Dispatch() {
    batch_.clock->End(LayerPart::kAttention);
    RowBatch batch;
    batch.step = batch_.step;
    batch.layer = batch_.layer;
    batch.rows = rows_.view;
    batch.rows_owner = rows_.memory;
    batch.expert_ids = expert_ids_.data();
    batch.weights = weights_.data();
    batch.traces = batch_.traces;
    batch.top_k = static_cast<int>(batch_.expert_ids.width());
    pending_ = experts_.dispatcher_.Dispatch(batch, changed_);
    batch_.clock->End(LayerPart::kDispatch);
  }

  // Each run of rows that came back in the same way is put onto the device by one call.
  void PutRows(const ExpertRows& rows) {
    kernels::Backend& backend = experts_.backend_;
    const int64_t num_rows = batch_.rows.dim(0);
    const int64_t top_k = batch_.expert_ids.width();
    for (int64_t begin = 0; begin < num_rows;) {
      int64_t end = begin + 1;
      while (end < num_rows && rows.combined[end] == rows.combined[begin]) ++end;
      const int64_t count = end - begin;
      const auto out = batch_.out.slice_rows(begin, count);
      if (rows.combined[begin]) {
        backend.Write(rows.combined_rows.row(begin), out);
      } else {
        Workspace::Scope scope(batch_.workspace);
        const auto expert_rows = batch_.workspace->Take(out.dtype, {count * top_k, out.width()});
        backend.Write(rows.expert_rows.row(begin * top_k), expert_rows);
        const auto weights = batch_.weights.slice_rows(begin, count).reshaped({count * top_k});
        backend.Combine({expert_rows, experts_.pattern_.Offsets(count), weights, out});
      }
      begin = end;
    }
  }

  DispatchedExperts& experts_;
  const ExpertBatch batch_;
  const std::function<void()> changed_;
  const OwnedTensor rows_;
  std::vector<int32_t> expert_ids_;
  std::vector<float> weights_;
  std::vector<std::unique_ptr<kernels::DeviceEvent>> events_;
  std::unique_ptr<ExpertDispatcher::Pending> pending_;
};

std::unique_ptr<RoutedExperts::Pending> DispatchedExperts::Begin(const ExpertBatch& batch,
                                                                 std::function<void()> changed) {
  return std::make_unique<OneLayer>(this, batch, std::move(changed));
}

}  // namespace tandem

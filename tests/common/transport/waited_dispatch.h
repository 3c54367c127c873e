// A dispatched layer that a test waits for: as an engine would, but for this layer alone.
#ifndef TANDEM_TESTS_COMMON_TRANSPORT_WAITED_DISPATCH_H_
#define TANDEM_TESTS_COMMON_TRANSPORT_WAITED_DISPATCH_H_

#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "common/transport/expert_dispatcher.h"

namespace tandem {

// Sums a row's expert rows: (expert_rows [top_k, hidden], weights [top_k], out [1, hidden]).
using RowCombine = std::function<void(const TensorView&, const float*, const TensorView&)>;

class WaitedDispatch {
 public:
  WaitedDispatch(ExpertDispatcher* dispatcher, const RowBatch& batch)
      : batch_(batch), weights_(batch.weights, batch.weights + batch.rows.rows() * batch.top_k) {
    pending_ = dispatcher->Dispatch(batch, [this] {
      std::lock_guard<std::mutex> lock(mutex_);
      changed_ = true;
      wake_.notify_all();
    });
  }

  // Looks only when it is told to, or when its time has come: a change that nobody tells of hangs.
  absl::Status Wait() {
    while (true) {
      if (const auto status = pending_->Poll(); status.has_value()) return *status;
      ++polls_;
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait_until(lock, pending_->wake_time(), [this] { return changed_; });
      changed_ = false;
    }
  }
  // Waits, and puts every row's sum into `out`.
  absl::Status Wait(const RowCombine& combine, const TensorView& out) {
    if (absl::Status status = Wait(); !status.ok()) return status;
    const ExpertRows rows = pending_->rows();
    const size_t row_bytes = static_cast<size_t>(out.width()) * DtypeBytes(out.dtype);
    for (int64_t i = 0; i < out.rows(); ++i) {
      if (rows.combined[i]) {
        std::memcpy(out.row(i), rows.combined_rows.row(i), row_bytes);
      } else {
        combine(rows.expert_rows.slice_rows(i * batch_.top_k, batch_.top_k),
                weights_.data() + i * batch_.top_k, out.slice_rows(i, 1));
      }
    }
    return absl::OkStatus();
  }

  void Abandon() { pending_.reset(); }
  // Times that Poll had nothing.
  int polls() const { return polls_; }

 private:
  const RowBatch batch_;
  const std::vector<float> weights_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool changed_ = false;  // guarded by mutex_
  int polls_ = 0;
  std::unique_ptr<ExpertDispatcher::Pending> pending_;  // first to go
};

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_WAITED_DISPATCH_H_

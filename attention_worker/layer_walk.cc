#include "attention_worker/layer_walk.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/log_scope.h"
#include "spdlog/spdlog.h"

namespace tandem {

LayerWalk::LayerWalk(const AttentionModel* model, const ModelContext* context, EngineCounts* counts,
                     std::function<void()> experts_changed, LayerClock clock)
    : model_(*model),
      context_(*context),
      counts_(*counts),
      clock_(std::move(clock)),
      workspace_(context->backend),
      inputs_(context->backend) {
  pass_.inputs = &inputs_;
  pass_.workspace = &workspace_;
  pass_.experts_changed = std::move(experts_changed);
  pass_.clock = &clock_;
}

void LayerWalk::Start(StepId step, std::vector<Active> active) {
  pass_.step = step;
  status_ = absl::OkStatus();
  active_ = std::move(active);
  std::sort(active_.begin(), active_.end(),
            [](const Active& a, const Active& b) { return a.batch->order < b.batch->order; });
}

LayerWalk::State LayerWalk::Proceed() {
  if (in_layer_) {
    if (in_flight_.experts != nullptr) {
      if (plan_.AllEnded()) {
        LeaveLayer();
        EndPass();
        return State::kMoved;
      }
      const std::optional<absl::Status> status = in_flight_.experts->Poll();
      if (!status.has_value()) return State::kWaiting;
      if (!status->ok()) {
        const LogScope scope(FieldsOf(Tags()));
        spdlog::warn("step {} stops: {}", pass_.step, std::string(status->message()));
        LeaveLayer();
        EndPass();
        return Finish(*status);
      }
    }
    model_.FinishLayer(context_, pass_, in_flight_);
    LeaveLayer();
    ++layer_;
    for (Batch* batch : batches_) batch->next_layer = layer_;
    return State::kMoved;
  }
  if (in_pass_ && (layer_ == end_layer_ || plan_.AnyEnded())) EndPass();
  if (!in_pass_ && !BeginPass()) return Finish(absl::OkStatus());
  if (!in_pass_) return State::kMoved;
  counts_.expanded_row_layers_total += plan_.rows.num_expanded();
  counts_.absorbed_row_layers_total += plan_.rows.num_absorbed();
  clock_.Begin(layer_);
  in_flight_ = model_.BeginLayer(context_, pass_, layer_);
  in_layer_ = true;
  return State::kMoved;
}

LayerWalk::State LayerWalk::Finish(absl::Status status) {
  status_ = std::move(status);
  return State::kDone;
}

void LayerWalk::LeaveLayer() {
  in_flight_ = {};
  in_layer_ = false;
  ++counts_.layers_total;
}

// Finds the lowest layer that is wanted next, who is in it, and how far nothing changes, and brings
// the rows together. False: every batch is where it is to go.
bool LayerWalk::BeginPass() {
  const int32_t num_layers = model_.config().num_layers;
  layer_ = end_layer_ = num_layers;
  for (const Active& a : active_) {
    if (a.batch->next_layer < a.end_layer) layer_ = std::min(layer_, a.batch->next_layer);
  }
  if (layer_ == num_layers) return false;
  batches_.clear();
  for (const Active& a : active_) {
    if (a.batch->next_layer >= a.end_layer) continue;
    if (a.batch->next_layer == layer_) {
      batches_.push_back(a.batch);
      end_layer_ = std::min(end_layer_, a.end_layer);
    } else {
      end_layer_ = std::min(end_layer_, a.batch->next_layer);
    }
  }

  plan_ = MakeRowPlan(batches_);
  pass_.traces = ChooseTraces(Tags());
  const int64_t num_rows = plan_.rows.num_rows();
  if (num_rows == 0) {
    for (Batch* batch : batches_) batch->next_layer = end_layer_;
    return true;
  }
  const ModelConfig& config = model_.config();
  in_pass_ = true;
  workspace_.Clear();
  inputs_.Put(plan_.rows);
  pass_.rows = &plan_.rows;
  pass_.x = workspace_.Take(model_.dtype(), {num_rows, config.hidden_size});
  pass_.cos_sin = workspace_.Take(Dtype::kF32, {num_rows, config.qk_rope_head_dim});
  model_.RopeTable(context_, inputs_.positions, pass_.cos_sin);
  for (const RowPlan::BatchSlice& slice : plan_.slices) {
    const auto x = pass_.x.slice_rows(slice.pass_row, slice.num_rows);
    if (slice.batch->next_layer == 0) {
      model_.Embed(context_, inputs_.token_ids.slice(slice.pass_row, slice.num_rows), x);
    } else {
      context_.backend->Copy(Hidden(slice.batch).slice_rows(slice.batch_row, slice.num_rows), x);
    }
  }
  return true;
}

std::vector<const RequestTag*> LayerWalk::Tags() const {
  std::vector<const RequestTag*> tags;
  for (const auto& sequence : plan_.sequences) tags.push_back(&sequence->spec.tag);
  return tags;
}

// Keeps the rows that have layers before them.
void LayerWalk::EndPass() {
  in_pass_ = false;
  for (const RowPlan::BatchSlice& slice : plan_.slices) {
    Batch* batch = slice.batch;
    if (batch->next_layer == 0 || batch->next_layer == model_.config().num_layers) continue;
    if (batch->live_rows() == 0) continue;
    context_.backend->Copy(pass_.x.slice_rows(slice.pass_row, slice.num_rows),
                           Hidden(batch).slice_rows(slice.batch_row, slice.num_rows));
  }
}

kernels::DeviceTensor LayerWalk::Hidden(Batch* batch) {
  const int64_t hidden = model_.config().hidden_size;
  if (batch->hidden == nullptr) {
    const TensorLayout layout(model_.dtype(), {batch->num_rows, hidden});
    auto buffer = context_.backend->Allocate(layout.bytes());
    TANDEM_CHECK(buffer.ok());
    batch->hidden = *std::move(buffer);
  }
  return batch->hidden->Tensor(model_.dtype(), {batch->num_rows, hidden});
}

}  // namespace tandem

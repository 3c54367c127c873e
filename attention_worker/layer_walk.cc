#include "attention_worker/layer_walk.h"

#include <algorithm>
#include <numeric>

#include "common/check.h"

namespace tandem {

absl::Status LayerWalk::Run(uint64_t step, std::vector<Active> active,
                            const std::function<bool()>& end_cancelled) {
  plan_ = {};
  pass_ = {};
  pass_.step = step;
  pass_.cancelled = [this] {
    return std::all_of(plan_.sequences.begin(), plan_.sequences.end(),
                       [](const Sequence* sequence) { return sequence->cancelled.load(); });
  };
  std::sort(active.begin(), active.end(),
            [](const Active& a, const Active& b) { return a.batch->order < b.batch->order; });

  while (true) {
    // The lowest layer that is wanted next, who is in it, and how far nothing changes.
    int32_t layer = model_.config().num_layers;
    for (const Active& a : active) {
      if (a.batch->next_layer < a.end_layer) layer = std::min(layer, a.batch->next_layer);
    }
    if (layer == model_.config().num_layers) return absl::OkStatus();
    int32_t change = model_.config().num_layers;
    std::vector<Batch*> batches;
    for (const Active& a : active) {
      if (a.batch->next_layer >= a.end_layer) continue;
      if (a.batch->next_layer == layer) {
        batches.push_back(a.batch);
        change = std::min(change, a.end_layer);
      } else {
        change = std::min(change, a.batch->next_layer);
      }
    }

    end_cancelled();
    plan_ = MakeRowPlan(batches);
    if (plan_.rows.num_rows() == 0) {
      for (Batch* batch : batches) batch->next_layer = change;
      continue;
    }
    LoadRows();
    absl::Status status;
    while (layer < change) {
      status = RunLayer(layer);
      if (!status.ok()) break;
      ++layer;
      for (Batch* batch : batches) batch->next_layer = layer;
      if (end_cancelled()) break;
    }
    KeepRows();
    if (!status.ok() && !absl::IsCancelled(status)) return status;
  }
}

absl::Status LayerWalk::RunLayer(int layer) {
  counts_.expanded_row_layers_total += plan_.rows.num_expanded();
  counts_.absorbed_row_layers_total += plan_.rows.num_absorbed();
  absl::Status status = model_.RunLayer(context_, pass_, layer);
  ++counts_.layers_total;
  return status;
}

void LayerWalk::LoadRows() {
  const ModelConfig& config = model_.config();
  const int64_t num_rows = plan_.rows.num_rows();
  Workspace& workspace = *context_.workspace;
  workspace.Clear();
  pass_.rows = &plan_.rows;
  pass_.x = workspace.Take(model_.dtype(), {num_rows, config.hidden_size});
  pass_.cos_sin = workspace.Take(Dtype::kF32, {num_rows, config.qk_rope_head_dim});
  model_.RopeTable(context_, plan_.rows, pass_.cos_sin);
  for (const RowPlan::Piece& piece : plan_.pieces) {
    const TensorView x = pass_.x.slice_rows(piece.pass_row, piece.num_rows);
    if (piece.batch->next_layer == 0) {
      EmbedPiece(piece, x);
    } else {
      CopyRows(Hidden(piece.batch).slice_rows(piece.batch_row, piece.num_rows), x);
    }
  }
}

void LayerWalk::KeepRows() {
  for (const RowPlan::Piece& piece : plan_.pieces) {
    Batch* batch = piece.batch;
    if (batch->next_layer == 0 || batch->next_layer == model_.config().num_layers) continue;
    if (batch->live_rows() == 0) continue;
    CopyRows(pass_.x.slice_rows(piece.pass_row, piece.num_rows),
             Hidden(batch).slice_rows(piece.batch_row, piece.num_rows));
  }
}

void LayerWalk::EmbedPiece(const RowPlan::Piece& piece, const TensorView& x) {
  std::vector<int32_t> ids;
  const int32_t end = piece.batch_row + piece.num_rows;
  for (const Batch::Run& run : piece.batch->runs) {
    const int32_t from = std::max(run.first_row, piece.batch_row);
    const int32_t to = std::min(run.first_row + run.num_rows, end);
    for (int32_t row = from; row < to; ++row) {
      ids.push_back(run.sequence->spec.token_ids[run.first_position + row - run.first_row]);
    }
  }
  model_.Embed(context_, ids, x);
}

void LayerWalk::CopyRows(const TensorView& from, const TensorView& to) {
  const auto num_rows = static_cast<size_t>(from.dim(0));
  if (iota_.size() < num_rows) {
    iota_.resize(num_rows);
    std::iota(iota_.begin(), iota_.end(), 0);
  }
  context_.backend->Embed({from, absl::MakeConstSpan(iota_.data(), num_rows), to});
}

TensorView LayerWalk::Hidden(Batch* batch) {
  TensorView view(nullptr, model_.dtype(), {batch->num_rows, model_.config().hidden_size});
  if (batch->hidden == nullptr) {
    auto buffer = context_.backend->Allocate(view.bytes());
    TANDEM_CHECK(buffer.ok());
    batch->hidden = *std::move(buffer);
  }
  view.data = batch->hidden->data();
  return view;
}

}  // namespace tandem

#include "common/transport/expert_split.h"

#include <cstring>

#include "absl/container/flat_hash_map.h"

namespace tandem {
namespace {

using Choice = std::optional<WorkerId>;

// Builds the parts, one row of the batch after the other.
class Splitter {
 public:
  explicit Splitter(const RowBatch& batch) : batch_(batch) {}

  void Add(int32_t route, WorkerId worker, bool combined) {
    const int32_t row = route / batch_.top_k;
    ExpertPart& part = PartOf(worker);
    ExpertRequest& request = *part.request;
    if (part.rows.empty() || part.rows.back() != row) {
      part.rows.push_back(row);
      request.combined.push_back(combined ? 1 : 0);
      request.route_offsets.push_back(request.route_offsets.back());
    }
    part.routes.push_back(route);
    ++request.route_offsets.back();
    request.route_experts.push_back(batch_.expert_ids[route]);
    request.route_weights.push_back(batch_.weights[route]);
  }

  std::vector<ExpertPart> Finish() {
    for (ExpertPart& part : parts_) AttachRows(part);
    return std::move(parts_);
  }

 private:
  ExpertPart& PartOf(WorkerId worker) {
    for (ExpertPart& part : parts_) {
      if (part.worker == worker) return part;
    }
    ExpertPart part;
    part.worker = worker;
    part.request = std::make_shared<ExpertRequest>();
    part.request->route_offsets.push_back(0);
    parts_.push_back(std::move(part));
    return parts_.back();
  }

  void AttachRows(ExpertPart& part) {
    const int64_t num_rows = static_cast<int64_t>(part.rows.size());
    const int64_t hidden = batch_.rows.width();
    ExpertRequest& request = *part.request;
    if (num_rows == batch_.rows.rows() && batch_.rows_owner != nullptr) {
      request.rows = batch_.rows;
      request.rows_owner = batch_.rows_owner;
      return;
    }
    const size_t row_bytes = static_cast<size_t>(hidden) * DtypeBytes(batch_.rows.dtype);
    std::shared_ptr<std::byte[]> gathered(new std::byte[num_rows * row_bytes]);
    for (int64_t i = 0; i < num_rows; ++i) {
      std::memcpy(gathered.get() + i * row_bytes, batch_.rows.row(part.rows[i]), row_bytes);
    }
    request.rows = TensorView(gathered.get(), batch_.rows.dtype, {num_rows, hidden});
    request.rows_owner = std::move(gathered);
  }

  const RowBatch& batch_;
  std::vector<ExpertPart> parts_;
};

}  // namespace

ExpertSplit SplitRoutes(const RowBatch& batch, absl::Span<const int32_t> routes,
                        const std::function<std::optional<WorkerId>(int expert)>& choose) {
  absl::flat_hash_map<int32_t, Choice> chosen;
  const auto worker_of = [&](int32_t route) {
    const int32_t expert = batch.expert_ids[route];
    const auto [it, is_new] = chosen.try_emplace(expert);
    if (is_new) it->second = choose(expert);
    return it->second;
  };

  ExpertSplit split;
  Splitter splitter(batch);
  for (size_t begin = 0; begin < routes.size();) {
    const int32_t row = routes[begin] / batch.top_k;
    const Choice first = worker_of(routes[begin]);
    bool one_worker = first.has_value();
    size_t end = begin;
    for (; end < routes.size() && routes[end] / batch.top_k == row; ++end) {
      one_worker = one_worker && worker_of(routes[end]) == first;
    }
    const bool combined = one_worker && end - begin == static_cast<size_t>(batch.top_k);
    for (; begin < end; ++begin) {
      const Choice worker = worker_of(routes[begin]);
      if (worker.has_value()) {
        splitter.Add(routes[begin], *worker, combined);
      } else {
        split.unplaced.push_back(routes[begin]);
      }
    }
  }
  split.parts = splitter.Finish();
  return split;
}

}  // namespace tandem

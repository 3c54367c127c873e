#include "common/transport/gathered_rows.h"

#include <algorithm>
#include <cstring>

namespace tandem {

bool GatheredRows::HasRow(int64_t row) const {
  const auto begin = answered_.begin() + row * top_k_;
  return std::all_of(begin, begin + top_k_, [](uint8_t answered) { return answered != 0; });
}

void GatheredRows::Mark(int32_t route) {
  if (has(route)) return;
  answered_[route] = 1;
  --num_missing_;
}

int64_t GatheredRows::Take(const ExpertPart& part, const ExpertReply& reply, HostRowsPool* pool) {
  const ExpertRequest& request = *part.request;
  const Dtype dtype = reply.rows.dtype;
  const int64_t hidden = reply.rows.width();
  const size_t row_bytes = static_cast<size_t>(hidden) * DtypeBytes(dtype);
  int64_t next = 0, taken = 0;
  const auto copy = [&](OwnedTensor* to, int64_t num_rows, int64_t row) {
    if (to->view.empty()) *to = pool->Take(dtype, {num_rows, hidden});
    std::memcpy(to->view.row(row), reply.rows.row(next), row_bytes);
    ++taken;
  };
  for (int i = 0; i < request.num_rows(); ++i) {
    const int32_t row = part.rows[i];
    if (request.combined[i]) {
      if (!HasRow(row)) {
        copy(&combined_rows_, num_rows_, row);
        combined_[row] = 1;
        for (int k = 0; k < top_k_; ++k) Mark(row * top_k_ + k);
      }
      ++next;
      continue;
    }
    for (int t = request.route_offsets[i]; t < request.route_offsets[i + 1]; ++t, ++next) {
      const int32_t route = part.routes[t];
      if (has(route)) continue;
      copy(&expert_rows_, num_rows_ * top_k_, route);
      Mark(route);
    }
  }
  return taken;
}

}  // namespace tandem

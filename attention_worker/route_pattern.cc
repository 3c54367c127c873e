#include "attention_worker/route_pattern.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace tandem {

kernels::DeviceTensor RoutePattern::RowsOfRoutes(int64_t num_rows) {
  Reserve(num_rows);
  return rows_->Tensor(Dtype::kI32, {num_rows * top_k_});
}

kernels::DeviceTensor RoutePattern::Offsets(int64_t num_rows) {
  Reserve(num_rows);
  return offsets_->Tensor(Dtype::kI32, {num_rows + 1});
}

void RoutePattern::Reserve(int64_t num_rows) {
  if (num_rows <= capacity_) return;
  capacity_ = std::max<int64_t>(2 * capacity_, num_rows);
  std::vector<int32_t> rows(capacity_ * top_k_);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i / top_k_);
  std::vector<int32_t> offsets(capacity_ + 1);
  for (size_t i = 0; i < offsets.size(); ++i) offsets[i] = static_cast<int32_t>(i * top_k_);
  const auto put = [this](const std::vector<int32_t>& values) {
    auto buffer = backend_->Allocate(values.size() * sizeof(int32_t));
    TANDEM_CHECK(buffer.ok());
    const auto size = static_cast<int64_t>(values.size());
    backend_->Write(values.data(), (*buffer)->Tensor(Dtype::kI32, {size}));
    return *std::move(buffer);
  };
  rows_ = put(rows);
  offsets_ = put(offsets);
}

}  // namespace tandem

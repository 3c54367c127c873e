// Which row each route is of, and where each row's routes begin, when every row has top_k of them:
// the same for every layer and step, so it is put on the device once.
#ifndef TANDEM_ATTENTION_WORKER_ROUTE_PATTERN_H_
#define TANDEM_ATTENTION_WORKER_ROUTE_PATTERN_H_

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace tandem {

// Belongs to one thread. A device without memory for it ends the process.
class RoutePattern {
 public:
  RoutePattern(kernels::Backend* backend, int top_k) : backend_(backend), top_k_(top_k) {}

  // [num_rows * top_k] i32: i / top_k.
  kernels::DeviceTensor RowsOfRoutes(int64_t num_rows);
  // [num_rows + 1] i32: i * top_k.
  kernels::DeviceTensor Offsets(int64_t num_rows);

 private:
  void Reserve(int64_t num_rows);

  kernels::Backend* const backend_;
  const int64_t top_k_;
  int64_t capacity_ = 0;  // rows
  std::unique_ptr<kernels::Buffer> rows_;
  std::unique_ptr<kernels::Buffer> offsets_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_ROUTE_PATTERN_H_

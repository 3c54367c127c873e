// What has come back for a layer's rows, each route once, whoever answered first.
#ifndef TANDEM_COMMON_TRANSPORT_GATHERED_ROWS_H_
#define TANDEM_COMMON_TRANSPORT_GATHERED_ROWS_H_

#include <cstdint>
#include <vector>

#include "common/tensor.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/expert_split.h"
#include "common/transport/host_rows.h"

namespace tandem {

// A route may have been asked of several workers. Their rows are the same to the bit, and so is a
// row that one of them has combined; the first that comes is taken.
class GatheredRows {
 public:
  GatheredRows(int64_t num_rows, int top_k)
      : num_rows_(num_rows),
        top_k_(top_k),
        num_missing_(num_rows * top_k),
        answered_(num_rows * top_k, 0),
        combined_(num_rows, 0) {}

  bool complete() const { return num_missing_ == 0; }
  bool has(int32_t route) const { return answered_[route] != 0; }

  // Takes what is still missing from a reply that answers the part. Returns how many rows that was.
  int64_t Take(const ExpertPart& part, const ExpertReply& reply, HostRowsPool* pool);

  // Once complete; valid as long as this is.
  ExpertRows rows() const { return {combined_, combined_rows_.view, expert_rows_.view}; }

 private:
  bool HasRow(int64_t row) const;
  void Mark(int32_t route);

  const int64_t num_rows_;
  const int top_k_;
  int64_t num_missing_;            // routes
  std::vector<uint8_t> answered_;  // [routes]
  std::vector<uint8_t> combined_;  // [rows], 1: its row is in combined_rows_
  OwnedTensor combined_rows_;      // [rows, hidden]; empty until there is one
  OwnedTensor expert_rows_;        // [routes, hidden]; likewise
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_GATHERED_ROWS_H_

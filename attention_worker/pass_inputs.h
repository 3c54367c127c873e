// What changes from pass to pass (ids, positions, page tables, lengths, slots): gathered on the
// host, put into device memory by one transfer, and read there by every layer's ops.
#ifndef TANDEM_ATTENTION_WORKER_PASS_INPUTS_H_
#define TANDEM_ATTENTION_WORKER_PASS_INPUTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace tandem {

// The rows that travel some layers together, and what they see: those in the absorbed form first,
// then those in the expanded form, sequence by sequence (docs/architecture.md, "One form per
// position").
struct PassRows {
  // The rows of one sequence in the expanded form: one call of MlaExpanded.
  struct Expanded {
    int32_t first_row = 0;
    int32_t num_rows = 0;
    int32_t table = 0;  // index into page_tables
  };

  std::vector<int32_t> token_ids;     // [rows]; 0 where the row is past the embedding
  std::vector<int32_t> positions;     // [rows]; ascending within an Expanded
  std::vector<int32_t> page_ids;      // [rows] where the row's latent is kept
  std::vector<int32_t> slots;         // [rows]
  std::vector<int32_t> table_of_row;  // [absorbed rows]
  std::vector<int32_t> lengths;       // [absorbed rows] keys that the row sees
  std::vector<absl::Span<const int32_t>> page_tables;  // by sequence
  std::vector<Expanded> expanded;

  int64_t num_rows() const { return static_cast<int64_t>(positions.size()); }
  int64_t num_absorbed() const { return static_cast<int64_t>(lengths.size()); }
  int64_t num_expanded() const { return num_rows() - num_absorbed(); }
};

// Device buffers of fixed capacities: while rows, tables and pages of a table stay within them,
// each tensor has the same address and page_tables the same width, whatever the pass, so that a
// recorded pass can be run again. A capacity that is exceeded at least doubles. Belongs to one
// thread. A device without memory for it ends the process.
class PassInputs {
 public:
  explicit PassInputs(kernels::Backend* backend) : backend_(backend) {}

  // Requires indices in range: a page of every table for every position, slots below kPageTokens.
  void Put(const PassRows& rows);

  // Named and shaped as in PassRows, i32.
  kernels::DeviceTensor token_ids;
  kernels::DeviceTensor positions;
  kernels::DeviceTensor page_ids;
  kernels::DeviceTensor slots;
  kernels::DeviceTensor table_of_row;
  kernels::DeviceTensor lengths;
  kernels::DeviceTensor page_tables;  // [tables, capacity in pages]; -1 behind a table's end

 private:
  void Grow(int64_t rows, int64_t tables, int64_t pages);
  // Of ids, in buffer_: each begins at a multiple of 64 bytes.
  int64_t column(int index) const { return index * row_capacity_; }

  kernels::Backend* const backend_;
  int64_t row_capacity_ = 0;  // of each of the six columns; powers of two, all three
  int64_t table_capacity_ = 0;
  int64_t page_capacity_ = 0;                // of a table
  std::unique_ptr<kernels::Buffer> buffer_;  // six columns, then the tables
  std::vector<int32_t> staging_;             // likewise
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_PASS_INPUTS_H_

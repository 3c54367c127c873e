#include "kernels/ops/dense.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/row_ops.h"

namespace tandem::kernels::cpu {
namespace {

// Elements below which handing a piece to another thread costs more than computing it.
constexpr int64_t kMinElements = 16 << 10;
constexpr int64_t kMinMulAdds = 64 << 10;
// Rows per pass over the weights; bounds the scratch memory.
constexpr int64_t kMaxRowsAtOnce = 512;

// Calls fn(row) for all rows, some at a time per thread.
template <typename Fn>
void ForEachRow(ThreadPool& pool, int64_t rows, int64_t width, Fn fn) {
  const int64_t grain = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, width));
  pool.ParallelFor(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

// Outputs per piece: several pieces per thread, none too small to hand over.
int64_t OutputGrain(int64_t outputs, int64_t mul_adds_each, int num_threads) {
  const int64_t balanced = outputs / (8 * num_threads);
  const int64_t worthwhile = kMinMulAdds / std::max<int64_t>(1, mul_adds_each);
  const int64_t grain = std::max({int64_t{1}, std::min<int64_t>(balanced, 256), worthwhile});
  return CeilDiv(grain, kPanelOutputs) * kPanelOutputs;
}

}  // namespace

void Embed(const EmbedArgs& args, ThreadPool& pool) {
  const TensorView& table = View(args.table);
  const absl::Span<const int32_t> ids = Ints(args.ids);
  ForEachRow(pool, args.out.dim(0), table.width(), [&](int64_t i) {
    ConvertRow(table.row(ids[i]), table.dtype, table.width(), Row(args.out, i), args.out.dtype);
  });
}

void GatherRows(const GatherRowsArgs& args, ThreadPool& pool) {
  const absl::Span<const int32_t> rows = Ints(args.rows);
  const size_t row_bytes = static_cast<size_t>(args.x.width()) * DtypeBytes(args.x.dtype);
  ForEachRow(pool, args.out.dim(0), args.x.width(),
             [&](int64_t i) { std::memcpy(Row(args.out, i), Row(args.x, rows[i]), row_bytes); });
}

void RmsNorm(const RmsNormArgs& args, ThreadPool& pool) {
  const int64_t width = args.x.width();
  const TensorView& weight = View(args.weight);
  ForEachRow(pool, args.x.rows(), width, [&](int64_t i) {
    RmsNormRow(Row(args.x, i), args.x.dtype, weight.data, weight.dtype, args.eps, width,
               Row(args.out, i));
  });
}

void Linear(const LinearArgs& args, ThreadPool& pool) {
  thread_local MatrixRows x;
  const Matrix& weight = MatrixOf(args.weight);
  const int64_t k = args.x.width();
  const int64_t outputs = args.weight.outputs();
  for (int64_t first = 0; first < args.x.rows(); first += kMaxRowsAtOnce) {
    const int64_t rows = std::min(kMaxRowsAtOnce, args.x.rows() - first);
    MatrixRows& taken = x;  // the caller's, whichever thread sets a row
    taken.Resize(weight.RowsFor(args.x.dtype), rows, k);
    ForEachRow(pool, rows, k,
               [&](int64_t i) { taken.Set(i, Row(args.x, first + i), args.x.dtype); });
    const Product product{weight, taken, 0, rows, View(args.out.slice_rows(first, rows))};
    pool.ParallelFor(outputs, OutputGrain(outputs, rows * k, pool.num_threads()),
                     [&](int64_t begin, int64_t end) {
                       Product piece = product;
                       if (end < outputs) piece.next = weight.panel(end / kPanelOutputs);
                       Multiply(piece, begin, end);
                     });
  }
}

void SiluMul(const SiluMulArgs& args, ThreadPool& pool) {
  const int64_t width = args.gate.width();
  ForEachRow(pool, args.gate.rows(), width, [&](int64_t i) {
    SiluMulRow(Row(args.gate, i), Row(args.up, i), args.gate.dtype, width, Row(args.out, i));
  });
}

void Add(const AddArgs& args, ThreadPool& pool) {
  const int64_t width = args.a.width();
  ForEachRow(pool, args.a.rows(), width, [&](int64_t i) {
    AddRow(Row(args.a, i), Row(args.b, i), args.a.dtype, width, Row(args.out, i));
  });
}

}  // namespace tandem::kernels::cpu

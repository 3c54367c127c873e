#include "kernels/ops/dense.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/row_ops.h"

namespace tandem::kernels::cpu {
namespace {

// Elements below which handing a piece to another thread costs more than computing it.
constexpr int64_t kMinElements = 16 << 10;
constexpr int64_t kMinMulAdds = 64 << 10;
// Rows per pass over the weights; bounds the scratch memory.
constexpr int64_t kMaxRowsAtOnce = 256;

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
  constexpr int64_t kTile = 24;  // a multiple of the outputs of every GEMM tile
  const int64_t balanced = outputs / (8 * num_threads);
  const int64_t worthwhile = kMinMulAdds / std::max<int64_t>(1, mul_adds_each);
  const int64_t grain = std::max({int64_t{1}, std::min<int64_t>(balanced, 240), worthwhile});
  return (grain + kTile - 1) / kTile * kTile;
}

}  // namespace

void Embed(const EmbedArgs& args, ThreadPool& pool) {
  const int64_t width = args.table.width();
  ForEachRow(pool, static_cast<int64_t>(args.ids.size()), width, [&](int64_t i) {
    ConvertRow(args.table.row(args.ids[i]), args.table.dtype, width, args.out.row(i),
               args.out.dtype);
  });
}

void RmsNorm(const RmsNormArgs& args, ThreadPool& pool) {
  const int64_t width = args.x.width();
  ForEachRow(pool, args.x.rows(), width, [&](int64_t i) {
    RmsNormRow(args.x.row(i), args.x.dtype, args.weight.data, args.weight.dtype, args.eps, width,
               args.out.row(i));
  });
}

void Linear(const LinearArgs& args, ThreadPool& pool) {
  thread_local std::vector<float> widened;
  const int64_t k = args.x.width();
  const int64_t outputs = args.weight.dim(0);
  for (int64_t first = 0; first < args.x.rows(); first += kMaxRowsAtOnce) {
    const int64_t rows = std::min(kMaxRowsAtOnce, args.x.rows() - first);
    const TensorView x = args.x.slice_rows(first, rows);
    Gemm gemm{
        x.as<const float>(), x.row_stride, rows, k, args.weight, args.out.slice_rows(first, rows)};
    if (x.dtype != Dtype::kF32) {
      const int64_t stride = WidenedWidth(k);
      widened.resize(std::max(widened.size(), static_cast<size_t>(rows * stride)));
      float* const to = widened.data();
      ForEachRow(pool, rows, k,
                 [&](int64_t i) { WidenRow(x.row(i), x.dtype, k, to + i * stride); });
      gemm.x = to;
      gemm.x_stride = stride;
    }
    pool.ParallelFor(outputs, OutputGrain(outputs, rows * k, pool.num_threads()),
                     [&](int64_t begin, int64_t end) { GemmRange(gemm, begin, end); });
  }
}

void SiluMul(const SiluMulArgs& args, ThreadPool& pool) {
  const int64_t width = args.gate.width();
  ForEachRow(pool, args.gate.rows(), width, [&](int64_t i) {
    SiluMulRow(args.gate.row(i), args.up.row(i), args.gate.dtype, width, args.out.row(i));
  });
}

void Add(const AddArgs& args, ThreadPool& pool) {
  const int64_t width = args.a.width();
  ForEachRow(pool, args.a.rows(), width, [&](int64_t i) {
    AddRow(args.a.row(i), args.b.row(i), args.a.dtype, width, args.out.row(i));
  });
}

}  // namespace tandem::kernels::cpu

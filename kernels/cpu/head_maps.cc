#include "kernels/cpu/head_maps.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "common/status.h"
#include "kernels/cpu/product.h"

namespace tandem::kernels::cpu {
namespace {

// Columns [0, rows) and rows [0, width) of the other.
std::vector<std::byte> Turned(const TensorView& tensor) {
  const size_t bytes = DtypeBytes(tensor.dtype);
  std::vector<std::byte> turned(tensor.bytes());
  const int64_t rows = tensor.dim(0);
  const int64_t width = tensor.dim(1);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < width; ++k) {
      std::memcpy(&turned[(k * rows + i) * bytes], tensor.row(i) + k * bytes, bytes);
    }
  }
  return turned;
}

}  // namespace

absl::StatusOr<std::vector<HeadMaps>> PrepareHeadMaps(const TensorView& kv_b,
                                                      const KvUpShape& shape, WeightFormat format,
                                                      FloatOrder order, PackedUnit* unit,
                                                      ThreadPool& pool) {
  const int64_t dn = shape.nope_width, dv = shape.value_width, r = shape.latent_width;
  PackedLayout layout;
  const auto append = [&](int64_t outputs, int64_t inputs) {
    const TensorView view(nullptr, kv_b.dtype, {outputs, inputs});
    Append(Matrix::LayoutToPrepare(view, format), &layout);
  };
  for (int64_t h = 0; h < shape.heads; ++h) {
    append(r, dn);
    append(dv, r);
    append(dn, r);
  }
  TANDEM_ASSIGN_OR_RETURN(WeightMemory memory, WeightMemory::FindOrAllocate(layout, unit, pool));
  const auto prepare = [&](const TensorView& view) {
    return Matrix::Prepare(view, format, order, &memory, pool);
  };
  std::vector<HeadMaps> heads(shape.heads);
  for (int64_t h = 0; h < shape.heads; ++h) {
    const TensorView key = kv_b.slice_rows(h * (dn + dv), dn);
    const TensorView value = kv_b.slice_rows(h * (dn + dv) + dn, dv);
    std::vector<std::byte> turned;
    if (!memory.filled()) turned = Turned(key);
    heads[h].absorb = prepare(TensorView(turned.data(), kv_b.dtype, {r, dn}));
    heads[h].value = prepare(value);
    heads[h].key = prepare(key);
  }
  memory.KeepIn(unit);
  return heads;
}

void MultiplyHeads(const HeadProducts& products, ThreadPool& pool) {
  constexpr int64_t kBlock = 8 * kPanelOutputs;  // outputs per piece of work
  constexpr int64_t kRowGrain = 16;
  thread_local MatrixRows scratch;
  MatrixRows& rows = scratch;  // the caller's, whichever thread sets a row
  const TensorView& x = products.x;
  const auto heads = static_cast<int64_t>(products.heads.size());
  const int64_t num_rows = x.rows() / heads;
  const Matrix& first = products.heads.front().*products.map;
  const int64_t outputs = first.outputs();
  rows.Resize(first.RowsFor(x.dtype), x.rows(), first.inputs());
  pool.ParallelFor(x.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rows.Set(i % heads * num_rows + i / heads, x.row(i), x.dtype);
    }
  });
  const int64_t blocks = CeilDiv(outputs, kBlock);
  pool.ParallelFor(heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t h = item / blocks;
      const int64_t n = item % blocks * kBlock;
      TensorView out = products.out;
      out.data =
          out.row(0) + h * products.head_stride * static_cast<int64_t>(DtypeBytes(out.dtype));
      Product product = {products.heads[h].*products.map, rows, h * num_rows, num_rows, out};
      if (item + 1 < heads * blocks) {
        const Matrix& next = products.heads[(item + 1) / blocks].*products.map;
        product.next = next.panel((item + 1) % blocks * (kBlock / kPanelOutputs));
      }
      Multiply(product, n, std::min(n + kBlock, outputs));
    }
  });
}

}  // namespace tandem::kernels::cpu

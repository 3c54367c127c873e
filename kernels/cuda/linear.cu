#include "kernels/cuda/linear.h"

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/tensor_product.h"

namespace tandem::kernels::cuda {
namespace {

// A map for each head: [heads, outputs, inputs] matrices, which lie `matrix_stride` apart, from
// x [rows, heads, inputs or more] to out [rows, heads, outputs], heads side by side. One head:
// Linear.
template <typename X, typename W, typename Out>
struct HeadsProduct {
  using Row = X;
  using Matrix = MatrixPart<W>;
  static constexpr int kMatrices = 1;

  int64_t rows, outputs, heads;
  Rows<const X> x;
  int64_t x_head_stride;
  MatrixPart<W> first_matrix;
  int64_t matrix_stride;
  Rows<Out> out;
  int64_t out_head_stride;

  int64_t blocks(TileSize size) const {
    return TilesOf(rows, size.rows) * heads * TilesOf(outputs, size.outputs);
  }
  __device__ bool Place(int64_t block, TileSize size, Tile* tile) const {
    const int64_t output_tiles = TilesOf(outputs, size.outputs);
    const int64_t head_and_row_tile = block / output_tiles;
    *tile = TileAt(size, head_and_row_tile / heads, rows, block % output_tiles, outputs,
                   head_and_row_tile % heads);
    return true;
  }
  __device__ const X* row(const Tile& tile, int64_t i) const {
    return x[i] + tile.batch * x_head_stride;
  }
  __device__ MatrixPart<W> matrix(const Tile& tile, int) const {
    MatrixPart<W> matrix = first_matrix;
    matrix.data += tile.batch * matrix_stride;
    return matrix;
  }
  __device__ void Store(const Tile& tile, int64_t i, int64_t n, const float* sums) const {
    out[i][tile.batch * out_head_stride + n] = Round<Out>(sums[0]);
  }
};

// HeadsProduct, for the dtypes of its tensors.
struct Heads {
  int64_t rows, outputs, inputs;
  int64_t heads = 1;
  int64_t x_row_stride, x_head_stride = 0;  // as all strides in elements
  int64_t matrix_begin = 0, output_stride, input_stride = 1, matrix_stride = 0;
  int64_t out_row_stride, out_head_stride = 0;
};

void Multiply(Stream stream, const Heads& h, const DeviceTensor& x, const DeviceTensor& weight,
              const DeviceTensor& out, SumOrder order) {
  WithType(x.dtype, [&](auto act) {
    WithType(weight.dtype, [&](auto factor) {
      WithType(out.dtype, [&](auto result) {
        using X = typename decltype(act)::type;
        using W = typename decltype(factor)::type;
        using Out = typename decltype(result)::type;
        const HeadsProduct<X, W, Out> product = {
            h.rows,
            h.outputs,
            h.heads,
            {DataOf<const X>(x), h.x_row_stride},
            h.x_head_stride,
            {DataOf<const W>(weight) + h.matrix_begin, h.output_stride, h.input_stride},
            h.matrix_stride,
            {DataOf<Out>(out), h.out_row_stride},
            h.out_head_stride};
        if constexpr (std::is_same_v<X, Bf16> && std::is_same_v<W, Bf16>) {
          if (order == SumOrder::kTensor) {
            return LaunchTensorProduct(stream, BlockRowsFor(h.rows, product), h.inputs, product);
          }
        }
        LaunchProduct(stream, h.inputs, product);
      });
    });
  });
}

}  // namespace

void Linear(Stream stream, const DeviceTensor& x, const DeviceTensor& weight,
            const DeviceTensor& out, SumOrder order) {
  TANDEM_CHECK(order == SumOrder::kBlock ||
               (x.dtype == Dtype::kBF16 && weight.dtype == Dtype::kBF16));
  const Heads one = {.rows = x.rows(),
                     .outputs = weight.rows(),
                     .inputs = x.width(),
                     .x_row_stride = x.row_stride,
                     .output_stride = weight.row_stride,
                     .out_row_stride = out.row_stride};
  Multiply(stream, one, x, weight, out, order);
}

// The transpose of W^UK_h: an output lies beside the next, an input a row further.
void MlaAbsorbQuery(Stream stream, const DeviceTensor& q, const DeviceTensor& kv_up,
                    const KvUpShape& shape, const DeviceTensor& q_latent) {
  const Heads heads = {.rows = q.dim(0),
                       .outputs = shape.latent_width,
                       .inputs = shape.nope_width,
                       .heads = shape.heads,
                       .x_row_stride = shape.heads * q.row_stride,
                       .x_head_stride = q.row_stride,
                       .output_stride = 1,
                       .input_stride = kv_up.row_stride,
                       .matrix_stride = (shape.nope_width + shape.value_width) * kv_up.row_stride,
                       .out_row_stride = shape.heads * q_latent.row_stride,
                       .out_head_stride = q_latent.row_stride};
  Multiply(stream, heads, q, kv_up, q_latent, SumOrder::kBlock);
}

void MlaProjectValue(Stream stream, const DeviceTensor& latent, const DeviceTensor& kv_up,
                     const KvUpShape& shape, const DeviceTensor& out) {
  const Heads heads = {.rows = latent.dim(0),
                       .outputs = shape.value_width,
                       .inputs = shape.latent_width,
                       .heads = shape.heads,
                       .x_row_stride = shape.heads * latent.row_stride,
                       .x_head_stride = latent.row_stride,
                       .matrix_begin = shape.nope_width * kv_up.row_stride,
                       .output_stride = kv_up.row_stride,
                       .matrix_stride = (shape.nope_width + shape.value_width) * kv_up.row_stride,
                       .out_row_stride = out.row_stride,
                       .out_head_stride = shape.value_width};
  Multiply(stream, heads, latent, kv_up, out, SumOrder::kBlock);
}

}  // namespace tandem::kernels::cuda

// Products of rows with a matrix, each sum in block order (kernels/ops/dense.h): the CPU's bits,
// whatever the number of rows. By fused multiply-adds; by tensor cores, whose order is their own:
// kernels/cuda/tensor_product.h.
//
// A product says which rows and outputs a block of threads has, where they lie and what becomes of
// the sums:
//   using Row                                         float or Bf16
//   using Matrix                                      MatrixPart or what has its members
//   static constexpr int kMatrices                    that are multiplied with the same rows
//   int64_t blocks(TileSize) const                    of tiles of this size; called by the host
//   bool Place(int64_t block, TileSize, Tile*) const  false: the block has nothing to do
//   const Row* row(const Tile&, int64_t i) const
//   Matrix matrix(const Tile&, int) const
//   void Store(const Tile&, int64_t i, int64_t n, const float* sums) const
#ifndef TANDEM_KERNELS_CUDA_PRODUCT_H_
#define TANDEM_KERNELS_CUDA_PRODUCT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {

// Of a block of threads.
struct TileSize {
  int64_t rows, outputs;
};

__host__ __device__ inline int64_t TilesOf(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Rows [row, end_row) and outputs [output, end_output), at most as many as a tile has.
struct Tile {
  int64_t row, end_row;
  int64_t output, end_output;
  int64_t batch;  // as the product counts: a head, an expert
};

// The tile at `row_tile` and `output_tile` of a product of `rows` by `outputs`.
__device__ inline Tile TileAt(TileSize size, int64_t row_tile, int64_t rows, int64_t output_tile,
                              int64_t outputs, int64_t batch = 0) {
  const int64_t row = row_tile * size.rows, output = output_tile * size.outputs;
  return {row, rows < row + size.rows ? rows : row + size.rows, output,
          outputs < output + size.outputs ? outputs : output + size.outputs, batch};
}

// [outputs, inputs], by rows or by columns: one of the strides is 1.
template <typename W>
struct MatrixPart {
  const W* data;
  int64_t output_stride, input_stride;

  __device__ float at(int64_t output, int64_t input) const {
    return ToFloat(data[output * output_stride + input * input_stride]);
  }
  // Requires that inputs lie side by side.
  __device__ const W* row(int64_t output) const { return data + output * output_stride; }
};

namespace product {

constexpr int kTile = 16;          // rows and outputs of a block of threads, one sum each
constexpr int kBlockInputs = 32;   // of block order
constexpr int kStageInputs = 128;  // that are in shared memory at once
// Of a tile's rows there, so that threads that follow each other use different banks.
constexpr int kStride = kStageInputs + 1;
constexpr int kTileFloats = kTile * kStride;

// Brings [count, inputs] values to shared memory, `value(i, k)` each; threads that follow each
// other take those that lie side by side.
template <typename Value>
__device__ void LoadTile(int count, int inputs, bool by_columns, const Value& value, float* to) {
  for (int at = static_cast<int>(threadIdx.x); at < kTile * kStageInputs; at += kTile * kTile) {
    const int i = by_columns ? at % kTile : at / kStageInputs;
    const int k = by_columns ? at / kTile : at % kStageInputs;
    if (i < count && k < inputs) to[i * kStride + k] = value(i, k);
  }
}

// Adds the stage's blocks to `sum`.
__device__ inline float AddStage(const float* a, const float* b, int inputs, float sum) {
  for (int begin = 0; begin < inputs; begin += kBlockInputs) {
    const int end = inputs < begin + kBlockInputs ? inputs : begin + kBlockInputs;
    float even = 0.0f, odd = 0.0f;
    for (int k = begin; k < end; k += 2) {
      even = FlushedMultiplyAdd(a[k], b[k], even);
      odd = FlushedMultiplyAdd(a[k + 1], b[k + 1], odd);
    }
    sum = FlushedAdd(sum, FlushedAdd(even, odd));
  }
  return sum;
}

template <typename Product>
__global__ void Kernel(int64_t inputs, Product product) {
  auto* const x_tile = reinterpret_cast<float*>(SharedMemory());
  float* const w_tiles = x_tile + kTileFloats;
  Tile tile;
  if (!product.Place(blockIdx.x, {kTile, kTile}, &tile)) return;
  const auto rows = static_cast<int>(tile.end_row - tile.row);
  const auto outputs = static_cast<int>(tile.end_output - tile.output);
  const int row = static_cast<int>(threadIdx.x) / kTile, n = static_cast<int>(threadIdx.x) % kTile;
  const bool active = row < rows && n < outputs;
  float sums[Product::kMatrices] = {};
  for (int64_t begin = 0; begin < inputs; begin += kStageInputs) {
    const int64_t left = inputs - begin;
    const int count = static_cast<int>(left < kStageInputs ? left : kStageInputs);
    TANDEM_SYNC_THREADS();  // the last stage has been read
    LoadTile(
        rows, count, false,
        [&](int i, int k) { return ToFloat(product.row(tile, tile.row + i)[begin + k]); }, x_tile);
    TANDEM_UNROLL
    for (int m = 0; m < Product::kMatrices; ++m) {
      const auto matrix = product.matrix(tile, m);
      LoadTile(
          outputs, count, matrix.input_stride != 1,
          [&](int i, int k) { return matrix.at(tile.output + i, begin + k); },
          w_tiles + m * kTileFloats);
    }
    TANDEM_SYNC_THREADS();
    if (!active) continue;
    TANDEM_UNROLL
    for (int m = 0; m < Product::kMatrices; ++m) {
      sums[m] =
          AddStage(x_tile + row * kStride, w_tiles + m * kTileFloats + n * kStride, count, sums[m]);
    }
  }
  if (active) product.Store(tile, tile.row + row, tile.output + n, sums);
}

}  // namespace product

// Starts a block of threads for each tile; none if there are none.
template <typename Product>
void LaunchProduct(Stream stream, int64_t inputs, const Product& product) {
  constexpr size_t kSharedBytes = (1 + Product::kMatrices) * product::kTileFloats * sizeof(float);
  const int64_t blocks = product.blocks({product::kTile, product::kTile});
  if (blocks == 0) return;
  Launch(stream, product::Kernel<Product>, blocks, product::kTile * product::kTile, kSharedBytes,
         inputs, product);
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_PRODUCT_H_

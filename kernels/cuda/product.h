// Products of rows with a matrix, each sum in block order (kernels/ops/dense.h): the CPU's bits,
// whatever the number of rows. By fused multiply-adds, not by tensor cores, whose order is their
// own.
//
// A product says which rows and outputs a block of threads has, where they lie and what becomes of
// the sums:
//   using Row                                         float or Bf16
//   static constexpr int kMatrices                    that are multiplied with the same rows
//   bool Place(int64_t block, Tile*) const            false: the block has nothing to do
//   const Row* row(const Tile&, int64_t i) const
//   matrix(const Tile&, int) const                    MatrixPart or what has its members
//   void Store(const Tile&, int64_t i, int64_t n, const float* sums) const
#ifndef TANDEM_KERNELS_CUDA_PRODUCT_H_
#define TANDEM_KERNELS_CUDA_PRODUCT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {

inline constexpr int kTile = 16;  // rows and outputs of a block of threads, one sum each

inline int64_t TilesOf(int64_t count) { return (count + kTile - 1) / kTile; }

// Rows [row, end_row) and outputs [output, end_output), at most kTile of each.
struct Tile {
  int64_t row, end_row;
  int64_t output, end_output;
  int64_t batch;  // as the product counts: a head, an expert
};

// The tile at `row_tile` and `output_tile` of a product of `rows` by `outputs`.
__device__ inline Tile TileAt(int64_t row_tile, int64_t rows, int64_t output_tile, int64_t outputs,
                              int64_t batch = 0) {
  const int64_t row = row_tile * kTile, output = output_tile * kTile;
  return {row, rows < row + kTile ? rows : row + kTile, output,
          outputs < output + kTile ? outputs : output + kTile, batch};
}

// [outputs, inputs], by rows or by columns: one of the strides is 1.
template <typename W>
struct MatrixPart {
  const W* data;
  int64_t output_stride, input_stride;

  __device__ float at(int64_t output, int64_t input) const {
    return ToFloat(data[output * output_stride + input * input_stride]);
  }
};

namespace product {

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
  if (!product.Place(blockIdx.x, &tile)) return;
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

// Starts `blocks` blocks of threads, one for each tile; none if there are none.
template <typename Product>
void LaunchProduct(Stream stream, int64_t blocks, int64_t inputs, const Product& product) {
  if (blocks == 0) return;
  constexpr size_t kSharedBytes = (1 + Product::kMatrices) * product::kTileFloats * sizeof(float);
  Launch(stream, product::Kernel<Product>, blocks, kTile * kTile, kSharedBytes, inputs, product);
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_PRODUCT_H_

#include "kernels/cuda/linear.h"

#include <cstdint>

#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kTile = 16;         // rows and outputs of a block of threads, one sum each
constexpr int kBlockInputs = 32;  // of block order
// Of a tile's rows in shared memory, so that threads that follow each other use different banks.
constexpr int kStride = kBlockInputs + 1;
constexpr size_t kSharedBytes = 2 * kTile * kStride * sizeof(float);

// Threads 0 .. kTile^2 - 1 bring inputs [begin, begin + count) of `kTile` rows from `first` on to
// shared memory; rows from `end` on are left out.
template <typename T>
__device__ void LoadTile(Rows<T> rows, int64_t first, int64_t end, int64_t begin, int count,
                         float* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kBlockInputs; i += kTile * kTile) {
    const int row = i / kBlockInputs, k = i % kBlockInputs;
    if (first + row < end && k < count) {
      tile[row * kStride + k] = ToFloat(rows[first + row][begin + k]);
    }
  }
}

template <typename T, typename W, typename Out>
__global__ void LinearKernel(int64_t num_rows, int64_t outputs, int64_t inputs, Rows<const T> x,
                             Rows<const W> weight, Rows<Out> out) {
  auto* const x_tile = reinterpret_cast<float*>(SharedMemory());
  float* const w_tile = x_tile + kTile * kStride;
  const int64_t output_tiles = (outputs + kTile - 1) / kTile;
  const int64_t first_row = blockIdx.x / output_tiles * kTile;
  const int64_t first_output = blockIdx.x % output_tiles * kTile;
  const int r = static_cast<int>(threadIdx.x) / kTile, n = static_cast<int>(threadIdx.x) % kTile;
  const bool active = first_row + r < num_rows && first_output + n < outputs;
  float sum = 0.0f;
  for (int64_t begin = 0; begin < inputs; begin += kBlockInputs) {
    const int count =
        static_cast<int>(inputs - begin < kBlockInputs ? inputs - begin : kBlockInputs);
    TANDEM_SYNC_THREADS();  // the last block of inputs has been read
    LoadTile(x, first_row, num_rows, begin, count, x_tile);
    LoadTile(weight, first_output, outputs, begin, count, w_tile);
    TANDEM_SYNC_THREADS();
    if (!active) continue;
    const float* const a = x_tile + r * kStride;
    const float* const b = w_tile + n * kStride;
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < count; k += 2) {
      even = FlushedMultiplyAdd(a[k], b[k], even);
      odd = FlushedMultiplyAdd(a[k + 1], b[k + 1], odd);
    }
    sum = FlushedAdd(sum, FlushedAdd(even, odd));
  }
  if (active) out[first_row + r][first_output + n] = Round<Out>(sum);
}

}  // namespace

void LinearInBlockOrder(Stream stream, const DeviceTensor& x, const DeviceTensor& weight,
                        const DeviceTensor& out) {
  const int64_t rows = x.rows(), outputs = weight.rows();
  if (rows == 0) return;
  const int64_t blocks = (rows + kTile - 1) / kTile * ((outputs + kTile - 1) / kTile);
  WithType(x.dtype, [&](auto act) {
    WithType(weight.dtype, [&](auto factor) {
      WithType(out.dtype, [&](auto result) {
        using T = typename decltype(act)::type;
        using W = typename decltype(factor)::type;
        using Out = typename decltype(result)::type;
        Launch(stream, LinearKernel<T, W, Out>, blocks, kTile * kTile, kSharedBytes, rows, outputs,
               x.width(), RowsOf<const T>(x), RowsOf<const W>(weight), RowsOf<Out>(out));
      });
    });
  });
}

}  // namespace tandem::kernels::cuda

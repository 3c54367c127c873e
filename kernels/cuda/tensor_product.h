// Products of rows of bf16 with matrices of bf16 by tensor cores, each sum in tensor order
// (kernels/ops/dense.h): steps of 16 inputs, ascending, one after the other. How rows and outputs
// are dealt out to blocks and warps changes no sum, so that a row's bits depend neither on the
// number of rows nor on the others.
//
// Outputs are the rows of tensor cores' tiles, 16 at once, and rows their columns, 8 at once: few
// rows waste least so. Inputs come to shared memory by stages, several of which are on their way
// while one is multiplied. Products are those of kernels/cuda/product.h, whose matrices have rows
// (`row(output)`).
#ifndef TANDEM_KERNELS_CUDA_TENSOR_PRODUCT_H_
#define TANDEM_KERNELS_CUDA_TENSOR_PRODUCT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/product.h"

namespace tandem::kernels::cuda {
namespace tensor_product {

constexpr int kWarpLanes = 32;
constexpr int kStep = 16;     // inputs of an instruction
constexpr int kOutputs = 16;  // and outputs
constexpr int kRows = 8;      // and rows
constexpr int kChunk = 8;     // inputs that are copied at once: 16 bytes

// How a block's outputs, of each of kMatrices matrices, and its rows are dealt out to warps.
//   kOutputTiles     of a warp, of kOutputs of each matrix
//   kRowTiles        of a warp, of kRows; an even number
//   kStages          of kStageInputs each; all but one are on their way
// Shared memory stays below 99 KB, which every GPU of compute capability 8.0 and above has.

// Up to 16 rows: what counts is how many bytes of weights are on their way.
template <int kMatrices>
struct FewRows {
  static constexpr int kWarpsByOutput = 2, kWarpsByRow = 1, kOutputTiles = 1, kRowTiles = 2;
  static constexpr int kStageInputs = 64, kStages = 8;
};
// Up to 64 rows, or more where the next would leave processors idle.
template <int kMatrices>
struct SomeRows {
  static constexpr int kWarpsByOutput = 4, kWarpsByRow = 2, kOutputTiles = 1, kRowTiles = 4;
  static constexpr int kStageInputs = 64, kStages = kMatrices == 1 ? 4 : 3;
};
// Each value that is read from shared memory is used by 4 or 8 instructions.
template <int kMatrices>
struct ManyRows {
  static constexpr int kWarpsByOutput = 2, kWarpsByRow = 4;
  static constexpr int kOutputTiles = 4 / kMatrices, kRowTiles = 4;
  static constexpr int kStageInputs = 32, kStages = 4;
};

// What follows from a way of dealing out.
template <int kMatrices, template <int> typename Deal>
struct Layout : Deal<kMatrices> {
  using D = Deal<kMatrices>;
  static constexpr int kThreads = D::kWarpsByOutput * D::kWarpsByRow * kWarpLanes;
  static constexpr int kBlockOutputs = D::kWarpsByOutput * D::kOutputTiles * kOutputs;
  static constexpr int kBlockRows = D::kWarpsByRow * D::kRowTiles * kRows;
  static constexpr TileSize kSize = {kBlockRows, kBlockOutputs};
  // From a row in shared memory to the next: an odd number of chunks, so that eight rows that are
  // read at once lie in different banks.
  static constexpr int kStride = D::kStageInputs + kChunk;
  static constexpr int kStageRows = kMatrices * kBlockOutputs + kBlockRows;
  static constexpr int kStageElements = kStageRows * kStride;
  static constexpr size_t kSharedBytes =
      D::kStages * kStageElements * sizeof(Bf16) + kStageRows * sizeof(const Bf16*);
  static_assert(kStride / kChunk % 2 == 1 && D::kStageInputs % kStep == 0);
  static_assert(D::kRowTiles % 2 == 0 && kSharedBytes <= 99 << 10);
};

// Brings kChunk inputs to shared memory, by WaitForCopies at the latest; zeros where `from` is
// null.
__device__ inline void CopyChunk(const Bf16* from, Bf16* to) {
  if (from == nullptr) {
    *reinterpret_cast<Chunk16<Bf16>*>(to) = {};
  } else if (reinterpret_cast<uintptr_t>(from) % sizeof(Chunk16<Bf16>) == 0) {
    CopyAsync16(to, from);
  } else {  // rows may lie anywhere
    for (int k = 0; k < kChunk; ++k) to[k] = from[k];
  }
}

// Where the rows of a stage lie in device memory: the outputs of each matrix, then the block's
// rows. Null: there is none.
template <typename L, typename Product>
__device__ void FindRows(const Product& product, const Tile& tile, const Bf16** rows) {
  constexpr int kWeightRows = Product::kMatrices * L::kBlockOutputs;
  for (int i = static_cast<int>(threadIdx.x); i < L::kStageRows; i += L::kThreads) {
    rows[i] = nullptr;
    if (i < kWeightRows) {
      const int64_t output = tile.output + i % L::kBlockOutputs;
      if (output >= tile.end_output) continue;
      rows[i] = product.matrix(tile, i / L::kBlockOutputs).row(output);
    } else {
      const int64_t row = tile.row + i - kWeightRows;
      if (row < tile.end_row) rows[i] = product.row(tile, row);
    }
  }
}

// Starts the copies of the inputs from `begin` on, of which there are `inputs` in all: this
// thread's part of a stage.
template <typename L>
__device__ void StartCopies(const Bf16* const* rows, int64_t begin, int64_t inputs, Bf16* stage) {
  constexpr int kChunks = L::kStageInputs / kChunk;
  for (int at = static_cast<int>(threadIdx.x); at < L::kStageRows * kChunks; at += L::kThreads) {
    const int i = at / kChunks, first = at % kChunks * kChunk;
    const bool is_there = rows[i] != nullptr && begin + first < inputs;
    CopyChunk(is_there ? rows[i] + begin + first : nullptr, stage + i * L::kStride + first);
  }
}

// The sums of a warp: of each of an instruction's tiles the lane has four.
template <int kMatrices, typename L>
struct Sums {
  float of[kMatrices][L::kOutputTiles][L::kRowTiles][4];
};

// Adds a stage's steps to `sums`; `inputs` of it are there.
template <int kMatrices, typename L>
__device__ void AddStage(const Bf16* stage, int64_t inputs, Sums<kMatrices, L>* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int first_output = warp % L::kWarpsByOutput * L::kOutputTiles * kOutputs;
  const int first_row = warp / L::kWarpsByOutput * L::kRowTiles * kRows;
  // Which row of four 8 by 8 tiles this lane names: outputs 0 to 15 at inputs 0 and 8; rows 0 to 7
  // at inputs 0 and 8, rows 8 to 15 at inputs 0 and 8.
  const Bf16* const w = stage + (first_output + lane % 16) * L::kStride + lane / 16 * 8;
  const Bf16* const x =
      stage + (kMatrices * L::kBlockOutputs + first_row + lane / 16 * 8 + lane % 8) * L::kStride +
      lane / 8 % 2 * 8;
  TANDEM_UNROLL
  for (int step = 0; step < L::kStageInputs; step += kStep) {
    if (step >= inputs) break;
    uint32_t rows[L::kRowTiles / 2][4];
    TANDEM_UNROLL
    for (int r = 0; r < L::kRowTiles / 2; ++r) {
      TANDEM_LOAD_TILES(rows[r], x + r * 2 * kRows * L::kStride + step);
    }
    TANDEM_UNROLL
    for (int m = 0; m < kMatrices; ++m) {
      TANDEM_UNROLL
      for (int o = 0; o < L::kOutputTiles; ++o) {
        uint32_t outputs[4];
        TANDEM_LOAD_TILES(outputs, w + (m * L::kBlockOutputs + o * kOutputs) * L::kStride + step);
        TANDEM_UNROLL
        for (int r = 0; r < L::kRowTiles; ++r) {
          TANDEM_MULTIPLY_TILES(sums->of[m][o][r], outputs, rows[r / 2] + r % 2 * 2);
        }
      }
    }
  }
}

template <typename Product, template <int> typename Deal>
__global__ void Kernel(int64_t inputs, Product product) {
  constexpr int kMatrices = Product::kMatrices;
  using L = Layout<kMatrices, Deal>;
  auto* const stages = reinterpret_cast<Bf16*>(SharedMemory());
  auto* const rows = reinterpret_cast<const Bf16**>(stages + L::kStages * L::kStageElements);
  Tile tile;
  if (!product.Place(blockIdx.x, L::kSize, &tile)) return;
  FindRows<L>(product, tile, rows);
  TANDEM_SYNC_THREADS();

  const int64_t num_stages = (inputs + L::kStageInputs - 1) / L::kStageInputs;
  for (int stage = 0; stage < L::kStages - 1; ++stage) {
    if (stage < num_stages) {
      StartCopies<L>(rows, stage * L::kStageInputs, inputs, stages + stage * L::kStageElements);
    }
    CommitCopies();
  }
  Sums<kMatrices, L> sums = {};
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    WaitForCopies<L::kStages - 2>();  // all but those behind this stage's
    TANDEM_SYNC_THREADS();            // everyone's are there, and the last stage has been read
    const int64_t next = stage + L::kStages - 1;
    if (next < num_stages) {
      StartCopies<L>(rows, next * L::kStageInputs, inputs,
                     stages + next % L::kStages * L::kStageElements);
    }
    CommitCopies();
    AddStage<kMatrices, L>(stages + stage % L::kStages * L::kStageElements,
                           inputs - stage * L::kStageInputs, &sums);
  }

  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int64_t first_output =
      tile.output + warp % L::kWarpsByOutput * L::kOutputTiles * kOutputs + lane / 4;
  const int64_t first_row =
      tile.row + warp / L::kWarpsByOutput * L::kRowTiles * kRows + lane % 4 * 2;
  TANDEM_UNROLL
  for (int o = 0; o < L::kOutputTiles; ++o) {
    TANDEM_UNROLL
    for (int r = 0; r < L::kRowTiles; ++r) {
      TANDEM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t output = first_output + o * kOutputs + i / 2 * 8;
        const int64_t row = first_row + r * kRows + i % 2;
        if (row >= tile.end_row || output >= tile.end_output) continue;
        float of_matrices[kMatrices];
        TANDEM_UNROLL
        for (int m = 0; m < kMatrices; ++m) of_matrices[m] = sums.of[m][o][r][i];
        product.Store(tile, row, output, of_matrices);
      }
    }
  }
}

template <template <int> typename Deal, typename Product>
void Launch(Stream stream, int64_t inputs, const Product& product) {
  using L = Layout<Product::kMatrices, Deal>;
  const int64_t blocks = product.blocks(L::kSize);
  if (blocks == 0) return;
  cuda::Launch(stream, Kernel<Product, Deal>, blocks, L::kThreads, L::kSharedBytes, inputs,
               product);
}

}  // namespace tensor_product

// Rows of a block of threads.
enum class BlockRows { k16 = 16, k64 = 64, k128 = 128 };

// For `rows` that are multiplied with one matrix.
inline BlockRows BlockRowsFor(int64_t rows) {
  return rows <= 16 ? BlockRows::k16 : rows <= 64 ? BlockRows::k64 : BlockRows::k128;
}
// The same, but smaller blocks where large ones would leave a GPU's processors idle.
template <typename Product>
BlockRows BlockRowsFor(int64_t rows, const Product& product) {
  constexpr int64_t kEnoughBlocks = 108;  // an A100's processors
  using L = tensor_product::Layout<Product::kMatrices, tensor_product::ManyRows>;
  const BlockRows of_rows = BlockRowsFor(rows);
  const bool is_idle = of_rows == BlockRows::k128 && product.blocks(L::kSize) < kEnoughBlocks;
  return is_idle ? BlockRows::k64 : of_rows;
}

// Starts a block of threads for each tile; none if there are none.
template <typename Product>
void LaunchTensorProduct(Stream stream, BlockRows rows, int64_t inputs, const Product& product) {
  switch (rows) {
    case BlockRows::k16:
      return tensor_product::Launch<tensor_product::FewRows>(stream, inputs, product);
    case BlockRows::k64:
      return tensor_product::Launch<tensor_product::SomeRows>(stream, inputs, product);
    case BlockRows::k128:
      return tensor_product::Launch<tensor_product::ManyRows>(stream, inputs, product);
  }
}

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_TENSOR_PRODUCT_H_

#include "kernels/cuda/mla_expanded.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/pages.h"
#include "kernels/cuda/running_softmax.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/tensor_product.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int64_t kChunkTokens = 8 * kPageTokens;  // whose keys and values are there at once
constexpr int kBlockRows = kThreads / kSumLanes;   // of a block of threads, sixteen for each

struct Shape {
  int64_t heads, nope, rope, value, latent;  // dn, dr, dv, r
};

// The sequence's latents: row j of it lies in its page.
template <typename T>
struct Latents {
  Rows<const T> pages;
  const int32_t* page_table;

  __device__ const T* operator[](int64_t token) const {
    return pages[int64_t{page_table[token / kPageTokens]} * kPageTokens + token % kPageTokens];
  }
};

// Keys and values of a chunk's tokens. Keys lie across: threads that follow each other take keys
// that follow each other.
template <typename T>
struct Chunk {
  int64_t begin, end;  // tokens
  T* k_nope;           // [heads, dn, kChunkTokens]
  T* k_rope;           // [dr, kChunkTokens]
  T* values;           // [heads, kChunkTokens, dv]
};

// k_nope and values of all heads: the outputs of kv_b_proj are, for each head, dn and dv.
template <typename T, typename W>
struct ExpandProduct {
  using Row = T;
  using Matrix = MatrixPart<W>;
  static constexpr int kMatrices = 1;

  Shape shape;
  Latents<T> latents;
  Rows<const W> kv_up;
  Chunk<T> chunk;

  __host__ __device__ int64_t outputs() const { return shape.heads * (shape.nope + shape.value); }
  int64_t blocks(TileSize size) const {
    return TilesOf(chunk.end - chunk.begin, size.rows) * TilesOf(outputs(), size.outputs);
  }
  __device__ bool Place(int64_t block, TileSize size, Tile* tile) const {
    const int64_t output_tiles = TilesOf(outputs(), size.outputs);
    *tile = TileAt(size, block / output_tiles, chunk.end - chunk.begin, block % output_tiles,
                   outputs());
    return true;
  }
  __device__ const T* row(const Tile&, int64_t i) const { return latents[chunk.begin + i]; }
  __device__ MatrixPart<W> matrix(const Tile&, int) const { return {kv_up.data, kv_up.stride, 1}; }
  __device__ void Store(const Tile&, int64_t i, int64_t n, const float* sums) const {
    const int64_t head = n / (shape.nope + shape.value), d = n % (shape.nope + shape.value);
    if (d < shape.nope) {
      chunk.k_nope[(head * shape.nope + d) * kChunkTokens + i] = Round<T>(sums[0]);
    } else {
      chunk.values[(head * kChunkTokens + i) * shape.value + d - shape.nope] = Round<T>(sums[0]);
    }
  }
};

template <typename T>
struct TurnRopeOp {
  Shape shape;
  Latents<T> latents;
  Chunk<T> chunk;

  __device__ void operator()(int64_t token, int64_t d) const {
    chunk.k_rope[d * kChunkTokens + token] = latents[chunk.begin + token][shape.latent + d];
  }
};

// Of a head's rows, [heads, rows] each, kept from chunk to chunk.
struct RowStates {
  SoftmaxState* softmax;
  float* numerators;  // [heads, rows, dv]
};

struct BeginOp {
  RowStates states;
  int64_t value;

  __device__ void operator()(int64_t state, int64_t column) const {
    states.numerators[state * value + column] = 0.0f;
    if (column == 0) states.softmax[state] = {-Infinity(), 0.0f};
  }
};

template <typename T>
struct FinishOp {
  Shape shape;
  RowStates states;
  int64_t rows;
  Rows<T> out;

  __device__ void operator()(int64_t row, int64_t column) const {
    const int64_t state = column / shape.value * rows + row;
    const float numerator = states.numerators[state * shape.value + column % shape.value];
    out[row][column] = Round<T>(Divide(numerator, states.softmax[state].denominator));
  }
};

// sum_d q[d] keys[d, key] by fused multiply-add, d ascending, from zero.
template <typename T>
__device__ float DotDown(const T* q, const T* keys, int64_t width) {
  float sum = 0.0f;
  for (int64_t d = 0; d < width; ++d) {
    sum = FusedMultiplyAdd(ToFloat(q[d]), ToFloat(keys[d * kChunkTokens]), sum);
  }
  return sum;
}

// Takes up the chunk's pages, for kBlockRows rows of one head. Sixteen threads have a row, all of
// whose work is theirs: warps wait for none but themselves. `shared`: [kBlockRows, kPageTokens]
// scores.
template <typename T>
__global__ void AttendKernel(Shape shape, int64_t rows, Rows<const T> q, const int32_t* positions,
                             Chunk<T> chunk, float scale, RowStates states) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  const int slot = static_cast<int>(threadIdx.x) / kSumLanes;
  float* const scores = reinterpret_cast<float*>(SharedMemory()) + slot * kPageTokens;
  const int64_t head = blockIdx.x % shape.heads;
  const int64_t first_row = blockIdx.x / shape.heads * kBlockRows;
  const int64_t last_row = (rows < first_row + kBlockRows ? rows : first_row + kBlockRows) - 1;
  const bool has_row = first_row + slot <= last_row;
  const int64_t row = has_row ? first_row + slot : last_row;
  const int64_t state_index = head * rows + row;
  const T* const query = q[row * shape.heads + head];
  const T* const k_nope = chunk.k_nope + head * shape.nope * kChunkTokens;
  SoftmaxState state = has_row ? states.softmax[state_index] : SoftmaxState{0.0f, 0.0f};
  float* const numerators = states.numerators + state_index * shape.value;
  for (int64_t page = chunk.begin; page <= positions[last_row] && page < chunk.end;
       page += kPageTokens) {
    const int64_t visible = positions[row] + 1 - page;
    const int keys = static_cast<int>(visible < kPageTokens ? visible : kPageTokens);
    const bool active = has_row && keys > 0;
    const int64_t first = page - chunk.begin;
    for (int key = lane; active && key < keys; key += kSumLanes) {
      const float nope = DotDown(query, k_nope + first + key, shape.nope);
      const float rope = DotDown(query + shape.nope, chunk.k_rope + first + key, shape.rope);
      scores[key] = scale * (nope + rope);
    }
    const float shrink = TakeUpScores(active, keys, scores, &state);
    TANDEM_SYNC_WARP();
    const T* const values = chunk.values + (head * kChunkTokens + first) * shape.value;
    for (int64_t v = lane; active && v < shape.value; v += kSumLanes) {
      float sum = 0.0f;
      for (int key = 0; key < keys; ++key) {
        sum = FusedMultiplyAdd(scores[key], ToFloat(values[key * shape.value + v]), sum);
      }
      numerators[v] = FusedMultiplyAdd(numerators[v], shrink, sum);
    }
    TANDEM_SYNC_WARP();  // the exponentials have been read
  }
  if (has_row && lane == 0) states.softmax[state_index] = state;
}

Shape ShapeOf(const MlaExpandedTensors& t) {
  return {t.shape.heads, t.shape.nope_width, t.q.width() - t.shape.nope_width, t.shape.value_width,
          t.shape.latent_width};
}

// The parts of a call's scratch.
template <typename T>
struct Scratch {
  Chunk<T> chunk{};
  RowStates states{};
  size_t bytes;

  Scratch(std::byte* memory, const Shape& shape, int64_t rows) {
    ScratchParts parts(memory);
    chunk.k_nope = parts.Take<T>(shape.heads * shape.nope * kChunkTokens);
    chunk.k_rope = parts.Take<T>(shape.rope * kChunkTokens);
    chunk.values = parts.Take<T>(shape.heads * kChunkTokens * shape.value);
    states.softmax = parts.Take<SoftmaxState>(shape.heads * rows);
    states.numerators = parts.Take<float>(shape.heads * rows * shape.value);
    bytes = parts.bytes();
  }
};

template <typename T, typename W>
void LaunchExpand(Stream stream, SumOrder order, const ExpandProduct<T, W>& expand) {
  if constexpr (std::is_same_v<T, Bf16> && std::is_same_v<W, Bf16>) {
    if (order == SumOrder::kTensor) {
      const int64_t tokens = expand.chunk.end - expand.chunk.begin;
      return LaunchTensorProduct(stream, BlockRowsFor(tokens, expand), expand.shape.latent, expand);
    }
  }
  TANDEM_CHECK(order == SumOrder::kBlock);
  LaunchProduct(stream, expand.shape.latent, expand);
}

template <typename T, typename W>
void Run(Stream stream, const MlaExpandedTensors& t, std::byte* memory) {
  const Shape shape = ShapeOf(t);
  const int64_t rows = t.q.dim(0);
  Scratch<T> scratch(memory, shape, rows);
  const Latents<T> latents = {RowsOf<const T>(t.pages), DataOf<const int32_t>(t.page_table)};
  LaunchForElements(stream, shape.heads * rows, shape.value, BeginOp{scratch.states, shape.value});
  const int64_t row_blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t begin = 0; begin < t.num_tokens; begin += kChunkTokens) {
    Chunk<T>& chunk = scratch.chunk;
    chunk.begin = begin;
    chunk.end = std::min(begin + kChunkTokens, t.num_tokens);
    const ExpandProduct<T, W> expand = {shape, latents, RowsOf<const W>(t.kv_up), chunk};
    const int64_t tokens = chunk.end - begin;
    LaunchExpand(stream, t.order, expand);
    LaunchForElements(stream, tokens, shape.rope, TurnRopeOp<T>{shape, latents, chunk});
    Launch(stream, AttendKernel<T>, row_blocks * shape.heads, kThreads,
           kBlockRows * kPageTokens * sizeof(float), shape, rows, RowsOf<const T>(t.q),
           DataOf<const int32_t>(t.positions), chunk, t.scale, scratch.states);
  }
  LaunchForElements(stream, rows, shape.heads * shape.value,
                    FinishOp<T>{shape, scratch.states, rows, RowsOf<T>(t.out)});
}

}  // namespace

size_t MlaExpandedScratchBytes(const MlaExpandedTensors& t) {
  if (t.q.dtype == Dtype::kF32) return Scratch<float>(nullptr, ShapeOf(t), t.q.dim(0)).bytes;
  return Scratch<Bf16>(nullptr, ShapeOf(t), t.q.dim(0)).bytes;
}

void MlaExpanded(Stream stream, const MlaExpandedTensors& t, std::byte* scratch) {
  if (t.q.dim(0) == 0) return;
  WithType(t.q.dtype, [&](auto act) {
    WithType(t.kv_up.dtype, [&](auto factor) {
      Run<typename decltype(act)::type, typename decltype(factor)::type>(stream, t, scratch);
    });
  });
}

}  // namespace tandem::kernels::cuda

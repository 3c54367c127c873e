#include "kernels/cuda/mla_absorbed.h"

#include <cstdint>

#include "common/pages.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/running_softmax.h"

namespace tandem::kernels::cuda {
namespace {

// sum_k a[k] b[k] in lane order, by one thread.
template <typename A, typename B>
__device__ float DotInLaneOrder(const A* a, const B* b, int64_t count) {
  float sums[kSumLanes] = {};
  for (int64_t begin = 0; begin < count; begin += kSumLanes) {
    TANDEM_UNROLL
    for (int lane = 0; lane < kSumLanes; ++lane) {
      if (begin + lane < count) {
        sums[lane] =
            FusedMultiplyAdd(ToFloat(a[begin + lane]), ToFloat(b[begin + lane]), sums[lane]);
      }
    }
  }
  TANDEM_UNROLL
  for (int level = 1; level <= 4; ++level) {
    const int lanes = kSumLanes >> level;
    TANDEM_UNROLL
    for (int lane = 0; lane < kSumLanes / 2; ++lane) {
      if (lane < lanes) sums[lane] += sums[lane + lanes];
    }
  }
  return sums[0];
}

struct Shape {
  int heads;
  int64_t latent;      // r
  int64_t rope;        // dr
  int64_t rope_begin;  // dn: where q_rope begins in a head's query
  float scale;
};

// What a block keeps in shared memory of each head, [heads] each.
struct RowState {
  float* numerators;  // [heads, r]
  float* weights;     // [heads, kPageTokens]: scores, then their exponentials
  float* shrinks;     // by what the last page's maximum makes earlier sums smaller
  SoftmaxState* softmax;

  __device__ RowState(float* memory, const Shape& shape)
      : numerators(memory),
        weights(numerators + shape.heads * shape.latent),
        shrinks(weights + shape.heads * kPageTokens),
        softmax(reinterpret_cast<SoftmaxState*>(shrinks + shape.heads)) {}
};

// Of the page's first `keys` keys, for all heads.
template <typename T>
__device__ void ScorePage(const Shape& shape, Rows<const float> q_latent, Rows<const T> q,
                          Rows<const T> page, int keys, const RowState& state) {
  for (int i = static_cast<int>(threadIdx.x); i < shape.heads * keys; i += kThreads) {
    const int head = i / keys, key = i % keys;
    const T* const row = page[key];
    const float latent = DotInLaneOrder(q_latent[head], row, shape.latent);
    const float rope = DotInLaneOrder(q[head] + shape.rope_begin, row + shape.latent, shape.rope);
    state.weights[head * kPageTokens + key] = shape.scale * (latent + rope);
  }
}

// Sixteen threads per head: scores become exponentials, and the running sums take them in. All
// threads of a warp go along.
__device__ inline void WeighPage(const Shape& shape, int keys, const RowState& state) {
  for (int first = 0; first < shape.heads; first += kThreads / kSumLanes) {
    const int head = first + static_cast<int>(threadIdx.x) / kSumLanes;
    const bool active = head < shape.heads;
    SoftmaxState softmax = active ? state.softmax[head] : SoftmaxState{0.0f, 0.0f};
    float* const scores = state.weights + (active ? head : 0) * kPageTokens;
    const float shrink = TakeUpScores(active, keys, scores, &softmax);
    TANDEM_SYNC_WARP();  // a shuffle orders no memory: all have read the state
    if (!active || threadIdx.x % kSumLanes != 0) continue;
    state.shrinks[head] = shrink;
    state.softmax[head] = softmax;
  }
}

template <typename T>
__device__ void AddPage(const Shape& shape, Rows<const T> page, int keys, const RowState& state) {
  for (int64_t i = threadIdx.x; i < shape.heads * shape.latent; i += kThreads) {
    const int64_t head = i / shape.latent, column = i % shape.latent;
    const float* const weights = state.weights + head * kPageTokens;
    float sum = 0.0f;
    for (int key = 0; key < keys; ++key) {
      sum = FusedMultiplyAdd(weights[key], ToFloat(page[key][column]), sum);
    }
    state.numerators[i] = FusedMultiplyAdd(state.numerators[i], state.shrinks[head], sum);
  }
}

template <typename T>
__global__ void MlaAbsorbedKernel(Shape shape, Rows<const float> q_latent, Rows<const T> q,
                                  Rows<const T> pages, Rows<const int32_t> page_tables,
                                  const int32_t* table_of_row, const int32_t* lengths,
                                  Rows<float> out) {
  const RowState state(reinterpret_cast<float*>(SharedMemory()), shape);
  const int64_t row = blockIdx.x;
  const int64_t first_head = row * shape.heads;
  const int32_t* const table = page_tables[table_of_row[row]];
  for (int64_t i = threadIdx.x; i < shape.heads * shape.latent; i += kThreads) {
    state.numerators[i] = 0.0f;
  }
  for (int head = static_cast<int>(threadIdx.x); head < shape.heads; head += kThreads) {
    state.softmax[head] = {-Infinity(), 0.0f};
  }
  for (int64_t begin = 0; begin < lengths[row]; begin += kPageTokens) {
    const int64_t left = lengths[row] - begin;
    const int keys = static_cast<int>(left < kPageTokens ? left : kPageTokens);
    const Rows<const T> page = pages.From(int64_t{table[begin / kPageTokens]} * kPageTokens);
    TANDEM_SYNC_THREADS();  // the last page's weights have been read
    ScorePage(shape, q_latent.From(first_head), q.From(first_head), page, keys, state);
    TANDEM_SYNC_THREADS();
    WeighPage(shape, keys, state);
    TANDEM_SYNC_THREADS();
    AddPage(shape, page, keys, state);
  }
  TANDEM_SYNC_THREADS();
  for (int64_t i = threadIdx.x; i < shape.heads * shape.latent; i += kThreads) {
    const int64_t head = i / shape.latent;
    out[first_head + head][i % shape.latent] =
        Divide(state.numerators[i], state.softmax[head].denominator);
  }
}

}  // namespace

size_t MlaAbsorbedSharedBytes(int64_t heads, int64_t latent_width) {
  return static_cast<size_t>(heads * (latent_width + kPageTokens + 3)) * sizeof(float);
}

void MlaAbsorbed(Stream stream, const MlaAbsorbedTensors& t, float scale) {
  const int64_t num_rows = t.lengths.elements();
  if (num_rows == 0) return;
  const int64_t latent = t.q_latent.width(), rope = t.pages.width() - latent;
  const Shape shape = {static_cast<int>(t.q.dim(1)), latent, rope, t.q.width() - rope, scale};
  const size_t shared_bytes = MlaAbsorbedSharedBytes(shape.heads, latent);
  WithType(t.q.dtype, [&](auto act) {
    using T = typename decltype(act)::type;
    Launch(stream, MlaAbsorbedKernel<T>, num_rows, kThreads, shared_bytes, shape,
           RowsOf<const float>(t.q_latent), RowsOf<const T>(t.q), RowsOf<const T>(t.pages),
           RowsOf<const int32_t>(t.page_tables), DataOf<const int32_t>(t.table_of_row),
           DataOf<const int32_t>(t.lengths), RowsOf<float>(t.out));
  });
}

}  // namespace tandem::kernels::cuda

#include "kernels/cuda/mla_absorbed.h"

#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "common/pages.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/running_softmax.h"
#include "kernels/cuda/scratch.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kWarpLanes = 32;
constexpr int kWarps = kThreads / kWarpLanes;

struct Shape {
  int heads;
  int latent;      // r
  int rope;        // dr
  int rope_begin;  // dn: where q_rope begins in a head's query
  float scale;
};

// What there is of every row, and where its pages lie.
template <typename T>
struct Inputs {
  Rows<const float> q_latent;  // [rows * heads]
  Rows<const T> q;             // likewise
  Rows<const T> pages;
  Rows<const int32_t> page_tables;
  const int32_t* table_of_row;
  const int32_t* lengths;

  __device__ int64_t PagesOf(int64_t row) const {
    return (lengths[row] + kPageTokens - 1) / kPageTokens;
  }
  // Keys of page `page` that the row sees.
  __device__ int KeysOf(int64_t row, int64_t page) const {
    const int64_t left = lengths[row] - page * kPageTokens;
    return static_cast<int>(left < kPageTokens ? left : kPageTokens);
  }
  __device__ Rows<const T> Page(int64_t row, int64_t page) const {
    return pages.From(int64_t{page_tables[table_of_row[row]][page]} * kPageTokens);
  }
};

// Pages [begin, end) of every row's table, and what is kept of them and between spans.
struct Span {
  int64_t begin, end;
  int64_t capacity;        // pages of a row in the arrays below
  float* weights;          // [rows, capacity, heads, kPageTokens]: scores, then exponentials
  float* largest;          // [rows, capacity, heads]: a page's largest score
  float* shrinks;          // likewise: by what its maximum makes earlier sums smaller
  float* sums;             // likewise, of its exponentials
  SoftmaxState* before;    // [rows, heads], of the pages before `begin`; nothing at 0
  SoftmaxState* after;     // of those before `end`
  int64_t blocks_per_row;  // in the first two kernels

  __device__ int64_t Index(const Shape& shape, int64_t row, int64_t page, int64_t head) const {
    return (row * capacity + page - begin) * shape.heads + head;
  }
  __device__ int64_t EndOf(int64_t pages_of_row) const {
    return end < pages_of_row ? end : pages_of_row;
  }
  __device__ SoftmaxState Before(const Shape& shape, int64_t row, int64_t head) const {
    return begin == 0 ? SoftmaxState{-Infinity(), 0.0f} : before[row * shape.heads + head];
  }
};

// ---- scores ----

constexpr int kKeysOfThread = 2;  // a warp has all keys of a page
constexpr int kHeadsOfThread = 2;
constexpr int kHeadsAtOnce = kWarps * kHeadsOfThread;
static_assert(kKeysOfThread * kWarpLanes == kPageTokens);

template <typename T>
constexpr int kStageColumns = 128 / sizeof(T);  // that are in shared memory at once
template <typename T>
constexpr int kKeyStride = kStageColumns<T> +
                           16 / sizeof(T);  // of a key: other banks than the next's
template <typename T>
constexpr size_t kScoreSharedBytes =
    kPageTokens* kKeyStride<T> * sizeof(T) + kHeadsAtOnce* kStageColumns<T> * sizeof(float);

// Columns [begin, begin + kStageColumns<T>) of the page's first `keys` keys and of the queries of
// `heads` heads; zeros where there are none, which change no sum. `columns` in all, a multiple
// of 8.
template <typename T, typename Q>
__device__ void LoadStage(int begin, int columns, Rows<const T> page, int keys, Rows<const Q> q,
                          int heads, T* key_tile, float* q_tile) {
  constexpr int kOfChunk = 16 / sizeof(T), kChunks = kStageColumns<T> / kOfChunk;
  for (int at = static_cast<int>(threadIdx.x); at < kPageTokens * kChunks; at += kThreads) {
    const int key = at / kChunks, column = at % kChunks * kOfChunk;
    Chunk16<T> chunk = {};
    if (key < keys && begin + column < columns) {
      chunk = *reinterpret_cast<const Chunk16<T>*>(page[key] + begin + column);
    }
    *reinterpret_cast<Chunk16<T>*>(key_tile + key * kKeyStride<T> + column) = chunk;
  }
  for (int at = static_cast<int>(threadIdx.x); at < kHeadsAtOnce * kStageColumns<T>;
       at += kThreads) {
    const int head = at / kStageColumns<T>, column = at % kStageColumns<T>;
    const bool is_there = head < heads && begin + column < columns;
    q_tile[at] = is_there ? ToFloat(q[head][begin + column]) : 0.0f;
  }
}

// sums[h * kKeysOfThread + k] = query h of the thread . its key k over `columns` columns, in lane
// order. All threads of the block call it.
template <typename T, typename Q>
__device__ void Dot(int columns, Rows<const T> page, int keys, Rows<const Q> q, int heads,
                    float (&sums)[kHeadsOfThread * kKeysOfThread]) {
  constexpr int kSums = kHeadsOfThread * kKeysOfThread;
  constexpr int kAtOnce = 16 / sizeof(T);  // columns that are in registers
  auto* const key_tile = reinterpret_cast<T*>(SharedMemory());
  auto* const q_tile = reinterpret_cast<float*>(key_tile + kPageTokens * kKeyStride<T>);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int first_head = static_cast<int>(threadIdx.x) / kWarpLanes * kHeadsOfThread;
  const bool active = first_head < heads && lane < keys;
  float parts[kSums][kSumLanes] = {};
  for (int begin = 0; begin < columns; begin += kStageColumns<T>) {
    TANDEM_SYNC_THREADS();  // the last stage has been read
    LoadStage(begin, columns, page, keys, q, heads, key_tile, q_tile);
    TANDEM_SYNC_THREADS();
    const int here = columns - begin < kStageColumns<T> ? columns - begin : kStageColumns<T>;
    for (int column = 0; active && column < here; column += kSumLanes) {
      TANDEM_UNROLL
      for (int part = 0; part < kSumLanes; part += kAtOnce) {
        float key[kKeysOfThread][kAtOnce];
        TANDEM_UNROLL
        for (int k = 0; k < kKeysOfThread; ++k) {
          const T* const row = key_tile + (lane + k * kWarpLanes) * kKeyStride<T>;
          const auto chunk = *reinterpret_cast<const Chunk16<T>*>(row + column + part);
          TANDEM_UNROLL
          for (int j = 0; j < kAtOnce; ++j) key[k][j] = ToFloat(chunk.values[j]);
        }
        TANDEM_UNROLL
        for (int i = 0; i < kHeadsOfThread * kAtOnce; i += 4) {
          const int h = i / kAtOnce, first = i % kAtOnce;
          const float* const row = q_tile + (first_head + h) * kStageColumns<T>;
          const auto chunk = *reinterpret_cast<const Chunk<float, 4>*>(row + column + part + first);
          TANDEM_UNROLL
          for (int k = 0; k < kKeysOfThread; ++k) {
            TANDEM_UNROLL
            for (int j = 0; j < 4; ++j) {
              float& sum = parts[h * kKeysOfThread + k][part + first + j];
              sum = FusedMultiplyAdd(chunk.values[j], key[k][first + j], sum);
            }
          }
        }
      }
    }
  }
  TANDEM_UNROLL
  for (int i = 0; i < kSums; ++i) {
    TANDEM_UNROLL
    for (int level = 1; level <= 4; ++level) {
      const int lanes = kSumLanes >> level;
      TANDEM_UNROLL
      for (int part = 0; part < kSumLanes / 2; ++part) {
        if (part < lanes) parts[i][part] += parts[i][part + lanes];
      }
    }
    sums[i] = parts[i][0];
  }
}

// The page's scores and their largest, for heads [first_head, first_head + kHeadsAtOnce).
template <typename T>
__device__ void ScorePage(const Shape& shape, const Inputs<T>& in, const Span& span, int64_t row,
                          int64_t page, int first_head) {
  constexpr int kSums = kHeadsOfThread * kKeysOfThread;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int keys = in.KeysOf(row, page);
  const int heads_left = shape.heads - first_head;
  const int heads = heads_left < kHeadsAtOnce ? heads_left : kHeadsAtOnce;
  const Rows<const T> rows = in.Page(row, page), q = in.q.From(row * shape.heads + first_head);
  float latent[kSums], rope[kSums];
  Dot(shape.latent, rows, keys, in.q_latent.From(row * shape.heads + first_head), heads, latent);
  Dot(shape.rope, Rows<const T>{rows.data + shape.latent, rows.stride}, keys,
      Rows<const T>{q.data + shape.rope_begin, q.stride}, heads, rope);
  TANDEM_UNROLL
  for (int h = 0; h < kHeadsOfThread; ++h) {
    const int head = static_cast<int>(threadIdx.x) / kWarpLanes * kHeadsOfThread + h;
    const int64_t index = span.Index(shape, row, page, first_head + head);
    float largest = -Infinity();
    TANDEM_UNROLL
    for (int k = 0; k < kKeysOfThread; ++k) {
      const int key = lane + k * kWarpLanes, i = h * kKeysOfThread + k;
      const float score = shape.scale * (latent[i] + rope[i]);
      if (head >= heads || key >= keys) continue;
      span.weights[index * kPageTokens + key] = score;
      largest = Larger(score, largest);
    }
    for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
      largest = Larger(TANDEM_SHUFFLE_XOR(largest, lanes), largest);
    }
    if (head < heads && lane == 0) span.largest[index] = largest;
  }
}

template <typename T>
__global__ void TANDEM_BLOCKS_AT_ONCE(kThreads, sizeof(T) == 2 ? 2 : 1)
    ScoreKernel(Shape shape, Inputs<T> in, Span span) {
  const int64_t row = blockIdx.x / span.blocks_per_row;
  const int64_t end = span.EndOf(in.PagesOf(row));
  for (int64_t page = span.begin + blockIdx.x % span.blocks_per_row; page < end;
       page += span.blocks_per_row) {
    for (int head = 0; head < shape.heads; head += kHeadsAtOnce) {
      ScorePage(shape, in, span, row, page, head);
    }
  }
}

// ---- weights ----

template <typename T>
__global__ void WeighKernel(Shape shape, Inputs<T> in, Span span) {
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  const int64_t row = blockIdx.x / span.blocks_per_row;
  const int64_t end = span.EndOf(in.PagesOf(row));
  for (int64_t page = span.begin + blockIdx.x % span.blocks_per_row; page < end;
       page += span.blocks_per_row) {
    const int keys = in.KeysOf(row, page);
    for (int first = 0; first < shape.heads; first += kThreads / kSumLanes) {
      const int head = first + static_cast<int>(threadIdx.x) / kSumLanes;
      const bool active = head < shape.heads;
      const int64_t index = span.Index(shape, row, page, active ? head : 0);
      // What the pages before it have left.
      float before = active ? span.Before(shape, row, head).largest : 0.0f;
      for (int64_t p = span.begin + lane; active && p < page; p += kSumLanes) {
        before = Larger(span.largest[span.Index(shape, row, p, head)], before);
      }
      for (int lanes = kSumLanes / 2; lanes > 0; lanes /= 2) {
        before = Larger(TANDEM_SHUFFLE_XOR(before, lanes), before);
      }
      SoftmaxState state = {before, 0.0f};
      const float shrink = TakeUpScores(active, keys, span.weights + index * kPageTokens, &state);
      if (!active || lane != 0) continue;
      span.shrinks[index] = shrink;
      span.sums[index] = state.denominator;  // nothing, and the page's
    }
  }
}

// ---- values ----

constexpr int kColumns = 32;  // of a block, a lane each

// One page's sums of values in a column, keys ascending, by the weights of each of `heads` heads.
template <typename T, int kHeads>
__device__ void SumPage(Rows<const T> page, int64_t column, int keys, const float* weights,
                        int heads, float (&sums)[kHeads]) {
  constexpr int kAtOnce = 4;
  TANDEM_UNROLL
  for (int h = 0; h < kHeads; ++h) sums[h] = 0.0f;
  for (int first = 0; first < keys; first += kAtOnce) {
    float values[kAtOnce];
    TANDEM_UNROLL
    for (int k = 0; k < kAtOnce; ++k) {
      values[k] = first + k < keys ? ToFloat(page[first + k][column]) : 0.0f;
    }
    TANDEM_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      if (h >= heads) continue;
      const auto chunk =
          *reinterpret_cast<const Chunk<float, kAtOnce>*>(weights + h * kPageTokens + first);
      TANDEM_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k < keys) sums[h] = FusedMultiplyAdd(chunk.values[k], values[k], sums[h]);
      }
    }
  }
}

// kHeads heads of a row and kColumns columns: each warp sums another page, then threads carry on
// the running sums from page to page in order.
template <typename T, int kHeads>
__global__ void ValueKernel(Shape shape, Inputs<T> in, Span span, Rows<float> out) {
  constexpr int kElements = kHeads * kColumns;
  constexpr int kOfThread = (kElements + kThreads - 1) / kThreads;
  auto* const page_sums = reinterpret_cast<float*>(SharedMemory());  // [kWarps, kHeads, kColumns]
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  const int64_t column_tiles = (shape.latent + kColumns - 1) / kColumns;
  const int64_t head_groups = (shape.heads + kHeads - 1) / kHeads;
  // Blocks that follow each other read the same columns.
  const int64_t row = blockIdx.x / (head_groups * column_tiles);
  const int64_t first_column = blockIdx.x / head_groups % column_tiles * kColumns;
  const int first_head = static_cast<int>(blockIdx.x % head_groups) * kHeads;
  const int heads_left = shape.heads - first_head;
  const int heads = heads_left < kHeads ? heads_left : kHeads;
  const int64_t pages = in.PagesOf(row), end = span.EndOf(pages);
  if (pages <= span.begin) return;

  float numerators[kOfThread] = {}, denominators[kOfThread] = {};
  const auto element = [&](int i) { return thread + i * kThreads; };
  const auto is_there = [&](int i) {
    return element(i) < heads * kColumns && first_column + element(i) % kColumns < shape.latent;
  };
  const auto result = [&](int i) {
    return out[row * shape.heads + first_head + element(i) / kColumns] + first_column +
           element(i) % kColumns;
  };
  TANDEM_UNROLL
  for (int i = 0; i < kOfThread; ++i) {
    if (!is_there(i)) continue;
    numerators[i] = span.begin == 0 ? 0.0f : *result(i);
    denominators[i] = span.Before(shape, row, first_head + element(i) / kColumns).denominator;
  }
  for (int64_t first = span.begin; first < end; first += kWarps) {
    const int64_t page = first + warp;
    if (page < end && first_column + lane < shape.latent) {
      float sums[kHeads];
      SumPage<T, kHeads>(in.Page(row, page), first_column + lane, in.KeysOf(row, page),
                         span.weights + span.Index(shape, row, page, first_head) * kPageTokens,
                         heads, sums);
      TANDEM_UNROLL
      for (int h = 0; h < kHeads; ++h) page_sums[(warp * kHeads + h) * kColumns + lane] = sums[h];
    }
    TANDEM_SYNC_THREADS();
    const int64_t round_end = first + kWarps < end ? first + kWarps : end;
    TANDEM_UNROLL
    for (int i = 0; i < kOfThread; ++i) {
      if (!is_there(i)) continue;
      for (int64_t p = first; p < round_end; ++p) {
        const int64_t index = span.Index(shape, row, p, first_head + element(i) / kColumns);
        const float shrink = span.shrinks[index];
        const float sum = page_sums[(p - first) * kElements + element(i)];
        numerators[i] = FusedMultiplyAdd(numerators[i], shrink, sum);
        denominators[i] = FusedMultiplyAdd(denominators[i], shrink, span.sums[index]);
      }
    }
    TANDEM_SYNC_THREADS();  // the pages' sums have been read
  }
  TANDEM_UNROLL
  for (int i = 0; i < kOfThread; ++i) {
    if (!is_there(i)) continue;
    if (end == pages) {
      *result(i) = Divide(numerators[i], denominators[i]);
      continue;
    }
    *result(i) = numerators[i];
    if (first_column > 0 || element(i) % kColumns > 0) continue;
    const int64_t head = first_head + element(i) / kColumns;
    float largest = span.Before(shape, row, head).largest;
    for (int64_t p = span.begin; p < end; ++p) {
      largest = Larger(span.largest[span.Index(shape, row, p, head)], largest);
    }
    span.after[row * shape.heads + head] = {largest, denominators[i]};
  }
}

// ---- the call ----

int64_t HeadsOf(const MlaAbsorbedTensors& t) { return t.q.dim(1); }
int64_t RowsOfCall(const MlaAbsorbedTensors& t) { return t.lengths.elements(); }
constexpr int64_t kFloatsOfPage = kPageTokens + 3;  // and head, in Span

// The parts of a call's scratch.
struct Scratch {
  Span span{};
  size_t bytes;

  Scratch(std::byte* memory, const MlaAbsorbedTensors& t, const MlaAbsorbedSplit& split) {
    const int64_t heads = HeadsOf(t), rows = RowsOfCall(t);
    const int64_t pages = rows * split.pages_at_once * heads;
    ScratchParts parts(memory);
    span.capacity = split.pages_at_once;
    span.blocks_per_row = split.blocks_per_row;
    span.weights = parts.Take<float>(pages * kPageTokens);
    span.largest = parts.Take<float>(pages);
    span.shrinks = parts.Take<float>(pages);
    span.sums = parts.Take<float>(pages);
    span.before = parts.Take<SoftmaxState>(rows * heads);
    span.after = parts.Take<SoftmaxState>(rows * heads);
    bytes = parts.bytes();
  }
};

template <typename T, int kHeads>
void AddValues(Stream stream, const Shape& shape, const Inputs<T>& in, const Span& span,
               int64_t rows, Rows<float> out) {
  const int64_t column_tiles = (shape.latent + kColumns - 1) / kColumns;
  const int64_t head_groups = (shape.heads + kHeads - 1) / kHeads;
  Launch(stream, ValueKernel<T, kHeads>, rows * column_tiles * head_groups, kThreads,
         kWarps * kHeads * kColumns * sizeof(float), shape, in, span, out);
}

}  // namespace

MlaAbsorbedSplit SplitMlaAbsorbed(const MlaAbsorbedTensors& t) {
  constexpr int64_t kMostScratchBytes = int64_t{32} << 20;
  constexpr int64_t kWantedBlocks = 4 * 132;  // a few for every processor of the largest GPU
  constexpr int64_t kFewRows = 8;             // fewer blocks than that, with 16 heads each
  const int64_t rows = std::max<int64_t>(RowsOfCall(t), 1);
  const int64_t row_bytes = HeadsOf(t) * kFloatsOfPage * static_cast<int64_t>(sizeof(float));
  MlaAbsorbedSplit split{};
  split.pages_at_once = std::clamp<int64_t>(kMostScratchBytes / (rows * row_bytes), 1,
                                            std::max<int64_t>(t.page_tables.width(), 1));
  split.blocks_per_row =
      std::clamp<int64_t>((kWantedBlocks + rows - 1) / rows, 1, split.pages_at_once);
  split.few_heads_per_block = rows < kFewRows;
  return split;
}

size_t MlaAbsorbedScratchBytes(const MlaAbsorbedTensors& t, const MlaAbsorbedSplit& split) {
  return Scratch(nullptr, t, split).bytes;
}

void MlaAbsorbed(Stream stream, const MlaAbsorbedTensors& t, float scale,
                 const MlaAbsorbedSplit& split, std::byte* scratch) {
  const int64_t rows = RowsOfCall(t);
  if (rows == 0) return;
  const auto latent = static_cast<int>(t.q_latent.width());
  const int rope = static_cast<int>(t.pages.width()) - latent;
  const Shape shape = {static_cast<int>(HeadsOf(t)), latent, rope,
                       static_cast<int>(t.q.width()) - rope, scale};
  WithType(t.q.dtype, [&](auto act) {
    using T = typename decltype(act)::type;
    const Inputs<T> in = {RowsOf<const float>(t.q_latent),
                          RowsOf<const T>(t.q),
                          RowsOf<const T>(t.pages),
                          RowsOf<const int32_t>(t.page_tables),
                          DataOf<const int32_t>(t.table_of_row),
                          DataOf<const int32_t>(t.lengths)};
    TANDEM_CHECK(reinterpret_cast<uintptr_t>(in.pages.data) % sizeof(Chunk16<T>) == 0 &&
                 in.pages.stride * sizeof(T) % sizeof(Chunk16<T>) == 0);
    Span span = Scratch(scratch, t, split).span;
    for (; span.begin < t.page_tables.width(); span.begin = span.end) {
      span.end = std::min(span.begin + span.capacity, t.page_tables.width());
      Launch(stream, ScoreKernel<T>, rows * span.blocks_per_row, kThreads, kScoreSharedBytes<T>,
             shape, in, span);
      Launch(stream, WeighKernel<T>, rows * span.blocks_per_row, kThreads, 0, shape, in, span);
      if (split.few_heads_per_block) {
        AddValues<T, 4>(stream, shape, in, span, rows, RowsOf<float>(t.out));
      } else {
        AddValues<T, 16>(stream, shape, in, span, rows, RowsOf<float>(t.out));
      }
      std::swap(span.before, span.after);
    }
  });
}

}  // namespace tandem::kernels::cuda

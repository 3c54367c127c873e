// Attention in the absorbed form: queries and results are latents, the cache is read as it is.
#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/prefetch.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mla_absorbed.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/mla_inl.h"

#ifndef TANDEM_KERNELS_CPU_MLA_ABSORBED_ONCE_
#define TANDEM_KERNELS_CPU_MLA_ABSORBED_ONCE_
namespace tandem::kernels::cpu {

// Rows [row, row + rows) of one sequence and `heads` of their heads: what a thread takes up at
// once.
struct AbsorbedTask {
  int64_t row;
  int64_t rows;
  int64_t head;
  int64_t heads;
};

// Heads that share each load of a key: the most, and fewer where there are more threads.
inline constexpr int kManyHeads = 8;
inline constexpr int kSomeHeads = 4;

}  // namespace tandem::kernels::cpu
#endif  // TANDEM_KERNELS_CPU_MLA_ABSORBED_ONCE_

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int kTileKeys = HWY_CAP_GE512 ? 2 : 1;
// From so many rows on a page is widened once for all of them.
constexpr int64_t kWidenRows = 4;

// sums[h * kKeys + k] = query h . key k in lane order over `width` values, a multiple of 8.
template <int kHeads, int kKeys, typename T>
HWY_INLINE void DotTile(const float* HWY_RESTRICT q, int64_t q_stride, const T* HWY_RESTRICT keys,
                        int64_t key_stride, int64_t width, float (&sums)[kHeads * kKeys]) {
  F32x16 acc[kHeads * kKeys];
  for (F32x16& sum : acc) sum = ZeroLanes();
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    F32x16 key[kKeys];
    for (int k = 0; k < kKeys; ++k) key[k] = LoadLanes(keys + k * key_stride + i);
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 query = LoadLanes(q + h * q_stride + i);
      for (int k = 0; k < kKeys; ++k) {
        acc[h * kKeys + k] = MulAdd(query, key[k], acc[h * kKeys + k]);
      }
    }
  }
  if (i < width) {
    for (int k = 0; k < kKeys; ++k) {
      const F32x16 key = LoadLowLanes(keys + k * key_stride + i);
      for (int h = 0; h < kHeads; ++h) {
        F32x16& sum = acc[h * kKeys + k];
        sum = MulAdd(LoadLowLanes(q + h * q_stride + i), key, sum);
      }
    }
  }
  FoldAll(acc, sums);
}

// The heads of one row that are taken up together, and what they have seen so far.
template <int kHeads>
struct HeadsOfRow {
  const float* latent;  // [kHeads, r]
  const float* rope;    // [kHeads, dr]
  float* numerators;    // [kHeads, padded r]
  RunningSoftmax states[kHeads];
};

struct AbsorbedWidths {
  int64_t r;
  int64_t dr;
  int64_t padded_r;
  float scale;
};

// scores[h][j] for kKeys keys from `rows` on.
template <int kHeads, int kKeys, typename T>
HWY_INLINE void ScoreKeys(const HeadsOfRow<kHeads>& heads, const AbsorbedWidths& widths,
                          const T* rows, int64_t row_stride, float* scores) {
  float latent[kHeads * kKeys];
  float rope[kHeads * kKeys];
  DotTile<kHeads, kKeys>(heads.latent, widths.r, rows, row_stride, widths.r, latent);
  DotTile<kHeads, kKeys>(heads.rope, widths.dr, rows + widths.r, row_stride, widths.dr, rope);
  for (int h = 0; h < kHeads; ++h) {
    for (int k = 0; k < kKeys; ++k) {
      scores[h * kPageTokens + k] = widths.scale * (latent[h * kKeys + k] + rope[h * kKeys + k]);
    }
  }
}

// A page of latents, and `next`, the one that is read after it (the same where it is the last), so
// that it is asked for; null: nothing is.
template <typename T>
struct LatentPage {
  const T* rows;
  int64_t row_stride;
  const T* next;
};

// Asks for row `kKeysAhead` after row j: whoever reads a page first in a step has it from memory.
template <typename T>
HWY_INLINE void PrefetchKey(const LatentPage<T>& page, int64_t j) {
  constexpr int64_t kKeysAhead = 16;
  const int64_t ahead = j + kKeysAhead;
  const T* const row = ahead < kPageTokens ? page.rows + ahead * page.row_stride
                                           : page.next + (ahead - kPageTokens) * page.row_stride;
  const auto* const bytes = reinterpret_cast<const std::byte*>(row);
  for (int64_t at = 0; at < page.row_stride * static_cast<int64_t>(sizeof(T)); at += 64) {
    PrefetchLine(bytes + at);
  }
}

// Takes up the first `visible` keys of a page; `page_values` holds kHeads padded latents.
template <int kHeads, typename T>
HWY_NOINLINE void AttendPage(HeadsOfRow<kHeads>& heads, const AbsorbedWidths& widths,
                             const LatentPage<T>& latents, int64_t visible, float* page_values) {
  const T* const page = latents.rows;
  const int64_t row_stride = latents.row_stride;
  float scores[kHeads * kPageTokens];
  int64_t j = 0;
  for (; j + kTileKeys <= visible; j += kTileKeys) {
    if (latents.next != nullptr) {
      for (int k = 0; k < kTileKeys; ++k) PrefetchKey(latents, j + k);
    }
    ScoreKeys<kHeads, kTileKeys>(heads, widths, page + j * row_stride, row_stride, scores + j);
  }
  for (; j < visible; ++j) {
    ScoreKeys<kHeads, 1>(heads, widths, page + j * row_stride, row_stride, scores + j);
  }
  float factors[kHeads];
  int64_t of_head[kHeads];
  std::fill_n(of_head, kHeads, visible);
  TakeUpPage<kHeads>(scores, of_head, heads.states, factors);
  ColumnSums<kHeads>(scores, kPageTokens, page, row_stride, visible, widths.r, page_values,
                     widths.padded_r);
  for (int h = 0; h < kHeads; ++h) {
    TakeUpValues(page_values + h * widths.padded_r, factors[h], widths.padded_r,
                 heads.numerators + h * widths.padded_r);
  }
}

// A task's rows for kHeads heads from `head` on, page by page.
template <int kHeads, typename T>
void AttendRows(const MlaAbsorbedArgs& args, const AbsorbedTask& task, int64_t head) {
  thread_local std::vector<float> scratch;
  const int64_t r = args.q_latent.width();
  const int64_t dr = args.pages.width() - r;
  const int64_t dn = args.q.width() - dr;
  const int64_t num_heads = args.q.dim(1);
  const AbsorbedWidths widths = {r, dr, PaddedWidth(r), args.scale};
  const int64_t page_width = args.pages.width();
  const int64_t floats_of_row = kHeads * (dr + widths.padded_r);
  const int64_t zeroed = task.rows * floats_of_row + kHeads * widths.padded_r;
  Grown(scratch, zeroed + kPageTokens * page_width);
  std::fill_n(scratch.begin(), zeroed, 0.0f);
  float* const page_values = &scratch[task.rows * floats_of_row];
  float* const widened = page_values + kHeads * widths.padded_r;

  std::vector<HeadsOfRow<kHeads>> rows(task.rows);
  int64_t longest = 0;
  for (int64_t i = 0; i < task.rows; ++i) {
    float* const rope = &scratch[i * floats_of_row];
    const int64_t first = (task.row + i) * num_heads + head;
    for (int64_t h = 0; h < kHeads; ++h) {
      ConvertRow(reinterpret_cast<const T*>(Row(args.q, first + h)) + dn, args.q.dtype, dr,
                 rope + h * dr, Dtype::kF32);
    }
    rows[i].latent = reinterpret_cast<const float*>(Row(args.q_latent, first));
    rows[i].rope = rope;
    rows[i].numerators = rope + kHeads * dr;
    longest = std::max<int64_t>(longest, Ints(args.lengths)[task.row + i]);
  }

  const auto* page_table =
      reinterpret_cast<const int32_t*>(Row(args.page_tables, Ints(args.table_of_row)[task.row]));
  for (int64_t first = 0; first < longest; first += kPageTokens) {
    const int64_t in_page = std::min<int64_t>(kPageTokens, longest - first);
    const int64_t page_row = int64_t{page_table[first / kPageTokens]} * kPageTokens;
    const auto* page = reinterpret_cast<const T*>(Row(args.pages, page_row));
    // Of the last page the rows that nobody sees yet are asked for as well: there are few.
    const bool is_last = first + kPageTokens >= longest;
    const int64_t next_row =
        is_last ? page_row : int64_t{page_table[first / kPageTokens + 1]} * kPageTokens;
    const auto* next_page = reinterpret_cast<const T*>(Row(args.pages, next_row));
    const bool widen = task.rows >= kWidenRows && args.pages.dtype != Dtype::kF32;
    if (widen) {
      for (int64_t j = 0; j < in_page; ++j) {
        ConvertRow(Row(args.pages, page_row + j), args.pages.dtype, page_width,
                   widened + j * page_width, Dtype::kF32);
      }
    }
    for (int64_t i = 0; i < task.rows; ++i) {
      const int64_t visible = std::min(in_page, Ints(args.lengths)[task.row + i] - first);
      if (visible <= 0) continue;
      if (widen) {
        const LatentPage<float> latents = {widened, page_width, nullptr};
        AttendPage<kHeads>(rows[i], widths, latents, visible, page_values);
      } else {
        const LatentPage<T> latents = {page, args.pages.row_stride, next_page};
        AttendPage<kHeads>(rows[i], widths, latents, visible, page_values);
      }
    }
  }
  for (int64_t i = 0; i < task.rows; ++i) {
    for (int64_t h = 0; h < kHeads; ++h) {
      auto* const out =
          reinterpret_cast<float*>(Row(args.out, (task.row + i) * num_heads + head + h));
      StoreQuotient(rows[i].numerators + h * widths.padded_r, rows[i].states[h].sum, r, out);
    }
  }
}

template <typename T>
void AbsorbedTyped(const MlaAbsorbedArgs& args, const AbsorbedTask& task) {
  if (task.heads == kManyHeads) return AttendRows<kManyHeads, T>(args, task, task.head);
  if (task.heads == kSomeHeads) return AttendRows<kSomeHeads, T>(args, task, task.head);
  for (int64_t h = 0; h < task.heads; ++h) AttendRows<1, T>(args, task, task.head + h);
}

void AbsorbedImpl(const MlaAbsorbedArgs& args, const AbsorbedTask& task) {
  if (args.pages.dtype == Dtype::kF32) {
    AbsorbedTyped<float>(args, task);
  } else {
    AbsorbedTyped<BF16>(args, task);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(AbsorbedImpl);

namespace {

// Rows of a sequence in a task: what they keep stays in the second-level cache beside a page.
constexpr int64_t kRowsAtOnce = 16;

}  // namespace

void MlaAbsorbQuery(const MlaAbsorbQueryArgs& args, ThreadPool& pool) {
  const int64_t stride = args.q_latent.row_stride;
  TensorView out(Row(args.q_latent, 0), Dtype::kF32, {args.q.dim(0), args.q_latent.width()});
  out.row_stride = args.q.dim(1) * stride;
  MultiplyHeads({MapsOf(args.kv_up), &HeadMaps::absorb, View(args.q), out, stride}, pool);
}

void MlaAbsorbed(const MlaAbsorbedArgs& args, ThreadPool& pool) {
  const absl::Span<const int32_t> table_of_row = Ints(args.table_of_row);
  const int64_t num_rows = args.q.dim(0);
  std::vector<AbsorbedTask> runs;
  for (int64_t row = 0; row < num_rows; row += runs.back().rows) {
    runs.push_back({row, 1, 0, 0});
    int64_t& rows = runs.back().rows;
    while (rows < kRowsAtOnce && row + rows < num_rows &&
           table_of_row[row + rows] == table_of_row[row]) {
      ++rows;
    }
  }
  const int64_t heads = args.q.dim(1);
  const int64_t num_runs = static_cast<int64_t>(runs.size());
  const auto groups_of = [&](int64_t size) { return CeilDiv(heads, size); };
  int64_t size = kManyHeads;
  if (num_runs * groups_of(size) < pool.num_threads()) size = kSomeHeads;
  if (num_runs * groups_of(size) < pool.num_threads()) size = 1;
  const int64_t groups = groups_of(size);
  pool.ParallelFor(num_runs * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      AbsorbedTask task = runs[i / groups];
      task.head = i % groups * size;
      task.heads = std::min(size, heads - task.head);
      HWY_DYNAMIC_DISPATCH(AbsorbedImpl)(args, task);
    }
  });
}

void MlaProjectValue(const MlaProjectValueArgs& args, ThreadPool& pool) {
  const int64_t dv = args.kv_up.shape().value_width;
  MultiplyHeads({MapsOf(args.kv_up), &HeadMaps::value, View(args.latent), View(args.out), dv},
                pool);
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE

// Attention in the absorbed form: queries and results are latents, the cache is read as it is.
#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/row_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mla_absorbed.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/mla_inl.h"

#ifndef TANDEM_KERNELS_CPU_MLA_ABSORBED_ONCE_
#define TANDEM_KERNELS_CPU_MLA_ABSORBED_ONCE_
namespace tandem::kernels::cpu {
// Heads of a row that a task takes, and that share each load of a key.
inline constexpr int kHeadGroup = 4;
}  // namespace tandem::kernels::cpu
#endif  // TANDEM_KERNELS_CPU_MLA_ABSORBED_ONCE_

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int kTileKeys = HWY_CAP_GE512 ? 2 : 1;
constexpr int kTileRows = 4;

// sums[h][k] = query h . key k in lane order over `width` values, a multiple of 8.
template <int kHeads, int kKeys, typename T>
HWY_INLINE void DotTile(const float* HWY_RESTRICT q, int64_t q_stride, const T* HWY_RESTRICT keys,
                        int64_t key_stride, int64_t width, float (&sums)[kHeads][kKeys]) {
  F32x16 acc[kHeads][kKeys];
  for (int h = 0; h < kHeads; ++h) {
    for (int k = 0; k < kKeys; ++k) acc[h][k] = ZeroLanes();
  }
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    F32x16 key[kKeys];
    for (int k = 0; k < kKeys; ++k) key[k] = LoadLanes(keys + k * key_stride + i);
    for (int h = 0; h < kHeads; ++h) {
      const F32x16 query = LoadLanes(q + h * q_stride + i);
      for (int k = 0; k < kKeys; ++k) acc[h][k] = MulAdd(query, key[k], acc[h][k]);
    }
  }
  if (i < width) {
    for (int k = 0; k < kKeys; ++k) {
      const F32x16 key = LoadLowLanes(keys + k * key_stride + i);
      for (int h = 0; h < kHeads; ++h) {
        acc[h][k] = MulAdd(LoadLowLanes(q + h * q_stride + i), key, acc[h][k]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int k = 0; k < kKeys; ++k) sums[h][k] = Fold(acc[h][k]);
  }
}

// The heads of one row that a kernel takes up together.
struct AbsorbedQuery {
  const float* latent;  // [heads, r]
  const float* rope;    // [heads, dr]
  int64_t r;
  int64_t dr;
  float scale;
};

// scores[h][j] for kKeys keys from `rows` on.
template <int kHeads, int kKeys, typename T>
HWY_INLINE void ScoreKeys(const AbsorbedQuery& query, const T* rows, int64_t row_stride,
                          float* scores) {
  float latent[kHeads][kKeys];
  float rope[kHeads][kKeys];
  DotTile<kHeads, kKeys>(query.latent, query.r, rows, row_stride, query.r, latent);
  DotTile<kHeads, kKeys>(query.rope, query.dr, rows + query.r, row_stride, query.dr, rope);
  for (int h = 0; h < kHeads; ++h) {
    for (int k = 0; k < kKeys; ++k) {
      scores[h * kPageTokens + k] = query.scale * (latent[h][k] + rope[h][k]);
    }
  }
}

// Attends kHeads heads of one row to its `length` keys; `scratch` holds 2 * kHeads padded latents.
template <int kHeads, typename T>
void AttendHeads(const MlaAbsorbedArgs& args, const AbsorbedQuery& query, int64_t row,
                 float* scratch, float* out) {
  const int64_t padded = WidenedWidth(query.r);
  float* numerators = scratch;
  float* page_values = scratch + kHeads * padded;
  std::fill(scratch, scratch + 2 * kHeads * padded, 0.0f);
  RunningSoftmax states[kHeads];
  float scores[kHeads * kPageTokens];
  const int64_t row_stride = args.pages.row_stride;
  const int64_t length = Ints(args.lengths)[row];
  const auto* page_table =
      reinterpret_cast<const int32_t*>(Row(args.page_tables, Ints(args.table_of_row)[row]));
  for (int64_t first = 0; first < length; first += kPageTokens) {
    const int64_t page_id = page_table[first / kPageTokens];
    const T* page = reinterpret_cast<const T*>(Row(args.pages, page_id * kPageTokens));
    const int64_t visible = std::min<int64_t>(kPageTokens, length - first);
    int64_t j = 0;
    for (; j + kTileKeys <= visible; j += kTileKeys) {
      ScoreKeys<kHeads, kTileKeys>(query, page + j * row_stride, row_stride, scores + j);
    }
    for (; j < visible; ++j) {
      ScoreKeys<kHeads, 1>(query, page + j * row_stride, row_stride, scores + j);
    }
    float factors[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      factors[h] = TakeUpPage(scores + h * kPageTokens, visible, states[h]);
    }
    ColumnSums<kHeads>(scores, kPageTokens, page, row_stride, visible, query.r, page_values,
                       padded);
    for (int h = 0; h < kHeads; ++h) {
      TakeUpValues(page_values + h * padded, factors[h], padded, numerators + h * padded);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    StoreQuotient(numerators + h * padded, states[h].sum, query.r, out + h * query.r);
  }
}

template <typename T>
void AbsorbedHeadsTyped(const MlaAbsorbedArgs& args, int64_t row, int64_t head, int64_t count) {
  const int64_t first = row * args.q.dim(1) + head;
  const int64_t r = args.q_latent.width();
  const int64_t dr = args.pages.width() - r;
  const int64_t dn = args.q.width() - dr;
  std::vector<float> scratch(kHeadGroup * (dr + 2 * WidenedWidth(r)));
  float* rope = scratch.data();
  float* rest = rope + kHeadGroup * dr;
  for (int64_t h = 0; h < count; ++h) {
    ConvertRow(reinterpret_cast<const T*>(Row(args.q, first + h)) + dn, args.q.dtype, dr,
               rope + h * dr, Dtype::kF32);
  }
  AbsorbedQuery query = {reinterpret_cast<const float*>(Row(args.q_latent, first)), rope, r, dr,
                         args.scale};
  auto* out = reinterpret_cast<float*>(Row(args.out, first));
  if (count == kHeadGroup) {
    AttendHeads<kHeadGroup, T>(args, query, row, rest, out);
    return;
  }
  for (int64_t h = 0; h < count; ++h) {
    AttendHeads<1, T>(args, query, row, rest, out);
    query.latent += r;
    query.rope += dr;
    out += r;
  }
}

void AbsorbedHeadsImpl(const MlaAbsorbedArgs& args, int64_t row, int64_t head, int64_t count) {
  if (args.pages.dtype == Dtype::kF32) {
    AbsorbedHeadsTyped<float>(args, row, head, count);
  } else {
    AbsorbedHeadsTyped<BF16>(args, row, head, count);
  }
}

template <typename W>
void AbsorbTyped(const MlaAbsorbQueryArgs& args, int64_t head, int64_t row_begin, int64_t row_end) {
  const KvUpShape& shape = args.kv_up.shape();
  const TensorView& kv_up = View(args.kv_up);
  const int64_t dn = shape.nope_width;
  const int64_t heads = shape.heads;
  const int64_t r = shape.latent_width;
  const W* weight = reinterpret_cast<const W*>(kv_up.row(head * (dn + shape.value_width)));
  const int64_t w_stride = kv_up.row_stride;
  std::vector<float> q((row_end - row_begin) * dn);
  for (int64_t i = row_begin; i < row_end; ++i) {
    ConvertRow(Row(args.q, i * heads + head), args.q.dtype, dn, &q[(i - row_begin) * dn],
               Dtype::kF32);
  }
  const auto out_of = [&](int64_t i) {
    return reinterpret_cast<float*>(Row(args.q_latent, i * heads + head));
  };
  int64_t i = row_begin;
  for (; i + kTileRows <= row_end; i += kTileRows) {
    ColumnSums<kTileRows>(&q[(i - row_begin) * dn], dn, weight, w_stride, dn, r, out_of(i),
                          heads * r);
  }
  for (; i < row_end; ++i) {
    ColumnSums<1>(&q[(i - row_begin) * dn], dn, weight, w_stride, dn, r, out_of(i), heads * r);
  }
}

void AbsorbImpl(const MlaAbsorbQueryArgs& args, int64_t head, int64_t row_begin, int64_t row_end) {
  if (View(args.kv_up).dtype == Dtype::kF32) {
    AbsorbTyped<float>(args, head, row_begin, row_end);
  } else {
    AbsorbTyped<BF16>(args, head, row_begin, row_end);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(AbsorbImpl);
HWY_EXPORT(AbsorbedHeadsImpl);

namespace {

constexpr int64_t kAbsorbRows = 16;
constexpr int64_t kProjectGrain = 16;

}  // namespace

void MlaAbsorbQuery(const MlaAbsorbQueryArgs& args, ThreadPool& pool) {
  const int64_t rows = args.q.dim(0);
  const int64_t blocks = (rows + kAbsorbRows - 1) / kAbsorbRows;
  pool.ParallelFor(args.q.dim(1) * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task % blocks * kAbsorbRows;
      HWY_DYNAMIC_DISPATCH(AbsorbImpl)
      (args, task / blocks, row, std::min(row + kAbsorbRows, rows));
    }
  });
}

void MlaAbsorbed(const MlaAbsorbedArgs& args, ThreadPool& pool) {
  const int64_t heads = args.q.dim(1);
  const int64_t groups = (heads + kHeadGroup - 1) / kHeadGroup;
  pool.ParallelFor(args.q.dim(0) * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task % groups * kHeadGroup;
      HWY_DYNAMIC_DISPATCH(AbsorbedHeadsImpl)
      (args, task / groups, head, std::min<int64_t>(kHeadGroup, heads - head));
    }
  });
}

void MlaProjectValue(const MlaProjectValueArgs& args, ThreadPool& pool) {
  const int64_t rows = args.latent.dim(0);
  const int64_t heads = args.latent.dim(1);
  const int64_t r = args.latent.width();
  const int64_t dv = args.kv_up.shape().value_width;
  const int64_t head_rows = args.kv_up.shape().nope_width + dv;
  const TensorView out = View(args.out);
  const int64_t blocks = (dv + kProjectGrain - 1) / kProjectGrain;
  pool.ParallelFor(heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / blocks;
      Gemm gemm;
      gemm.x = reinterpret_cast<const float*>(Row(args.latent, head));
      gemm.x_stride = heads * args.latent.row_stride;
      gemm.rows = rows;
      gemm.k = r;
      gemm.weight = View(args.kv_up).slice_rows((head + 1) * head_rows - dv, dv);
      gemm.out = out;
      gemm.out.data = out.row(0) + head * dv * static_cast<int64_t>(DtypeBytes(out.dtype));
      const int64_t first = task % blocks * kProjectGrain;
      GemmRange(gemm, first, std::min(first + kProjectGrain, dv));
    }
  });
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE

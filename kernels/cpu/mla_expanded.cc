// Attention in the expanded form: pages outermost, each expanded once per call to keys and values
// of every head; the running softmax of every (head, row) is kept in memory meanwhile.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mla_expanded.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/mla_inl.h"

#ifndef TANDEM_KERNELS_CPU_MLA_EXPANDED_ONCE_
#define TANDEM_KERNELS_CPU_MLA_EXPANDED_ONCE_
namespace tandem::kernels::cpu {

// One head's keys and values of one page, f32. Slots beyond the prompt's last token hold zeros or
// what an earlier page left there.
struct ExpandedPage {
  const float* k_nope;  // [dn, kPageTokens]: keys lie across lanes
  const float* k_rope;  // [dr, kPageTokens]
  const float* values;  // [kPageTokens, padded dv]
  int64_t dn;
  int64_t dr;
  int64_t dv;
  float scale;
};

// Rows that see at least one key of the page, of one head.
struct ExpandedRows {
  const float* q;            // [count, dn + dr]
  const int32_t* positions;  // [count]
  int64_t count;
  float* maxima;      // [count] running maxima
  float* sums;        // [count] running denominators
  float* numerators;  // [count, padded dv]
  float* scratch;     // kExpandedTileRows * padded dv
};

// Rows whose sums share each load of a key or value.
inline constexpr int kExpandedTileRows = 6;

}  // namespace tandem::kernels::cpu
#endif  // TANDEM_KERNELS_CPU_MLA_EXPANDED_ONCE_

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// scores = scale * (nope + rope) for `count` keys, a multiple of 16, in place in `nope`.
HWY_INLINE void ScaleScores(float scale, int64_t count, const float* HWY_RESTRICT rope,
                            float* HWY_RESTRICT nope) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const F32x16 dot = Add(LoadLanes(nope + j), LoadLanes(rope + j));
    StoreLanes(Mul(SetLanes(scale), dot), nope + j);
  }
}

// Takes up the page, whose first position is `first`, for rows [row, row + kRows).
template <int kRows>
HWY_NOINLINE void AttendTile(const ExpandedPage& page, const ExpandedRows& rows, int64_t row,
                             int64_t first) {
  const int64_t padded = PaddedWidth(page.dv);
  const int64_t q_width = page.dn + page.dr;
  const float* q = rows.q + row * q_width;
  int64_t visible[kRows];  // ascending, as positions do
  for (int r = 0; r < kRows; ++r) {
    visible[r] = std::min<int64_t>(kPageTokens, rows.positions[row + r] + 1 - first);
  }
  const int64_t seen = (visible[kRows - 1] + kLanes - 1) / kLanes * kLanes;
  float weights[kRows * kPageTokens];
  float rope[kRows * kPageTokens];
  ColumnSums<kRows>(q, q_width, page.k_nope, kPageTokens, page.dn, seen, weights, kPageTokens);
  ColumnSums<kRows>(q + page.dn, q_width, page.k_rope, kPageTokens, page.dr, seen, rope,
                    kPageTokens);
  float factors[kRows];
  RunningSoftmax states[kRows];
  for (int r = 0; r < kRows; ++r) {
    ScaleScores(page.scale, seen, rope + r * kPageTokens, weights + r * kPageTokens);
    states[r] = {rows.maxima[row + r], rows.sums[row + r]};
  }
  TakeUpPage<kRows>(weights, visible, states, factors);
  for (int r = 0; r < kRows; ++r) {
    rows.maxima[row + r] = states[r].max;
    rows.sums[row + r] = states[r].sum;
  }
  ColumnSums<kRows>(weights, kPageTokens, page.values, padded, visible, padded, rows.scratch,
                    padded);
  for (int r = 0; r < kRows; ++r) {
    TakeUpValues(rows.scratch + r * padded, factors[r], padded,
                 rows.numerators + (row + r) * padded);
  }
}

void AttendPageImpl(const ExpandedPage& page, const ExpandedRows& rows, int64_t first) {
  int64_t row = 0;
  for (; row + kExpandedTileRows <= rows.count; row += kExpandedTileRows) {
    AttendTile<kExpandedTileRows>(page, rows, row, first);
  }
  for (; row < rows.count; ++row) AttendTile<1>(page, rows, row, first);
}

// out = round(numerator / sum) for one row of one head.
void FinishRowImpl(const float* numerator, float sum, int64_t dv, void* out, Dtype act) {
  if (act == Dtype::kF32) {
    StoreQuotient(numerator, sum, dv, static_cast<float*>(out));
  } else {
    StoreQuotient(numerator, sum, dv, static_cast<BF16*>(out));
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(AttendPageImpl);
HWY_EXPORT(FinishRowImpl);

namespace {

// Pages expanded between two rounds of attention: few rounds, and memory of about a megabyte per
// page for 16 heads of 128 + 128.
constexpr int64_t kGroupPages = 4;
constexpr int64_t kBlockRows = 10 * kExpandedTileRows;  // whole tiles: few rows are taken up alone

// One call. Expands a group of pages, then attends every row to them, until the last page.
class Expanded {
 public:
  Expanded(const MlaExpandedArgs& args, ThreadPool& pool)
      : args_(args),
        pool_(pool),
        rows_(args.q.dim(0)),
        heads_(args.q.dim(1)),
        maps_(MapsOf(args.kv_up)),
        page_table_(Ints(args.page_table)),
        positions_(Ints(args.positions)),
        r_(args.kv_up.shape().latent_width),
        dr_(args.pages.width() - r_),
        dn_(args.q.width() - dr_),
        dv_(args.out.width() / heads_),
        padded_dv_(PaddedWidth(dv_)),
        num_tokens_(args.num_tokens),
        k_rope_(Grown(scratch_.k_rope, kGroupPages * dr_ * kPageTokens)),
        k_nope_(Grown(scratch_.k_nope, kGroupPages * heads_ * dn_ * kPageTokens)),
        values_(Grown(scratch_.values, kGroupPages * heads_ * kPageTokens * padded_dv_)),
        maxima_(Grown(scratch_.maxima, heads_ * rows_)),
        sums_(Grown(scratch_.sums, heads_ * rows_)),
        numerators_(Grown(scratch_.numerators, heads_ * rows_ * padded_dv_)) {
    const RowKind kind = maps_.front().key.RowsFor(args.pages.dtype);
    scratch_.latents.Resize(kind, kGroupPages * kPageTokens, r_);
  }

  void Run() {
    std::fill_n(maxima_, heads_ * rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(sums_, heads_ * rows_, 0.0f);
    std::fill_n(numerators_, heads_ * rows_ * padded_dv_, 0.0f);
    const int64_t num_pages = (num_tokens_ + kPageTokens - 1) / kPageTokens;
    for (int64_t page = 0; page < num_pages; page += kGroupPages) {
      ExpandGroup(page, std::min(kGroupPages, num_pages - page));
      AttendGroup(page, std::min(kGroupPages, num_pages - page));
    }
    Finish();
  }

 private:
  // What a thread keeps between its calls.
  struct Scratch {
    MatrixRows latents;  // [kGroupPages * kPageTokens, r]
    std::vector<float> k_rope;
    std::vector<float> k_nope;
    std::vector<float> values;
    std::vector<float> maxima;
    std::vector<float> sums;
    std::vector<float> numerators;
  };

  static Scratch& ThreadScratch() {
    thread_local Scratch scratch;
    return scratch;
  }
  int64_t TokensOf(int64_t page) const {
    return std::min<int64_t>(kPageTokens, num_tokens_ - page * kPageTokens);
  }
  float* KNope(int64_t slot, int64_t head) {
    return &k_nope_[(slot * heads_ + head) * dn_ * kPageTokens];
  }
  float* KRope(int64_t slot) { return &k_rope_[slot * dr_ * kPageTokens]; }
  float* Values(int64_t slot, int64_t head) {
    return &values_[(slot * heads_ + head) * kPageTokens * padded_dv_];
  }

  void ExpandGroup(int64_t first_page, int64_t count) {
    pool_.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) ReadPage(first_page + slot, slot);
    });
    pool_.ParallelFor(count * heads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        ExpandHead(first_page + task / heads_, task / heads_, task % heads_);
      }
    });
  }

  // Takes up a page's latents and turns its rotated keys.
  void ReadPage(int64_t page, int64_t slot) {
    const Dtype act = args_.pages.dtype;
    std::vector<float> rope(dr_);
    for (int64_t j = 0; j < TokensOf(page); ++j) {
      const std::byte* row = Row(args_.pages, int64_t{page_table_[page]} * kPageTokens + j);
      scratch_.latents.Set(slot * kPageTokens + j, row, act);
      ConvertRow(row + r_ * static_cast<int64_t>(DtypeBytes(act)), act, dr_, rope.data(),
                 Dtype::kF32);
      for (int64_t d = 0; d < dr_; ++d) KRope(slot)[d * kPageTokens + j] = rope[d];
    }
  }

  // k_nope, turned, and v of one head from a page's latents.
  void ExpandHead(int64_t page, int64_t slot, int64_t head) {
    const int64_t num_tokens = TokensOf(page);
    thread_local std::vector<float> scratch;
    const float* const keys = Grown(scratch, num_tokens * dn_);
    const TensorView keys_out(scratch.data(), Dtype::kF32, {num_tokens, dn_});
    TensorView values_out(Values(slot, head), Dtype::kF32, {num_tokens, dv_});
    values_out.row_stride = padded_dv_;
    Expand(slot, maps_[head].key, keys_out);
    Expand(slot, maps_[head].value, values_out);
    float* turned = KNope(slot, head);
    for (int64_t j = 0; j < num_tokens; ++j) {
      for (int64_t d = 0; d < dn_; ++d) turned[d * kPageTokens + j] = keys[j * dn_ + d];
    }
  }

  // out = round(weight * latent) for the first out.dim(0) latents of a page.
  void Expand(int64_t slot, const Matrix& weight, const TensorView& out) {
    const bool rounds = args_.pages.dtype == Dtype::kBF16;
    const Product product = {weight, scratch_.latents, slot * kPageTokens, out.dim(0), out, nullptr,
                             rounds};
    Multiply(product, 0, out.width());
  }

  // The first row that sees a key of the page.
  int64_t FirstRowOf(int64_t page) const {
    return std::lower_bound(positions_.begin(), positions_.end(), page * kPageTokens) -
           positions_.begin();
  }

  void AttendGroup(int64_t first_page, int64_t count) {
    const int64_t first_row = FirstRowOf(first_page);
    const int64_t blocks = (rows_ - first_row + kBlockRows - 1) / kBlockRows;
    pool_.ParallelFor(heads_ * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = first_row + task % blocks * kBlockRows;
        AttendBlock(first_page, count, task / blocks, row, std::min(row + kBlockRows, rows_));
      }
    });
  }

  // Rows [row_begin, row_end) of one head against the pages of a group.
  void AttendBlock(int64_t first_page, int64_t count, int64_t head, int64_t row_begin,
                   int64_t row_end) {
    const int64_t q_width = dn_ + dr_;
    std::vector<float> scratch((row_end - row_begin) * q_width + kExpandedTileRows * padded_dv_);
    for (int64_t i = row_begin; i < row_end; ++i) {
      ConvertRow(Row(args_.q, i * heads_ + head), args_.q.dtype, q_width,
                 &scratch[(i - row_begin) * q_width], Dtype::kF32);
    }
    for (int64_t slot = 0; slot < count; ++slot) {
      const int64_t first = std::max(row_begin, FirstRowOf(first_page + slot));
      if (first >= row_end) break;
      const ExpandedPage page = {KNope(slot, head), KRope(slot), Values(slot, head), dn_, dr_, dv_,
                                 args_.scale};
      const int64_t state = head * rows_ + first;
      const ExpandedRows rows = {&scratch[(first - row_begin) * q_width],
                                 &positions_[first],
                                 row_end - first,
                                 &maxima_[state],
                                 &sums_[state],
                                 &numerators_[state * padded_dv_],
                                 &scratch[(row_end - row_begin) * q_width]};
      HWY_DYNAMIC_DISPATCH(AttendPageImpl)(page, rows, (first_page + slot) * kPageTokens);
    }
  }

  void Finish() {
    const Dtype act = args_.out.dtype;
    const int64_t head_bytes = dv_ * static_cast<int64_t>(DtypeBytes(act));
    pool_.ParallelFor(rows_, kBlockRows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t h = 0; h < heads_; ++h) {
          const int64_t state = h * rows_ + i;
          HWY_DYNAMIC_DISPATCH(FinishRowImpl)
          (&numerators_[state * padded_dv_], sums_[state], dv_, Row(args_.out, i) + h * head_bytes,
           act);
        }
      }
    });
  }

  const MlaExpandedArgs& args_;
  ThreadPool& pool_;
  const int64_t rows_;
  const int64_t heads_;
  const std::vector<HeadMaps>& maps_;
  const absl::Span<const int32_t> page_table_;
  const absl::Span<const int32_t> positions_;
  const int64_t r_;
  const int64_t dr_;
  const int64_t dn_;
  const int64_t dv_;
  const int64_t padded_dv_;
  const int64_t num_tokens_;            // keys that the last row sees
  Scratch& scratch_ = ThreadScratch();  // the caller's, which the pool's threads share
  float* const k_rope_;                 // [kGroupPages, dr, kPageTokens]
  float* const k_nope_;                 // [kGroupPages, heads, dn, kPageTokens]
  float* const values_;                 // [kGroupPages, heads, kPageTokens, padded dv]
  float* const maxima_;                 // [heads, rows]
  float* const sums_;                   // [heads, rows]
  float* const numerators_;             // [heads, rows, padded dv]
};

}  // namespace

void MlaExpanded(const MlaExpandedArgs& args, ThreadPool& pool) {
  if (args.q.dim(0) == 0) return;
  Expanded(args, pool).Run();
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE

#include "kernels/cuda/mla_absorbed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "common/pages.h"
#include "kernels/backend.h"
#include "tests/kernels/cuda/cuda_test.h"
#include "tests/kernels/mla_oracle.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr Dtype kBF16 = Dtype::kBF16;
constexpr int64_t kTables = 2, kMaxPages = 10, kPages = 22;  // more than a block has warps

void RunSplit(const cuda::MlaAbsorbedTensors& tensors, const MlaShape& shape, uint64_t seed,
              const cuda::MlaAbsorbedSplit& split) {
  // Of floats, so that what is read before it is written is a NaN.
  TestTensor scratch(kF32, {static_cast<int64_t>(cuda::MlaAbsorbedScratchBytes(tensors, split)) /
                            static_cast<int64_t>(sizeof(float))});
  for (int64_t i = 0; i < scratch.view().width(); ++i) {
    scratch.set(0, i, std::numeric_limits<float>::quiet_NaN());
  }
  cuda::MlaAbsorbed(TestStream(seed), tensors, static_cast<float>(shape.scale), split,
                    scratch.view().row(0));
}

// Rows of two sequences; what none of them sees is NaN.
struct Attention {
  Attention(const MlaShape& shape, Dtype act, std::vector<int32_t> row_lengths)
      : s(shape),
        lengths(std::move(row_lengths)),
        rows(static_cast<int64_t>(lengths.size())),
        q_latent(kF32, {rows, s.heads, s.r}),
        q(act, {rows, s.heads, s.dn + s.dr}),
        pages(act, {kPages, kPageTokens, s.r + s.dr}),
        page_ids(kTables * kMaxPages),
        tables(Ints({kTables, kMaxPages}, Shuffled())),
        table_of_row(Ints({rows}, Alternating())),
        lengths_tensor(Ints({rows}, lengths)) {
    q_latent.Fill(1);
    q.Fill(2);
    pages.Fill(3);
    for (int64_t slot = 0; slot < kPages * kPageTokens; ++slot) {
      if (Sees(slot)) continue;
      for (int64_t i = 0; i < s.r + s.dr; ++i) {
        pages.set(slot, i, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }

  std::vector<int32_t> Shuffled() {
    std::vector<int32_t> all(kPages);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), std::mt19937(4));
    std::copy_n(all.begin(), page_ids.size(), page_ids.begin());
    return page_ids;
  }
  std::vector<int32_t> Alternating() const {
    std::vector<int32_t> tables_of_rows;
    for (int64_t i = 0; i < rows; ++i) tables_of_rows.push_back(static_cast<int32_t>(i % kTables));
    return tables_of_rows;
  }
  int64_t SlotOf(int64_t row, int64_t key) const {
    return page_ids[row % kTables * kMaxPages + key / kPageTokens] * kPageTokens +
           key % kPageTokens;
  }
  bool Sees(int64_t slot) const {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t key = 0; key < lengths[row]; ++key) {
        if (SlotOf(row, key) == slot) return true;
      }
    }
    return false;
  }

  cuda::MlaAbsorbedTensors Tensors(const TestTensor& out) const {
    return {q_latent.device(),     q.device(),
            pages.device(),        tables.device(),
            table_of_row.device(), lengths_tensor.device(),
            out.device()};
  }
  TestTensor Run(uint64_t seed, const cuda::MlaAbsorbedSplit& split) const {
    TestTensor out(kF32, {rows, s.heads, s.r});
    RunSplit(Tensors(out), s, seed, split);
    return out;
  }
  TestTensor Run(uint64_t seed) const {
    const TestTensor out(kF32, {rows, s.heads, s.r});
    return Run(seed, cuda::SplitMlaAbsorbed(Tensors(out)));
  }
  TestTensor RunOnCpu() const {
    const auto cpu = MakeCpuBackend();
    TestTensor out(kF32, {rows, s.heads, s.r});
    cpu->MlaAbsorbed({q_latent.device(), q.device(), pages.device(), tables.device(),
                      table_of_row.device(), lengths_tensor.device(), out.device(),
                      static_cast<float>(s.scale)});
    return out;
  }
  OracleHead Oracle(int64_t row, int64_t head) const {
    Doubles query, keys;
    for (int64_t i = 0; i < s.r; ++i) query.push_back(q_latent.at(row * s.heads + head, i));
    for (int64_t i = 0; i < s.dr; ++i) query.push_back(q.at(row * s.heads + head, s.dn + i));
    for (int64_t key = 0; key < lengths[row]; ++key) {
      for (int64_t i = 0; i < s.r + s.dr; ++i) keys.push_back(pages.at(SlotOf(row, key), i));
    }
    return OracleAbsorbed(s, query, keys, lengths[row]);
  }

  const MlaShape s;
  const std::vector<int32_t> lengths;
  const int64_t rows;
  TestTensor q_latent, q, pages;
  std::vector<int32_t> page_ids;
  const TestTensor tables, table_of_row, lengths_tensor;
};

TEST(CudaMlaAbsorbedTest, AgreesWithTheOracleAndGivesTheCpusBits) {
  const MlaShape shapes[] = {{1, 8, 8, 8, 8, 0.3}, {4, 8, 16, 8, 40, 0.2}, {17, 4, 8, 4, 24, 0.2}};
  for (const MlaShape& shape : shapes) {
    for (const Dtype act : {kF32, kBF16}) {
      const Attention attention(shape, act, {1, 2, 63, 64, 65, 200, kMaxPages * kPageTokens});
      const TestTensor cpu = attention.RunOnCpu();
      const TestTensor first = attention.Run(0);
      for (int64_t row = 0; row < attention.rows; ++row) {
        for (int64_t head = 0; head < shape.heads; ++head) {
          const OracleHead want = attention.Oracle(row, head);
          // Errors of scores, whose sums have few terms per lane, shift weights by as much.
          const double bound = (want.score_size + 4) * 0x1p-21 * want.value_size;
          for (int64_t i = 0; i < shape.r; ++i) {
            ASSERT_NEAR(first.at(row * shape.heads + head, i), want.out[i], bound);
          }
        }
      }
      ExpectSameBits(first, cpu, 0);
      for (uint64_t seed = 1; seed < kSeeds; ++seed) {
        ExpectSameBits(attention.Run(seed), first, seed);
      }
    }
  }
}

// Of how pages, columns and heads are dealt out to blocks, and of how many pages there is scratch
// for.
TEST(CudaMlaAbsorbedTest, NoBitDependsOnTheSplit) {
  for (const MlaShape& shape : {MlaShape{4, 8, 16, 8, 40, 0.2}, {17, 4, 8, 4, 24, 0.2}}) {
    for (const Dtype act : {kF32, kBF16}) {
      const Attention attention(shape, act, {1, 64, 65, 200, 130, kMaxPages * kPageTokens});
      const TestTensor cpu = attention.RunOnCpu();
      uint64_t seed = 0;
      for (const int64_t pages_at_once : {1, 3, 10}) {
        for (const int64_t blocks_per_row : {1, 3}) {
          for (const bool few_heads : {false, true}) {
            ExpectSameBits(attention.Run(seed, {pages_at_once, blocks_per_row, few_heads}), cpu,
                           seed);
            ++seed;
          }
        }
      }
    }
  }
}

TEST(CudaMlaAbsorbedTest, FewRowsAreDealtOutToManyBlocksAndScratchIsBounded) {
  const auto split_of = [](int64_t rows, int64_t pages) {
    const auto tensor = [](Dtype dtype, std::initializer_list<int64_t> dims) {
      return DeviceAccess::Tensor(nullptr, TensorLayout(dtype, dims));
    };
    const cuda::MlaAbsorbedTensors tensors = {
        tensor(kF32, {rows, 16, 512}), tensor(kBF16, {rows, 16, 192}),
        tensor(kBF16, {1, 64, 576}),   tensor(Dtype::kI32, {rows, pages}),
        tensor(Dtype::kI32, {rows}),   tensor(Dtype::kI32, {rows}),
        tensor(kF32, {rows, 16, 512}),
    };
    const cuda::MlaAbsorbedSplit split = cuda::SplitMlaAbsorbed(tensors);
    EXPECT_LE(cuda::MlaAbsorbedScratchBytes(tensors, split), size_t{34} << 20);
    return split;
  };
  EXPECT_EQ(split_of(1, 64).blocks_per_row, 64);
  EXPECT_EQ(split_of(1, 64).pages_at_once, 64);
  EXPECT_TRUE(split_of(1, 64).few_heads_per_block);
  EXPECT_EQ(split_of(64, 64).blocks_per_row, 9);
  EXPECT_FALSE(split_of(64, 64).few_heads_per_block);
  EXPECT_EQ(split_of(512, 64).blocks_per_row, 2);
  EXPECT_LT(split_of(512, 64).pages_at_once, 16);
  EXPECT_EQ(split_of(1, 1 << 12).pages_at_once, 1 << 12);
}

TEST(CudaMlaAbsorbedTest, ARowDoesNotDependOnTheOthers) {
  const MlaShape shape = {4, 8, 8, 8, 40, 0.2};
  const Attention together(shape, kBF16, {70, 5, 130});
  const TestTensor all = together.Run(1);
  Attention alone(shape, kBF16, {70, 5, 130});
  for (int64_t row = 0; row < 3; ++row) {
    TestTensor out(kF32, {1, shape.heads, shape.r});
    const auto row_of = [&](const TestTensor& tensor) {
      return tensor.device()
          .slice_rows(row * shape.heads, shape.heads)
          .reshaped({1, shape.heads, tensor.view().width()});
    };
    const cuda::MlaAbsorbedTensors tensors = {row_of(alone.q_latent),
                                              row_of(alone.q),
                                              alone.pages.device(),
                                              alone.tables.device(),
                                              alone.table_of_row.device().slice(row, 1),
                                              alone.lengths_tensor.device().slice(row, 1),
                                              out.device()};
    RunSplit(tensors, shape, 2, cuda::SplitMlaAbsorbed(tensors));
    for (int64_t head = 0; head < shape.heads; ++head) {
      EXPECT_EQ(out.RowBytes(head), all.RowBytes(row * shape.heads + head));
    }
  }
}

}  // namespace
}  // namespace tandem::kernels

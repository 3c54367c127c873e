#include <gtest/gtest.h>

#include <algorithm>
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

// The last `rows` positions of a prompt of `num_tokens`; what it does not have is NaN.
struct Prompt {
  Prompt(const MlaShape& shape, Dtype act, Dtype weight, int64_t rows, int64_t num_tokens)
      : s(shape),
        num_tokens(num_tokens),
        q(act, {rows, s.heads, s.dn + s.dr}),
        kv_up(weight, {s.heads * (s.dn + s.dv), s.r}),
        pages(act, {kPages, kPageTokens, s.r + s.dr}),
        positions(Ints(Last(rows, num_tokens))),
        page_table(Ints(Shuffled())) {
    q.Fill(1);
    kv_up.Fill(2, 0.3f);
    pages.Fill(3);
    const auto* const table = static_cast<const int32_t*>(page_table.view().data);
    for (int64_t token = num_tokens; token < kPages * kPageTokens; ++token) {
      const int64_t slot = table[token / kPageTokens] * kPageTokens + token % kPageTokens;
      for (int64_t i = 0; i < s.r + s.dr; ++i) {
        pages.set(slot, i, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }

  static std::vector<int32_t> Last(int64_t rows, int64_t num_tokens) {
    std::vector<int32_t> positions(rows);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(num_tokens - rows));
    return positions;
  }
  static std::vector<int32_t> Shuffled() {
    std::vector<int32_t> all(kPages);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), std::mt19937(4));
    return all;
  }

  std::unique_ptr<KvUpWeight> KvUp(Backend& backend) const {
    return *backend.PrepareKvUp(kv_up.lent(), {s.heads, s.dn, s.dv, s.r}, kv_up.format());
  }
  TestTensor Expanded(Backend& backend) const {
    TestTensor out(q.view().dtype, {q.view().dim(0), s.heads * s.dv}, 3);
    backend.MlaExpanded({q.device(), *KvUp(backend), pages.device(), page_table.device(),
                         positions.device(), num_tokens, out.device(),
                         static_cast<float>(s.scale)});
    return out;
  }
  // The first and the last step of the absorbed form.
  TestTensor AbsorbedQuery(Backend& backend) const {
    TestTensor q_latent(Dtype::kF32, {q.view().dim(0), s.heads, s.r});
    backend.MlaAbsorbQuery({q.device(), *KvUp(backend), q_latent.device()});
    return q_latent;
  }
  TestTensor Projected(Backend& backend, const TestTensor& latent) const {
    TestTensor out(q.view().dtype, {q.view().dim(0), s.heads * s.dv}, 3);
    backend.MlaProjectValue({latent.device(), *KvUp(backend), out.device()});
    return out;
  }

  static constexpr int64_t kPages = 10;  // more than are expanded at once
  const MlaShape s;
  const int64_t num_tokens;
  TestTensor q, kv_up, pages, positions, page_table;
};

class CudaMlaExpandedTest : public CudaOpsTest {
 protected:
  const std::unique_ptr<Backend> cpu_ = MakeCpuBackend();
};

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaMlaExpandedTest, CudaOpsTest::AllDtypes(),
                         CudaOpsTest::NameOf);

TEST_P(CudaMlaExpandedTest, GivesTheCpusBits) {
  const MlaShape shapes[] = {
      {1, 8, 8, 8, 8, 0.3}, {3, 24, 8, 40, 16, 0.2}, {5, 8, 16, 16, 24, 0.2}};
  for (const MlaShape& shape : shapes) {
    for (const auto& [rows, tokens] :
         {std::pair{1, 1}, {1, 600}, {17, 70}, {65, 65}, {20, Prompt::kPages * kPageTokens}}) {
      const Prompt prompt(shape, act(), weight(), rows, tokens);
      const TestTensor want = prompt.Expanded(*cpu_);
      for (uint64_t seed = 0; seed < kSeeds; seed += rows == 17 ? 1 : kSeeds) {
        ExpectSameBits(prompt.Expanded(*MakeCudaBackend(seed)), want, seed);
      }
    }
  }
}

TEST_P(CudaMlaExpandedTest, BothSidesOfAbsorptionGiveTheCpusBits) {
  const MlaShape shapes[] = {{1, 8, 8, 8, 8, 0.3}, {3, 24, 8, 40, 136, 0.2}};
  for (const MlaShape& shape : shapes) {
    for (const int64_t rows : {1, 17}) {
      const Prompt prompt(shape, act(), weight(), rows, 70);
      const TestTensor q_latent = prompt.AbsorbedQuery(*cpu_);
      const TestTensor want = prompt.Projected(*cpu_, q_latent);
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        const auto cuda = MakeCudaBackend(seed);
        ExpectSameBits(prompt.AbsorbedQuery(*cuda), q_latent, seed);
        ExpectSameBits(prompt.Projected(*cuda, q_latent), want, seed);
      }
    }
  }
}

}  // namespace
}  // namespace tandem::kernels

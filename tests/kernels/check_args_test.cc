#include "kernels/check_args.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/device_access.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;
constexpr Dtype kBF16 = Dtype::kBF16;
constexpr Dtype kI32 = Dtype::kI32;
constexpr Dtype kU8 = Dtype::kU8;

// What is wrong with a tensor: no op takes f16; there are one row, one entry of the middle
// dimension of three, or eight columns too many.
enum class Fault { kNone, kDtype, kRank, kRows, kMiddle, kWidth };
// Dimensions that an op leaves to the caller.
enum Free { kNothing = 0, kRows = 1, kMiddle = 2, kWidth = 4 };

// Makes the tensors of one call, without memory; the one of index `faulty`, or all, have a fault.
class Tensors {
 public:
  static constexpr int kAll = -1;
  explicit Tensors(int faulty = kAll, Fault fault = Fault::kNone)
      : faulty_(faulty), fault_(fault) {}

  DeviceTensor operator()(Dtype dtype, std::initializer_list<int64_t> dims, int free = kNothing) {
    TensorLayout layout(dtype, dims);
    free_.push_back(free | (layout.rank == 3 ? kNothing : kMiddle));
    if (faulty_ == kAll || count() - 1 == faulty_) Spoil(layout);
    return DeviceAccess::Tensor(&memory_, layout);
  }
  int count() const { return static_cast<int>(free_.size()); }
  bool IsAllowed(int tensor, Fault fault) const {
    return (fault == Fault::kRows && (free_[tensor] & kRows) != 0) ||
           (fault == Fault::kMiddle && (free_[tensor] & kMiddle) != 0) ||
           (fault == Fault::kWidth && (free_[tensor] & kWidth) != 0);
  }

 private:
  void Spoil(TensorLayout& layout) const {
    if (fault_ == Fault::kDtype) layout.dtype = Dtype::kF16;
    if (fault_ == Fault::kRows) ++layout.shape[0];
    if (fault_ == Fault::kMiddle && layout.rank == 3) ++layout.shape[1];
    if (fault_ == Fault::kWidth) {
      layout.shape[layout.rank - 1] += 8;
      layout.row_stride += 8;
    }
    if (fault_ == Fault::kRank) {
      for (int i = layout.rank++; i > 0; --i) layout.shape[i] = layout.shape[i - 1];
      layout.shape[0] = 1;
    }
  }

  const int faulty_;
  const Fault fault_;
  std::byte memory_{};
  std::vector<int> free_;  // of each tensor
};

// A tensor for weights, of zeros.
OwnedTensor Source(Dtype dtype, std::initializer_list<int64_t> dims) {
  OwnedTensor source{TensorView(nullptr, dtype, dims), nullptr};
  const auto zeros = std::make_shared<std::vector<std::byte>>(source.view.bytes());
  source.view.data = zeros->data();
  source.memory = zeros;
  return source;
}

// Two rows; two heads of widths dn = 8, dr = 8, dv = 16 on latents of r = 24; four experts.
class CheckArgsDeathTest : public testing::Test {
 protected:
  static constexpr WeightFormat kFormat = WeightFormat::kF32;

  std::unique_ptr<Backend> backend_ = *CreateCpuBackend(1);
  std::unique_ptr<EmbeddingWeight> table_ =
      *backend_->PrepareEmbedding(Source(kF32, {5, 16}), kFormat);
  std::unique_ptr<NormWeight> norm_ = *backend_->PrepareNorm(Source(kBF16, {24}), kFormat);
  std::unique_ptr<LinearWeight> linear_ = *backend_->PrepareLinear(Source(kF32, {4, 16}), kFormat);
  std::unique_ptr<KvUpWeight> kv_up_ =
      *backend_->PrepareKvUp(Source(kF32, {48, 24}), {2, 8, 16, 24}, kFormat);
  std::unique_ptr<ExpertLayer> experts_ = *backend_->PrepareExpertLayer({4, 16, 8}, kFormat);
};

TEST_F(CheckArgsDeathTest, EveryDimensionAndDtypeOfEveryOpIsChecked) {
  struct Case {
    const char* op;
    std::function<void(Tensors& t)> check;
  };
  const std::vector<Case> cases = {
      {"Embed",
       [&](Tensors& t) {
         CheckArgs(EmbedArgs{*table_, t(kI32, {2}), t(kF32, {2, 16})});
       }},
      {"GatherRows",
       [&](Tensors& t) {
         CheckArgs(GatherRowsArgs{t(kF32, {3, 16}, kRows), t(kI32, {2}), t(kF32, {2, 16})});
       }},
      {"RmsNorm",
       [&](Tensors& t) {
         CheckArgs(RmsNormArgs{t(kBF16, {2, 24}), *norm_, t(kBF16, {2, 24}), 1e-6f});
       }},
      {"Linear",
       [&](Tensors& t) {
         CheckArgs(LinearArgs{t(kBF16, {2, 16}), *linear_, t(kF32, {2, 4})});
       }},
      {"SiluMul",
       [&](Tensors& t) {
         CheckArgs(SiluMulArgs{t(kF32, {2, 16}), t(kF32, {2, 16}), t(kF32, {2, 16})});
       }},
      {"Add",
       [&](Tensors& t) {
         CheckArgs(AddArgs{t(kBF16, {2, 16}), t(kBF16, {2, 16}), t(kBF16, {2, 16})});
       }},
      {"RopeTable",
       [&](Tensors& t) {
         CheckArgs(RopeTableArgs{t(kI32, {2}), t(kF32, {4}), 1.0f, t(kF32, {2, 8})});
       }},
      {"Rope",
       [&](Tensors& t) {
         CheckArgs(RopeArgs{t(kBF16, {2, 2, 8}, kMiddle | kWidth), t(kF32, {2, 8})});
       }},
      {"LatentAppend",
       [&](Tensors& t) {
         CheckArgs(LatentAppendArgs{t(kF32, {2, 32}), *norm_, t(kF32, {2, 8}),
                                    t(kF32, {3, kPageTokens, 32}, kRows), t(kI32, {2}),
                                    t(kI32, {2}), 1e-6f});
       }},
      {"MlaAbsorbQuery",
       [&](Tensors& t) {
         CheckArgs(MlaAbsorbQueryArgs{t(kF32, {2, 2, 16}, kWidth), *kv_up_, t(kF32, {2, 2, 24})});
       }},
      {"MlaAbsorbed",
       [&](Tensors& t) {
         CheckArgs(MlaAbsorbedArgs{t(kF32, {2, 2, 24}), t(kBF16, {2, 2, 16}, kWidth),
                                   t(kBF16, {3, kPageTokens, 32}, kRows | kWidth),
                                   t(kI32, {2, 4}, kRows | kWidth), t(kI32, {2}), t(kI32, {2}),
                                   t(kF32, {2, 2, 24}), 1.0f});
       }},
      {"MlaProjectValue",
       [&](Tensors& t) {
         CheckArgs(MlaProjectValueArgs{t(kF32, {2, 2, 24}), *kv_up_, t(kF32, {2, 32})});
       }},
      {"MlaExpanded",
       [&](Tensors& t) {
         CheckArgs(MlaExpandedArgs{
             t(kF32, {2, 2, 16}), *kv_up_, t(kF32, {3, kPageTokens, 32}, kRows),
             t(kI32, {4}, kRows | kWidth), t(kI32, {2}), 2, t(kF32, {2, 32}), 1.0f});
       }},
      {"Route",
       [&](Tensors& t) {
         CheckArgs(RouteArgs{t(kF32, {2, 16}), *linear_, 3, 2, 1, false, 1.0f, t(kI32, {2, 3}),
                             t(kF32, {2, 3})});
       }},
      {"ExpertMlp",
       [&](Tensors& t) {
         CheckArgs(ExpertMlpArgs{t(kBF16, {2, 16}, kRows), *experts_, t(kI32, {5}), t(kI32, {5}),
                                 t(kBF16, {5, 16})});
       }},
      {"Combine",
       [&](Tensors& t) {
         CheckArgs(CombineArgs{t(kF32, {5, 16}), t(kI32, {3}), t(kF32, {5}), t(kF32, {2, 16})});
       }},
      {"AdjustLogits",
       [&](Tensors& t) {
         CheckArgs(AdjustLogitsArgs{t(kF32, {2, 9}, kRows | kWidth),
                                    t(kU8, {5, sizeof(LogitAdjustment)}, kRows)});
       }},
      {"Sample",
       [&](Tensors& t) {
         CheckArgs(SampleArgs{t(kF32, {2, 9}), t(kU8, {2, sizeof(SampleRow)}), t(kU8, {9}),
                              t(kU8, {2, sizeof(SampledToken)}), t(kF32, {2, 9})});
       }},
      {"TopLogProbs",
       [&](Tensors& t) {
         CheckArgs(TopLogProbsArgs{t(kF32, {2, 9}), t(kU8, {9}), t(kI32, {2, 3}), t(kF32, {2, 3})});
       }},
      {"LogProb",
       [&](Tensors& t) {
         CheckArgs(LogProbArgs{t(kF32, {2, 9}, kWidth), t(kI32, {2}), t(kF32, {2})});
       }},
  };
  for (const Case& c : cases) {
    Tensors right;
    c.check(right);
    for (Fault fault : {Fault::kDtype, Fault::kRank}) {
      Tensors tensors(Tensors::kAll, fault);
      EXPECT_DEATH(c.check(tensors), "broken invariant") << c.op;
    }
    for (int i = 0; i < right.count(); ++i) {
      for (Fault fault :
           {Fault::kDtype, Fault::kRank, Fault::kRows, Fault::kMiddle, Fault::kWidth}) {
        SCOPED_TRACE(testing::Message()
                     << c.op << ", tensor " << i << ", fault " << static_cast<int>(fault));
        Tensors tensors(i, fault);
        if (right.IsAllowed(i, fault)) {
          c.check(tensors);
        } else {
          EXPECT_DEATH(c.check(tensors), "broken invariant");
        }
      }
    }
  }
}

TEST_F(CheckArgsDeathTest, CopyTakesAnyTwoTensorsOfOneShapeAndDtype) {
  for (Fault fault : {Fault::kNone, Fault::kDtype, Fault::kRank, Fault::kRows, Fault::kWidth}) {
    Tensors same(Tensors::kAll, fault), other(1, fault);
    CheckCopy(same(kF32, {2, 16}), same(kF32, {2, 16}));
    if (fault == Fault::kNone) continue;
    const DeviceTensor from = other(kF32, {2, 16});
    const DeviceTensor to = other(kF32, {2, 16});
    EXPECT_DEATH(CheckCopy(from, to), "broken invariant");
  }
}

TEST_F(CheckArgsDeathTest, WidthsThatWeightsAndPairsFixAreChecked) {
  Tensors t;
  const DeviceTensor x = t(kF32, {2, 16}), positions = t(kI32, {2}), heads = t(kF32, {2, 2, 8});
  const DeviceTensor frequencies = t(kF32, {3}), odd = t(kF32, {2, 7});
  EXPECT_DEATH(CheckArgs(RmsNormArgs{x, *norm_, x, 1e-6f}), "broken invariant");
  EXPECT_DEATH(CheckArgs(RopeTableArgs{positions, frequencies, 1.0f, odd}), "broken invariant");
  EXPECT_DEATH(CheckArgs(RopeArgs{heads, odd}), "broken invariant");
}

TEST_F(CheckArgsDeathTest, ConstantsAreChecked) {
  const auto expanded = [&](int64_t num_tokens) {
    Tensors t;
    CheckArgs(MlaExpandedArgs{t(kF32, {2, 2, 16}), *kv_up_, t(kF32, {3, kPageTokens, 32}),
                              t(kI32, {2}), t(kI32, {2}), num_tokens, t(kF32, {2, 32}), 1.0f});
  };
  expanded(2 * kPageTokens);
  EXPECT_DEATH(expanded(2 * kPageTokens + 1), "broken invariant");
  EXPECT_DEATH(expanded(-1), "broken invariant");
  const auto route = [&](int top_k, int num_groups, int top_groups) {
    Tensors t;
    CheckArgs(RouteArgs{t(kF32, {2, 16}), *linear_, top_k, num_groups, top_groups, false, 1.0f,
                        t(kI32, {2, top_k}), t(kF32, {2, top_k})});
  };
  route(4, 0, 0);
  EXPECT_DEATH(route(5, 0, 0), "broken invariant");
  EXPECT_DEATH(route(0, 0, 0), "broken invariant");
  EXPECT_DEATH(route(2, -1, 0), "broken invariant");
  EXPECT_DEATH(route(2, 3, 1), "broken invariant");
  EXPECT_DEATH(route(2, 2, 0), "broken invariant");
  EXPECT_DEATH(route(2, 2, 3), "broken invariant");
}

TEST_F(CheckArgsDeathTest, TensorsOfWeightsAreChecked) {
  TensorView apart(nullptr, kF32, {4, 16});
  ++apart.row_stride;
  const auto linear = [&](const OwnedTensor& tensor, WeightFormat format) {
    (void)backend_->PrepareLinear(tensor, format);
  };
  EXPECT_DEATH(linear(Source(kF32, {4, 12}), kFormat), "broken invariant");
  EXPECT_DEATH(linear(Source(kF32, {4, 8, 16}), kFormat), "broken invariant");
  EXPECT_DEATH(linear(Source(Dtype::kF16, {4, 16}), kFormat), "broken invariant");
  EXPECT_DEATH(linear(Source(kF32, {4, 16}), WeightFormat::kBF16), "broken invariant");
  EXPECT_DEATH(linear({apart, nullptr}, kFormat), "broken invariant");
  EXPECT_DEATH((void)backend_->PrepareEmbedding(Source(kF32, {16}), kFormat), "broken invariant");
  EXPECT_DEATH((void)backend_->PrepareNorm(Source(kF32, {1, 16}), kFormat), "broken invariant");

  const auto kv_up = [&](const KvUpShape& shape, int64_t width = 24) {
    (void)backend_->PrepareKvUp(Source(kF32, {48, width}), shape, kFormat);
  };
  EXPECT_DEATH(kv_up({2, 8, 8, 24}), "broken invariant");
  EXPECT_DEATH(kv_up({2, 8, 16, 16}), "broken invariant");
  EXPECT_DEATH(kv_up({2, 12, 12, 24}), "broken invariant");
  EXPECT_DEATH(kv_up({2, 24, 0, 24}), "broken invariant");
  EXPECT_DEATH(kv_up({2, 8, 16, 20}, 20), "broken invariant");

  const auto load = [&](int expert, int64_t gate, int64_t up, int64_t down) {
    (void)experts_->Load(
        expert, {Source(kF32, {gate, 16}), Source(kF32, {up, 16}), Source(kF32, {16, down})});
  };
  EXPECT_DEATH(load(0, 16, 8, 8), "broken invariant");
  EXPECT_DEATH(load(0, 8, 16, 8), "broken invariant");
  EXPECT_DEATH(load(0, 8, 8, 16), "broken invariant");
  EXPECT_DEATH(load(4, 8, 8, 8), "broken invariant");
  EXPECT_DEATH(load(-1, 8, 8, 8), "broken invariant");
  EXPECT_DEATH(experts_->Unload(4), "broken invariant");
  EXPECT_DEATH((void)backend_->PrepareExpertLayer({4, 12, 8}, kFormat), "broken invariant");
  EXPECT_DEATH((void)backend_->PrepareExpertLayer({4, 16, 12}, kFormat), "broken invariant");
  EXPECT_DEATH((void)backend_->PrepareExpertLayer({0, 16, 8}, kFormat), "broken invariant");
}

// That the seam itself checks, before any backend.
TEST_F(CheckArgsDeathTest, OpsOfABackendCheckTheirArguments) {
  Tensors t;
  const DeviceTensor x = t(kF32, {2, 8});
  const DeviceTensor out = t(kF32, {2, 4});
  EXPECT_DEATH(backend_->Linear({x, *linear_, out}), "broken invariant");
  EXPECT_DEATH(backend_->Copy(x, out), "broken invariant");
}

}  // namespace
}  // namespace tandem::kernels

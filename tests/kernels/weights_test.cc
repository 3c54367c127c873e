#include "kernels/weights.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/packed_unit.h"
#include "kernels/backend.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

constexpr Dtype kF32 = Dtype::kF32;

// A checkpoint's tensor whose memory is owned by a reference count alone.
struct Source {
  Source(std::initializer_list<int64_t> dims, uint64_t seed)
      : tensor(std::make_shared<TestTensor>(kF32, dims)) {
    tensor->Fill(seed);
  }
  OwnedTensor owned() const { return {tensor->view(), tensor}; }
  // Owners besides this.
  int64_t num_owners() const { return tensor.use_count() - 1; }

  std::shared_ptr<TestTensor> tensor;
};

TEST(PreparedWeightTest, KeepsTheFilesMemoryOnTheCpuButThatOfMatrices) {
  auto backend = *CreateCpuBackend(1);
  const Source linear({3, 8}, 1), kv_up({2 * (8 + 16), 8}, 2), embedding({5, 4}, 3), norm({8}, 4);
  {
    const auto l = *backend->PrepareLinear(linear.owned(), WeightFormat::kF32);
    const auto k = *backend->PrepareKvUp(kv_up.owned(), {2, 8, 16, 8}, WeightFormat::kF32);
    const auto e = *backend->PrepareEmbedding(embedding.owned(), WeightFormat::kF32);
    const auto n = *backend->PrepareNorm(norm.owned(), WeightFormat::kF32);
    for (const Source* source : {&embedding, &norm}) EXPECT_EQ(source->num_owners(), 1);
    for (const Source* source : {&linear, &kv_up}) EXPECT_EQ(source->num_owners(), 0);
    EXPECT_EQ(l->format(), WeightFormat::kF32);
    EXPECT_EQ(l->outputs(), 3);
    EXPECT_EQ(l->inputs(), 8);
    EXPECT_EQ(k->shape().value_width, 16);
    EXPECT_EQ(e->rows(), 5);
    EXPECT_EQ(e->width(), 4);
    EXPECT_EQ(n->width(), 8);
    // What is changed in the file is what the op reads.
    embedding.tensor->set(2, 3, 1234.5f);
    TestTensor out(kF32, {1, 4});
    backend->Embed({*e, DeviceVector<int32_t>({2}), out.device()});
    EXPECT_EQ(out.at(0, 3), 1234.5);
  }
  for (const Source* source : {&linear, &kv_up, &embedding, &norm}) {
    EXPECT_EQ(source->num_owners(), 0);
  }
}

class ExpertLayerTest : public testing::Test {
 protected:
  static constexpr int kExperts = 3;
  static constexpr int64_t kHidden = 16, kIntermediate = 24;

  struct Expert {
    explicit Expert(uint64_t seed)
        : gate({kIntermediate, kHidden}, seed),
          up({kIntermediate, kHidden}, seed + 1),
          down({kHidden, kIntermediate}, seed + 2) {}
    ExpertTensors tensors() const { return {gate.owned(), up.owned(), down.owned()}; }
    std::vector<int64_t> num_owners() const {
      return {gate.num_owners(), up.num_owners(), down.num_owners()};
    }
    Source gate, up, down;
  };

  // What the expert makes of a fixed row.
  std::vector<std::byte> Run(int expert) {
    const TestTensor x = std::move(TestTensor(kF32, {1, kHidden}).Fill(7));
    TestTensor out(kF32, {1, kHidden});
    backend_->ExpertMlp({x.device(), *layer_, DeviceVector<int32_t>({expert}),
                         DeviceVector<int32_t>({0}), out.device()});
    return out.Bytes();
  }

  const std::unique_ptr<Backend> backend_ = *CreateCpuBackend(1);
  const std::unique_ptr<ExpertLayer> layer_ =
      *backend_->PrepareExpertLayer({kExperts, kHidden, kIntermediate}, WeightFormat::kF32);
};

TEST_F(ExpertLayerTest, ExpertsComeAndGoWhileOthersStayAsTheyAre) {
  const Expert first(10), second(20), third(30);
  EXPECT_EQ(*layer_->Load(0, first.tensors()),
            int64_t{3 * 32 * 32 * sizeof(float)});  // panels of 32 outputs, blocks of 32 inputs
  const std::vector<std::byte> of_first = Run(0);
  ASSERT_TRUE(layer_->Load(2, second.tensors()).ok());
  const std::vector<std::byte> of_second = Run(2);
  EXPECT_NE(of_first, of_second);
  EXPECT_EQ(second.num_owners(), std::vector<int64_t>(3, 0));

  layer_->Unload(2);
  EXPECT_EQ(Run(0), of_first);

  ASSERT_TRUE(layer_->Load(2, third.tensors()).ok());
  EXPECT_NE(Run(2), of_second);
  layer_->Unload(2);
  ASSERT_TRUE(layer_->Load(1, second.tensors()).ok());
  EXPECT_EQ(Run(1), of_second);
  EXPECT_EQ(Run(0), of_first);
}

// Keeps one unit in memory.
class KeptInMemory final : public PackedUnit {
 public:
  bool is_kept() const override { return memory != nullptr; }
  std::shared_ptr<const std::byte> Find(const std::string& wanted, int64_t wanted_bytes,
                                        ForAll for_all) override {
    int64_t visited = 0;
    for_all(7, [&](int64_t) { __atomic_add_fetch(&visited, 1, __ATOMIC_RELAXED); });
    EXPECT_EQ(visited, 7);
    ++asked;
    return wanted == layout && wanted_bytes == bytes ? memory : nullptr;
  }
  void Keep(const std::string& its_layout, std::shared_ptr<const std::byte> its_memory,
            int64_t its_bytes) override {
    ++kept;
    layout = its_layout;
    memory = std::move(its_memory);
    bytes = its_bytes;
  }

  int asked = 0;
  int kept = 0;
  std::string layout;
  std::shared_ptr<const std::byte> memory;
  int64_t bytes = 0;
};

class PackedUnitTest : public testing::TestWithParam<WeightFormat> {};

// The tensors of a later start are others on purpose: what is kept is used, and they are not read.
TEST_P(PackedUnitTest, ALinearMapIsTakenFromWhatIsKept) {
  auto backend = *CreateCpuBackend(2);
  TestTensor tensor(kF32, {70, 136}), other(kF32, {70, 136}), x(kF32, {3, 136});
  tensor.Fill(1);
  other.Fill(2);
  x.Fill(3);
  KeptInMemory unit;
  const auto run = [&](const TestTensor& source, PackedUnit* from) {
    TestTensor out(kF32, {3, 70});
    const auto linear = *backend->PrepareLinear(source.lent(), GetParam(), from);
    backend->Linear({x.device(), *linear, out.device()});
    return out.Bytes();
  };
  const auto first = run(tensor, &unit);
  EXPECT_EQ(unit.kept, 1);
  EXPECT_EQ(first, run(tensor, nullptr));
  EXPECT_EQ(first, run(other, &unit));
  EXPECT_EQ(unit.kept, 1);
  EXPECT_EQ(unit.asked, 2);

  unit.layout += " of another version";
  EXPECT_EQ(run(other, &unit), run(other, nullptr));
  EXPECT_EQ(unit.kept, 2);
}

TEST_P(PackedUnitTest, AnExpertIsTakenFromWhatIsKept) {
  auto backend = *CreateCpuBackend(2);
  const ExpertLayerShape shape{2, 136, 40};
  TestTensor x(kF32, {3, 136});
  x.Fill(9);
  const std::vector<int32_t> rows = {0, 1, 2}, experts = {1, 1, 1};
  KeptInMemory unit;
  const auto run = [&](uint64_t seed, PackedUnit* from) {
    const Source gate({40, 136}, seed), up({40, 136}, seed + 1), down({136, 40}, seed + 2);
    const auto layer = *backend->PrepareExpertLayer(shape, GetParam());
    EXPECT_GT(*layer->Load(1, {gate.owned(), up.owned(), down.owned()}, from), 0);
    TestTensor out(kF32, {3, 136});
    backend->ExpertMlp(
        {x.device(), *layer, DeviceVector(experts), DeviceVector(rows), out.device()});
    return out.Bytes();
  };
  const auto first = run(1, &unit);
  EXPECT_EQ(first, run(1, nullptr));
  EXPECT_EQ(first, run(5, &unit));
  EXPECT_EQ(unit.kept, 1);
}

// Of an outline of its tensors, without their values, and of what another layer has packed.
TEST_P(PackedUnitTest, AnExpertIsTakenFromWhatAnotherLayerPacked) {
  auto backend = *CreateCpuBackend(2);
  const ExpertLayerShape shape{2, 136, 40};
  TestTensor x(kF32, {1, 136});
  x.Fill(9);
  const auto run = [&](const ExpertLayer& layer) {
    TestTensor out(kF32, {1, 136});
    backend->ExpertMlp(
        {x.device(), layer, DeviceVector<int32_t>({1}), DeviceVector<int32_t>({0}), out.device()});
    return out.Bytes();
  };
  const Source gate({40, 136}, 1), up({40, 136}, 2), down({136, 40}, 3);
  const auto first = *backend->PrepareExpertLayer(shape, GetParam());
  ASSERT_TRUE(first->Load(1, {gate.owned(), up.owned(), down.owned()}).ok());
  const auto outline = [](std::initializer_list<int64_t> dims) {
    return OwnedTensor{TensorView(nullptr, kF32, dims), nullptr};
  };
  const ExpertTensors outlines{outline({40, 136}), outline({40, 136}), outline({136, 40})};
  const PackedLayout layout = first->LayoutOf(outlines);
  KeptInMemory unit;
  unit.Keep(layout.name, first->Packed(1), layout.bytes);
  const auto second = *backend->PrepareExpertLayer(shape, GetParam());
  ASSERT_TRUE(second->Load(1, outlines, &unit).ok());
  EXPECT_EQ(run(*second), run(*first));
  // They share the memory, which stays.
  EXPECT_EQ(second->Packed(1), first->Packed(1));
  const auto before = run(*first);
  first->Unload(1);
  EXPECT_EQ(run(*second), before);
}

// Two weights whose bytes mean different things never have one layout.
TEST(PackedLayoutTest, NamesFormatAndShape) {
  auto backend = *CreateCpuBackend(1);
  std::set<std::string> names;
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const auto& [outputs, inputs] : {std::pair{64, 128}, {128, 64}, {32, 256}, {33, 128}}) {
      KeptInMemory unit;
      const TestTensor tensor(kF32, {outputs, inputs});
      ASSERT_TRUE(backend->PrepareLinear(tensor.lent(), format, &unit).ok());
      names.insert(unit.layout);
    }
  }
  EXPECT_EQ(names.size(), 12);
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedUnitTest,
                         testing::Values(WeightFormat::kF32, WeightFormat::kInt8,
                                         WeightFormat::kInt4),
                         [](const auto& info) { return WeightFormatName(info.param); });

}  // namespace
}  // namespace tandem::kernels

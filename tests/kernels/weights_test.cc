#include "kernels/weights.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

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
    for (const Source* source : {&kv_up, &embedding, &norm}) EXPECT_EQ(source->num_owners(), 1);
    EXPECT_EQ(linear.num_owners(), 0);
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

}  // namespace
}  // namespace tandem::kernels

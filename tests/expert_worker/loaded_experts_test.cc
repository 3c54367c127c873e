#include "expert_worker/loaded_experts.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/source_path.h"

namespace tandem {
namespace {

constexpr WorkerId kSelf = 1;
constexpr int kLayer = 1;  // the first with routed experts

// On tests/golden/tiny: three layers, the first dense, 32 experts.
class LoadedExpertsTest : public testing::TestWithParam<WeightFormat> {
 protected:
  // A worker's table, with a checkpoint of its own, whose counters say what was read.
  struct Worker {
    std::unique_ptr<Checkpoint> checkpoint;
    std::unique_ptr<LoadedExperts> experts;
  };
  Worker MakeWorker() {
    Worker worker;
    worker.checkpoint = *Checkpoint::Open(test::SourcePath("tests/golden/tiny"));
    worker.experts = *LoadedExperts::Create(worker.checkpoint.get(), backend_.get(), GetParam());
    return worker;
  }
  // The first `count` experts of the layer.
  Placement Some(const Worker& worker, int count, uint64_t version = 1) {
    Placement placement;
    placement.version = {1, version};
    placement.num_layers = worker.checkpoint->config().num_layers;
    placement.num_experts = worker.checkpoint->config().num_experts;
    placement.holders.resize(static_cast<size_t>(placement.num_layers) * placement.num_experts);
    for (int i = 0; i < count; ++i) {
      placement.holders[kLayer * placement.num_experts + i] = {kSelf};
    }
    return placement;
  }

  const std::unique_ptr<kernels::Backend> backend_ = *kernels::CreateCpuBackend(1);
};

std::string Bytes(const PackedBytes& packed) {
  return {reinterpret_cast<const char*>(packed.memory.get()),
          static_cast<size_t>(packed.layout.bytes)};
}

// As they are packed, and nothing is read of the checkpoint.
TEST_P(LoadedExpertsTest, AreTakenFromAnotherWorker) {
  Worker first = MakeWorker(), second = MakeWorker();
  ASSERT_TRUE(first.experts->Load(Some(first, 3), kSelf, nullptr).ok());
  EXPECT_GT(first.checkpoint->mapped_bytes(), 0);
  std::vector<float> shares;
  std::vector<int> asked;
  const absl::Status loaded = second.experts->Load(
      Some(second, 3), kSelf, [&](float share) { shares.push_back(share); }, nullptr,
      [&](int layer, int expert, const PackedLayout& layout) {
        asked.push_back(expert);
        const auto packed = first.experts->Packed(layer, expert);
        EXPECT_TRUE(packed.ok()) << packed.status();
        EXPECT_EQ(packed->layout.name, layout.name);
        EXPECT_EQ(packed->layout.bytes, layout.bytes);
        return packed->memory;
      });
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(asked, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(second.checkpoint->mapped_bytes(), 0);
  EXPECT_EQ(second.experts->num_loaded(), 3);
  EXPECT_EQ(second.experts->bytes(), first.experts->bytes());
  ASSERT_FALSE(shares.empty());
  EXPECT_EQ(shares.back(), 1);
  for (const int expert : {0, 1, 2}) {
    EXPECT_EQ(Bytes(*second.experts->Packed(kLayer, expert)),
              Bytes(*first.experts->Packed(kLayer, expert)));
  }
}

TEST_P(LoadedExpertsTest, WhatNobodyHasIsReadFromTheCheckpoint) {
  Worker first = MakeWorker(), second = MakeWorker();
  ASSERT_TRUE(first.experts->Load(Some(first, 3), kSelf, nullptr).ok());
  ASSERT_TRUE(second.experts
                  ->Load(Some(second, 3), kSelf, nullptr, nullptr,
                         [&](int layer, int expert, const PackedLayout&) {
                           return expert == 1 ? nullptr
                                              : first.experts->Packed(layer, expert)->memory;
                         })
                  .ok());
  EXPECT_EQ(second.checkpoint->mapped_tensors(), 3);  // of one
  for (const int expert : {0, 1, 2}) {
    EXPECT_EQ(Bytes(*second.experts->Packed(kLayer, expert)),
              Bytes(*first.experts->Packed(kLayer, expert)));
  }
}

TEST_P(LoadedExpertsTest, OnlyWhatIsLoadedIsGivenAndStaysThoughItIsLetGo) {
  Worker worker = MakeWorker();
  const auto code = [&](int64_t layer, int32_t expert) {
    return worker.experts->Packed(layer, expert).status().code();
  };
  EXPECT_EQ(code(kLayer, 0), absl::StatusCode::kNotFound);
  EXPECT_EQ(code(0, 0), absl::StatusCode::kInvalidArgument);  // dense
  EXPECT_EQ(code(-1, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(kLayer, 32), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(kLayer, -1), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(worker.experts->Load(Some(worker, 1), kSelf, nullptr).ok());
  const PackedBytes packed = *worker.experts->Packed(kLayer, 0);
  const std::string before = Bytes(packed);
  ASSERT_TRUE(worker.experts->Load(Some(worker, 0, 2), kSelf, nullptr).ok());
  worker.experts->Retire({1, 2});
  EXPECT_EQ(worker.experts->num_loaded(), 0);
  EXPECT_EQ(code(kLayer, 0), absl::StatusCode::kNotFound);
  EXPECT_EQ(Bytes(packed), before);
}

INSTANTIATE_TEST_SUITE_P(Formats, LoadedExpertsTest,
                         testing::Values(WeightFormat::kF32, WeightFormat::kBF16,
                                         WeightFormat::kInt8, WeightFormat::kInt4),
                         [](const auto& info) { return WeightFormatName(info.param); });

}  // namespace
}  // namespace tandem

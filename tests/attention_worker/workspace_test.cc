#include "attention_worker/workspace.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

namespace tandem {
namespace {

class WorkspaceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = kernels::CreateCpuBackend(1);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
  }
  std::unique_ptr<kernels::Backend> backend_;
};

TEST_F(WorkspaceTest, TensorsDoNotOverlapAcrossAllSizes) {
  Workspace workspace(backend_.get());
  for (int pass = 0; pass < 2; ++pass) {
    workspace.Clear();
    std::vector<TensorView> taken;
    for (int64_t i = 0; i < 12; ++i) {
      taken.push_back(workspace.Take(Dtype::kF32, {1 + i * i * 1000, 3 + i}));
      std::memset(taken.back().data, static_cast<int>(i + 1), taken.back().bytes());
    }
    for (size_t i = 0; i < taken.size(); ++i) {
      const auto* bytes = taken[i].as<uint8_t>();
      EXPECT_EQ(bytes[0], i + 1);
      EXPECT_EQ(bytes[taken[i].bytes() - 1], i + 1);
    }
  }
}

TEST_F(WorkspaceTest, AScopeGivesItsMemoryToTheNext) {
  Workspace workspace(backend_.get());
  const TensorView kept = workspace.Take(Dtype::kF32, {4, 4});
  void* first = nullptr;
  {
    Workspace::Scope scope(&workspace);
    first = workspace.Take(Dtype::kBF16, {100, 10}).data;
  }
  Workspace::Scope scope(&workspace);
  const TensorView second = workspace.Take(Dtype::kBF16, {100, 10});
  EXPECT_EQ(second.data, first);
  EXPECT_NE(second.data, kept.data);
}

TEST_F(WorkspaceTest, SharedRowsAreReusedOnlyWhenNobodyHoldsThem) {
  SharedRows rows(backend_.get());
  auto held = rows.Take(Dtype::kF32, {8, 8});
  void* const first = held.view.data;
  const auto other = rows.Take(Dtype::kF32, {8, 8});
  EXPECT_NE(other.view.data, first);
  // Given back from another thread, as a late attempt would.
  std::thread([owner = std::exchange(held.owner, nullptr)]() mutable { owner.reset(); }).join();
  EXPECT_EQ(rows.Take(Dtype::kF32, {4, 8}).view.data, first);
}

}  // namespace
}  // namespace tandem

#include "attention_worker/workspace.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/device_access.h"

namespace tandem {
namespace {

void* Data(const kernels::DeviceTensor& tensor) { return kernels::DeviceAccess::Address(tensor); }

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
    std::vector<kernels::DeviceTensor> taken;
    for (int64_t i = 0; i < 12; ++i) {
      taken.push_back(workspace.Take(Dtype::kF32, {1 + i * i * 1000, 3 + i}));
      std::memset(Data(taken.back()), static_cast<int>(i + 1), taken.back().bytes());
    }
    for (size_t i = 0; i < taken.size(); ++i) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(Data(taken[i]));
      EXPECT_EQ(bytes[0], i + 1);
      EXPECT_EQ(bytes[taken[i].bytes() - 1], i + 1);
    }
  }
}

TEST_F(WorkspaceTest, AScopeGivesItsMemoryToTheNext) {
  Workspace workspace(backend_.get());
  const auto kept = workspace.Take(Dtype::kF32, {4, 4});
  void* first = nullptr;
  {
    Workspace::Scope scope(&workspace);
    first = Data(workspace.Take(Dtype::kBF16, {100, 10}));
  }
  Workspace::Scope scope(&workspace);
  const auto second = workspace.Take(Dtype::kBF16, {100, 10});
  EXPECT_EQ(Data(second), first);
  EXPECT_NE(Data(second), Data(kept));
}

}  // namespace
}  // namespace tandem

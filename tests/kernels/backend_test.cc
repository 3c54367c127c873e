#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "common/mode.h"
#include "common/tensor.h"
#include "kernels/device_access.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

// Host code that reads a device's memory does not compile: there is no name for its address.
template <typename T>
concept HostReadable = requires(const T& t) {
  t.data;
}
|| requires(const T& t) { t.data(); }
|| requires(const T& t) { t.row(0); }
|| requires(const T& t) { t.address_; }
|| requires(const T& t) { t.template as<float>(); };
static_assert(HostReadable<TensorView>);
static_assert(!HostReadable<DeviceTensor> && !HostReadable<Buffer>);
static_assert(!std::is_convertible_v<DeviceTensor, TensorView>);
static_assert(!std::is_convertible_v<TensorView, DeviceTensor>);

TEST(CpuBackendTest, DescribesItself) {
  auto backend = CreateCpuBackend(2);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->Description().rfind("cpu avx", 0), 0u) << (*backend)->Description();
  EXPECT_NE((*backend)->Description().find(", 2 threads"), std::string::npos);
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kInt8, WeightFormat::kInt4}) {
    EXPECT_EQ((*backend)->NumericsClass(Dtype::kF32, format), "portable-1");
    EXPECT_EQ((*backend)->NumericsClass(Dtype::kBF16, format), "portable-1");
  }
}

TEST(CpuBackendTest, RefusesANegativeNumberOfThreads) {
  EXPECT_EQ(CreateCpuBackend(-1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuBackendTest, AllocatesZeroedAlignedMemory) {
  auto backend = *CreateCpuBackend(1);
  for (int64_t bytes : {0, 1, 63, 64, 65, 100000}) {
    auto buffer = backend->Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ((*buffer)->bytes(), static_cast<size_t>(bytes));
    const std::byte* data = DeviceAccess::Address((*buffer)->Tensor(Dtype::kU8, {bytes}));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], std::byte{0});
  }
}

TEST(CpuBackendTest, SaysThatMemoryIsExhausted) {
  auto backend = *CreateCpuBackend(1);
  EXPECT_EQ(backend->Allocate(SIZE_MAX - 10).status().code(), absl::StatusCode::kResourceExhausted);
}

std::vector<float> Ascending(int count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

TEST(CpuBackendTest, WritesAndReadsRowsThatLieApart) {
  auto backend = *CreateCpuBackend(1);
  TestTensor t(Dtype::kF32, {3, 5}, /*row_gap=*/2);
  const std::vector<float> from = Ascending(15);
  std::vector<float> to(15);
  backend->Write(from.data(), t.device());
  EXPECT_EQ(t.at(1, 0), 5.0);
  EXPECT_EQ(t.at(2, 4), 14.0);
  EXPECT_EQ(t.view().row(1)[5 * sizeof(float)], std::byte{0xEE}) << "wrote between the rows";
  backend->Read(t.device(), to.data())->Wait();
  EXPECT_EQ(from, to);
}

TEST(CpuBackendTest, ReadsEventIsReachedAndSaysSoOnce) {
  auto backend = *CreateCpuBackend(1);
  const std::vector<int32_t> from = {1, 2, 3};
  std::vector<int32_t> to(3), when_reached;
  const auto event = backend->Read(DeviceVector(from), to.data());
  event->Wait();
  EXPECT_TRUE(event->Reached());
  EXPECT_EQ(to, from);
  int calls = 0;
  event->WhenReached([&] {
    ++calls;
    when_reached = to;
  });
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(when_reached, from);
}

TEST(CpuBackendTest, CopiesBetweenTensorsOfDifferentRowDistance) {
  auto backend = *CreateCpuBackend(1);
  const TestTensor from = std::move(TestTensor(Dtype::kBF16, {3, 5}, /*row_gap=*/4).Fill(1));
  for (int64_t row_gap : {0, 4, 7}) {
    TestTensor to(Dtype::kBF16, {3, 5}, row_gap);
    backend->Copy(from.device(), to.device());
    EXPECT_EQ(to.Bytes(), from.Bytes());
    if (row_gap == 0) continue;
    EXPECT_EQ(to.view().row(1)[to.RowBytes(1).size()], std::byte{0xEE}) << "wrote between the rows";
  }
}

TEST(DeviceTensorTest, SlicesAndOtherShapesNameTheSameMemory) {
  auto backend = *CreateCpuBackend(1);
  auto buffer = *backend->Allocate(64 + 24 * sizeof(float));
  const DeviceTensor all = buffer->Tensor(Dtype::kF32, {2, 3, 4}, /*offset_bytes=*/64);
  backend->Write(Ascending(24).data(), all);
  const auto read = [&](const DeviceTensor& tensor) {
    std::vector<float> values(tensor.elements());
    backend->Read(tensor, values.data())->Wait();
    return values;
  };
  EXPECT_EQ(read(buffer->Tensor(Dtype::kF32, {2}, 64 + 5 * sizeof(float))),
            (std::vector<float>{5, 6}));
  EXPECT_EQ(read(all.slice_rows(4, 1)), (std::vector<float>{16, 17, 18, 19}));
  EXPECT_EQ(read(all.reshaped({24}).slice(7, 3)), (std::vector<float>{7, 8, 9}));
  EXPECT_EQ(read(all.reshaped({3, 8}).slice_rows(2, 1).slice_rows(0, 1)),
            read(all.reshaped({24}).slice(16, 8)));
}

TEST(DeviceTensorDeathTest, TensorsBeyondTheirMemoryEndTheProcess) {
  auto backend = *CreateCpuBackend(1);
  auto buffer = *backend->Allocate(64);
  EXPECT_DEATH(buffer->Tensor(Dtype::kF32, {4, 4}, 4), "broken invariant");
  EXPECT_DEATH(buffer->Tensor(Dtype::kU8, {0}, 65), "broken invariant");
  const DeviceTensor tensor = buffer->Tensor(Dtype::kF32, {4, 4});
  EXPECT_DEATH(tensor.reshaped({5, 4}), "broken invariant");
  const TestTensor apart(Dtype::kF32, {2, 8}, /*row_gap=*/1);
  EXPECT_DEATH(apart.device().reshaped({16}), "broken invariant");
}

}  // namespace
}  // namespace tandem::kernels

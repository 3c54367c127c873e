// The backend's memory and its order of work. The emulation's stream, too, does things later than
// they are asked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/test_tensor.h"

namespace tandem::kernels {
namespace {

using testing::HasSubstr;

constexpr size_t kMiB = 1 << 20;

TEST(CudaBackendTest, SaysWhatItIsAndHowMuchItHas) {
  const auto backend = *CreateCudaBackend({64 * kMiB});
  EXPECT_THAT(backend->Description(), testing::MatchesRegex("cuda .+, 64 MiB"));
  EXPECT_EQ(backend->MemoryBytes(), 64 * kMiB);
  // Tensor cores add in an order of their own, and are for bf16 with bf16 alone.
  EXPECT_THAT(backend->NumericsClass(Dtype::kBF16, WeightFormat::kBF16),
              testing::MatchesRegex("tensor-.+-1"));
  EXPECT_EQ(backend->NumericsClass(Dtype::kF32, WeightFormat::kBF16), "portable-1");
  EXPECT_EQ(backend->NumericsClass(Dtype::kBF16, WeightFormat::kF32), "portable-1");
  const auto portable = *CreateCudaBackend({64 * kMiB, Numerics::kPortable});
  EXPECT_EQ(portable->NumericsClass(Dtype::kBF16, WeightFormat::kBF16), "portable-1");
}

TEST(CudaBackendTest, RefusesMoreMemoryThanTheGpuHas) {
  const absl::Status status = CreateCudaBackend({size_t{1} << 40}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1099511627776 are wanted"));
}

TEST(CudaBackendTest, MemoryEndsWithASentenceAndComesBack) {
  const auto backend = *CreateCudaBackend({8 * kMiB});
  auto first = *backend->Allocate(5 * kMiB);
  const absl::Status status = backend->Allocate(5 * kMiB).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("5242880 bytes side by side"));
  first.reset();
  EXPECT_TRUE(backend->Allocate(5 * kMiB).ok());
  EXPECT_EQ(backend->Allocate(SIZE_MAX).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(CudaBackendTest, IntegerWeightsAreNotThere) {
  const auto backend = *CreateCudaBackend({8 * kMiB});
  const TestTensor tensor(Dtype::kBF16, {8, 8});
  const absl::Status status = backend->PrepareLinear(tensor.lent(), WeightFormat::kInt8).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no int8 weights"));
  EXPECT_FALSE(backend->PrepareExpertLayer({2, 8, 8}, WeightFormat::kInt4).ok());
}

// Larger than what pinned memory holds at once, by rows and by one row.
TEST(CudaBackendTest, ReadsWhatWasWrittenWhateverItsSize) {
  const auto backend = *CreateCudaBackend({128 * kMiB});
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 5 << 20}, {7000, 701}, {3, 1}}) {
    const auto buffer = *backend->Allocate(rows * (width + 3) * sizeof(float));
    const DeviceTensor all = buffer->Tensor(Dtype::kF32, {rows, width + 3});
    DeviceTensor tensor = all;  // a gap between rows
    tensor.shape[1] = width;
    std::vector<float> values(rows * width), read(rows * width);
    std::iota(values.begin(), values.end(), 1.0f);
    backend->Write(values.data(), tensor);
    const auto event = backend->Read(tensor, read.data());
    event->Wait();
    EXPECT_TRUE(event->Reached());
    EXPECT_EQ(read, values);
    std::vector<float> gap(rows * (width + 3));
    backend->Read(all, gap.data())->Wait();
    EXPECT_EQ(gap[width], 0.0f) << "wrote between the rows";
  }
}

TEST(CudaBackendTest, WriteHasReadItsSourceWhenItReturns) {
  const auto backend = *CreateCudaBackend({8 * kMiB});
  const auto buffer = *backend->Allocate(kMiB);
  const DeviceTensor tensor = buffer->Tensor(Dtype::kU8, {int64_t{kMiB}});
  std::vector<uint8_t> source(kMiB, 7), read(kMiB);
  backend->Write(source.data(), tensor);
  source.assign(kMiB, 9);
  backend->Read(tensor, read.data())->Wait();
  EXPECT_EQ(read, std::vector<uint8_t>(kMiB, 7));
}

// What is freed while ops that use it are still to come belongs to them until they are done.
TEST(CudaBackendTest, AFreedBufferIsGivenOutAfterTheOpsThatUseIt) {
  const auto backend = *CreateCudaBackend({8 * kMiB});
  constexpr int64_t kRows = 256, kWidth = 1024;
  const auto sum = *backend->Allocate(kRows * kWidth * sizeof(float));
  const DeviceTensor out = sum->Tensor(Dtype::kF32, {kRows, kWidth});
  for (int i = 1; i <= 20; ++i) {
    const std::vector<float> numbers(kRows * kWidth, static_cast<float>(i));
    auto addend = *backend->Allocate(numbers.size() * sizeof(float));
    const DeviceTensor tensor = addend->Tensor(Dtype::kF32, {kRows, kWidth});
    backend->Write(numbers.data(), tensor);
    backend->Add({out, tensor, out});
  }
  std::vector<float> read(kRows * kWidth);
  backend->Read(out, read.data())->Wait();
  EXPECT_EQ(read, std::vector<float>(read.size(), 210.0f));
}

TEST(CudaBackendTest, AnEventCallsOnceWhetherReachedOrNot) {
  const auto backend = *CreateCudaBackend({8 * kMiB});
  const auto buffer = *backend->Allocate(64);
  const DeviceTensor tensor = buffer->Tensor(Dtype::kU8, {64});
  std::vector<uint8_t> read(64);
  std::atomic<int> calls = 0;
  for (int i = 0; i < 200; ++i) {
    const auto event = backend->Read(tensor, read.data());
    if (i % 2 == 0) event->Wait();
    event->WhenReached([&] { ++calls; });
    event->Wait();
  }
  EXPECT_EQ(calls, 200);
}

TEST(CudaBackendTest, AnEventThatIsDestroyedCallsNoMore) {
  const auto backend = *CreateCudaBackend({64 * kMiB});
  constexpr int64_t kBytes = 4 << 20;
  const auto buffer = *backend->Allocate(kBytes);
  const DeviceTensor tensor = buffer->Tensor(Dtype::kU8, {kBytes});
  std::vector<uint8_t> read(kBytes);
  for (int i = 0; i < 100; ++i) {
    std::atomic<int> calls = 0;
    backend->Read(tensor, read.data())->WhenReached([&] { ++calls; });
    const int before = calls;
    backend->Read(tensor, read.data())->Wait();
    ASSERT_EQ(calls, before);
  }
}

TEST(CudaBackendTest, ThreadsMayCallOpsAtOnce) {
  const auto backend = *CreateCudaBackend({32 * kMiB});
  const TestTensor weight = std::move(TestTensor(Dtype::kF32, {16, 40}).Fill(1));
  const auto prepared = *backend->PrepareLinear(weight.lent(), WeightFormat::kF32);
  std::vector<std::vector<float>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&backend, &prepared, &result] {
      const TestTensor x = std::move(TestTensor(Dtype::kF32, {5, 40}).Fill(2));
      for (int i = 0; i < 20; ++i) {
        const auto in = *backend->Allocate(5 * 40 * sizeof(float));
        const auto out = *backend->Allocate(5 * 16 * sizeof(float));
        backend->Write(x.view().data, in->Tensor(Dtype::kF32, {5, 40}));
        const DeviceTensor to = out->Tensor(Dtype::kF32, {5, 16});
        backend->Linear({in->Tensor(Dtype::kF32, {5, 40}), *prepared, to});
        result.resize(5 * 16);
        backend->Read(to, result.data())->Wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

}  // namespace
}  // namespace tandem::kernels

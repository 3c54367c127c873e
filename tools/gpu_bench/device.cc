#include "tools/gpu_bench/device.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <string>

#include "absl/strings/str_format.h"
#include "common/status.h"
#include "kernels/cuda/runtime.h"
#include "tools/gpu_bench/device_kernels.h"

namespace tandem::gpu_bench {
namespace {

using kernels::cuda::CopyRows;
using kernels::cuda::FillZero;

// A stream with memory that both sides have, for one call after the other.
class Device {
 public:
  ~Device() { kernels::cuda::DestroyStream(stream_); }
  kernels::cuda::Stream stream() const { return stream_; }

  void Wait() {
    std::promise<void> reached;
    kernels::cuda::CallAfter(stream_, [&] { reached.set_value(); });
    reached.get_future().wait();
    kernels::cuda::RequireNoError(stream_);
  }
  // Seconds that `start`'s work takes, by the best of `runs` runs of as many of it: to wait takes
  // time.
  template <typename Start>
  double Best(int runs, const Start& start) {
    double best_s = 1e9;
    for (int i = 0; i < runs; ++i) {
      Wait();
      const auto begin = std::chrono::steady_clock::now();
      for (int k = 0; k < runs; ++k) start();
      Wait();
      best_s = std::min(
          best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best_s / runs;
  }

 private:
  kernels::cuda::Stream stream_ = kernels::cuda::CreateStream();
};

class DeviceBlock {
 public:
  explicit DeviceBlock(size_t bytes)
      : bytes_(bytes), memory_(kernels::cuda::AllocateDeviceMemory(bytes)) {
    if (memory_ != nullptr) return;
    std::fprintf(stderr, "the GPU has not %zu bytes free\n", bytes);
    std::abort();
  }
  ~DeviceBlock() { kernels::cuda::FreeDeviceMemory(memory_, bytes_); }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  std::byte* bytes() const { return memory_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory_);
  }

 private:
  const size_t bytes_;
  std::byte* const memory_;
};

// Copies `inputs` to the device, calls start(stream, device inputs, device output) and returns the
// output, of as many elements as each input.
template <typename T, typename Start>
std::vector<T> ForElements(const std::vector<const std::vector<T>*>& inputs, const Start& start) {
  const size_t count = inputs[0]->size(), bytes = count * sizeof(T);
  std::vector<T> out(count);
  if (count == 0) return out;
  Device device;
  const DeviceBlock on_device(bytes * (inputs.size() + 1));
  std::byte* const pinned = kernels::cuda::AllocatePinnedMemory(bytes);
  if (pinned == nullptr) std::abort();
  std::vector<const T*> at;
  for (const std::vector<T>* const input : inputs) {
    std::byte* const to = on_device.bytes() + at.size() * bytes;
    std::memcpy(pinned, input->data(), bytes);
    CopyRows(device.stream(), {to, bytes, pinned, bytes, bytes, 1});
    device.Wait();
    at.push_back(reinterpret_cast<const T*>(to));
  }
  std::byte* const result = on_device.bytes() + inputs.size() * bytes;
  start(device.stream(), at, static_cast<int64_t>(count), reinterpret_cast<T*>(result));
  CopyRows(device.stream(), {pinned, bytes, result, bytes, bytes, 1});
  device.Wait();
  std::memcpy(out.data(), pinned, bytes);
  kernels::cuda::FreePinnedMemory(pinned, bytes);
  return out;
}

#if defined(TANDEM_CUDA_EMULATION)

std::string Facts() { return "no driver: every figure here is of an emulation\n"; }

#else

std::string Facts() {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  const auto attribute = [](cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, 0);
    return value;
  };
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  return absl::StrFormat(
      "compute capability %d.%d, %d multiprocessors\n"
      "clocks at most: processors %d MHz, memory %d MHz, %d bits wide\n"
      "memory %.2f GiB, %.2f free; second-level cache %.1f MiB; shared memory of a block %d KiB\n"
      "CUDA %d.%d of this program, %d.%d of the driver\n",
      attribute(cudaDevAttrComputeCapabilityMajor), attribute(cudaDevAttrComputeCapabilityMinor),
      attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrClockRate) / 1000,
      attribute(cudaDevAttrMemoryClockRate) / 1000, attribute(cudaDevAttrGlobalMemoryBusWidth),
      static_cast<double>(total_bytes) / (1 << 30), static_cast<double>(free_bytes) / (1 << 30),
      attribute(cudaDevAttrL2CacheSize) / 1048576.0,
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >> 10, runtime / 1000, runtime % 1000 / 10,
      driver / 1000, driver % 1000 / 10);
}

#endif

}  // namespace

absl::StatusOr<std::string> DescribeGpu() {
  TANDEM_ASSIGN_OR_RETURN(const kernels::cuda::Gpu gpu, kernels::cuda::OpenGpu());
  return gpu.name + "\n" + Facts();
}

Ceilings MeasureCeilings(bool is_brief) {
  const size_t bytes = is_brief ? size_t{1} << 20 : size_t{2} << 30;
  const int runs = is_brief ? 2 : 10;
  Device device;
  const DeviceBlock memory(2 * bytes);
  auto* const out = memory.as<float>();
  FillZero(device.stream(), memory.bytes(), 2 * bytes);
  Ceilings best;
  best.read_bytes_per_s = static_cast<double>(bytes) / device.Best(runs, [&] {
    ReadMemory(device.stream(), memory.bytes() + bytes, bytes, out);
  });
  best.copied_bytes_per_s = 2.0 * static_cast<double>(bytes) / device.Best(runs, [&] {
    CopyRows(device.stream(), {memory.bytes(), bytes, memory.bytes() + bytes, bytes, bytes, 1});
  });
  const int64_t blocks = is_brief ? 1 : 132 * 64, rounds = is_brief ? 4 : 1 << 12;
  int64_t multiplied = 0;
  double seconds =
      device.Best(runs, [&] { multiplied = MultiplyAndAdd(device.stream(), blocks, rounds, out); });
  best.multiply_adds_per_s = static_cast<double>(multiplied) / seconds;
  seconds = device.Best(
      runs, [&] { multiplied = MultiplyTilesOfBf16(device.stream(), blocks, rounds, out); });
  best.tensor_multiply_adds_per_s = static_cast<double>(multiplied) / seconds;
  return best;
}

std::vector<float> DeviceExp(const std::vector<float>& x) {
  return ForElements<float>({&x}, [](auto stream, const auto& at, int64_t count, float* out) {
    Exponentials(stream, at[0], count, out);
  });
}

std::vector<float> DeviceFlushedFma(const std::vector<float>& a, const std::vector<float>& b,
                                    const std::vector<float>& c) {
  return ForElements<float>({&a, &b, &c},
                            [](auto stream, const auto& at, int64_t count, float* out) {
                              FlushedMultiplyAdds(stream, at[0], at[1], at[2], count, out);
                            });
}

std::vector<double> DeviceLog(const std::vector<double>& x) {
  return ForElements<double>({&x}, [](auto stream, const auto& at, int64_t count, double* out) {
    Logarithms(stream, at[0], count, out);
  });
}

}  // namespace tandem::gpu_bench

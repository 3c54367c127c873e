// The ops of a step of DeepSeek-V2-Lite at the sizes of docs/cuda_rooflines.md: what each needs at
// least, and how to run it on any backend with the same inputs.
#ifndef TANDEM_TOOLS_GPU_BENCH_OP_CASES_H_
#define TANDEM_TOOLS_GPU_BENCH_OP_CASES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/tensor.h"
#include "kernels/backend.h"

namespace tandem::gpu_bench {

// A model's widths; V2-Lite's.
struct Widths {
  int64_t vocab = 102400, hidden = 2048, dense = 10944, expert = 1408, shared = 2816;
  int64_t heads = 16, nope = 128, rope = 64, value = 128, latent = 512;
  int64_t experts = 64, top_k = 6;
  int64_t prefill = 4096;
};
Widths BriefWidths();  // for an emulation

// A backend with tensors and weights in its memory, which it keeps. Values depend on a tensor's
// name and on the place in it alone, so that fewer rows are the first of more.
class Kit {
 public:
  // Of each weight there are copies of `rotated_bytes` in all, at most 64: what a call reads is not
  // in the cache from the last one.
  Kit(std::unique_ptr<kernels::Backend> backend, size_t rotated_bytes)
      : backend_(std::move(backend)), rotated_bytes_(rotated_bytes) {}

  kernels::Backend& backend() { return *backend_; }
  // Bf16 or f32, normal around 0.
  kernels::DeviceTensor Random(Dtype dtype, std::initializer_list<int64_t> dims);
  kernels::DeviceTensor Empty(Dtype dtype, std::initializer_list<int64_t> dims);
  kernels::DeviceTensor Ints(const std::vector<int32_t>& values,
                             std::initializer_list<int64_t> dims);
  kernels::DeviceTensor Bytes(const void* values, std::initializer_list<int64_t> dims);
  // Pages of a latent cache; every 64th has the same values.
  kernels::DeviceTensor Pages(int64_t count, int64_t width);
  // Gives back what the calls above took.
  void Clear() { buffers_.clear(); }

  using Linears = std::vector<std::unique_ptr<kernels::LinearWeight>>;
  const Linears& Linear(int64_t outputs, int64_t inputs);
  const kernels::NormWeight& Norm(int64_t width);
  const kernels::EmbeddingWeight& Embedding(int64_t rows, int64_t width);
  const std::vector<std::unique_ptr<kernels::KvUpWeight>>& KvUp(const kernels::KvUpShape& shape);
  const kernels::ExpertLayer& Experts(const kernels::ExpertLayerShape& shape);

  void Wait();

 private:
  int64_t CopiesOf(int64_t values) const;
  kernels::DeviceTensor Take(Dtype dtype, std::initializer_list<int64_t> dims);

  const std::unique_ptr<kernels::Backend> backend_;
  const size_t rotated_bytes_;
  std::vector<std::unique_ptr<kernels::Buffer>> buffers_;
  std::map<std::pair<int64_t, int64_t>, Linears> linears_;
  std::map<int64_t, std::unique_ptr<kernels::NormWeight>> norms_;
  std::unique_ptr<kernels::EmbeddingWeight> embedding_;
  std::vector<std::unique_ptr<kernels::KvUpWeight>> kv_up_;
  std::unique_ptr<kernels::ExpertLayer> experts_;
};

struct OpCase {
  std::string name;
  int64_t rows = 0;
  int64_t checked_rows = 0;  // as many have the CPU's bits
  double bytes = 0;          // through memory at least
  double multiply_adds = 0;  // in f32, at least
  // Makes what the op takes for so many rows; the result starts it, with the turn'th copy of its
  // weights, and gives its output.
  std::function<std::function<kernels::DeviceTensor(int64_t turn)>(Kit&, int64_t rows)> make;
};

// `group`: "dense", "mla", "experts" or "rest".
std::vector<OpCase> OpCases(const std::string& group, const Widths& w);

}  // namespace tandem::gpu_bench

#endif  // TANDEM_TOOLS_GPU_BENCH_OP_CASES_H_

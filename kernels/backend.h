// The device seam: memory and one method per op. The list of methods is the list of what a device
// must do; the contracts are in kernels/ops/*.h. Above this header nothing knows a device.
#ifndef TANDEM_KERNELS_BACKEND_H_
#define TANDEM_KERNELS_BACKEND_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/tensor.h"
#include "kernels/ops/dense.h"
#include "kernels/ops/mla.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sample.h"

namespace tandem::kernels {

// Memory of a backend, given back when destroyed. Must not outlive its backend.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() const = 0;
  virtual size_t bytes() const = 0;
};

// Ops run in the order of the calls and, on a device with streams, may return before they are
// done: what the host reads, it reads after Synchronize. Views name memory of this backend; spans
// name host memory that the call reads (or, for outputs, fills) before it returns. Arguments are
// checked once on entry, and a violated requirement ends the process: callers validate input.
//
// Thread-safety: any number of threads may call ops of one backend at once.
class Backend {
 public:
  virtual ~Backend() = default;

  // The device and the instruction set in use, for people: "cpu avx3, 2 threads".
  virtual std::string Description() const = 0;
  // What decides a result's bits besides the format (DESIGN.md, numerics class): "cpu-1".
  virtual std::string NumericsClass() const = 0;

  // Zero-filled, aligned to 64 bytes. RESOURCE_EXHAUSTED where the device has not as much.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) = 0;
  virtual void CopyToHost(const TensorView& from, void* to) = 0;
  virtual void CopyFromHost(const void* from, const TensorView& to) = 0;
  virtual void Synchronize() = 0;

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void SiluMul(const SiluMulArgs& args) = 0;
  virtual void Add(const AddArgs& args) = 0;

  virtual void RopeTable(const RopeTableArgs& args) = 0;
  virtual void Rope(const RopeArgs& args) = 0;
  virtual void LatentAppend(const LatentAppendArgs& args) = 0;
  virtual void MlaAbsorbQuery(const MlaAbsorbQueryArgs& args) = 0;
  virtual void MlaDecode(const MlaDecodeArgs& args) = 0;
  virtual void MlaProjectValue(const MlaProjectValueArgs& args) = 0;
  virtual void MlaPrefill(const MlaPrefillArgs& args) = 0;

  virtual void Route(const RouteArgs& args) = 0;
  virtual void ExpertMlp(const ExpertMlpArgs& args) = 0;
  virtual void Combine(const CombineArgs& args) = 0;

  virtual void Sample(const SampleArgs& args) = 0;
  virtual void LogProb(const LogProbArgs& args) = 0;
};

// The CPU backend with a pool of `num_threads` (0: one per core). FAILED_PRECONDITION where the
// processor lacks AVX2, FMA or F16C.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int num_threads);

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_BACKEND_H_

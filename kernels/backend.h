// The device seam: memory, weights and one method per op. The list of methods is the list of what a
// device must do; the contracts are in kernels/ops/*.h. Above this header nothing knows a device.
#ifndef TANDEM_KERNELS_BACKEND_H_
#define TANDEM_KERNELS_BACKEND_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/tensor.h"
#include "kernels/device_tensor.h"
#include "kernels/ops/dense.h"
#include "kernels/ops/mla.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sample.h"
#include "kernels/weights.h"

namespace tandem::kernels {

// A point in a device's work: reached once everything that was called before it is done.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  virtual bool Reached() const = 0;
  virtual void Wait() const = 0;
  // Calls `reached` once it is: from any thread, possibly before this returns. It must not block,
  // nor call the backend or give back what is of it.
  // The event's destructor returns when it has returned, or never will be called.
  virtual void WhenReached(std::function<void()> reached) = 0;
};

// Ops run in the order of the calls and, on a device with streams, may return before they are done.
// What they read and write is this backend's memory; the host sees it through Read alone. Shapes
// and dtypes are checked on entry, once for every backend, and a violated requirement ends the
// process; what values in device memory must satisfy is checked by whoever puts them there. A
// buffer may be destroyed while ops that use it are under way: its memory is given out only after
// them.
//
// Thread-safety: any number of threads may call ops of one backend at once.
class Backend {
 public:
  virtual ~Backend() = default;

  // The device and the instruction set in use, for people: "cpu avx3, 2 threads".
  virtual std::string Description() const = 0;
  // What decides the bits of the results of a mode and a format (docs/architecture.md):
  // "portable-1".
  virtual std::string NumericsClass(Dtype mode, WeightFormat format) const = 0;

  // ---- memory ----

  // How much Allocate and the weights have; nothing: what the host has.
  virtual std::optional<int64_t> MemoryBytes() const { return std::nullopt; }
  // Whether weights of `format` can be prepared.
  virtual bool Has(WeightFormat) const { return true; }
  // Whether it may be given tensors that are made up (OwnedTensor::made_up).
  virtual bool MakesUpWeights() const { return false; }

  // Zero-filled, aligned to 64 bytes. RESOURCE_EXHAUSTED where the device has not as much.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) = 0;
  // Copies host memory, dense, to `to`. `from` has been read when this returns.
  virtual void Write(const void* from, const DeviceTensor& to) = 0;
  // Copies `from` to host memory, dense, which must stay until the event is reached.
  virtual std::unique_ptr<DeviceEvent> Read(const DeviceTensor& from, void* to) = 0;
  // to = from, bit for bit. Requires one shape and dtype, and that they do not overlap.
  void Copy(const DeviceTensor& from, const DeviceTensor& to);

  // ---- weights ----

  // Each takes a checkpoint's tensor with the values of `format` (Checkpoint::Load) and keeps its
  // memory only if the kernels read it as it lies. Where they do not, what was made of it may be
  // kept: it is taken from `unit` (null: nowhere) if that has it, without a look at the tensor's
  // values, and otherwise made and given to it. Requires the shapes of kernels/weights.h.
  //   RESOURCE_EXHAUSTED  the device has no memory for it
  //   UNIMPLEMENTED       this backend does not have the format
  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(OwnedTensor tensor,
                                                              WeightFormat format,
                                                              PackedUnit* unit = nullptr);
  absl::StatusOr<std::unique_ptr<KvUpWeight>> PrepareKvUp(OwnedTensor tensor,
                                                          const KvUpShape& shape,
                                                          WeightFormat format,
                                                          PackedUnit* unit = nullptr);
  absl::StatusOr<std::unique_ptr<EmbeddingWeight>> PrepareEmbedding(OwnedTensor tensor,
                                                                    WeightFormat format);
  absl::StatusOr<std::unique_ptr<NormWeight>> PrepareNorm(OwnedTensor tensor, WeightFormat format);
  // With no expert loaded.
  absl::StatusOr<std::unique_ptr<ExpertLayer>> PrepareExpertLayer(const ExpertLayerShape& shape,
                                                                  WeightFormat format);

  // ---- ops ----

  void Embed(const EmbedArgs& args);
  void GatherRows(const GatherRowsArgs& args);
  void RmsNorm(const RmsNormArgs& args);
  void Linear(const LinearArgs& args);
  void SiluMul(const SiluMulArgs& args);
  void Add(const AddArgs& args);

  void RopeTable(const RopeTableArgs& args);
  void Rope(const RopeArgs& args);
  void LatentAppend(const LatentAppendArgs& args);
  void MlaAbsorbQuery(const MlaAbsorbQueryArgs& args);
  void MlaAbsorbed(const MlaAbsorbedArgs& args);
  void MlaProjectValue(const MlaProjectValueArgs& args);
  void MlaExpanded(const MlaExpandedArgs& args);

  void Route(const RouteArgs& args);
  void ExpertMlp(const ExpertMlpArgs& args);
  void Combine(const CombineArgs& args);

  void AdjustLogits(const AdjustLogitsArgs& args);
  void Sample(const SampleArgs& args);
  void TopLogProbs(const TopLogProbsArgs& args);
  void LogProb(const LogProbArgs& args);

 private:
  // What a device implements. Arguments are checked.
  virtual void DoCopy(const DeviceTensor& from, const DeviceTensor& to) = 0;

  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> DoPrepareLinear(OwnedTensor tensor,
                                                                        WeightFormat format,
                                                                        PackedUnit* unit) = 0;
  virtual absl::StatusOr<std::unique_ptr<KvUpWeight>> DoPrepareKvUp(OwnedTensor tensor,
                                                                    const KvUpShape& shape,
                                                                    WeightFormat format,
                                                                    PackedUnit* unit) = 0;
  virtual absl::StatusOr<std::unique_ptr<EmbeddingWeight>> DoPrepareEmbedding(
      OwnedTensor tensor, WeightFormat format) = 0;
  virtual absl::StatusOr<std::unique_ptr<NormWeight>> DoPrepareNorm(OwnedTensor tensor,
                                                                    WeightFormat format) = 0;
  virtual absl::StatusOr<std::unique_ptr<ExpertLayer>> DoPrepareExpertLayer(
      const ExpertLayerShape& shape, WeightFormat format) = 0;

  virtual void DoEmbed(const EmbedArgs& args) = 0;
  virtual void DoGatherRows(const GatherRowsArgs& args) = 0;
  virtual void DoRmsNorm(const RmsNormArgs& args) = 0;
  virtual void DoLinear(const LinearArgs& args) = 0;
  virtual void DoSiluMul(const SiluMulArgs& args) = 0;
  virtual void DoAdd(const AddArgs& args) = 0;
  virtual void DoRopeTable(const RopeTableArgs& args) = 0;
  virtual void DoRope(const RopeArgs& args) = 0;
  virtual void DoLatentAppend(const LatentAppendArgs& args) = 0;
  virtual void DoMlaAbsorbQuery(const MlaAbsorbQueryArgs& args) = 0;
  virtual void DoMlaAbsorbed(const MlaAbsorbedArgs& args) = 0;
  virtual void DoMlaProjectValue(const MlaProjectValueArgs& args) = 0;
  virtual void DoMlaExpanded(const MlaExpandedArgs& args) = 0;
  virtual void DoRoute(const RouteArgs& args) = 0;
  virtual void DoExpertMlp(const ExpertMlpArgs& args) = 0;
  virtual void DoCombine(const CombineArgs& args) = 0;
  virtual void DoAdjustLogits(const AdjustLogitsArgs& args) = 0;
  virtual void DoSample(const SampleArgs& args) = 0;
  virtual void DoTopLogProbs(const TopLogProbsArgs& args) = 0;
  virtual void DoLogProb(const LogProbArgs& args) = 0;
};

// Among orders of additions: the fastest on this device, or the one that all devices of its kind
// have. Only products of bf16 with bf16 may differ.
enum class Numerics { kAuto, kPortable };

// The CPU backend with a pool of `num_threads` (0: one per core). FAILED_PRECONDITION where the
// processor lacks AVX2, FMA or F16C.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(int num_threads,
                                                          Numerics numerics = Numerics::kAuto);

struct CudaOptions {
  size_t memory_bytes = 0;              // of the GPU; 0: what is free, but a sixteenth
  Numerics numerics = Numerics::kAuto;  // which takes tensor cores for bf16 with bf16
};

// The CUDA backend on this machine's first GPU, which takes all its memory at once.
//   FAILED_PRECONDITION  the build has no CUDA, there is no GPU that will do, or it has less memory
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaOptions& options = {});

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_BACKEND_H_

// A checkpoint in the Hugging Face layout: config.json and safetensors, mapped tensor by tensor.
#ifndef TANDEM_COMMON_CHECKPOINT_CHECKPOINT_H_
#define TANDEM_COMMON_CHECKPOINT_CHECKPOINT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/packed_weights.h"
#include "common/checkpoint/safetensors.h"
#include "common/mode.h"
#include "common/model_config.h"
#include "common/tensor.h"

namespace tandem {

// A tensor that the model needs and where it lies.
struct TensorLocation {
  std::shared_ptr<const SafetensorsFile> file;
  SafetensorsEntry entry;
};

// Thread-safe. Opening reads headers only; weights are mapped when they are loaded, each tensor's
// pages alone.
class Checkpoint {
 public:
  // Checks config.json, every header, and that each tensor that the config needs is there with its
  // shape and a dtype of BF16, F16 or F32. The experts of a layer may be two tensors of three
  // dimensions. Layers beyond num_layers and unknown tensors are ignored. A model.safetensors that
  // has everything counts before an index.
  //   NOT_FOUND         a file or a tensor is missing
  //   INVALID_ARGUMENT  a file is broken, a shape differs: file, tensor, expected, found
  //   UNIMPLEMENTED     a config or dtype that is not supported
  // Once `*stop` (may be null; must outlive the checkpoint) is true, whatever reads weights ends
  // with CANCELLED.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& dir,
                                                          const std::atomic<bool>* stop = nullptr);

  const ModelConfig& config() const { return config_; }
  // The tensors that the config needs, by name.
  const std::map<std::string, TensorLocation>& tensors() const { return tensors_; }
  uint64_t num_parameters() const;
  // Sentences for whoever starts a process on it: which of two files is used, and the like.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // The files that hold them, by path.
  std::vector<std::shared_ptr<const SafetensorsFile>> files() const;
  // DATA_LOSS if one of its files has been written to since Open; names it.
  absl::Status CheckUnchanged() const;
  // CANCELLED once it is to stop. For what reads weights, every few megabytes.
  absl::Status CheckStop() const;

  // Maps or converts one tensor to a format's values: for kBF16, BF16 stays as it lies in the file,
  // and F16 and F32 are rounded to a bf16 copy; for kF32, BF16 and F32 stay as they lie (bf16
  // widens exactly), and F16 is widened to a copy; for formats of integers, which a backend makes
  // itself, all stay as they lie.
  //   NOT_FOUND  no such tensor
  //   DATA_LOSS  the file has shrunk since Open
  //   CANCELLED  it is to stop
  absl::StatusOr<OwnedTensor> Load(const std::string& name, WeightFormat format) const;

  // The shape and dtype of what Load would give, without data. NOT_FOUND  no such tensor.
  absl::StatusOr<TensorView> Outline(const std::string& name, WeightFormat format) const;
  // Whether Load would wait for no disk or network, as far as the system says. Requires that there
  // is the tensor.
  bool IsInMemory(const std::string& name) const;

  // From now on Load gives tensors that are made up from `seed`: nothing of their values is read,
  // and only a backend that makes them up (Backend::MakesUpWeights) may have them. Load is then
  // UNIMPLEMENTED for what does not stay BF16 as in the file. Before Load.
  void MakeUpWeights(uint64_t seed) { made_up_seed_ = seed; }

  // From now on what a backend packs of it is looked for there, and kept. At most once.
  void KeepPacked(std::unique_ptr<PackedWeights> packed);
  // Null: nothing is kept.
  PackedWeights* packed() const { return packed_; }

  // Tensors and their bytes mapped so far by this process.
  int64_t mapped_tensors() const { return mapped_tensors_; }
  int64_t mapped_bytes() const { return mapped_bytes_; }

 private:
  explicit Checkpoint(const std::atomic<bool>* stop) : stop_(stop) {}
  const std::atomic<bool>* const stop_;
  ModelConfig config_;
  std::map<std::string, TensorLocation> tensors_;
  std::set<std::shared_ptr<const SafetensorsFile>> files_;  // of these tensors
  std::vector<std::string> warnings_;
  std::optional<uint64_t> made_up_seed_;
  mutable std::atomic<int64_t> mapped_tensors_ = 0;
  mutable std::atomic<int64_t> mapped_bytes_ = 0;
  std::unique_ptr<PackedWeights> owned_packed_;  // may ask for CheckUnchanged until it goes
  std::atomic<PackedWeights*> packed_ = nullptr;
};

// Loads many tensors one after the other, each in its FormatOf the model's, touches their pages so
// that the first request does not wait for the disk, and reports the share of the bytes that is
// done.
class CheckpointLoader {
 public:
  // `checkpoint` must outlive the loader. `total_bytes`: of all that will be loaded.
  CheckpointLoader(const Checkpoint* checkpoint, WeightFormat format, int64_t total_bytes,
                   std::function<void(float)> progress);
  // `unit`, of which the tensor is a part, may be null; where it is kept, no page is touched.
  absl::StatusOr<OwnedTensor> Load(const std::string& name, const PackedUnit* unit = nullptr);
  // Counts a tensor as loaded that is not needed.
  void Skip(const std::string& name);
  // Where what is made of some tensors is kept; null: nowhere.
  std::unique_ptr<PackedUnit> Unit(const std::string& name) const;

 private:
  void Report(double done_bytes) const;

  const Checkpoint* const checkpoint_;
  const WeightFormat format_;
  const int64_t total_bytes_;
  const std::function<void(float)> progress_;
  int64_t done_bytes_ = 0;
};

// The format of a tensor of a model in `format`: in an integer format the large matrices have it,
// the two that make latents and take them apart have 8 bits, and all else stays as the checkpoint
// has it.
WeightFormat FormatOf(const std::string& name, WeightFormat format);

// Whether a tensor belongs to one of the routed experts.
bool IsRoutedExpert(const std::string& name);

// Bytes in the files of the needed tensors whose names `wanted` accepts.
int64_t TensorBytes(const Checkpoint& checkpoint,
                    const std::function<bool(const std::string&)>& wanted);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_CHECKPOINT_H_

// Weights as a backend's kernels want them: opaque, made once from a checkpoint's tensors by
// Backend::Prepare..., owners of their memory. Where a backend's layout is the file's, preparing
// keeps the mapping and copies nothing.
//
// A weight is read by any number of threads at once, and must not outlive its backend.
#ifndef TANDEM_KERNELS_WEIGHTS_H_
#define TANDEM_KERNELS_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/mode.h"
#include "common/packed_unit.h"
#include "common/tensor.h"

namespace tandem::kernels {

class PreparedWeight {
 public:
  virtual ~PreparedWeight() = default;
  PreparedWeight(const PreparedWeight&) = delete;
  PreparedWeight& operator=(const PreparedWeight&) = delete;

  WeightFormat format() const { return format_; }

 protected:
  explicit PreparedWeight(WeightFormat format) : format_(format) {}

 private:
  const WeightFormat format_;
};

// A linear map without bias, [outputs, inputs] in a checkpoint. `inputs` is a multiple of 8.
class LinearWeight : public PreparedWeight {
 public:
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }

 protected:
  LinearWeight(WeightFormat format, int64_t outputs, int64_t inputs)
      : PreparedWeight(format), outputs_(outputs), inputs_(inputs) {}

 private:
  const int64_t outputs_;
  const int64_t inputs_;
};

// The shape of kv_b_proj, which makes every head's keys and values from a latent.
struct KvUpShape {
  int64_t heads = 0;
  int64_t nope_width = 0;    // dn, of a key's part without rotation; a multiple of 8
  int64_t value_width = 0;   // dv
  int64_t latent_width = 0;  // r, a multiple of 8
};

// kv_b_proj, [heads * (dn + dv), r] in a checkpoint: head h has dn rows W^UK_h, then dv rows
// W^UV_h.
class KvUpWeight : public PreparedWeight {
 public:
  const KvUpShape& shape() const { return shape_; }

 protected:
  KvUpWeight(WeightFormat format, const KvUpShape& shape) : PreparedWeight(format), shape_(shape) {}

 private:
  const KvUpShape shape_;
};

// A table of rows, [rows, width] in a checkpoint.
class EmbeddingWeight : public PreparedWeight {
 public:
  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }

 protected:
  EmbeddingWeight(WeightFormat format, int64_t rows, int64_t width)
      : PreparedWeight(format), rows_(rows), width_(width) {}

 private:
  const int64_t rows_;
  const int64_t width_;
};

// The factors of an RMSNorm, [width].
class NormWeight : public PreparedWeight {
 public:
  int64_t width() const { return width_; }

 protected:
  NormWeight(WeightFormat format, int64_t width) : PreparedWeight(format), width_(width) {}

 private:
  const int64_t width_;
};

struct ExpertLayerShape {
  int num_experts = 0;
  int64_t hidden = 0;        // a multiple of 8, as the next
  int64_t intermediate = 0;  // of one expert
};

// One expert's matrices as a checkpoint has them.
struct ExpertTensors {
  OwnedTensor gate;  // [intermediate, hidden]
  OwnedTensor up;    // [intermediate, hidden]
  OwnedTensor down;  // [hidden, intermediate]
};

// The routed experts of one layer, or those of them that are loaded. Experts come and go one by one
// while others are used.
class ExpertLayer : public PreparedWeight {
 public:
  const ExpertLayerShape& shape() const { return shape_; }

  // Prepares an expert that is not loaded, or takes it from `unit` as Backend::Prepare... do;
  // returns the bytes that it holds.
  //   RESOURCE_EXHAUSTED  the device has no memory for it
  absl::StatusOr<int64_t> Load(int expert, ExpertTensors tensors, PackedUnit* unit = nullptr);
  // Gives a loaded expert's memory back. Requires that no op that reads it is under way.
  void Unload(int expert);

  // How Load packs an expert of such tensors, whose shapes and dtypes alone are looked at. Of no
  // bytes: it packs nothing, and asks no unit.
  virtual PackedLayout LayoutOf(const ExpertTensors& /*tensors*/) const { return {}; }
  // The bytes of a loaded expert in that layout, of which there are some. They change no more, and
  // stay as long as they are owned, past Unload.
  virtual std::shared_ptr<const std::byte> Packed(int /*expert*/) const { return nullptr; }

 protected:
  ExpertLayer(WeightFormat format, const ExpertLayerShape& shape)
      : PreparedWeight(format), shape_(shape) {}

 private:
  // Arguments are checked.
  virtual absl::StatusOr<int64_t> DoLoad(int expert, ExpertTensors tensors, PackedUnit* unit) = 0;
  virtual void DoUnload(int expert) = 0;

  const ExpertLayerShape shape_;
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_WEIGHTS_H_

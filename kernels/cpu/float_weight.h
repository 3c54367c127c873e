// A linear map of floats, in the order in which the kernels read it.
//
// Memory, from an address that is a multiple of 64: panels of 32 outputs, each its blocks of 32
// inputs one after the other. What is beyond the weight's outputs and inputs is zero. A block:
//   f32   32 rows of 128 bytes: row k holds input k of outputs 0, 1, ...
//   bf16  16 rows of 128 bytes: row j holds inputs 2j and 2j + 1 of output 0, of output 1, ...
// so that a row of either is what one vector instruction multiplies, and a block of bf16 is two of
// AMX's tiles side by side.
#ifndef TANDEM_KERNELS_CPU_FLOAT_WEIGHT_H_
#define TANDEM_KERNELS_CPU_FLOAT_WEIGHT_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/tensor.h"
#include "kernels/cpu/panels.h"

namespace tandem::kernels::cpu {

inline constexpr int64_t kFloatBlockInputs = 32;

// Of what is said above: another order of the bytes is another number. See kIntegerLayoutVersion.
inline constexpr int kFloatLayoutVersion = 1;

// The orders of additions of kernels/ops/dense.h.
enum class FloatOrder : uint8_t { kBlock, kPair };

// Where the parts of a weight lie.
struct FloatLayout {
  FloatLayout() = default;
  FloatLayout(Dtype dtype, int64_t outputs, int64_t inputs)
      : dtype(dtype),
        outputs(outputs),
        inputs(inputs),
        panels(CeilDiv(outputs, kPanelOutputs)),
        blocks(CeilDiv(inputs, kFloatBlockInputs)) {}

  int64_t block_bytes() const {
    return kFloatBlockInputs * kPanelOutputs * static_cast<int64_t>(DtypeBytes(dtype));
  }
  int64_t panel_bytes() const { return blocks * block_bytes(); }
  int64_t bytes() const { return panels * panel_bytes(); }

  Dtype dtype = Dtype::kF32;  // or bf16
  int64_t outputs = 0;
  int64_t inputs = 0;  // a multiple of 8
  int64_t panels = 0;
  int64_t blocks = 0;  // of a panel
};

struct FloatWeight {
  FloatLayout layout;
  FloatOrder order = FloatOrder::kBlock;    // of products with rows of bf16
  std::shared_ptr<const std::byte> memory;  // layout.bytes() of it

  const std::byte* panel(int64_t i) const { return memory.get() + i * layout.panel_bytes(); }
};

// Copies outputs [32 * panel, ...) of `source`, [outputs, inputs] of the layout's dtype, dense,
// into their place in `memory`.
void PackPanel(const TensorView& source, const FloatLayout& layout, int64_t panel,
               std::byte* memory);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_FLOAT_WEIGHT_H_

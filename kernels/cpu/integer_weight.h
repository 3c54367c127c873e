// A linear map in an integer format, in the order in which the kernels read it.
//
//   w[n, k] = scale[n] * q[n, k],  q in [-127, 127]
//
// int8 stores q itself. int4 stores q[n, k] = factor[n, k / 32] * (nibble[n, k] - 8), with nibbles
// in [0, 15] and factors in [1, 15]: four bits a weight, and one factor of four bits for 32 of
// them. So both formats are the same to a product: its sums over all of K are integers, which any
// instruction set adds to the same bits in any order.
//
// Memory, from an address that is a multiple of 64: scales f32, one per padded output; then panels
// of 32 outputs, each its blocks of 128 inputs one after the other. What is beyond the weight's
// outputs and inputs is q = 0. A block:
//   int8  32 rows of 128 bytes: row r holds inputs [4r, 4r + 4) of outputs 0, 1, ... as q + 128
//   int4  64 bytes of factors: byte 32 (g / 2) + n is that of group g, output n, in its lower half
//         where g is even, in its upper where g is odd; then for each group of 32 inputs 4 rows of
//         128 bytes, whose lower halves are what a row of int8 has for inputs [4r, 4r + 4) of the
//         group, and whose upper halves are those of inputs [16 + 4r, 16 + 4r + 4)
#ifndef TANDEM_KERNELS_CPU_INTEGER_WEIGHT_H_
#define TANDEM_KERNELS_CPU_INTEGER_WEIGHT_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "common/mode.h"
#include "common/tensor.h"
#include "kernels/cpu/panels.h"

namespace tandem::kernels::cpu {

inline constexpr int64_t kBlockInputs = 128;
inline constexpr int64_t kGroupInputs = 32;
inline constexpr int64_t kBlockGroups = kBlockInputs / kGroupInputs;
inline constexpr int64_t kInt8BlockBytes = kBlockInputs * kPanelOutputs;
inline constexpr int64_t kFactorBytes = kBlockGroups * kPanelOutputs / 2;
inline constexpr int64_t kInt4GroupBytes = kGroupInputs * kPanelOutputs / 2;
inline constexpr int64_t kInt4BlockBytes = kFactorBytes + kBlockGroups * kInt4GroupBytes;

// Of what is said above: another order of the bytes, or another way to quantize, is another number.
// Weights that are kept under an older one are made again.
inline constexpr int kIntegerLayoutVersion = 1;

// Where the parts of a weight lie.
struct IntegerLayout {
  IntegerLayout(WeightFormat format, int64_t outputs, int64_t inputs)
      : format(format),
        outputs(outputs),
        inputs(inputs),
        panels(CeilDiv(outputs, kPanelOutputs)),
        blocks(CeilDiv(inputs, kBlockInputs)) {}

  int64_t block_bytes() const {
    return format == WeightFormat::kInt4 ? kInt4BlockBytes : kInt8BlockBytes;
  }
  int64_t panel_bytes() const { return blocks * block_bytes(); }
  int64_t scale_bytes() const {
    return panels * kPanelOutputs * static_cast<int64_t>(sizeof(float));
  }
  int64_t bytes() const { return scale_bytes() + panels * panel_bytes(); }

  WeightFormat format;
  int64_t outputs;
  int64_t inputs;
  int64_t panels;
  int64_t blocks;  // of a panel
};

struct IntegerWeight {
  IntegerLayout layout;
  std::shared_ptr<const std::byte> memory;  // layout.bytes() of it

  const float* scales() const { return reinterpret_cast<const float*>(memory.get()); }
  const uint8_t* panel(int64_t i) const {
    return reinterpret_cast<const uint8_t*>(memory.get()) + layout.scale_bytes() +
           i * layout.panel_bytes();
  }
};

// Quantizes outputs [32 * panel, ...) of `source`, [outputs, inputs] f32, bf16 or f16, into their
// place in `memory`. A row with a NaN or an infinity gets a NaN as its scale.
//   int8  scale = max|w| / 127, q = w / scale, to nearest even
//   int4  scale = max|w| / 105; of the factors around max over the group / (7 * scale), the one
//         whose nibbles, to nearest even, leave the least squared error
void QuantizePanel(const TensorView& source, const IntegerLayout& layout, int64_t panel,
                   std::byte* memory);

// w[n, k] as the kernels take it. For tests and for measuring a format's error.
float Dequantized(const IntegerWeight& weight, int64_t n, int64_t k);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_INTEGER_WEIGHT_H_

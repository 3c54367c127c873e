#include "kernels/cpu/float_weight.h"

#include <algorithm>
#include <cstring>

namespace tandem::kernels::cpu {
namespace {

// What moves as a whole: an input in f32, two in bf16.
constexpr int64_t kUnitBytes = 4;

}  // namespace

void PackPanel(const TensorView& source, const FloatLayout& layout, int64_t panel,
               std::byte* memory) {
  const int64_t row_units =
      layout.inputs * static_cast<int64_t>(DtypeBytes(layout.dtype)) / kUnitBytes;
  const int64_t block_units = layout.block_bytes() / (kPanelOutputs * kUnitBytes);
  const int64_t first = panel * kPanelOutputs;
  const int64_t outputs = std::min(kPanelOutputs, layout.outputs - first);
  std::byte* to = memory + panel * layout.panel_bytes();
  for (int64_t block = 0; block < layout.blocks; ++block, to += layout.block_bytes()) {
    const int64_t begin = block * block_units;
    const int64_t units = std::min(block_units, row_units - begin);
    if (outputs < kPanelOutputs || units < block_units) {
      std::memset(to, 0, static_cast<size_t>(layout.block_bytes()));
    }
    for (int64_t n = 0; n < outputs; ++n) {
      const std::byte* const from = source.row(first + n) + begin * kUnitBytes;
      for (int64_t i = 0; i < units; ++i) {
        std::memcpy(to + (i * kPanelOutputs + n) * kUnitBytes, from + i * kUnitBytes, kUnitBytes);
      }
    }
  }
}

}  // namespace tandem::kernels::cpu

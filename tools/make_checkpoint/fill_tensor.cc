#include "tools/make_checkpoint/fill_tensor.h"

#include <cstddef>

#include "common/made_up_values.h"

namespace tandem {

void FillTensor(uint64_t seed, absl::string_view name, absl::Span<BF16> values, int64_t first) {
  const MadeUpTensor tensor = MakeUpTensor(seed, {name.data(), name.size()});
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = BF16{MadeUpBits(tensor, static_cast<uint64_t>(first) + i)};
  }
}

}  // namespace tandem

// Conversion of whole tensors between floating-point dtypes, at load.
#ifndef TANDEM_COMMON_CHECKPOINT_CONVERT_H_
#define TANDEM_COMMON_CHECKPOINT_CONVERT_H_

#include "common/tensor.h"

namespace tandem {

// to[i] = from[i], through f32, rounded to nearest even where it narrows. Views of equal shape,
// dense, of any of F32, BF16 and F16 (`to`: F32 or BF16); may be unaligned.
void ConvertElements(const TensorView& from, const TensorView& to);

}  // namespace tandem

#endif  // TANDEM_COMMON_CHECKPOINT_CONVERT_H_

// The modes that a model can be served in: the dtype of activations, cache and wire.
#ifndef TANDEM_COMMON_MODE_H_
#define TANDEM_COMMON_MODE_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/tensor.h"

namespace tandem {

// "f32" or "bf16", as --dtype takes them.
inline absl::StatusOr<Dtype> ParseMode(const std::string& name) {
  if (name == "f32") return Dtype::kF32;
  if (name == "bf16") return Dtype::kBF16;
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype is \"", name, "\", but must be f32 or bf16"));
}

}  // namespace tandem

#endif  // TANDEM_COMMON_MODE_H_

// The two choices of numbers that a deployment makes: its mode and the format of its weights.
#ifndef TANDEM_COMMON_MODE_H_
#define TANDEM_COMMON_MODE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/tensor.h"

namespace tandem {

// The mode, the dtype of activations, cache and wire: "f32" or "bf16", as --dtype takes them.
inline absl::StatusOr<Dtype> ParseMode(const std::string& name) {
  if (name == "f32") return Dtype::kF32;
  if (name == "bf16") return Dtype::kBF16;
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype is \"", name, "\", but must be f32 or bf16"));
}

// What a weight's values are; how a backend lays them out is its own affair.
enum class WeightFormat : uint8_t {
  kF32 = 1,   // as the checkpoint has them: any float type there widens to f32 exactly
  kBF16 = 2,  // rounded to bf16, to nearest even
};

constexpr const char* WeightFormatName(WeightFormat format) {
  return format == WeightFormat::kF32 ? "f32" : "bf16";
}

// The format of a mode's weights where nothing else is asked for.
constexpr WeightFormat DefaultWeightFormat(Dtype mode) {
  return mode == Dtype::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16;
}

// "f32" or "bf16", as --weights takes them; empty: the mode's.
inline absl::StatusOr<WeightFormat> ParseWeightFormat(const std::string& name, Dtype mode) {
  if (name.empty()) return DefaultWeightFormat(mode);
  if (name == "f32") return WeightFormat::kF32;
  if (name == "bf16") return WeightFormat::kBF16;
  return absl::InvalidArgumentError(
      absl::StrCat("--weights is \"", name, "\", but must be f32 or bf16"));
}

}  // namespace tandem

#endif  // TANDEM_COMMON_MODE_H_

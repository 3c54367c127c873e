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

// What a weight's values are; how a backend lays them out is its own affair. In an integer format
// the matrices are integers times scales; what is little, or looked up, or decides where rows go
// (norms, router, embedding), stays as the checkpoint has it.
enum class WeightFormat : uint8_t {
  kF32 = 1,   // as the checkpoint has them: any float type there widens to f32 exactly
  kBF16 = 2,  // rounded to bf16, to nearest even
  kInt8 = 3,  // 8 bits a weight, one scale per output
  kInt4 = 4,  // 4.125 bits a weight: a factor of 4 bits per 32 of them, one scale per output
};

constexpr bool IsInteger(WeightFormat format) {
  return format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
}

constexpr const char* WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBF16:
      return "bf16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
  }
  return "unknown";
}

// The format of a mode's weights where nothing else is asked for.
constexpr WeightFormat DefaultWeightFormat(Dtype mode) {
  return mode == Dtype::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16;
}

// "f32", "bf16", "int8" or "int4", as --weights takes them; empty: the mode's. What "auto" stands
// for is found out before (deployment/memory_needs.h).
inline absl::StatusOr<WeightFormat> ParseWeightFormat(const std::string& name, Dtype mode) {
  if (name.empty()) return DefaultWeightFormat(mode);
  for (const WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8, WeightFormat::kInt4}) {
    if (name == WeightFormatName(format)) return format;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--weights is \"", name, "\", but must be f32, bf16, int8 or int4"));
}

}  // namespace tandem

#endif  // TANDEM_COMMON_MODE_H_

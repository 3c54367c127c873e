#include "kernels/cpu/integer_weight.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/integer_weight.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

// The largest magnitude among `count` values, a multiple of 16; NaN or infinity where one is there.
float LargestMagnitude(const float* values, int64_t count) {
  const hn::RebindToUnsigned<PartTag> bits;
  auto largest = hn::Zero(bits);
  for (int64_t i = 0; i < count; i += kPartLanes) {
    const auto magnitude = hn::BitCast(bits, hn::Abs(hn::LoadU(PartTag(), values + i)));
    largest = hn::Max(largest, magnitude);
  }
  return hn::GetLane(hn::BitCast(PartTag(), hn::MaxOfLanes(bits, largest)));
}

HWY_INLINE F32x16 Clamp(F32x16 v, float low, float high) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) {
    r.part[i] = hn::Min(hn::Max(v.part[i], hn::Set(PartTag(), low)), hn::Set(PartTag(), high));
  }
  return r;
}

// to[i] = values[i] * factor to the nearest integer, ties to even, in [low, high].
void ToIntegers(const float* values, int64_t count, float factor, float low, float high,
                float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 scaled = Mul(LoadLanes(values + i), SetLanes(factor));
    StoreLanes(Clamp(RoundToInteger(scaled), low, high), to + i);
  }
}

// sum of (values[i] - step * integers[i])^2
float SquaredError(const float* values, const float* integers, int64_t count, float step) {
  F32x16 sum = ZeroLanes();
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 error = MulAdd(LoadLanes(integers + i), SetLanes(-step), LoadLanes(values + i));
    sum = MulAdd(error, error, sum);
  }
  return Fold(sum);
}

void QuantizeInt8Row(const float* values, int64_t padded_inputs, float scale, float* q) {
  ToIntegers(values, padded_inputs, 1.0f / scale, -127.0f, 127.0f, q);
}

// The nibbles, less 8, and factors of one output.
void QuantizeInt4Row(const float* values, int64_t padded_inputs, float scale, float* q,
                     uint8_t* factors) {
  for (int64_t group = 0; group * kGroupInputs < padded_inputs; ++group) {
    const float* const from = values + group * kGroupInputs;
    const float ideal = LargestMagnitude(from, kGroupInputs) / (7.0f * scale);
    const int lowest = std::clamp(static_cast<int>(ideal) - 1, 1, 15);
    const int highest = std::clamp(static_cast<int>(ideal) + 1, 1, 15);
    float least = std::numeric_limits<float>::infinity();
    for (int factor = lowest; factor <= highest; ++factor) {
      const float step = scale * static_cast<float>(factor);
      float tried[kGroupInputs];
      ToIntegers(from, kGroupInputs, 1.0f / step, -8.0f, 7.0f, tried);
      const float error = SquaredError(from, tried, kGroupInputs, step);
      if (error >= least) continue;
      least = error;
      factors[group] = static_cast<uint8_t>(factor);
      std::copy(tried, tried + kGroupInputs, q + group * kGroupInputs);
    }
  }
}

void WidenRowTo(const TensorView& source, int64_t row, float* to) {
  const int64_t width = source.width();
  int64_t i = 0;
  if (source.dtype == Dtype::kF32) {
    std::memcpy(to, source.row(row), static_cast<size_t>(width) * sizeof(float));
    return;
  }
  if (source.dtype == Dtype::kF16) {
    const hn::Rebind<hwy::float16_t, PartTag> halves;
    for (; i < width; i += kPartLanes) {
      const auto count = static_cast<size_t>(std::min<int64_t>(kPartLanes, width - i));
      HWY_ALIGN hwy::float16_t part[kPartLanes];
      HWY_ALIGN float widened[kPartLanes];
      std::memcpy(part, source.row(row) + 2 * i, 2 * count);
      hn::Store(hn::PromoteTo(PartTag(), hn::Load(halves, part)), PartTag(), widened);
      std::memcpy(to + i, widened, sizeof(float) * count);
    }
    return;
  }
  const auto* from = reinterpret_cast<const BF16*>(source.row(row));
  for (; i + kLanes <= width; i += kLanes) StoreLanes(LoadLanes(from + i), to + i);
  if (i < width) StoreSomeLanes(LoadSomeLanes(from + i, width - i), to + i, width - i);
}

// to[i] = from[i], integers, as bytes.
void ToBytes(const float* from, int64_t count, int8_t* to) {
  const hn::RebindToSigned<PartTag> words;
  const hn::Rebind<int8_t, PartTag> bytes;
  for (int64_t i = 0; i < count; i += kPartLanes) {
    const auto integers = hn::ConvertTo(words, hn::LoadU(PartTag(), from + i));
    hn::StoreU(hn::DemoteTo(bytes, integers), bytes, to + i);
  }
}

HWY_INLINE uint32_t FourAt(const int8_t* from) {
  uint32_t four;
  std::memcpy(&four, from, sizeof(four));
  return four;
}

// One output's integers (q, or the nibbles less 8) and factors into its places in the panel.
void PackRow(const IntegerLayout& layout, const int8_t* q, const uint8_t* factors, int64_t output,
             uint8_t* panel) {
  for (int64_t block = 0; block < layout.blocks; ++block, q += kBlockInputs) {
    uint8_t* const to = panel + block * layout.block_bytes();
    if (layout.format == WeightFormat::kInt8) {
      for (int64_t k = 0; k < kBlockInputs; k += 4) {
        const uint32_t four = FourAt(q + k) ^ 0x80808080;  // + 128
        std::memcpy(to + k * kPanelOutputs + output * 4, &four, sizeof(four));
      }
      continue;
    }
    for (int64_t group = 0; group < kBlockGroups; ++group) {
      const int factor = factors[block * kBlockGroups + group];
      to[group / 2 * kPanelOutputs + output] |= static_cast<uint8_t>(factor << (group % 2 * 4));
      uint8_t* const rows = to + kFactorBytes + group * kInt4GroupBytes;
      const int8_t* const low = q + group * kGroupInputs;
      const int8_t* const high = low + kGroupInputs / 2;
      for (int64_t k = 0; k < kGroupInputs / 2; k += 4) {
        // + 8 modulo 16 is the other value of the highest bit.
        const uint32_t four =
            ((FourAt(low + k) & 0x0F0F0F0F) | (FourAt(high + k) & 0x0F0F0F0F) << 4) ^ 0x88888888;
        std::memcpy(rows + k * kPanelOutputs + output * 4, &four, sizeof(four));
      }
    }
  }
}

void QuantizePanelImpl(const TensorView& source, const IntegerLayout& layout, int64_t panel,
                       std::byte* memory) {
  const int64_t padded = layout.blocks * kBlockInputs;
  std::vector<float> values(padded), q(padded);
  std::vector<int8_t> bytes(padded);
  std::vector<uint8_t> factors(padded / kGroupInputs);
  auto* const scales = reinterpret_cast<float*>(memory);
  auto* const to =
      reinterpret_cast<uint8_t*>(memory) + layout.scale_bytes() + panel * layout.panel_bytes();
  std::memset(to, 0, static_cast<size_t>(layout.panel_bytes()));
  const bool int4 = layout.format == WeightFormat::kInt4;
  for (int64_t i = 0; i < kPanelOutputs; ++i) {
    const int64_t n = panel * kPanelOutputs + i;
    float largest = 0.0f;
    if (n < layout.outputs) {
      WidenRowTo(source, n, values.data());
      largest = LargestMagnitude(values.data(), padded);
    }
    const bool finite = largest <= std::numeric_limits<float>::max();
    const float scale = largest / (int4 ? 105.0f : 127.0f);
    // So small that nothing can be divided by it: the row is zero.
    const bool zero = finite && scale < 0x1p-100f;
    scales[n] = zero ? 0.0f : finite ? scale : std::numeric_limits<float>::quiet_NaN();
    if (zero || !finite) {
      std::fill(q.begin(), q.end(), 0.0f);
      std::fill(factors.begin(), factors.end(), uint8_t{1});
    } else if (int4) {
      QuantizeInt4Row(values.data(), padded, scale, q.data(), factors.data());
    } else {
      QuantizeInt8Row(values.data(), padded, scale, q.data());
    }
    ToBytes(q.data(), padded, bytes.data());
    PackRow(layout, bytes.data(), factors.data(), i, to);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(QuantizePanelImpl);

void QuantizePanel(const TensorView& source, const IntegerLayout& layout, int64_t panel,
                   std::byte* memory) {
  HWY_DYNAMIC_DISPATCH(QuantizePanelImpl)(source, layout, panel, memory);
}

float Dequantized(const IntegerWeight& weight, int64_t n, int64_t k) {
  const IntegerLayout& layout = weight.layout;
  const int64_t output = n % kPanelOutputs;
  const uint8_t* const block =
      weight.panel(n / kPanelOutputs) + k / kBlockInputs * layout.block_bytes();
  const auto at = [&](const uint8_t* rows, int64_t i) {
    return static_cast<int>(rows[i / 4 * 4 * kPanelOutputs + output * 4 + i % 4]);
  };
  const int64_t in_block = k % kBlockInputs;
  if (layout.format == WeightFormat::kInt8) {
    return weight.scales()[n] * static_cast<float>(at(block, in_block) - 128);
  }
  const int64_t group = in_block / kGroupInputs;
  const int factor = block[group / 2 * kPanelOutputs + output] >> (group % 2 * 4) & 15;
  const int64_t i = in_block % kGroupInputs;
  const bool upper = i >= kGroupInputs / 2;
  const int byte = at(block + kFactorBytes + group * kInt4GroupBytes, i % (kGroupInputs / 2));
  const int nibble = upper ? byte >> 4 : byte & 15;
  return weight.scales()[n] * static_cast<float>(factor * (nibble - 8));
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE

#include "kernels/cpu/row_ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_ops.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "kernels/cpu/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

template <typename From, typename To>
void ConvertRowTyped(const From* from, int64_t width, To* out) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) StoreLanes(LoadLanes(from + i), out + i);
  if (i < width) StoreSomeLanes(LoadSomeLanes(from + i, width - i), out + i, width - i);
}

template <typename From>
void ConvertRowFrom(const From* from, int64_t width, void* out, Dtype out_dtype) {
  if (out_dtype == Dtype::kF32) {
    ConvertRowTyped(from, width, static_cast<float*>(out));
  } else {
    ConvertRowTyped(from, width, static_cast<BF16*>(out));
  }
}

void ConvertRowImpl(const void* from, Dtype from_dtype, int64_t width, void* out, Dtype out_dtype) {
  if (from_dtype == Dtype::kF32) {
    ConvertRowFrom(static_cast<const float*>(from), width, out, out_dtype);
  } else {
    ConvertRowFrom(static_cast<const BF16*>(from), width, out, out_dtype);
  }
}

template <typename T>
void AddRowTyped(const T* a, const T* b, int64_t width, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    StoreLanes(Add(LoadLanes(a + i), LoadLanes(b + i)), out + i);
  }
  const int64_t rest = width - i;
  if (rest == 0) return;
  StoreSomeLanes(Add(LoadSomeLanes(a + i, rest), LoadSomeLanes(b + i, rest)), out + i, rest);
}

void AddRowImpl(const void* a, const void* b, Dtype act, int64_t width, void* out) {
  if (act == Dtype::kF32) {
    AddRowTyped(static_cast<const float*>(a), static_cast<const float*>(b), width,
                static_cast<float*>(out));
  } else {
    AddRowTyped(static_cast<const BF16*>(a), static_cast<const BF16*>(b), width,
                static_cast<BF16*>(out));
  }
}

template <typename T, typename W>
void RmsNormRowTyped(const T* x, const W* weight, float eps, int64_t width, T* out) {
  F32x16 squares = ZeroLanes();
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const F32x16 v = LoadLanes(x + i);
    squares = MulAdd(v, v, squares);
  }
  const int64_t rest = width - i;
  if (rest > 0) {
    const F32x16 v = LoadSomeLanes(x + i, rest);
    squares = MulAdd(v, v, squares);
  }
  const float mean = Fold(squares) / static_cast<float>(width);
  const F32x16 root = SqrtLanes(SetLanes(mean + eps));
  for (i = 0; i + kLanes <= width; i += kLanes) {
    const F32x16 normed = RoundTo<T>(Div(LoadLanes(x + i), root));
    StoreLanes(Mul(LoadLanes(weight + i), normed), out + i);
  }
  if (rest > 0) {
    const F32x16 normed = RoundTo<T>(Div(LoadSomeLanes(x + i, rest), root));
    StoreSomeLanes(Mul(LoadSomeLanes(weight + i, rest), normed), out + i, rest);
  }
}

template <typename T>
void RmsNormRowOfAct(const void* x, const void* weight, Dtype weight_dtype, float eps,
                     int64_t width, void* out) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(out);
  if (weight_dtype == Dtype::kF32) {
    RmsNormRowTyped(from, static_cast<const float*>(weight), eps, width, to);
  } else {
    RmsNormRowTyped(from, static_cast<const BF16*>(weight), eps, width, to);
  }
}

void RmsNormRowImpl(const void* x, Dtype act, const void* weight, Dtype weight_dtype, float eps,
                    int64_t width, void* out) {
  if (act == Dtype::kF32) {
    RmsNormRowOfAct<float>(x, weight, weight_dtype, eps, width, out);
  } else {
    RmsNormRowOfAct<BF16>(x, weight, weight_dtype, eps, width, out);
  }
}

// Act is the dtype that is rounded to, T the one in memory.
template <typename Act>
HWY_INLINE F32x16 SiluMulLanes(F32x16 gate, F32x16 up) {
  return RoundTo<Act>(Mul(Silu(gate), up));
}
template <typename Act, typename T>
void SiluMulTyped(const T* gate, const T* up, int64_t width, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    StoreLanes(SiluMulLanes<Act>(LoadLanes(gate + i), LoadLanes(up + i)), out + i);
  }
  const int64_t rest = width - i;
  if (rest == 0) return;
  const F32x16 v = SiluMulLanes<Act>(LoadSomeLanes(gate + i, rest), LoadSomeLanes(up + i, rest));
  StoreSomeLanes(v, out + i, rest);
}

void SiluMulRowImpl(const void* gate, const void* up, Dtype act, int64_t width, void* out) {
  if (act == Dtype::kF32) {
    SiluMulTyped<float>(static_cast<const float*>(gate), static_cast<const float*>(up), width,
                        static_cast<float*>(out));
  } else {
    SiluMulTyped<BF16>(static_cast<const BF16*>(gate), static_cast<const BF16*>(up), width,
                       static_cast<BF16*>(out));
  }
}

void SiluMulWidenedImpl(const float* gate, const float* up, Dtype act, int64_t width, float* out) {
  if (act == Dtype::kF32) {
    SiluMulTyped<float>(gate, up, width, out);
  } else {
    SiluMulTyped<BF16>(gate, up, width, out);
  }
}

void ExpRowImpl(const float* from, int64_t width, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) StoreLanes(Exp(LoadLanes(from + i)), to + i);
  const int64_t rest = width - i;
  if (rest > 0) StoreSomeLanes(Exp(LoadSomeLanes(from + i, rest)), to + i, rest);
}

HWY_INLINE F32x16 FixedPointExp(F32x16 v, F32x16 max, F32x16 temperature) {
  const F32x16 e = Exp(Div(Sub(v, max), temperature));
  return RoundToInteger(Mul(e, SetLanes(1099511627776.0f)));  // 2^40
}

void FixedPointExpRowImpl(const float* from, float max, float temperature, int64_t width,
                          float* to) {
  const F32x16 max_lanes = SetLanes(max);
  const F32x16 temperature_lanes = SetLanes(temperature);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    StoreLanes(FixedPointExp(LoadLanes(from + i), max_lanes, temperature_lanes), to + i);
  }
  const int64_t rest = width - i;
  if (rest == 0) return;
  const F32x16 v = LoadSomeLanes(from + i, rest);
  StoreSomeLanes(FixedPointExp(v, max_lanes, temperature_lanes), to + i, rest);
}

template <typename T>
void CombineRowTyped(const TensorView& rows, int64_t first, const float* weights, int64_t count,
                     T* out) {
  const int64_t width = rows.width();
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t lanes = width - i < kLanes ? width - i : kLanes;
    F32x16 sum = ZeroLanes();
    for (int64_t t = 0; t < count; ++t) {
      const T* row = reinterpret_cast<const T*>(rows.row(first + t)) + i;
      const F32x16 v = lanes == kLanes ? LoadLanes(row) : LoadSomeLanes(row, lanes);
      sum = MulAdd(SetLanes(weights[t]), v, sum);
    }
    if (lanes == kLanes) {
      StoreLanes(sum, out + i);
    } else {
      StoreSomeLanes(sum, out + i, lanes);
    }
  }
}

void CombineRowImpl(const TensorView& rows, int64_t first, const float* weights, int64_t count,
                    void* out) {
  if (rows.dtype == Dtype::kF32) {
    CombineRowTyped(rows, first, weights, count, static_cast<float*>(out));
  } else {
    CombineRowTyped(rows, first, weights, count, static_cast<BF16*>(out));
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels::cpu {

HWY_EXPORT(ConvertRowImpl);
HWY_EXPORT(AddRowImpl);
HWY_EXPORT(RmsNormRowImpl);
HWY_EXPORT(SiluMulRowImpl);
HWY_EXPORT(SiluMulWidenedImpl);
HWY_EXPORT(ExpRowImpl);
HWY_EXPORT(FixedPointExpRowImpl);
HWY_EXPORT(CombineRowImpl);

void ConvertRow(const void* from, Dtype from_dtype, int64_t width, void* out, Dtype out_dtype) {
  HWY_DYNAMIC_DISPATCH(ConvertRowImpl)(from, from_dtype, width, out, out_dtype);
}
void AddRow(const void* a, const void* b, Dtype act, int64_t width, void* out) {
  HWY_DYNAMIC_DISPATCH(AddRowImpl)(a, b, act, width, out);
}
void RmsNormRow(const void* x, Dtype act, const void* weight, Dtype weight_dtype, float eps,
                int64_t width, void* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormRowImpl)(x, act, weight, weight_dtype, eps, width, out);
}
void SiluMulRow(const void* gate, const void* up, Dtype act, int64_t width, void* out) {
  HWY_DYNAMIC_DISPATCH(SiluMulRowImpl)(gate, up, act, width, out);
}
void SiluMulWidened(const float* gate, const float* up, Dtype act, int64_t width, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMulWidenedImpl)(gate, up, act, width, out);
}
void ExpRow(const float* from, int64_t width, float* to) {
  HWY_DYNAMIC_DISPATCH(ExpRowImpl)(from, width, to);
}
void FixedPointExpRow(const float* from, float max, float temperature, int64_t width, float* to) {
  HWY_DYNAMIC_DISPATCH(FixedPointExpRowImpl)(from, max, temperature, width, to);
}
void CombineRow(const TensorView& rows, int64_t first, absl::Span<const float> weights, void* out) {
  HWY_DYNAMIC_DISPATCH(CombineRowImpl)
  (rows, first, weights.data(), static_cast<int64_t>(weights.size()), out);
}

}  // namespace tandem::kernels::cpu
#endif  // HWY_ONCE

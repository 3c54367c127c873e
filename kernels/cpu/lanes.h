// Sixteen f32 lanes: the unit in which every CPU kernel computes, so that a result does not depend
// on the vector width. One register with AVX-512, two with AVX2; each operation is elementwise and
// IEEE-rounded, hence bit-identical on both. Nothing is contracted (-ffp-contract=off): what is
// fused is written MulAdd.
//
// Include it once per Highway target, after hwy/foreach_target.h, as an "-inl.h" file. Pointers
// need no alignment.
#if defined(TANDEM_KERNELS_CPU_LANES_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_KERNELS_CPU_LANES_H_
#undef TANDEM_KERNELS_CPU_LANES_H_
#else
#define TANDEM_KERNELS_CPU_LANES_H_
#endif

#include <cstdint>
#include <cstring>

#include "common/tensor.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kLanes = 16;

using LaneTag8 = hn::FixedTag<float, 8>;

// ---- One register's worth: the only code that knows the width. ----

#if HWY_CAP_GE512
using PartTag = hn::FixedTag<float, 16>;
inline constexpr int kParts = 1;
#else
using PartTag = LaneTag8;
inline constexpr int kParts = 2;
#endif
using Part = hn::Vec<PartTag>;
inline constexpr int kPartLanes = kLanes / kParts;

HWY_INLINE Part LoadPart(const float* from) { return hn::LoadU(PartTag(), from); }
HWY_INLINE Part LoadPart(const BF16* from) {
  const hn::Rebind<uint16_t, PartTag> du16;
  const hn::RebindToUnsigned<PartTag> du32;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(PartTag(), hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
}

// The bits of a bf16, to nearest even, in the lower half of each u32; a NaN stays one.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<PartTag>> BF16BitsOfPart(Part v) {
  const hn::RebindToUnsigned<PartTag> du32;
  const auto bits = hn::BitCast(du32, v);
  const auto lowest = hn::And(hn::ShiftRight<16>(bits), hn::Set(du32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(lowest, hn::Set(du32, 0x7FFF))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du32, 0x40));
  return hn::IfThenElse(hn::RebindMask(du32, hn::IsNaN(v)), quiet, rounded);
}

HWY_INLINE void StorePart(Part v, float* to) { hn::StoreU(v, PartTag(), to); }
HWY_INLINE void StorePart(Part v, BF16* to) {
  const hn::RebindToSigned<PartTag> di32;
  const hn::Rebind<uint16_t, PartTag> du16;
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, BF16BitsOfPart(v))), du16,
             reinterpret_cast<uint16_t*>(to));
}

// exp(x), within 2 units in the last place; 0 below -104, +inf above 88.73, a NaN for a NaN.
// Cody-Waite reduction by q = round(x / ln 2), a polynomial of degree 7 in Horner's form on
// [-ln 2 / 2, ln 2 / 2] (coefficients from Highway's contrib/math, Apache-2.0), then 2^q in two
// steps so that subnormal results are rounded once. Own code: the bits stay when Highway changes.
HWY_INLINE Part ExpPart(Part x) {
  const PartTag d;
  const hn::RebindToSigned<PartTag> di32;
  const Part clamped = hn::Min(hn::Max(x, hn::Set(d, -104.0f)), hn::Set(d, 89.0f));
  const Part q = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  Part r = hn::MulAdd(q, hn::Set(d, -0.693145751953125f), clamped);
  r = hn::MulAdd(q, hn::Set(d, -1.428606765330187045e-6f), r);
  Part p = hn::Set(d, 0.000198527617612853646278381f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.00139304355252534151077271f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.00833336077630519866943359f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.0416664853692054748535156f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.166666671633720397949219f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  const Part y = hn::Add(hn::Set(d, 1.0f), hn::MulAdd(p, hn::Mul(r, r), r));
  const auto exponent = hn::ConvertTo(di32, q);
  const auto half = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(di32, 127);
  const Part scale1 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const Part scale2 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, half), bias)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Mul(hn::Mul(y, scale1), scale2));
}

// ---- Sixteen lanes. ----

struct F32x16 {
  Part part[kParts];
};

HWY_INLINE F32x16 SetLanes(float value) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Set(PartTag(), value);
  return r;
}
HWY_INLINE F32x16 ZeroLanes() { return SetLanes(0.0f); }

// T is float or BF16 (widened exactly).
template <typename T>
HWY_INLINE F32x16 LoadLanes(const T* from) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = LoadPart(from + i * kPartLanes);
  return r;
}

// Stores to BF16 round to nearest even.
template <typename T>
HWY_INLINE void StoreLanes(F32x16 v, T* to) {
  for (int i = 0; i < kParts; ++i) StorePart(v.part[i], to + i * kPartLanes);
}

// The first `count` in [0, 16] lanes from memory, zero in the others; reads nothing beyond them.
template <typename T>
HWY_INLINE F32x16 LoadSomeLanes(const T* from, int64_t count) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, from, static_cast<size_t>(count) * sizeof(T));
  return LoadLanes(buffer);
}
template <typename T>
HWY_INLINE void StoreSomeLanes(F32x16 v, T* to, int64_t count) {
  T buffer[kLanes];
  StoreLanes(v, buffer);
  std::memcpy(to, buffer, static_cast<size_t>(count) * sizeof(T));
}

// Lanes 0..7 from memory, zero in 8..15: the last half step where k % 16 == 8.
HWY_INLINE F32x16 LoadLowLanes(const float* from) {
  const LaneTag8 d8;
#if HWY_CAP_GE512
  return {{hn::ZeroExtendVector(PartTag(), hn::LoadU(d8, from))}};
#else
  return {{hn::LoadU(d8, from), hn::Zero(d8)}};
#endif
}
HWY_INLINE F32x16 LoadLowLanes(const BF16* from) {
  const hn::FixedTag<uint16_t, 8> du16;
  const hn::FixedTag<uint32_t, 8> du32;
  const LaneTag8 d8;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from));
  const auto low = hn::BitCast(d8, hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
#if HWY_CAP_GE512
  return {{hn::ZeroExtendVector(PartTag(), low)}};
#else
  return {{low, hn::Zero(d8)}};
#endif
}

// a * b + c, rounded once.
HWY_INLINE F32x16 MulAdd(F32x16 a, F32x16 b, F32x16 c) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::MulAdd(a.part[i], b.part[i], c.part[i]);
  return r;
}
HWY_INLINE F32x16 Add(F32x16 a, F32x16 b) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Add(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE F32x16 Sub(F32x16 a, F32x16 b) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Sub(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE F32x16 Mul(F32x16 a, F32x16 b) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Mul(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE F32x16 Div(F32x16 a, F32x16 b) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Div(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE F32x16 SqrtLanes(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Sqrt(a.part[i]);
  return r;
}
// The larger lane; of a NaN and a number, b.
HWY_INLINE F32x16 Max(F32x16 a, F32x16 b) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Max(a.part[i], b.part[i]);
  return r;
}
HWY_INLINE F32x16 Neg(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Neg(a.part[i]);
  return r;
}
// To the nearest integer, ties to even.
HWY_INLINE F32x16 RoundToInteger(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Round(a.part[i]);
  return r;
}
// See ExpPart.
HWY_INLINE F32x16 Exp(F32x16 x) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) r.part[i] = ExpPart(x.part[i]);
  return r;
}
// z / (1 + exp(-z)).
HWY_INLINE F32x16 Silu(F32x16 z) { return Div(z, Add(SetLanes(1.0f), Exp(Neg(z)))); }

// Rounded to act type T and widened again; nothing for float.
template <typename T>
HWY_INLINE F32x16 RoundTo(F32x16 v);
template <>
HWY_INLINE F32x16 RoundTo<float>(F32x16 v) {
  return v;
}
template <>
HWY_INLINE F32x16 RoundTo<BF16>(F32x16 v) {
  F32x16 r;
  for (int i = 0; i < kParts; ++i) {
    r.part[i] = hn::BitCast(PartTag(), hn::ShiftLeft<16>(BF16BitsOfPart(v.part[i])));
  }
  return r;
}

// The sum of all lanes as the tree of kernels/ops/dense.h: lane i += lane i + 8, then + 4, + 2,
// + 1.
HWY_INLINE float Fold(F32x16 v) {
  const hn::FixedTag<float, 4> d4;
#if HWY_CAP_GE512
  const LaneTag8 d8;
  const auto eight = hn::Add(hn::LowerHalf(d8, v.part[0]), hn::UpperHalf(d8, v.part[0]));
#else
  const auto eight = hn::Add(v.part[0], v.part[1]);
#endif
  const auto four = hn::Add(hn::LowerHalf(d4, eight), hn::UpperHalf(d4, eight));
  const auto two = hn::Add(four, hn::Shuffle1032(four));
  return hn::GetLane(hn::Add(two, hn::Shuffle2301(two)));
}

// out[i] = Fold(v[i]).
template <int kCount>
HWY_INLINE void FoldAll(const F32x16 (&v)[kCount], float* HWY_RESTRICT out) {
  for (int i = 0; i < kCount; ++i) out[i] = Fold(v[i]);
}
#if HWY_CAP_GE512
// The same additions, two vectors in one at each step, whose halves, blocks and lanes alternate.
HWY_INLINE void FoldAll(const F32x16 (&v)[16], float* HWY_RESTRICT out) {
  const PartTag d;
  const hn::RepartitionToWide<PartTag> d64;
  Part eight[8], four[4], two[2];
  for (int i = 0; i < 8; ++i) {
    const Part a = v[i].part[0], b = v[i + 8].part[0];
    eight[i] = hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  }
  for (int i = 0; i < 4; ++i) {
    const Part a = eight[i], b = eight[i + 4];
    four[i] = hn::OddEvenBlocks(hn::Add(b, hn::SwapAdjacentBlocks(b)),
                                hn::Add(a, hn::SwapAdjacentBlocks(a)));
  }
  for (int i = 0; i < 2; ++i) {
    const auto a = hn::BitCast(d64, four[i]), b = hn::BitCast(d64, four[i + 2]);
    two[i] = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, a, b)),
                     hn::BitCast(d, hn::InterleaveUpper(d64, a, b)));
  }
  const Part one = hn::OddEven(hn::Add(two[1], hn::Shuffle2301(two[1])),
                               hn::Add(two[0], hn::Shuffle2301(two[0])));
  hn::StoreU(one, d, out);
}
#endif

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_KERNELS_CPU_LANES_H_

#include "tools/bench_kernels/mul_add_peak.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/bench_kernels/mul_add_peak.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Twelve chains: more than latency times throughput of any processor with AVX2.
int64_t RunMulAddsImpl(int64_t steps) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.5f), b = hn::Set(d, 1.0f);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0;
  auto t0 = s0, t1 = s0, t2 = s0, t3 = s0, t4 = s0, t5 = s0;
  for (int64_t i = 0; i < steps; ++i) {
    s0 = hn::MulAdd(s0, a, b);
    s1 = hn::MulAdd(s1, a, b);
    s2 = hn::MulAdd(s2, a, b);
    s3 = hn::MulAdd(s3, a, b);
    s4 = hn::MulAdd(s4, a, b);
    s5 = hn::MulAdd(s5, a, b);
    t0 = hn::MulAdd(t0, a, b);
    t1 = hn::MulAdd(t1, a, b);
    t2 = hn::MulAdd(t2, a, b);
    t3 = hn::MulAdd(t3, a, b);
    t4 = hn::MulAdd(t4, a, b);
    t5 = hn::MulAdd(t5, a, b);
#if defined(__GNUC__)
    // Twelve equal chains: without this the compiler keeps one.
    asm volatile(""
                 : "+v"(s0.raw), "+v"(s1.raw), "+v"(s2.raw), "+v"(s3.raw), "+v"(s4.raw),
                   "+v"(s5.raw), "+v"(t0.raw), "+v"(t1.raw), "+v"(t2.raw), "+v"(t3.raw),
                   "+v"(t4.raw), "+v"(t5.raw));
#endif
  }
  return steps * 12 * 2 * static_cast<int64_t>(hn::Lanes(d));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::kernels {

HWY_EXPORT(RunMulAddsImpl);

int64_t RunMulAdds(int64_t steps) { return HWY_DYNAMIC_DISPATCH(RunMulAddsImpl)(steps); }

}  // namespace tandem::kernels
#endif  // HWY_ONCE

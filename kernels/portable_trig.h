// Cosine and sine to the same bits on every device: products, sums and fused multiply-adds of
// doubles, each rounded once, in one order. What is beneath a library's functions differs.
#ifndef TANDEM_KERNELS_PORTABLE_TRIG_H_
#define TANDEM_KERNELS_PORTABLE_TRIG_H_

#include <math.h>

#if defined(__CUDACC__)
#define TANDEM_HOST_DEVICE __host__ __device__
#else
#define TANDEM_HOST_DEVICE
#endif

namespace tandem::kernels {

struct CosineAndSine {
  double cosine;
  double sine;
};

// For angles in [0, 2^20], within 2e-16 of the true values. Cody-Waite reduction by pi / 2, then
// Taylor's series on [-pi / 4, pi / 4], whose next terms are below 2e-18.
TANDEM_HOST_DEVICE inline CosineAndSine PortableCosineAndSine(double angle) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
  constexpr double kHalfPi = 0x1.921fb54442d18p+0;
  constexpr double kHalfPiRest = 0x1.1a62633145c07p-54;
  const double quarter = rint(angle * kTwoOverPi);
  const double x = fma(-quarter, kHalfPiRest, fma(-quarter, kHalfPi, angle));
  const double square = x * x;
  // Horner's form, from the last term: 1 - x^2 / (1 * 2) * (1 - x^2 / (3 * 4) * ...).
  double cosine = 1.0, sine = 1.0;
  for (int n = 16; n >= 2; n -= 2) {
    cosine = fma(-square / static_cast<double>((n - 1) * n), cosine, 1.0);
    sine = fma(-square / static_cast<double>(n * (n + 1)), sine, 1.0);
  }
  sine *= x;
  switch (static_cast<long long>(quarter) & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_PORTABLE_TRIG_H_

#include "kernels/cuda/rope_ops.h"

#include <cstdint>

#include "common/pages.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rows.h"
#include "kernels/portable_trig.h"

namespace tandem::kernels::cuda {
namespace {

struct RopeTableOp {
  int64_t half;
  const int32_t* positions;
  const float* frequencies;
  float factor;
  Rows<float> out;

  __device__ void operator()(int64_t row, int64_t f) const {
    const float angle = static_cast<float>(positions[row]) * frequencies[f];
    const CosineAndSine of_angle = PortableCosineAndSine(angle);
    out[row][f] = factor * static_cast<float>(of_angle.cosine);
    out[row][half + f] = factor * static_cast<float>(of_angle.sine);
  }
};

// to[2f], to[2f + 1] = the pair of `from` there, rotated; `to` may be `from`.
template <typename T>
__device__ void RotatePair(const T* from, const float* cos_sin, int64_t half, int64_t f, T* to) {
  const float even = ToFloat(from[2 * f]), odd = ToFloat(from[2 * f + 1]);
  const float cosine = cos_sin[f], sine = cos_sin[half + f];
  to[2 * f] = Round<T>(even * cosine - odd * sine);
  to[2 * f + 1] = Round<T>(odd * cosine + even * sine);
}

// Of each head of each row, its pairs.
template <typename T>
struct RopeOp {
  int64_t heads, half;
  int64_t first;  // where a head's pairs begin
  Rows<const float> cos_sin;
  Rows<T> x;

  __device__ void operator()(int64_t head_of_all, int64_t f) const {
    T* const pairs = x[head_of_all] + first;
    RotatePair(pairs, cos_sin[head_of_all / heads], half, f, pairs);
  }
};

template <typename T, typename W>
__global__ void LatentAppendKernel(int64_t rows, int64_t latent, int64_t half, Rows<const T> kv_a,
                                   const W* norm, float eps, Rows<const float> cos_sin,
                                   const int32_t* page_ids, const int32_t* slots, Rows<T> pages) {
  const int64_t row = ThreadOfAll() / kSumLanes;
  const bool active = row < rows;
  const int64_t cached = active ? int64_t{page_ids[row]} * kPageTokens + slots[row] : 0;
  NormRow(active, kv_a[row], norm, eps, latent, pages[cached]);
  if (!active) return;
  for (int64_t f = threadIdx.x % kSumLanes; f < half; f += kSumLanes) {
    RotatePair(kv_a[row] + latent, cos_sin[row], half, f, pages[cached] + latent);
  }
}

}  // namespace

void RopeTable(Stream stream, const DeviceTensor& positions, const DeviceTensor& frequencies,
               float factor, const DeviceTensor& out) {
  const int64_t half = frequencies.elements();
  LaunchForElements(stream, out.rows(), half,
                    RopeTableOp{half, DataOf<const int32_t>(positions),
                                DataOf<const float>(frequencies), factor, RowsOf<float>(out)});
}

void Rope(Stream stream, const DeviceTensor& x, const DeviceTensor& cos_sin) {
  const int64_t dr = cos_sin.width();
  WithType(x.dtype, [&](auto act) {
    using T = typename decltype(act)::type;
    LaunchForElements(
        stream, x.rows(), dr / 2,
        RopeOp<T>{x.dim(1), dr / 2, x.width() - dr, RowsOf<const float>(cos_sin), RowsOf<T>(x)});
  });
}

void LatentAppend(Stream stream, const LatentAppendTensors& t, float eps) {
  const int64_t rows = t.kv_a.rows(), latent = t.norm.width();
  if (rows == 0) return;
  WithType(t.kv_a.dtype, [&](auto act) {
    WithType(t.norm.dtype, [&](auto factor) {
      using T = typename decltype(act)::type;
      using W = typename decltype(factor)::type;
      Launch(stream, LatentAppendKernel<T, W>, BlocksForRows(rows), kThreads, 0, rows, latent,
             (t.kv_a.width() - latent) / 2, RowsOf<const T>(t.kv_a), DataOf<const W>(t.norm), eps,
             RowsOf<const float>(t.cos_sin), DataOf<const int32_t>(t.page_ids),
             DataOf<const int32_t>(t.slots), RowsOf<T>(t.pages));
    });
  });
}

}  // namespace tandem::kernels::cuda

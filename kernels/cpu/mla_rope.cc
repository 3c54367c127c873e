// Rotary embedding and the write side of the latent cache.
#include <cstring>

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/local_memory.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/portable_trig.h"

namespace tandem::kernels::cpu {
namespace {

constexpr int64_t kRowGrain = 16;

// Rotates the dr values at `x` in place by the row `cos_sin` of the table.
void RotateRow(void* x, Dtype act, const float* cos_sin, int64_t dr) {
  const float* cosines = cos_sin;
  const float* sines = cos_sin + dr / 2;
  for (int64_t f = 0; f < dr / 2; ++f) {
    const float even = LoadElement(x, act, 2 * f);
    const float odd = LoadElement(x, act, 2 * f + 1);
    StoreElement(even * cosines[f] - odd * sines[f], x, act, 2 * f);
    StoreElement(odd * cosines[f] + even * sines[f], x, act, 2 * f + 1);
  }
}

const float* TableRow(const DeviceTensor& cos_sin, int64_t row) {
  return reinterpret_cast<const float*>(Row(cos_sin, row));
}

}  // namespace

void RopeTable(const RopeTableArgs& args, ThreadPool& pool) {
  const int64_t half = args.frequencies.width();
  const int64_t rows = args.out.dim(0);
  const absl::Span<const int32_t> positions = Ints(args.positions);
  const auto* frequencies = Data<const float>(args.frequencies);
  pool.ParallelFor(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto position = static_cast<float>(positions[i]);
      auto* out = reinterpret_cast<float*>(Row(args.out, i));
      for (int64_t f = 0; f < half; ++f) {
        const float angle = position * frequencies[f];
        const CosineAndSine of_angle = PortableCosineAndSine(angle);
        out[f] = args.factor * static_cast<float>(of_angle.cosine);
        out[half + f] = args.factor * static_cast<float>(of_angle.sine);
      }
    }
  });
}

void Rope(const RopeArgs& args, ThreadPool& pool) {
  const int64_t rows = args.x.dim(0);
  const int64_t heads = args.x.dim(1);
  const int64_t dr = args.cos_sin.width();
  const int64_t first_bytes =
      (args.x.width() - dr) * static_cast<int64_t>(DtypeBytes(args.x.dtype));
  pool.ParallelFor(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        RotateRow(Row(args.x, i * heads + h) + first_bytes, args.x.dtype, TableRow(args.cos_sin, i),
                  dr);
      }
    }
  });
}

void LatentAppend(const LatentAppendArgs& args, ThreadPool& pool) {
  const Dtype act = args.kv_a.dtype;
  const TensorView& norm = View(args.norm_weight);
  const int64_t r = norm.width();
  const absl::Span<const int32_t> page_ids = Ints(args.page_ids);
  const absl::Span<const int32_t> slots = Ints(args.slots);
  const int64_t dr = args.kv_a.width() - r;
  const size_t latent_bytes = static_cast<size_t>(r) * DtypeBytes(act);
  const size_t rope_bytes = static_cast<size_t>(dr) * DtypeBytes(act);
  pool.ParallelFor(args.kv_a.dim(0), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::byte* from = Row(args.kv_a, i);
      std::byte* to = Row(args.pages, static_cast<int64_t>(page_ids[i]) * kPageTokens + slots[i]);
      RmsNormRow(from, act, norm.data, norm.dtype, args.eps, r, to);
      std::memcpy(to + latent_bytes, from + latent_bytes, rope_bytes);
      RotateRow(to + latent_bytes, act, TableRow(args.cos_sin, i), dr);
    }
  });
}

}  // namespace tandem::kernels::cpu

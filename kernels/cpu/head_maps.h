// kv_b_proj, head by head.
#ifndef TANDEM_KERNELS_CPU_HEAD_MAPS_H_
#define TANDEM_KERNELS_CPU_HEAD_MAPS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mode.h"
#include "common/packed_unit.h"
#include "common/tensor.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/weights.h"

namespace tandem::kernels::cpu {

// Products read a matrix output by output, and an integer format's scales go by output: each way in
// which kv_b_proj is used has a matrix of its own.
struct HeadMaps {
  Matrix absorb;  // [r, dn]: W^UK turned
  Matrix key;     // [dn, r]: W^UK
  Matrix value;   // [dv, r]: W^UV
};

// The maps of every head of `kv_b`, [heads * (dn + dv), r], from `unit` (null: nowhere) if that has
// them, without a look at its values. RESOURCE_EXHAUSTED where the system does not have the memory.
absl::StatusOr<std::vector<HeadMaps>> PrepareHeadMaps(const TensorView& kv_b,
                                                      const KvUpShape& shape, WeightFormat format,
                                                      FloatOrder order, PackedUnit* unit,
                                                      ThreadPool& pool);

// out[i, h] = round(map of head h * x[i, h]), as Linear makes it of a row.
struct HeadProducts {
  const std::vector<HeadMaps>& heads;
  Matrix HeadMaps::*map;
  TensorView x;         // [rows, heads, at least the map's inputs] act
  TensorView out;       // row i, head 0: [rows, the map's outputs] act or f32
  int64_t head_stride;  // elements from one head's outputs to the next's
};
void MultiplyHeads(const HeadProducts& products, ThreadPool& pool);

}  // namespace tandem::kernels::cpu

#endif  // TANDEM_KERNELS_CPU_HEAD_MAPS_H_

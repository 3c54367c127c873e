#include "kernels/cuda/made_up.h"

#include <cstdint>

#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {
namespace {

struct MakeUpOp {
  MadeUpTensor tensor;
  int64_t width;
  Bf16* out;

  __device__ void operator()(int64_t row, int64_t column) const {
    const int64_t i = row * width + column;
    out[i] = {MadeUpBits(tensor, static_cast<uint64_t>(i))};
  }
};

}  // namespace

void MakeUpValues(Stream stream, const MadeUpTensor& tensor, const DeviceTensor& out) {
  const int64_t rows = out.rows(), width = out.width();
  LaunchForElements(stream, rows, width, MakeUpOp{tensor, width, DataOf<Bf16>(out)});
}

}  // namespace tandem::kernels::cuda

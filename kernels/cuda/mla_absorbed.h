// Attention over the paged latent cache in the absorbed form, on a GPU. Contract: MlaAbsorbedArgs
// in kernels/ops/mla.h, whose order of additions it keeps: the CPU's bits.
#ifndef TANDEM_KERNELS_CUDA_MLA_ABSORBED_H_
#define TANDEM_KERNELS_CUDA_MLA_ABSORBED_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// Of MlaAbsorbedArgs.
struct MlaAbsorbedTensors {
  DeviceTensor q_latent, q, pages, page_tables, table_of_row, lengths, out;
};

// Shared memory that a block needs: heads * (r + kPageTokens + 3) f32, 36 KB for 16 heads of 512.
size_t MlaAbsorbedSharedBytes(int64_t heads, int64_t latent_width);

// A block of threads per row, which goes through its pages one after the other for all heads: so
// one row's time grows with its length, and a page is read from memory once and then from the
// cache. Starts one kernel in the stream and returns.
void MlaAbsorbed(Stream stream, const MlaAbsorbedTensors& tensors, float scale);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_MLA_ABSORBED_H_

// Attention over the paged latent cache in the absorbed form, on a GPU. Contract: MlaAbsorbedArgs
// in kernels/ops/mla.h, whose order of additions it keeps: the CPU's bits.
//
// A page's exponentials need the largest score of all pages up to it, which is known, exactly, once
// every page's own largest is. So there are three kernels, in each of which pages are independent
// but for sums that are carried on in their order:
//   scores   a block of threads has some of a row's pages, whose latents it reads once for all heads
//   weights  sixteen threads per head and page: scores become exponentials, and are summed
//   values   a block has a few columns of a row: each of its warps sums another page, then the
//            pages' sums are added in order
#ifndef TANDEM_KERNELS_CUDA_MLA_ABSORBED_H_
#define TANDEM_KERNELS_CUDA_MLA_ABSORBED_H_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"
#include "kernels/device_tensor.h"

namespace tandem::kernels::cuda {

// Of MlaAbsorbedArgs. `pages` begins at a multiple of 16 bytes.
struct MlaAbsorbedTensors {
  DeviceTensor q_latent, q, pages, page_tables, table_of_row, lengths, out;
};

// How a call's work is cut. No result depends on it.
struct MlaAbsorbedSplit {
  int64_t pages_at_once;     // of each row's table: what scratch is for
  int64_t blocks_per_row;    // that score a row's pages
  bool few_heads_per_block;  // whether a block adds the values of 4 heads, and otherwise of 16
};
// Keeps a GPU busy with few rows, and scratch below 32 MiB, or what one page of each row needs.
MlaAbsorbedSplit SplitMlaAbsorbed(const MlaAbsorbedTensors& tensors);

size_t MlaAbsorbedScratchBytes(const MlaAbsorbedTensors& tensors, const MlaAbsorbedSplit& split);

// Starts three kernels in the stream for each `pages_at_once` pages of a table, and returns.
// `scratch`, aligned to 256 bytes, is theirs until they are done. Reads each latent twice, as key
// and as value.
void MlaAbsorbed(Stream stream, const MlaAbsorbedTensors& tensors, float scale,
                 const MlaAbsorbedSplit& split, std::byte* scratch);

}  // namespace tandem::kernels::cuda

#endif  // TANDEM_KERNELS_CUDA_MLA_ABSORBED_H_

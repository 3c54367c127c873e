// Contracts of multi-head latent attention over the paged latent cache.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.1; symbols: r = kv_lora_rank,
// dn, dr, dv = the nope, rope and value widths of a head.
//
// The cache holds, per token, one row of r + dr values in the mode's dtype: the latent c after its
// norm, then the shared key k_rope after its rotation. Pages hold kPageTokens tokens. Keys and
// values are always made from these stored, rounded rows. Conventions of kernels/ops/dense.h.
//
// Attention is summed page by page in the order of positions, in f32, with the usual running
// maximum m (from -inf), denominator l and numerator n (from zero). For page p with keys j and
// scores s_j (how they are summed differs by form, see the ops):
//   m' = max(m, max_j s_j);  a = exp(m - m') (1 where m' = m);  p_j = exp(s_j - m')
//   l = fused(l * a + sum_j p_j),  the page's sum in lane order over j, from zero
//   n = fused(n * a + sum_j p_j v_j),  the page's sum by fused multiply-add, j ascending, from zero
// and the result is n / l. Keys that a row does not see are left out, whatever their slots hold.
// Pages begin at multiples of kPageTokens, so a row's order depends on its position alone, never
// on how the prompt was cut.
#ifndef TANDEM_KERNELS_OPS_MLA_H_
#define TANDEM_KERNELS_OPS_MLA_H_

#include "common/pages.h"
#include "kernels/device_tensor.h"
#include "kernels/weights.h"

namespace tandem::kernels {

// Cosines and sines of a batch's positions, the same for every layer.
//   angle[i, f] = float(positions[i]) * frequencies[f]   (one f32 product)
//   out[i, f] = factor * cos(angle), out[i, dr / 2 + f] = factor * sin(angle)
// computed in double from the f32 angle (kernels/portable_trig.h) and rounded once.
struct RopeTableArgs {
  DeviceTensor positions;    // [rows] i32, >= 0
  DeviceTensor frequencies;  // [dr / 2] f32
  float factor;              // YaRN's multiplier of cosine and sine
  DeviceTensor out;          // [rows, dr] f32
};

// Rotates, in place, the last dr values of each head as interleaved pairs:
//   y[2f] = x[2f] cos - x[2f+1] sin;  y[2f+1] = x[2f+1] cos + x[2f] sin
// in f32 (two products and one addition, each rounded), then rounded to act.
struct RopeArgs {
  DeviceTensor x;        // [rows, heads, width] act, width >= dr
  DeviceTensor cos_sin;  // [rows, dr] f32 by RopeTable
};

// Appends latents to the cache:
//   page_row[:r] = RmsNorm(kv_a[:, :r]; norm_weight, eps);  page_row[r:] = Rope(kv_a[:, r:])
struct LatentAppendArgs {
  DeviceTensor kv_a;  // [rows, r + dr] act: output of kv_a_proj_with_mqa
  const NormWeight& norm_weight;
  DeviceTensor cos_sin;   // [rows, dr] f32 by RopeTable
  DeviceTensor pages;     // [num_pages, kPageTokens, r + dr] act, one layer's
  DeviceTensor page_ids;  // [rows] i32: the page that row i goes to
  DeviceTensor slots;     // [rows] i32: its place in the page, in [0, kPageTokens)
  float eps;
};

// Query side of weight absorption: q_latent[i, h, :] = sum_d q[i, h, d] * W^UK_h[d, :], as Linear
// of the transpose of W^UK_h makes it (of integers with a scale per latent value; never in tensor
// order). Not rounded.
struct MlaAbsorbQueryArgs {
  DeviceTensor q;  // [rows, heads, dn + dr] act
  const KvUpWeight& kv_up;
  DeviceTensor q_latent;  // [rows, heads, r] f32
};

// Attends rows to their cached latents without expanding keys and values (absorbed form):
//   s_j = scale * (q_latent . c_j + q_rope . k_rope_j),  out = sum_j softmax(s)_j c_j
// The two dot products are each in lane order and added. Not rounded.
// Reads the first ceil(lengths[i] / kPageTokens) ids of row i's table.
// Cost: reads (r + dr) * lengths[i] values per row.
struct MlaAbsorbedArgs {
  DeviceTensor q_latent;      // [rows, heads, r] f32
  DeviceTensor q;             // [rows, heads, dn + dr] act, rotated; only q_rope is read
  DeviceTensor pages;         // [num_pages, kPageTokens, r + dr] act, one layer's
  DeviceTensor page_tables;   // [tables, max pages] i32: page ids of a sequence, in order
  DeviceTensor table_of_row;  // [rows] i32: whose pages row i sees
  DeviceTensor lengths;       // [rows] i32: keys that row i sees, itself included; >= 1
  DeviceTensor out;           // [rows, heads, r] f32
  float scale;
};

// Value side of weight absorption: out[i, h, v] = round(sum_c latent[i, h, c] * W^UV_h[v, c]),
// as Linear makes it.
struct MlaProjectValueArgs {
  DeviceTensor latent;  // [rows, heads, r] f32
  const KvUpWeight& kv_up;
  DeviceTensor out;  // [rows, heads * dv] act
};

// Attends rows of one sequence in the expanded form: per page, k_nope and v of every head are made
// from the stored latents as Linear makes them, rounded to act, then
//   s_j = scale * (q_nope . k_nope_j + q_rope . k_rope_j),  out = round(sum_j softmax(s)_j v_j).
// The two dot products are each summed by fused multiply-add, d ascending, from zero, and added:
// keys lie across lanes, and widths of 16 to 128 need no partial sums.
// Cost: expands positions [0, num_tokens) once per call; keeps heads * rows * dv f32 meanwhile.
struct MlaExpandedArgs {
  DeviceTensor q;  // [rows, heads, dn + dr] act, rotated
  const KvUpWeight& kv_up;
  DeviceTensor pages;       // [num_pages, kPageTokens, r + dr] act, one layer's
  DeviceTensor page_table;  // [max pages] i32: the sequence's pages, in order
  DeviceTensor positions;   // [rows] i32, ascending; row i sees keys 0..positions[i]
  int64_t num_tokens;       // keys that the last row sees: positions[rows - 1] + 1
  DeviceTensor out;         // [rows, heads * dv] act
  float scale;
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_OPS_MLA_H_

#include "kernels/cuda/row_ops.h"

#include <cstdint>

#include "kernels/cuda/exp.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/rows.h"

namespace tandem::kernels::cuda {
namespace {

template <typename From, typename To>
struct EmbedOp {
  Rows<const From> table;
  const int32_t* ids;
  Rows<To> out;

  __device__ void operator()(int64_t row, int64_t column) const {
    out[row][column] = Round<To>(ToFloat(table[ids[row]][column]));
  }
};

template <typename T>
struct GatherOp {
  Rows<const T> x;
  const int32_t* rows;
  Rows<T> out;

  __device__ void operator()(int64_t row, int64_t column) const {
    out[row][column] = x[rows[row]][column];
  }
};

template <typename T>
struct SiluMulOp {
  Rows<const T> gate, up;
  Rows<T> out;

  __device__ void operator()(int64_t row, int64_t column) const {
    const float z = ToFloat(gate[row][column]);
    out[row][column] = Round<T>(Silu(z) * ToFloat(up[row][column]));
  }
};

template <typename T>
struct AddOp {
  Rows<const T> a, b;
  Rows<T> out;

  __device__ void operator()(int64_t row, int64_t column) const {
    out[row][column] = Round<T>(ToFloat(a[row][column]) + ToFloat(b[row][column]));
  }
};

template <typename T>
struct CombineOp {
  Rows<const T> expert_rows;
  const int32_t* offsets;
  const float* weights;
  Rows<T> out;

  __device__ void operator()(int64_t row, int64_t column) const {
    float sum = 0.0f;
    for (int64_t route = offsets[row]; route < offsets[row + 1]; ++route) {
      sum = FusedMultiplyAdd(weights[route], ToFloat(expert_rows[route][column]), sum);
    }
    out[row][column] = Round<T>(sum);
  }
};

template <typename T, typename W>
__global__ void RmsNormKernel(int64_t rows, int64_t width, Rows<const T> x, const W* weight,
                              float eps, Rows<T> out) {
  const int64_t row = ThreadOfAll() / kSumLanes;
  NormRow(row < rows, x[row], weight, eps, width, out[row]);
}

}  // namespace

void Embed(Stream stream, const DeviceTensor& table, const DeviceTensor& ids,
           const DeviceTensor& out) {
  WithType(table.dtype, [&](auto from) {
    WithType(out.dtype, [&](auto to) {
      using From = typename decltype(from)::type;
      using To = typename decltype(to)::type;
      LaunchForElements(stream, out.rows(), out.width(),
                        EmbedOp<From, To>{RowsOf<const From>(table), DataOf<const int32_t>(ids),
                                          RowsOf<To>(out)});
    });
  });
}

void GatherRows(Stream stream, const DeviceTensor& x, const DeviceTensor& rows,
                const DeviceTensor& out) {
  const auto gather = [&](auto bits) {
    using T = decltype(bits);
    LaunchForElements(stream, out.rows(), out.width(),
                      GatherOp<T>{RowsOf<const T>(x), DataOf<const int32_t>(rows), RowsOf<T>(out)});
  };
  if (DtypeBytes(x.dtype) == 1) {
    gather(uint8_t{});
  } else if (DtypeBytes(x.dtype) == 2) {
    gather(uint16_t{});
  } else {
    gather(uint32_t{});
  }
}

void RmsNorm(Stream stream, const DeviceTensor& x, const DeviceTensor& weight, float eps,
             const DeviceTensor& out) {
  if (x.rows() == 0) return;
  WithType(x.dtype, [&](auto act) {
    WithType(weight.dtype, [&](auto factor) {
      using T = typename decltype(act)::type;
      using W = typename decltype(factor)::type;
      Launch(stream, RmsNormKernel<T, W>, BlocksForRows(x.rows()), kThreads, 0, x.rows(), x.width(),
             RowsOf<const T>(x), DataOf<const W>(weight), eps, RowsOf<T>(out));
    });
  });
}

void SiluMul(Stream stream, const DeviceTensor& gate, const DeviceTensor& up,
             const DeviceTensor& out) {
  WithType(out.dtype, [&](auto act) {
    using T = typename decltype(act)::type;
    LaunchForElements(stream, out.rows(), out.width(),
                      SiluMulOp<T>{RowsOf<const T>(gate), RowsOf<const T>(up), RowsOf<T>(out)});
  });
}

void Add(Stream stream, const DeviceTensor& a, const DeviceTensor& b, const DeviceTensor& out) {
  WithType(out.dtype, [&](auto act) {
    using T = typename decltype(act)::type;
    LaunchForElements(stream, out.rows(), out.width(),
                      AddOp<T>{RowsOf<const T>(a), RowsOf<const T>(b), RowsOf<T>(out)});
  });
}

void Combine(Stream stream, const DeviceTensor& expert_rows, const DeviceTensor& offsets,
             const DeviceTensor& weights, const DeviceTensor& out) {
  WithType(out.dtype, [&](auto act) {
    using T = typename decltype(act)::type;
    LaunchForElements(stream, out.rows(), out.width(),
                      CombineOp<T>{RowsOf<const T>(expert_rows), DataOf<const int32_t>(offsets),
                                   DataOf<const float>(weights), RowsOf<T>(out)});
  });
}

}  // namespace tandem::kernels::cuda

// Memory of a device. Its address is not for the host to read, even where the device is the host:
// only a backend's own files come to it, through kernels/device_access.h.
#ifndef TANDEM_KERNELS_DEVICE_TENSOR_H_
#define TANDEM_KERNELS_DEVICE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "common/check.h"
#include "common/tensor.h"

namespace tandem::kernels {

// A view of a dense row-major tensor in a device's memory. Owns nothing.
class DeviceTensor : public TensorLayout {
 public:
  DeviceTensor() = default;

  bool empty() const { return address_ == nullptr; }

  // Rows [first, first + count), which must exist, as a tensor of rank 2; all dimensions but the
  // last count as rows.
  DeviceTensor slice_rows(int64_t first, int64_t count) const {
    DeviceTensor slice = *this;
    slice.rank = 2;
    slice.shape = {count, width(), 0, 0};
    slice.address_ = address_ + first * static_cast<int64_t>(row_stride_bytes());
    return slice;
  }
  // Elements [first, first + count) of a rank-1 tensor, which must exist.
  DeviceTensor slice(int64_t first, int64_t count) const {
    DeviceTensor slice = *this;
    slice.shape[0] = slice.row_stride = count;
    slice.address_ = address_ + first * static_cast<int64_t>(DtypeBytes(dtype));
    return slice;
  }
  // The same elements, which must lie side by side, as `dims`.
  DeviceTensor reshaped(std::initializer_list<int64_t> dims) const {
    DeviceTensor other = *this;
    static_cast<TensorLayout&>(other) = TensorLayout(dtype, dims);
    TANDEM_CHECK(other.elements() == elements() && (rank < 2 || row_stride == width()));
    return other;
  }

 private:
  friend class DeviceAccess;
  std::byte* address_ = nullptr;
};

// Memory of a backend, given back when destroyed. Must not outlive its backend.
class Buffer {
 public:
  virtual ~Buffer() = default;
  size_t bytes() const { return bytes_; }
  // A tensor `offset_bytes` into the buffer. Requires that it lies within.
  DeviceTensor Tensor(Dtype dtype, std::initializer_list<int64_t> dims,
                      size_t offset_bytes = 0) const;

 protected:
  Buffer(void* address, size_t bytes) : address_(address), bytes_(bytes) {}

 private:
  void* const address_;
  const size_t bytes_;
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_DEVICE_TENSOR_H_

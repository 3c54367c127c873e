// The way from a device tensor to its address. For the files of a backend, and for tests.
#ifndef TANDEM_KERNELS_DEVICE_ACCESS_H_
#define TANDEM_KERNELS_DEVICE_ACCESS_H_

#include <cstddef>
#include <initializer_list>

#include "kernels/device_tensor.h"

namespace tandem::kernels {

class DeviceAccess {
 public:
  static std::byte* Address(const DeviceTensor& tensor) { return tensor.address_; }
  static DeviceTensor Tensor(void* address, const TensorLayout& layout) {
    DeviceTensor tensor;
    static_cast<TensorLayout&>(tensor) = layout;
    tensor.address_ = static_cast<std::byte*>(address);
    return tensor;
  }
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_DEVICE_ACCESS_H_

// A stream's work, done in order by a thread of its own, so that what is asked of the emulated
// device is done later than it is asked, as on a GPU.
#ifndef TANDEM_KERNELS_CUDA_EMULATION_WORK_QUEUE_H_
#define TANDEM_KERNELS_CUDA_EMULATION_WORK_QUEUE_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"

namespace tandem::kernels::cuda::emulation {

class WorkQueue {
 public:
  WorkQueue();
  ~WorkQueue();  // does what is left
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // Waits while as much is asked as a GPU's queue takes. Any thread may call it, but work itself.
  void Add(std::function<void()> work);

 private:
  static constexpr size_t kMostWaiting = 1024;

  void Run();

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> waiting_ ABSL_GUARDED_BY(mutex_);
  bool ends_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace tandem::kernels::cuda::emulation

#endif  // TANDEM_KERNELS_CUDA_EMULATION_WORK_QUEUE_H_

// Device memory of a pass over layers: taken in order, given back in the reverse order, kept for
// the next pass.
#ifndef TANDEM_ATTENTION_WORKER_WORKSPACE_H_
#define TANDEM_ATTENTION_WORKER_WORKSPACE_H_

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <vector>

#include "common/tensor.h"
#include "kernels/backend.h"

namespace tandem {

// A stack of tensors. It grows to the largest pass seen and never shrinks; a device without memory
// for it ends the process. Belongs to one thread.
class Workspace {
 public:
  explicit Workspace(kernels::Backend* backend) : backend_(backend) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // A tensor with any contents, valid until the mark before it is returned to.
  kernels::DeviceTensor Take(Dtype dtype, std::initializer_list<int64_t> dims);

  struct Mark {
    size_t chunk = 0;
    size_t used_bytes = 0;
  };
  Mark mark() const { return top_; }
  // Gives back all that was taken since `mark`.
  void ReturnTo(const Mark& mark) { top_ = mark; }
  // Gives back everything, and joins memory that was allocated piece by piece.
  void Clear();

  // Gives back what was taken in its lifetime.
  class Scope {
   public:
    explicit Scope(Workspace* workspace) : workspace_(workspace), mark_(workspace->mark()) {}
    ~Scope() { workspace_->ReturnTo(mark_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace* const workspace_;
    const Mark mark_;
  };

 private:
  void AddChunk(size_t bytes);

  kernels::Backend* const backend_;
  std::vector<std::unique_ptr<kernels::Buffer>> chunks_;
  Mark top_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_WORKSPACE_H_

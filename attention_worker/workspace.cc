#include "attention_worker/workspace.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace tandem {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMinChunkBytes = size_t{1} << 20;

}  // namespace

kernels::DeviceTensor Workspace::Take(Dtype dtype, std::initializer_list<int64_t> dims) {
  const size_t size = TensorLayout(dtype, dims).bytes();
  const size_t bytes = (size + kAlignment - 1) / kAlignment * kAlignment;
  while (top_.chunk < chunks_.size() && chunks_[top_.chunk]->bytes() - top_.used_bytes < bytes) {
    top_ = {top_.chunk + 1, 0};
  }
  if (top_.chunk == chunks_.size()) AddChunk(bytes);
  const auto tensor = chunks_[top_.chunk]->Tensor(dtype, dims, top_.used_bytes);
  top_.used_bytes += bytes;
  return tensor;
}

void Workspace::Clear() {
  top_ = {};
  if (chunks_.size() <= 1) return;
  size_t bytes = 0;
  for (const auto& chunk : chunks_) bytes += chunk->bytes();
  chunks_.clear();
  AddChunk(bytes);
}

void Workspace::AddChunk(size_t bytes) {
  auto buffer = backend_->Allocate(std::max(bytes, kMinChunkBytes));
  TANDEM_CHECK(buffer.ok());
  chunks_.push_back(*std::move(buffer));
}

}  // namespace tandem
